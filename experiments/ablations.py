"""experiments/ablations.py: every switch of the method, one at a time, over several toy seeds.

    python experiments/ablations.py --seeds 5      # all rows -> docs/ablations.md, .json and .svg
    python experiments/ablations.py --only "IPO;meta"          # prints the tables of some rows

In: nothing.  Out: tables and a figure.
A row is the default run with one or two things changed. What a change cannot touch is not made
again: a row starts from files of the default run of its seed. Every stage depends on settings and
files alone, so the result is the same. A finished run is not run again, so a stopped sweep goes on.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.files import read_jsonl, write_jsonl
from core.statistics import student_interval
from experiments.seeds import COLUMNS, Column, experiment_parser, markdown_table, run_all, summarise

DOCS = Path(__file__).resolve().parent.parent / "docs"
Runs = dict[str, list[list[dict]]]  # row -> seed -> model -> its figures
Summaries = dict[str, list[dict]]  # row -> model -> its figures over the seeds

ABLATIONS = {
    "default": "train.py",
    # the loss
    "plain DPO": "train.py --nll 0",
    "no replay": "train.py --replay 0",
    "plain DPO, no replay": "train.py --nll 0 --replay 0",
    "reference M_1": "experiments/variants.py seed-reference",
    "IPO": "experiments/variants.py ipo",
    "label smoothing 0.1": "experiments/variants.py label-smoothing=0.1",
    # the pairs
    "CREAM": "experiments/variants.py cream",
    "length control 0.2": "experiments/variants.py length-control=0.2",
    "SFT on the best": "experiments/variants.py positive-only",
    "meta": "experiments/variants.py meta",
    "meta, no replay": "experiments/variants.py meta --replay 0",
    # the judge
    "K = 1": "train.py --k 1",
    "frozen judge M_1": "experiments/variants.py fixed-judge=runs/ab-default-s{seed}/M1",
    "oracle as judge": "experiments/variants.py oracle-judge",
    "expected scores": "train.py --judge expected",
    # the seed data
    "no judge data": "experiments/variants.py no-judge-data",
    "500 seed examples": "train.py --seed-limit 500",
    "250 seed examples": "train.py --seed-limit 250",
    "500 seed examples, no replay": "train.py --seed-limit 500 --replay 0",
}
# The files of a run up to the verdicts of M_1, in the order of the stages.
STAGES = {
    "M_1": ("M1", "sft.jsonl", "t0"),
    "prompts": ("exam/M1.jsonl", "exam/rewards-M1.jsonl", "metrics.jsonl", "t1/prompts.jsonl"),
    "answers": ("t1/responses.jsonl",),
    "verdicts": ("t1/verdicts.jsonl",),
}
# The last stage that a row shares with the default run; for rows that are not listed, "verdicts".
LAST_SHARED = {
    "K = 1": "M_1",
    "frozen judge M_1": "answers",
    "oracle as judge": "answers",
    "expected scores": "M_1",
    "no judge data": None,
    "500 seed examples": None,
    "250 seed examples": None,
    "500 seed examples, no replay": None,
}
MAIN_COLUMNS = COLUMNS[:4]
TRUE_SCORE, _, _, JUDGE = MAIN_COLUMNS
QUANTITIES = (*MAIN_COLUMNS, Column("pairs", "pairs from 1,024 prompts", 0))
# What ablations.json says about each model of each run.
RECORDED_KEYS = (
    "model",
    *(quantity.key for quantity in QUANTITIES),
    "judge_parse_rate",
    "judge_ties",
    "finished_rate",
    "mean_length",
    "kl_first",
    "distinct2",
)


def run_name(row: str) -> str:
    """The name of the row's run directories, without the seed."""
    return "ab-" + re.sub(r"\W+", "-", row)


def inherit(run: Path, default: Path, last: str | None) -> None:
    """Copies the files that a row shares with the default run, whole or not at all.

    `last` is the last shared stage. A run that has begun is left alone. A model is linked, not
    copied: it is large, and no run changes a file in its place.
    """
    if run.exists() or last is None:
        return
    copy = run.with_name(run.name + ".tmp")
    shutil.rmtree(copy, ignore_errors=True)
    for stage, names in STAGES.items():
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            if (default / name).is_dir():
                shutil.copytree(default / name, copy / name, copy_function=os.link)
            elif name == "metrics.jsonl":  # of the models in it, only M_1 is shared
                write_jsonl(copy / name, read_jsonl(default / name)[:1])
            else:
                shutil.copy(default / name, copy / name)
        if stage == last:
            break
    copy.rename(run)


def sweep(rows: list[str], *, seeds: int, jobs: int) -> Runs:
    """Each row on every seed. The default run comes first: the others start from its files."""
    commands = {run_name(row): ABLATIONS[row].split() for row in rows}
    default = {"ab-default": commands.pop("ab-default")}
    runs = run_all(default, seeds=seeds, jobs=jobs)
    for row in rows[1:]:
        for seed in range(seeds):
            run = Path(f"runs/{run_name(row)}-s{seed}")
            inherit(run, Path(f"runs/ab-default-s{seed}"), LAST_SHARED.get(row, "verdicts"))
    runs |= run_all(commands, seeds=seeds, jobs=jobs)
    return {row: runs[run_name(row)] for row in rows}


def change(pairs: list[tuple[dict, dict]], key: str) -> dict | None:
    """How much larger a figure is in the second model, over the pairs of models that have it."""
    differences = []
    for first, second in pairs:
        if None not in (first.get(key), second.get(key)):
            differences.append(second[key] - first[key])
    return student_interval(differences) if differences else None


def difference_table(runs: Runs) -> str:
    """The last model against the default run; the last column is what the judge gained since M1."""
    seeds = len(runs["default"])
    lines = []
    for row, of_seeds in runs.items():
        pairs = []
        for default, models in zip(runs["default"], of_seeds, strict=True):
            # a seed on which one of the two runs ended early is left out
            if row != "default" and len(models) == len(default):
                pairs.append((default[-1], models[-1]))
        line = [row]
        for column in MAIN_COLUMNS:
            difference = change(pairs, column.key)
            line.append(column.cell(difference, seeds, sign="+"))
        course = [(models[0], models[-1]) for models in of_seeds if len(models) > 1]
        gained = change(course, JUDGE.key)
        line.append(JUDGE.cell(gained, seeds, sign="+"))
        lines.append(line)
    head = ["", *(column.title for column in MAIN_COLUMNS), "judge, M1 to the last"]
    return markdown_table(head, lines)


def ablation_tables(runs: Runs) -> str:
    """Markdown: the differences first, then every figure of every model."""
    seeds = len(runs["default"])
    summaries = {row: summarise(of_seeds) for row, of_seeds in runs.items()}
    models = [model["model"] for model in max(summaries.values(), key=len)]
    title = f"{models[-1]} against the default run of the same seed"
    parts = [f"**{title}, and what the judge gained since M1**", difference_table(runs)]
    for quantity in QUANTITIES:
        lines = []
        for row, summary in summaries.items():
            cells = [quantity.cell(model.get(quantity.key), seeds) for model in summary]
            missing = ["-"] * (len(models) - len(summary))
            lines.append([row, *cells, *missing])
        parts += [f"**{quantity.title}**", markdown_table(["", *models], lines)]
    return "\n\n".join(parts) + "\n"


TEXT = "text{font:12px system-ui,sans-serif;fill:#767676}"
MARKS = (
    "path{stroke-width:2}.grid{stroke:#8884;stroke-width:1}"
    ".M1{fill:#999;stroke:#999}.last{fill:#2f7fd6;stroke:#2f7fd6}"
)


def svg_page(parts: Sequence[str], width: int, height: int, rules: str = "") -> str:
    """A file of its own, with small grey text; `rules` are CSS beside that."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    return f"{head}<style>{TEXT}{rules}</style>{''.join(parts)}</svg>\n"


def panel_svg(
    summaries: Summaries, column: Column, *, left: int, low: float, high: float
) -> list[str]:
    """For each row, M1 and the last model as points with their intervals, over a grid.

    The scale goes from `low` to `high`. What lies beyond an end stands at that end.
    """
    bottom = 34 + 24 * len(summaries)

    def x(value: float) -> str:
        visible = min(max(value, low), high)
        return f"{left + 300 * (visible - low) / (high - low):.1f}"

    # 1) the grid
    title = f"{column.title}: M1 (grey) and the last model"
    parts = [f'<text x="{left + 150}" y="18" text-anchor="middle">{title}</text>']
    for step in range(6):
        tick = low + (high - low) * step / 5
        label = f"{tick:g}" if step else f"&#8804; {tick:g}"
        parts.append(f'<path d="M{x(tick)} 26V{bottom}" class="grid"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    # 2) the points; M1 stands a little higher, so that they never hide each other
    for number, summary in enumerate(summaries.values()):
        for mark, model, height in (("M1", summary[0], 44), ("last", summary[-1], 52)):
            if interval := model.get(column.key):
                y = height + 24 * number
                mean = interval["mean"]
                half = interval["half"] or 0
                parts.append(f'<path d="M{x(mean - half)} {y}H{x(mean + half)}" class="{mark}"/>')
                parts.append(f'<circle cx="{x(mean)}" cy="{y}" r="4" class="{mark}"/>')
    return parts


def ablation_figure(summaries: Summaries) -> str:
    """An SVG: one line a row, in two panels side by side."""
    parts = []
    for number, row in enumerate(summaries):
        y = 52 + 24 * number
        parts.append(f'<text x="196" y="{y}" text-anchor="end">{escape(row)}</text>')
    parts += panel_svg(summaries, TRUE_SCORE, left=210, low=2.5, high=5)
    parts += panel_svg(summaries, JUDGE, left=550, low=0.75, high=1)
    return svg_page(parts, 880, 60 + 24 * len(summaries), MARKS)


def write_ablations(runs: Runs, folder: Path) -> None:
    """ablations.json (the figures seed by seed and in sum), ablations.md and ablations.svg."""

    def recorded(model: dict) -> dict:
        return {key: model.get(key) for key in RECORDED_KEYS}

    record = {"rows": {}, "summary": {}, "runs": {}}
    for row, of_seeds in runs.items():
        record["rows"][row] = ABLATIONS[row].split()[1:]
        record["runs"][row] = [list(map(recorded, models)) for models in of_seeds]
        record["summary"][row] = summarise(record["runs"][row])
    (folder / "ablations.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    (folder / "ablations.svg").write_text(ablation_figure(record["summary"]))
    seeds = len(runs["default"])
    introduction = (
        f"# Ablations\n\nThe toy, {seeds} seeds, means with 95 % intervals over seeds "
        f"(Student's t): `python experiments/ablations.py --seeds {seeds}`.\n\n"
    )
    (folder / "ablations.md").write_text(introduction + ablation_tables(runs))


def main() -> None:
    parser = experiment_parser("Every switch of the method over several seeds.")
    parser.add_argument("--only", help="only print the tables of these rows, separated by ';'")
    args = parser.parse_args()
    rows = ["default", *args.only.split(";")] if args.only else list(ABLATIONS)
    for row in rows:
        if row not in ABLATIONS:
            sys.exit(f"no row named {row}; there are {'; '.join(ABLATIONS)}")
    runs = sweep(rows, seeds=args.seeds, jobs=args.jobs)
    if not args.only:
        write_ablations(runs, DOCS)
    print(ablation_tables(runs))


if __name__ == "__main__":
    main()
