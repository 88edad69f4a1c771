"""Virtual inhibition: the network's answer to one gene's inhibitor, whoever and whatever else is asked."""

import numpy as np
import pytest
import torch

from ican_ml.inputs.answer import sigmoid
from ican_ml.inputs.encode import EncodedPatients, collate
from ican_ml.inputs.regimens import INHIBITOR
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.targets import inhibition
from ican_ml.targets.asking import as_batch, own_regimen, regimens_for_all
from ican_ml.targets.inhibition import Inhibition, virtual_inhibition

ROWS = np.array([5, 0, 17, 33], np.int64)


def test_it_is_the_answer_to_each_inhibitor_by_itself(
    sim_network: PatientTransformer,
    sim_schema: InputSchema,
    sim_encoded: EncodedPatients,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genes = ["KRAS", "nothing of the kind", *sim_schema.genes[3:40:6]]
    found = virtual_inhibition(sim_network, sim_schema, sim_encoded, ROWS, genes)
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(np.delete(found, 1, axis=1)).all()
    arrays = regimens_for_all(sim_schema, sim_encoded, ROWS[2:3], [(INHIBITOR + genes[4],)])
    with torch.inference_mode():
        alone = sim_network(as_batch(arrays))["response"].numpy()[0, 0]
    assert found[2, 4] == pytest.approx(sigmoid(alone), abs=1e-6)
    assert np.ptp(found[2][np.isfinite(found[2])]) > 1e-4  # genes differ
    monkeypatch.setattr(inhibition, "_GENES", 3)
    monkeypatch.setattr(inhibition, "_QUERIES", 6)
    pieces = virtual_inhibition(sim_network, sim_schema, sim_encoded, ROWS, genes)
    np.testing.assert_allclose(pieces, found, atol=1e-6)


def test_benefit_points_up_for_every_kind_of_outcome(
    sim_network: PatientTransformer, sim_schema: InputSchema, sim_encoded: EncodedPatients
) -> None:
    genes = sim_schema.genes[:3]
    for number, task in enumerate(sim_schema.tasks):
        found = virtual_inhibition(sim_network, sim_schema, sim_encoded, ROWS, genes, task=number)
        arrays = regimens_for_all(sim_schema, sim_encoded, ROWS, [(INHIBITOR + gene,) for gene in genes])
        with torch.inference_mode():
            output = sim_network(as_batch(arrays))[task.name].numpy()
        plain = {"binary": output, "survival": -output.mean(-1), "regression": -output[..., 0]}[task.kind]
        assert np.corrcoef(found.ravel(), plain.ravel())[0, 1] > 0.9


def test_what_all_genes_share_is_taken_out() -> None:
    benefit = np.array([[1.0, 3.0, 2.0, np.nan], [5.0, 6.0, 9.0, np.nan]], np.float32)
    found = Inhibition(benefit={3: benefit}, network_of={"A": 3}, patient=np.array([1, 0, 1])).of("A", np.array([0, 1]))
    np.testing.assert_array_equal(found, [[-1, 0, 3, np.nan], [-1, 1, 0, np.nan]])


def test_an_episode_is_asked_about_its_own_regimen_alone(
    sim_network: PatientTransformer, sim_encoded: EncodedPatients
) -> None:
    many = np.flatnonzero((sim_encoded.regimens.of_row >= 0).sum(1) > 0)[:6]
    slot = (sim_encoded.regimens.of_row[many] >= 0).sum(1) - 1
    with torch.inference_mode():
        every = sim_network(as_batch(collate(sim_encoded, many)))["response"].numpy()[np.arange(6), slot]
        alone = sim_network(as_batch(own_regimen(sim_encoded, many, slot)))["response"].numpy()[:, 0]
    np.testing.assert_allclose(alone, every, atol=1e-5)


def test_likeness_answers_a_virtual_inhibitor_as_drugs_with_that_target(
    sim_schema: InputSchema, sim_encoded: EncodedPatients
) -> None:
    network = PatientTransformer(ModelConfig(deep=False, landmarks=8), sim_schema).eval()
    path = network.kernel
    assert path is not None
    random = torch.Generator().manual_seed(0)
    for name, buffer in path.state_dict().items():
        if not name.startswith("reach") and buffer.is_floating_point():
            buffer.copy_(torch.randn(buffer.shape, generator=random) * 0.1)
    targets = {drug: set(sim_schema.targets[drug]) for drug in sim_schema.drugs}
    gene = sorted(next(iter(targets.values())) & set(sim_schema.genes))[0]
    having = [drug for drug in sim_schema.drugs if gene in targets[drug]]
    without = next(g for g in sim_schema.genes if not any(g in each for each in targets.values()))
    regimens = [(INHIBITOR + gene,), (INHIBITOR + without,), (), *((drug,) for drug in having)]
    batch = as_batch(regimens_for_all(sim_schema, sim_encoded, ROWS, regimens))
    with torch.inference_mode():
        said = path(batch, network.normalise(batch)[0])
    torch.testing.assert_close(said[:, 0], said[:, 3:].mean(1))
    torch.testing.assert_close(said[:, 1], said[:, 2])
