"""experiments/ablations.py: every switch of the method, one at a time, over several seeds of the toy -> one table and one figure.

    python experiments/ablations.py --seeds 5                       # all rows; docs/ablations.md, .json and .svg
    python experiments/ablations.py --seeds 3 --only "IPO;meta" --out DIR      # some rows

Each row is the default run with one or two settings changed, a process of `python train.py` with its files in runs/ab-ROW-sSEED. What
a setting cannot touch is not made again: a row starts from the files of the default run of its seed, up to the stage that
its setting changes (every stage is a function of settings and files, so the result is the same). A finished run is not
run again, so a sweep that was stopped goes on. Times of single runs mean nothing here: they go side by side on one thread each.
"""

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from seeds import cell, interval, one_run, summarise  # noqa: E402

# What a row takes from the default run of its seed, one after the other; a number says how many of these.
STEPS = (
    ("M1", "sft.jsonl", "t0"),
    ("exam/M1.jsonl", "exam/rewards-M1.jsonl", "metrics.jsonl", "t1/prompts.jsonl"),
    ("t1/responses.jsonl",),
    ("t1/verdicts.jsonl",),
)
ROWS = {
    "default": (0, []),
    "plain DPO": (4, ["--nll", "0"]),
    "no replay": (4, ["--replay", "0"]),
    "plain DPO, no replay": (4, ["--nll", "0", "--replay", "0"]),
    "reference M_1": (4, ["--ref", "seed"]),
    "IPO": (4, ["--loss", "ipo"]),
    "label smoothing 0.1": (4, ["--label-smoothing", "0.1"]),
    "CREAM": (4, ["--cream"]),
    "length control 0.2": (4, ["--length-control", "0.2"]),
    "SFT on the best": (4, ["--positive-only"]),
    "meta": (4, ["--meta"]),
    "meta, no replay": (4, ["--meta", "--replay", "0"]),
    "K = 1": (1, ["--k", "1"]),
    "frozen judge M_1": (3, ["--judge-model", "runs/ab-default-s{seed}/M1"]),
    "oracle as judge": (3, ["--judge-model", "oracle"]),
    "expected scores": (1, ["--judge", "expected"]),
    "no judge data": (0, ["--no-eft"]),
    "500 seed examples": (0, ["--seed-limit", "500"]),
    "250 seed examples": (0, ["--seed-limit", "250"]),
    "500 seed examples, no replay": (0, ["--seed-limit", "500", "--replay", "0"]),
}
# key in metrics.jsonl, heading, scale, digits
SHOWN = (
    ("true_score", "true score", 1, 2),
    ("perfect", "perfect, %", 100, 1),
    ("self_score", "self-score", 1, 2),
    ("judge_pairwise", "judge, pairwise", 1, 3),
    ("pairs", "pairs from 1,024 prompts", 1, 0),
)
KEPT = (
    "model",
    *(key for key, *_ in SHOWN),
    "judge_parse_rate",
    "judge_ties",
    "finished_rate",
    "mean_length",
    "kl_first",
    "distinct2",
)


# ---- runs ----
def name_of(row: str) -> str:
    return f"ab-{row.replace(' ', '-').replace(',', '').replace('=-', '').replace('.', '')}"


def inherit(run: Path, default: Path, steps: int) -> None:
    """Copies what the row shares with the default run, whole or not at all; a run that has begun is left alone."""
    if run.exists():
        return
    copy = run.with_name(run.name + ".tmp")
    shutil.rmtree(copy, ignore_errors=True)
    for path in (p for step in STEPS[:steps] for p in step):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        if path == "metrics.jsonl":  # of the default run's models only the first is shared
            (copy / path).write_text((default / path).read_text().splitlines(keepends=True)[0])
        else:
            (shutil.copytree if (default / path).is_dir() else shutil.copy)(
                default / path, copy / path
            )
    copy.rename(run)


def one(row: str, seed: int) -> list[dict]:
    steps, settings = ROWS[row]
    if steps:
        inherit(
            Path(f"runs/{name_of(row)}-s{seed}"), Path(f"runs/{name_of('default')}-s{seed}"), steps
        )
    return one_run(
        name_of(row), seed, [s.format(seed=seed) for s in settings], 1, may_end_early=True
    )


# ---- the table ----
def against_default(runs: dict[str, list[list[dict]]], row: str, key: str) -> dict | None:
    """The last model's figure minus that of the default run of the same seed; None where a run has no such model."""
    both = [
        (own[-1].get(key), base[-1].get(key))
        for own, base in zip(runs[row], runs["default"])
        if len(own) == len(base)
    ]
    both = [(a, b) for a, b in both if None not in (a, b)]
    return interval([a - b for a, b in both]) if both and row != "default" else None


def rise(runs: list[list[dict]], key: str) -> dict | None:
    """The last model's figure minus M_1's, seed by seed."""
    both = [(models[-1].get(key), models[0].get(key)) for models in runs if len(models) > 1]
    return (
        interval([a - b for a, b in both])
        if both and all(None not in pair for pair in both)
        else None
    )


def markdown(runs: dict[str, list[list[dict]]]) -> str:
    """The differences first, then every figure of every model."""
    found = {row: summarise(of) for row, of in runs.items()}
    models, parts = max(([r["model"] for r in rows] for rows in found.values()), key=len), []
    if "default" in runs:
        parts += [
            f"**{models[-1]} against the default run of the same seed, and what the judge gained since M1**\n",
            "| | true score | perfect, % | self-score | judge, pairwise | judge, M1 to the last |",
            "|---" * 6 + "|",
        ]
        keys = [(k, s, d) for k, _, s, d in SHOWN if k != "pairs"]
        parts += [
            f"| {row} | "
            + " | ".join(
                [
                    cell(against_default(runs, row, k), s, d, sign="+", seeds=len(of))
                    for k, s, d in keys
                ]
                + [cell(rise(of, "judge_pairwise"), 1, 3, sign="+", seeds=len(of))]
            )
            + " |"
            for row, of in runs.items()
        ]
    for key, title, scale, digits in SHOWN:
        parts += [
            f"\n**{title}**\n",
            "| | " + " | ".join(models) + " |",
            "|---" * (len(models) + 1) + "|",
        ]
        for row, rows in found.items():
            cells = [
                cell(r.get(key), scale, digits, seeds=0 if r["model"] == "M1" else len(runs[row]))
                for r in rows
            ] + ["-"] * (len(models) - len(rows))
            parts.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


# ---- the figure ----
def panel(
    title: str, left: int, found: dict[str, list[dict]], key: str, low: float, high: float
) -> str:
    """One line a row: a hollow point for M1, small ones on the way, a full one with its interval for the last model; at the edge what lies beyond it."""
    x = lambda v: left + 300 * (min(max(v, low), high) - low) / (high - low)
    parts = [
        f'<text x="{left + 150}" y="18" text-anchor="middle" class="head">{escape(title)}</text>'
    ]
    for tick in (low + (high - low) * k / 5 for k in range(6)):
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="26" y2="{34 + 22 * len(found)}" class="grid"/>'
            f'<text x="{x(tick):.1f}" y="{48 + 22 * len(found)}" text-anchor="middle">{"&#8804; " if tick == low else ""}{tick:.2f}</text>'
        )
    for number, rows in enumerate(found.values()):
        y, last = 44 + 22 * number, rows[-1].get(key)
        if last and last["half"] is not None and len(rows) > 1:
            parts.append(
                f'<line x1="{x(last["mean"] - last["half"]):.1f}" x2="{x(last["mean"] + last["half"]):.1f}" y1="{y}" y2="{y}" class="bar"/>'
            )
        for place, r in enumerate(rows):
            if key in r:
                kind, size = (
                    ("first", 4)
                    if place == 0
                    else ("last", 5)
                    if place == len(rows) - 1
                    else ("way", 2.5)
                )
                parts.append(
                    f'<circle cx="{x(r[key]["mean"]):.1f}" cy="{y}" r="{size}" class="{kind}"><title>{r["model"]} {r[key]["mean"]:.3f}</title></circle>'
                )
    return "".join(parts)


def figure(found: dict[str, list[dict]]) -> str:
    names = "".join(
        f'<text x="196" y="{48 + 22 * i}" text-anchor="end">{escape(name)}</text>'
        for i, name in enumerate(found)
    )
    style = (
        "text{font:12px system-ui,sans-serif;fill:#444}.head{font-weight:600}.grid{stroke:#ddd}.bar{stroke:#0b62c4;stroke-width:2}"
        ".first{fill:none;stroke:#888;stroke-width:1.5}.way{fill:#7fb2ea}.last{fill:#0b62c4}"
        "@media(prefers-color-scheme:dark){text{fill:#bbb}.grid{stroke:#333}.bar{stroke:#6cb0ff}.last{fill:#6cb0ff}.way{fill:#3d6a9c}}"
    )
    height = 60 + 22 * len(found)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}"><style>{style}</style>{names}'
        f"{panel('true score: M1 (hollow) to the last', 210, found, 'true_score', 2.5, 5)}"
        f"{panel('judge, pairwise accuracy', 550, found, 'judge_pairwise', 0.75, 1)}</svg>\n"
    )


def write(runs: dict[str, list[list[dict]]], out: Path) -> None:
    """The figures that the table shows, seed by seed and in sum; the table; the picture."""
    shown = {
        row: [[{k: m.get(k) for k in KEPT} for m in models] for models in of]
        for row, of in runs.items()
    }
    found = {row: summarise(of) for row, of in shown.items()}
    record = {"rows": {row: ROWS[row][1] for row in runs}, "summary": found, "runs": shown}
    (out / "ablations.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    seeds = len(next(iter(runs.values())))
    head = f"# Ablations\n\nThe toy, {seeds} seeds, means with 95 % intervals over seeds (Student's t): `python experiments/ablations.py --seeds {seeds}`.\n\n"
    (out / "ablations.md").write_text(head + markdown(runs))
    (out / "ablations.svg").write_text(figure(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Every switch of the method over several seeds.", allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. N-1 [%(default)s]")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        help="runs side by side, one thread each [%(default)s]",
    )
    parser.add_argument("--only", help="rows, separated by semicolons; without it, all")
    parser.add_argument(
        "--out", help="where ablations.md, .json and .svg go [docs/, of a whole sweep]"
    )
    args = parser.parse_args()
    if args.only and not args.out:
        sys.exit("--only makes a table of some rows; give it a place of its own with --out DIR.")
    names = args.only.split(";") if args.only else list(ROWS)
    if unknown := [n for n in names if n not in ROWS]:
        sys.exit(f"no row named {unknown[0]}; there are {'; '.join(ROWS)}")
    started, rows = (
        time.time(),
        ["default", *(n for n in names if n != "default")],
    )  # the others start from its files
    runs: dict[str, list[list[dict]]] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for batch in ([rows[0]], rows[1:]):
            work = [(row, seed) for row in batch for seed in range(args.seeds)]
            for (row, _), models in zip(work, pool.map(lambda w: one(*w), work)):
                runs.setdefault(row, []).append(models)
                if len(runs[row]) == args.seeds:
                    print(
                        f"{(time.time() - started) / 60:5.1f} min  {row}",
                        file=sys.stderr,
                        flush=True,
                    )
    write(runs, Path(args.out or ROOT / "docs"))
    print(markdown(runs))


if __name__ == "__main__":
    main()
