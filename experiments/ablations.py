"""experiments/ablations.py: every switch of the method, one at a time, over several toy seeds.

    python experiments/ablations.py --seeds 5      # all rows -> docs/ablations.md, .json and .svg
    python experiments/ablations.py --seeds 3 --only "IPO;meta" --out DIR      # some rows

In: nothing.  Out: tables and a figure.
A row is the default run with one or two things changed: settings of train.py, or a variant of
experiments/variants.py. Each run is a process, with its files in runs/ab-ROW-sSEED. A finished run
is not run again, so a sweep that was stopped goes on.
Every stage is a function of the settings and the files. So a row starts from the files of the
default run of its seed, up to the first stage that the row changes: the result is the same.
Left out on purpose: times. Runs go side by side on one thread each, so a single time means nothing.
"""

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core.statistics import student_interval  # noqa: E402
from experiments.seeds import interval_text, markdown_table, one_run, summarise  # noqa: E402

Runs = dict[str, list[list[dict]]]  # name of the row -> seed -> model -> its figures
Summaries = dict[str, list[dict]]  # name of the row -> model -> its figures over the seeds


@dataclass(frozen=True)
class Ablation:
    """One row of the table: what differs from the default run."""

    variant: str | None  # of experiments/variants.py; None is train.py itself
    settings: list[str]
    shared: int  # how many of SHARED_STEPS are the same as in the default run

    def program(self, seed: int) -> list[str]:
        if self.variant is None:
            return ["train.py"]
        return ["experiments/variants.py", self.variant.format(seed=seed)]

    def arguments(self) -> list[str]:
        """What follows the program on the command line, for the record."""
        return self.settings if self.variant is None else [self.variant, *self.settings]


# What a row can take from the default run of its seed: the files of these steps, in this order.
SHARED_STEPS = (
    ("M1", "sft.jsonl", "t0"),
    ("exam/M1.jsonl", "exam/rewards-M1.jsonl", "metrics.jsonl", "t1/prompts.jsonl"),
    ("t1/responses.jsonl",),
    ("t1/verdicts.jsonl",),
)
LOSS = {
    "plain DPO": Ablation(None, ["--nll", "0"], 4),
    "no replay": Ablation(None, ["--replay", "0"], 4),
    "plain DPO, no replay": Ablation(None, ["--nll", "0", "--replay", "0"], 4),
    "reference M_1": Ablation("seed-reference", [], 4),
    "IPO": Ablation("ipo", [], 4),
    "label smoothing 0.1": Ablation("label-smoothing=0.1", [], 4),
}
PAIRS = {
    "CREAM": Ablation("cream", [], 4),
    "length control 0.2": Ablation("length-control=0.2", [], 4),
    "SFT on the best": Ablation("positive-only", [], 4),
    "meta": Ablation("meta", [], 4),
    "meta, no replay": Ablation("meta", ["--replay", "0"], 4),
}
JUDGE = {
    "K = 1": Ablation(None, ["--k", "1"], 1),
    "frozen judge M_1": Ablation("fixed-judge=runs/ab-default-s{seed}/M1", [], 3),
    "oracle as judge": Ablation("oracle-judge", [], 3),
    "expected scores": Ablation(None, ["--judge", "expected"], 1),
}
SEED_DATA = {
    "no judge data": Ablation("no-judge-data", [], 0),
    "500 seed examples": Ablation(None, ["--seed-limit", "500"], 0),
    "250 seed examples": Ablation(None, ["--seed-limit", "250"], 0),
    "500 seed examples, no replay": Ablation(None, ["--seed-limit", "500", "--replay", "0"], 0),
}
ABLATIONS = {"default": Ablation(None, [], 0)} | LOSS | PAIRS | JUDGE | SEED_DATA


@dataclass(frozen=True)
class Quantity:
    """A figure that the tables show: its key in metrics.jsonl, and how to print it."""

    key: str
    title: str
    scale: float
    digits: int

    def text(self, interval: dict | None, *, seeds: int, sign: str = "") -> str:
        return interval_text(interval, digits=self.digits, scale=self.scale, seeds=seeds, sign=sign)


QUANTITIES = (
    Quantity("true_score", "true score", 1, 2),
    Quantity("perfect", "perfect, %", 100, 1),
    Quantity("self_score", "self-score", 1, 2),
    Quantity("judge_pairwise", "judge, pairwise", 1, 3),
    Quantity("pairs", "pairs from 1,024 prompts", 1, 0),
)
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


# ---- runs ----


def run_name(row: str) -> str:
    """The name of the row's run directories, without the seed."""
    name = row.replace(" ", "-")
    for characters in (",", "=-", "."):
        name = name.replace(characters, "")
    return f"ab-{name}"


def inherit(run: Path, default_run: Path, steps: int) -> None:
    """Copies the files of the first shared steps, all or none. A begun run stays as it is."""
    if run.exists():
        return
    unfinished = run.with_name(run.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    for names in SHARED_STEPS[:steps]:
        for name in names:
            source = default_run / name
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == "metrics.jsonl":
                # Of the models of the default run, only the first is shared.
                target.write_text(source.read_text().splitlines(keepends=True)[0])
            elif source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
    unfinished.rename(run)


def run_ablation(row: str, seed: int) -> list[dict]:
    """The figures of each model of one row on one seed."""
    ablation = ABLATIONS[row]
    name = run_name(row)
    if ablation.shared:
        default_run = Path(f"runs/{run_name('default')}-s{seed}")
        inherit(Path(f"runs/{name}-s{seed}"), default_run, ablation.shared)
    return one_run(
        ablation.program(seed),
        ablation.settings,
        name=name,
        seed=seed,
        threads=1,
        may_end_early=True,
    )


def sweep(rows: list[str], *, seeds: int, processes: int) -> Runs:
    """Each row on every seed. The default run comes first: the others start from its files."""
    started = time.time()
    runs: Runs = {}
    with ThreadPoolExecutor(processes) as pool:
        for batch in (["default"], [row for row in rows if row != "default"]):
            jobs = [(row, seed) for row in batch for seed in range(seeds)]
            results = pool.map(lambda job: run_ablation(*job), jobs)
            for (row, _), models in zip(jobs, results, strict=True):
                runs.setdefault(row, []).append(models)
                if len(runs[row]) == seeds:
                    minutes = (time.time() - started) / 60
                    print(f"{minutes:5.1f} min  {row}", file=sys.stderr, flush=True)
    return runs


# ---- the tables ----


def against_default(runs: Runs, row: str, key: str) -> dict | None:
    """The last model's figure minus that of the default run of the same seed.

    Seeds on which one of the two runs ended early are left out. None where no seed is left, and
    for the default run itself.
    """
    if row == "default":
        return None
    pairs = []
    for models, default_models in zip(runs[row], runs["default"], strict=True):
        if len(models) == len(default_models):
            pairs.append((models[-1].get(key), default_models[-1].get(key)))
    differences = [figure - default for figure, default in pairs if None not in (figure, default)]
    return student_interval(differences) if differences else None


def rise(runs: list[list[dict]], key: str) -> dict | None:
    """The last model's figure minus that of M_1; None where one of them lacks it.

    Seeds on which the run ended with M_1 are left out.
    """
    ends = [(models[0].get(key), models[-1].get(key)) for models in runs if len(models) > 1]
    if not ends or any(None in pair for pair in ends):
        return None
    return student_interval([last - first for first, last in ends])


def difference_table(runs: Runs) -> str:
    """The last model against the default run; the last column is what the judge gained since M1."""
    quantities = [quantity for quantity in QUANTITIES if quantity.key != "pairs"]
    lines = []
    for row, of_seeds in runs.items():
        seeds = len(of_seeds)
        line = [row]
        for quantity in quantities:
            difference = against_default(runs, row, quantity.key)
            line.append(quantity.text(difference, seeds=seeds, sign="+"))
        gained = rise(of_seeds, "judge_pairwise")
        line.append(interval_text(gained, digits=3, seeds=seeds, sign="+"))
        lines.append(line)
    head = ["", *(quantity.title for quantity in quantities), "judge, M1 to the last"]
    return markdown_table(head, lines)


def quantity_table(
    quantity: Quantity, summaries: Summaries, models: list[str], *, seeds: int
) -> str:
    """One figure of every model of every row."""
    lines = []
    for row, summary in summaries.items():
        line = [row]
        for model in summary:
            # Every run has an M1. The number of seeds is for runs that ended before a later model.
            expected_seeds = 0 if model["model"] == "M1" else seeds
            line.append(quantity.text(model.get(quantity.key), seeds=expected_seeds))
        missing = len(models) - len(summary)
        lines.append(line + ["-"] * missing)
    return markdown_table(["", *models], lines)


def ablation_tables(runs: Runs) -> str:
    """Markdown: the differences first, then every figure of every model."""
    summaries = {row: summarise(of_seeds) for row, of_seeds in runs.items()}
    longest = max(summaries.values(), key=len)
    models = [model["model"] for model in longest]
    parts = [
        f"**{models[-1]} against the default run of the same seed, "
        "and what the judge gained since M1**",
        difference_table(runs),
    ]
    for quantity in QUANTITIES:
        parts.append(f"**{quantity.title}**")
        parts.append(quantity_table(quantity, summaries, models, seeds=len(runs["default"])))
    return "\n\n".join(parts) + "\n"


# ---- the figure: one line a row, in two panels side by side; lengths are in units of the SVG ----

ROW_HEIGHT = 22
PANEL_WIDTH = 300
MARK_RADIUS = {"first": 4, "way": 2.5, "last": 5}  # M1, the models on the way, and the last
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.head{font-weight:600}"
    ".grid{stroke:#ddd}.bar{stroke:#0b62c4;stroke-width:2}"
    ".first{fill:none;stroke:#888;stroke-width:1.5}.way{fill:#7fb2ea}.last{fill:#0b62c4}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.grid{stroke:#333}.bar{stroke:#6cb0ff}"
    ".last{fill:#6cb0ff}.way{fill:#3d6a9c}}"
)


@dataclass(frozen=True)
class Panel:
    """One key of the summaries, on a scale from `low` to `high`."""

    title: str
    key: str
    left: int
    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a value stands. What lies beyond an end of the scale stands at that end."""
        visible = min(max(value, self.low), self.high)
        return self.left + PANEL_WIDTH * (visible - self.low) / (self.high - self.low)


PANELS = (
    Panel("true score: M1 (hollow) to the last", "true_score", 210, 2.5, 5),
    Panel("judge, pairwise accuracy", "judge_pairwise", 550, 0.75, 1),
)


def scale_svg(panel: Panel, bottom: int) -> str:
    """The title, the grid and its numbers. `bottom` is the height of all lines."""
    middle = panel.left + PANEL_WIDTH // 2
    parts = [
        f'<text x="{middle}" y="18" text-anchor="middle" class="head">{escape(panel.title)}</text>'
    ]
    for step in range(6):
        tick = panel.low + (panel.high - panel.low) * step / 5
        x = f"{panel.x(tick):.1f}"
        sign = "&#8804; " if step == 0 else ""
        parts.append(f'<line x1="{x}" x2="{x}" y1="26" y2="{34 + bottom}" class="grid"/>')
        parts.append(
            f'<text x="{x}" y="{48 + bottom}" text-anchor="middle">{sign}{tick:.2f}</text>'
        )
    return "".join(parts)


def row_svg(panel: Panel, y: int, summary: list[dict]) -> str:
    """A point for each model, and the interval of the last one."""
    parts = []
    last = summary[-1].get(panel.key)
    if last and last["half"] is not None and len(summary) > 1:
        start = panel.x(last["mean"] - last["half"])
        end = panel.x(last["mean"] + last["half"])
        parts.append(f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" class="bar"/>')
    for number, model in enumerate(summary, 1):
        if panel.key not in model:
            continue
        mark = "way"
        if number == len(summary):
            mark = "last"
        if number == 1:
            mark = "first"
        mean = model[panel.key]["mean"]
        parts.append(
            f'<circle cx="{panel.x(mean):.1f}" cy="{y}" r="{MARK_RADIUS[mark]}" class="{mark}">'
            f"<title>{model['model']} {mean:.3f}</title></circle>"
        )
    return "".join(parts)


def ablation_figure(summaries: Summaries) -> str:
    """An SVG: the names of the rows, and in each panel the course from M1 to the last model."""
    bottom = ROW_HEIGHT * len(summaries)
    parts = []
    for number, row in enumerate(summaries):
        y = 48 + ROW_HEIGHT * number
        parts.append(f'<text x="196" y="{y}" text-anchor="end">{escape(row)}</text>')
    for panel in PANELS:
        parts.append(scale_svg(panel, bottom))
        for number, summary in enumerate(summaries.values()):
            parts.append(row_svg(panel, 44 + ROW_HEIGHT * number, summary))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {60 + bottom}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


# ---- the files ----


def recorded_figures(models: list[dict]) -> list[dict]:
    """The figures of one run under RECORDED_KEYS; None where a model lacks one."""
    records = []
    for model in models:
        records.append({key: model.get(key) for key in RECORDED_KEYS})
    return records


def write_ablations(runs: Runs, folder: Path) -> None:
    """ablations.json (the figures seed by seed and in sum), ablations.md and ablations.svg."""
    recorded: Runs = {}
    for row, of_seeds in runs.items():
        recorded[row] = [recorded_figures(models) for models in of_seeds]
    summaries = {row: summarise(of_seeds) for row, of_seeds in recorded.items()}
    arguments = {row: ABLATIONS[row].arguments() for row in runs}
    record = {"rows": arguments, "summary": summaries, "runs": recorded}
    (folder / "ablations.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")

    seeds = len(runs["default"])
    (folder / "ablations.md").write_text(
        f"# Ablations\n\nThe toy, {seeds} seeds, means with 95 % intervals over seeds "
        f"(Student's t): `python experiments/ablations.py --seeds {seeds}`.\n\n"
        + ablation_tables(runs)
    )
    (folder / "ablations.svg").write_text(ablation_figure(summaries))


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
    rows = args.only.split(";") if args.only else list(ABLATIONS)
    for row in rows:
        if row not in ABLATIONS:
            sys.exit(f"no row named {row}; there are {'; '.join(ABLATIONS)}")
    runs = sweep(rows, seeds=args.seeds, processes=args.jobs)
    write_ablations(runs, Path(args.out or ROOT / "docs"))
    print(ablation_tables(runs))


if __name__ == "__main__":
    main()
