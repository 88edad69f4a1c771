"""The schema is fitted on training rows alone, and nothing that came later than a prediction reaches the network."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.omics import Modality
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.fit import InputConfig, fit_schema
from ican_ml.inputs.schema import InputSchema
from ican_ml.records.store import BIRTH, RecordStore, build_store, latest_rows

OUTCOMES = [("response", "binary"), ("os", "survival"), ("sensitivity", "regression")]
CONFIG = InputConfig(covariates=["indication", "line"], max_tokens=16, max_events=24, max_per_code=12)


def _with_events(
    store: RecordStore,
    subject_id: np.ndarray,
    time: np.ndarray,
    code: list[str],
    value: np.ndarray,
    without: np.ndarray,
) -> RecordStore:
    """The store with events added, and without any that the subjects ``without`` had."""
    owner = np.repeat(store.subject_id, np.diff(store.offsets))
    kept = ~np.isin(owner, without)
    codes, born = [*store.codes, BIRTH, *code], ~np.isnat(store.birth) & ~np.isin(store.subject_id, without)
    added = len(store.codes) + 1 + np.arange(len(code))
    n_more = int(born.sum()) + len(code)
    return build_store(
        subject_id=np.concatenate([owner[kept], store.subject_id[born], subject_id]),
        time=np.concatenate([store.time[kept], store.birth[born], time]),
        code=np.concatenate([store.code[kept], np.full(born.sum(), len(store.codes)), added]).astype(np.int64),
        value=np.concatenate([store.value[kept], np.full(born.sum(), np.nan), value]).astype(np.float32),
        unit=np.concatenate([store.unit[kept], np.zeros(n_more)]).astype(np.int64),
        codes=codes,
        units=store.units,
        parents=store.parents,
    )


def _doubled(modality: Modality, subjects: np.ndarray) -> Modality:
    """The modality with other values for some subjects."""
    theirs = np.isin(modality.subject_id, subjects)[modality.matrix.row_ids()]
    values = np.where(theirs, 3 * modality.matrix.values + 1, modality.matrix.values).astype(np.float32)
    return replace(modality, matrix=modality.matrix.with_values(values))


def test_subjects_that_are_not_trained_on_leave_no_trace(
    sim_cohort: Cohort, sim_records: RecordStore, sim_schema: InputSchema
) -> None:
    train = sim_cohort.episodes.filter(pl.col("split") == "train")
    others = np.setdiff1d(
        np.concatenate([sim_records.subject_id, *(m.subject_id for m in sim_cohort.modalities.values())]),
        train["subject_id"].to_numpy(),
    )
    assert len(others) > 20
    changed = replace(sim_cohort, modalities={n: _doubled(m, others) for n, m in sim_cohort.modalities.items()})
    store = _with_events(
        sim_records,
        np.repeat(others, 2),
        np.full(2 * len(others), np.datetime64("2001-01-01", "us")),
        ["A//NEW", "LAB//HGB"] * len(others),
        np.full(2 * len(others), 1e6),
        without=others,
    )
    schema = fit_schema(changed, store, train, CONFIG, outcomes=OUTCOMES)
    assert json.dumps(schema.to_json()) == json.dumps(sim_schema.to_json())


def test_nothing_after_the_prediction_reaches_the_network(
    sim_cohort: Cohort, sim_records: RecordStore, sim_schema: InputSchema, sim_states: CohortStates
) -> None:
    last = latest_rows(sim_states.subject_id, sim_states.prediction_time)
    subject, just_after = sim_states.subject_id[last], sim_states.prediction_time[last] + np.timedelta64(1, "us")
    store = _with_events(
        sim_records, subject, just_after, ["LAB//HGB"] * len(last), np.full(len(last), 99.0), without=np.empty(0)
    )
    assert store.offsets[-1] == sim_records.offsets[-1] + len(last)
    states = assemble(sim_cohort, store, sim_cohort.episodes, CONFIG.covariates)
    before = collate(encode(sim_schema, sim_states.patients), last)
    for name, values in collate(encode(sim_schema, states.patients), last).items():
        assert np.array_equal(values, before[name]), name


def test_json_keeps_every_bit(sim_schema: InputSchema) -> None:
    text = json.dumps(sim_schema.to_json())
    read = InputSchema.from_json(json.loads(text))
    assert json.dumps(read.to_json()) == text
    for mine, theirs in zip(sim_schema.modalities, read.modalities, strict=True):
        for name in ("mean", "inverse_sd", "rank_scale"):
            got, expected = getattr(theirs, name), getattr(mine, name)
            assert got.dtype == expected.dtype == np.float32
            assert np.array_equal(got, expected)
    assert (read.drug_id, read.gene_id, read.tasks) == (sim_schema.drug_id, sim_schema.gene_id, sim_schema.tasks)


@pytest.mark.parametrize("encoding", ["ican-inputs/0", None])
def test_another_encoding_is_refused(sim_schema: InputSchema, encoding: str | None) -> None:
    with pytest.raises(ValueError, match="expected encoding 'ican-inputs/1', got"):
        InputSchema.from_json({**sim_schema.to_json(), "encoding": encoding})


def test_statistics_are_those_of_the_training_samples(
    sim_cohort: Cohort, sim_records: RecordStore, sim_schema: InputSchema
) -> None:
    train = sim_cohort.episodes.filter(pl.col("split") == "train")
    states = assemble(sim_cohort, sim_records, train, [])
    for modality in sim_schema.modalities:
        rows = states.patients.omics[modality.name]
        dense = rows.matrix.to_scipy().toarray().astype(np.float64)
        if modality.kind == "count":
            dense = np.log1p(dense * 1e4 / np.maximum(dense.sum(axis=1, keepdims=True), 1e-9))
        dense[~modality.measured()[rows.panel]] = np.nan
        feature = np.flatnonzero((~np.isnan(dense)).any(axis=0))
        np.testing.assert_allclose(modality.mean[feature], np.nanmean(dense[:, feature], axis=0), atol=2e-5)


def test_a_rare_drug_has_no_identity(sim_cohort: Cohort, sim_schema: InputSchema) -> None:
    train = sim_cohort.episodes.filter(pl.col("split") == "train").explode("treatment")
    n_subjects = train.group_by("treatment").agg(pl.col("subject_id").n_unique()).rows()
    assert sim_schema.drugs == tuple(sorted(drug for drug, n in n_subjects if n >= CONFIG.min_subjects))


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (("pfs", "survival"), r"task 'pfs' \(survival\): .*pfs_time"),
        (("toxicity", "binary"), "task 'toxicity'"),
        (("nothing", "regression"), "task 'nothing': expected training episodes with a value"),
    ],
)
def test_an_outcome_that_cannot_be_fitted_is_refused(
    sim_cohort: Cohort, outcome: tuple[str, str], message: str
) -> None:
    episodes = sim_cohort.episodes.with_columns(pl.lit(None, pl.Float64).alias("nothing"))
    with pytest.raises(ValueError, match=message):
        fit_schema(sim_cohort, None, episodes, CONFIG, outcomes=[outcome])


def test_nonsense_in_the_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs\.max_events: expected a whole number of at least 1, got 0"):
        InputConfig(max_events=0)


def test_codes_that_nobody_has_are_refused(sim_cohort: Cohort, sim_records: RecordStore) -> None:
    with pytest.raises(ValueError, match=r"inputs\.codes: expected codes of the record, got \['LOB'\]"):
        fit_schema(sim_cohort, sim_records, sim_cohort.episodes, InputConfig(codes=["LOB"]), outcomes=[])


def test_a_covariate_that_is_a_date_or_a_list_is_refused(sim_cohort: Cohort) -> None:
    for name in ("prediction_time", "treatment"):
        with pytest.raises(ValueError, match=f"expected numbers or text, got '{name}'"):
            fit_schema(sim_cohort, None, sim_cohort.episodes, InputConfig(covariates=[name]), outcomes=[])
