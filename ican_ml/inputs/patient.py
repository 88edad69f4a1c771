"""A plain patient dictionary -> patient states, checked at the door. What the clinical service takes.

    {
      "prediction_time": "2024-05-02",
      "birth_time": "1957-03-11",
      "omics": {"mutation": {"KRAS": 1}, "expression": {"ERBB2": 812, ...}},
      "assays": {"mutation": "panel_a"},
      "events": [{"code": "SEX//F"}, {"code": "LAB//HGB", "time": "2024-04-30T08:15", "value": 112, "unit": "g/L"}],
      "covariates": {"indication": "LUAD", "line": 2}
    }

Every part may be missing or null. A modality that is named was measured, even if ``{}``; one that is not named was
not. Of a sparse modality only the non-zero features need be given, and one that is not given is zero where the assay
measures it; of a dense one, a feature that is null or not given was not measured. Events after ``prediction_time`` are
not used, nor are features that the model does not know, nor categories that training did not see; all are noted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import CSRBatch
from ican_ml.inputs.encode import Arrays, OmicsRows, PatientStates, collate, encode
from ican_ml.inputs.regimens import Regimen
from ican_ml.inputs.schema import InputSchema, ModalitySchema
from ican_ml.records.store import BIRTH, build_store, history
from ican_ml.records.vocabulary import Events

_FIELDS = ("prediction_time", "birth_time", "omics", "assays", "events", "covariates")
_EVENT_FIELDS = ("code", "time", "value", "unit")
_LARGEST = float(np.finfo(np.float32).max)


class PatientError(ValueError):
    """A patient dictionary that cannot be used: names the field, what was expected and what came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatientNotes:
    """What was left aside or not understood.

    Attributes
    ----------
    unknown_features
        By modality: how many features the model does not know.
    unknown_covariates
        Covariates whose category training did not see.
    events_after_prediction
        How many events were later than ``prediction_time``.
    missing
        Modalities that were not measured, and ``record`` where the model reads one and knows no event of it.
    record
        See :meth:`ican_ml.records.vocabulary.Vocabulary.coverage`; empty where the model uses no records.
    """

    unknown_features: dict[str, int]
    unknown_covariates: tuple[str, ...]
    events_after_prediction: int
    missing: tuple[str, ...]
    record: dict[str, float]


def patient_inputs(
    schema: InputSchema, patient: Mapping[str, Any], regimens: Sequence[Regimen]
) -> tuple[Arrays, PatientNotes]:
    """The network's arrays for one patient: what is served, and what golden cases prove; see :func:`read_patient`."""
    states, notes = read_patient(schema, patient, regimens)
    return collate(encode(schema, states, backend="reference"), np.zeros(1, np.int64)), notes


def read_patient(
    schema: InputSchema, patient: Mapping[str, Any], regimens: Sequence[Regimen]
) -> tuple[PatientStates, PatientNotes]:
    """Check a patient dictionary and turn it into a state of one row.

    Raises
    ------
    PatientError
        Unknown fields, modalities, assays or covariates; values that are not finite numbers, or that the modality's
        kind or assay cannot have; times that do not parse.
    """
    _check_fields("patient", _mapping("patient", patient), _FIELDS)
    omics = {name: given for name, given in _mapping("omics", patient.get("omics")).items() if given is not None}
    assays = _mapping("assays", patient.get("assays"))
    known = {modality.name for modality in schema.modalities}
    for part, named in (("omics", omics), ("assays", assays)):
        if unknown := sorted(set(named) - known):
            raise PatientError(f"{part}: expected modalities among {sorted(known)}, got {unknown}")
    if unmeasured := sorted(set(assays) - set(omics)):
        raise PatientError(
            f"assays.{unmeasured[0]}: expected omics.{unmeasured[0]} beside it; give {{}} there if nothing was found"
        )
    unknown_features: dict[str, int] = {}
    rows = {}
    for modality in schema.modalities:
        if modality.name in omics:
            values = _mapping(f"omics.{modality.name}", omics[modality.name])
            rows[modality.name], unknown_features[modality.name] = _read_omics(
                modality, values, assays.get(modality.name)
            )
    moment = _time("prediction_time", patient.get("prediction_time"))
    events, later = _read_events(schema, patient, moment)
    covariates, unknown_covariates = _read_covariates(schema, patient)
    record = schema.vocabulary.coverage(events) if schema.vocabulary else {}
    missing = [modality.name for modality in schema.modalities if modality.name not in rows]
    if schema.vocabulary and not record["events"] * (1 - record["unknown"]):
        missing.append("record")
    return PatientStates(omics=rows, events=events, covariates=covariates, regimens=[list(regimens)]), PatientNotes(
        unknown_features=unknown_features,
        unknown_covariates=unknown_covariates,
        events_after_prediction=later,
        missing=tuple(missing),
        record=record,
    )


def _read_omics(modality: ModalitySchema, values: Mapping[str, Any], assay: object) -> tuple[OmicsRows, int]:
    panels = list(modality.panels)
    if assay is None and len(panels) == 1:
        assay = panels[0]
    if assay not in panels:
        raise PatientError(f"assays.{modality.name}: expected one of {panels}, got {assay!r}")
    panel = panels.index(str(assay)) + 1
    position, where = modality.position, f"omics.{modality.name}"
    given = {feature: value for feature, value in values.items() if not (value is None and modality.explicit)}
    features = list(given)
    numbers = [
        value if type(value) in (int, float) and -_LARGEST <= value <= _LARGEST else _number(f"{where}.{f}", value)
        for f, value in given.items()
    ]
    number = np.array(numbers, np.float32)
    at = np.array([position.get(feature, -1) for feature in features], np.int64)

    def refuse(wrong: npt.NDArray[np.bool_], expected: str) -> None:
        for i in np.flatnonzero(wrong).tolist()[:1]:
            raise PatientError(f"{where}.{features[i]}: expected {expected}, got {numbers[i]:g}")

    if modality.kind == "count":
        refuse(number < 0, "a count of at least 0")
    elif modality.kind == "binary":
        refuse((number != 0) & (number != 1), "0 or 1")
    kept = (at >= 0) & ((number != 0) | modality.explicit)
    if not modality.explicit:
        refuse(kept & ~modality.measured()[panel][at], f"a feature that the assay {assay!r} measures")
    kept = np.flatnonzero(kept)
    kept = kept[np.argsort(at[kept])]
    matrix = CSRBatch(
        np.array([0, len(kept)], np.int64), at[kept].astype(np.int32), number[kept], len(modality.features)
    )
    unknown = len(values.keys() - position.keys())
    return OmicsRows(matrix=matrix, panel=np.array([panel], np.int64)), unknown


def _read_events(schema: InputSchema, patient: Mapping[str, Any], moment: np.datetime64) -> tuple[Events, int]:
    listed = [] if patient.get("events") is None else patient["events"]
    if not isinstance(listed, list | tuple):
        raise PatientError(f"events: expected a list of events, got {type(listed).__name__}")
    times: list[np.datetime64] = []
    codes: list[str] = []
    values: list[float] = []
    units: list[str] = []
    for i, event in enumerate(listed):
        event = _mapping(f"events[{i}]", event)
        _check_fields(f"events[{i}]", event, _EVENT_FIELDS)
        code = event.get("code")
        if not isinstance(code, str) or not code:
            raise PatientError(f"events[{i}].code: expected a code, got {code!r}")
        value, unit = event.get("value"), event.get("unit")
        if unit is not None and not isinstance(unit, str):
            raise PatientError(f"events[{i}].unit: expected text, got {unit!r}")
        codes.append(code)
        units.append((unit or "").strip())
        times.append(_time(f"events[{i}].time", event.get("time")))
        values.append(math.nan if value is None else _number(f"events[{i}].value", value))
    later = 0 if np.isnat(moment) else int((np.array(times, "datetime64[us]") > moment).sum())
    if patient.get("birth_time") is not None:
        codes.append(BIRTH)
        units.append("")
        times.append(_time("birth_time", patient["birth_time"]))
        values.append(math.nan)
    distinct_codes, distinct_units = sorted(set(codes)), sorted(set(units))
    store = build_store(
        subject_id=np.zeros(len(codes), np.int64),
        time=np.array(times, "datetime64[us]"),
        code=np.array([distinct_codes.index(code) for code in codes], np.int64),
        value=np.array(values, np.float32),
        unit=np.array([distinct_units.index(unit) for unit in units], np.int64),
        codes=distinct_codes,
        units=distinct_units,
        parents=schema.vocabulary.parents if schema.vocabulary else {},
    )
    return history(store, np.zeros(1, np.int64), np.array([moment])), later


def _read_covariates(
    schema: InputSchema, patient: Mapping[str, Any]
) -> tuple[dict[str, list[object]], tuple[str, ...]]:
    given = _mapping("covariates", patient.get("covariates"))
    known = {covariate.name: covariate for covariate in schema.covariates}
    if unknown := sorted(set(given) - set(known)):
        raise PatientError(f"covariates: expected names among {sorted(known)}, got {unknown}")
    read: dict[str, list[object]] = {}
    unseen: list[str] = []
    for name, value in given.items():
        categories = known[name].categories
        if value is not None and categories is None:
            value = _number(f"covariates.{name}", value)
        elif value is not None and not isinstance(value, str | bool):
            raise PatientError(f"covariates.{name}: expected text, got {value!r}")
        elif value is not None and categories is not None and str(value) not in categories:
            unseen.append(name)
        read[name] = [value]
    return read, tuple(unseen)


def _check_fields(where: str, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    if unknown := sorted(map(str, set(given) - set(allowed))):
        raise PatientError(f"{where}: expected fields among {list(allowed)}, got {unknown}")


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PatientError(f"{where}: expected an object, got {type(value).__name__}")
    return value


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise PatientError(f"{where}: expected a number, got {value!r}")
    if not -_LARGEST <= value <= _LARGEST:
        raise PatientError(f"{where}: expected a finite number that fits float32, got {value!r:.40}")
    return float(value)


def _time(where: str, value: object) -> np.datetime64:
    if value is None:
        return np.datetime64("NaT", "us")
    try:
        moment = datetime.fromisoformat(str(value) if isinstance(value, str | date) else "")
    except ValueError:
        raise PatientError(f"{where}: expected a date or time like 2024-05-02T08:15, got {value!r}") from None
    if moment.tzinfo is not None:
        raise PatientError(f"{where}: expected local wall time without a timezone, got {value!r}")
    return np.datetime64(moment, "us")
