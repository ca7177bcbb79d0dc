"""experiments/seeds.py: one setting over several seeds -> one table of means with 95 % intervals.

    python experiments/seeds.py --seeds 5 --name beta03 -- --beta 0.3    # settings follow after --

In: settings of train.py.  Out: a table, and with --json every figure of every run.
Each seed is a process with its files in runs/NAME-sSEED. Runs go side by side on one thread each,
so their times mean nothing. Each of them has more threads where OMP_NUM_THREADS says so.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.files import read_jsonl  # noqa: E402
from core.statistics import student_interval  # noqa: E402


class Column(NamedTuple):
    """A figure as a column of a table: its key in metrics.jsonl, and how to print it."""

    key: str
    title: str
    digits: int
    scale: int = 1

    def cell(self, interval: dict | None, *, seeds: int = 0, sign: str = "") -> str:
        """Mean ± half width, and how many seeds have the figure, where these are fewer."""
        if interval is None:
            return "-"
        text = f"{interval['mean'] * self.scale:{sign}.{self.digits}f}"
        if interval["half"] is not None:
            text += f" ± {interval['half'] * self.scale:.{self.digits}f}"
        if interval["n"] < seeds:
            text += f" ({interval['n']} of {seeds} seeds)"
        return text


MAIN_COLUMNS = (
    Column("true_score", "true score", 2),
    Column("perfect", "perfect, %", 1, scale=100),
    Column("self_score", "self-score", 2),
    Column("judge_pairwise", "judge, pairwise", 3),
)
COLUMNS = (
    *MAIN_COLUMNS,
    Column("judge_parse_rate", "readable verdicts, %", 1, scale=100),
    Column("finished_rate", "finished answers, %", 1, scale=100),
    Column("mean_length", "tokens an answer", 1),
    Column("pairs", "pairs", 0),
    Column("pairs_right", "pairs right, %", 1, scale=100),
)


def one_run(command: list[str], name: str, seed: int, *, may_end_early: bool = False) -> list[dict]:
    """Runs a program; returns the figures of each model, as in metrics.jsonl.

    "{seed}" in the command stands for the seed. Raises SystemExit where the run failed. With
    `may_end_early`, a run that found no pair (exit code 2) has not failed.
    """
    run = f"{name}-s{seed}"
    words = [str(ROOT / command[0]), *command[1:], "--json", "--run", run, "--seed", str(seed)]
    process = subprocess.run(
        [sys.executable, *(word.replace("{seed}", str(seed)) for word in words)],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
    )
    if may_end_early and process.returncode == 2 and "no preference pair" in process.stderr:
        return read_jsonl(f"runs/{run}/metrics.jsonl")
    if process.returncode:
        messages = process.stderr.strip().splitlines() or ["it said nothing"]
        sys.exit(f"{name}, seed {seed} ended with code {process.returncode}: {messages[-1]}")
    return json.loads(process.stdout)["models"]


def run_seeds(command: list[str], name: str, *, seeds: int, jobs: int) -> list[list[dict]]:
    """The figures of one command on every seed, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda seed: one_run(command, name, seed), range(seeds)))


def summarise(runs: list[list[dict]]) -> list[dict]:
    """For each model, each figure's mean and interval over the seeds that have it.

    runs[s][t - 1] holds the figures of M_t in the run of seed s. The runs may differ in length.
    """
    summary = []
    for number, models in enumerate(zip_longest(*runs, fillvalue={}), 1):
        values = defaultdict(list)
        for model in models:
            for key, value in model.items():
                if key != "t" and isinstance(value, int | float):
                    values[key].append(value)
        intervals = {key: student_interval(numbers) for key, numbers in values.items()}
        summary.append({"model": f"M{number}", **intervals})
    return summary


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """The first heading may be empty."""
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    rule = "|---" * len(head) + "|"
    return "\n".join([rows[0].replace("|  |", "| |"), rule, *rows[1:]])


def seed_table(summary: list[dict]) -> str:
    """One line for each model."""
    lines = []
    for model in summary:
        lines.append([model["model"], *(column.cell(model.get(column.key)) for column in COLUMNS)])
    return markdown_table(["model", *(column.title for column in COLUMNS)], lines)


def experiment_arguments(description: str) -> argparse.ArgumentParser:
    """The arguments of every experiment."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. N-1 [%(default)s]")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs side by side [%(default)s]"
    )
    return parser


def main() -> None:
    parser = experiment_arguments("One setting over several seeds.")
    parser.add_argument("--name", default="default", help="runs/NAME-sSEED")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("extra", nargs="*", help="after --: settings of train.py")
    args = parser.parse_args()
    runs = run_seeds(["train.py", *args.extra], args.name, seeds=args.seeds, jobs=args.jobs)
    summary = summarise(runs)
    if args.json:
        record = {"settings": args.extra, "summary": summary, "runs": runs}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(seed_table(summary))


if __name__ == "__main__":
    main()
