"""experiments/seeds.py: one setting over several seeds -> one table of means with 95 % intervals.

    python experiments/seeds.py --seeds 5 -- --iters 6                   # the table of the README
    python experiments/seeds.py --seeds 5 --name beta03 -- --beta 0.3    # settings follow after --

In: settings of train.py.  Out: a table, and with --json every figure of every run.
Each seed is one process of `python train.py --json`, with its files in runs/NAME-sSEED. The
intervals are Student's t over the seeds. With --jobs 2, two seeds run side by side on one thread
each. This is quicker for a sweep, but then the times mean nothing. The other experiments start
their runs and write their tables with the functions of this file.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.statistics import student_interval  # noqa: E402

PERCENTAGES = ("perfect", "judge_parse_rate", "finished_rate", "pairs_right")
COLUMNS = (  # keys of metrics.jsonl
    "perfect",
    "true_score",
    "self_score",
    "judge_pairwise",
    "judge_parse_rate",
    "finished_rate",
    "mean_length",
    "pairs",
    "pairs_right",
    "seconds",
)


# ---- one run ----


def one_run(
    program: Sequence[str],
    settings: Sequence[str],
    *,
    name: str,
    seed: int,
    threads: int | None = None,
    may_end_early: bool = False,
) -> list[dict]:
    """Runs a program in its own process; returns the figures of each model, as in metrics.jsonl.

    `program` is ["train.py"] or ["experiments/variants.py", VARIANT]. Raises SystemExit where the
    run failed. With `may_end_early`, a run that found no pair (exit code 2) has not failed.
    """
    folder = f"{name}-s{seed}"
    command = [sys.executable, str(ROOT / program[0]), *program[1:]]
    command += ["--json", "--run", folder, "--seed", str(seed), *settings]
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.run(command, capture_output=True, text=True, env=environment)

    if may_end_early and process.returncode == 2 and "no preference pair" in process.stderr:
        lines = Path(f"runs/{folder}/metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
    if process.returncode:
        messages = process.stderr.strip().splitlines() or ["it said nothing"]
        sys.exit(f"{name}, seed {seed} ended with code {process.returncode}: {messages[-1]}")
    return json.loads(process.stdout)["models"]


# ---- many runs in one table ----


def summarise(runs: Sequence[list[dict]]) -> list[dict]:
    """One row for each model: each figure's mean and interval over the seeds that have it.

    runs[s][t - 1] holds the figures of M_t in the run of seed s. The runs may differ in length.
    """
    summary = []
    for number, models in enumerate(zip_longest(*runs, fillvalue={}), 1):
        values: dict[str, list[float]] = {}
        for model in models:
            for key, value in model.items():
                if key != "t" and isinstance(value, int | float):
                    values.setdefault(key, []).append(value)
        intervals = {key: student_interval(numbers) for key, numbers in values.items()}
        summary.append({"model": f"M{number}", **intervals})
    return summary


def interval_text(
    interval: dict | None, *, digits: int, scale: float = 1, sign: str = "", seeds: int = 0
) -> str:
    """Mean ± half width; then the number of seeds that it comes from, where fewer than `seeds`."""
    if interval is None:
        return "-"
    text = f"{interval['mean'] * scale:{sign}.{digits}f}"
    if interval["half"] is not None:
        text += f" ± {interval['half'] * scale:.{digits}f}"
    if interval["n"] < seeds:
        text += f" ({interval['n']} of {seeds} seeds)"
    return text


def markdown_line(cells: Iterable[str]) -> str:
    """One line of a markdown table; an empty cell is a single space."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = "|---" * len(head) + "|"
    return "\n".join([markdown_line(head), rule, *map(markdown_line, lines)])


def seed_table(summary: Sequence[dict]) -> str:
    """The table of this experiment: one line for each model, one column for each of COLUMNS."""
    lines = []
    for row in summary:
        cells = [row["model"]]
        for key in COLUMNS:
            interval = row.get(key)
            if interval is None:
                cells.append("-")
            elif key in PERCENTAGES:
                cells.append(interval_text(interval, digits=1, scale=100) + " %")
            else:
                # A score or a share needs three digits, a length or a number of seconds does not.
                cells.append(interval_text(interval, digits=3 if interval["mean"] < 5.01 else 1))
        lines.append(cells)
    return markdown_table(["model", *COLUMNS], lines)


def every_seed(runs: Sequence[list[dict]], key: str) -> str:
    """One figure from M_1 to the last model, for each seed whose M_1 has it."""
    courses = []
    for models in runs:
        if models[0].get(key) is not None:
            courses.append(" ".join(f"{model[key]:.3f}" for model in models))
    return "; ".join(courses)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One setting over several seeds.", allow_abbrev=False
    )
    parser.add_argument("--name", default="default", help="runs/NAME-sSEED")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. N-1")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs side by side, one thread each when more than one"
    )
    parser.add_argument("--json", help="also write everything to this file")
    parser.add_argument("extra", nargs="*", help="after --: settings of train.py")
    args = parser.parse_args()

    def run_seed(seed: int) -> list[dict]:
        threads = 1 if args.jobs > 1 else None
        return one_run(["train.py"], args.extra, name=args.name, seed=seed, threads=threads)

    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(run_seed, range(args.seeds)))
    summary = summarise(runs)
    if args.json:
        record = {"settings": args.extra, "summary": summary, "runs": runs}
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
    print(seed_table(summary))
    print(f"\neach seed, perfect at M_1 .. M_T+1: {every_seed(runs, 'perfect')}")
    print(f"each seed, judge at M_1 .. M_T+1: {every_seed(runs, 'judge_pairwise')}")


if __name__ == "__main__":
    main()
