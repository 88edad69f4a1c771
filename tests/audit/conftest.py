"""A small simulated cohort, prepared: one episode a row, its own split."""

from dataclasses import replace

import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.split import split_episodes
from ican_ml.config import CohortConfig, EvaluationConfig, Kind, OutcomeConfig, RunConfig, TaskConfig
from ican_ml.fold import Prepared
from ican_ml.inputs.fit import InputConfig
from ican_ml.model.patient_transformer import ModelConfig
from ican_ml.records.store import RecordStore
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.outcomes import read_outcomes


@pytest.fixture
def config() -> RunConfig:
    """Three outcomes, one of each kind; the network as small as can be."""
    kinds = {"response": Kind.binary, "os": Kind.survival, "sensitivity": Kind.regression}
    return RunConfig(
        cohort=CohortConfig(path=""),
        task=TaskConfig(outcomes=[OutcomeConfig(name=name, kind=kind) for name, kind in kinds.items()]),
        inputs=InputConfig(max_tokens=4, max_events=8, survival_bins=4),
        model=ModelConfig(width=8, heads=2, bottleneck_tokens=2),
        training=TrainingConfig(epochs=1, batch_size=64, wide_strengths=[300.0]),
        trainer=TrainerConfig(threads=1),
        evaluation=EvaluationConfig(replicates=100),
    )


@pytest.fixture
def prepared(config: RunConfig, sim_cohort: Cohort, sim_records: RecordStore) -> Prepared:
    """The simulated cohort, mutations alone, with half its subjects held out, which steadies small audits."""
    episodes = sim_cohort.episodes
    return Prepared(
        cohort=replace(sim_cohort, modalities={"mutation": sim_cohort.modalities["mutation"]}),
        store=sim_records,
        episodes=episodes,
        outcomes=read_outcomes(episodes, {o.name: o.kind.value for o in config.task.outcomes}),
        splits={"split": split_episodes(episodes, method="hash", seed=7, held_out_fraction=0.5)},
        data_hash="",
    )
