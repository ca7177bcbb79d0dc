"""measure/charts.py: the charts of the report, as SVG.

In: the files of a run, or of several.  Out: pieces of a page, as text. Names are escaped here.
Left out on purpose: a plotting library.
"""

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from itertools import cycle
from typing import NamedTuple

from core.statistics import mean, normal_interval
from measure.run_files import RunFiles

CURVES = {  # title of a chart -> the keys of its lines in metrics.jsonl
    "Score of its own answers: truth and self-given": "true_score self_score",
    "Perfect answers (truth)": "perfect",
    "Judge: pairwise accuracy": "judge_pairwise",
    "Judge: same order as the model before (1 alike, 0.5 unrelated)": "agreement",
    "Judge: variance of the votes on one answer": "verdict_variance",
    "Readable verdicts": "judge_parse_rate",
    "Answer length, tokens": "mean_length",
    "Finished answers": "finished_rate",
    "Distinct pairs of words": "distinct2",
    "KL, nats an answer": "kl_prev kl_first",
    "Log-prob of the pairs' answers, change by DPO": "chosen_change rejected_change",
    "Pairs": "pairs",
    "Pairs whose chosen answer is truly better": "pairs_right",
}
LINES = {  # the names of lines that share a chart
    "true_score": "true",
    "self_score": "self",
    "kl_prev": "to the model before",
    "kl_first": "to M1",
    "chosen_change": "chosen",
    "rejected_change": "rejected",
}
DPO_CURVES = {  # title of a chart -> key in dpo.jsonl
    "DPO loss": "dpo_loss",
    "DPO margin": "margin",
    "Log-prob of chosen, change": "chosen_change",
    "Log-prob of rejected, change": "rejected_change",
    "Gradient norm": "grad_norm",
}
COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)", "var(--f)")
MOST_DOTS = 30  # a line of this many points or more has no dots


class Point(NamedTuple):
    """One point of a line; `low` and `high` are the ends of its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


# ---- what is drawn ----
def curve_section(runs: Sequence[RunFiles]) -> str:
    """The figures of metrics.jsonl over the models, of several runs."""
    longest = max((run.models for run in runs), key=len)
    names = [figures["model"] for figures in longest]
    charts = ""
    for title, keys in CURVES.items():
        series = {}
        for run in runs:
            prefix = f"{run.name} " if len(runs) > 1 else ""
            for key in keys.split():
                series[prefix + LINES.get(key, "")] = curve(run, key)
        charts += line_chart(title, series, x_names=names)
    return (
        "<h2>Curves</h2><p>One point a model; bars are 95 % intervals over the held-out answers "
        f'or groups, where a figure is a mean of such.</p><div class="grid">{charts}</div>'
    )


def curve(run: RunFiles, key: str) -> list[Point]:
    """One figure over the models, with its interval where there is one."""
    points = []
    for figures in run.models:
        values = [answer_figures(answer).get(key) for answer in run.exam[figures["t"]]]
        low, high = normal_interval([value for value in values if value is not None])
        if key == "judge_pairwise" and figures.get("judge_interval"):
            low, high = figures["judge_interval"]  # bootstrap over groups
        if figures.get(key) is not None:
            points.append(Point(figures["t"], figures[key], low, high))
    return points


def answer_figures(answer: dict) -> dict[str, float | None]:
    """What one answer of the exam adds to the figures that are means over answers."""
    truth = answer["true_score"]
    return {
        "perfect": None if truth is None else truth == 5,
        "true_score": truth,
        "self_score": answer["self_score"],
        "finished_rate": answer["finished"],
        "mean_length": len(answer["tokens"]),
    }


def calibration_chart(run: RunFiles) -> str:
    """For each model the mean true score of the answers to which it gave 0, 1 ... 5."""
    series = {}
    for t, answers in run.exam.items():
        true_scores = defaultdict(list)
        for answer in answers:
            if None not in (answer["self_score"], answer["true_score"]):
                true_scores[round(answer["self_score"])].append(answer["true_score"])
        series[f"M{t}"] = [Point(score, mean(true_scores[score])) for score in sorted(true_scores)]
    return line_chart("True score (up) against given score (right)", series)


def training_section(run: RunFiles) -> str:
    """Losses and what else was logged at each step of SFT and of DPO."""
    sft = [Point(step["step"], step["loss"]) for step in run.sft]
    charts = line_chart("SFT loss", {"loss": sft})
    for title, key in DPO_CURVES.items():
        series = {}
        for t, files in run.iterations.items():
            steps = [step for step in files.dpo if key in step]
            series[f"M{t + 1}"] = [Point(step["step"], step[key]) for step in steps]
        charts += line_chart(title, series)
    return f'<h2>Training</h2><div class="grid">{charts}</div>'


# ---- how it is drawn ----
class Frame:
    """The range of points and intervals, and where it lies in a drawing of 300 by 152 pixels."""

    def __init__(self, points: Sequence[Point]):
        low = min(point.y if point.low is None else point.low for point in points)
        high = max(point.y if point.high is None else point.high for point in points)
        margin = 0.5 if low == high else 0.05 * (high - low)
        self.low = low - margin
        self.high = high + margin
        self.left = min(point.x for point in points)
        self.right = max(point.x for point in points)

    def x(self, value: float) -> str:
        width = self.right - self.left
        share = (value - self.left) / width if width else 0.5
        return f"{44 + 246 * share:.1f}"  # 44 pixels at the left are for the numbers

    def y(self, value: float, shift: float = 0) -> str:
        above = 116 * (value - self.low) / (self.high - self.low)
        return f"{128 - above + shift:.1f}"  # 24 pixels at the bottom are for the names


def line_chart(title: str, series: dict[str, list[Point]], *, x_names: Sequence[str] = ()) -> str:
    """A small chart with one line for each name in `series`; "" where no name has a point."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    frame = Frame([point for points in series.values() for point in points])
    parts = axes(frame, x_names)
    keys = []
    # More lines than colours: the colours start again.
    for (name, points), colour in zip(series.items(), cycle(COLOURS), strict=False):
        parts += one_series(frame, points, colour)
        keys.append(f'<span class="key" style="color:{colour}">&#9679; {escape(name)}</span>')
    drawing = f'<svg viewBox="0 0 300 152" role="img">{"".join(parts)}</svg>'
    legend = " ".join(keys) if len(keys) > 1 else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend}</figure>"


def axes(frame: Frame, x_names: Sequence[str]) -> list[str]:
    """Four lines with their values; below, the names of x = 1, 2 ... or the ends of the range."""
    form = ".3g" if frame.high >= 0.1 else ".2g"
    if frame.high >= 100:
        form = ",.0f"  # the larger the values, the fewer decimals
    parts = []
    for k in range(4):
        value = frame.low + (frame.high - frame.low) * k / 3
        y = frame.y(value)
        parts.append(
            f'<line x1="44" x2="296" y1="{y}" y2="{y}" stroke="var(--line)"/>'
            f'<text x="40" y="{frame.y(value, shift=4)}" text-anchor="end">{value:{form}}</text>'
        )
    ticks = list(enumerate(x_names, 1)) or [(x, f"{x:.0f}") for x in (frame.left, frame.right)]
    for x, name in ticks:
        if frame.left <= x <= frame.right:
            parts.append(f'<text x="{frame.x(x)}" y="146" text-anchor="middle">{name}</text>')
    return parts


def one_series(frame: Frame, points: Sequence[Point], colour: str) -> list[str]:
    """The intervals, then the line through the points, then a dot for each."""
    intervals = []
    corners = []
    dots = []
    for point in points:
        x = frame.x(point.x)
        y = frame.y(point.y)
        corners.append(f"{x},{y}")
        title = f"<title>{point.y:.4g}</title>"
        dots.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}">{title}</circle>')
        if None not in (point.low, point.high):
            ends = f'y1="{frame.y(point.low)}" y2="{frame.y(point.high)}"'
            intervals.append(f'<line x1="{x}" x2="{x}" {ends} stroke="{colour}" opacity=".5"/>')
    path = " ".join(corners)
    line = f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
    return [*intervals, line, *(dots if len(points) < MOST_DOTS else [])]
