"""The rule of `ican_ml.records.recent` in Numba: every row walks back from its last event until its room is full."""

from __future__ import annotations

from typing import Any

import numpy as np

from ican_ml.encoding.cpu_kernels.jit import jit
from ican_ml.records.vocabulary import Float32, Int32, Int64


@jit()
def _first_dated(time: Int64, start: Any, stop: Any, undated: int) -> Any:
    while start < stop:
        middle = (start + stop) // 2
        if time[middle] == undated:
            start = middle + 1
        else:
            stop = middle
    return start


@jit()
def _chosen(later: Int32, start: Any, dated: Any, stop: Any, limit: int, chosen: Int64) -> Any:
    """Positions of a row's events, ascending, at the end of `chosen` [limit]; returns how many there are."""
    n_static: Any = np.int64(0)
    for i in range(start, dated):
        n_static += np.int64(i) + later[i] >= stop
    reserved: Any = min(n_static, limit // 2)
    n, i = np.int64(0), stop - 1
    while i >= dated and n < limit - reserved:
        if np.int64(i) + later[i] >= stop:
            n += 1
            chosen[limit - n] = i
        i -= 1
    # Static events: the latest where there is room beyond what is reserved for the first.
    i, skipped = dated - 1, n_static - reserved
    room = limit - reserved - n
    while i >= start:
        if np.int64(i) + later[i] >= stop:
            if skipped > 0:
                skipped -= 1
                if room > 0:
                    room -= 1
                    n += 1
                    chosen[limit - n] = i
            else:
                n += 1
                chosen[limit - n] = i
        i -= 1
    return n


@jit()
def gather(
    time: Int64, ids: Int32, values: Float32, later: Int32, start: Int64, stop: Int64, now: Int64,
    limit: int, undated: int, per_day: float,
) -> Any:  # fmt: skip
    """See `RecordLoader.batch`."""
    n_rows = start.size
    chosen, length = np.empty((n_rows, limit), np.int64), np.empty(n_rows, np.int64)
    width = np.int64(1)
    for r in range(n_rows):
        dated = _first_dated(time, start[r], stop[r], undated)
        length[r] = _chosen(later, start[r], dated, stop[r], limit, chosen[r])
        width = max(width, length[r])
    code, value = np.zeros((n_rows, width), np.int64), np.zeros((n_rows, width), np.float32)
    has_value, gap = np.zeros((n_rows, width), np.float32), np.zeros((n_rows, width), np.float32)
    for r in range(n_rows):
        first = limit - length[r]
        for slot in range(length[r]):
            i = chosen[r, first + slot]
            code[r, slot] = ids[i]
            if values[i] == values[i]:
                value[r, slot] = values[i]
                has_value[r, slot] = 1
            gap[r, slot] = np.float32(-1) if time[i] == undated else np.float32((now[r] - time[i]) / per_day)
    return code, value, has_value, gap
