"""Groups of codes that have something in common, and what a summary counts of them.

A code stands in the group of each code above it (its parents, its shorter forms), and of the codes with its first and
last part (``DRUG//*//START``). NumPy and the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ican_ml.records.vocabulary import FIRST_KNOWN, Bool, Float32, Int64, Vocabulary, back_off
from ican_ml.records.vocabulary_fit import distinct

WINDOWS = (90, 365)
RECENT_COUNTS = tuple(f"count_{days}d" for days in WINDOWS)


class GroupCounts:
    """In how many rows each group of codes occurs: told the events of some rows at a time."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        below: dict[str, list[int]] = {}
        for number, code in enumerate(vocabulary.codes, start=FIRST_KNOWN):
            for name in _groups_of(code, vocabulary.parents):
                below.setdefault(name, []).append(number)
        self._members = {name: below[name] for name in sorted(below) if len(below[name]) > 1}
        self._table = _GroupTable.of(tuple(map(tuple, self._members.values())), vocabulary.n_ids)
        self._rows = np.zeros(len(self._members), np.int64)

    def add(self, rows: Int64, ids: Int64) -> None:
        """Count the rows of further events; no row may come twice."""
        key, _ = self._table.keys(rows, ids)
        self._rows += np.bincount(distinct(key) % max(len(self._rows), 1), minlength=len(self._rows))

    def commonest(self, occurs: Bool, *, most: int, min_rows: int) -> dict[str, tuple[int, ...]]:
        """Name to ids: the commonest sets of two codes or more that occur, each set once, by its first name."""
        several: dict[tuple[int, ...], tuple[str, int]] = {}
        for (name, members), rows in zip(self._members.items(), self._rows.tolist(), strict=True):
            occurring = tuple(number for number in members if occurs[number])
            if len(occurring) > 1:
                several.setdefault(occurring, (name, rows))
        order = np.argsort([-rows for _, rows in several.values()], kind="stable")[:most]
        listed = list(several.items())
        chosen = (listed[g] for g in np.sort(order).tolist())
        return {name: members for members, (name, rows) in chosen if rows >= min_rows}


def _groups_of(code: str, parents: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """What a code shares with others: itself, all above it, and its first and last part."""
    yield code
    yield from back_off(code, parents)
    parts = code.split("//")
    if len(parts) > 2:
        yield f"{parts[0]}//*//{parts[-1]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _GroupTable:
    """The groups of each id, flat: those of id ``i`` are ``group[start[i]:start[i] + size[i]]``."""

    n_groups: int
    start: Int64
    size: Int64
    group: Int64

    @classmethod
    def of(cls, groups: tuple[tuple[int, ...], ...], n_ids: int) -> _GroupTable:
        member = np.array([i for members in groups for i in members], np.int64)
        of_member = np.repeat(np.arange(len(groups)), [len(members) for members in groups])
        size = np.bincount(member, minlength=n_ids)
        start = np.cumsum(size) - size
        return cls(n_groups=len(groups), start=start, size=size, group=of_member[np.argsort(member, kind="stable")])

    def keys(self, rows: Int64, ids: Int64) -> tuple[Int64, Int64]:
        """For every event and group of it: row x n_groups + group, and the event's position."""
        size = self.size[ids]
        event = np.repeat(np.arange(len(ids)), size)
        nth = np.arange(len(event)) - np.repeat(np.cumsum(size) - size, size)
        return rows[event] * self.n_groups + self.group[self.start[ids[event]] + nth], event


def group_columns(
    groups: tuple[tuple[int, ...], ...], n_ids: int, length: Int64, rows: Int64, ids: Int64, gap: Float32
) -> Float32:
    """float32 [rows, blocks x groups]: count, recency, and a count for each of ``WINDOWS``; log1p, NaN = missing."""
    n_ids = max(n_ids, 1 + max((i for members in groups for i in members), default=0))
    key, event = _GroupTable.of(groups, n_ids).keys(rows, ids)
    days, n = gap[event], len(length) * len(groups)
    recency = np.full(n, np.inf, np.float32)
    dated = days >= 0
    np.minimum.at(recency, key[dated], days[dated])
    counts = [np.bincount(key, minlength=n)]
    counts += [np.bincount(key[dated & (days <= window)], minlength=n) for window in WINDOWS]
    count, *recent = (np.log1p(c).astype(np.float32).reshape(len(length), len(groups)) for c in counts)
    last = np.where(np.isinf(recency), np.float32(np.nan), np.log1p(recency)).reshape(len(length), len(groups))
    out = np.concatenate([count, last, *recent], axis=1)
    for block in (0, *range(2, 2 + len(WINDOWS))):
        out[length == 0, block * len(groups) : (block + 1) * len(groups)] = np.nan
    return out
