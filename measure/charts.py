"""measure/charts.py: line charts as SVG, and tables as HTML.

In: numbers and names.  Out: pieces of a page, as text. Names are escaped here.
Left out on purpose: a plotting library.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import NamedTuple

COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)", "var(--f)")
MOST_DOTS = 30  # a line of this many points or more has no dots


class Point(NamedTuple):
    """One point of a line; `low` and `high` are the ends of its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Frame:
    """The range of the data, and where it lies in a drawing of 300 by 152 pixels.

    There are 44 pixels at the left for the numbers and 24 at the bottom for the names.
    """

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        share = 0.5
        if self.left != self.right:
            share = (value - self.left) / (self.right - self.left)
        return 44 + 246 * share

    def y(self, value: float) -> float:
        return 128 - 116 * (value - self.low) / (self.high - self.low)


def line_chart(
    title: str, series: dict[str, list[Point]], *, x_names: Sequence[str] | None = None
) -> str:
    """A small chart with one line for each name in `series`; "" where there is nothing to draw.

    `x_names` are written below x = 1, 2, 3 ...; without them the two ends of the range.
    """
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    # More lines than colours: the colours start again.
    colours = dict(zip(series, cycle(COLOURS), strict=False))
    frame = frame_around([point for points in series.values() for point in points])
    parts = horizontal_lines(frame) + x_axis(frame, x_names)
    for name, points in series.items():
        parts += one_series(frame, points, colours[name])
    drawing = f'<svg viewBox="0 0 300 152" role="img">{"".join(parts)}</svg>'
    legend = chart_legend(colours) if len(series) > 1 else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend}</figure>"


def frame_around(points: Sequence[Point]) -> Frame:
    """Holds all points and intervals, with a margin above and below."""
    low = min(point.y if point.low is None else point.low for point in points)
    high = max(point.y if point.high is None else point.high for point in points)
    margin = 0.5 if low == high else 0.05 * (high - low)
    return Frame(
        left=min(point.x for point in points),
        right=max(point.x for point in points),
        low=low - margin,
        high=high + margin,
    )


def horizontal_lines(frame: Frame) -> list[str]:
    """Four lines with their values at the left; the larger the values, the fewer decimals."""
    form = ".2g"
    if frame.high >= 100:
        form = ",.0f"
    elif frame.high >= 0.1:
        form = ".3g"
    parts = []
    for k in range(4):
        value = frame.low + (frame.high - frame.low) * k / 3
        y = frame.y(value)
        parts.append(
            f'<line x1="44" x2="296" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text x="40" y="{y + 4:.1f}" text-anchor="end">{value:{form}}</text>'
        )
    return parts


def x_axis(frame: Frame, names: Sequence[str] | None) -> list[str]:
    """The names of x = 1, 2, 3 ..., or the two ends of the range."""
    if names:
        ticks = list(enumerate(names, 1))
    else:
        ticks = [(x, f"{x:.0f}") for x in (frame.left, frame.right)]
    return [
        f'<text x="{frame.x(x):.1f}" y="146" text-anchor="middle">{name}</text>'
        for x, name in ticks
        if frame.left <= x <= frame.right
    ]


def one_series(frame: Frame, points: Sequence[Point], colour: str) -> list[str]:
    """The intervals, then the line through the points, then a dot for each."""
    intervals = []
    corners = []
    dots = []
    for point in points:
        x = f"{frame.x(point.x):.1f}"
        y = f"{frame.y(point.y):.1f}"
        corners.append(f"{x},{y}")
        dots.append(
            f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"><title>{point.y:.4g}</title></circle>'
        )
        if point.low is not None and point.high is not None:
            ends = f'y1="{frame.y(point.low):.1f}" y2="{frame.y(point.high):.1f}"'
            intervals.append(f'<line x1="{x}" x2="{x}" {ends} stroke="{colour}" opacity=".5"/>')
    line = (
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(corners)}"/>'
    )
    return [*intervals, line, *(dots if len(points) < MOST_DOTS else [])]


def chart_legend(colours: dict[str, str]) -> str:
    """The name of each line in its colour."""
    return " ".join(
        f'<span class="key" style="color:{colour}">&#9679; {escape(name)}</span>'
        for name, colour in colours.items()
    )


def html_table(headings: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table that scrolls sideways on a phone. None is "-"; floats have three decimals."""
    cells = [f"<th>{escape(heading)}</th>" for heading in headings]
    table = f"<tr>{''.join(cells)}</tr>"
    for line in lines:
        cells = [f"<td>{html_cell(value)}</td>" for value in line]
        table += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="scroll"><table>{table}</table></div>'


def html_cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
