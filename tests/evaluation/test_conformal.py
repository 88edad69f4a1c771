"""Prediction sets hold the truth as often as they say, and are told without a subject."""

import json

import numpy as np
import pytest

from ican_ml.evaluation.conformal import Calibration, conformal_quantile, evaluate_sets


def drawn(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too extreme, and outcomes."""
    logit = rng.normal(size=n)
    return 1 / (1 + np.exp(-2 * logit)), (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float)


def calibration(quantile: float, task: str = "response", coverage: float = 0.9) -> Calibration:
    return Calibration(
        task=task, slope=1.0, intercept=0.0, coverage=coverage, quantile=quantile, n_episodes=100, n_subjects=90
    )


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_of_exchangeable_episodes_hold_the_truth_as_often_as_asked(coverage: float) -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(300):
        p, y = drawn(rng, 150)
        quantile = conformal_quantile(np.where(y == 1, 1 - p, p), coverage)
        p, y = drawn(rng, 200)
        inside = calibration(quantile, coverage=coverage).members(p)
        held.append(np.where(y == 1, inside[:, 0], inside[:, 1]).mean())
    assert coverage - 0.005 < np.mean(held) < coverage + 0.02


def test_the_quantile_is_an_order_statistic() -> None:
    scores = np.arange(1, 10)[::-1] / 10
    assert conformal_quantile(scores, 0.9) == 0.9
    assert conformal_quantile(scores, 0.5) == 0.5
    assert conformal_quantile(scores[:8], 0.9) == 1.0, "too few to rule anything out"
    assert conformal_quantile(np.zeros(0), 0.9) == 1.0
    with pytest.raises(ValueError, match="coverage: expected a share between 0 and 1, got 1"):
        conformal_quantile(scores, 1)


def test_one_answer_or_both_or_neither() -> None:
    wide, narrow = calibration(0.7), calibration(0.3)
    assert [wide.answer_set(p) for p in (0.9, 0.5, 0.2)] == [
        ("responds",),
        ("responds", "does not respond"),
        ("does not respond",),
    ]
    assert [narrow.answer_set(p) for p in (0.9, 0.5, 0.2)] == [("responds",), (), ("does not respond",)]
    assert calibration(0.3, "death").answer_set(0.1) == ("no death",)


def test_sets_are_evaluated_overall_and_by_indication() -> None:
    value = np.tile([1.0, 0.0, 1.0, np.nan], 20)
    members = np.tile([[True, False], [True, False], [True, True], [False, False]], (20, 1))
    indication = np.repeat(["lung", "breast"], [72, 8])
    found = evaluate_sets(
        value, members, coverage=0.9, subject_id=918273645 + np.arange(80), indication=indication, replicates=20
    )
    metrics = {name: interval.estimate for name, interval in found.overall.metrics.items()}
    assert metrics == pytest.approx({"coverage": 2 / 3, "mean_size": 4 / 3, "both": 1 / 3, "neither": 0.0})
    assert (found.overall.rows, found.overall.events) == (60, 40)
    assert list(found.by_indication) == ["lung"], "six subjects are too few to be told of"
    assert "918273645" not in json.dumps(found.to_dict())
