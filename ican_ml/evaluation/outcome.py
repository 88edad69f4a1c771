"""What is to be predicted: one outcome per episode row, of one of three kinds.

In: arrays aligned with the episode rows. Out: an `Outcome`, the common currency of metrics, baselines and report.
Times are days; a row without a label (NaN, or an unknown event) is kept but not `labelled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Kind = Literal["binary", "survival", "regression"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One outcome per row; build it with `binary`, `survival` or `regression`.

    Attributes
    ----------
    kind
        "binary", "survival" or "regression".
    value
        float64 [rows]. Binary: 0, 1 or NaN. Regression: the number or NaN. Survival: follow-up time in days or NaN.
    event
        bool [rows]. Survival: the event happened at `value`; otherwise censored. All False for other kinds.
    entry
        float64 [rows]. Survival: a row is under observation from `entry` on (delayed entry); -inf = from the start.
    """

    kind: Kind
    value: FloatArray
    event: BoolArray
    entry: FloatArray

    @classmethod
    def binary(cls, response: ArrayLike) -> Self:
        """Outcome from 0/1/NaN per row."""
        value = np.asarray(response, dtype=np.float64)
        known = value[~np.isnan(value)]
        if not np.isin(known, (0.0, 1.0)).all():
            raise ValueError("a binary outcome holds 0, 1 or NaN (unknown); got other values: recode the column")
        return cls._without_time("binary", value)

    @classmethod
    def regression(cls, value: ArrayLike) -> Self:
        """Outcome from a real number or NaN per row."""
        return cls._without_time("regression", np.asarray(value, dtype=np.float64))

    @classmethod
    def survival(cls, time: ArrayLike, event: ArrayLike, entry: ArrayLike | None = None) -> Self:
        """Outcome from follow-up time, event flag and, for delayed entry, the time at which observation starts.

        A row with a NaN time, or that would leave before it enters (`entry >= time`), is not labelled.
        """
        value = np.array(time, dtype=np.float64)
        happened = np.asarray(event, dtype=bool)
        start = np.full(value.shape, -np.inf) if entry is None else np.array(entry, dtype=np.float64)
        if value.shape != happened.shape or value.shape != start.shape:
            raise ValueError(
                f"time, event and entry must have one value per row; got {value.shape}, {happened.shape}, {start.shape}"
            )
        start[np.isnan(start)] = -np.inf
        value[start >= value] = np.nan
        return cls(kind="survival", value=value, event=happened, entry=start)

    @classmethod
    def _without_time(cls, kind: Kind, value: FloatArray) -> Self:
        if value.ndim != 1:
            raise ValueError(f"an outcome has one value per row; got an array of shape {value.shape}")
        return cls(kind=kind, value=value, event=np.zeros(value.shape, dtype=bool), entry=np.full(value.shape, -np.inf))

    def __len__(self) -> int:
        return len(self.value)

    @property
    def labelled(self) -> BoolArray:
        """bool [rows]: the outcome is known (a censored time is known)."""
        return ~np.isnan(self.value)

    @property
    def has_delayed_entry(self) -> bool:
        """Whether any row enters observation after time zero."""
        return bool((self.entry > 0).any())

    def take(self, rows: NDArray[np.integer] | BoolArray) -> Outcome:
        """The outcome of some rows, in that order."""
        return Outcome(kind=self.kind, value=self.value[rows], event=self.event[rows], entry=self.entry[rows])
