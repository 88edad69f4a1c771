"""Summary columns of a record: what the wide path and the baselines see of a patient's history.

In: encoded events (ids, normalised values), flat and ragged over rows. Out: float32 [rows, S], NaN = missing, with

- ``age``: years at the prediction time
- ``<code>:count``: log1p of the number of events; NaN where the row has no event of any kind (no record)
- ``<code>:recency``: log1p of the days since the latest one
- ``<code>:last``: value at the latest time, the mean of the values where several share that time
- ``<code>:mean``: mean of the values, static ones included
- ``<code>:slope``: least-squares slope of the dated values per year, 0 where they all share one time
- ``<code>:change``: value at the latest time minus that at the time before; NaN where there is none
- ``<code>:above_lowest``, ``<code>:below_highest``: how far the value at the latest time is from them
- ``<code>:recent``: mean of the values of the last 180 days
- ``<group>:count``, ``<group>:recency``: as of a code, over all codes below a common one (``DRUG``, a parent, or
  ``DRUG//*//START``)
- ``<group>:count_90d``, ``<group>:count_365d``: log1p of the number of events within that many days

Sums run in float64 over one fixed order (row, code, time, value), so a row has the same bits alone and in any batch,
and the order of a source file never matters. NumPy and the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.records.groups import RECENT_COUNTS, GroupCounts, group_columns
from ican_ml.records.vocabulary import FIRST_KNOWN, Bool, Float32, Int64, Record, Vocabulary
from ican_ml.records.vocabulary_fit import distinct

ENCODING = "ican-aggregates"
VERSION = 2
_DAYS_PER_YEAR = 365.25
_COURSE = ("change", "above_lowest", "below_highest", "recent")
MOST_CODES = 512
_RECENT = 180.0
_MIN_ROWS = 20
_MIN_FRACTION = 0.005
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregates:
    """Which columns there are. Every tuple of ids is ascending; ``names`` lists the columns in order.

    Attributes
    ----------
    code_ids
        Codes with a ``count`` column.
    dated_ids
        Those that are ever dated: ``recency``.
    value_ids
        Those with values: ``last`` and ``mean``.
    slope_ids
        Those with dated values: ``slope`` and the other columns of a course.
    groups
        Ids of the codes of each group.
    names
        S column names.
    """

    code_ids: tuple[int, ...]
    dated_ids: tuple[int, ...]
    value_ids: tuple[int, ...]
    slope_ids: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` restores the same columns."""
        ids = {name: list(getattr(self, name)) for name in ("code_ids", "dated_ids", "value_ids", "slope_ids")}
        groups = [list(members) for members in self.groups]
        return {"encoding": ENCODING, "version": VERSION, **ids, "groups": groups, "names": list(self.names)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Aggregates:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the document is of another kind or version.
        """
        found = (document.get("encoding"), document.get("version"))
        if found != (ENCODING, VERSION):
            raise ValueError(
                f"aggregates: expected encoding {ENCODING!r} version {VERSION}, got {found[0]!r} version {found[1]!r}; "
                "export the bundle again with this version of ican_ml"
            )
        return cls(
            code_ids=tuple(document["code_ids"]),
            dated_ids=tuple(document["dated_ids"]),
            value_ids=tuple(document["value_ids"]),
            slope_ids=tuple(document["slope_ids"]),
            groups=tuple(map(tuple, document["groups"])),
            names=tuple(document["names"]),
        )


def fit_aggregates(
    vocabulary: Vocabulary, record: Record, *, most: int = MOST_CODES, min_rows: int | None = None
) -> Aggregates:
    """Choose the columns: codes that at least ``min_rows`` of the training rows have.

    Parameters
    ----------
    vocabulary
        Gives and names the ids.
    record
        Training rows.
    most
        Of how many codes at most: the commonest, and of those as common as the last the first by name. Groups of two
        codes or more are chosen in the same way, an eighth as many.
    min_rows
        Default: 0.5% of the rows, at least 20. Padding and unknown never get a column.
    """
    if min_rows is None:
        min_rows = max(_MIN_ROWS, int(np.ceil(_MIN_FRACTION * record.n_rows)))
    n_ids = vocabulary.n_ids
    having, having_values = np.zeros(n_ids, np.int64), np.zeros(n_ids, np.int64)
    ever_dated, ever_dated_values = np.zeros(n_ids, bool), np.zeros(n_ids, bool)
    groups = GroupCounts(vocabulary)
    for events in record.pieces():
        ids, _, has_value = vocabulary.encode(events)
        row, dated = events.row_ids(), events.gap >= 0
        groups.add(row, ids)
        having += np.bincount(distinct(row * n_ids + ids) % n_ids, minlength=n_ids)
        having_values += np.bincount(distinct((row * n_ids + ids)[has_value]) % n_ids, minlength=n_ids)
        ever_dated[ids[dated]] = True
        ever_dated_values[ids[dated & has_value]] = True
    having[:FIRST_KNOWN] = 0
    common = np.sort(np.argsort(-having, kind="stable")[:most])
    code_ids = common[having[common] >= min_rows]
    members_of = groups.commonest(having > 0, most=-(-most // 8), min_rows=min_rows)
    value_ids = common[having_values[common] >= min_rows]
    dated_ids, slope_ids = code_ids[ever_dated[code_ids]], value_ids[ever_dated_values[value_ids]]
    blocks = (
        ("count", code_ids),
        ("recency", dated_ids),
        ("last", value_ids),
        ("mean", value_ids),
        *((block, slope_ids) for block in ("slope", *_COURSE)),
    )
    names = [f"{vocabulary.codes[i - FIRST_KNOWN]}:{block}" for block, chosen in blocks for i in chosen.tolist()]
    names += [f"{name}:{block}" for block in ("count", "recency", *RECENT_COUNTS) for name in members_of]
    return Aggregates(
        code_ids=tuple(code_ids.tolist()),
        dated_ids=tuple(dated_ids.tolist()),
        value_ids=tuple(value_ids.tolist()),
        slope_ids=tuple(slope_ids.tolist()),
        groups=tuple(members_of.values()),
        names=("age", *names),
    )


def aggregate(
    spec: Aggregates,
    offsets: Int64,
    ids: Int64,
    values: Float32,
    has_value: Bool,
    gap: Float32,
    age: Float32,
) -> Float32:
    """Compute the columns of every row.

    Parameters
    ----------
    spec
        The columns.
    offsets, ids, values, has_value, gap, age
        Encoded events of the rows, see :meth:`Vocabulary.encode` and :class:`Events`.

    Returns
    -------
    float32 [rows, S]
        One column for each of ``spec.names``; NaN = missing.
    """
    length = np.diff(offsets)
    rows = np.repeat(np.arange(len(length), dtype=np.int64), length)
    out = np.full((len(length), len(spec.names)), np.nan, np.float32)
    out[:, 0] = age
    column = 1
    n_ids = max((*spec.code_ids, *spec.value_ids, int(ids.max(initial=0))), default=0) + 1

    group = _Groups.of(rows, ids, spec.code_ids, n_ids, gap)
    out[:, column : column + len(spec.code_ids)] = np.where(length > 0, np.float32(0), np.float32(np.nan))[:, None]
    group.put(out, column, spec.code_ids, n_ids, np.log1p(group.size))
    column += len(spec.code_ids)
    group.put(out, column, spec.dated_ids, n_ids, np.log1p(group.latest_gap()))
    column += len(spec.dated_ids)

    at = np.flatnonzero(has_value)
    group = _Groups.of(rows[at], ids[at], spec.value_ids, n_ids, gap[at], values[at])
    for statistic in (group.last(), group.mean()):
        group.put(out, column, spec.value_ids, n_ids, statistic)
        column += len(spec.value_ids)
    at = np.flatnonzero(has_value & (gap >= 0))
    group = _Groups.of(rows[at], ids[at], spec.slope_ids, n_ids, gap[at], values[at])
    for statistic in (group.slope(), *group.course()):
        group.put(out, column, spec.slope_ids, n_ids, statistic)
        column += len(spec.slope_ids)
    out[:, column:] = group_columns(spec.groups, n_ids, length, rows, ids, gap)
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Groups:
    """Events of the chosen ids, grouped by (row, id), the latest first; static events count as the oldest."""

    key: Int64
    size: Int64
    of_event: Int64
    start: Int64
    gap: Float64
    value: Float64

    @classmethod
    def of(
        cls,
        rows: Int64,
        ids: Int64,
        chosen: tuple[int, ...],
        n_ids: int,
        gap: Float32,
        values: Float32 | None = None,
    ) -> _Groups:
        wanted = np.zeros(n_ids, bool)
        wanted[list(chosen)] = True
        at = np.flatnonzero(wanted[ids])
        key = rows[at] * n_ids + ids[at]
        days = np.where(gap[at] < 0, np.inf, gap[at])
        value = np.zeros(len(at)) if values is None else values[at].astype(np.float64)
        order = np.lexsort((value, days, key))
        key, days, value = key[order], days[order], value[order]
        first = np.append(True, key[1:] != key[:-1]) if len(key) else np.zeros(0, bool)
        start = np.flatnonzero(first)
        return cls(
            key=key[start],
            size=np.diff(np.append(start, len(key))),
            of_event=np.cumsum(first) - 1,
            start=start,
            gap=days,
            value=value,
        )

    def put(self, out: Float32, column: int, chosen: tuple[int, ...], n_ids: int, statistic: Float64) -> None:
        """Write one number a group into the block of columns of the chosen ids."""
        place = np.full(n_ids, -1, np.int64)
        place[list(chosen)] = np.arange(len(chosen))
        row, code = np.divmod(self.key, n_ids)
        kept = (place[code] >= 0) & np.isfinite(statistic)
        out[row[kept], column + place[code[kept]]] = statistic[kept].astype(np.float32)

    def latest_gap(self) -> Float64:
        return self.gap[self.start]

    def last(self) -> Float64:
        latest = self.gap == self.gap[self.start][self.of_event]
        return self._sum(np.where(latest, self.value, 0.0)) / self._sum(latest.astype(np.float64))

    def mean(self) -> Float64:
        return self._sum(self.value) / self.size

    def slope(self) -> Float64:
        years = -self.gap / _DAYS_PER_YEAR
        years = years - (self._sum(years) / self.size)[self.of_event]
        spread = self._sum(years * years)
        moved = self._sum(years * (self.value - self.mean()[self.of_event]))
        several = self.gap[self.start] != self.gap[self.start + self.size - 1]
        return np.divide(moved, spread, out=np.zeros(len(self.size)), where=several)

    def course(self) -> tuple[Float64, ...]:
        """In the order of ``_COURSE``."""
        last = self.last()
        latest = self.gap == self.gap[self.start][self.of_event]
        earlier = np.flatnonzero(~latest)
        start_of, first = np.unique(self.of_event[earlier], return_index=True)
        before = np.full(len(self.size), np.nan)
        day_before = np.full(len(self.size), np.nan)
        day_before[start_of] = self.gap[earlier[first]]
        then = self.gap == day_before[self.of_event]
        number = self._sum(then.astype(np.float64))
        before = np.divide(self._sum(np.where(then, self.value, 0.0)), number, out=before, where=number > 0)
        lowest, highest = np.full(len(self.size), np.nan), np.full(len(self.size), np.nan)
        if len(self.start):
            lowest, highest = (f.reduceat(self.value, self.start) for f in (np.minimum, np.maximum))
        near = self.gap <= _RECENT
        number = self._sum(near.astype(np.float64))
        recent = np.full(len(self.size), np.nan)
        recent = np.divide(self._sum(np.where(near, self.value, 0.0)), number, out=recent, where=number > 0)
        return last - before, last - lowest, highest - last, recent

    def _sum(self, of_event: Float64) -> Float64:
        return np.bincount(self.of_event, weights=of_event, minlength=len(self.size)).astype(np.float64, copy=False)
