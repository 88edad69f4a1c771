"""Plain-text tables with aligned columns: what a run prints when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ican_ml.evaluation.bootstrap import Interval


class MeanSd(NamedTuple):
    """A mean over folds and its standard deviation."""

    mean: float
    sd: float


Cell: TypeAlias = "str | int | float | Interval | MeanSd | None"


def summary_table(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Lay out rows under their column names, in order of first appearance.

    Text is aligned left, numbers right. An `Interval` reads "0.812 [0.790, 0.834]", a `MeanSd` "0.765 ± 0.008", what is
    missing or undefined "-".
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[format_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)] if rows else []
    textual = [any(isinstance(row.get(name), str) for row in rows) for name in columns]

    def line(values: Sequence[str]) -> str:
        padded = (v.ljust(w) if is_text else v.rjust(w) for v, w, is_text in zip(values, widths, textual, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * w for w in widths]), *(line(values) for values in cells)])


def format_cell(value: Cell) -> str:
    """One table cell as text."""
    if value is None:
        return "-"
    if isinstance(value, Interval):
        if not math.isfinite(value.low):
            return _number(value.estimate)
        return f"{_number(value.estimate)} [{_number(value.low)}, {_number(value.high)}]"
    if isinstance(value, MeanSd):
        return _number(value.mean) if not math.isfinite(value.sd) else f"{_number(value.mean)} ± {_number(value.sd)}"
    if isinstance(value, float):
        return _number(value)
    return f"{value:,}" if isinstance(value, int) else value


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
