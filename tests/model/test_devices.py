"""Every path of the network on another device than the CPU: torch's ``meta``, which like a GPU is not mixed with it."""

from __future__ import annotations

import pytest

from ican_ml.encoding import csr_bag
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import Batch, ModelConfig, PatientTransformer


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(members=2, query_layers=1, resistance=True),
        ModelConfig(trees=2, columns=1),
        ModelConfig(landmarks=8, deep=False),
    ],
    ids=["network", "trees and columns", "kernel"],
)
def test_no_path_makes_a_tensor_on_another_device(
    config: ModelConfig, sim_schema: InputSchema, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csr_bag, "_eager", lambda *_: False)  # past torch, which knows the sums' shape
    network = PatientTransformer(config, sim_schema).to("meta")
    there = {name: tensor.to("meta") for name, tensor in batch.items()}
    outputs = [network.eval()(there)]
    if config.deep:
        outputs += network.train().member_outputs(network.with_earlier(there))
    assert {tensor.device.type for output in outputs for tensor in output.values()} == {"meta"}
