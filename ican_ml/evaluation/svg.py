"""Small SVG charts, written by hand: text stays text, files stay small, nothing is loaded from anywhere.

A `Chart` gathers lines, points and cells in data coordinates; `render` gives one `<svg>` element for an HTML page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ican_ml.evaluation.outcome import FloatArray, IntArray

PALETTE = ("#1f4e8c", "#d1762b", "#3a8f5c", "#8a8f98", "#8f4a8a", "#b03a48", "#5b7c99", "#9c8436")

_WIDTH, _HEIGHT = 420.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 34.0, 46.0
_LEGEND_LINE = 16.0


class Drawing(Protocol):
    """What a page can show."""

    def render(self) -> str:
        """One SVG element."""


@dataclass(kw_only=True, slots=True)
class Chart:
    """One chart with linear axes.

    Attributes
    ----------
    title, x_label, y_label
        Plain text, escaped here.
    x_range, y_range
        Data limits of the axes; equal ends are widened.
    legend_at
        "lower right", "upper right", "lower left" or "upper left".
    """

    title: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    legend_at: str = "lower right"
    _marks: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x_range, self.y_range = _widened(self.x_range), _widened(self.y_range)

    def diagonal(self) -> None:
        """A thin dashed line of identity."""
        low = max(self.x_range[0], self.y_range[0])
        high = min(self.x_range[1], self.y_range[1])
        points = self._points(np.array([low, high]), np.array([low, high]))
        self._marks.append(f'<polyline points="{points}" class="reference"/>')

    def line(
        self, x: FloatArray, y: FloatArray, *, color: str, label: str = "", dots: bool = False, dashed: bool = False
    ) -> None:
        """A line through the points, with dots on them if asked; NaN points are left out."""
        seen = np.isfinite(x) & np.isfinite(y)
        points = self._points(x[seen], y[seen])
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._marks.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>')
        if dots:
            for px, py in (pair.split(",") for pair in points.split()):
                self._marks.append(f'<circle cx="{px}" cy="{py}" r="3" fill="{color}"/>')
        if label:
            self._legend.append((label, color, dashed))

    def points(self, x: FloatArray, y: FloatArray, *, color: str, label: str = "") -> None:
        """Dots alone."""
        self._marks += [
            f'<circle cx="{self._x(a):.1f}" cy="{self._y(b):.1f}" r="2.2" fill="{color}" fill-opacity="0.7"/>'
            for a, b in zip(x, y, strict=True)
        ]
        if label:
            self._legend.append((label, color, False))

    def text(self, x: float, y: float, label: str) -> None:
        """A word beside a point."""
        self._marks.append(
            f'<text x="{self._x(x) + 5:.1f}" y="{self._y(y) - 4:.1f}" class="tick">{html.escape(label)}</text>'
        )

    def steps(self, x: FloatArray, y: FloatArray, *, color: str, label: str = "") -> None:
        """A right-continuous step line."""
        if len(x):
            self.line(np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1], color=color, label=label)

    def cells(self, edges: FloatArray, counts: IntArray, *, color: str) -> None:
        """A square grid of counts, darker for more (square-root scale)."""
        top = math.sqrt(max(1, int(counts.max(initial=0))))
        for i, j in zip(*np.nonzero(counts), strict=True):
            left, right = self._x(edges[i]), self._x(edges[i + 1])
            upper, lower = self._y(edges[j + 1]), self._y(edges[j])
            opacity = 0.08 + 0.92 * math.sqrt(int(counts[i, j])) / top
            self._marks.append(
                f'<rect x="{left:.1f}" y="{upper:.1f}" width="{right - left + 0.1:.1f}" '
                f'height="{lower - upper + 0.1:.1f}" fill="{color}" fill-opacity="{opacity:.2f}"/>'
            )

    def render(self) -> str:
        """The chart as one SVG element."""
        title = html.escape(self.title)
        middle_x, middle_y = 0.5 * (_LEFT + _WIDTH - _RIGHT), 0.5 * (_TOP + _HEIGHT - _BOTTOM)
        parts = [
            f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{title}">',
            f'<text x="{_LEFT:.0f}" y="18" class="chart-title">{title}</text>',
            *self._axes(),
            *self._marks,
            _axis_label(self.x_label, middle_x, _HEIGHT - 8, ""),
            _axis_label(self.y_label, 14.0, middle_y, f' transform="rotate(-90 14 {middle_y:.0f})"'),
            *self._legend_parts(),
            "</svg>",
        ]
        return "\n".join(parts)

    def _axes(self) -> Iterable[str]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for value in _ticks(*self.x_range):
            x = self._x(value)
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:.0f}" y2="{bottom:.0f}" class="grid"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 15:.0f}" class="tick" text-anchor="middle">{value:g}</text>'
        for value in _ticks(*self.y_range):
            y = self._y(value)
            yield f'<line x1="{_LEFT:.0f}" x2="{right:.0f}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            yield f'<text x="{_LEFT - 6:.0f}" y="{y + 3.5:.1f}" class="tick" text-anchor="end">{value:g}</text>'
        yield f'<path d="M{_LEFT:.0f} {_TOP:.0f}V{bottom:.0f}H{right:.0f}" class="axis"/>'

    def _legend_parts(self) -> Iterable[str]:
        if not self._legend:
            return
        vertical, side = self.legend_at.split()
        width = 34.0 + 6.2 * max(len(label) for label, _, _ in self._legend)
        x = _LEFT + 10 if side == "left" else _WIDTH - _RIGHT - width
        height = _LEGEND_LINE * len(self._legend)
        y = _TOP + 14 if vertical == "upper" else _HEIGHT - _BOTTOM - height + 4
        yield (
            f'<rect x="{x - 6:.1f}" y="{y - 12:.1f}" width="{width:.1f}" height="{height + 4:.1f}" '
            'fill="#fff" fill-opacity="0.85"/>'
        )
        for number, (label, color, dashed) in enumerate(self._legend):
            at = y + _LEGEND_LINE * number
            dash = ' stroke-dasharray="5 4"' if dashed else ""
            yield (
                f'<line x1="{x:.1f}" x2="{x + 20:.1f}" y1="{at - 4:.1f}" y2="{at - 4:.1f}" stroke="{color}" '
                f'stroke-width="2.5"{dash}/>'
                f'<text x="{x + 26:.1f}" y="{at:.1f}" class="legend">{html.escape(label)}</text>'
            )

    def _points(self, x: FloatArray, y: FloatArray) -> str:
        return " ".join(f"{self._x(a):.1f},{self._y(b):.1f}" for a, b in zip(x, y, strict=True))

    def _x(self, value: float) -> float:
        low, high = self.x_range
        share = min(1.0, max(0.0, (float(value) - low) / (high - low)))
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y_range
        share = min(1.0, max(0.0, (float(value) - low) / (high - low)))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axis_label(text: str, x: float, y: float, transform: str) -> str:
    place = f'x="{x:.0f}" y="{y:.0f}" class="axis-label" text-anchor="middle"{transform}'
    return f"<text {place}>{html.escape(text)}</text>"


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _ticks(low: float, high: float) -> Sequence[float]:
    rough = (high - low) / 5.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]
