"""What is left of an outcome knows neither drug nor stratum nor patient, and higher is better."""

import numpy as np
import pytest

from ican_ml.evaluation.outcome import Outcome
from ican_ml.targets.benefit import residual_benefit


def screen(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 samples under 12 drugs each: patient, drug, and a part of the outcome that neither explains."""
    patient, drug = (part.ravel() for part in np.meshgrid(np.arange(60), np.arange(12), indexing="ij"))
    return patient, drug, rng.normal(size=len(patient))


def test_drug_patient_and_stratum_are_taken_out_and_the_rest_is_kept() -> None:
    rng = np.random.default_rng(0)
    patient, drug, own = screen(rng)
    stratum = patient % 3
    value = own + rng.normal(size=12)[drug] * 4 + rng.normal(size=60)[patient] * 3 + 5.0 * stratum
    left = residual_benefit(Outcome.regression(value), regimen=drug, stratum=stratum, patient=patient)
    assert np.corrcoef(left, -own)[0, 1] > 0.9, "low values are benefit"
    for group in (patient, drug, stratum):
        assert np.abs(np.bincount(group, left) / np.bincount(group)).max() < 0.35


def test_drugs_of_any_spread_count_alike() -> None:
    rng = np.random.default_rng(1)
    patient, drug, own = screen(rng)
    left = residual_benefit(
        Outcome.regression(own * (1.0 + 9 * (drug == 3))), regimen=drug, stratum=np.zeros_like(drug), patient=patient
    )
    spread = [left[drug == d].std() for d in range(12)]
    assert max(spread) < 1.5 * min(spread)


def test_a_death_is_harm_the_earlier_the_more_and_what_is_unknown_stays_so() -> None:
    time = np.array([10.0, 200.0, 400.0, 400.0, np.nan])
    event = np.array([True, True, True, False, False])
    none = np.zeros(5, np.int64)
    left = residual_benefit(Outcome.survival(time, event), regimen=none, stratum=none, patient=np.arange(5))
    assert np.isnan(left[4])
    assert (np.diff(left[:4]) > 0).all()
    with pytest.raises(IndexError):
        residual_benefit(Outcome.binary([1.0, 0.0]), regimen=none[:1], stratum=none[:2], patient=none[:2])
