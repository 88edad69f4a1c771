"""The simulated cohort's response, laid out for the lines of evidence, and its patients encoded."""

import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.evaluation.outcome import Outcome
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import EncodedPatients, encode
from ican_ml.inputs.schema import InputSchema
from ican_ml.targets.observations import Observations
from ican_ml.training.outcomes import read_outcomes


@pytest.fixture(scope="session")
def response(sim_cohort: Cohort) -> Outcome:
    """Give the response of every episode."""
    return read_outcomes(sim_cohort.episodes, {"response": "binary"})["response"]


@pytest.fixture(scope="session")
def observed(sim_cohort: Cohort, response: Outcome) -> Observations:
    """Give that, by drug."""
    return Observations.of(sim_cohort, response)


@pytest.fixture(scope="session")
def sim_encoded(sim_schema: InputSchema, sim_states: CohortStates) -> EncodedPatients:
    """Give all patients as arrays."""
    return encode(sim_schema, sim_states.patients)
