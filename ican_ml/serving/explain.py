"""What drove an answer: the patient asked again without each gene, code, covariate and modality, all in one batch.

Occlusion (Zeiler and Fergus 2014, arXiv:1311.2901): the *effect* of a part is the prediction with it less the
prediction without it. Without a gene: not altered, not measured where the modality tells that apart, or at what is
usual for a count. Without a code: none of its events. Parts that stand for one another each show little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ican_ml.inputs.schema import InputSchema, ModalitySchema

_TARGET_SUM = 1e4
_MOST_GENES, _MOST_CODES = 48, 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """One part of the patient and its effect on one regimen's first prediction.

    ``kind``: gene, event, covariate, birth or modality. ``name``: of the feature, code, covariate or modality.
    """

    kind: str
    name: str
    modality: str | None
    effect: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """The patient without one part."""

    kind: str
    name: str
    modality: str | None
    patient: dict[str, Any]


def variants(schema: InputSchema, patient: Mapping[str, Any]) -> Iterator[Variant]:
    """The patient without each part that the model reads; one that :func:`read_patient` takes."""
    omics, events = patient.get("omics") or {}, patient.get("events") or []
    for modality in schema.modalities:
        values = omics.get(modality.name)
        if values is None:
            continue
        assays = {name: assay for name, assay in (patient.get("assays") or {}).items() if name != modality.name}
        rest = {name: each for name, each in omics.items() if name != modality.name}
        yield Variant(
            kind="modality",
            name=modality.name,
            modality=modality.name,
            patient={**patient, "omics": rest, "assays": assays},
        )
        for feature in _telling(modality, values):
            without = _without(modality, values, feature)
            yield Variant(
                kind="gene",
                name=feature,
                modality=modality.name,
                patient={**patient, "omics": {**omics, modality.name: without}},
            )
    if schema.vocabulary is not None:
        latest: dict[str, str] = {}
        for event in events:
            latest[event["code"]] = max(latest.get(event["code"], ""), str(event.get("time") or ""))
        for code in sorted(latest, key=lambda code: (latest[code], code), reverse=True)[:_MOST_CODES]:
            rest_of = [event for event in events if event["code"] != code]
            yield Variant(kind="event", name=code, modality=None, patient={**patient, "events": rest_of})
        if patient.get("birth_time") is not None:
            yield Variant(kind="birth", name="age", modality=None, patient={**patient, "birth_time": None})
    covariates = patient.get("covariates") or {}
    for covariate in schema.covariates:
        if covariates.get(covariate.name) is not None:
            without_it = {**covariates, covariate.name: None}
            yield Variant(
                kind="covariate", name=covariate.name, modality=None, patient={**patient, "covariates": without_it}
            )


def _telling(modality: ModalitySchema, values: Mapping[str, Any]) -> list[str]:
    """Features that the model knows, those farthest from what is usual first."""
    position = modality.position
    known = [f for f, value in values.items() if f in position and value is not None and (value or modality.explicit)]
    at = np.array([position[feature] for feature in known], np.int64)
    raw = np.array([values[feature] for feature in known], np.float64)
    if modality.kind == "count":
        raw = np.log1p(raw * (_TARGET_SUM / max(raw.sum(), 1.0)))
    scaled = np.abs((raw - modality.mean[at]) * modality.inverse_sd[at])
    return [known[i] for i in np.lexsort((at, -scaled))[: min(_MOST_GENES, modality.max_tokens)]]


def _without(modality: ModalitySchema, values: Mapping[str, Any], feature: str) -> dict[str, Any]:
    rest = {name: value for name, value in values.items() if name != feature}
    if modality.kind == "count":
        total = sum(value for value in values.values() if value)
        usual = float(np.expm1(modality.mean[modality.position[feature]]))
        rest[feature] = max(0.0, usual) * total / _TARGET_SUM
    return rest
