"""The event store: records of all subjects as flat arrays, and the history of many patients cut at many times.

In: events in any order (:func:`build_store`; :mod:`ican_ml.records.meds` reads them from disk). Out:
:class:`RecordStore`, and by :func:`histories` one row a (subject, prediction time), with nothing later than that time.
NumPy and the standard library only: serving sends one patient through the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import NAT, end_of_known, find_subjects
from ican_ml.encoding.csr import row_pieces
from ican_ml.records.vocabulary import Bool, Events, Float32, Int32, Int64

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
MINUTE, MINUTES_PER_DAY = 60_000_000, 1440  # the former in microseconds
PIECE_EVENTS = 1 << 22
_DAYS_PER_YEAR = 365.25
Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordStore:
    """Events of all subjects, flat; those of ``subject_id[s]`` are ``offsets[s]:offsets[s + 1]``.

    Sorted by subject, time (static first), code, value and unit, whatever the order of the source. Arrays may be
    memory-mapped (:mod:`ican_ml.records.build`).

    Attributes
    ----------
    subject_id
        int64 [n], ascending; subjects without events included.
    offsets
        int64 [n + 1].
    time
        datetime64[us] [events], without timezone; NaT = static.
    code, unit
        int32 [events]: positions in ``codes`` (sorted) and ``units`` (position 0 is "", no unit).
    value
        float32 [events]; NaN = none.
    birth, death
        datetime64[us] [n], NaT = unknown: ``MEDS_BIRTH`` and ``MEDS_DEATH``, which are not among the events.
    parents
        Code to the codes above it.
    """

    subject_id: Int64
    offsets: Int64
    time: Times
    code: Int32
    value: Float32
    unit: Int32
    birth: Times
    death: Times
    codes: tuple[str, ...]
    units: tuple[str, ...]
    parents: Mapping[str, tuple[str, ...]]


def build_store(
    *,
    subject_id: Int64,
    time: Times,
    code: Int64,
    value: Float32,
    unit: Int64,
    codes: Sequence[str],
    units: Sequence[str],
    parents: Mapping[str, tuple[str, ...]],
) -> RecordStore:
    """Sort events of any order into a store.

    Parameters
    ----------
    subject_id, time, value
        One entry an event; NaT = static, NaN = no value.
    code, unit
        Positions in ``codes`` and ``units``, which may be in any order.
    """
    sorted_codes, sorted_units = sorted(set(codes)), sorted({"", *units})
    code, unit = _renumber(codes, sorted_codes, code), _renumber(units, sorted_units, unit)
    value = np.where(np.isfinite(value), value, np.float32(np.nan)).astype(np.float32) + np.float32(0)
    moment = time.astype("datetime64[us]").view(np.int64)
    subjects, subject = np.unique(subject_id, return_inverse=True)
    is_birth, is_death = (np.array([_is(name, c) for c in sorted_codes], bool)[code] for name in (BIRTH, DEATH))
    at = np.flatnonzero(~(is_birth | is_death))
    at = at[np.lexsort((unit[at], value[at], code[at], moment[at], subject[at]))]
    return RecordStore(
        subject_id=subjects.astype(np.int64),
        offsets=np.searchsorted(subject[at], np.arange(len(subjects) + 1)).astype(np.int64),
        time=moment[at].view("datetime64[us]"),
        code=code[at].astype(np.int32),
        value=value[at],
        unit=unit[at].astype(np.int32),
        birth=_earliest(len(subjects), subject, moment, is_birth),
        death=_earliest(len(subjects), subject, moment, is_death),
        codes=tuple(sorted_codes),
        units=tuple(sorted_units),
        parents=parents,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Histories:
    """What of a store was known of some patients at some times: rows of ranges, whose events are read when asked for.

    Attributes
    ----------
    store
        The records.
    start, stop
        int64 [rows]: the events known, static ones first, then by time.
    now
        int64 [rows]: microseconds; the prediction time, or the latest event's where there is none.
    age
        float32 [rows]: years at that time; NaN without a birth or before it.
    """

    store: RecordStore
    start: Int64
    stop: Int64
    now: Int64
    age: Float32

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.start)

    def pieces(self) -> Iterator[Events]:
        """The events of all rows, some rows at a time; at least one piece."""
        offsets = np.append(0, np.cumsum(self.stop - self.start))
        for first, last in row_pieces(offsets, PIECE_EVENTS) or [(0, 0)]:
            yield self.events(slice(first, last))

    def events(self, rows: slice = slice(None)) -> Events:
        """The events of a range of rows. An event before birth is kept."""
        start, now, store = self.start[rows], self.now[rows], self.store
        length = self.stop[rows] - start
        offsets = np.append(0, np.cumsum(length)).astype(np.int64)
        at = np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1], dtype=np.int64)
        moment = store.time.view(np.int64)[at]
        gap = (np.repeat(now // MINUTE, length) - moment // MINUTE) / MINUTES_PER_DAY
        return Events(
            offsets=offsets,
            code=store.code[at],
            value=store.value[at],
            unit=store.unit[at],
            gap=np.where(moment == NAT, -1.0, gap).astype(np.float32),
            age=self.age[rows],
            codes=store.codes,
            units=store.units,
            parents=store.parents,
        )


def histories(store: RecordStore, subject_id: Int64, prediction_time: Times) -> Histories:
    """What is known at each prediction time: static events, and dated ones at or before it.

    Parameters
    ----------
    store
        The records.
    subject_id
        int64 [rows]; a subject that the store does not know has no events.
    prediction_time
        datetime64 [rows], inclusive. NaT = no limit; gap and age then count from the subject's latest event.
    """
    subject, found = find_subjects(store.subject_id, np.asarray(subject_id, np.int64))
    limit = prediction_time.astype("datetime64[us]").view(np.int64)
    moment = store.time.view(np.int64)
    if not len(store.subject_id):
        start = stop = np.zeros(len(limit), np.int64)
    else:
        start = np.asarray(store.offsets[subject])
        stop = np.where(found, end_of_known(moment, start, store.offsets[subject + 1], limit), start)
    latest = np.full(len(limit), NAT)
    latest[stop > start] = moment[stop[stop > start] - 1]
    now = np.where(limit == NAT, latest, limit)
    return Histories(store=store, start=start, stop=stop, now=now, age=_age(store, subject, found, now))


def history(store: RecordStore, subject_id: Int64, prediction_time: Times) -> Events:
    """The events of :func:`histories`, one row a query."""
    return histories(store, subject_id, prediction_time).events()


def latest_rows(subject_id: Int64, prediction_time: Times) -> Int64:
    """int64 [subjects]: the row with the latest prediction time of each subject (NaT is the latest), ascending."""
    moment = prediction_time.astype("datetime64[us]").view(np.int64)
    order = np.lexsort((np.where(moment == NAT, np.iinfo(np.int64).max, moment), subject_id))
    last = np.append(subject_id[order][1:] != subject_id[order][:-1], True) if len(order) else np.zeros(0, bool)
    return np.sort(order[last])


def _renumber(old: Sequence[str], new: list[str], positions: Int64) -> Int64:
    position = {name: i for i, name in enumerate(new)}
    return np.array([position[name] for name in old], np.int64)[positions]


def is_birth_or_death(codes: Sequence[str]) -> Bool:
    """bool [codes]: which stand for a subject's birth or death, and not for an event."""
    return np.array([_is(BIRTH, code) or _is(DEATH, code) for code in codes], bool)


def _is(name: str, code: str) -> bool:
    return code == name or code.startswith(f"{name}//")


def _earliest(n_subjects: int, subject: Int64, moment: Int64, chosen: Bool) -> Times:
    """datetime64[us] [subjects]: earliest dated event of the chosen ones; NaT = none."""
    at = np.flatnonzero(chosen & (moment != NAT))
    earliest = np.full(n_subjects, np.iinfo(np.int64).max)
    np.minimum.at(earliest, subject[at], moment[at])
    return np.where(earliest == np.iinfo(np.int64).max, NAT, earliest).view("datetime64[us]")


def _age(store: RecordStore, subject: Int64, found: Bool, now: Int64) -> Float32:
    """Years from birth; NaN where the birth or the time is unknown, or the time lies before the birth."""
    age = np.full(len(now), np.nan)
    if len(store.subject_id):
        birth = store.birth.view(np.int64)[subject]
        known = found & (birth != NAT) & (now != NAT) & (now >= birth)
        age[known] = (now[known] - birth[known]) / (MINUTE * MINUTES_PER_DAY * _DAYS_PER_YEAR)
    return age.astype(np.float32)
