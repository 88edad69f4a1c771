"""The rule of `ican_ml.records.recent` in Numba: every row walks back from its last event until its room is full."""

from __future__ import annotations

from typing import Any

import numpy as np

from ican_ml.encoding.cpu_kernels.jit import ask, jit
from ican_ml.records.vocabulary import Int64

_AHEAD, _SOON, _STEP = 8, 64, 2  # rows; events of a row; events of 24 bytes: at least one in each line of the cache


@jit()
def _ask_for(events: Any, start: Any, stop: Any) -> None:
    """The lines of a row's first event and its last ones: where no cache holds them, each would be waited for."""
    if start < stop:
        ask(events, start)
    i = stop - 1
    while i >= start and i >= stop - _SOON:
        ask(events, i)
        i -= _STEP


@jit()
def _chosen(events: Any, start: Any, dated: Any, stop: Any, limit: int, chosen: Int64) -> Any:
    """Positions of a row's events, ascending, at the end of `chosen` [limit]; returns how many there are."""
    n_static: Any = np.int64(0)
    for i in range(start, dated):
        n_static += np.int64(i) + events[i].later >= stop
    reserved: Any = min(n_static, limit // 2)
    n, i = np.int64(0), stop - 1
    while i >= dated and n < limit - reserved:
        if np.int64(i) + events[i].later >= stop:
            n += 1
            chosen[limit - n] = i
        i -= 1
    # Static events: the latest where there is room beyond what is reserved for the first.
    i, skipped = dated - 1, n_static - reserved
    room = limit - reserved - n
    while i >= start:
        if np.int64(i) + events[i].later >= stop:
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
def gather(events: Any, known: Int64, limit: int, undated: int, per_day: float) -> Any:
    """See `RecordLoader.batch`. `known` int64 [rows, 3]: first event, last + 1, and now."""
    n_rows = len(known)
    chosen, length = np.empty((n_rows, limit), np.int64), np.empty(n_rows, np.int64)
    width = np.int64(1)
    for r in range(-_AHEAD, n_rows):
        if r + _AHEAD < n_rows:
            _ask_for(events, known[r + _AHEAD, 0], known[r + _AHEAD, 1])
        if r >= 0:
            start, stop = known[r, 0], known[r, 1]
            dated = start
            while dated < stop and events[dated].time == undated:
                dated += 1
            length[r] = _chosen(events, start, dated, stop, limit, chosen[r])
            width = max(width, length[r])
    code, value = np.zeros((n_rows, width), np.int64), np.zeros((n_rows, width), np.float32)
    has_value, gap = np.zeros((n_rows, width), np.float32), np.zeros((n_rows, width), np.float32)
    for r in range(n_rows):
        first, now = limit - length[r], known[r, 2]
        for slot in range(length[r]):
            event = events[chosen[r, first + slot]]
            code[r, slot] = event.id
            if event.value == event.value:
                value[r, slot] = event.value
                has_value[r, slot] = 1
            gap[r, slot] = np.float32(-1) if event.time == undated else np.float32((now - event.time) / per_day)
    return code, value, has_value, gap
