"""Likelihoods against ones written out by hand, from outcome columns to the number that is minimised."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats
from torch.nn import functional

from ican_ml.evaluation.outcome import Outcome
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.encode import PatientStates
from ican_ml.inputs.schema import Task
from ican_ml.training.losses import task_loss, total_loss
from ican_ml.training.outcomes import loss_arrays, read_outcomes

SURVIVAL = Task(name="os", kind="survival", edges=(10.0, 20.0, 40.0))
BINARY = Task(name="response", kind="binary")
TIMES = (5.0, 10.0, 16.0, 20.0, 20.5, 40.0, 41.0, 4000.0)
ENTRIES = (None, 3.0, 10.0, 15.0)
REGRESSION = Task(name="sensitivity", kind="regression")


def states(patient: list[int], slot: list[int]) -> CohortStates:
    """Episodes at given places among patients of whom nothing else is known."""
    n = max(patient) + 1
    return CohortStates(
        patients=PatientStates(omics={}, events=None, covariates={}, regimens=[[()]] * n),
        subject_id=np.arange(n),
        prediction_time=np.full(n, np.datetime64("NaT", "us")),
        patient=np.array(patient),
        slot=np.array(slot),
    )


def loss_of(task: Task, outcome: Outcome, output: np.ndarray) -> float:
    """The loss of one episode a patient."""
    n = len(outcome)
    arrays = loss_arrays(task, outcome, states(list(range(n)), [0] * n))
    target, weight = (torch.from_numpy(arrays[f"{task.name}_{part}"]) for part in ("target", "weight"))
    return float(task_loss(task, torch.from_numpy(output.astype(np.float32))[:, None], target, weight))


def hazard_log_likelihood(hazard: np.ndarray, time: float, *, event: bool, entry: float) -> float:
    """Day by day thinking: what was seen of one subject in each interval (left, right]."""
    left, total = 0.0, 0.0
    for h, right in zip(hazard, SURVIVAL.edges, strict=True):
        if entry < right:
            if event and left < time <= right:
                return total + math.log(h)
            if time < right:
                return total
            total += math.log(1 - h)
        left = right
    return total


@pytest.mark.parametrize("event", [True, False])
@pytest.mark.parametrize(("time", "entry"), [(t, e) for t in TIMES for e in ENTRIES if e is None or e < t])
def test_hazards_by_brute_force(time: float, event: bool, entry: float | None) -> None:
    logits = np.array([0.3, -1.2, 2.0])
    outcome = Outcome.survival([time], [event], None if entry is None else [entry])
    expected = hazard_log_likelihood(1 / (1 + np.exp(-logits)), time, event=event, entry=entry or 0.0)
    assert loss_of(SURVIVAL, outcome, logits[None]) == pytest.approx(-expected, abs=1e-6)


def test_survival_is_averaged_over_those_who_were_seen() -> None:
    logits = np.array([[0.3, -1.2, 2.0], [1.0, 0.5, -0.4], [0.0, 0.0, 0.0]])
    outcome = Outcome.survival([16.0, 25.0, np.nan], [True, False, False])
    hazard = 1 / (1 + np.exp(-logits))
    each = [hazard_log_likelihood(hazard[0], 16, event=True, entry=0)]
    each += [hazard_log_likelihood(hazard[1], 25, event=False, entry=0)]
    assert loss_of(SURVIVAL, outcome, logits) == pytest.approx(-sum(each) / 2, abs=1e-6)


def test_bernoulli() -> None:
    logits = np.array([0.2, -3.0, 1.5, 9.0])
    expected = functional.binary_cross_entropy_with_logits(torch.tensor(logits[:3]), torch.tensor([1.0, 0, 1]).double())
    assert loss_of(BINARY, Outcome.binary([1, 0, 1, np.nan]), logits) == pytest.approx(float(expected), rel=1e-5)


def test_gaussian() -> None:
    mean, sd = np.array([0.5, -2.0, 7.0]), np.array([0.7, 3.0, 1.0])
    found = loss_of(REGRESSION, Outcome.regression([1.0, -4.0, np.nan]), np.stack([mean, 2 * np.log(sd)], -1))
    expected = -stats.norm.logpdf([1.0, -4.0], mean[:2], sd[:2]).mean() - 0.5 * math.log(2 * math.pi)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", [SURVIVAL, BINARY, REGRESSION])
def test_a_batch_without_outcomes_costs_nothing(task: Task) -> None:
    unknown = Outcome.regression([np.nan] * 2)
    if task.kind == "survival":
        unknown = Outcome.survival([np.nan] * 2, [False] * 2)
    shape = {"survival": (2, 3), "binary": (2,), "regression": (2, 2)}[task.kind]
    assert loss_of(task, unknown, np.ones(shape)) == 0


def test_outcomes_lie_where_their_regimens_do() -> None:
    arrays = loss_arrays(REGRESSION, Outcome.regression([1.0, 2.0, np.nan, 4.0]), states([0, 2, 0, 0], [0, 0, 1, 2]))
    np.testing.assert_array_equal(arrays["sensitivity_target"], [[1, 0, 4], [0, 0, 0], [2, 0, 0]])
    np.testing.assert_array_equal(arrays["sensitivity_weight"], [[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    survival = loss_arrays(SURVIVAL, Outcome.survival([15.0, 50.0], [True, False]), states([0, 0], [1, 0]))
    np.testing.assert_array_equal(survival["os_weight"], [[[1, 1, 1], [1, 1, 0]]])
    np.testing.assert_array_equal(survival["os_target"], [[[0, 0, 0], [0, 1, 0]]])


def test_tasks_add_up_and_regimens_beyond_the_batch_are_cut() -> None:
    random = np.random.default_rng(1)
    outcomes = {"response": Outcome.binary([1, 0, 1]), "os": Outcome.survival([5, 15, 50], [True, True, False])}
    batch, outputs = {}, {}
    for task in (BINARY, SURVIVAL):
        arrays = loss_arrays(task, outcomes[task.name], states([0, 1, 2], [0, 0, 2]))
        batch |= {name: torch.from_numpy(values[:2]) for name, values in arrays.items()}
        shape = (2, 1, 3) if task is SURVIVAL else (2, 1)
        outputs[task.name] = torch.from_numpy(random.normal(size=shape).astype(np.float32))
    each = [float(total_loss([task], outputs, batch)) for task in (BINARY, SURVIVAL)]
    assert float(total_loss([BINARY, SURVIVAL], outputs, batch)) == pytest.approx(sum(each))


def test_columns_are_read_and_unknown_events_are_no_outcome() -> None:
    episodes = pl.DataFrame(
        {
            "response": [True, None, False],
            "os_time": [10.0, 20.0, None],
            "os_event": [True, None, False],
            "os_entry": [None, 1.0, 2.0],
        }
    )
    outcomes = read_outcomes(episodes, {"response": "binary", "os": "survival"})
    np.testing.assert_array_equal(outcomes["response"].value, [1, np.nan, 0])
    np.testing.assert_array_equal(outcomes["os"].value, [10, np.nan, np.nan])
    assert outcomes["os"].event.tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"pfs_time.*pfs_event.*it has"):
        read_outcomes(episodes, {"pfs": "survival"})
