"""Who is unlike those of training: found where one block differs, rarely where none does."""

import json
from typing import Any

import numpy as np
import pytest

from ican_ml.evaluation.applicability import Applicability, fit_applicability

_K = 16
Array = np.ndarray[Any, np.dtype[np.float64]]


def _patients(rng: np.random.Generator, n: int, away: float = 0.0) -> tuple[Array, np.ndarray[Any, Any]]:
    """Two modalities of K coordinates around the means of four groups, and a summary; some lack the second modality."""
    group = rng.integers(0, 4, n)
    means = np.random.default_rng(5).normal(size=(4, _K)) * 3
    first = means[group] + rng.normal(size=(n, _K)) + away * np.eye(_K)[0]
    second, summary = rng.normal(size=(2, n, _K))
    measured = np.stack([np.ones(n), rng.random(n) > 0.2], axis=1)
    return np.concatenate([first, second * measured[:, 1:], summary, measured], axis=1), group


@pytest.fixture(scope="module")
def fitted() -> Applicability:
    rng = np.random.default_rng(1)
    training, group = _patients(rng, 2000)
    found = fit_applicability(
        modalities=("a", "b"),
        training=training,
        group=group,
        tuning=_patients(rng, 400)[0],
        tuning_unknown=np.zeros(400),
        has_record=True,
        has_summary=True,
    )
    assert found is not None
    return found


_RECORD = {"events": 10, "unknown": 0.0}


def _abstains(fitted: Applicability, patients: Array) -> Array:
    return np.array([fitted.judge(row, _RECORD, ()).abstain for row in patients], np.float64)


def test_few_false_alarms_and_few_misses(fitted: Applicability) -> None:
    rng = np.random.default_rng(2)
    assert _abstains(fitted, _patients(rng, 2000)[0]).mean() <= 0.05
    assert _abstains(fitted, _patients(rng, 500, away=12.0)[0]).mean() >= 0.95


def test_between_the_groups_is_unlike_any(fitted: Applicability) -> None:
    middle = np.concatenate([np.zeros(3 * _K), [1.0, 0.0]])
    judged = fitted.judge(middle, _RECORD, ("b",))
    assert judged.abstain
    assert set(judged.parts) == {"a", "summary"}
    assert "unlike the patients" in judged.reasons[0]
    assert "a scores" in judged.reasons[0]


def test_nothing_to_go_by_is_a_reason(fitted: Applicability) -> None:
    nothing = np.zeros(3 * _K + 2)
    judged = fitted.judge(nothing, {"events": 0, "unknown": 0.0}, ("a", "b", "record"))
    assert any("nothing to go by" in reason for reason in judged.reasons)


def test_a_record_in_another_tongue_is_a_reason(fitted: Applicability) -> None:
    usual = _patients(np.random.default_rng(3), 1)[0][0]
    judged = fitted.judge(usual, {"events": 10, "unknown": 0.9}, ())
    assert judged.unknown_codes == 0.9
    assert any("unknown codes" in reason for reason in judged.reasons)


def test_it_is_restored_to_the_bit(fitted: Applicability) -> None:
    restored = Applicability.from_json(json.loads(json.dumps(fitted.to_json())))
    patients = _patients(np.random.default_rng(4), 50)[0]
    assert np.array_equal(restored.parts(patients), fitted.parts(patients), equal_nan=True)
    with pytest.raises(ValueError, match="expected format"):
        Applicability.from_json({**fitted.to_json(), "format": "ican-applicability/9"})


def test_too_few_subjects_tell_nothing() -> None:
    rng = np.random.default_rng(1)
    training, group = _patients(rng, 100)
    few = _patients(rng, 19)[0]
    known: dict[str, Any] = {"modalities": ("a", "b"), "training": training, "group": group, "has_record": True}
    assert fit_applicability(**known, tuning=few, tuning_unknown=np.zeros(19), has_summary=True) is None


def test_an_indication_with_few_subjects_has_no_mean_of_its_own() -> None:
    rng = np.random.default_rng(1)
    training, group = _patients(rng, 400)
    group[:9] = 7  # nine subjects: their mean would tell of them
    found = fit_applicability(
        modalities=("a", "b"),
        training=training,
        group=group,
        tuning=_patients(rng, 100)[0],
        tuning_unknown=np.zeros(100),
        has_record=False,
        has_summary=True,
    )
    assert found is not None
    assert len(found.blocks["a"].means) == 4
