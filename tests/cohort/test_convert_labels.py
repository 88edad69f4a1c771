"""MEDS labels as episodes: what becomes an outcome, what is left out and why, and that nobody changes parts."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ican_ml import cli
from ican_ml.cohort.accounting import Reason
from ican_ml.cohort.checks import CohortError
from ican_ml.cohort.cohort import read_cohort
from ican_ml.cohort.convert_labels import convert_labels
from ican_ml.cohort.validate import validate

SUBJECTS = {1: "train", 2: "train", 3: "tuning", 4: "held_out", 5: None, 6: "test"}
NOON = datetime(2020, 1, 1, 12)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Give a MEDS dataset of six subjects, of whom five have a split."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    events = {"subject_id": list(SUBJECTS), "time": [datetime(2019, 1, 1)] * 6, "code": ["DX//C50"] * 6}
    values = pl.Series("numeric_value", [None] * 6, pl.Float32)
    pl.DataFrame(events).with_columns(values).write_parquet(folder / "data" / "0.parquet")
    codes = pl.DataFrame({"code": ["DX//C50"], "description": ["breast"]})
    codes.with_columns(parent_codes=pl.lit([], pl.List(pl.String))).write_parquet(folder / "metadata" / "codes.parquet")
    (folder / "metadata" / "dataset.json").write_text('{"dataset_name": "small", "meds_version": "0.4.1"}')
    splits = {subject: split for subject, split in SUBJECTS.items() if split}
    pl.DataFrame({"subject_id": list(splits), "split": list(splits.values())}).write_parquet(
        folder / "metadata" / "subject_splits.parquet"
    )
    return folder


def write(path: Path, column: str, values: list[Any], **columns: Any) -> Path:
    """Write labels of subjects 1 to 4, with the other value columns all null, as ACES does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"subject_id": [1, 2, 3, 4], "prediction_time": [NOON] * 4, **columns, column: values}
    others = ("boolean_value", "integer_value", "float_value", "categorical_value")
    nulls = {name: pl.Series([None] * len(values)) for name in others if name not in table}
    pl.DataFrame({**table, **nulls}).write_parquet(path)
    return path


@pytest.mark.parametrize(
    ("column", "values", "positive", "outcome", "expected"),
    [
        ("boolean_value", [True, False, True, False], None, "response", [True, False, True, False]),
        ("float_value", [0.5, 1.0, -2.0, 3.5], None, "sensitivity", [0.5, 1.0, -2.0, 3.5]),
        ("integer_value", [0, 1, 1, 5], None, "sensitivity", [0.0, 1.0, 1.0, 5.0]),
        ("integer_value", [0, 1, 1, 5], "1", "response", [False, True, True, False]),
        ("categorical_value", ["a", "b", "c", "a"], "a", "response", [True, False, False, True]),
    ],
)
def test_a_label_is_an_episode_and_its_type_the_outcome(
    column: str,
    values: list[Any],
    positive: str | None,
    outcome: str,
    expected: list[Any],
    dataset: Path,
    tmp_path: Path,
) -> None:
    labels, out = write(tmp_path / "relapse.parquet", column, values), tmp_path / "out"
    convert_labels(labels, dataset, out=out, positive=positive)
    report = validate(out)
    assert not [violation for violation in report.violations if violation.severity == "error"]
    cohort = read_cohort(out, task="relapse")
    assert cohort.name == "small"
    assert cohort.has_records
    assert cohort.episodes[outcome].to_list() == expected
    assert cohort.episodes["split"].to_list() == ["train", "train", "tuning", "held_out"]
    assert cohort.episodes["treatment"].to_list() == [[]] * 4
    assert cohort.episodes["prediction_time"].to_list() == [NOON] * 4
    assert report.summary["episodes"][0]["outcomes"][outcome]["known"] == 4


def test_every_label_left_out_has_a_reason(dataset: Path, tmp_path: Path) -> None:
    late = datetime(2021, 1, 1)
    rows: list[tuple[int | None, datetime | None, float | None, Reason | None]] = [
        (1, NOON, 1.0, None),
        (1, NOON, 1.0, Reason.DUPLICATE),
        (1, late, 1.0, Reason.CONFLICT),
        (1, late, 2.0, Reason.CONFLICT),
        (2, NOON, None, Reason.NO_VALUE),
        (2, NOON, float("nan"), Reason.NOT_FINITE),
        (2, NOON, float("inf"), Reason.NOT_FINITE),
        (2, NOON, 3.0, None),
        (2, None, 1.0, Reason.NO_TIME),
        (None, NOON, 1.0, Reason.NO_SUBJECT),
        (5, NOON, 1.0, Reason.NO_SPLIT),
        (6, NOON, 1.0, Reason.NO_SPLIT),
        (99, NOON, 1.0, Reason.UNKNOWN_SUBJECT),
    ]
    subject, time, value, reasons = (list(column) for column in zip(*rows, strict=True))
    labels = write(tmp_path / "x.parquet", "float_value", value, subject_id=subject, prediction_time=time)
    episodes, _ = convert_labels(labels, dataset, out=tmp_path / "out", task="dose")
    assert episodes.select("subject_id", "sensitivity").rows() == [(1, 1.0), (2, 3.0)]
    assert episodes["task"].unique().to_list() == ["dose"]
    account = json.dumps(json.loads((tmp_path / "out" / "conversion_labels.json").read_text()))
    for reason in {reason for reason in reasons if reason}:
        assert f'"{reason}": {reasons.count(reason)}' in account
    assert not [v for v in validate(tmp_path / "out").violations if v.file == "episodes.parquet"]


@pytest.mark.parametrize("is_split", [True, False])
def test_folders_say_the_split_and_never_overrule_the_dataset(is_split: bool, dataset: Path, tmp_path: Path) -> None:
    if not is_split:
        (dataset / "metadata" / "subject_splits.parquet").unlink()
    for part, subjects in (("train", [1, 4]), ("held_out", [2, 5])):
        path = tmp_path / "labels" / part / "0.parquet"
        write(path, "boolean_value", [True, False], subject_id=subjects, prediction_time=[NOON] * 2)
    again = {"subject_id": [1], "prediction_time": [datetime(2022, 1, 1)]}
    write(tmp_path / "labels" / "held_out" / "1.parquet", "boolean_value", [True], **again)
    episodes, _ = convert_labels(tmp_path / "labels", dataset, out=tmp_path / "out")
    by_folder = [(2, "held_out"), (4, "train"), (5, "held_out")]
    assert episodes.select("subject_id", "split").rows() == ([(5, "held_out")] if is_split else by_folder)


def test_without_any_split_there_is_no_column_of_it(dataset: Path, tmp_path: Path) -> None:
    (dataset / "metadata" / "subject_splits.parquet").unlink()
    labels = write(tmp_path / "labels.parquet", "boolean_value", [True] * 4)
    episodes, _ = convert_labels(labels, dataset, out=tmp_path / "out")
    assert "split" not in episodes.columns


def test_episodes_are_added_to_a_cohort_once(dataset: Path, tmp_path: Path) -> None:
    labels, cohort = write(tmp_path / "labels.parquet", "boolean_value", [True] * 4), tmp_path / "cohort"
    convert_labels(labels, dataset, out=cohort)
    about = json.loads((cohort / "cohort.json").read_text())
    (cohort / "cohort.json").write_text(json.dumps({**about, "clocks": {"os": "diagnosis"}, "source_timezone": "UTC"}))
    (cohort / "episodes.parquet").unlink()
    convert_labels(labels, cohort)
    assert len(read_cohort(cohort).episodes) == 4
    with pytest.raises(CohortError, match="without episodes"):
        convert_labels(labels, cohort)
    convert_labels(labels, cohort, out=tmp_path / "other")
    assert json.loads((tmp_path / "other" / "cohort.json").read_text()) == {**about, "source_timezone": "UTC"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "dataset", "labels.parquet", "other"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"float_value": [1.0] * 4}, "in one column, got boolean_value and float_value"),
        ({"boolean_value": pl.Series([None] * 4)}, "in one column, got none"),
        ({"boolean_value": ["yes"] * 4}, "boolean_value of type Boolean, got String"),
        ({"boolean_value": pl.Series([None] * 4), "categorical_value": ["Ann"] * 4}, "one category"),
        ({"subject_id": ["1"] * 4}, "subject_id of type Int64, got String"),
        ({"prediction_time": pl.Series([NOON] * 4).dt.replace_time_zone("UTC")}, "without a timezone"),
        ({"prediction_time": ["2020-01-01"] * 4}, "prediction_time of type"),
        ({"subject_id": [77] * 4}, "expected some that make episodes"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    columns: dict[str, Any], message: str, dataset: Path, tmp_path: Path
) -> None:
    table = {"boolean_value": [True] * 4, **columns}
    labels = write(tmp_path / "labels.parquet", "boolean_value", table.pop("boolean_value"), **table)
    with pytest.raises(CohortError, match=message) as error:
        convert_labels(labels, dataset, out=tmp_path / "out")
    assert "77" not in str(error.value)
    assert "Ann" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "labels.parquet"]


def test_places_that_cannot_be_used_are_refused(dataset: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.parquet", "boolean_value", [True] * 4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    for source, cohort, out, message in (
        (labels, dataset, None, "--out"),
        (labels, tmp_path / "empty", None, "MEDS dataset"),
        (labels, dataset, tmp_path / "full", "with contents"),
        (labels, dataset, dataset / "new", "outside"),
        (tmp_path / "empty", dataset, tmp_path / "new", "of labels"),
        (tmp_path / "none", dataset, tmp_path / "new", "of labels"),
    ):
        with pytest.raises(CohortError, match=message):
            convert_labels(source, cohort, out=out)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(CohortError, match="Parquet"):
        convert_labels(labels, dataset, out=tmp_path / "new")


def test_labels_that_aces_wrote(cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, dataset = (cohorts / "records" / name for name in ("aces_labels", "mimic_iv_demo"))
    if not labels.is_dir() or not dataset.is_dir():
        pytest.skip("needs records/aces_labels and records/mimic_iv_demo in ICAN_COHORTS")
    cli.main(["convert", "labels", str(labels), str(dataset), "--out", str(tmp_path / "out"), "--task", "death"])
    assert "243 episodes" in capsys.readouterr().out
    episodes = read_cohort(tmp_path / "out", task="death").episodes
    counts = dict(episodes["split"].value_counts().iter_rows())
    assert counts == {"train": 210, "tuning": 16, "held_out": 17}
    faults = validate(tmp_path / "out").violations
    assert not [violation for violation in faults if violation.file == "episodes.parquet"]
