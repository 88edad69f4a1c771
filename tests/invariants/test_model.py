"""Every model of configs/ keeps the invariants on every kind of cohort, and a broken network is found and named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ican_ml.inputs.schema import InputSchema
from ican_ml.invariants.checks import InvariantError
from ican_ml.invariants.model import check_model, model_checks
from ican_ml.model.patient_transformer import Batch, PatientTransformer

from .conftest import MODELS, OUTCOMES, WITHOUT, Plain, SchemaOf, model_config


@pytest.mark.parametrize("lacks", WITHOUT)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_on_every_kind_of_cohort(schema_without: SchemaOf, model: str, lacks: str) -> None:
    torch.manual_seed(1)
    schema = schema_without(lacks)
    check_model(PatientTransformer(model_config(model), schema), schema)


@pytest.mark.parametrize("kind", [kind for _, kind in OUTCOMES])
def test_each_kind_of_outcome_alone(schema_without: SchemaOf, kind: str) -> None:
    torch.manual_seed(2)
    schema = schema_without("omics")
    schema = replace(schema, tasks=tuple(task for task in schema.tasks if task.kind == kind))
    check_model(PatientTransformer(model_config("base"), schema), schema, seed=1)


@pytest.fixture(scope="module")
def schema(schema_without: SchemaOf) -> InputSchema:
    """Give a schema with one modality, which is enough to be wrong about."""
    return schema_without("most omics")


class BatchNormalised(Plain):
    def patient(self, patient_BW: Tensor) -> Tensor:
        return functional.batch_norm(patient_BW, None, None, training=len(patient_BW) > 1)


class MeanOverPadding(Plain):
    def record(self, batch: Batch) -> Tensor:
        return self.events(batch).mean(1)


class Positions(Plain):
    def events(self, batch: Batch) -> Tensor:
        place_T = torch.arange(batch["event_code"].shape[1], dtype=torch.float32)
        return super().events(batch) * (1 + torch.sin(place_T))[:, None]


class MeanOfNoEvents(Plain):
    def record(self, batch: Batch) -> Tensor:
        real_BT1 = (batch["event_code"] > 0).float()[..., None]
        return self.events(batch).sum(1) / real_BT1.sum(1)


class RegimensAttend(Plain):
    def query(self, query_BRW: Tensor) -> Tensor:
        return query_BRW + functional.scaled_dot_product_attention(query_BRW, query_BRW, query_BRW)


class DrugsInOrder(Plain):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return super().forward(batch | {"treatment_drug": batch["treatment_drug"][:, :, :1]})


class DropsOutWhenAsked(Plain):
    def patient(self, patient_BW: Tensor) -> Tensor:
        return functional.dropout(patient_BW, 0.5, training=True)


class AnswersAlike(Plain):
    def patient(self, patient_BW: Tensor) -> Tensor:
        return torch.zeros_like(patient_BW)


class ReadsWhatWasNotMeasured(Plain):
    def record(self, batch: Batch) -> Tensor:
        return super().record(batch) + batch["treatment_state"].sum((1, 2, 3))[:, None]


class SquaresRawValues(Plain):
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        state_BRGM = batch["treatment_state"] * batch["treatment_state_known"]
        return {"response": super().forward(batch)["response"] + 1e-6 * state_BRGM.square().sum((2, 3))}


BROKEN: list[tuple[type[Plain], str]] = [
    (BatchNormalised, "batch composition"),
    (MeanOverPadding, "padding"),
    (MeanOverPadding, "padding of the arrays"),
    (Positions, "order of event tokens within a timestamp"),
    (MeanOfNoEvents, "empty record"),
    (RegimensAttend, "regimens do not see one another"),
    (DrugsInOrder, "order of drugs and targets"),
    (DropsOutWhenAsked, "the same question twice"),
    (AnswersAlike, "patients and regimens differ"),
    (ReadsWhatWasNotMeasured, "values that were not measured"),
]


@pytest.mark.parametrize(("broken", "name"), BROKEN)
def test_a_broken_network_is_found_and_named(schema: InputSchema, broken: type[Plain], name: str) -> None:
    torch.manual_seed(3)
    with pytest.raises(InvariantError) as caught:
        check_model(broken(schema), schema)
    failures = {failure.invariant: failure for failure in caught.value.failures}
    assert name in failures
    assert failures[name].changed
    assert name == "patients and regimens differ" or failures[name].difference > 1e-5


def test_a_network_of_a_few_lines_keeps_them(schema: InputSchema) -> None:
    torch.manual_seed(3)
    check_model(Plain(schema), schema)


def test_values_that_overflow_are_found(schema: InputSchema) -> None:
    with pytest.raises(InvariantError, match=r"^extreme values: values of 1e30, .* expected finite response"):
        check_model(SquaresRawValues(schema), schema)


def test_the_network_stays_as_it_is(schema: InputSchema) -> None:
    network = PatientTransformer(model_config("base"), schema).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _, check in list(model_checks(network, schema))[:4]:
        check()
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_head_that_starts_at_zero_is_checked_too(schema: InputSchema) -> None:
    torch.manual_seed(3)
    network = Positions(schema)
    nn.init.zeros_(network.head.weight)
    with pytest.raises(InvariantError, match="order of event tokens within a timestamp"):
        check_model(network, schema)


def test_results_repeat_with_the_seed(schema: InputSchema) -> None:
    torch.manual_seed(3)
    network = Positions(schema)
    said = []
    for _ in range(2):
        with pytest.raises(InvariantError) as caught:
            check_model(network, schema, seed=4)
        said.append(np.array([failure.difference for failure in caught.value.failures]))
    assert np.array_equal(*said)
