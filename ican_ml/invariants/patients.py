"""Patients invented from a schema to try its invariants on, and ways to change them. NumPy and the standard library.

Their records have what breaks code: several events at one time, static ones, codes and units that training did not
see, one record longer than the network takes, and one patient without anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.bundle.golden import NOW, invented_patients, times_of
from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.encode import OmicsRows, PatientStates
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.records.store import BIRTH, build_store, history
from ican_ml.records.vocabulary import Events

_DAY = np.timedelta64(86_400_000_000, "us")
_GAPS = (-1.0, 0.0, 1.0, 30.0, 400.0)
_MOST_SUBSETS = 32
Int64 = npt.NDArray[np.int64]


def draw_patients(schema: InputSchema, n: int = 7, seed: int = 0) -> PatientStates:
    """``n`` patients (at least 3): the first has nothing, the second one event, the third more than are kept."""
    states = invented_patients(schema, n, seed)
    if states.events is None:
        return states
    return replace(states, events=_events(schema, states.events, np.random.default_rng(seed)))


def _events(schema: InputSchema, template: Events, rng: np.random.Generator) -> Events:
    n = template.n_rows
    length = np.array([0, 1, schema.max_events + 9, *rng.integers(2, 14, n - 3)])
    n_events = int(length.sum())
    codes = (*template.codes, "no such code", f"{template.codes[0]}//below")
    units = (*template.units, "no such unit")
    code = rng.integers(0, len(codes), n_events)
    usual = dict(schema.vocabulary.normal) if schema.vocabulary else {}
    unit_of = {name: units.index(unit) for name, unit in usual}
    unit = np.array([unit_of.get(codes[c], len(units) - 1) for c in code], np.int32)
    events = Events(
        offsets=np.append(0, np.cumsum(length)).astype(np.int64),
        code=code.astype(np.int32),
        value=np.where(rng.random(n_events) < 0.7, rng.gamma(2.0, 20.0, n_events), np.nan).astype(np.float32),
        unit=unit,
        gap=rng.choice(_GAPS, n_events).astype(np.float32),
        age=template.age,
        codes=codes,
        units=units,
        parents=template.parents,
    )
    return through_source(events, np.arange(n_events))


def through_source(events: Events, order: Int64) -> Events:
    """The same events read from a source that lists them in ``order`` (a permutation of all events)."""
    born = np.flatnonzero(~np.isnan(events.age))
    birth = NOW - (events.age[born].astype(np.float64) * 365.25 * _DAY.astype(np.int64)).astype("timedelta64[us]")
    store = build_store(
        subject_id=np.concatenate([events.row_ids()[order], born]),
        time=np.concatenate([times_of(events)[order], birth]),
        code=np.concatenate([events.code[order].astype(np.int64), np.full(len(born), len(events.codes))]),
        value=np.concatenate([events.value[order], np.full(len(born), np.nan, np.float32)]),
        unit=np.concatenate([events.unit[order].astype(np.int64), np.zeros(len(born), np.int64)]),
        codes=(*events.codes, BIRTH),
        units=events.units,
        parents=events.parents,
    )
    return history(store, np.arange(events.n_rows), np.full(events.n_rows, NOW))


def take(states: PatientStates, rows: Sequence[int]) -> PatientStates:
    """Some of the patients, in the given order, repeats allowed."""
    chosen = np.asarray(rows, np.int64)
    events = states.events
    if events is not None:
        parts = [np.arange(events.offsets[row], events.offsets[row + 1]) for row in rows]
        events = _pick(events, np.concatenate(parts), [len(part) for part in parts], chosen)
    return PatientStates(
        omics={
            name: OmicsRows(matrix=part.matrix.take(chosen), panel=part.panel[chosen])
            for name, part in states.omics.items()
        },
        events=events,
        covariates={name: [values[row] for row in rows] for name, values in states.covariates.items()},
        regimens=[states.regimens[row] for row in rows],
    )


def _pick(events: Events, at: Int64, lengths: Sequence[int], rows: Int64) -> Events:
    """The events ``at`` as the records of ``rows``, so many each."""
    return replace(
        events,
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int64),
        code=events.code[at],
        value=events.value[at],
        unit=events.unit[at],
        gap=events.gap[at],
        age=events.age[rows],
    )


def one_token(states: PatientStates) -> PatientStates:
    """Of every record the first event, of every modality the first feature that is stored."""
    events = states.events
    if events is not None:
        kept = np.flatnonzero(np.diff(events.offsets) > 0)
        lengths = np.isin(np.arange(events.n_rows), kept).astype(int).tolist()
        events = _pick(events, events.offsets[kept], lengths, np.arange(events.n_rows))
    omics = {}
    for name, part in states.omics.items():
        matrix = part.matrix
        stored = np.diff(matrix.indptr) > 0
        first = matrix.indptr[:-1][stored]
        indptr = np.append(0, np.cumsum(stored)).astype(np.int64)
        omics[name] = replace(
            part, matrix=CSRBatch(indptr, matrix.indices[first], matrix.values[first], matrix.n_features)
        )
    return replace(states, omics=omics, events=events)


def without_events(events: Events) -> Events:
    """Records of which nothing is known, not even an age."""
    none = _pick(events, np.empty(0, np.int64), [0] * events.n_rows, np.arange(events.n_rows))
    return replace(none, age=np.full(events.n_rows, np.nan, np.float32))


def without_modalities(states: PatientStates, kept: Sequence[str]) -> PatientStates:
    """All modalities but the chosen ones as empty rows of assay number 0."""
    nobody = np.full(len(states.regimens), -1, np.int64)
    omics = {
        name: part if name in kept else OmicsRows(matrix=part.matrix.take(nobody), panel=np.zeros_like(part.panel))
        for name, part in states.omics.items()
    }
    return replace(states, omics=omics)


def subsets(schema: InputSchema) -> list[tuple[str, ...]]:
    """Every choice of modalities, the smallest first; of a great many, the first 32 and all but one each."""
    names = [modality.name for modality in schema.modalities]
    every = [chosen for size in range(len(names) + 1) for chosen in combinations(names, size)]
    return every if len(every) <= _MOST_SUBSETS else [*every[:_MOST_SUBSETS], *combinations(names, len(names) - 1)]


def extreme_patients(schema: InputSchema) -> PatientStates:
    """Patients that are as far out as the door lets pass.

    Every feature stored at 1e30, at -1e30 (continuous), some at 1e34 beside tiny ones, counts of 14,000; ages 0
    and 120, gaps of 100 years, record values of +-1e30; numeric covariates of +-1e30; all drugs at once.
    """
    n = 5
    numbers: list[object] = [1e30, -1e30, 0.0, 1e-30, None]
    everything = tuple(schema.drugs) or ("no such drug",)
    return PatientStates(
        omics={modality.name: _extreme_omics(modality) for modality in schema.modalities},
        events=_extreme_events(schema),
        covariates={c.name: numbers if c.categories is None else ["no such category"] * n for c in schema.covariates},
        regimens=[[everything, (), everything[:1]]] * n,
    )


def _extreme_omics(modality: ModalitySchema) -> OmicsRows:
    """Rows: nothing stored, 1e30, 1e34 beside tiny ones, -1e30, 14,000; each of the last assay."""
    n_features = len(modality.features)
    measured = np.flatnonzero(modality.measured()[-1])
    rows = np.zeros((4, len(measured)), np.float32)
    rows[0], rows[1], rows[2], rows[3] = 1e30, 1e-30, -1e30, 14_000
    rows[1, ::7] = 1e34
    if modality.kind == "binary":
        rows[:] = 1
    elif modality.kind == "count":
        rows = np.abs(rows)
    matrix = CSRBatch(
        np.append(0, np.arange(5) * len(measured)).astype(np.int64),
        np.tile(measured, 4).astype(np.int32),
        rows.ravel(),
        n_features,
    )
    return OmicsRows(matrix=matrix, panel=np.full(5, len(modality.panels), np.int64))


def _extreme_events(schema: InputSchema) -> Events | None:
    if schema.vocabulary is None:
        return None
    pairs = list(schema.vocabulary.normal) or [("no such code", "")]
    codes = tuple(sorted({code for code, _ in pairs}))
    units = tuple(sorted({"", *(unit for _, unit in pairs)}))
    code = np.array([codes.index(name) for name, _ in pairs], np.int32)
    unit = np.array([units.index(name) for _, name in pairs], np.int32)
    n, size = 5, len(pairs)
    values = np.repeat(np.array([1e30, -1e30, 0, 1e-30, np.nan], np.float32), size)
    gaps = np.repeat(np.array([0, 36_525, 36_525, -1, 1], np.float32), size)
    events = Events(
        offsets=np.arange(n + 1) * size,
        code=np.tile(code, n),
        value=values,
        unit=np.tile(unit, n),
        gap=gaps,
        age=np.array([0, 120, 1e-3, np.nan, 60], np.float32),
        codes=codes,
        units=units,
        parents=schema.vocabulary.parents,
    )
    return through_source(events, np.arange(len(events.code)))


def shuffled(document: Any, rng: np.random.Generator) -> Any:
    """The same dictionary with all keys and lists in another order."""
    if isinstance(document, dict):
        keys = list(document)
        return {keys[i]: shuffled(document[keys[i]], rng) for i in rng.permutation(len(keys))}
    if isinstance(document, list):
        return [shuffled(document[i], rng) for i in rng.permutation(len(document))]
    return document
