"""Invented patients that exercise every input of a schema: what the network is traced with and proves itself on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.encode import OmicsRows, PatientStates
from ican_ml.inputs.regimens import INHIBITOR, Regimen
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.records.vocabulary import Events


def invented_patients(schema: InputSchema, n: int, seed: int) -> PatientStates:
    """``n`` patients drawn from the schema alone; the first has nothing measured, no record and no treatment named."""
    rng = np.random.default_rng(seed)
    return PatientStates(
        omics={modality.name: _omics(modality, n, rng) for modality in schema.modalities},
        events=_events(schema, n, rng),
        covariates={
            c.name: [
                None,
                *(rng.normal(size=n - 1) if c.categories is None else rng.choice(c.categories or ("",), n - 1)),
            ]
            for c in schema.covariates
        },
        regimens=[[(), *_regimens(schema, rng)] if i else [()] for i in range(n)],
    )


def _omics(modality: ModalitySchema, n: int, rng: np.random.Generator) -> OmicsRows:
    panel = np.append(0, rng.integers(1, len(modality.panels) + 1, n - 1))
    chance = 0.9 if modality.explicit else min(0.9, max(0.05, 8 / len(modality.features)))
    stored = (rng.random((n, len(modality.features))) < chance) & modality.measured()[panel]
    indptr = np.append(0, np.cumsum(stored.sum(axis=1))).astype(np.int64)
    indices = np.nonzero(stored)[1].astype(np.int32)
    values: npt.NDArray[np.floating[Any]]
    if modality.kind == "binary":
        values = np.ones(len(indices))
    elif modality.kind == "count":
        values = rng.negative_binomial(2, 0.05, len(indices)) + 1.0
    else:
        spread = np.divide(1.0, modality.inverse_sd, out=np.zeros_like(modality.mean), where=modality.inverse_sd > 0)
        values = modality.mean[indices] + spread[indices] * rng.normal(size=len(indices))
    return OmicsRows(matrix=CSRBatch(indptr, indices, values.astype(np.float32), len(modality.features)), panel=panel)


def _events(schema: InputSchema, n: int, rng: np.random.Generator) -> Events | None:
    if schema.vocabulary is None:
        return None
    codes = schema.vocabulary.codes or ("a code without a name",)
    units = tuple(sorted({"", *(unit for _, unit in schema.vocabulary.normal)}))
    length = np.append(0, rng.integers(1, 12, n - 1))
    code = rng.integers(0, len(codes), int(length.sum())).astype(np.int32)
    unit_of_code = {name: units.index(unit) for name, unit in schema.vocabulary.normal}
    valued = np.array([codes[c] in unit_of_code for c in code], bool)
    return Events(
        offsets=np.append(0, np.cumsum(length)).astype(np.int64),
        code=code,
        value=np.where(valued, rng.gamma(2.0, 20.0, len(code)), np.nan).astype(np.float32),
        unit=np.array([unit_of_code.get(codes[c], 0) for c in code], np.int32),
        gap=np.round(rng.gamma(1.0, 300.0, len(code))).astype(np.float32),
        age=np.append(np.nan, rng.uniform(20, 90, n - 1)).astype(np.float32),
        codes=codes,
        units=units,
        parents=schema.vocabulary.parents,
    )


def _regimens(schema: InputSchema, rng: np.random.Generator) -> list[Regimen]:
    unknown = ("a drug without a name", "another drug without a name")
    asked: list[Regimen] = [unknown[:1], unknown]
    if schema.genes:
        inhibitor = f"{INHIBITOR}{rng.choice(schema.genes)}"
        asked += [(inhibitor,), (unknown[0], inhibitor)]
    if schema.drugs:
        asked.append((str(rng.choice(schema.drugs)),))
        asked.append(tuple(sorted({str(drug) for drug in rng.choice(schema.drugs, 3)})))
    return asked
