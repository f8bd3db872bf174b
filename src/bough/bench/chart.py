"""A line chart with intervals as inline SVG: no script, colours from the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M-3.6 -3.6h7.2v7.2h-7.2z", "M0 -4.8L4.6 3.4H-4.6z",
    "M0 4.8L4.6 -3.4H-4.6z", "M0 -5L5 0L0 5L-5 0z", "M-4.5 -1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One cell: its cost, a value with its interval, what to say of it, and whether it is on the Pareto front."""

    x: float
    y: float
    low: float
    high: float
    text: str
    front: bool = False


@dataclass(frozen=True)
class Series:
    """The points of one line; ``number`` decides its colour and shape and the class ``m<number>`` of its parts."""

    number: int
    points: Sequence[Point]


def shape(number: int) -> str:
    """The path of a series' marks."""
    return _SHAPES[number % len(_SHAPES)]


def chart(series: Sequence[Series], label: str, x_title: str, y_range: tuple[float, float]) -> str:
    """The series over a logarithmic axis, on which 0 has a place of its own at the left, as an SVG element.

    Args:
        label: what the picture shows, for those who do not see it.
        x_title: what the axis is.
        y_range: the values at the bottom and at the top; ticks are percent.
    """
    costs = [point.x for one in series for point in one.points]
    scale = _Scale(costs)
    low, high = y_range

    def across(x: float) -> float:
        return _LEFT + scale(x) * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _TOP + (high - min(high, max(low, y))) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">',
        '<g class="grid">',
    ]
    zero = ' class="zero"'
    for y in _percents(low, high):
        parts.append(f'<path d="M{_LEFT} {up(y):.1f}H{WIDTH - _RIGHT}"{zero if y == 0 > low else ""}/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up(y) + 4:.1f}" class="y">{100 * y:.0f} %</text>')
    for x in scale.ticks:
        parts.append(f'<path d="M{across(x):.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - _BOTTOM + 16}" class="x">{_short(x)}</text>')
    parts.append(f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 6}" class="x title">{x_title}</text></g>')
    for one in series:
        points = sorted(one.points, key=lambda point: point.x)
        parts.append(f'<g class="series m{one.number} c{one.number % 10}">')
        if len(points) > 1:
            above = [f"{across(p.x):.1f} {up(p.high):.1f}" for p in points]
            below = [f"{across(p.x):.1f} {up(p.low):.1f}" for p in reversed(points)]
            parts.append(f'<path class="band" d="M{"L".join(above + below)}z"/>')
            line = "L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in points)
            parts.append(f'<path class="line" d="M{line}"/>')
        for p in points:
            x, y = across(p.x), up(p.y)
            parts.append(f'<g class="point"><title>{html.escape(p.text)}</title>')
            parts.append(f'<path class="bar" d="M{x:.1f} {up(p.low):.1f}V{up(p.high):.1f}"/>')
            if p.front:
                parts.append(f'<circle class="front" cx="{x:.1f}" cy="{y:.1f}" r="8"/>')
            parts.append(f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{shape(one.number)}"/></g>')
        parts.append("</g>")
    parts.append("</svg>")
    return "".join(parts)


class _Scale:
    """Places in [0, 1] of costs; those above 0 by their logarithm, 0 at the very left."""

    def __init__(self, costs: Sequence[float]) -> None:
        positive = [cost for cost in costs if cost > 0]
        least, most = (min(positive), max(positive)) if positive else (1.0, 10.0)
        least, most = least / 1.15, most * 1.15
        if most / least < 4:
            middle = math.sqrt(least * most)
            least, most = middle / 2, middle * 2
        self.low, self.high = math.log10(least), math.log10(most)
        self.start = 0.12 if len(positive) < len(costs) else 0.0
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [m * 10.0**k for k in decades for m in steps if least <= m * 10.0**k <= most]
            if len(ticks) <= 7:
                break
        self.ticks = ([0.0] if self.start else []) + ticks

    def __call__(self, cost: float) -> float:
        if cost <= 0:
            return 0.03
        return self.start + (math.log10(cost) - self.low) / (self.high - self.low) * (1 - self.start)


def _percents(low: float, high: float) -> list[float]:
    """Round values to draw lines at, about five."""
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / step <= 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _short(x: float) -> str:
    """A tick in few characters: 0.02, 5, 20k, 1M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= size:
            return f"{x / size:g}{suffix}"
    return f"{x:g}"
