"""An invented patient that a model can be asked about: what the page opens with. Drawn from the bundle alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.serving.predictor import Predictor

_NOW = datetime(2024, 5, 2, 9, 0)
_EVENTS, _GENES, _TRIES = 30, 4, 12


def example_patient(predictor: Predictor) -> dict[str, Any]:
    """A plain patient (:mod:`ican_ml.inputs.patient`): of a few drawn at random the one most like those of training.

    What is invented gene by gene looks like no tumour; a modality in which it does not is left out.
    """
    schema = predictor.schema
    asked = [(schema.drugs[0],) if schema.drugs else ()]
    tried = [_drawn(schema, np.random.default_rng(seed)) for seed in range(_TRIES)]
    judged = [predictor.predict(patient, asked).applicability for patient in tried]
    for modality in schema.modalities:
        if all(each is None or each.parts.get(modality.name, 0.0) <= each.threshold for each in judged):
            continue
        for patient in tried:
            del patient["omics"][modality.name], patient["assays"][modality.name]
    judged = [predictor.predict(patient, asked).applicability for patient in tried]
    return tried[int(np.argmin([0.0 if each is None else each.score for each in judged]))]


def _drawn(schema: InputSchema, rng: np.random.Generator) -> dict[str, Any]:
    patient: dict[str, Any] = {"prediction_time": _NOW.isoformat(timespec="minutes")}
    if schema.vocabulary is not None:
        patient["birth_time"] = (_NOW - timedelta(days=int(rng.integers(45, 75)) * 365)).date().isoformat()
        patient["events"] = _events(schema, rng)
    patient["omics"] = {m.name: _omics(m, rng) for m in schema.modalities}
    patient["assays"] = {m.name: next(iter(m.panels)) for m in schema.modalities}
    patient["covariates"] = {
        c.name: str(rng.choice(c.categories)) if c.categories else None if c.categories is not None else 1
        for c in schema.covariates
    }
    return patient


def _omics(modality: ModalitySchema, rng: np.random.Generator) -> dict[str, float]:
    """Few altered features of a sparse modality, all of a dense or counted one near what is usual."""
    measured = np.flatnonzero(modality.measured()[1])
    if modality.kind == "binary" or (modality.kind == "continuous" and not modality.explicit):
        often = np.argsort(-np.abs(modality.mean[measured]), kind="stable")[: 5 * _GENES]
        chosen = sorted(rng.permutation(measured[often])[:_GENES].tolist())
        return {modality.features[i]: 1 for i in chosen}
    spread = np.divide(1.0, modality.inverse_sd, out=np.zeros_like(modality.mean), where=modality.inverse_sd > 0)
    noise = rng.normal(size=len(measured)) / 2
    values: npt.NDArray[np.floating[Any]] = modality.mean[measured] + spread[measured] * noise
    if modality.kind == "count":
        values = np.round(np.expm1(np.maximum(values, 0.0)))
    found = zip(measured.tolist(), values.tolist(), strict=True)
    return {modality.features[i]: round(float(value), 4) for i, value in found if value or modality.explicit}


def _events(schema: InputSchema, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Codes as often as training has them, by the mean of their counts."""
    vocabulary = schema.vocabulary
    assert vocabulary is not None
    mean = dict(zip(schema.summary_names, schema.summary_mean.tolist(), strict=True))
    often = {code: mean.get(f"{code}:count", 0.0) for code in vocabulary.codes if not code.startswith("MEDS_")}
    likely = {code: share for code, share in often.items() if share > 0}
    if not likely:
        return []
    total = sum(likely.values())
    chosen: list[str] = rng.choice(list(likely), _EVENTS, p=[share / total for share in likely.values()]).tolist()
    found = []
    for code in chosen:
        days = float(rng.gamma(1.5, 120.0))
        event: dict[str, Any] = {"code": code, "time": (_NOW - timedelta(days=days)).isoformat(timespec="minutes")}
        normal = next(((unit, of) for (name, unit), of in vocabulary.normal.items() if name == code), None)
        if normal is not None:
            unit, (centre, scale) = normal
            event["value"] = round(centre + scale * float(rng.normal()), 2)
            event["unit"] = unit
        found.append(event)
    return sorted(found, key=lambda event: str(event["time"]))
