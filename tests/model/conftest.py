"""Patients as tensors, asked about several regimens at once, and a network in which nothing is zero."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import PatientStates, collate, encode
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import Batch

Encode = Callable[[PatientStates], Batch]


@pytest.fixture(scope="session")
def to_batch(sim_schema: InputSchema) -> Encode:
    """Give a function from patients to one batch of network inputs."""

    def batch(patients: PatientStates) -> Batch:
        encoded = encode(sim_schema, patients)
        arrays = collate(encoded, np.arange(encoded.n_rows))
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}

    return batch


@pytest.fixture(scope="session")
def asked(sim_schema: InputSchema, sim_states: CohortStates) -> PatientStates:
    """Give the simulated patients, each asked about one to four regimens of none to three drugs."""
    drugs = sim_schema.drugs
    random = np.random.default_rng(3)
    regimens = [
        [tuple(random.choice(drugs, size, replace=False)) for size in random.permutation(4)[: 1 + row % 4]]
        for row in range(len(sim_states.subject_id))
    ]
    return replace(sim_states.patients, regimens=regimens)


@pytest.fixture
def batch(to_batch: Encode, asked: PatientStates, sim_states: CohortStates) -> Batch:
    """Give all of them as a batch of its own, free to be changed."""
    return to_batch(asked)
