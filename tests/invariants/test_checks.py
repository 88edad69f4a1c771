"""How far two results differ, and what an error says of it."""

import math
from typing import Any

import numpy as np
import pytest

from ican_ml.invariants.checks import InvariantError, demand_finite, demand_same, difference, named, run_all


@pytest.mark.parametrize(
    ("found", "expected", "size", "where"),
    [
        ({"a": np.zeros(2)}, {"a": np.zeros(2)}, 0.0, "a"),
        ({"a": np.array([0.0, 0.5])}, {"a": np.zeros(2)}, 0.5, "a"),
        ({"a": [100.0, 110.0]}, {"a": [100.0, 100.0]}, 0.1, "a"),
        ({"a": {"b": [1, "x"]}, "c": 2}, {"a": {"b": [1, "y"]}, "c": 2}, math.inf, "a.b"),
        ({"a": 1}, {"b": 1}, math.inf, ""),
        ({"a": 1}, [1], math.inf, ""),
        ([1, 2], [1, 2, 3], math.inf, ""),
        ([{}], [{}, {}], math.inf, ""),
        (np.zeros((2, 1)), np.zeros((1, 2)), math.inf, ""),
        (np.array([math.nan, 1.0]), np.array([math.nan, 1.0]), 0.0, ""),
        (np.array([math.nan]), np.array([1.0]), math.inf, ""),
        (np.array([math.inf]), np.array([1.0]), math.inf, ""),
        (np.array(["a"]), np.array(["b"]), math.inf, ""),
        (np.float32(1.5), np.float32(1), 0.5, ""),
        (np.array([True]), np.array([False]), 1.0, ""),
        (True, False, math.inf, ""),
        (None, None, 0.0, ""),
        (None, 1.0, math.inf, ""),
        ([], [], 0.0, ""),
    ],
)
def test_difference_is_the_largest_and_names_its_place(found: Any, expected: Any, size: float, where: str) -> None:
    assert difference(found, expected) == (pytest.approx(size), where)


def _holds(_: int) -> None: ...


def _order_of_things(subject: int) -> None:
    demand_same("two things swapped", {"x": np.array([1.0 + subject])}, {"x": np.array([1.0])}, tolerance=0.25)


def _nothing_there(_: int) -> None:
    demand_finite("no record", {"a": np.zeros(1), "b": np.array([math.nan])})


def _raises(_: int) -> None:
    raise RuntimeError("no such shape\nat line 3")


def test_one_error_names_every_invariant_that_fails_what_was_changed_and_by_how_much() -> None:
    run_all(named([_holds, _order_of_things], 0))
    with pytest.raises(InvariantError) as caught:
        run_all(named([_order_of_things, _holds, _nothing_there, _raises], 2, "cpu: "))
    assert str(caught.value).splitlines() == [
        "cpu: order of things: two things swapped: expected the same x, got a difference of 2",
        "cpu: nothing there: no record: expected finite b, got NaN or infinity",
        "cpu: raises: patients invented from the schema: expected an answer, got RuntimeError: no such shape",
    ]
    assert [failure.difference for failure in caught.value.failures] == [2.0, math.inf, math.inf]


def test_checks_can_be_taken_one_by_one() -> None:
    found = dict(named([_holds, _order_of_things], 0.25))
    assert list(found) == ["holds", "order of things"]
    for check in found.values():
        check()
