"""experiments/ablations.py: every switch of the method, one at a time, over several seeds of the toy -> one table and one figure.

    python experiments/ablations.py --seeds 5                       # all rows; docs/ablations.md, .json and .svg
    python experiments/ablations.py --seeds 3 --only default,ipo    # some rows

Each row is the default run with one setting changed. A run is a process of `python train.py`, its files in
runs/ab-ROW-sSEED; a finished one is not run again, so a sweep that was stopped goes on. Times mean nothing here: runs go
side by side on one thread each.
"""
import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from report import STYLE, chart  # noqa: E402
from seeds import one_run, summarise  # noqa: E402

ROWS = {
    "default": [],
    "plain DPO": ["--nll", "0"],
    "no replay": ["--replay", "0"],
    "plain DPO, no replay": ["--nll", "0", "--replay", "0"],
    "reference M_1": ["--ref", "seed"],
    "IPO": ["--loss", "ipo"],
    "label smoothing 0.1": ["--label-smoothing", "0.1"],
    "CREAM": ["--cream"],
    "length control 0.2": ["--length-control", "0.2"],
    "SFT on the best": ["--positive-only"],
    "meta": ["--meta"],
    "K = 1": ["--k", "1"],
    "N = 8": ["--n", "8"],
    "frozen judge M_0": ["--judge-model", str(ROOT / "seed")],
    "oracle as judge": ["--judge-model", "oracle"],
    "no judge data": ["--no-eft"],
}
SHOWN = (("perfect", "perfect, %", 100, 1), ("judge_pairwise", "judge", 1, 3), ("pairs", "pairs", 1, 0))


def cell(figure: dict | None, scale: float, digits: int) -> str:
    if figure is None:
        return "-"
    half = "" if figure["half"] is None else f" ± {figure['half'] * scale:.{digits}f}"
    return f"{figure['mean'] * scale:.{digits}f}{half}"


def markdown(found: dict[str, list[dict]]) -> str:
    models = [row["model"] for row in next(iter(found.values()))]
    parts = []
    for key, title, scale, digits in SHOWN:
        parts += [f"\n**{title}**\n", "| | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
        parts += [f"| {name} | " + " | ".join(cell(row.get(key), scale, digits) for row in rows) + " |" for name, rows in found.items()]
    return "\n".join(parts) + "\n"


def figure(found: dict[str, list[dict]]) -> str:
    """Perfect answers at the last model of every row, as a page of one chart a row against the default."""
    line = lambda rows, key: [(t, r[key]["mean"], r[key]["mean"] - r[key]["half"], r[key]["mean"] + r[key]["half"])
                              for t, r in enumerate(rows, 1) if key in r and r[key]["half"] is not None]
    base = found["default"]
    drawn = [chart(f"{name}: {title}", {"default": line(base, key), name: line(rows, key)})
             for name, rows in found.items() if name != "default" for key, title in (("perfect", "perfect"), ("judge_pairwise", "judge"))]
    return f'<!doctype html><meta charset="utf-8"><title>Ablations</title><style>{STYLE}</style><h1>Ablations</h1><div class="grid">{"".join(drawn)}</div>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description="Every switch of the method over several seeds.", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. N-1 [%(default)s]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each [%(default)s]")
    parser.add_argument("--only", help="comma-separated rows; without it, all")
    parser.add_argument("--out", default=str(ROOT / "docs"), help="where ablations.md, .json and .html go")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(ROWS)
    if unknown := [n for n in names if n not in ROWS]:
        sys.exit(f"no row named {unknown[0]}; there are {', '.join(ROWS)}")
    work = [(name, seed) for name in names for seed in range(args.seeds)]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda w: one_run(f"ab-{w[0].replace(' ', '-').replace(',', '')}", w[1], ROWS[w[0]], 1), work))
    found = {name: summarise([run for (n, _), run in zip(work, runs) if n == name]) for name in names}
    out = Path(args.out)
    (out / "ablations.json").write_text(json.dumps({"seeds": args.seeds, "rows": {n: ROWS[n] for n in names}, "summary": found}, indent=1) + "\n")
    (out / "ablations.md").write_text(markdown(found))
    if "default" in found:
        (out / "ablations.html").write_text(figure(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
