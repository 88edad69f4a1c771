"""FHIR sources become cohorts, every resource accounted for, that give the network the bits a single patient gives."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ican_ml.cohort.accounting import Reason
from ican_ml.cohort.cohort import Cohort, read_cohort
from ican_ml.cohort.convert_fhir import Conversion, convert_fhir, number_subjects
from ican_ml.cohort.fhir import read_bundle, resources_of
from ican_ml.cohort.fhir_values import FhirError
from ican_ml.cohort.validate import validate
from ican_ml.inputs.assemble import as_dictionary, assemble, record_as_dictionary
from ican_ml.inputs.encode import collate, encode
from ican_ml.inputs.fit import InputConfig, fit_schema
from ican_ml.inputs.patient import read_patient
from ican_ml.inputs.schema import InputSchema
from ican_ml.records.meds import read_records
from ican_ml.records.store import RecordStore
from tests.cohort.invented_fhir import NAME, NOTE, STREET, bundle, of_patient, resources
from tests.cohort.test_fhir import mutants

ZONE = "Europe/Helsinki"


def _write(path: Path, *documents: Any) -> Path:
    """Documents as JSON, one a line, where the name ends so packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(document) + "\n" for document in documents).encode("utf-8", "replace")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _convert(source: Path, out: Path) -> Conversion:
    out.mkdir()
    return convert_fhir(source, out, name="invented", timezone=ZONE)


def _counts(conversion: Conversion) -> tuple[int, int, int]:
    """Resources read, converted and left, by what was written of them."""
    tables = conversion.accounting.to_json()
    rows = [table for table in tables.values() if "read" in table]
    return (
        sum(row["read"] for row in rows),
        sum(row["converted"] for row in rows),
        sum(sum(row["left"].values()) for row in rows),
    )


def _bundles(source: Path) -> Path:
    for patient in ("p-1", "p-2"):
        _write(source / f"{NAME}-{patient}.json", bundle(of_patient(resources(), patient)))
    return source


def _bulk(source: Path) -> Path:
    for kind in {resource["resourceType"] for resource in resources()}:
        _write(source / f"{kind}.ndjson", *[r for r in resources() if r["resourceType"] == kind])
    return source


def _packed(source: Path) -> Path:
    _write(source / "all.json.gz", bundle(resources()))
    return source


@pytest.mark.parametrize("layout", [_bundles, _bulk, _packed])
def test_every_layout_gives_the_same_cohort(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    _convert(_packed(tmp_path / "expected"), tmp_path / "first")
    found = _convert(layout(tmp_path / "source"), tmp_path / "out")
    assert read_records(tmp_path / "out").codes == read_records(tmp_path / "first").codes
    one, other = (pl.read_parquet(tmp_path / folder / "records/data/**/*.parquet") for folder in ("first", "out"))
    assert one.equals(other)
    assert found.samples == 3
    assert found.values_left == 1
    assert (one.filter(pl.col("code") == "LOINC//1988-5")["text_value"] == "<5").all()
    death = one.filter(pl.col("code") == "MEDS_DEATH")["time"]
    assert death.dt.to_string("%F %H:%M").to_list() == ["2022-05-07 02:30"]


def test_a_converted_cohort_is_valid_and_holds_no_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _convert(_bundles(tmp_path / "source"), out)
    assert _errors(out) == []
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for text in (NAME, STREET, NOTE, "p-1"):
        assert text.encode() not in written
    frame = pl.read_parquet(out / "records/data/**/*.parquet")
    held = " ".join(frame["code"].to_list() + frame["text_value"].drop_nulls().to_list())
    assert not any(text in held for text in (NAME, STREET, NOTE))


def _errors(out: Path) -> list[str]:
    return [
        f"{violation.file}: {violation.code}" for violation in validate(out).violations if violation.severity == "error"
    ]


def test_changed_resources_are_all_accounted_for(tmp_path: Path) -> None:
    listed = [*resources(), *mutants(resources(), 5000, seed=5)]
    _write(tmp_path / "source" / "a.ndjson", *listed)
    found = _convert(tmp_path / "source", tmp_path / "out")
    n_read, n_converted, n_left = _counts(found)
    assert n_read == len(listed) == n_converted + n_left
    assert 500 < n_converted < n_read - 500
    assert _errors(tmp_path / "out") == []


def test_damaged_files_are_left_and_counted(tmp_path: Path) -> None:
    source = _bundles(tmp_path / "source")
    whole = _counts(_convert(source, tmp_path / "first"))
    (source / "a.json").write_text('{"resourceType": "Bundle", "entry": [')
    (source / "b.json.gz").write_bytes(gzip.compress(b'{"resourceType": "Goal"}' * 99)[:40])
    (source / "c.ndjson").write_bytes(b'{"resourceType": "Goal", "id": "1"}\n{"resour\n\xff\xfe\n')
    (source / "d.json").write_text("[" * 100_000)
    (source / "e.txt").write_text("{}")
    found = _convert(source, tmp_path / "out")
    damaged = _counts(found)
    assert damaged[1] == whole[1]
    assert damaged[0] - whole[0] == damaged[2] - whole[2] == 6
    unreadable = found.accounting.to_json()["other"]["left"]
    assert unreadable == {Reason.UNREADABLE: 5}


def test_sources_without_patients_are_refused_without_naming_a_file(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(FhirError, match=r"^SRC: expected files that end in"):
        _convert(tmp_path / NAME, tmp_path / "a")
    _write(tmp_path / NAME / f"{NAME}.json", {"resourceType": "Goal"})
    with pytest.raises(FhirError, match="at least one Patient") as caught:
        _convert(tmp_path / NAME, tmp_path / "b")
    assert NAME not in str(caught.value)
    with pytest.raises(FhirError, match="--timezone"):
        convert_fhir(_packed(tmp_path / "source"), tmp_path / "a", name="x")


def test_whole_numbers_stay_and_other_ids_are_numbered() -> None:
    assert number_subjects({"12", "7"}) == {"12": 12, "7": 7}
    assert number_subjects({"12", "07"}) == {"07": 1, "12": 2}
    assert number_subjects({"12", str(1 << 63)}) == {"12": 1, str(1 << 63): 2}


def test_one_patient_and_its_cohort_give_the_network_the_same_bits(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = _convert(_bundles(tmp_path / "source"), out)
    documents = {found.subjects[p]: bundle(of_patient(resources(), p)) for p in ("p-1", "p-2")}
    moments = ["2021-03-04T12:00:00", "2021-03-20T00:00:00", "2021-06-01T11:00:00", "2023-01-01T00:00:00"]
    valued, mutated = _assert_identity(out, documents, moments, ZONE)
    assert valued
    assert mutated == 3, "each patient's variants, and the later sample of the first"


def test_ten_patients_and_their_cohort_give_the_network_the_same_bits(cohorts: Path, tmp_path: Path) -> None:
    source, out = cohorts / "records" / "fhir_r4", tmp_path / "out"
    out.mkdir()
    found = convert_fhir(source, out, name="synthea", timezone="America/New_York")
    parsed = [json.loads(gzip.decompress(path.read_bytes())) for path in sorted(source.glob("*.json.gz"))]
    listed = [[resource for resource, _ in resources_of(document) if resource] for document in parsed]
    names = [next(r["id"] for r in given if r["resourceType"] == "Patient") for given in listed]
    assert _errors(out) == []
    assert _counts(found) == (2766, 2184, 582)
    documents = {found.subjects[name]: document for name, document in zip(names, parsed, strict=True)}
    assert len(documents) == 10
    valued, _ = _assert_identity(out, documents, ["2012-01-01T00:00:00", "2030-01-01T00:00:00"], "America/New_York")
    assert valued


def _assert_identity(out: Path, documents: dict[int, Any], moments: list[str], zone: str) -> tuple[bool, int]:
    """Three ways to the network, at each time; gives whether any event has a value, and how many samples were met."""
    cohort, store, schema = _fitted(out, documents, moments)
    states = assemble(cohort, store, cohort.episodes, [])
    encoded = encode(schema, states.patients, backend="reference")
    served = InputSchema.from_json(json.loads(json.dumps(schema.to_json())))
    valued, samples = False, set()
    for row, (subject, time) in enumerate(zip(states.subject_id.tolist(), states.prediction_time, strict=True)):
        expected = collate(encoded, np.array([row]))
        document = read_bundle(documents[subject], timezone=zone, prediction_time=str(time))
        stored = as_dictionary(cohort, store, states, row)
        assert {k: stored[k] for k in ("birth_time", "events")} == record_as_dictionary(store, subject, time)
        for name, given in {"bundle": document, "cohort": stored}.items():
            got = collate(
                encode(served, read_patient(served, json.loads(json.dumps(given)), [()])[0], backend="reference"),
                np.zeros(1, np.int64),
            )
            assert list(got) == list(expected)
            for part in got:
                assert got[part].dtype == expected[part].dtype, (name, part)
                assert got[part].tobytes() == expected[part].tobytes(), (name, part, row)
        assert expected["event_code"].any()
        valued |= bool(expected["event_has_value"].any())
        if any(expected.get("mutation_panel", [0])):
            samples.add((subject, json.dumps(document["omics"])))
    return valued, len(samples)


def _fitted(out: Path, documents: dict[int, Any], moments: list[str]) -> tuple[Cohort, RecordStore, InputSchema]:
    """The cohort with an episode for each subject and time, its records, and a schema fitted on all of it."""
    rows = [(subject, moment) for subject in documents for moment in moments]
    pl.DataFrame(
        {
            "subject_id": pl.Series([subject for subject, _ in rows], dtype=pl.Int64),
            "prediction_time": pl.Series([moment for _, moment in rows]).str.to_datetime(time_unit="us"),
            "treatment": pl.Series([[] for _ in rows], dtype=pl.List(pl.String)),
            "response": pl.Series([i % 2 == 0 for i in range(len(rows))]),
        }
    ).write_parquet(out / "episodes.parquet")
    cohort, store = read_cohort(out), read_records(out)
    config = InputConfig(covariates=[], min_subjects=1, max_events=64)
    schema = fit_schema(cohort, store, cohort.episodes, config, outcomes=[("response", "binary")], backend="reference")
    assert Counter(schema.vocabulary.codes if schema.vocabulary else ()).total() > 10
    return cohort, store, schema
