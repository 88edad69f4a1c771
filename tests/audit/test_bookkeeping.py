"""Bookkeeping sees when and how often, never what; a cut and a planted artefact are named."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ican_ml.audit.audit import DIFFERENCE, FULL, Audit, audit_bookkeeping, audit_cohort
from ican_ml.audit.bookkeeping import BOOKKEEPING, INDICATION, bookkeeping_columns
from ican_ml.cohort.asof import NAT
from ican_ml.cohort.split import split_episodes
from ican_ml.config import EvaluationConfig, Kind, OutcomeConfig, RunConfig, TaskConfig
from ican_ml.fold import Prepared
from ican_ml.inputs.assemble import assemble
from ican_ml.records.caps import Cap, find_caps
from ican_ml.records.store import RecordStore, build_store
from ican_ml.training.outcomes import read_outcomes

DAY = np.timedelta64(1, "D")


def with_events(store: RecordStore, subject: np.ndarray, time: np.ndarray, code: str) -> RecordStore:
    """The store with one more event for each entry."""
    codes = [*store.codes, code]
    return build_store(
        subject_id=np.append(np.repeat(store.subject_id, np.diff(store.offsets)), subject),
        time=np.append(store.time, time.astype("datetime64[us]")),
        code=np.append(store.code, np.full(len(subject), len(codes) - 1)).astype(np.int64),
        value=np.append(store.value, np.full(len(subject), np.nan, np.float32)),
        unit=np.append(store.unit, np.zeros(len(subject), np.int64)).astype(np.int64),
        codes=codes,
        units=store.units,
        parents=store.parents,
    )


def first_episodes(prepared: Prepared) -> pl.DataFrame:
    return prepared.episodes.unique("subject_id", keep="first", maintain_order=True)


def columns_of(prepared: Prepared, store: RecordStore, caps: list[Cap]) -> np.ndarray:
    states = assemble(prepared.cohort, store, prepared.episodes, [])
    return bookkeeping_columns(states, list(prepared.cohort.modalities.values()), caps)


def test_columns_count_what_was_known(prepared: Prepared) -> None:
    day = np.datetime64("2020-01-01")
    time = np.array([day, day, day + 60 * DAY, day + 99 * DAY, day + 101 * DAY, np.datetime64(NAT, "us")])
    store = build_store(
        subject_id=np.full(6, 4),
        time=time.astype("datetime64[us]"),
        code=np.array([0, 0, 1, 0, 1, 2]),
        value=np.full(6, np.nan, np.float32),
        unit=np.zeros(6, np.int64),
        codes=["LAB//A", "LAB//B", "SEX"],
        units=[""],
        parents={},
    )
    episodes = pl.DataFrame(
        {
            "subject_id": [4, 5],
            "prediction_time": np.repeat(day + 100 * DAY, 2).astype("datetime64[us]"),
            "treatment": [["x"], []],
        },
    )
    states = assemble(prepared.cohort, store, episodes, [])
    columns = np.expm1(bookkeeping_columns(states, [], [Cap(group="LAB", events=4, subjects=1)]))
    # 30, 90, 365 days, ever, static; first, last, span; days, codes, most of one code; at its cap, how many are
    assert columns[0] == pytest.approx([1, 2, 4, 4, 1, 100, 1, 99, 3, 3, 3, np.e - 1, np.e - 1], rel=1e-5)
    assert columns[1] == pytest.approx([0, 0, 0, 0, 0, np.nan, np.nan, np.nan, 0, 0, 0, 0, 0], nan_ok=True)


def test_neither_codes_nor_values_nor_the_future_change_a_column(prepared: Prepared, sim_records: RecordStore) -> None:
    other = replace(
        sim_records,
        codes=tuple(f"X//{i}" for i in range(len(sim_records.codes))),
        value=np.random.default_rng(0).normal(size=len(sim_records.value)).astype(np.float32),
    )
    after = prepared.episodes.group_by("subject_id").agg(pl.col("prediction_time").max() + pl.duration(days=1))
    other = with_events(other, after["subject_id"].to_numpy(), after["prediction_time"].to_numpy(), "LATER")
    np.testing.assert_array_equal(columns_of(prepared, sim_records, []), columns_of(prepared, other, []))


def test_samples_are_counted_up_to_the_prediction(prepared: Prepared, sim_records: RecordStore) -> None:
    names = list(prepared.cohort.modalities)
    counts = np.expm1(columns_of(prepared, sim_records, [])[:, -len(names) :])
    for position, name in enumerate(names):
        modality = prepared.cohort.modalities[name]
        for row in range(0, len(prepared.episodes), 37):
            subject, time = prepared.episodes["subject_id"][row], prepared.episodes["prediction_time"][row]
            known = np.isnat(modality.sample_time) | (modality.sample_time <= np.datetime64(time))
            assert counts[row, position] == pytest.approx(((modality.subject_id == subject) & known).sum(), abs=1e-4)


def test_a_cut_table_is_found(prepared: Prepared, sim_records: RecordStore) -> None:
    subjects = prepared.episodes["subject_id"].unique().sort().to_numpy()
    found = find_caps(sim_records, subjects)
    count = np.random.default_rng(0).geometric(0.04, len(subjects))
    start = np.datetime64("2020-01-01")

    def scans(most: int) -> RecordStore:
        each = np.minimum(count, most)
        return with_events(sim_records, np.repeat(subjects, each), np.repeat(start, each.sum()), "SCAN//CT")

    new = [cap for cap in find_caps(scans(30), subjects) if cap not in found]
    assert new == [Cap(group="SCAN", events=30, subjects=int((count >= 30).sum()))]
    assert find_caps(scans(1000), subjects) == found


@pytest.mark.parametrize("planted", [False, True])
def test_an_artefact_warns_and_a_healthy_cohort_does_not(
    config: RunConfig, prepared: Prepared, sim_records: RecordStore, planted: bool
) -> None:
    episodes = first_episodes(prepared)
    store = sim_records
    if planted:
        failed = episodes.filter(~pl.col("response"))
        subject, time = (failed[name].to_numpy() for name in ("subject_id", "prediction_time"))
        scans = np.arange(40)
        store = with_events(store, np.repeat(subject, 40), (time[:, None] - scans * DAY).ravel(), "SCAN")
    config = replace(config, task=TaskConfig(outcomes=[OutcomeConfig(name="response", kind=Kind.binary)]))
    prepared = of_rows(config, replace(prepared, store=store), episodes)
    full = [{"response": {"model": np.full(len(split.held_out), 0.5)}} for split in prepared.splits.values()]
    (found,), _ = audit_bookkeeping(config, prepared, full)
    assert list(found.values) == [INDICATION, BOOKKEEPING, FULL, DIFFERENCE]
    assert found.warns == planted
    audit = Audit(bookkeeping=[found])
    assert len(audit.warnings) == planted
    page = audit.sections()[0].text()
    if planted:
        assert found.values[BOOKKEEPING]["ridge"].estimate > 0.8
        assert audit.warnings[0].startswith("response: bookkeeping alone reaches AUROC")
    assert ("no sign that an outcome was made" in page) != planted


def of_rows(config: RunConfig, prepared: Prepared, episodes: pl.DataFrame) -> Prepared:
    return replace(
        prepared,
        episodes=episodes,
        outcomes=read_outcomes(episodes, {o.name: o.kind.value for o in config.task.outcomes}),
        splits={"split": split_episodes(episodes, method="hash", seed=7, held_out_fraction=0.5)},
    )


def test_an_audit_survives_json_and_names_its_conditions(config: RunConfig, prepared: Prepared) -> None:
    config = replace(config, evaluation=EvaluationConfig(replicates=20, permutations=2))
    audit = audit_cohort(config, prepared, scorer="ridge")
    again = Audit.from_dict(json.loads(json.dumps(audit.to_dict(), allow_nan=False)))
    assert again.to_dict() == audit.to_dict()
    assert [section.title for section in again.sections()] == ["Label permutation", "Bookkeeping"]
    assert [section.text() for section in again.sections()] == [section.text() for section in audit.sections()]
    assert {found.outcome: found.values[FULL].keys() for found in audit.bookkeeping} == {
        name: {"ridge", "boosting"} for name in ("response", "os", "sensitivity")
    }
    survival = audit.bookkeeping[1].values
    assert survival[INDICATION]["ridge"].estimate == pytest.approx(0.5)

    recordless = audit_cohort(
        replace(config, evaluation=EvaluationConfig(permutations=0)), replace(prepared, store=None), scorer="ridge"
    )
    assert recordless.sections() == []
    assert "no records" in recordless.conditions
