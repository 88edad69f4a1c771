"""OMOP tables become cohorts, every row accounted for, and agree with another converter on the same persons."""

import gzip
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from ican_ml.cohort.accounting import Reason
from ican_ml.cohort.convert_omop import Conversion, convert_omop
from ican_ml.cohort.omop_tables import EVENTS, OmopError
from ican_ml.cohort.validate import validate
from tests.cohort.invented_omop import NOTE, STAY, Rows
from tests.cohort.invented_omop import tables as invented


def _frame(rows: Rows) -> pl.DataFrame:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame({name: [row.get(name) or None for row in rows] for name in names}, schema_overrides={})


def _csv(folder: Path, tables: dict[str, Rows]) -> None:
    for name, rows in tables.items():
        _frame(rows).write_csv(folder / f"{name}.csv")


def _shouted(folder: Path, tables: dict[str, Rows]) -> None:
    for name, rows in tables.items():
        frame = _frame(rows).rename(str.upper)
        text = frame.write_csv(separator="\t" if name == "concept" else ",")
        (folder / f"{name.upper()}.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))


def _parquet(folder: Path, tables: dict[str, Rows]) -> None:
    """With whole numbers and times as such."""
    for name, rows in tables.items():
        frame = _frame(rows)
        if name == "visit_occurrence":
            frame = frame.with_columns(
                pl.col("visit_concept_id").cast(pl.Float64),
                pl.col("visit_start_datetime").str.to_datetime(time_unit="us"),
                pl.col("visit_end_date").str.to_date(),
            )
        frame.write_parquet(folder / f"{name}.parquet")


def _convert(
    tables: dict[str, Rows], root: Path, write: Callable[[Path, dict[str, Rows]], None] = _csv
) -> tuple[Conversion, pl.DataFrame]:
    root.mkdir()
    (root / "source").mkdir()
    (root / "out").mkdir()
    write(root / "source", tables)
    found = convert_omop(root / "source", root / "out", name="invented", timezone="Europe/Helsinki")
    return found, pl.read_parquet(root / "out" / "records/data/**/*.parquet")


def _left(found: Conversion, table: str) -> dict[str, int]:
    left: dict[str, int] = found.accounting.to_json()[table]["left"]
    return left


def _assert_accounted(found: Conversion, tables: dict[str, Rows]) -> None:
    counted = found.accounting.to_json()
    assert {name: row["read"] for name, row in counted.items()} == {
        name: len(rows) for name, rows in tables.items() if name != "concept"
    }
    for row in counted.values():
        assert row["read"] == row["converted"] + sum(row["left"].values())


def _errors(out: Path) -> list[str]:
    return [f"{found.file}: {found.code}" for found in validate(out).violations if found.severity == "error"]


def _listed(events: pl.DataFrame, code: str) -> list[str]:
    return events.filter(pl.col("code") == code)["time"].dt.to_string("%F %H:%M").to_list()


def test_rows_become_events_or_are_left_for_a_reason(tmp_path: Path) -> None:
    tables = invented()
    found, events = _convert(tables, tmp_path / "a")
    _assert_accounted(found, tables)
    assert _errors(tmp_path / "a" / "out") == []
    assert found.subjects == {"11": 11, "12": 12, "13": 13}
    assert _listed(events, "MEDS_BIRTH") == ["1950-02-03 04:30", "1961-05-15 00:00", "1970-07-01 00:00"]
    assert events.filter(pl.col("time").is_null())["code"].to_list() == ["SEX//F", "SEX//M"]
    assert _listed(events, "MEDS_DEATH") == ["2021-03-02 07:00"]
    assert _left(found, "death") == {Reason.CONFLICT: 1, Reason.DUPLICATE: 1, Reason.NO_TIME: 1}
    assert _listed(events, "Visit//IP") == ["2020-01-01 08:00"]
    assert _listed(events, "VISIT_END//Visit//IP") == ["2020-01-05 00:00"]
    assert _left(found, "visit_occurrence") == {Reason.NO_CODE: 1}
    assert _listed(events, "SNOMED//254637007") == _listed(events, "ICD10//C34.9") == ["2020-01-02 00:00"]
    assert _listed(events, "SOURCE//CONDITION_OCCURRENCE//X1") == ["2020-01-03 00:00"]
    assert _left(found, "condition_occurrence") == {Reason.NO_CODE: 1, Reason.NO_SUBJECT: 1, Reason.NO_TIME: 1}
    assert _listed(events, "OMOP//777") == ["2020-03-01 00:00"]
    assert _listed(events, "OMOP//32533") == _listed(events, "EPISODE_OBJECT//SNOMED//254637007")
    assert _left(found, "note") == {Reason.UNUSED_TYPE: 1}


def test_values_are_numbers_limits_or_findings_and_never_free_text(tmp_path: Path) -> None:
    found, events = _convert(invented(), tmp_path / "a")
    values = events.filter(pl.col("code") == "LOINC//718-7").select("numeric_value", "text_value", "unit").rows()
    assert Counter(values) == {
        (4.5, None, "mg/dL"): 1,
        (5.0, "<5", "g/l"): 1,
        (5.0, "<5", None): 1,
        (10.0, ">=10", None): 1,
        (1.5, None, None): 1,
        (None, "Positive", None): 1,
        (None, "NEGATIVE", None): 1,
        (None, None, None): 4,
    }
    assert found.values_left == 4
    codes = pl.read_parquet(tmp_path / "a/out/records/metadata/codes.parquet")
    assert dict(codes.select("code", "description").rows())["LOINC//718-7"] == "Hemoglobin"
    flags = events.filter(pl.col("code").str.contains("//(LOW|HIGH)$"))
    assert flags.select("code", "numeric_value").rows() == [("LOINC//718-7//HIGH", None), ("LOINC//718-7//LOW", None)]
    written = b"".join(path.read_bytes() for path in (tmp_path / "a" / "out").rglob("*") if path.is_file())
    held = " ".join(events["code"].to_list() + events["text_value"].drop_nulls().to_list())
    for text in (NOTE, STAY):
        assert text.encode() not in written
        assert text not in held


@pytest.mark.parametrize("write", [_shouted, _parquet])
def test_every_form_of_a_table_gives_the_same_cohort(
    write: Callable[[Path, dict[str, Rows]], None], tmp_path: Path
) -> None:
    expected, one = _convert(invented(), tmp_path / "a")
    found, other = _convert(invented(), tmp_path / "b", write)
    assert one.equals(other)
    assert expected.accounting.to_json() == found.accounting.to_json()


def test_source_codes_are_kept_below_the_standard_ones(tmp_path: Path) -> None:
    _convert(invented(), tmp_path / "a")
    codes = pl.read_parquet(tmp_path / "a/out/records/metadata/codes.parquet").drop_nulls("parent_codes")
    assert codes.select("code", "description", "parent_codes").rows() == [
        ("ICD10//C34.9", "Neoplasm of lung", ["SNOMED//254637007"])
    ]


def test_without_concepts_the_number_is_the_code(tmp_path: Path) -> None:
    tables = invented()
    del tables["concept"]
    _, events = _convert(tables, tmp_path / "a")
    assert {"OMOP//9201", "OMOP//45", "OMOP//254637007", "VISIT_END//OMOP//9201"} < set(events["code"])


def test_persons_that_are_no_numbers_are_numbered_and_said_once(tmp_path: Path) -> None:
    person = [
        {"person_id": "b", "year_of_birth": "1950"},
        {"person_id": "a", "year_of_birth": "1950"},
        {"person_id": "b", "year_of_birth": "1950"},
        {"person_id": "b", "year_of_birth": "1951"},
        {"person_id": "", "year_of_birth": "1951"},
        {"person_id": "c", "year_of_birth": "x"},
    ]
    found, events = _convert({"person": person}, tmp_path / "a")
    assert found.subjects == {"a": 1, "b": 2, "c": 3}
    assert events["subject_id"].to_list() == [1, 2]
    expected = {Reason.CONFLICT: 1, Reason.DUPLICATE: 1, Reason.NO_SUBJECT: 1, Reason.NO_VALUE: 1}
    assert _left(found, "person") == expected


def test_zones_become_the_wall_time_asked_for(tmp_path: Path) -> None:
    row = {"person_id": "11", "measurement_concept_id": "5", "measurement_date": "2020-07-01"}
    times = ["2020-07-01T22:30:00Z", "2020-07-01 22:30:00.5+00", "2020-07-01T17:30:00-05:00", "2020-07-02 01:30"]
    tables = invented() | {"measurement": [row | {"measurement_datetime": time} for time in times]}
    _, events = _convert(tables, tmp_path / "a")
    assert _listed(events, "OMOP//5") == ["2020-07-02 01:30"] * 4
    with pytest.raises(OmopError, match="--timezone"):
        convert_omop(tmp_path / "a" / "source", tmp_path / "b", name="x")


@pytest.mark.parametrize("write", [_csv, _parquet])
def test_rows_without_a_column_that_is_read_count_too(
    write: Callable[[Path, dict[str, Rows]], None], tmp_path: Path
) -> None:
    tables = invented() | {"measurement": [{"other": "1"}] * 3}
    found, _ = _convert(tables, tmp_path / "a", write)
    _assert_accounted(found, tables)
    assert _left(found, "measurement") == {Reason.NO_SUBJECT: 3}


def test_sources_that_cannot_be_read_are_refused_in_a_sentence(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(OmopError, match=r"^SRC: expected a folder"):
        convert_omop(source, tmp_path / "out", name="x")
    source.mkdir()
    with pytest.raises(OmopError, match=r"^SRC: expected person\.csv"):
        convert_omop(source, tmp_path / "out", name="x")
    (source / "person.csv").write_text("person_id\n")
    with pytest.raises(OmopError, match="person: expected rows"):
        convert_omop(source, tmp_path / "out", name="x")
    (source / "Person.parquet").write_bytes(b"PAR1")
    with pytest.raises(OmopError, match="person: expected one file, got two"):
        convert_omop(source, tmp_path / "out", name="x")
    (source / "person.csv").unlink()
    with pytest.raises(OmopError, match=r"person: .* damaged"):
        convert_omop(source, tmp_path / "out", name="x")
    (source / "Person.parquet").unlink()
    (source / "person.csv.gz").write_bytes(gzip.compress(b"person_id\n1\n")[:-9])
    with pytest.raises(OmopError, match=r"person: .* damaged"):
        convert_omop(source, tmp_path / "out", name="x")
    (source / "person.csv.gz").write_bytes(b"")
    with pytest.raises(OmopError, match="person: expected rows"):
        convert_omop(source, tmp_path / "out", name="x")
    (source / "person.csv.gz").write_bytes(b'person_id,year_of_birth\n1,"1950\n2,1951\n3,1952\n')
    with pytest.raises(OmopError, match=r"person: .* damaged"):
        convert_omop(source, tmp_path / "out", name="x")


_GARBAGE = (
    *(
        "",
        "0",
        "-1",
        "x",
        NOTE,
        "1e400",
        "nan",
        "inf",
        "9" * 30,
        "2020-13-45",
        "2020-01-01T25:61:00",
        "\u0000",
        "\u202e",
    ),
    *("0000-00-00", "2020-06-01 10:00:00+02:00", '"', "a,b", "a\nb", "<", "{}", "12.0", "true", "9999-12-31"),
)


def test_changed_rows_are_all_accounted_for(tmp_path: Path) -> None:
    chance = random.Random(7)
    tables = invented()
    names = [name for name in tables if name not in ("concept", "note")]
    for _ in range(5000):
        name = chance.choice(names)
        row = dict(chance.choice(invented()[name]))
        for column in chance.sample(list(row), chance.randint(1, len(row))):
            row[column] = chance.choice(_GARBAGE)
        tables[name].append(row)
    found, events = _convert(tables, tmp_path / "a")
    _assert_accounted(found, tables)
    n_converted = sum(row["converted"] for row in found.accounting.to_json().values())
    assert 500 < n_converted < 4500
    assert NOTE not in events["text_value"].to_list()
    assert _errors(tmp_path / "a" / "out") == []


def test_another_converter_makes_the_same_events(cohorts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = convert_omop(cohorts / "records" / "synthea27_omop", out, name="synthea")
    counted = found.accounting.to_json()
    assert {name: counted[name]["read"] for name in EVENTS} == {name: counted[name]["converted"] for name in EVENTS}
    assert _errors(out) == []

    ours = Counter(_keys(pl.read_parquet(out / "records/data/**/*.parquet"), pl.col("code")))
    code = pl.col("code").str.replace("/", "//", literal=True)
    theirs = pl.read_parquet(cohorts / "records" / "synthea27_meds_etl" / "data" / "*.parquet")
    reasons: Counter[str] = Counter()
    for key in _keys(theirs, code):
        if ours[key]:
            ours[key] -= 1
        elif key[2].startswith("Ethnicity//"):
            reasons["nothing but birth and sex is read of a person"] += 1
        elif key[4] is not None:
            bare = (*key[:4], None)
            finding = next((other for other in ours if other[:4] == key[:4] and other[4] and ours[other]), bare)
            reasons["a finding is written in one word" if finding[4] else "text that may be free is left"] += 1
            assert ours[finding]
            ours[finding] -= 1
        else:
            reasons["unknown"] += 1
    assert reasons == {
        "nothing but birth and sex is read of a person": 28,
        "a finding is written in one word": 23,
        "text that may be free is left": 22,
    }
    assert 1 - reasons.total() / len(theirs) >= 0.99
    others = {code.partition("//")[0] for (_, _, code, _, _), n in ours.items() if n}
    assert others == {"SEX", "VISIT_END"}, "only ours has these"


def _keys(events: pl.DataFrame, code: pl.Expr) -> list[tuple[int, object, str, float | None, str | None]]:
    return events.select("subject_id", pl.col("time").dt.date(), code, "numeric_value", "text_value").rows()
