"""Schemas of cohorts that lack a part, every model of configs/, and a small network that a third party might write."""

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import Tensor, nn

from ican_ml.cohort.cohort import Cohort
from ican_ml.config import RunConfig
from ican_ml.inputs.fit import InputConfig, fit_schema
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import Batch, ModelConfig
from ican_ml.records.store import RecordStore
from ican_ml.resources import resource_folder

CONFIGS = resource_folder("configs")
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
WITHOUT = ("nothing", "records", "omics", "drugs", "anything")
OUTCOMES = [("response", "binary"), ("os", "survival"), ("sensitivity", "regression")]
SchemaOf = Callable[[str], InputSchema]


def model_config(name: str) -> ModelConfig:
    """A model of configs/, as a run composes it."""
    ConfigStore.instance().store(name="run_config", node=RunConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = OmegaConf.to_object(compose("config", [f"model={name}"]))
    assert isinstance(config, RunConfig)
    return config.model


@pytest.fixture(scope="session")
def schema_without(sim_cohort: Cohort, sim_records: RecordStore) -> SchemaOf:
    """Give a function from what a cohort lacks to its schema, for one outcome of each kind."""
    made: dict[str, InputSchema] = {}

    def schema(lacks: str) -> InputSchema:
        if lacks not in made:
            made[lacks] = _schema(sim_cohort, sim_records, lacks)
        return made[lacks]

    return schema


def _schema(cohort: Cohort, records: RecordStore, lacks: str) -> InputSchema:
    covariates = [] if lacks == "anything" else ["indication", "line"]
    if lacks in ("omics", "anything"):
        cohort = replace(cohort, modalities={})
    if lacks in ("records", "drugs", "most omics"):  # to be quick
        kept = ["expression"] if lacks == "most omics" else ["cnv", "mutation"]
        cohort = replace(cohort, modalities={name: cohort.modalities[name] for name in kept})
    if lacks in ("drugs", "anything"):
        untreated = pl.lit([], dtype=pl.List(pl.String)).alias("treatment")
        cohort = replace(cohort, targets={}, classes={}, episodes=cohort.episodes.with_columns(untreated))
    return fit_schema(
        cohort,
        None if lacks in ("records", "anything") else records,
        cohort.episodes.filter(pl.col("split") == "train"),
        InputConfig(covariates=covariates, max_tokens=8, max_events=16, survival_bins=4),
        outcomes=OUTCOMES,
    )


class Plain(nn.Module):
    """A network of a few lines that keeps every invariant: masked mean of events, summary, sum of drugs and targets."""

    def __init__(self, schema: InputSchema, width: int = 8) -> None:
        super().__init__()
        assert schema.vocabulary is not None
        self.code = nn.Embedding(schema.vocabulary.n_ids, width, padding_idx=0)
        self.summary = nn.Linear(len(schema.summary_names), width)
        self.drug = nn.Embedding(len(schema.drugs) + 2, width, padding_idx=0)
        self.gene = nn.Embedding(schema.n_genes, width, padding_idx=0)
        self.head = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        patient_BW = self.record(batch) + self.summary(batch["summary"])
        query_BRW = self.drug(batch["treatment_drug"]).sum(2) + self.gene(batch["treatment_gene"]).sum(2)
        joint_BRW = torch.tanh(self.patient(patient_BW)[:, None] + self.query(query_BRW))
        return {"response": self.head(joint_BRW).squeeze(-1)}

    def record(self, batch: Batch) -> Tensor:
        real_BT1 = (batch["event_code"] > 0).float()[..., None]
        mean: Tensor = self.events(batch).mul(real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
        return mean

    def events(self, batch: Batch) -> Tensor:
        events: Tensor = self.code(batch["event_code"])
        return events

    def patient(self, patient_BW: Tensor) -> Tensor:
        return patient_BW

    def query(self, query_BRW: Tensor) -> Tensor:
        return query_BRW
