"""Invented patients that exercise every input of a schema: what the network is traced with and proves itself on.

A *golden case* is such a patient as a plain dictionary (:mod:`ican_ml.inputs.patient`) with treatments to ask about.
What it becomes as arrays, and what the network says of these, are kept in the bundle: whoever reads a patient otherwise
than the exporter did, by one statistic, limit or rule, is told so before anybody is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.bundle.read import MALFORMED, Bundle, BundleError, deviation
from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.answer import summarise
from ican_ml.inputs.encode import Arrays, OmicsRows, PatientStates, joined
from ican_ml.inputs.limits import check_inputs, input_limits
from ican_ml.inputs.patient import patient_inputs
from ican_ml.inputs.regimens import INHIBITOR, Regimen
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.records.vocabulary import Events, Vocabulary

Case = dict[str, Any]
NOW = np.datetime64("2024-05-02T08:00", "us")
_DAY = 86_400_000_000
_CASES, _SEED = 7, 20
_SPAN_DAYS, _TOKENS_BEYOND = 400, 8
_FROM_CENTRE = (-1e7, -7.0, -3.0, -0.5, 0.0, 1.0, 4.0, 40.0)


def golden_cases(schema: InputSchema) -> list[Case]:
    """``{"patient", "treatments"}`` each; the first has nothing, the last a record longer than the network takes."""
    states = invented_patients(schema, _CASES, _SEED)
    patients = [as_document(schema, states, row) for row in range(_CASES)]
    treatments = [[list(regimen) for regimen in regimens] for regimens in states.regimens]
    treatments[-1] += [[drug] for drug in schema.drugs]
    last = patients[-1]
    if schema.vocabulary is not None:
        for patient, codes in zip(patients[1:], _unknown_codes(schema.vocabulary), strict=False):
            patient["events"] += _of_codes(codes[: schema.max_events])
        last["events"] += _long_record(schema, schema.vocabulary)
    for covariate in schema.covariates:
        if covariate.categories is None:
            last["covariates"][covariate.name] = 1e9
    for modality in schema.modalities:
        values, panel = last["omics"][modality.name], list(modality.panels).index(last["assays"][modality.name]) + 1
        measured = np.flatnonzero(modality.measured()[panel])[: modality.max_tokens + _TOKENS_BEYOND]
        values |= {modality.features[i]: 1.0 for i in measured.tolist() if modality.features[i] not in values}
        values["a feature without a name"] = 1
    return [{"patient": patient, "treatments": asked} for patient, asked in zip(patients, treatments, strict=True)]


def case_inputs(schema: InputSchema, case: Mapping[str, Any]) -> Arrays:
    """The network's arrays for one golden case, by the path that serves a patient."""
    return patient_inputs(schema, case["patient"], [tuple(regimen) for regimen in case["treatments"]])[0]


def prove(bundle: Bundle, run: Callable[[Arrays], Arrays]) -> None:
    """Read the golden cases of a bundle anew, and ask its network about them.

    Parameters
    ----------
    run
        The network: inputs -> outputs by name.

    Raises
    ------
    BundleError
        If this version reads a case, or this machine computes an answer, otherwise than where the bundle was exported.
    """
    try:
        check_inputs(input_limits(bundle.schema), bundle.golden_inputs)
        read = joined([case_inputs(bundle.schema, case) for case in bundle.golden_cases])
        outputs = run(bundle.golden_inputs)
        answers = {task.name: summarise(task, outputs[task.name]) for task in bundle.schema.tasks}
    except MALFORMED as error:
        raise BundleError(f"bundle: expected golden cases that this version can read ({error!s:.200})") from None
    for name, expected in bundle.golden_inputs.items() if read else ():
        if not deviation(read[name], expected) <= bundle.tolerance:
            raise BundleError(
                f"bundle: the golden cases become another {name!r} than was exported; this version of ican_ml reads "
                "patients otherwise: install the one that exported the bundle, or export it again"
            )
    for found, known in ((outputs, bundle.golden_outputs), (answers, bundle.golden_answers)):
        for name, expected in known.items():
            difference = deviation(found[name], expected)
            if not difference <= bundle.tolerance:
                raise BundleError(
                    f"bundle: golden case of {name!r} differs by {difference:.2g}, expected at most "
                    f"{bundle.tolerance:g}; this machine or its onnxruntime does not compute what was exported"
                )


def _long_record(schema: InputSchema, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Events over 400 days, of one code more than are kept, with far out values; a static one, and one to come."""
    pairs = list(vocabulary.normal.items()) or [((code, ""), (0.0, 1.0)) for code in vocabulary.codes[:1]]
    n = schema.max_events + 2 * schema.max_per_code
    found: list[dict[str, Any]] = []
    for i in range(n if pairs else 0):
        (code, unit), (centre, scale) = pairs[i % len(pairs) if i >= 2 * schema.max_per_code else 0]
        time = NOW - np.timedelta64(round(_SPAN_DAYS * _DAY * i / n), "us")
        value = centre + scale * _FROM_CENTRE[i % len(_FROM_CENTRE)]
        found.append({"code": code, "time": str(time), "value": float(value), "unit": unit})
    found.append({"code": "a code without a name"})
    return [*found, *({**event, "time": str(NOW + np.timedelta64(1, "D"))} for event in found[:1])]


def _unknown_codes(vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    """Codes that are not in the vocabulary and have others above them: told to be so, and told by their text."""
    known = set(vocabulary.codes)
    below = [code + ending for code in vocabulary.codes for ending in ("99", ".91", "//below")]
    return [code for code in vocabulary.parents if code not in known], [code for code in below if code not in known]


def _of_codes(codes: list[str]) -> list[dict[str, Any]]:
    return [{"code": code, "time": str(NOW - np.timedelta64(i * _DAY // 8, "us"))} for i, code in enumerate(codes)]


def as_document(schema: InputSchema, states: PatientStates, row: int) -> dict[str, Any]:
    """One patient as the plain dictionary that :mod:`ican_ml.inputs.patient` reads."""
    document: dict[str, Any] = {"prediction_time": str(NOW), "omics": {}, "assays": {}, "events": []}
    for modality in schema.modalities:
        part = states.omics[modality.name]
        if part.panel[row]:
            one = part.matrix.take(np.array([row]))
            values = zip(one.indices.tolist(), one.values.tolist(), strict=True)
            document["omics"][modality.name] = {modality.features[i]: value for i, value in values}
            document["assays"][modality.name] = list(modality.panels)[int(part.panel[row]) - 1]
    document["covariates"] = {name: values[row] for name, values in states.covariates.items()}
    if states.events is None:
        return document
    events = states.events
    if not np.isnan(events.age[row]):
        days = np.timedelta64(round(float(events.age[row]) * 365.25), "D")
        document["birth_time"] = str(NOW - days)
    times = times_of(events)
    for i in range(int(events.offsets[row]), int(events.offsets[row + 1])):
        event: dict[str, Any] = {"code": events.codes[events.code[i]], "unit": events.units[events.unit[i]]}
        if not np.isnat(times[i]):
            event["time"] = str(times[i])
        if not np.isnan(events.value[i]):
            event["value"] = float(events.value[i])
        document["events"].append(event)
    return document


def times_of(events: Events) -> npt.NDArray[np.datetime64]:
    """datetime64[us]: what ``gap`` counts from; NaT = static."""
    time = NOW - (events.gap.astype(np.float64) * _DAY).astype("timedelta64[us]")
    time[events.gap < 0] = np.datetime64("NaT")
    return time


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
