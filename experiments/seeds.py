"""experiments/seeds.py: the same run over several seeds -> one table of means with 95 % intervals.

    python experiments/seeds.py --seeds 5 -- --iters 6                        # the table of the README
    python experiments/seeds.py --seeds 5 --name beta03 -- --beta 0.3         # anything after -- goes to train.py

Each seed is one process of `python train.py --json`, its files in runs/NAME-sSEED. Intervals are Student's t over seeds.
With --jobs 2 two seeds run side by side on one thread each: quicker for a sweep, but its times mean nothing.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parent.parent
# Beyond ten seeds the interval is that of ten, a little too wide.
T95 = {
    1: 12.71,
    2: 4.30,
    3: 3.18,
    4: 2.78,
    5: 2.57,
    6: 2.45,
    7: 2.36,
    8: 2.31,
    9: 2.26,
}  # two-sided, by degrees of freedom
KEYS = (
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


def one_run(
    name: str, seed: int, extra: list[str], threads: int | None, *, may_end_early: bool = False
) -> list[dict]:
    """The rows of the table of one run; with `may_end_early` also of one that found no pair and stopped with a sentence (exit code 2)."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--json",
        "--run",
        f"{name}-s{seed}",
        "--seed",
        str(seed),
        *extra,
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    if may_end_early and done.returncode == 2 and "no preference pair" in done.stderr:
        return [
            json.loads(line)
            for line in Path(f"runs/{name}-s{seed}/metrics.jsonl").read_text().splitlines()
        ]
    if done.returncode:
        sys.exit(
            f"{name}, seed {seed} ended with code {done.returncode}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
        )
    return json.loads(done.stdout)["models"]


def interval(values: list[float]) -> dict:
    half = (
        T95.get(len(values) - 1, T95[9]) * stdev(values) / math.sqrt(len(values))
        if len(values) > 1
        else None
    )
    return {
        "mean": mean(values),
        "half": half,
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def summarise(runs: list[list[dict]]) -> list[dict]:
    """One row a model: of every figure the mean over the seeds that have it, with its interval."""
    rows = []
    for t, models in enumerate(zip_longest(*runs, fillvalue={}), 1):
        keys = {
            k: None
            for m in models
            for k, v in m.items()
            if isinstance(v, (int, float)) and k != "t"
        }  # in order
        rows.append(
            {
                "model": f"M{t}",
                **{k: interval([m[k] for m in models if m.get(k) is not None]) for k in keys},
            }
        )
    return rows


def cell(figure: dict | None, scale: float, digits: int, *, sign: str = "", seeds: int = 0) -> str:
    """A mean with its interval; of how many seeds, where it is fewer than `seeds`."""
    if figure is None:
        return "-"
    half = "" if figure["half"] is None else f" ± {figure['half'] * scale:.{digits}f}"
    return f"{figure['mean'] * scale:{sign}.{digits}f}{half}" + (
        f" ({figure['n']} of {seeds} seeds)" if seeds and figure["n"] < seeds else ""
    )


def markdown(rows: list[dict]) -> str:
    def shown(figure: dict | None, percent: bool) -> str:
        if percent:
            return cell(figure, 100, 1) + (" %" if figure else "")
        return cell(figure, 1, 3 if figure and figure["mean"] < 5.01 else 1)

    lines = ["| model | " + " | ".join(KEYS) + " |", "|---" * (len(KEYS) + 1) + "|"]
    for row in rows:
        lines.append(
            f"| {row['model']} | "
            + " | ".join(
                shown(
                    row.get(k), k in ("perfect", "judge_parse_rate", "finished_rate", "pairs_right")
                )
                for k in KEYS
            )
            + " |"
        )
    return "\n".join(lines)


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
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(
            pool.map(
                lambda s: one_run(args.name, s, args.extra, 1 if args.jobs > 1 else None),
                range(args.seeds),
            )
        )
    rows = summarise(runs)
    if args.json:
        Path(args.json).write_text(
            json.dumps({"settings": args.extra, "summary": rows, "runs": runs}, indent=1) + "\n"
        )
    print(markdown(rows))
    print(
        "\neach seed, perfect at M_1 .. M_T+1: "
        + "; ".join(
            " ".join(f"{m['perfect']:.3f}" for m in r) for r in runs if r[0]["perfect"] is not None
        )
    )
    print(
        "each seed, judge at M_1 .. M_T+1: "
        + "; ".join(
            " ".join(f"{m['judge_pairwise']:.3f}" for m in r)
            for r in runs
            if r[0].get("judge_pairwise") is not None
        )
    )


if __name__ == "__main__":
    main()
