"""Linking on identity codes: who is linked, that nobody else is, and that no code is left anywhere. All are made up."""

import doctest
import os
import re
import stat
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml import cli
from ican_ml.cohort import link as module
from ican_ml.cohort.link import Invalid, LinkError, fault, link, new_key, normalise, read_key, read_source, subject_of

KEY, OTHER = b"k" * 32, b"o" * 32


def code_of(day: str, number: int, sign: str = "-") -> str:
    """Make a code of a day (DDMMYY), an individual number and a century sign."""
    control = "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(f"{day}{number:03d}") % 31]
    return f"{day}{sign}{number:03d}{control}"


ANNA, BERTIL, CECILIA = code_of("010203", 45), code_of("290200", 678, "A"), code_of("311299", 2, "Y")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Give a key file in a folder of its own."""
    (tmp_path / "secret").mkdir()
    new_key(tmp_path / "secret" / "key")
    return tmp_path / "secret" / "key"


@pytest.mark.parametrize("sign", "+-UVWXYABCDEF")
def test_every_century_sign_of_the_reform_is_read(sign: str) -> None:
    assert fault(code_of("010203", 45, sign)) is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", Invalid.MISSING),
        ("010203-045", Invalid.FORM),
        ("010203045X", Invalid.FORM),
        ("010203G045X", Invalid.FORM),
        ("٠١٠٢٠٣-045X", Invalid.FORM),
        (ANNA + "0", Invalid.FORM),
        (code_of("320103", 45), Invalid.DATE),
        (code_of("011303", 45), Invalid.DATE),
        (code_of("290200", 45, "-"), Invalid.DATE),
        (code_of("290200", 45, "+"), Invalid.DATE),
        (code_of("290204", 45, "U"), None),
        (code_of("010203", 0), Invalid.NUMBER),
        (code_of("010203", 1), Invalid.NUMBER),
        (code_of("010203", 2), None),
        (code_of("010203", 899), None),
        (code_of("010203", 900), Invalid.TEMPORARY),
        (code_of("010203", 999), Invalid.TEMPORARY),
    ],
)
def test_only_codes_of_people_are_linked(code: str, expected: Invalid | None) -> None:
    assert fault(code) == expected


@given(st.dates(date(1900, 1, 1), date(1999, 12, 31)), st.integers(2, 899), st.integers(0, 8))
def test_a_misprinted_digit_is_found(day: date, number: int, place: int) -> None:
    code = code_of(f"{day:%d%m%y}", number)
    at = [0, 1, 2, 3, 4, 5, 7, 8, 9][place]
    for digit in set("0123456789") - {code[at]}:
        assert fault(code[:at] + digit + code[at + 1 :]) is not None


def test_case_and_blanks_are_forgiven_and_the_sign_is_part_of_the_code() -> None:
    assert normalise(f" {BERTIL.lower()[:6]} {BERTIL.lower()[6:]}\N{NO-BREAK SPACE}") == BERTIL
    assert subject_of(code_of("010203", 45, "-"), KEY) != subject_of(code_of("010203", 45, "Y"), KEY)


def test_one_person_has_one_subject_id_in_two_sources_and_another_with_another_key() -> None:
    first, report = link(pl.DataFrame({"id": [ANNA, None, BERTIL, ANNA], "value": [1, 2, 3, 4]}), "id", KEY)
    second, _ = link(pl.DataFrame({"place": ["x", "y"], "hetu": [f" {ANNA.lower()}", CECILIA]}), "hetu", KEY)
    anna, cecilia = subject_of(ANNA, KEY), subject_of(CECILIA, KEY)
    assert first.schema == {"subject_id": pl.Int64, "value": pl.Int64}
    assert first.filter(pl.col("subject_id") == anna)["value"].to_list() == [1, 4]
    assert (report.read, report.linked, report.subjects, report.left) == (4, 3, 2, {Invalid.MISSING: 1})
    assert second.columns == ["place", "subject_id"]
    assert dict(second.select("subject_id", "place").iter_rows()) == {anna: "x", cecilia: "y"}
    again, _ = link(pl.DataFrame({"id": [ANNA, BERTIL, CECILIA]}), "id", OTHER)
    assert set(again["subject_id"]).isdisjoint({*first["subject_id"], *second["subject_id"]})
    assert all(0 <= number < 2**63 for number in again["subject_id"])


def test_rows_do_not_stay_in_the_order_of_the_codes() -> None:
    codes = sorted(code_of(f"{day:02d}0150", 100) for day in range(1, 29))
    linked, _ = link(pl.DataFrame({"id": codes}), "id", KEY)
    assert linked["subject_id"].is_sorted()
    assert linked["subject_id"].to_list() != [subject_of(code, KEY) for code in codes]


def test_every_row_left_out_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ["", "name", code_of("300203", 45), code_of("010203", 1), ANNA[:-1] + "!", code_of("010203", 950)]
    misprint = ANNA[:-1] + ("A" if ANNA[-1] != "A" else "B")
    _, report = link(pl.DataFrame({"id": [*wrong, misprint, ANNA]}), "id", KEY)
    expected = dict.fromkeys(Invalid, 1) | {Invalid.FORM: 2}
    assert report.left == expected
    assert all(reason.meaning for reason in Invalid)
    empty, report = link(pl.DataFrame({"id": pl.Series([None, None])}), "id", KEY)
    assert (len(empty), report.left) == (0, {Invalid.MISSING: 2})
    monkeypatch.setattr(module, "subject_of", lambda code, key: 7)
    with pytest.raises(LinkError, match="got two") as error:
        link(pl.DataFrame({"id": [ANNA, BERTIL]}), "id", KEY)
    assert ANNA not in str(error.value)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({ANNA: ["x"], "a": ["b"]}, "expected a column 'id'"),
        ({"id": [ANNA], "note": [f"called {ANNA.lower()}, no answer"]}, "column 2: expected no identity code, got 1"),
        ({"id": [ANNA], BERTIL: [1]}, "the column names"),
        ({"id": [ANNA], "other": [[ANNA]]}, "nested"),
        ({"id": [ANNA], "other": [ANNA.encode()]}, "binary"),
        ({"id": [ANNA], "subject_id": [1]}, "subject_id"),
        ({"id": [10203045]}, "expected text"),
    ],
)
def test_a_table_that_would_show_an_identifier_is_refused_without_showing_it(
    frame: dict[str, list[object]], message: str
) -> None:
    with pytest.raises(LinkError, match=message) as error:
        link(pl.DataFrame(frame), "id", KEY)
    assert ANNA.lower() not in str(error.value).lower()
    assert BERTIL not in str(error.value)


def test_a_key_is_new_private_and_long(key: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(read_key(key)) == 32
    new_key(key.with_name("second"))
    assert read_key(key.with_name("second")) != read_key(key)
    with pytest.raises(LinkError, match="never replaced"):
        new_key(key)
    for mode in (0o604, 0o640, 0o660):
        key.chmod(mode)
        with pytest.raises(LinkError, match="only its owner"):
            read_key(key)
    key.chmod(0o600)
    for text, message in (("ab" * 31, "got 31"), ("", "got 0"), ("secret words", "hexadecimal")):
        key.write_text(text)
        with pytest.raises(LinkError, match=message) as error:
            read_key(key)
        assert not text or text not in str(error.value)
    with pytest.raises(LinkError, match="new-key"):
        read_key(tmp_path / "none")
    with pytest.raises(LinkError, match="got Is a directory"):
        read_key(tmp_path)


@pytest.mark.parametrize("sign", ["cohort.json", "episodes.parquet", "metadata/dataset.json"])
def test_a_key_in_a_cohort_or_beside_the_table_is_refused(sign: str, key: Path, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="folder of its own"):
        read_key(key, beside=[key.parent / "out.parquet"])
    inside = tmp_path / "cohort" / "deep"
    inside.mkdir(parents=True)
    key = key.rename(inside / "key")
    assert read_key(key)
    (tmp_path / "cohort" / sign).parent.mkdir(exist_ok=True)
    (tmp_path / "cohort" / sign).touch()
    (tmp_path / "link").symlink_to(key)
    for path in (key, tmp_path / "link"):
        with pytest.raises(LinkError, match="outside every cohort"):
            read_key(path)
    with pytest.raises(LinkError, match="outside every cohort"):
        new_key(inside / "another")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_command_writes_the_table_without_an_identifier(
    separator: str, suffix: str, key: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [["note", "hetu", "ward"], ["ä", ANNA, "007"], ["", f"{BERTIL.lower()} ", "1"], ["c", "010203-0450", "2"]]
    text = "\n".join(separator.join(line) for line in lines) + "\n"
    (tmp_path / "source.csv").write_text(text, encoding="utf-8-sig")
    out = tmp_path / f"out{suffix}"
    cli.main(["link", "table", str(tmp_path / "source.csv"), str(out), "--key", str(key), "--column", "hetu"])
    linked = pl.read_csv(out, infer_schema=False) if suffix == ".csv" else pl.read_parquet(out)
    assert linked.columns == ["note", "subject_id", "ward"]
    assert sorted(linked["ward"]) == ["007", "1"]
    printed = "".join(capfd.readouterr())
    assert "3 rows read, 2 linked, 2 subjects" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"source.csv", "secret", out.name}
    ids = "|".join(linked["subject_id"].cast(str))  # random digits, which may hold those of a birth date
    for written in (out.read_bytes().decode("latin-1"), printed):
        for code in (ANNA, BERTIL, "010203-0450"):
            assert code.lower() not in written.lower()
            assert code[:6] not in re.sub(ids, "", written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{ANNA},1\n{BERTIL},2\n", "expected a column 'identifier'"),
        (f"identifier,a\n{ANNA},1,2,3\n", "expected a Parquet file, or a CSV"),
        (f"identifier,a\n{ANNA},\xe4\n", "expected a Parquet file, or a CSV"),
        ("", "expected a Parquet file, or a CSV"),
    ],
)
def test_an_unreadable_source_is_refused_without_quoting_it(
    text: str, message: str, key: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source.csv").write_text(text, encoding="latin-1")
    out = tmp_path / "out.csv"
    with pytest.raises(SystemExit) as error:
        cli.main(["link", "table", str(tmp_path / "source.csv"), str(out), "--key", str(key)])
    assert message in str(error.value)
    said = str(error.value) + "".join(capfd.readouterr())
    assert ANNA not in said
    assert BERTIL not in said
    assert not out.exists()


def test_nothing_is_written_over(key: Path, tmp_path: Path) -> None:
    pl.DataFrame({"identifier": [ANNA]}).write_parquet(tmp_path / "source.parquet")
    assert len(read_source(tmp_path / "source.parquet")) == 1
    for name in ("source.parquet", "out.txt"):
        with pytest.raises(SystemExit, match="expected a"):
            cli.main(["link", "table", str(tmp_path / "source.parquet"), str(tmp_path / name), "--key", str(key)])
    assert os.listdir(key.parent) == ["key"]


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0
