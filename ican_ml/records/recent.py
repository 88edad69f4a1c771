"""Which events of a history a network reads: the latest ones, of no code more than its share.

The rule, for a row of events (static first, then by time) and room for ``limit``: of each code only the latest
``per_code`` events count, so that one frequent laboratory test does not crowd out a history. Of what is left the static
events come first, in at most half of the room, and the latest events fill the rest.

:func:`recent` applies it to events in memory (NumPy; what serves one patient). :class:`RecordLoader` applies it to
ranges of a store of any size, batch by batch, and gives the same events; it needs Numba. A batch costs what it takes to
walk back over the events that it returns, whatever the length of the histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import NAT
from ican_ml.encoding.csr import row_pieces
from ican_ml.records.store import MICROSECONDS_PER_DAY, Histories, RecordStore
from ican_ml.records.vocabulary import Bool, Events, Int32, Int64, Vocabulary

_CHUNK = 1 << 22
_NEVER = np.iinfo(np.int32).max
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
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    kept: Bool = _later_of_code(row, ids, per_code) == _NEVER
    before = np.append(0, np.cumsum(kept))[offsets]
    length = np.diff(before)
    row, static = row[kept], static[kept]
    position = np.arange(len(row)) - before[:-1][row]
    n_static = np.minimum(np.bincount(row[static], minlength=len(length)), limit // 2)
    kept[kept] = (position < n_static[row]) | (position >= (length - limit + n_static)[row])
    return kept


def _later_of_code(group: Int64, ids: Int64, n: int) -> Int32:
    """int32 [events]: how far ahead the n-th later event of a group and code lies; the largest int32: nowhere."""
    order = np.lexsort((ids, group))
    later = np.full(len(ids), _NEVER, np.int32)
    if len(ids) > n:
        this, then = order[:-n], order[n:]
        same = (ids[this] == ids[then]) & (group[this] == group[then])
        later[this[same]] = (then - this)[same]
    return later


EVENT = np.dtype([("time", "<i8"), ("id", "<i4"), ("value", "<f4"), ("later", "<i4")], align=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedRecords:
    """A store's events as a vocabulary sees them, side by side: what a batch reads of a history lies in one place.

    Attributes
    ----------
    events
        `EVENT` [events]: time in microseconds; id; value, normalised, NaN = none; and how far ahead the event lies that
        makes this one too old for its code's share.
    """

    events: npt.NDArray[Any]

    @classmethod
    def of(cls, store: RecordStore, vocabulary: Vocabulary, per_code: int, folder: Path | None = None) -> CodedRecords:
        """Code all events of a store, some subjects at a time.

        Parameters
        ----------
        per_code
            See the module.
        folder
            Where they are to lie, memory-mapped; None: in memory.
        """
        coded = _array(folder, len(store.code))
        for first, last in row_pieces(store.offsets, _CHUNK):
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
            subject = np.repeat(np.arange(last - first), np.diff(store.offsets[first : last + 1]))
            coded["time"][part], coded["id"][part] = store.time[part].view(np.int64), found
            coded["value"][part] = np.where(has_value, normal, np.float32(np.nan))
            coded["later"][part] = _later_of_code(subject, found, per_code)
        return cls(events=coded)


class RecordLoader:
    """Padded batches of the histories of a store.

    Parameters
    ----------
    rows
        What is known of each patient.
    coded
        The store's events.
    limit
        Most events of a patient.
    """

    def __init__(self, rows: Histories, coded: CodedRecords, limit: int) -> None:
        from ican_ml.records.recent_kernel import gather

        self.coded, self.limit, self._gather = coded, limit, gather
        self._known = np.stack([rows.start, rows.stop, rows.now], axis=1)

    def batch(self, rows: Int64) -> Padded:
        """The events of some patients, in the order of time, static ones first; at least one column.

        Returns
        -------
        dict
            ``code`` int64, ``value``, ``has_value``, ``gap`` float32, each [rows, width]: code 0 and gap 0 are padding;
            gap in days before the prediction, -1 = static.
        """
        options = (self.limit, NAT, float(MICROSECONDS_PER_DAY))
        code, value, has_value, gap = self._gather(self.coded.events, self._known[rows], *options)
        return {"code": code, "value": value, "has_value": has_value, "gap": gap}


def _array(folder: Path | None, size: int) -> Any:
    if folder is None:
        return np.empty(size, EVENT)
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / "events.npy", mode="w+", dtype=EVENT, shape=(size,))
