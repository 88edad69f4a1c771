"""FHIR resources are read for what they state, and each is accounted for, whatever it holds."""

import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from ican_ml.cohort.accounting import Reason
from ican_ml.cohort.fhir import Index, Read, read_bundle, read_resources, resources_of
from ican_ml.cohort.fhir_values import FhirError, code_of, number_in, number_of, quantity_of, time_of
from tests.cohort.invented_fhir import NAME, NOTE, STREET, bundle, concept, observation, of_patient, resources, variant

HELSINKI = ZoneInfo("Europe/Helsinki")
FIRST = of_patient(resources(), "p-1")


def _read(listed: list[Any]) -> list[Read]:
    opened = [part for one in listed for part in resources_of(one)]
    index = Index()
    for position, (resource, full_url) in enumerate(opened):
        index.add(position, resource, full_url)
    return list(read_resources(opened, index, HELSINKI))


def _events(patient: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {event.pop("code"): event for event in patient["events"]}


def test_a_bundle_becomes_a_patient_dictionary() -> None:
    patient = read_bundle(bundle(FIRST), timezone="Europe/Helsinki", prediction_time="2021-04-15")
    assert patient["birth_time"] == "1957-03-15T00:00:00"
    assert patient["omics"] == {"mutation": {"EGFR": 0, "KRAS": 1, "TP53": 1}}, "the sample of June is later"
    known = "2021-03-04T10:00:00"
    assert _events(patient) == {
        "SEX//F": {},
        "ENCOUNTER//IMP": {"time": "2021-03-01T08:00:00"},
        "SNOMED//32485007": {"time": "2021-03-01T08:00:00"},
        "ENCOUNTER_END//IMP": {"time": "2021-03-05T12:00:00"},
        "SNOMED//254637007": {"time": "2021-03-02T00:00:00"},
        "STAGE//AJCC//3B": {"time": "2021-04-01T09:00:00"},
        "LOINC//718-7": {"time": known, "value": 11.25, "unit": "g/dL"},
        "LOINC//1988-5": {"time": known, "value": 5.0, "unit": "mg/L"},
        "LOINC//2857-1": {"time": known, "value": 7.5},
        "LOINC//85337-4//POSITIVE": {"time": known},
        "LOINC//10164-2": {"time": known},
        "LOINC//21908-9//AJCC//3B": {"time": known},
        "LOINC//97509-4//SNOMED//268910001": {"time": known},
        "LOINC//8480-6": {"time": known, "value": 121.0, "unit": "mm[Hg]"},
        "LOINC//8462-4": {"time": known, "value": 80.0, "unit": "mm[Hg]"},
        "RxNorm//1191": {"time": "2021-03-03T00:00:00"},
        "RxNorm//40048": {"time": "2021-03-04T00:00:00"},
        "ATC//L01XA01": {"time": "2021-03-01T00:00:00"},
        "SNOMED//392021009": {"time": "2021-04-01T09:00:00"},
        "COPY_NUMBER//ERBB2": {"time": "2021-03-10T00:00:00", "value": 8.0},
        "GERMLINE//BRCA2": {"time": "2021-03-10T00:00:00"},
    }


def test_every_resource_is_accounted_for() -> None:
    read = _read([bundle(resources())])
    assert [one.name for one in read] == [resource["id"] for resource in resources()]
    assert {one.name: one.found.reason for one in read if one.found.reason} == {
        "refuted": Reason.NOT_DONE,
        "wrong": Reason.NOT_DONE,
        "undated": Reason.NO_TIME,
        "unknown": Reason.NO_VALUE,
        "stranger": Reason.NO_SUBJECT,
        "plan": Reason.NOT_DONE,
        "m-1": Reason.UNUSED_TYPE,
        "goal": Reason.UNUSED_TYPE,
    }
    assert all(bool(one.found.events or one.found.variants) != bool(one.found.reason) for one in read)


def test_the_latest_version_of_a_resource_counts() -> None:
    versions = [
        {**observation("o", "718-7", valueInteger=value), "meta": {"lastUpdated": updated}}
        for value, updated in ((1, "2021-05-01T00:00:00Z"), (2, "2021-05-01T01:00:00+02:00"), (3, "2020-01-01"))
    ]
    read = _read([resources()[0], *versions])[1:]
    assert [one.found.reason for one in read] == [None, Reason.DUPLICATE, Reason.DUPLICATE]
    read = _read([resources()[0], *[{**version, "meta": {}} for version in versions]])[1:]
    assert [one.found.reason for one in read] == [Reason.DUPLICATE, Reason.DUPLICATE, None]


@pytest.mark.parametrize(
    "reference", ["Patient/p-1", "urn:uuid:u-1", "https://server.org/fhir/Patient/p-1", "Patient/p-1/_history/3"]
)
def test_references_are_found(reference: str) -> None:
    patient = {"fullUrl": "urn:uuid:u-1", "resource": resources()[0]}
    lab = observation("o", "718-7", subject={"reference": reference})
    read = _read([{"resourceType": "Bundle", "entry": [{"resource": lab}, patient]}])
    assert [one.patient for one in read] == ["p-1", "p-1"]
    other = observation("o", "718-7", subject={"reference": "Group/p-1"})
    assert _read([resources()[0], other])[1].found.reason is Reason.NO_SUBJECT


def test_variants_of_one_day_are_one_sample_and_the_latest_counts() -> None:
    listed = [
        resources()[0],
        variant("a", "KRAS", when="2021-03-01T08:00:00"),
        variant("b", "TP53", when="2021-03-01T17:00:00"),
        variant("c", "KRAS", when="2021-03-01T09:00:00", present="LA9634-2"),
        variant("d", "TP53", when="2021-03-09", present="LA9634-2"),
        variant("e", "KRAS", when="2021-03-09", present="LA18198-4"),
    ]
    for when, expected in {
        "2021-03-01T16:00:00": None,
        "2021-03-01T17:00:00": {"KRAS": 1, "TP53": 1},
        "2021-03-09": {"TP53": 0},
    }.items():
        found = read_bundle(bundle(listed), timezone="Europe/Helsinki", prediction_time=when)
        assert found.get("omics") == (None if expected is None else {"mutation": expected})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2015", datetime(2015, 12, 31)),
        ("2016-02", datetime(2016, 2, 29)),
        ("2015-03-04", datetime(2015, 3, 4)),
        ("2015-03-04T23:30:00Z", datetime(2015, 3, 5, 1, 30)),
        ("2015-07-04T23:30:00.25-05:00", datetime(2015, 7, 5, 7, 30, 0, 250_000)),
        ("2015-03-04T23:30:00", datetime(2015, 3, 4, 23, 30)),
        ("2015-02-30", None),
        ("2015-03-04T23:30:60Z", None),
        ("0001-01-01", None),
        ("yesterday", None),
        (20150304, None),
    ],
)
def test_times(given: object, expected: datetime | None) -> None:
    assert time_of(given, HELSINKI) == expected


def test_a_zone_is_never_cut() -> None:
    with pytest.raises(FhirError, match="--timezone"):
        time_of("2015-03-04T23:30:00Z", None)
    with pytest.raises(FhirError, match=r"--timezone: .*'Mars/Base'"):
        read_bundle(bundle(FIRST), timezone="Mars/Base")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("12.5", (12.5, "", "")),
        ("<5", (5.0, "", "<5")),
        ("≥ 7,25", (7.25, "", ">=7.25")),
        ("40 %", (40.0, "%", "")),
        ("1,234", None),
        ("120/80", None),
        ("3A", None),
        ("1e999", None),
        (None, None),
    ],
)
def test_numbers_in_text(given: object, expected: tuple[float, str, str] | None) -> None:
    assert number_in(given) == expected


def test_numbers_that_no_float32_holds_are_none() -> None:
    assert [number_of(value) for value in (True, float("nan"), float("inf"), 1e39, 10**400, "5")] == [None] * 6
    assert number_of(0.1) == float(np.float32(0.1))
    assert quantity_of({"value": 3, "unit": "mg per day", "code": "mg/d", "comparator": ">"}) == (
        3.0,
        "mg per day",
        ">3",
    )


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("http://snomed.info/sct|http://snomed.info/sct/900000000000207008", "SNOMED//7"),
        ("https://loinc.org/", "LOINC//7"),
        ("urn:oid:2.16.840.1.113883.6.90", "ICD10CM//7"),
        ("http://hospital.org/codes/lab", "lab//7"),
        ("urn:oid:1.2.3", "1.2.3//7"),
        (None, "LOCAL//7"),
    ],
)
def test_code_systems(system: str | None, expected: str) -> None:
    found = code_of({"coding": [{"system": system, "code": " 7 ", "display": "seven"}]})
    assert found is not None
    assert found[0] == expected


def test_a_text_is_no_code() -> None:
    assert code_of({"text": NOTE}) is None
    assert code_of(concept("http://loinc.org", "x" * 101)) is None


@pytest.mark.parametrize("text", [NAME, STREET, NOTE])
def test_names_and_free_text_are_not_taken_over(text: str) -> None:
    assert text in json.dumps(FIRST)
    assert text not in json.dumps(read_bundle(bundle(FIRST), timezone="Europe/Helsinki"))


def test_a_bundle_holds_one_patient() -> None:
    with pytest.raises(FhirError, match="one Patient, got 2"):
        read_bundle(bundle(resources()), timezone="Europe/Helsinki")
    with pytest.raises(FhirError, match="one Patient, got 0"):
        read_bundle([{"resourceType": "Bundle", "entry": {"resource": 3}}])
    with pytest.raises(FhirError, match="prediction_time: expected"):
        read_bundle(bundle(FIRST), timezone="Europe/Helsinki", prediction_time="soon")


def _mutate(value: Any, rng: np.random.Generator, odd: list[Any], depth: int = 0) -> Any:
    """The value with some field, anywhere in it, dropped, replaced or doubled."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        name = list(value)[int(rng.integers(len(value)))]
        changed = dict(value)
        action = rng.random()
        if action < 0.2:
            del changed[name]
        elif action < 0.45:
            changed[name] = odd[int(rng.integers(len(odd)))]
        elif action < 0.55:
            changed[name] = [changed[name], changed[name]]
        else:
            changed[name] = _mutate(changed[name], rng, odd, depth + 1)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = int(rng.integers(len(value)))
        return [*value[:at], _mutate(value[at], rng, odd, depth + 1), *value[at + int(rng.random() < 0.8) :]]
    return odd[int(rng.integers(len(odd)))]


def mutants(listed: list[dict[str, Any]], n: int, seed: int) -> list[Any]:
    """Resources changed at random, one to three times each; their ids are ``m0``, ``m1`` ... unless those change."""
    rng = np.random.default_rng(seed)
    odd = [None, True, 0, -1, 10**400, 1e308, float("nan"), "", " ", "//", "2021-13-41", "9999-12-31T23:59:59-12:00"]
    odd += [
        "0001-01-01T00:00:00+14:00",
        "\x00",
        "\ud800",
        [],
        {},
        [[]],
        [None],
        {"coding": {"coding": []}},
        "#",
        "x" * 9999,
    ]
    changed = []
    for i in range(n):
        resource: Any = {**listed[int(rng.integers(len(listed)))]}
        if resource["resourceType"] != "Patient":
            resource["id"] = f"m{i}"
        for _ in range(int(rng.integers(1, 4))):
            resource = _mutate(resource, rng, odd)
        changed.append(resource)
    return changed


def test_whatever_a_resource_holds_it_is_accounted_for() -> None:
    listed = [*resources(), *mutants(resources(), 5000, seed=3)]
    opened = [part for one in listed for part in resources_of(one)]
    read = _read(listed)
    assert len(read) == len(opened) == len(listed)
    for (resource, _), one in zip(opened, read, strict=True):
        given = (resource or {}).get("id")
        assert one.name == (given.strip() if isinstance(given, str) else "")
        assert (one.found.reason is None) == bool(one.patient and (one.found.events or one.found.variants))
    assert {one.found.reason for one in read} >= set(Reason) & {r for r in Reason if r.name in _REACHED}


_REACHED = ("NO_TIME", "NO_VALUE", "NO_CODE", "NOT_DONE", "UNREADABLE", "DUPLICATE", "NO_SUBJECT", "UNUSED_TYPE")
