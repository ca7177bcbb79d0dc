"""measure/charts.py: the charts of the report, as SVG.

In: the files of a run, or of several.  Out: pieces of a page, as text. Names are escaped here.
A control run is a grey line without intervals. The ends of a vertical axis are round numbers.
Left out on purpose: a plotting library.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from html import escape
from itertools import cycle, product
from math import ceil, floor, isfinite, log10
from typing import NamedTuple

from core.statistics import mean, normal_interval
from measure.run_files import RunFiles

CURVES = {  # title of a chart -> the keys of its lines in metrics.jsonl
    "Score of its own answers: truth and self-given": "true_score self_score",
    "Perfect answers (truth)": "perfect",
    "Answer length, tokens": "mean_length",
    "Judge: pairwise accuracy": "judge_pairwise",
    "Judge: same order as the model before (1 alike, 0.5 unrelated)": "agreement",
    "Judge: variance of the votes on one answer": "verdict_variance",
    "Readable verdicts": "judge_parse_rate",
    "Finished answers": "finished_rate",
    "Distinct pairs of words": "distinct2",
    "KL, nats an answer": "kl_prev kl_first",
    "Log-prob of the pairs' answers, change by DPO": "chosen_change rejected_change",
    "Pairs": "pairs",
    "Chosen answers of the pairs, by the truth": "pairs_right pairs_wrong pairs_equal",
    "True score in the pairs, chosen minus rejected": "pairs_truth_gap",
    "Tokens in the pairs, chosen minus rejected": "pairs_length_gap",
}
LINES = {  # the names of lines that share a chart
    "true_score": "true",
    "self_score": "self",
    "kl_prev": "to the model before",
    "kl_first": "to M1",
    "chosen_change": "chosen",
    "rejected_change": "rejected",
    "pairs_right": "better",
    "pairs_wrong": "worse",
    "pairs_equal": "equally good",
}
DPO_CURVES = {  # title of a chart -> key in dpo.jsonl
    "DPO loss": "dpo_loss",
    "DPO margin": "margin",
    "Log-prob of chosen, change": "chosen_change",
    "Log-prob of rejected, change": "rejected_change",
    "Gradient norm": "grad_norm",
}
COLOURS = [f"color:var(--{letter})" for letter in "abcdef"]  # CSS of a line and of its name
DASHES = ("7 3", "2 3", "12 3 2 3", "4 6", "12 6", "1 6")  # lengths of strokes and gaps
GREYS = [f"color:var(--soft);stroke-width:1.2;stroke-dasharray:{dash}" for dash in DASHES]
MOST_DOTS = 30  # a line of this many points or more has no dots
MOST_NAMES = 7  # of models, below a chart
MOST_TICKS = 5


class Point(NamedTuple):
    """One point of a line; `low` and `high` are the ends of its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


# ---- what is drawn ----
def curve_section(runs: Sequence[RunFiles]) -> str:
    """The figures of metrics.jsonl over the models, of several runs."""
    charts = "".join(model_chart(title, keys.split(), runs) for title, keys in CURVES.items())
    controls = " Grey lines are control runs." if any(run.control for run in runs) else ""
    return (
        "<h2>Curves</h2><p>One point a model; bars are 95 % intervals over the held-out prompts "
        f"or groups, where a figure is a mean of such.{controls}</p>"
        f'<div class="grid">{charts}</div>'
    )


def kind_section(runs: Sequence[RunFiles]) -> str:
    """Small charts of each kind of requirement in the first run; those never seen come last."""
    kinds = {}  # a dict keeps the order
    unseen = set()
    for figures in runs[0].models:
        kinds |= figures.get("kinds") or {}
        unseen.update(figures.get("kinds_unseen") or ())
    if not kinds:
        return ""
    charts = model_chart("Answer length, tokens", ["mean_length"], runs)
    for kind in sorted(kinds, key=unseen.__contains__):
        mark = " (never trained on)" if kind in unseen else ""
        charts += model_chart(kind + mark, [kind], runs, group="kinds")
    return (
        "<h2>Truth by kind of requirement</h2><p>The share of the requirements of each kind that "
        f'the held-out answers keep.</p><div class="grid small">{charts}</div>'
    )


def model_chart(
    title: str, keys: Sequence[str], runs: Sequence[RunFiles], *, group: str | None = None
) -> str:
    """A chart over the models, with a line for each key and run; a group of figures has shares."""
    series = {}
    controls = set()
    for key, run in product(keys, runs):
        name = LINES.get(key, "") if group is None else ""
        points = curve(run, key, group)
        if len(runs) > 1:
            name = f"{run.name} {name}".strip()
        if run.control:
            controls.add(name)
            points = [Point(point.x, point.y) for point in points]
        series[name] = points
    longest = max((run.models for run in runs), key=len)
    x_names = [figures["model"] for figures in longest]
    span = () if group is None else (0, 1)
    return line_chart(title, series, controls=controls, x_names=x_names, span=span)


def curve(run: RunFiles, key: str, group: str | None = None) -> list[Point]:
    """One figure over the models, or one of a group of figures, with its interval if it has one."""
    points = []
    for figures in run.models:
        value = (figures if group is None else figures.get(group) or {}).get(key)
        scores = defaultdict(list)  # answers to one prompt hang together: their mean counts once
        for answer in run.exam[figures["t"]]:
            scores[answer["id"]].append(answer_figures(answer).get(key))
        means = [mean(of_prompt) for of_prompt in scores.values()]
        low, high = normal_interval([score for score in means if score is not None])
        if key == "judge_pairwise" and figures.get("judge_interval"):
            low, high = figures["judge_interval"]  # bootstrap over groups
        if value is not None and isfinite(value):
            points.append(Point(figures["t"], value, low, high))
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
    charts = line_chart("SFT loss", {"": sft})
    for title, key in DPO_CURVES.items():
        series = {}
        for t, files in run.iterations.items():
            steps = [step for step in files.dpo if key in step]
            series[f"M{t + 1}"] = [Point(step["step"], step[key]) for step in steps]
        charts += line_chart(title, series)
    return f'<h2>Training</h2><div class="grid">{charts}</div>'


# ---- how it is drawn ----
class Frame:
    """The range of points and intervals, and where it lies in a drawing of 300 by 152 pixels.

    From bottom to top it goes from the first tick to the last.
    """

    def __init__(self, points: Sequence[Point], span: Sequence[float]):
        heights = [*span]
        for point in points:
            heights += [y for y in (point.y, point.low, point.high) if y is not None]
        self.ticks, self.decimals = round_ticks(min(heights), max(heights))
        self.low = self.ticks[0]
        self.high = self.ticks[-1]
        self.left = min(point.x for point in points)
        self.right = max(point.x for point in points)

    def x(self, value: float) -> str:
        width = self.right - self.left
        share = (value - self.left) / width if width else 0.5
        return f"{44 + 246 * share:.1f}"  # 44 pixels at the left are for the numbers

    def y(self, value: float, shift: float = 0) -> str:
        above = 116 * (value - self.low) / (self.high - self.low)
        return f"{128 - above + shift:.1f}"  # 24 pixels at the bottom are for the names


def round_ticks(low: float, high: float) -> tuple[list[float], int]:
    """3 to 5 multiples of a round step that reach from `low` to `high`, and their decimals.

    The step is 1, 2, 2.5 or 5 times a power of ten, and as small as five ticks allow.
    """
    if high - low <= 1e-9 * abs(high):  # a flat line
        margin = 0.1 * abs(high) or 0.5
        low, high = low - margin, high + margin
    exponent = floor(log10(high - low)) - 1
    for power, factor in product((exponent, exponent + 1), (1, 2, 2.5, 5)):
        step = factor * 10.0**power
        first = floor(low / step + 1e-9)  # 0.3 / 0.1 is 2.9999999999999996, and means 3
        last = ceil(high / step - 1e-9)
        if last - first < MOST_TICKS:
            break
    decimals = max(0, (factor == 2.5) - power)
    return [round(number * step, decimals) for number in range(first, last + 1)], decimals


def line_chart(
    title: str,
    series: dict[str, list[Point]],
    *,
    controls: Collection[str] = (),
    x_names: Sequence[str] = (),
    span: Sequence[float] = (),
) -> str:
    """A small chart with one line for each name in `series`; those of `controls` are grey.

    It is "" where no other name has a point. The vertical axis holds `span` in any case.
    """
    # More lines than styles: the styles start again.
    greys = cycle(GREYS)
    colours = cycle(COLOURS)
    styles = {name: next(greys if name in controls else colours) for name in series}
    series = {name: points for name, points in series.items() if points}
    if series.keys() <= set(controls):
        return ""
    frame = Frame([point for points in series.values() for point in points], span)
    parts = axes(frame, x_names)
    for name in sorted(series, key=lambda name: name not in controls):  # grey lies behind
        parts += one_series(frame, series[name], styles[name])
    drawing = f'<svg viewBox="0 0 300 152" role="img">{"".join(parts)}</svg>'
    keys = "".join(legend_key(name, styles[name]) for name in series if name)
    legend = f'<div class="legend">{keys}</div>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend}</figure>"


def legend_key(name: str, style: str) -> str:
    """A piece of a line, and its name."""
    piece = '<svg viewBox="0 0 24 8"><line x2="24" y1="4" y2="4" stroke="currentColor"/></svg>'
    return f'<span style="{style}">{piece} {escape(name)}</span> '


def axes(frame: Frame, x_names: Sequence[str]) -> list[str]:
    """A line and its value for each tick; below, the names of x = 1, 2 ... or its two ends."""
    form = f",.{frame.decimals}f" if frame.decimals < 6 else ".3g"
    parts = []
    for value in frame.ticks:
        y = frame.y(value)
        parts.append(
            f'<line x1="44" x2="296" y1="{y}" y2="{y}" stroke="var(--line)"/>'
            f'<text x="40" y="{frame.y(value, shift=4)}" text-anchor="end">{value:{form}}</text>'
        )
    ticks = list(enumerate(x_names, 1)) or [(x, f"{x:,.0f}") for x in (frame.left, frame.right)]
    for x, name in ticks[:: ceil(len(ticks) / MOST_NAMES)]:
        if frame.left <= x <= frame.right:
            parts.append(f'<text x="{frame.x(x)}" y="146" text-anchor="middle">{name}</text>')
    return parts


def one_series(frame: Frame, points: Sequence[Point], style: str) -> list[str]:
    """The intervals, then the line through the points, then a dot for each."""
    intervals = []
    corners = []
    dots = []
    for point in points:
        x = frame.x(point.x)
        y = frame.y(point.y)
        corners.append(f"{x},{y}")
        title = f"<title>{point.y:.4g}</title>"
        dots.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="currentColor">{title}</circle>')
        if None not in (point.low, point.high):
            ends = f'y1="{frame.y(point.low)}" y2="{frame.y(point.high)}"'
            intervals.append(f'<line x1="{x}" x2="{x}" {ends} stroke="currentColor" class="bar"/>')
    path = " ".join(corners)
    line = f'<polyline fill="none" stroke="currentColor" points="{path}"/>'
    marks = dots if len(points) < MOST_DOTS else []
    return [f'<g style="{style}">', *intervals, line, *marks, "</g>"]
