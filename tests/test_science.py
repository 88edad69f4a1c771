"""The figures of the study of all real cohorts, from invented scores."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from ican_ml.evaluation.outcome import Outcome

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def science() -> ModuleType:
    """Give the script as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("science", ROOT / "benchmarks" / "science.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["science"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def _folds(science: ModuleType, count: int, gain: float) -> list[object]:
    random = np.random.default_rng(4)
    folds = []
    for _ in range(count):
        y = (random.random(400) < 0.4).astype(float)
        noise = random.normal(size=400)
        folds.append(
            science.Fold(
                outcome=Outcome.binary(y),
                labels={
                    "subject_id": np.arange(400),
                    "treatment": np.full(400, "A"),
                    "indication": np.where(np.arange(400) % 2, "NSCLC", "BRCA"),
                    "therapy": np.where(np.arange(400) % 3, "", "immunotherapy"),
                },
                scores={"model": (1 + gain) * y + noise, "ridge": y + noise, "boosting": y + random.normal(size=400)},
            )
        )
    return folds


def test_the_interval_is_that_of_the_paired_t_test(science: ModuleType) -> None:
    first, second = np.random.default_rng(1).random((2, 5))
    wanted = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert science.difference(first, second) == pytest.approx((np.mean(first - second), wanted.low, wanted.high))


@pytest.mark.parametrize("count", [1, 5])
def test_a_better_model_has_an_interval_above_zero(science: ModuleType, count: int) -> None:
    figure = science.Figure(measure="AUROC", reach=0.6, above_boosting=True)
    found = science.measured(figure, _folds(science, count, gain=1.0))
    assert found["over ridge"][1] > 0
    assert science.faults("s", [figure], {figure.name: found}) == []


def test_what_falls_short_is_named(science: ModuleType) -> None:
    figure = science.Figure(measure="AUROC", part="immunotherapy", reach=0.99, boosting=0.99, above_boosting=True)
    found = {figure.name: science.measured(figure, _folds(science, 5, gain=-0.6))}
    said = "\n".join(science.faults("s", [figure], found))
    for expected in ("expected at least 0.99", "does not reproduce 0.99", "expected an interval above 0", "above -.01"):
        assert expected in said


def test_parts_are_measured_on_their_own_episodes(science: ModuleType) -> None:
    (fold,) = _folds(science, 1, gain=0.0)
    part = fold.labels["indication"] == "NSCLC"
    found = science.measured(science.Figure(measure="AUROC", part="NSCLC"), [fold])
    own = science.auroc(fold.outcome.value[part], fold.scores["model"][part])
    assert found["model"]["folds"] == [own]


def test_a_lower_rmse_is_an_advantage(science: ModuleType) -> None:
    random = np.random.default_rng(2)
    y = random.normal(size=(5, 100))
    folds = [
        science.Fold(outcome=Outcome.regression(v), labels={}, scores={"model": v, "ridge": v + 1, "boosting": v + 2})
        for v in y
    ]
    found = science.measured(science.Figure(measure="RMSE", reach=0.5, ridge=1.0, boosting=1.0), folds)
    assert found["over ridge"] == pytest.approx([1, 1, 1])
    assert science.reproduced(science.Figure(measure="RMSE", boosting=1.0), "boosting", found) == "not reproduced"
    assert science.reproduced(science.Figure(measure="RMSE", boosting=3.0), "boosting", found) == "stronger"


def test_without_cohorts_one_sentence_says_so() -> None:
    without = {name: value for name, value in os.environ.items() if name != "ICAN_COHORTS"}
    command = [sys.executable, ROOT / "benchmarks" / "science.py", "--check"]
    done = subprocess.run(command, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks/science.py: expected ICAN_COHORTS")
    assert done.stderr.count("\n") == 1
