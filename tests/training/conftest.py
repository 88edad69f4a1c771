"""Encoded simulated patients with their outcomes, parted into training and tuning."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from torch import Tensor

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.split import split_episodes
from ican_ml.inputs.assemble import CohortStates, assemble
from ican_ml.inputs.encode import encode
from ican_ml.inputs.fit import InputConfig, fit_schema
from ican_ml.inputs.schema import InputSchema
from ican_ml.records.store import RecordStore
from ican_ml.training.data import Batch, PatientData
from ican_ml.training.module import PatientModule
from ican_ml.training.outcomes import loss_arrays, read_outcomes


@dataclass(frozen=True)
class Parts:
    """All patients, and those with a training or a tuning episode."""

    all: PatientData
    train: PatientData
    tuning: PatientData


@pytest.fixture(scope="session")
def small_cohort(sim_cohort: Cohort) -> Cohort:
    """Give the simulated cohort with its smallest modality alone, so that fits are quick."""
    return replace(sim_cohort, modalities={"mutation": sim_cohort.modalities["mutation"]})


@pytest.fixture(scope="session")
def schema(small_cohort: Cohort, sim_records: RecordStore) -> InputSchema:
    """Give its input schema: a binary, a survival and a regression task at once."""
    return fit_schema(
        small_cohort,
        sim_records,
        small_cohort.episodes.filter(pl.col("split") == "train"),
        InputConfig(covariates=["indication", "line"], max_tokens=8, max_events=16, survival_bins=6),
        outcomes=[("response", "binary"), ("os", "survival"), ("sensitivity", "regression")],
    )


@pytest.fixture(scope="session")
def states(small_cohort: Cohort, sim_records: RecordStore) -> CohortStates:
    """Give its patient states."""
    return assemble(small_cohort, sim_records, small_cohort.episodes, ["indication", "line"])


@pytest.fixture(scope="session")
def parts(small_cohort: Cohort, schema: InputSchema, states: CohortStates) -> Parts:
    """Give the data to fit on."""
    episodes = small_cohort.episodes
    outcomes = read_outcomes(episodes, {task.name: task.kind for task in schema.tasks})
    encoded = encode(schema, states.patients)
    arrays = {}
    for task in schema.tasks:
        arrays |= loss_arrays(task, outcomes[task.name], states)
    data = PatientData(encoded=encoded, outcomes=arrays, rows=np.arange(encoded.n_rows))
    split = split_episodes(episodes, method="hash", fold=None, seed=3, tuning_fraction=0.2, held_out_fraction=0.3)
    train, tuning = (data.of_episodes(states.patient[rows], states.slot[rows]) for rows in (split.train, split.tuning))
    return Parts(all=data, train=train, tuning=tuning)


def at_call(patch: pytest.MonkeyPatch, name: str, call: int, act: Callable[[], None]) -> None:
    """Do something as the module's method of this name is called for the ``call``-th time, before it runs."""
    left = call
    original = getattr(PatientModule, name)

    def counted(self: PatientModule, batch: Batch, number: int) -> Tensor:
        nonlocal left
        left -= 1
        if not left:
            act()
        step: Tensor = original(self, batch, number)
        return step

    patch.setattr(PatientModule, name, counted)
