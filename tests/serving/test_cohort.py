"""A bundle on whole cohorts: the training cohort gives training's own bits, another is met by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ican_ml.cohort.cohort import Cohort
from ican_ml.inputs.answer import summarise
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.records.store import RecordStore
from ican_ml.serving.align import align
from ican_ml.serving.cohort import CohortPredictions, encode_rows, predict_cohort


@pytest.fixture(scope="module")
def found(sim_bundle: Path, simulated: Path) -> CohortPredictions:
    return predict_cohort(sim_bundle, simulated)


def test_inputs_of_the_training_cohort_are_trainings_bit_for_bit(
    sim_schema: InputSchema, sim_cohort: Cohort, sim_records: RecordStore, sim_states: CohortStates
) -> None:
    encoded = encode(sim_schema, sim_states.patients)
    expected = collate(encoded, np.arange(encoded.n_rows))
    states, _, aligned = encode_rows(
        align(sim_schema, sim_cohort), sim_records, sim_cohort.episodes, ["indication", "line"]
    )
    got = collate(aligned, np.arange(aligned.n_rows))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
        assert got[name].dtype == values.dtype
    assert np.array_equal(states.slot, sim_states.slot)


def test_predictions_of_the_training_cohort_are_the_networks(
    found: CohortPredictions, sim_network: PatientTransformer, sim_schema: InputSchema, sim_states: CohortStates
) -> None:
    encoded = encode(sim_schema, sim_states.patients)
    batch = {name: torch.from_numpy(v) for name, v in collate(encoded, np.arange(encoded.n_rows)).items()}
    with torch.inference_mode():
        outputs = sim_network(batch)
    for task in sim_schema.tasks:
        expected = summarise(task, outputs[task.name].numpy())[sim_states.patient, sim_states.slot]
        np.testing.assert_allclose(found.prediction[task.name], expected, rtol=1e-6, atol=1e-6)
