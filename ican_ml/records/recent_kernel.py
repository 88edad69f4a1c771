"""The rule of `ican_ml.records.recent` in Numba: every row walks back from its last event until its room is full."""

from __future__ import annotations

from typing import Any

import numpy as np

from ican_ml.encoding.cpu_kernels.jit import jit
from ican_ml.records.vocabulary import Int64

_BLOCK, _STEP = 64, 5  # rows; events of 12 bytes: at least one in each line of the cache
_MINUTES_PER_DAY, _DAYS_PER_YEAR = 1440.0, np.float32(365.25)


@jit()
def _read_ahead(events: Any, known: Any, rows: Int64, limit: int) -> Any:
    """Load the lines of some rows' latest events, independently of one another: where no cache has them, the processor
    waits for many at once, which took a third less time than asking for them in advance. Gives a number below 0 where
    an id is: what is loaded must count, or a compiler would not load it."""
    found, last = np.int32(0), np.int64(0)
    for r in rows:
        last |= known[r].stop
    for r in rows:
        start, stop = known[r].start, known[r].stop
        if start < stop:
            first = max(start, stop - limit)
            found |= events[first].id
            for i in range(stop - 1, first, -_STEP):
                found |= events[i].id
    return found | np.int32(last >> 62)


@jit()
def _chosen(
    events: Any, start: Any, dated: Any, stop: Any, limit: Any, per_code: int, seen: Int64, chosen: Int64
) -> Any:
    """Positions of a row's events, ascending, at the end of `chosen` [limit]; returns how many. `seen`: [ids] zeros."""
    n_static: Any = np.int64(0)
    i = start
    while i < dated and n_static < limit:
        seen[events[i].id] += 1
        n_static += seen[events[i].id] <= per_code
        i += 1
    for k in range(start, i):
        seen[events[k].id] = 0
    n, i = np.int64(0), stop - 1
    room = limit - min(n_static, limit // 2)
    while i >= dated and n < room:
        seen[events[i].id] += 1
        if seen[events[i].id] <= per_code:
            n += 1
            chosen[limit - n] = i
        i -= 1
    for k in range(i + 1, stop):
        seen[events[k].id] = 0
    n_static = min(n_static, limit - n)
    i, slot = start, limit - n - n_static
    while slot < limit - n:
        seen[events[i].id] += 1
        if seen[events[i].id] <= per_code:
            chosen[slot] = i
            slot += 1
        i += 1
    for k in range(start, i):
        seen[events[k].id] = 0
    return n + n_static


@jit()
def gather(events: Any, known: Any, rows: Int64, limit: int, per_code: int, n_ids: int) -> Any:
    """See `RecordLoader.batch`; ``known`` are `ican_ml.records.recent.ROW`."""
    n_rows = len(rows)
    chosen, seen, width = np.empty(limit, np.int64), np.zeros(n_ids, np.int64), np.int64(1)
    code, value = np.empty((n_rows, limit), np.int64), np.empty((n_rows, limit), np.float32)
    has_value, gap = np.empty((n_rows, limit), np.float32), np.empty((n_rows, limit), np.float32)
    ages = np.empty((n_rows, limit), np.float32)
    for r in range(n_rows):
        if r % _BLOCK == 0 and _read_ahead(events, known, rows[r : r + _BLOCK], limit) < 0:
            raise ValueError("ids of events: expected none below 0")
        row = known[rows[r]]
        start, dated, stop, now, age = row.start, row.dated, row.stop, row.now, row.age
        length = _chosen(events, start, dated, stop, limit, per_code, seen, chosen)
        width = max(width, length)
        for slot in range(length):
            i = chosen[limit - length + slot]
            event, static, valued = events[i], i < dated, events[i].value == events[i].value
            days = np.float32(0) if static else np.float32((np.int64(now) - event.minute) / _MINUTES_PER_DAY)
            code[r, slot] = event.id
            value[r, slot] = event.value if valued else np.float32(0)
            has_value[r, slot] = np.float32(valued)
            gap[r, slot] = np.float32(-1) if static else days
            ages[r, slot] = age - days / _DAYS_PER_YEAR if age > 0 else np.float32(0)
        code[r, length:] = 0
        for column in (value, has_value, gap, ages):
            column[r, length:] = 0
    return code[:, :width], value[:, :width], has_value[:, :width], gap[:, :width], ages[:, :width]
