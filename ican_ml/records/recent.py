"""Which events of a history a network reads: the latest ones, of no code more than its share.

The rule, for a row of events (static first, then by time) and room for ``limit``: of each code only the latest
``per_code`` dated events count, and the first ``per_code`` static ones, so that one frequent laboratory test does not
crowd out a history. The latest dated events fill the room but for what static events take of its half; those come
first, and get what the others leave.

:func:`recent` applies it to events in memory (NumPy; what serves one patient). :class:`RecordLoader` applies it to
ranges of a store of any size, batch by batch, and gives the same events; it needs Numba. A batch costs what it takes to
walk back over the events that it returns, whatever the length of the histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import NAT
from ican_ml.encoding.csr import row_pieces
from ican_ml.records.store import MINUTE, PIECE_EVENTS, Histories, RecordStore
from ican_ml.records.vocabulary import Bool, Events, Int64, Vocabulary

Padded = dict[str, npt.NDArray[Any]]


def recent(offsets: Int64, ids: Int64, static: Bool, limit: int, per_code: int) -> Bool:
    """Which events the rule keeps.

    Parameters
    ----------
    offsets
        int64 [rows + 1].
    ids
        int64 [events]: codes after the vocabulary.
    static
        bool [events].
    limit, per_code
        At least 1.

    Returns
    -------
    bool [events]
    """
    n_rows = len(offsets) - 1
    row = np.repeat(np.arange(n_rows), np.diff(offsets))
    order = np.lexsort((np.where(static, 1, -1) * np.arange(len(ids)), ids, static, row))
    kept = np.empty(len(ids), bool)
    kept[order] = _place(2 * row[order] + static[order], ids[order]) < per_code
    n_static, n_dated = (np.bincount(row[kept & part], minlength=n_rows) for part in (static, ~static))
    n_dated = np.minimum(n_dated, limit - np.minimum(n_static, limit // 2))
    n_static = np.minimum(n_static, limit - n_dated)
    place = np.cumsum(kept) - 1  # among the kept; of a row's dated ones, then counted from its end
    bounds = np.append(0, np.cumsum(kept))[offsets]
    latest: Bool = np.where(static, place - bounds[row] < n_static[row], bounds[row + 1] - place <= n_dated[row])
    return kept & latest


def _place(group: Int64, ids: Int64) -> Int64:
    """int64 [events]: how many of its group and id lie before each, where those lie together."""
    new = np.append(True, (np.diff(group) != 0) | (np.diff(ids) != 0))[: len(ids)]
    start = np.flatnonzero(new)
    return np.arange(len(ids)) - np.repeat(start, np.diff(np.append(start, len(ids))))


EVENT = np.dtype([("minute", "<i4"), ("id", "<i4"), ("value", "<f4")])
ROW = np.dtype([("start", "<i8"), ("dated", "<i8"), ("stop", "<i8"), ("now", "<i4"), ("age", "<f4")])


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedRecords:
    """A store's events as a vocabulary sees them, side by side: what a batch reads of a history lies in one place.

    Attributes
    ----------
    events
        `EVENT` [events]: minute; id; value, normalised, NaN = none. The minute of a static event means nothing.
    n_ids
        Of the vocabulary.
    """

    events: npt.NDArray[Any]
    n_ids: int

    @classmethod
    def of(cls, store: RecordStore, vocabulary: Vocabulary, folder: Path | None = None) -> CodedRecords:
        """Code all events of a store, some subjects at a time.

        Parameters
        ----------
        folder
            Where they are to lie, memory-mapped, in a file without a name that goes with its user; None: in memory.
        """
        coded = _array(folder, len(store.code))
        for first, last in row_pieces(store.offsets, PIECE_EVENTS):
            part = slice(int(store.offsets[first]), int(store.offsets[last]))
            events = Events(
                offsets=np.array([0, part.stop - part.start]),
                code=store.code[part],
                value=store.value[part],
                unit=store.unit[part],
                gap=np.zeros(part.stop - part.start, np.float32),
                age=np.zeros(1, np.float32),
                codes=store.codes,
                units=store.units,
                parents=store.parents,
            )
            found, normal, has_value = vocabulary.encode(events)
            coded["minute"][part], coded["id"][part] = store.time[part].view(np.int64) // MINUTE, found
            coded["value"][part] = np.where(has_value, normal, np.float32(np.nan))
        return cls(events=coded, n_ids=vocabulary.n_ids)


class RecordLoader:
    """Padded batches of the histories of a store.

    Parameters
    ----------
    rows
        What is known of each patient.
    coded
        The store's events.
    limit, per_code
        Most events of a patient, and of one code.
    """

    def __init__(self, rows: Histories, coded: CodedRecords, limit: int, per_code: int) -> None:
        from ican_ml.records.recent_kernel import gather

        self.record, self.coded, self._limits, self._gather = rows, coded, (limit, per_code), gather
        self._known = np.empty(len(rows.start), ROW)
        columns = {"start": rows.start, "dated": _first_dated(rows), "stop": rows.stop, "now": rows.now // MINUTE}
        for name, column in (columns | {"age": np.nan_to_num(rows.age, nan=0.0)}).items():
            self._known[name] = column

    def batch(self, rows: Int64) -> Padded:
        """The events of some patients, in the order of time, static ones first; at least one column.

        Returns
        -------
        dict
            ``code`` int64, ``value``, ``has_value``, ``gap``, ``age`` float32, each [rows, width]: code 0 and zeros are
            padding; gap in days before the prediction, -1 = static; age in years, 0 = unknown.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self._known):
            raise IndexError(
                f"rows: expected numbers from 0 to {len(self._known) - 1}, got {rows.min()} to {rows.max()}"
            )
        found = self._gather(self.coded.events, self._known, rows, *self._limits, self.coded.n_ids)
        return dict(zip(("code", "value", "has_value", "gap", "age"), found, strict=True))

    def lengths(self) -> Int64:
        """int64 [rows]: events of each patient, at most."""
        found: Int64 = np.minimum(self.record.stop - self.record.start, self._limits[0])
        return found

    def __reduce__(self) -> tuple[type[RecordLoader], tuple[Histories, CodedRecords, int, int]]:
        return RecordLoader, (self.record, self.coded, *self._limits)


def _first_dated(rows: Histories) -> Int64:
    """int64 [rows]: where the static events of each end."""
    at, moment = rows.start.copy(), rows.store.time.view(np.int64)
    row = np.flatnonzero(at < rows.stop)
    while row.size:
        row = row[moment[at[row]] == NAT]
        at[row] += 1
        row = row[at[row] < rows.stop[row]]
    return at


def _array(folder: Path | None, size: int) -> npt.NDArray[Any]:
    if folder is None or not size:
        return np.empty(size, EVENT)
    with TemporaryFile(dir=folder) as file:
        return np.memmap(file, EVENT, "w+", shape=(size,))
