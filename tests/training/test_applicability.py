"""The fitted embedding: training subjects alone shape it, and an unseen indication is told by omics alone."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from ican_ml.cohort.cohort import Cohort
from ican_ml.encoding.csr import Float64
from ican_ml.evaluation.applicability import Applicability
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import EncodedPatients, Int64, encode
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.applicability import fit_embedding
from ican_ml.training.data import PatientData, PatientLoader


@pytest.fixture(scope="module")
def encoded(sim_schema: InputSchema, sim_states: CohortStates) -> EncodedPatients:
    return encode(sim_schema, sim_states.patients)


def _rows(sim_cohort: Cohort, states: CohortStates, part: str) -> Int64:
    """Those of training; of the others the subjects with even ids tune."""
    held_out = (sim_cohort.episodes["split"] == "held_out").to_numpy()
    even = sim_cohort.episodes["subject_id"].to_numpy() % 2 == 0
    chosen = {"train": ~held_out, "tuning": held_out & even, "held_out": held_out & ~even}[part]
    return np.unique(states.patient[chosen])


def _indication(sim_cohort: Cohort, states: CohortStates) -> np.ndarray:
    found = np.full(len(states.subject_id), "", dtype=object)
    found[states.patient] = sim_cohort.episodes["indication"].to_numpy()
    return found.astype(str)


def _fit(
    network: PatientTransformer, schema: InputSchema, encoded: EncodedPatients, cohort: Cohort, states: CohortStates
) -> tuple[PatientTransformer, Applicability | None]:
    network = deepcopy(network)
    found = fit_embedding(
        network,
        schema,
        encoded,
        train=_rows(cohort, states, "train"),
        tuning=_rows(cohort, states, "tuning"),
        subject=states.subject_id,
        indication=_indication(cohort, states),
        seed=3,
    )
    return network, found


def _embedded(network: PatientTransformer, encoded: EncodedPatients, rows: Int64) -> Float64:
    loader = PatientLoader(PatientData(encoded=encoded, outcomes={}, rows=rows), batch_size=64)
    with torch.inference_mode():
        return torch.cat([network.embed(batch) for batch in loader]).double().numpy()


def test_training_has_variance_one(
    sim_network: PatientTransformer,
    sim_schema: InputSchema,
    encoded: EncodedPatients,
    sim_cohort: Cohort,
    sim_states: CohortStates,
) -> None:
    network, _ = _fit(sim_network, sim_schema, encoded, sim_cohort, sim_states)
    rows = _rows(sim_cohort, sim_states, "train")
    values = _embedded(network, encoded, rows)
    n_modalities = len(sim_schema.modalities)
    measured = values[:, -n_modalities:] > 0
    for m in range(n_modalities):
        block = values[measured[:, m], m * 16 : (m + 1) * 16]
        assert np.abs(block.mean(axis=0)).max() < 0.5
        assert block.std(axis=0) == pytest.approx(1.0, abs=0.4)
        assert not values[~measured[:, m], m * 16 : (m + 1) * 16].any()


def test_nobody_but_training_and_tuning_subjects_matters(
    sim_network: PatientTransformer,
    sim_schema: InputSchema,
    encoded: EncodedPatients,
    sim_cohort: Cohort,
    sim_states: CohortStates,
) -> None:
    network, found = _fit(sim_network, sim_schema, encoded, sim_cohort, sim_states)
    others = _rows(sim_cohort, sim_states, "held_out")
    changed = encoded.summary.copy()
    assert len(others)
    changed[others] += 5
    again, same = _fit(sim_network, sim_schema, replace(encoded, summary=changed), sim_cohort, sim_states)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert found is not None
    assert same is not None
    assert found.to_json() == same.to_json()
