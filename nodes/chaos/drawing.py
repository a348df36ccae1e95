"""Plots as inline SVG: lanes of spans and lines over one axis of seconds. Colours are CSS variables of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT = 960, 132, 14
"""Of every plot, in its own units; a page scales it, or scrolls it on a small screen."""
LANE_HEIGHT = 22
LINES_HEIGHT = 190
TICKS = 10
GAP_S = 2.0
"""A line is broken where nothing was known for longer."""
POINTS_MAX = 700
"""Of one line: more than pixels that show it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The seconds that a plot spans."""

    begin_s: float
    end_s: float

    def x(self, at_s: float) -> float:
        """Where a time is."""
        share = (at_s - self.begin_s) / max(1e-9, self.end_s - self.begin_s)
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, share))


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in a lane: a class of the page's style, and what is told of it."""

    begin_s: float
    end_s: float
    kind: str
    text: str


def nice_step(span: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a span into about so many parts."""
    if span <= 0:
        return 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw)


def lanes(title: str, axis: Axis, rows: Sequence[tuple[str, Sequence[Span]]]) -> str:
    """Rows of spans, each with its name at the left."""
    height = LANE_HEIGHT * len(rows) + 24
    parts = [_open(title, height), *_time_grid(axis, height - 24)]
    for i, (name, spans) in enumerate(rows):
        top = i * LANE_HEIGHT
        parts.append(f'<text class="name" x="{LEFT - 8}" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        for span in spans:
            x = axis.x(span.begin_s)
            width = max(2.0, axis.x(span.end_s) - x)
            parts.append(
                f'<rect class="span {escape(span.kind)}" x="{x:.1f}" y="{top + 3}" width="{width:.1f}" '
                f'height="{LANE_HEIGHT - 6}" rx="3"><title>{escape(span.text)}</title></rect>'
            )
    return "".join([*parts, "</svg>"])


def lines(
    title: str, unit: str, axis: Axis, series: Mapping[str, Sequence[tuple[float, float]]], shaded: Iterable[Span] = ()
) -> str:
    """Lines over time, each in a colour of its own, with what was broken shaded behind them."""
    top_value = max((value for points in series.values() for _, value in points), default=0.0)
    step = nice_step(top_value, 4) if top_value else 1.0
    ceiling = max(step, math.ceil(top_value / step) * step)
    height = LINES_HEIGHT
    bottom = height - 24
    parts = [_open(title, height)]
    for span in shaded:
        x = axis.x(span.begin_s)
        width = max(1.0, axis.x(span.end_s) - x)
        parts.append(f'<rect class="shade" x="{x:.1f}" y="0" width="{width:.1f}" height="{bottom}"/>')
    parts += _time_grid(axis, bottom)
    value = 0.0
    while value <= ceiling + step / 2:
        y = _y(value, ceiling, bottom)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,.6g}</text>')
        value += step
    parts.append(f'<text class="name" x="8" y="14">{escape(unit)}</text>')
    for i, points in enumerate(series.values()):
        for run in unbroken(points):
            path = " ".join(f"{axis.x(at):.1f},{_y(value, ceiling, bottom):.1f}" for at, value in thin(run))
            parts.append(f'<polyline class="line c{i % 8}" points="{path}"/>')
    parts.append("</svg>")
    return "".join(parts) + legend(list(series))


def legend(names: Sequence[str]) -> str:
    """Which colour is whose."""
    items = "".join(f'<li><i class="c{i % 8}"></i>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def unbroken(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Points in runs with no gap longer than GAP_S in them."""
    runs: list[list[tuple[float, float]]] = []
    for point in points:
        if not runs or point[0] - runs[-1][-1][0] > GAP_S:
            runs.append([])
        runs[-1].append(point)
    return runs


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS_MAX points; of those that fall together the highest stays, so that no peak is lost."""
    if len(points) <= POINTS_MAX:
        return list(points)
    size = math.ceil(len(points) / POINTS_MAX)
    return [max(points[i : i + size], key=lambda point: point[1]) for i in range(0, len(points), size)]


def _open(title: str, height: int) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'


def _y(value: float, ceiling: float, bottom: int) -> float:
    return 8 + (bottom - 8) * (1 - min(1.0, value / ceiling))


def _time_grid(axis: Axis, bottom: int) -> list[str]:
    step = nice_step(axis.end_s - axis.begin_s, TICKS)
    at_s = math.ceil(axis.begin_s / step) * step
    parts = []
    while at_s <= axis.end_s:
        x = axis.x(at_s)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{at_s:,.6g} s</text>')
        at_s += step
    return parts
