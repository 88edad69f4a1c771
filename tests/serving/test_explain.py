"""What drove an answer: the effect of a part is what asking again without it says."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from ican_ml.bundle.read import Arrays
from ican_ml.inputs.encode import joined
from ican_ml.serving.explain import variants
from ican_ml.serving.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(sim_bundle: Any) -> Predictor:
    return Predictor(sim_bundle)


@pytest.fixture(scope="module")
def patient(predictor: Predictor) -> dict[str, Any]:
    mutation = next(m for m in predictor.schema.modalities if m.name == "mutation")
    measured = np.flatnonzero(mutation.measured()[1 + list(mutation.panels).index("wide")])
    altered, other = (mutation.features[i] for i in measured[:2])
    return {
        "prediction_time": "2024-05-02",
        "birth_time": "1957-03-11",
        "omics": {"mutation": {altered: 1, other: 0, "not one of ours": 1}},
        "assays": {"mutation": "wide"},
        "events": [
            {"code": "LAB//HGB", "time": "2024-04-30T08:15", "value": 70, "unit": "g/L"},
            {"code": "LAB//HGB", "time": "2024-04-01", "value": 80, "unit": "g/L"},
            {"code": "ECOG", "time": "2024-04-30", "value": 3},
        ],
        "covariates": {"indication": "LUNG", "line": None},
    }


def test_an_effect_is_what_asking_again_says(predictor: Predictor, patient: dict[str, Any]) -> None:
    regimen = (predictor.schema.drugs[0],)
    before = deepcopy(patient)
    answer = predictor.predict(patient, [regimen], explain=True)
    assert patient == before
    task = answer.task
    whole = answer.ranked[0].prediction[task]
    by_part = {(driver.kind, driver.name): driver.effect for driver in answer.drivers}
    assert set(by_part) == {
        ("modality", "mutation"),
        ("gene", next(iter(patient["omics"]["mutation"]))),
        ("event", "LAB//HGB"),
        ("event", "ECOG"),
        ("birth", "age"),
        ("covariate", "indication"),
    }
    for variant in variants(predictor.schema, patient):
        alone = predictor.predict(variant.patient, [regimen]).ranked[0].prediction[task]
        assert by_part[variant.kind, variant.name] == pytest.approx(whole - alone, abs=1e-6)
    assert [abs(d.effect) for d in answer.drivers] == sorted((abs(d.effect) for d in answer.drivers), reverse=True)


def test_what_is_not_there_is_not_a_part(predictor: Predictor) -> None:
    assert list(variants(predictor.schema, {})) == []
    assert predictor.predict({}, [(predictor.schema.drugs[0],)], explain=True).drivers == ()


def test_patients_joined_are_answered_as_alone(predictor: Predictor, patient: dict[str, Any]) -> None:
    drugs = predictor.schema.drugs
    asked: list[tuple[dict[str, Any], list[tuple[str, ...]]]] = [
        (patient, [(drugs[0],), (drugs[1], drugs[2])]),
        ({}, [(drugs[3],)]),
        ({**patient, "events": None}, [(drugs[0],)]),
    ]
    together = predictor.predict_batch(asked)
    for (one, regimens), answer in zip(asked, together, strict=True):
        alone = predictor.predict(one, regimens)
        assert [ranked.regimen for ranked in answer.ranked] == [ranked.regimen for ranked in alone.ranked]
        for got, expected in zip(answer.ranked, alone.ranked, strict=True):
            assert got.prediction == pytest.approx(expected.prediction, rel=1e-5)


def test_joining_keeps_every_value(predictor: Predictor, patient: dict[str, Any]) -> None:
    parts: list[Arrays] = [predictor.inputs(one, [(predictor.schema.drugs[0],)])[0] for one in (patient, {}, patient)]
    batch = joined(parts)
    for name, values in batch.items():
        if not name.endswith("_indptr"):
            assert values.sum() == pytest.approx(sum(part[name].sum() for part in parts))
    assert batch["mutation_indptr"].tolist() == [0, 1, 1, 2]
