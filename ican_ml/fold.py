"""One fold: a schema fitted on its training rows, every episode encoded, held-out episodes scored.

In: what every fold shares (:class:`Prepared`) and the rows of one split. Out: :class:`Fold`, and what is fitted on it.
A run (:mod:`ican_ml.pipeline`) and an audit (:mod:`ican_ml.audit`) go through the same lines.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ican_ml.cohort.cohort import Cohort, clocks_of
from ican_ml.cohort.split import Split
from ican_ml.config import RunConfig
from ican_ml.evaluation.baselines import BASELINES, BaselineConfig, fit_baselines
from ican_ml.evaluation.design import Design
from ican_ml.evaluation.outcome import Outcome
from ican_ml.inputs.answer import Float64, risk, summarise
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import EncodedPatients, Float32, Int64, encode
from ican_ml.inputs.fit import fit_schema, refit_tasks
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.records.lines import beside, therapy_lines
from ican_ml.records.recent import CodedRecords, RecordLoader
from ican_ml.records.store import RecordStore
from ican_ml.training.data import PatientData
from ican_ml.training.design import baseline_design
from ican_ml.training.landmarks import draw_landmarks
from ican_ml.training.loop import predict
from ican_ml.training.outcomes import loss_arrays, read_outcomes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Further:
    """Further training episodes, in columns of the cohort's own; ``weight`` [episodes] is what each counts in loss."""

    episodes: pl.DataFrame
    weight: Float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What every fold shares: nothing in it is fitted.

    ``stores`` is where the store lies, with room for more; ``further`` are episodes that only training may use.
    """

    cohort: Cohort
    store: RecordStore | None
    episodes: pl.DataFrame
    outcomes: dict[str, Outcome]
    splits: dict[str, Split]
    data_hash: str
    stores: Path | None = None
    further: Further | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """Every episode of the cohort as one fitted schema sees it."""

    schema: InputSchema
    states: CohortStates
    encoded: EncodedPatients

    def data(self, outcomes: dict[str, Outcome], *parts: Int64, weight: Float32 | None = None) -> list[PatientData]:
        """The patients of some episodes, with the outcomes of these episodes alone; one entry for each of ``parts``.

        ``weight`` [episodes] is what each counts in the loss; 1 if not given.
        """
        arrays: dict[str, Any] = {}
        for task in self.schema.tasks:
            arrays |= loss_arrays(task, outcomes[task.name], self.states)
            if weight is not None:
                placed = arrays[f"{task.name}_weight"]
                each = weight if placed.ndim == 2 else weight[:, None]
                placed[self.states.patient, self.states.slot] *= each
        data = PatientData(encoded=self.encoded, outcomes=arrays, rows=np.arange(self.encoded.n_rows))
        return [data.of_episodes(self.states.patient[rows], self.states.slot[rows]) for rows in parts]


def further_episodes(
    config: RunConfig, cohort: Cohort, store: RecordStore | None, outcomes: dict[str, Outcome]
) -> Further | None:
    """Lines of therapy beside the episodes, and landmarks of the episodes, as far as the configuration asks for them.

    Where it asks for few subjects or some indications, only of those who have an episode among these.

    Raises
    ------
    ValueError
        If there are to be landmarks of a survival outcome whose days do not count from ``prediction_time``.
    """
    found: list[tuple[pl.DataFrame, float]] = []
    lines, landmarks = config.cohort.lines, config.cohort.landmarks
    if lines.start is not None and store is not None:
        every = therapy_lines(
            store,
            start=lines.start,
            window=lines.window,
            horizon=lines.horizon,
            outcome=lines.outcome,
            time=lines.time,
        )
        found.append((beside(every, cohort.episodes, lines.window), lines.weight))
        _log.info("%d lines of therapy in the records beside the episodes", len(found[-1][0]))
    if landmarks.per_episode:
        _check_clocks(cohort, outcomes)
        drawn = draw_landmarks(
            cohort.episodes,
            outcomes,
            per_episode=landmarks.per_episode,
            horizon=landmarks.horizon,
            seed=config.seed,
        )
        found.append((drawn, landmarks.weight))
        _log.info("%d landmarks of the episodes", len(drawn))
    if not found:
        return None
    if config.cohort.indications is not None or config.split.train_subjects is not None:
        known = cohort.episodes["subject_id"].unique()
        found = [(rows.filter(rows["subject_id"].is_in(known)), weight) for rows, weight in found]
    episodes = pl.concat([rows for rows, _ in found], how="diagonal")
    return Further(
        episodes=episodes if config.inputs.treatments else without_treatments(episodes),
        weight=np.concatenate([np.full(len(rows), weight, np.float32) for rows, weight in found]),
    )


def without_treatments(episodes: pl.DataFrame) -> pl.DataFrame:
    """The same episodes, each asked about no treatment in particular."""
    return episodes.with_columns(treatment=pl.lit([], episodes.schema["treatment"]))


def _check_clocks(cohort: Cohort, outcomes: dict[str, Outcome]) -> None:
    clocks = clocks_of(cohort.meta)
    other = [
        f"{name} from {clocks[name]}"
        for name, outcome in outcomes.items()
        if outcome.kind == "survival" and clocks.get(name, "prediction_time") != "prediction_time"
    ]
    if other:
        raise ValueError(
            f"cohort.landmarks: expected survival outcomes that count from prediction_time, got {', '.join(other)} "
            "(cohort.json, clocks); set cohort.landmarks.per_episode=0"
        )


def with_further(prepared: Prepared, split: Split) -> tuple[Prepared, Split, Float32]:
    """Own and further episodes together, the split that trains on both, and the weight [episodes] of each in the loss.

    Further episodes of a subject that the split tunes on, validates on or leaves out are dropped.
    """
    own = prepared.episodes["subject_id"].to_numpy()
    weight = np.ones(len(own), np.float32)
    if prepared.further is None:
        return prepared, split, weight
    further = prepared.further.episodes
    others = own[np.concatenate([split.tuning, split.held_out, split.left_out])]
    usable = ~np.isin(further["subject_id"].to_numpy(), others)
    episodes = pl.concat([prepared.episodes, further.filter(usable)], how="diagonal")
    outcomes = read_outcomes(episodes, {name: outcome.kind for name, outcome in prepared.outcomes.items()})
    return (
        replace(prepared, episodes=episodes, outcomes=outcomes, further=None),
        replace(split, train=np.concatenate([split.train, np.arange(len(own), len(episodes))])),
        np.concatenate([weight, prepared.further.weight[usable]]),
    )


def fit_fold(config: RunConfig, prepared: Prepared, split: Split, pretrained: InputSchema | None = None) -> Fold:
    """Fit the schema on the training episodes, of a pretrained one the tasks alone, then encode all."""
    outcomes = [(o.name, o.kind.value) for o in config.task.outcomes]
    train = prepared.episodes[split.train]
    if pretrained is not None:
        return encode_fold(config, prepared, refit_tasks(pretrained, train, config.inputs, outcomes=outcomes))
    schema = fit_schema(
        prepared.cohort, prepared.store, train, config.inputs, outcomes=outcomes, backend=config.encoding.choice
    )
    return encode_fold(config, prepared, schema)


def encode_fold(config: RunConfig, prepared: Prepared, schema: InputSchema) -> Fold:
    """Encode all episodes under a schema that was fitted before."""
    states = assemble(prepared.cohort, prepared.store, prepared.episodes, config.inputs.covariates, lay_out=False)
    loader = None
    if states.histories is not None and schema.vocabulary is not None:
        coded = CodedRecords.of(states.histories.store, schema.vocabulary, prepared.stores)
        loader = RecordLoader(states.histories, coded, schema.max_events, schema.max_per_code)
    encoded = encode(schema, states.patients, backend=config.encoding.choice, loader=loader)
    return Fold(schema=schema, states=states, encoded=encoded)


def indication_of(episodes: pl.DataFrame, states: CohortStates) -> npt.NDArray[np.str_]:
    """Of every patient state: that of one of its episodes, "" where none is known."""
    found = np.full(len(states.subject_id), "", dtype=object)
    if "indication" in episodes.columns:
        found[states.patient] = episodes["indication"].cast(pl.String).fill_null("").to_numpy()
    return found.astype(str)


def network_scores(network: PatientTransformer, fold: Fold, rows: Int64) -> dict[str, Float64]:
    """By task, float64 [rows]: a probability, a risk (higher is worse), or a value."""
    states = fold.states
    patients = np.unique(states.patient[rows])
    outputs = predict(network, fold.encoded, patients)
    place = np.searchsorted(patients, states.patient[rows])
    scores: dict[str, Float64] = {}
    for task in fold.schema.tasks:
        output = outputs[task.name][place, states.slot[rows]]
        scores[task.name] = risk(output) if task.kind == "survival" else summarise(task, output)
    return scores


def baseline_scores(
    config: RunConfig, prepared: Prepared, fold: Fold, split: Split, names: tuple[str, ...] = BASELINES
) -> dict[str, dict[str, Float64]]:
    """By task and baseline, scores of the held-out episodes from what the network sees; fitted on the other ones."""
    design = baseline_design(fold.schema, fold.encoded, fold.states, prepared.episodes)
    return {name: fit_on(config, design, outcome, split, names) for name, outcome in prepared.outcomes.items()}


def fit_on(
    config: RunConfig, design: Design, outcome: Outcome, split: Split, names: tuple[str, ...] = BASELINES
) -> dict[str, Float64]:
    """By baseline, scores of the held-out episodes of one outcome from a design, fitted on the other episodes."""
    return fit_baselines(
        design,
        outcome,
        split.train,
        split.tuning,
        split.held_out,
        seed=config.seed,
        threads=torch.get_num_threads(),
        config=BaselineConfig(names=names),
    )
