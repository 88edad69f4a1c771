"""Bookkeeping: how much of an outcome the mere number and timing of past events tells.

In: a prepared cohort. Out: scores of held-out episodes from columns that know no code, no value, no omics and no
treatment, and the same from the indication alone. A source that was cut (the first fifty rows of each table, one
hospital's visits) writes itself into such columns, and into outcomes that were made from the same tables: a model then
predicts the cut. Bookkeeping may also be medicine, for the sick are seen more often; it is a reason to look.

Columns of an episode, from events and samples at or before its prediction time (logarithms of 1 + n):

- events in the last 30, 90 and 365 days and ever, static events
- days since the first and the last event, and between them; NaN where there is none
- distinct days, distinct codes, the largest count of one code
- whether a table had reached its cap (:func:`find_caps`), and how many had
- samples of each modality
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ican_ml.cohort.asof import end_of_known, find_subjects
from ican_ml.config import RunConfig
from ican_ml.evaluation.baselines import BASELINES, fit_baselines
from ican_ml.evaluation.design import Design
from ican_ml.evaluation.outcome import FloatArray, IntArray
from ican_ml.fold import Prepared
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.records.caps import Cap, code_groups, find_caps
from ican_ml.results import episode_labels

if TYPE_CHECKING:
    from ican_ml.cohort.cohort import Modality
    from ican_ml.cohort.split import Split
    from ican_ml.records.vocabulary import Events

INDICATION, BOOKKEEPING = "indication alone", "bookkeeping alone"
_WINDOWS = (30, 90, 365)


def bookkeeping_scores(
    config: RunConfig, prepared: Prepared, split: Split, *, threads: int
) -> tuple[dict[tuple[str, str, str], FloatArray], list[Cap]]:
    """Scores of the held-out episodes by (outcome, information, baseline), and the caps found in training subjects."""
    states = assemble(prepared.cohort, prepared.store, prepared.episodes, [])
    assert prepared.store is not None
    caps = find_caps(prepared.store, np.unique(prepared.episodes["subject_id"].to_numpy()[split.train]))
    columns = bookkeeping_columns(states, list(prepared.cohort.modalities.values()), caps)
    rows = len(prepared.episodes)
    nothing = Design(
        omics={},
        patient=np.zeros(rows, np.int64),
        regimen=np.zeros((rows, 0), np.float32),
        summary=np.zeros((rows, 0), np.float32),
        groups=np.zeros(rows, "<U1"),
    )
    groups = episode_labels(prepared.episodes, np.arange(rows)).get("indication", nothing.groups)
    designs = {INDICATION: replace(nothing, groups=groups), BOOKKEEPING: replace(nothing, summary=columns)}
    scores: dict[tuple[str, str, str], FloatArray] = {}
    for name, outcome in prepared.outcomes.items():
        for information, design in designs.items():
            if information == INDICATION and len(np.unique(groups)) == 1:
                found = dict.fromkeys(BASELINES, np.full(len(split.held_out), 0.5))
            else:
                parts = (split.train, split.tuning, split.held_out)
                found = fit_baselines(design, outcome, *parts, seed=config.seed, threads=threads)
            scores |= {(name, information, baseline): values for baseline, values in found.items()}
    return scores, caps


def bookkeeping_columns(states: CohortStates, modalities: list[Modality], caps: list[Cap]) -> NDArray[np.float32]:
    """float32 [episodes, columns]: the columns of the module's docstring."""
    events = states.patients.events
    assert events is not None
    columns = [*_event_columns(events), *_cap_columns(events, caps)]
    columns += [np.log1p(_samples(modality, states)) for modality in modalities]
    return np.stack(columns, axis=1).astype(np.float32)[states.patient]


def _event_columns(events: Events) -> list[FloatArray]:
    rows, n_rows = events.row_ids(), events.n_rows

    def number(chosen: IntArray | NDArray[np.bool_]) -> FloatArray:
        return np.log1p(np.bincount(rows[chosen], minlength=n_rows))

    dated = events.gap >= 0
    first, last = np.full(n_rows, -np.inf), np.full(n_rows, np.inf)
    np.maximum.at(first, rows[dated], events.gap[dated])
    np.minimum.at(last, rows[dated], events.gap[dated])
    seen = np.isfinite(first)
    first, last = np.where(seen, first, np.nan), np.where(seen, last, np.nan)
    days = _distinct(rows[dated], np.floor(events.gap[dated]).astype(np.int64))[0]
    of_code, times = _distinct(rows, events.code.astype(np.int64))
    largest = np.zeros(n_rows)
    np.maximum.at(largest, of_code, times)
    return [
        *(number(dated & (events.gap <= window)) for window in _WINDOWS),
        number(dated),
        number(~dated),
        np.log1p(first),
        np.log1p(last),
        np.log1p(first - last),
        np.log1p(np.bincount(days, minlength=n_rows)),
        np.log1p(np.bincount(of_code, minlength=n_rows)),
        np.log1p(largest),
    ]


def _cap_columns(events: Events, caps: list[Cap]) -> list[FloatArray]:
    if not caps:
        return []
    rows, groups = events.row_ids(), code_groups(events.codes)
    reached = []
    for cap in caps:
        count = np.bincount(rows[groups[cap.group][events.code] & (events.gap >= 0)], minlength=events.n_rows)
        reached.append((count >= cap.events).astype(np.float64))
    return [*reached, np.sum(reached, axis=0)]


def _samples(modality: Modality, states: CohortStates) -> IntArray:
    """int64 [patients]: samples taken at or before the prediction time, undated ones included."""
    moment = modality.sample_time.astype("datetime64[us]").view(np.int64)
    order = np.lexsort((moment, modality.subject_id))
    subjects, first = np.unique(modality.subject_id[order], return_index=True)
    position, found = find_subjects(subjects, states.subject_id)
    if not len(subjects):
        return np.zeros(len(found), np.int64)
    start, stop = first[position], np.append(first[1:], len(order))[position]
    limit = states.prediction_time.astype("datetime64[us]").view(np.int64)
    return np.where(found, end_of_known(moment[order], start, stop, limit) - start, 0)


def _distinct(rows: IntArray, what: IntArray) -> tuple[IntArray, IntArray]:
    """The row of every distinct (row, what), and how often it occurs."""
    width = int(what.max(initial=0)) + 1
    pairs, times = np.unique(rows * width + what, return_counts=True)
    return pairs // width, times
