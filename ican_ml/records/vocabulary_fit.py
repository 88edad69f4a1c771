"""Fits a vocabulary on training subjects, from a record of any size: which codes it knows, how values are normalised.

In: a :class:`~ican_ml.records.vocabulary.Record`. Out: a :class:`~ican_ml.records.vocabulary.Vocabulary`. In memory are
a piece of the record, and the values of those (code, unit) that enough subjects have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ican_ml.records.vocabulary import Bool, Events, Float32, Int64, Record, Vocabulary, back_off, pair_of

_SD_PER_IQR = 1.349


def fit_vocabulary(record: Record, min_subjects: int, only: Sequence[str] | None = None) -> Vocabulary:
    """Fit a vocabulary on training subjects.

    A code gets an id when at least ``min_subjects`` rows have it, or one below it: rare codes then back off to it. A
    (code, unit) is normalised when that many rows have a value of it, so that no statistic describes a few people.

    Parameters
    ----------
    record
        One row a training subject (its latest prediction time): rows are counted as subjects.
    min_subjects
        At least 1.
    only
        Codes to know, each with all below it (``LAB`` is ``LAB//HGB`` too); ``None`` = every code.

    Raises
    ------
    ValueError
        If ``min_subjects`` is below 1.
    """
    if min_subjects < 1:
        raise ValueError(f"min_subjects: expected a whole number of at least 1, got {min_subjects}")
    first = next(record.pieces())
    lineage = [(code, *back_off(code, first.parents)) for code in first.codes]
    names = sorted({name for line in lineage for name in line})
    position = {name: i for i, name in enumerate(names)}
    size = np.array([len(line) for line in lineage], np.int64)
    flat = np.array([position[name] for line in lineage for name in line], np.int64)
    subjects = np.zeros(len(names), np.int64)
    for events in record.pieces():
        seen = distinct(events.row_ids() * max(len(size), 1) + events.code)
        seen_row, seen_code = np.divmod(seen, max(len(size), 1))
        reached = distinct(np.repeat(seen_row, size[seen_code]) * max(len(names), 1) + flat[_expand(size, seen_code)])
        subjects += np.bincount(reached % max(len(names), 1), minlength=len(names))
    above = ("",) if only is None else tuple(f"{code}//" for code in only)
    codes = tuple(
        name
        for name, n in zip(names, subjects.tolist(), strict=True)
        if n >= min_subjects and f"{name}//".startswith(above)
    )
    return Vocabulary(codes=codes, normal=_fit_normal(record, first, set(codes), min_subjects), parents=first.parents)


def _fit_normal(
    record: Record, first: Events, codes: set[str], min_subjects: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Median and IQR / 1.349 by (code, unit)."""
    n_pairs = len(first.codes) * len(first.units)
    size, subjects = np.zeros(n_pairs, np.int64), np.zeros(n_pairs, np.int64)
    for events in record.pieces():
        pair, row, _ = _valued(events)
        size += np.bincount(pair, minlength=n_pairs)
        subjects += np.bincount(distinct(pair * events.n_rows + row) // max(events.n_rows, 1), minlength=n_pairs)
    known = np.array([code in codes for code in first.codes], bool).repeat(len(first.units))
    wanted = known & (subjects >= min_subjects) & (size > 0)
    start = np.cumsum(np.where(wanted, size, 0)) - np.where(wanted, size, 0)
    values, filled = np.empty(int(size[wanted].sum()), np.float32), start.copy()
    for events in record.pieces():
        pair, _, value = _valued(events)
        pair, value = pair[wanted[pair]], value[wanted[pair]]
        order = np.argsort(pair, kind="stable")
        each = np.bincount(pair, minlength=n_pairs)
        values[np.repeat(filled - (np.cumsum(each) - each), each) + np.arange(len(pair))] = value[order]
        filled += each
    normal: dict[tuple[str, str], tuple[float, float]] = {}
    for p in np.flatnonzero(wanted).tolist():
        code, unit = first.codes[p // len(first.units)], first.units[p % len(first.units)]
        measured = values[start[p] : start[p] + size[p]].astype(np.float64)
        q1, centre, q3 = np.quantile(measured, (0.25, 0.5, 0.75))
        scale = (q3 - q1) / _SD_PER_IQR
        normal[code, unit] = (float(centre), float(scale) if np.isfinite(scale) and scale > 0 else 1.0)
    return dict(sorted(normal.items()))


def _valued(events: Events) -> tuple[Int64, Int64, Float32]:
    """Pair (see `pair_of`), row and value of the events that have one."""
    at = np.flatnonzero(np.isfinite(events.value))
    return pair_of(events, at), events.row_ids()[at], events.value[at]


def distinct(keys: Int64) -> Int64:
    """The different ones, ascending: much faster than `numpy.unique`, which hashes them since NumPy 2.3."""
    keys = np.sort(keys)
    new: Bool = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return keys[new]


def _expand(size: Int64, groups: Int64) -> Int64:
    """Positions of the members of ``groups`` in a flat array whose group ``g`` holds ``size[g]`` entries."""
    start = np.cumsum(size) - size
    length = size[groups]
    first = np.repeat(start[groups] - (np.cumsum(length) - length), length)
    return first + np.arange(len(first), dtype=np.int64)
