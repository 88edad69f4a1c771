"""The charts of a sweep's page: values and losses by `Chart`; bars and parallel axes, which it has not, drawn here."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.evaluation.svg import PALETTE, Chart, Drawing

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_WIDTH, _LEFT, _RIGHT, _TOP, _LINE = 420.0, 150.0, 40.0, 34.0, 24.0
_AXES_WIDTH, _AXES_HEIGHT, _SIDE, _FOOT = 420.0, 330.0, 40.0, 60.0
_GOOD, _OTHER, _PRUNED = PALETTE[1], PALETTE[0], PALETTE[3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """Shares by name, the largest first."""

    title: str
    shares: Mapping[str, float]

    def render(self) -> str:
        """One SVG element."""
        title = html.escape(self.title)
        height = _TOP + _LINE * len(self.shares) + 10
        parts = [
            f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{title}">',
            f'<text x="12" y="18" class="chart-title">{title}</text>',
        ]
        largest = max(self.shares.values(), default=0.0) or 1.0
        ordered = sorted(self.shares.items(), key=lambda item: -item[1])
        for number, (name, share) in enumerate(ordered):
            y, width = _TOP + _LINE * number, (_WIDTH - _LEFT - _RIGHT) * share / largest
            place = f'x="{_LEFT - 8:.0f}" y="{y + 13:.0f}" class="legend" text-anchor="end"'
            parts += [
                f"<text {place}>{html.escape(name)}</text>",
                f'<rect x="{_LEFT:.0f}" y="{y + 2:.0f}" width="{max(width, 1):.1f}" height="15" fill="{_OTHER}"/>',
                f'<text x="{_LEFT + width + 6:.1f}" y="{y + 13:.0f}" class="tick">{share:.2f}</text>',
            ]
        return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelAxes:
    """A line for each trial through one axis for each parameter, the better ones drawn last and in colour.

    Attributes
    ----------
    axes
        Name -> its ends as text, lowest first, or its choices.
    lines
        Of each trial, best first: its place on each axis, from 0 to 1.
    """

    title: str
    axes: Mapping[str, Sequence[str]]
    lines: Sequence[Sequence[float]]

    def render(self) -> str:
        """One SVG element."""
        title = html.escape(self.title)
        parts = [
            f'<svg viewBox="0 0 {_AXES_WIDTH:.0f} {_AXES_HEIGHT:.0f}" role="img" aria-label="{title}">',
            f'<text x="12" y="18" class="chart-title">{title}</text>',
        ]
        good = max(1, math.ceil(len(self.lines) / 5))
        for rank, line in reversed(list(enumerate(self.lines))):
            points = " ".join(f"{self._x(axis):.1f},{self._y(at):.1f}" for axis, at in enumerate(line))
            style = (
                f'stroke="{_GOOD}" stroke-opacity="0.9"' if rank < good else f'stroke="{_OTHER}" stroke-opacity="0.25"'
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke-width="1.4" {style}/>')
        for axis, (name, marks) in enumerate(self.axes.items()):
            x = self._x(axis)
            parts.append(f'<path d="M{x:.1f} {self._y(1):.0f}V{self._y(0):.0f}" class="axis"/>')
            short = html.escape(name.rpartition(".")[2])
            y = _AXES_HEIGHT - 30 + 13 * (axis % 2)
            at, anchor = (4.0, "start") if axis == 0 else (x, "middle")
            if axis == len(self.axes) - 1:
                at, anchor = _AXES_WIDTH - 4, "end"
            parts.append(f'<text x="{at:.1f}" y="{y:.0f}" class="tick" text-anchor="{anchor}">{short}</text>')
            for number, mark in enumerate(marks):
                y = self._y(number / max(1, len(marks) - 1)) + 3.5
                parts.append(f'<text x="{x + 4:.1f}" y="{y:.1f}" class="tick">{html.escape(mark)}</text>')
        return "\n".join([*parts, "</svg>"])

    def _x(self, axis: int) -> float:
        return _SIDE / 2 + axis * (_AXES_WIDTH - 1.5 * _SIDE) / max(1, len(self.axes) - 1)

    def _y(self, share: float) -> float:
        return _AXES_HEIGHT - _FOOT + share * (_TOP + 10 - _AXES_HEIGHT + _FOOT)


def charts(study: optuna.Study, shares: Mapping[str, float]) -> list[Drawing]:
    """Values by trial, losses by epoch, parallel axes, what mattered; those for which there is something to show."""
    found: list[Drawing] = []
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if complete:
        found.append(_history(study.trials))
        found.append(_parallel(complete))
    if any(len(trial.intermediate_values) > 1 for trial in study.trials):
        found.append(_curves(study.trials))
    if shares:
        found.append(Bars(title="What mattered", shares=shares))
    return found


def _history(trials: Sequence[optuna.trial.FrozenTrial]) -> Chart:
    complete = [(trial.number, float(trial.value or 0.0)) for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [(t.number, float(t.value)) for t in trials if t.state.name == "PRUNED" and t.value is not None]
    number, value = (np.array(part, float) for part in zip(*complete, strict=True))
    chart = Chart(
        title="Tuning loss by trial",
        x_label="Trial",
        y_label="Tuning loss",
        x_range=(0.0, float(len(trials) - 1)),
        y_range=_limits(value),
        legend_at="upper right",
    )
    chart.points(number, value, color=_OTHER, label="complete")
    if pruned:
        x, y = (np.array(part, float) for part in zip(*pruned, strict=True))
        chart.points(x, y, color=_PRUNED, label="pruned")
    chart.steps(number, np.minimum.accumulate(value), color=_GOOD, label="best so far")
    return chart


def _curves(trials: Sequence[optuna.trial.FrozenTrial]) -> Chart:
    drawn = [trial for trial in trials if len(trial.intermediate_values) > 1]
    complete = [t for t in drawn if t.state.name == "COMPLETE"]
    best = min(complete, key=lambda trial: float(trial.value or 0.0), default=None)
    losses = np.array([loss for trial in complete or drawn for loss in trial.intermediate_values.values()])
    steps = [step for trial in drawn for step in trial.intermediate_values]
    chart = Chart(
        title="Tuning loss by epoch",
        x_label="Epoch" if max(steps) < 1000 else "Step",
        y_label="Tuning loss",
        x_range=(float(min(steps)), float(max(steps))),
        y_range=_limits(losses[np.isfinite(losses)]),
        legend_at="upper right",
    )
    labelled: set[str] = set()
    for trial in [*(t for t in drawn if t is not best), *([best] if best else [])]:
        name = (
            "best"
            if trial is best
            else {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "lost or open")
        )
        color = {"best": _GOOD, "complete": _OTHER}.get(name, _PRUNED)
        x, y = (np.array(part, float) for part in zip(*sorted(trial.intermediate_values.items()), strict=True))
        chart.line(x, y, color=color, label="" if name in labelled else name)
        labelled.add(name)
    return chart


def _parallel(complete: Sequence[optuna.trial.FrozenTrial]) -> ParallelAxes:
    ranked = sorted(complete, key=lambda trial: float(trial.value or 0.0))
    values = [float(trial.value or 0.0) for trial in ranked]
    low, high = values[0], values[-1]
    known = {name: of for trial in ranked for name, of in trial.distributions.items()}
    places = {name: _Axis(of) for name, of in known.items()}
    return ParallelAxes(
        title="Complete trials, the best fifth in colour",
        axes={**{name: axis.marks for name, axis in places.items()}, "tuning loss": [f"{low:.4g}", f"{high:.4g}"]},
        lines=[
            [axis.place(trial.params[name]) for name, axis in places.items() if name in trial.params]
            + [(value - low) / ((high - low) or 1.0)]
            for trial, value in zip(ranked, values, strict=True)
        ],
    )


class _Axis:
    """Where a parameter's values lie between 0 and 1."""

    def __init__(self, distribution: BaseDistribution) -> None:
        self._choices = list(getattr(distribution, "choices", ()))
        self._log = bool(getattr(distribution, "log", False))
        ends: tuple[Any, Any] = (getattr(distribution, "low", 0.0), getattr(distribution, "high", 1.0))
        self._low, self._high = (self._scaled(end) for end in ends)
        self.marks = [str(choice) for choice in self._choices] or [f"{end:.3g}" for end in ends]

    def place(self, value: Any) -> float:
        if self._choices:
            return self._choices.index(value) / max(1, len(self._choices) - 1)
        return (self._scaled(value) - self._low) / ((self._high - self._low) or 1.0)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._log else float(value)


def _limits(values: Any) -> tuple[float, float]:
    """The range of most values: a trial that diverged would flatten all others."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(np.quantile(values, 0.95))
    margin = 0.08 * ((high - low) or 1.0)
    return low - margin, high + margin
