"""Events of patients, and the vocabulary that turns their codes and values into numbers.

In: :class:`Events`, ragged over rows (one row = one patient at one prediction time). Out of :meth:`Vocabulary.encode`:
one id an event (0 = padding, 1 = unknown, known codes from 2) and a value normalised by (code, unit).

A code that is not in the vocabulary backs off to something more general, never to nothing (:func:`back_off`): along
its MEDS ``parent_codes``, then to the ICD-10 category or ATC level of its last part, then to its ``//`` prefixes.
Values stay with the code and unit they were measured in: one whose code backed off, or whose unit was not seen in
training, is passed on as "has no value". Statistics are medians and interquartile ranges, of training subjects only.

NumPy and the standard library only: a serving process runs this module. Codes follow MEDS 0.4
(https://github.com/Medical-Event-Data-Standard/meds), ICD-10 and the WHO ATC index.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

ENCODING = "ican-vocabulary"
VERSION = 2
PADDING, UNKNOWN, FIRST_KNOWN = 0, 1, 2
FAR = 5.0
_LIMIT = 15.0
_ATC = re.compile(r"[A-Z](\d{2}([A-Z]([A-Z](\d{2})?)?)?)?")
_ATC_LEVELS = (5, 4, 3, 1)
_ICD10 = re.compile(r"[A-Z]\d[0-9A-Z]\.?[0-9A-Z]{1,4}")

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """Events of some patients, flat; the events of row ``r`` are ``offsets[r]:offsets[r + 1]``.

    Order within a row: static events, then by time, then by code and value, so the source's order never matters.

    Attributes
    ----------
    offsets
        int64 [rows + 1].
    code, unit
        int32 [events]: positions in ``codes`` and ``units``; unit 0 is "", no unit.
    value
        float32 [events]; NaN = none.
    gap
        float32 [events]: days from the event to the prediction time, between whole minutes; -1 = static.
    age
        float32 [rows]: years at the prediction time; NaN = unknown.
    codes, units
        Distinct code and unit texts.
    parents
        Code to the codes above it (MEDS ``parent_codes``), where known.
    """

    offsets: Int64
    code: Int32
    value: Float32
    unit: Int32
    gap: Float32
    age: Float32
    codes: tuple[str, ...]
    units: tuple[str, ...] = ("",)
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_events = int(self.offsets[-1]) if len(self.offsets) else -1
        lengths = {name: len(getattr(self, name)) for name in ("code", "value", "unit", "gap")}
        if len(self.offsets) != self.n_rows + 1 or set(lengths.values()) != {n_events}:
            raise ValueError(
                f"events: expected rows + 1 offsets ending at the number of events, got {len(self.offsets)} offsets "
                f"ending at {n_events}, {self.n_rows} ages and {lengths}"
            )

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.age)

    def row_ids(self) -> Int64:
        """int64 [events]: the row of each event."""
        return np.repeat(np.arange(self.n_rows, dtype=np.int64), np.diff(self.offsets))

    def pieces(self) -> Iterator[Events]:
        """All rows, as a `Record` gives them."""
        yield self


class Record(Protocol):
    """Events of rows that come some rows at a time, again at every call: `Events` at once, histories from a store."""

    @property
    def n_rows(self) -> int: ...

    def pieces(self) -> Iterator[Events]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Known codes, how their values are normalised, and what stands above unknown ones.

    Attributes
    ----------
    codes
        The code with id ``i`` is ``codes[i - 2]``.
    normal
        (code, unit) to (centre, scale) of its values.
    parents
        Code to the codes above it. It may name codes that are not in ``codes``: they are how a rare code backs off.
    """

    codes: tuple[str, ...]
    normal: Mapping[tuple[str, str], tuple[float, float]]
    parents: Mapping[str, tuple[str, ...]]
    _id: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_id", {code: i for i, code in enumerate(self.codes, start=FIRST_KNOWN)})

    @property
    def n_ids(self) -> int:
        """Rows of a code embedding: padding, unknown, known codes."""
        return len(self.codes) + FIRST_KNOWN

    def id_of(self, code: str) -> int:
        """Id of a code, or of the nearest known one above it, or 1."""
        return self._id[code] if code in self._id else self._id_above(code, self.parents)

    def general_ids(self) -> Int64:
        """int64 [n_ids, depth]: the known ids above each, nearest first, then 1; shorter rows start again.

        Taking codes for unknown at random in training is what teaches a network the ids that new codes fall to.
        """
        lines = [[PADDING], [UNKNOWN]]
        for code in self.codes:
            above = [self._id[name] for name in back_off(code, self.parents) if name in self._id]
            lines.append([*above, UNKNOWN])
        depth = max(map(len, lines))
        return np.array([(line * depth)[:depth] for line in lines], dtype=np.int64)

    def encode(self, events: Events) -> tuple[Int64, Float32, Bool]:
        """Ids and normalised values of all events.

        Returns
        -------
        ids : int64 [events]
        values : float32 [events]
            ``(value - centre) / scale``, beyond +-5 its logarithm, within +-15; 0 where there is none.
        has_value : bool [events]
        """
        id_of_code = self._map_codes(events)
        ids = id_of_code[events.code]
        values = np.zeros(len(ids), np.float32)
        has_value = np.zeros(len(ids), bool)
        valued = np.flatnonzero(np.isfinite(events.value))
        pairs, pair = np.unique(pair_of(events, valued), return_inverse=True)
        names = ((events.codes[p // len(events.units)], events.units[p % len(events.units)]) for p in pairs.tolist())
        stats = np.array([self.normal.get(name, (np.nan, np.nan)) for name in names], np.float64).reshape(-1, 2)[pair]
        kept = ~np.isnan(stats[:, 0])
        valued, stats = valued[kept], stats[kept]
        scaled = (events.value[valued].astype(np.float64) - stats[:, 0]) / stats[:, 1]
        far = FAR + np.log(np.maximum(np.abs(scaled) / FAR, 1.0))
        scaled = np.where(np.abs(scaled) > FAR, np.sign(scaled) * np.minimum(far, _LIMIT), scaled)
        values[valued] = scaled.astype(np.float32)
        has_value[valued] = True
        return ids, values, has_value

    def coverage(self, events: Events) -> dict[str, float]:
        """How much of the events the vocabulary understands.

        Returns
        -------
        dict
            ``events`` and ``valued_events`` (counts); ``known``, ``backed_off`` and ``unknown`` (fractions of the
            events); ``values_kept`` and ``values_far`` (fractions of the valued events: normalised, and beyond +-5).
        """
        known = np.fromiter((code in self._id for code in events.codes), bool, len(events.codes))[events.code]
        ids, values, has_value = self.encode(events)
        n_events, n_valued = len(ids), int(np.isfinite(events.value).sum())
        return {
            "events": n_events,
            "known": float(known.sum()) / max(n_events, 1),
            "backed_off": float((~known & (ids != UNKNOWN)).sum()) / max(n_events, 1),
            "unknown": float((ids == UNKNOWN).sum()) / max(n_events, 1),
            "valued_events": n_valued,
            "values_kept": float(has_value.sum()) / max(n_valued, 1),
            "values_far": float((np.abs(values) >= FAR).sum()) / max(n_valued, 1),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` restores the same bits."""
        return {
            "encoding": ENCODING,
            "version": VERSION,
            "codes": list(self.codes),
            "normal": [[code, unit, centre, scale] for (code, unit), (centre, scale) in self.normal.items()],
            "parents": {code: list(above) for code, above in self.parents.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Vocabulary:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the document is of another kind or version.
        """
        found = (document.get("encoding"), document.get("version"))
        if found != (ENCODING, VERSION):
            raise ValueError(
                f"vocabulary: expected encoding {ENCODING!r} version {VERSION}, got {found[0]!r} version {found[1]!r}; "
                "export the bundle again with this version of ican_ml"
            )
        return cls(
            codes=tuple(document["codes"]),
            normal={(code, unit): (centre, scale) for code, unit, centre, scale in document["normal"]},
            parents={code: tuple(above) for code, above in document["parents"].items()},
        )

    def _map_codes(self, events: Events) -> Int64:
        """int64 [codes]: id of every code that occurs; the events' own hierarchy adds to the vocabulary's."""
        parents = self.parents if events.parents is self.parents else {**events.parents, **self.parents}
        ids = np.full(len(events.codes), UNKNOWN, np.int64)
        for position in np.flatnonzero(np.bincount(events.code, minlength=len(events.codes))).tolist():
            code = events.codes[position]
            ids[position] = self._id[code] if code in self._id else self._id_above(code, parents)
        return ids

    def _id_above(self, code: str, parents: Mapping[str, tuple[str, ...]]) -> int:
        return next((self._id[c] for c in back_off(code, parents) if c in self._id), UNKNOWN)


def back_off(code: str, parents: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Codes above ``code``, nearest first, each once: its parents and theirs, its own shorter forms, then theirs.

    >>> list(back_off("DX//C50.91", {"DX//C50.91": ("DISEASE//BREAST",)}))
    ['DISEASE//BREAST', 'DX//C50.9', 'DX//C50', 'DX//C', 'DX', 'DISEASE']
    """
    above: dict[str, None] = {code: None}

    def climb(name: str) -> None:
        above[name] = None
        queue = [name]
        for lower in queue:
            for higher in parents.get(lower, ()):
                if higher and higher not in above:
                    above[higher] = None
                    queue.append(higher)

    climb(code)
    for known in [code, *above]:
        for name in _shorter(known):
            if name not in above:
                climb(name)
    del above[code]
    yield from above


def _shorter(code: str) -> Iterator[str]:
    """More general forms in the text itself: ICD-10 categories or ATC levels of the last part, then ``//`` prefixes."""
    start = code.rfind("/") + 1
    head, last = code[:start], code[start:]
    if _ATC.fullmatch(last):
        yield from (head + last[:level] for level in _ATC_LEVELS if level < len(last))
    elif _ICD10.fullmatch(last):
        yield from (head + last[:end] for end in (*range(len(last) - 1, 2, -1), 1) if last[end - 1] != ".")
    parts = code.split("//")
    yield from ("//".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))


def pair_of(events: Events, at: Int64) -> Int64:
    """One integer for the (code, unit) of the events ``at``."""
    return events.code[at].astype(np.int64) * len(events.units) + events.unit[at]
