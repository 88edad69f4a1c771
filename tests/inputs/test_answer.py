"""Survival in numbers that people read and rank by."""

import numpy as np
import pytest

from ican_ml.inputs.answer import expected_days, risk
from ican_ml.inputs.schema import Task

OS = Task(name="os", kind="survival", edges=(100.0, 200.0, 9000.0))


def test_risk_is_the_mean_probability_of_the_event_by_the_edges() -> None:
    assert risk(np.log([0.5 / 0.5, 0.2 / 0.8, 0.5 / 0.5])) == pytest.approx((0.5 + 0.6 + 0.8) / 3)


def test_risk_orders_proportional_hazards_as_expected_days_do() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 1)) + np.array([-3.0, -2.0, -1.0])
    assert (np.argsort(risk(logits)) == np.argsort(-expected_days(OS, logits))).all()


def test_a_long_last_interval_rules_expected_days_and_not_risk() -> None:
    early, late = np.array([-1.0, -1.5, -6.0]), np.array([-3.0, -3.0, 1.5])
    assert expected_days(OS, early) > expected_days(OS, late)
    assert risk(early) > risk(late)
