"""Episodes to patient states: what is shared, and what was known at each time."""

import numpy as np
import polars as pl
import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.records.store import RecordStore


def test_regimens_of_one_state_share_a_patient(sim_cohort: Cohort, sim_records: RecordStore) -> None:
    first = sim_cohort.episodes[:2]
    asked = pl.concat([first.with_columns(pl.Series("treatment", [[drug]] * 2)) for drug in ("A", "B", "C")])
    states = assemble(sim_cohort, sim_records, asked, ["indication"])
    assert len(states.subject_id) == 2
    assert states.patient.tolist() == [0, 1, 0, 1, 0, 1]
    assert states.slot.tolist() == [0, 0, 1, 1, 2, 2]
    assert states.patients.regimens[0] == [("A",), ("B",), ("C",)]


def test_another_time_or_covariate_is_another_patient(sim_cohort: Cohort, sim_records: RecordStore) -> None:
    one = sim_cohort.episodes[:1]
    later = one.with_columns(pl.col("prediction_time") + pl.duration(days=1))
    other = one.with_columns(pl.lit("another").alias("indication"))
    states = assemble(sim_cohort, sim_records, pl.concat([one, later, other]), ["indication"])
    assert states.patient.tolist() == [0, 1, 2]


def test_each_episode_finds_its_regimen_and_subject(sim_cohort: Cohort, sim_states: CohortStates) -> None:
    episodes = sim_cohort.episodes
    assert np.array_equal(sim_states.subject_id[sim_states.patient], episodes["subject_id"].to_numpy())
    found = [sim_states.patients.regimens[p][s] for p, s in zip(sim_states.patient, sim_states.slot, strict=True)]
    assert found == [tuple(drugs) for drugs in episodes["treatment"].to_list()]


def test_no_sample_is_later_than_the_prediction(sim_cohort: Cohort, sim_states: CohortStates) -> None:
    modality = sim_cohort.modalities["mutation"]
    rows = sim_states.patients.omics["mutation"]
    first = {int(s): modality.sample_time[modality.subject_id == s].min() for s in modality.subject_id}
    early = [
        first.get(int(subject), np.datetime64("9999-01-01")) > time
        for subject, time in zip(sim_states.subject_id, sim_states.prediction_time, strict=True)
    ]
    assert not rows.panel[np.array(early)].any()
    assert rows.panel.any()


def test_a_covariate_that_is_no_column_is_refused(sim_cohort: Cohort) -> None:
    with pytest.raises(ValueError, match=r"inputs\.covariates: .*'ward'"):
        assemble(sim_cohort, None, sim_cohort.episodes, ["ward"])
