"""A patient as a plain dictionary: the same bits as in training, and one clear message for what cannot be used."""

import json
from typing import Any

import numpy as np
import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.inputs.assemble import CohortStates, as_dictionary
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.patient import PatientError, read_patient
from ican_ml.inputs.schema import InputSchema
from ican_ml.records.store import RecordStore

FIRST = np.zeros(1, np.int64)
FOCUSED = {"omics": {"mutation": {}}, "assays": {"mutation": "focused"}}


def _inputs(schema: InputSchema, patient: dict[str, Any], *regimens: tuple[str, ...]) -> dict[str, Any]:
    states, _ = read_patient(schema, patient, regimens or [("RAF-101",)])
    return collate(encode(schema, states, backend="reference"), FIRST)


def _assert_same(got: dict[str, Any], expected: dict[str, Any], where: str = "") -> None:
    assert list(got) == list(expected)
    for name in got:
        assert got[name].dtype == expected[name].dtype, (where, name)
        assert np.array_equal(got[name], expected[name]), (where, name)


def test_a_dictionary_gives_the_bits_that_training_saw(
    sim_cohort: Cohort, sim_records: RecordStore, sim_schema: InputSchema, sim_states: CohortStates
) -> None:
    served = InputSchema.from_json(json.loads(json.dumps(sim_schema.to_json())))
    trained = encode(sim_schema, sim_states.patients, backend="cpu")
    assert trained.n_rows >= 200
    for row in range(220):
        text = json.dumps(as_dictionary(sim_cohort, sim_records, sim_states, row), allow_nan=False)
        got = _inputs(served, json.loads(text), *sim_states.patients.regimens[row])
        _assert_same(got, collate(trained, np.array([row])), f"row {row}")


def test_a_patient_of_whom_nothing_is_known_has_no_inputs(sim_schema: InputSchema) -> None:
    states, notes = read_patient(sim_schema, {}, [("RAF-101",)])
    inputs = collate(encode(sim_schema, states, backend="reference"), FIRST)
    assert not any(inputs[f"{m.name}_panel"].any() for m in sim_schema.modalities)
    assert not any(inputs[name].any() for name in ("event_code", "treatment_state_known"))
    assert notes.record["events"] == 0
    blank = dict.fromkeys(("prediction_time", "birth_time", "omics", "assays", "events", "covariates"))
    _assert_same(_inputs(sim_schema, blank), inputs)
    _assert_same(_inputs(sim_schema, {"omics": {"mutation": None}}), inputs)


def test_a_modality_with_nothing_found_is_not_one_that_was_not_measured(sim_schema: InputSchema) -> None:
    assert _inputs(sim_schema, FOCUSED)["mutation_panel"] == [1]
    assert _inputs(sim_schema, {})["mutation_panel"] == [0]


def test_what_is_left_aside_is_counted(sim_schema: InputSchema) -> None:
    patient = {
        "prediction_time": "2020-01-01",
        "birth_time": "1950-01-01",
        "omics": {"expression": {"no such gene": 3.0}},
        "events": [
            {"code": "SEX//F"},
            {"code": "LAB//HGB", "time": "2020-01-02"},
            {"code": "NEW", "time": "2019-01-01"},
        ],
        "covariates": {"indication": "a new one", "line": 1},
    }
    _, notes = read_patient(sim_schema, patient, [("RAF-101",)])
    assert notes.unknown_features == {"expression": 1}
    assert notes.unknown_covariates == ("indication",)
    assert notes.events_after_prediction == 1
    assert notes.record["events"] == 2
    assert notes.record["unknown"] == 0.5


def test_an_event_after_the_prediction_changes_nothing(sim_schema: InputSchema) -> None:
    known = {"code": "LAB//HGB", "time": "2019-12-31T08:00", "value": 112, "unit": "g/L"}
    later = {**known, "time": "2020-01-01T00:00:00.000001"}
    before = {"prediction_time": "2020-01-01", "events": [known]}
    _assert_same(_inputs(sim_schema, {**before, "events": [later, known]}), _inputs(sim_schema, before))


def test_the_order_of_the_dictionary_is_free(sim_schema: InputSchema) -> None:
    events = [
        {"code": f"LAB//{c}", "time": "2019-01-01", "value": v} for c, v in (("HGB", 120), ("HGB", 110), ("X", 1))
    ]
    omics = {"cnv": {feature: i - 2.5 for i, feature in enumerate(sim_schema.modalities[0].features[:6])}}
    forward = {"events": events, "omics": omics}
    backward = {"events": events[::-1], "omics": {"cnv": dict(reversed(omics["cnv"].items()))}}
    _assert_same(_inputs(sim_schema, backward), _inputs(sim_schema, forward))


def _mutation(value: object) -> dict[str, Any]:
    return {"omics": {"mutation": {"A": value}}, "assays": {"mutation": "wide"}}


BAD: list[tuple[Any, str]] = [
    ([], "patient"),
    ({"name": "x"}, "patient"),
    ({"omics": []}, "omics"),
    ({"omics": {"proteome": {}}}, "omics"),
    ({"omics": {"expression": [1, 2]}}, r"omics\.expression"),
    ({"omics": {"expression": {"A": float("nan")}}}, r"omics\.expression\.A"),
    ({"omics": {"expression": {"A": float("inf")}}}, r"omics\.expression\.A"),
    ({"omics": {"expression": {"A": 1e39}}}, r"omics\.expression\.A"),
    ({"omics": {"expression": {"A": 10**400}}}, r"omics\.expression\.A"),
    ({"omics": {"expression": {"A": "12"}}}, r"omics\.expression\.A"),
    ({"omics": {"expression": {"A": True}}}, r"omics\.expression\.A"),
    ({"omics": {"expression": {"A": None}}}, r"omics\.expression\.A"),
    ({"omics": {"expression": {"A": -1}}}, r"omics\.expression\.A: expected a count"),
    (_mutation(0.5), r"omics\.mutation\.A: expected 0 or 1"),
    ({"omics": {"mutation": {}}}, r"assays\.mutation: expected one of \['focused', 'wide'\]"),
    ({"omics": {"mutation": {}}, "assays": {"mutation": "other"}}, r"assays\.mutation"),
    ({"assays": {"mutation": "wide"}}, r"assays\.mutation: expected omics\.mutation beside it"),
    ({"assays": {"proteome": "wide"}}, "assays"),
    ({"events": {}}, "events: expected a list"),
    ({"events": "SEX//F"}, "events: expected a list"),
    ({"events": [1]}, r"events\[0\]"),
    ({"events": [{}]}, r"events\[0\]\.code"),
    ({"events": [{"code": "A"}, {"code": "A", "when": "2020-01-01"}]}, r"events\[1\]"),
    ({"events": [{"code": "A", "time": "yesterday"}]}, r"events\[0\]\.time"),
    ({"events": [{"code": "A", "time": "2020-01-01T00:00Z"}]}, r"events\[0\]\.time.*timezone"),
    ({"events": [{"code": "A", "value": "high"}]}, r"events\[0\]\.value"),
    ({"events": [{"code": "A", "value": float("-inf")}]}, r"events\[0\]\.value"),
    ({"events": [{"code": "A", "unit": 3}]}, r"events\[0\]\.unit"),
    ({"prediction_time": "2020-13-01"}, "prediction_time"),
    ({"prediction_time": 20200101}, "prediction_time"),
    ({"prediction_time": "2020-01-01T00:00+02:00"}, "prediction_time.*timezone"),
    ({"birth_time": ""}, "birth_time"),
    ({"covariates": {"ward": 3}}, "covariates"),
    ({"covariates": {"line": "two"}}, r"covariates\.line"),
    ({"covariates": {"indication": 3}}, r"covariates\.indication"),
]


@pytest.mark.parametrize(("patient", "field"), BAD)
def test_what_cannot_be_used_is_refused_by_name(sim_schema: InputSchema, patient: Any, field: str) -> None:
    with pytest.raises(PatientError, match=f"^{field}"):
        read_patient(sim_schema, patient, [("RAF-101",)])


def test_a_finding_outside_the_assay_is_refused(sim_schema: InputSchema) -> None:
    mutation = next(m for m in sim_schema.modalities if m.name == "mutation")
    outside = mutation.features[int(np.flatnonzero(~mutation.measured()[1])[0])]
    patient = {"omics": {"mutation": {outside: 1}}, "assays": {"mutation": "focused"}}
    with pytest.raises(PatientError, match=f"^omics.mutation.{outside}: .*'focused' measures"):
        read_patient(sim_schema, patient, [("RAF-101",)])
    read_patient(sim_schema, {**patient, "assays": {"mutation": "wide"}}, [("RAF-101",)])
