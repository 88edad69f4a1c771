"""Integrated gradients: complete for every kind of outcome and path, and nothing for what a patient does not have."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from ican_ml.inputs.encode import EncodedPatients
from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.targets import attribution
from ican_ml.targets.asking import as_batch, own_regimen
from ican_ml.targets.attribution import COMPLETE, attribute


@pytest.fixture(scope="module")
def batch(sim_encoded: EncodedPatients) -> dict[str, torch.Tensor]:
    return as_batch(own_regimen(sim_encoded, np.arange(0, 48, 3), np.zeros(16, np.int64)))


@pytest.mark.parametrize("task", [0, 1, 2])
def test_it_is_complete(
    task: int, sim_network: PatientTransformer, sim_schema: InputSchema, batch: dict[str, torch.Tensor]
) -> None:
    found = attribute(sim_network, sim_schema, [batch], task=task)
    assert found.error.max() <= COMPLETE
    total = found.gene.sum(1) + found.record + found.summary
    np.testing.assert_allclose(total, found.difference, rtol=COMPLETE, atol=1e-5)
    assert np.median(np.abs(found.difference)) > 0.01
    with torch.inference_mode():
        output = sim_network(batch)[sim_schema.tasks[task].name][:, 0]
    kind = sim_schema.tasks[task].kind
    end = output if kind == "binary" else -output.mean(-1) if kind == "survival" else -output[..., 0]
    starts = attribution._at(sim_schema, batch, 0.0, grad=False)
    start = attribution._score(sim_network, batch, starts, task)
    np.testing.assert_allclose(found.difference, (end - start.detach()).numpy(), atol=1e-4)


def test_trees_and_likeness_do_not_break_it(
    sim_schema: InputSchema, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = PatientTransformer(ModelConfig(deep=False, landmarks=8, trees=4, tree_depth=2), sim_schema).eval()
    assert network.kernel is not None
    assert network.trees is not None
    for part in (network.kernel, network.trees):
        for name, buffer in part.state_dict().items():
            if buffer.is_floating_point() and "reach" not in name:
                buffer.normal_(std=0.2)
    for parameter in network.wide.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    assert attribute(network, sim_schema, [batch]).error.max() <= COMPLETE


def test_columns_do_not_break_it(sim_schema: InputSchema, batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = ModelConfig(deep=False, trees=4, tree_depth=2, trees_by="indication", columns=8)
    network = PatientTransformer(model, sim_schema).eval()
    assert network.columns is not None
    with torch.no_grad():
        values = network.tree_values(batch, network.normalise(batch)[1])
        network.columns.set_scale(values.flatten(0, 1))
        for parameter in network.columns.parameters():
            parameter.normal_(std=0.3)
    found = attribute(network, sim_schema, [batch])
    assert found.error.max() <= COMPLETE
    assert np.median(np.abs(found.difference)) > 0.01


def test_genes_that_are_neither_stored_nor_targets_get_nothing(
    sim_network: PatientTransformer, sim_schema: InputSchema, batch: dict[str, torch.Tensor]
) -> None:
    found = attribute(sim_network, sim_schema, [batch]).gene
    explicit = {m.name for m in sim_schema.modalities if m.explicit}
    assert not explicit
    has = np.zeros(found.shape, bool)
    for m in sim_schema.modalities:
        gene = np.array([sim_schema.gene_id[g] for g in m.genes])
        row = np.repeat(np.arange(len(has)), np.diff(batch[f"{m.name}_indptr"].numpy()))
        has[row, gene[batch[f"{m.name}_indices"].numpy()]] = True
    target = batch["treatment_gene"][:, 0].numpy()
    has[np.arange(len(has))[:, None], target] = True
    assert not found[~has].any()
    assert not found[:, :1].any()  # padding
    assert np.abs(found[has & (np.arange(found.shape[1]) >= FIRST_KNOWN)]).max() > 1e-3


def test_each_patient_by_itself_is_the_same(
    sim_network: PatientTransformer, sim_schema: InputSchema, sim_encoded: EncodedPatients
) -> None:
    rows, slot = np.arange(6), np.zeros(6, np.int64)
    together = attribute(sim_network, sim_schema, [as_batch(own_regimen(sim_encoded, rows, slot))])
    parts = [as_batch(own_regimen(sim_encoded, rows[i : i + 2], slot[:2])) for i in (0, 2, 4)]
    apart = attribute(sim_network, sim_schema, parts)
    np.testing.assert_allclose(apart.gene, together.gene, atol=1e-5)


def test_a_sharp_turn_of_the_answer_does_not_break_it(
    sim_network: PatientTransformer,
    sim_schema: InputSchema,
    batch: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = deepcopy(sim_network)
    with torch.no_grad():
        for member in network.members:
            for head in member.heads.values():
                head[0].weight.mul_(30)
    places: list[float] = []
    original = attribution._integrated
    monkeypatch.setattr(
        attribution,
        "_integrated",
        lambda *given: (places.append(given[4]), original(*given))[1],  # type: ignore[arg-type]
    )
    assert attribute(network, sim_schema, [batch]).error.max() <= COMPLETE
    assert len(places) > attribution._PIECES  # it had to look closer somewhere


def test_what_misses_its_mark_says_so(
    sim_network: PatientTransformer,
    sim_schema: InputSchema,
    batch: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = attribution._integrated

    def halved(*arguments: object) -> dict[str, torch.Tensor]:
        return {name: values / 2 for name, values in original(*arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(attribution, "_MOST", 6)
    monkeypatch.setattr(attribution, "_integrated", halved)
    assert attribute(sim_network, sim_schema, [batch]).error.min() > 0.4
