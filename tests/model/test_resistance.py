"""The gain is what altered targets add, and an altered feature takes its share of it from the drugs of its class."""

import copy

import numpy as np
import pytest
import torch

from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.patient_transformer import Batch, PatientTransformer


@pytest.fixture
def network(sim_network: PatientTransformer) -> PatientTransformer:
    """Give the network with nothing resisted."""
    found = copy.deepcopy(sim_network)
    assert found.resistance is not None
    for buffer in found.resistance.state_dict().values():
        buffer.zero_()
    return found


def logits(network: PatientTransformer, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return network(batch)["response"]


def gains(network: PatientTransformer, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        gain = network.paths(batch).gain
    assert gain is not None
    return gain


def test_the_gain_is_the_answer_less_that_with_unaltered_targets(
    network: PatientTransformer, sim_schema: InputSchema, batch: Batch
) -> None:
    own = torch.tensor([m.kind == "count" for m in sim_schema.modalities])
    unaltered = batch | {"treatment_state": batch["treatment_state"] * own}
    difference = logits(network, batch) - logits(network, unaltered)
    torch.testing.assert_close(gains(network, batch)[..., 0], difference, atol=1e-5, rtol=1e-5)
    assert difference.abs().max() > 1e-3
    assert not gains(network, unaltered).any()
    assert not gains(network, batch)[..., 1:].any()  # survival and regression have none


def test_an_altered_feature_takes_its_share_from_the_drugs_of_the_class(
    network: PatientTransformer, sim_schema: InputSchema, batch: Batch
) -> None:
    feature, drug_class, n_tasks = 3, FIRST_KNOWN + 1, len(sim_schema.tasks)
    before, gain = logits(network, batch), gains(network, batch)[..., 0]
    assert network.resistance is not None
    network.resistance.get_buffer("share_mutation")[feature, drug_class * n_tasks] = 0.75
    indptr, indices, values = (batch[f"mutation_{part}"] for part in ("indptr", "indices", "values"))
    rows = torch.repeat_interleave(torch.arange(len(before)), indptr.diff())
    altered = torch.zeros(len(before), dtype=torch.bool)
    altered[rows[(indices == feature) & (values != 0)]] = True
    of_class = (batch["treatment_class"] == drug_class).sum(2) / (batch["treatment_drug"] > 0).sum(2).clamp(min=1)
    lost = gain * of_class * altered[:, None]
    assert lost.any()
    torch.testing.assert_close(logits(network, batch), before - 0.75 * lost, atol=1e-5, rtol=1e-5)
    network.resistance.get_buffer("share_mutation")[:, drug_class * n_tasks] = 0.75
    everything = logits(network, batch)  # several altered features take no more than all
    several = torch.zeros(len(before)).index_add(0, rows, (values != 0).float()) > 1
    torch.testing.assert_close(everything[several], (before - gain * of_class)[several], atol=1e-5, rtol=1e-5)


def test_a_drug_has_a_level_of_its_own(network: PatientTransformer, sim_schema: InputSchema, batch: Batch) -> None:
    before = logits(network, batch)
    assert network.resistance is not None
    drug = FIRST_KNOWN + np.flatnonzero([name == "RAF-101" for name in sim_schema.drugs])[0]
    network.resistance.level[drug, 0] = 2.0
    share = (batch["treatment_drug"] == drug).sum(2) / (batch["treatment_drug"] > 0).sum(2).clamp(min=1)
    assert share.any()
    torch.testing.assert_close(logits(network, batch), before + 2 * share, atol=1e-5, rtol=1e-5)
