"""What was known at a time: the one rule that keeps the future out of samples and records.

Times are int64 microseconds; the smallest int64 is NaT. As the time of an entry NaT means "undated, always known" and
sorts first. As a limit NaT means "no limit".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NAT = np.iinfo(np.int64).min
Int64 = npt.NDArray[np.int64]


def end_of_known(time: Int64, start: Int64, stop: Int64, limit: Int64) -> Int64:
    """End of the part of each range that lies at or before its limit.

    Parameters
    ----------
    time
        int64 [n], ascending inside every range.
    start, stop
        int64 [q]: range ``start <= i < stop`` of each query.
    limit
        int64 [q]: last time that counts, inclusive; ``NAT`` = no limit.

    Returns
    -------
    int64 [q]
        ``end`` such that ``time[start:end] <= limit < time[end:stop]``.
    """
    limit = np.where(limit == NAT, np.iinfo(np.int64).max, limit)
    low, high = start.copy(), stop.copy()
    searching = np.flatnonzero(low < high)
    while len(searching):
        middle = (low[searching] + high[searching]) // 2
        known = time[middle] <= limit[searching]
        low[searching] = np.where(known, middle + 1, low[searching])
        high[searching] = np.where(known, high[searching], middle)
        searching = searching[low[searching] < high[searching]]
    return low


def find_subjects(known: Int64, wanted: Int64) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Position of each wanted subject in the ascending ``known``, and whether it is there (position 0 where not)."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    position = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = known[position] == wanted
    return np.where(found, position, 0), found
