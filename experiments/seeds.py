"""experiments/seeds.py: one setting over several seeds -> one table of means with 95 % intervals.

    python experiments/seeds.py --seeds 5 --name beta03 -- --beta 0.3    # settings follow after --

In: settings of train.py.  Out: a table, and with --json every figure of every run.
Each seed is a process with its files in runs/NAME-sSEED. Runs go side by side, each on one thread
(or on as many as OMP_NUM_THREADS says). So their times mean nothing, and no table has them.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.files import read_jsonl
from core.statistics import student_interval
from measure.duel import mark_best

ROOT = Path(__file__).resolve().parent.parent
Runs = list[list[dict]]  # seed -> model -> its figures, as in metrics.jsonl


class Column(NamedTuple):
    """A figure as a column of a table: its key in metrics.jsonl, and how to print it."""

    key: str
    title: str
    digits: int
    scale: int = 1

    def cell(self, interval: dict | None, seeds: int, *, sign: str = "") -> str:
        """Mean ± half width, and how many seeds have the figure, where these are fewer."""
        if interval is None:
            return "-"
        text = f"{interval['mean'] * self.scale:{sign}.{self.digits}f}"
        if interval["half"] is not None:
            text += f" ± {interval['half'] * self.scale:.{self.digits}f}"
        if interval["n"] < seeds:
            text += f" ({interval['n']} of {seeds} seeds)"
        return text


COLUMNS = (
    Column("true_score", "true score", 2),
    Column("perfect", "perfect, %", 1, scale=100),
    Column("self_score", "self-score", 2),
    Column("judge_pairwise", "judge, pairwise", 3),
    Column("pairs", "pairs", 0),
    Column("pairs_right", "pairs right, %", 1, scale=100),
)


def one_run(command: list[str], name: str, seed: int) -> list[dict]:
    """Runs a program; "{seed}" in its command is the seed. Returns the figures of each model.

    A run that found no pair has the models up to there. Raises SystemExit where a run failed.
    """
    run = f"{name}-s{seed}"
    program, *arguments = [word.replace("{seed}", str(seed)) for word in command]
    arguments += ["--json", "--run", run, "--seed", str(seed)]
    process = subprocess.run(
        [sys.executable, ROOT / program, *arguments],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
    )
    print(f"{run} ended with code {process.returncode}", file=sys.stderr)
    if process.returncode == 2 and "no preference pair" in process.stderr:
        models = read_jsonl(f"runs/{run}/metrics.jsonl")
        return mark_best(Path(f"runs/{run}"), models) if "--keep-best" in arguments else models
    if process.returncode:
        messages = process.stderr.strip().splitlines() or ["it said nothing"]
        sys.exit(f"{run} failed: {messages[-1]}")
    return json.loads(process.stdout)["models"]


def run_all(commands: dict[str, list[str]], *, seeds: int, jobs: int) -> dict[str, Runs]:
    """The figures of every command on every seed, `jobs` runs at a time."""
    runs = {}
    with ThreadPoolExecutor(jobs) as pool:
        for name, command in commands.items():
            # `map` starts the runs and does not wait for them
            runs[name] = pool.map(partial(one_run, command, name), range(seeds))
    return {name: list(results) for name, results in runs.items()}


def summarise(runs: Runs) -> list[dict]:
    """For each model, each figure's mean and interval over the seeds that have it.

    With --keep-best a last line has the model of each seed that was the best.
    """
    summary = []
    columns = []
    for number, models in enumerate(zip_longest(*runs, fillvalue={}), 1):
        columns.append((f"M{number}", models))
    best = [model for models in runs for model in models if model.get("best")]
    if best:
        columns.append(("best", best))
    for name, models in columns:
        values = defaultdict(list)
        for model in models:
            for key, value in model.items():
                if key not in ("t", "best") and isinstance(value, int | float):
                    values[key].append(value)
        intervals = {key: student_interval(numbers) for key, numbers in values.items()}
        summary.append({"model": name, **intervals})
    return summary


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """The first heading may be empty."""
    first = f"| {' | '.join(head)} |".replace("|  |", "| |")
    rule = "|---" * len(head) + "|"
    others = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([first, rule, *others])


def seed_table(summary: list[dict], columns: Sequence[Column], seeds: int) -> str:
    """One line for each model."""
    lines = []
    for model in summary:
        cells = [column.cell(model.get(column.key), seeds) for column in columns]
        lines.append([model["model"], *cells])
    return markdown_table(["model", *(column.title for column in columns)], lines)


def experiment_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of every experiment."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. N-1 [%(default)s]")
    jobs = os.cpu_count()
    parser.add_argument("--jobs", type=int, default=jobs, help="runs side by side [%(default)s]")
    return parser


def main() -> None:
    parser = experiment_parser("One setting over several seeds.")
    parser.add_argument("--name", default="default", help="runs/NAME-sSEED")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("extra", nargs="*", help="after --: settings of train.py")
    args = parser.parse_args()
    commands = {args.name: ["train.py", *args.extra]}
    runs = run_all(commands, seeds=args.seeds, jobs=args.jobs)[args.name]
    summary = summarise(runs)
    if args.json:
        record = {"settings": args.extra, "summary": summary, "runs": runs}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(seed_table(summary, COLUMNS, args.seeds))


if __name__ == "__main__":
    main()
