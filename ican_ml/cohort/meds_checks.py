"""A MEDS 0.4 dataset (https://github.com/Medical-Event-Data-Standard/meds) as a whole: its data files, its metadata,
and that they belong together.

In: a folder with ``data/**/*.parquet`` and ``metadata/``. Out: :class:`RecordSummary`, and violations, noted. What
``meds`` does not validate is validated here: order, subjects in two files or splits, codes without metadata.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.cohort.asof import Int64, find_subjects
from ican_ml.cohort.checks import Problems, shown
from ican_ml.cohort.files import open_parquet, read_object, read_table
from ican_ml.cohort.meds_schema import check_schema, data_files
from ican_ml.cohort.meds_stream import FileScan, rows_of, scan_file
from ican_ml.cohort.split import PARTS

if TYPE_CHECKING:
    import polars as pl

Tell = Callable[[str, Path, float], None]
_CODES, _SPLITS, _DATASET = (f"metadata/{name}" for name in ("codes.parquet", "subject_splits.parquet", "dataset.json"))
_MEDS = "0.4"


@dataclass(kw_only=True, slots=True)
class RecordSummary:
    """What a dataset holds.

    Attributes
    ----------
    scans, complete
        One for each data file that can be read; whether that is all of them, to their end.
    subject_id
        int64, ascending.
    splits
        ``subject_id``, ``split`` and ``row``, where subject_splits.parquet can be read.
    """

    scans: list[FileScan] = field(default_factory=list)
    complete: bool = True
    subject_id: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    splits: pl.DataFrame | None = None


def check_dataset(records: Path, prefix: str, problems: Problems, tell: Tell) -> RecordSummary:
    """Check a dataset; ``prefix`` is ``records/`` in a cohort, ``tell`` is called as (file, path, share read)."""
    _check_about(records, prefix, problems)
    codes = _open_metadata(records, prefix, _CODES, "CodeMetadataSchema", problems)
    splits = _open_metadata(records, prefix, _SPLITS, "SubjectSplitSchema", problems)
    known = None if codes is None else _check_codes(codes, prefix + _CODES, problems)
    summary = RecordSummary(splits=None if splits is None else _check_splits(splits, prefix + _SPLITS, problems))
    of_folder: dict[str, list[Int64]] = {}
    for path, file in data_files(records, prefix, problems):
        stored = open_parquet(path, file, problems)
        if stored is None or not check_schema("DataSchema", stored.schema_arrow, file, problems):
            summary.complete = False
            continue
        scan = scan_file(path, file, problems, partial(tell, file, path))
        here = scan.subjects.subject_id
        _check_elsewhere(path, file, here, summary.subject_id, problems)
        summary.subject_id = np.union1d(summary.subject_id, here)
        summary.scans.append(scan)
        summary.complete &= scan.n_rows == stored.metadata.num_rows
        folders = path.relative_to(records / "data").parts[:-1]
        of_folder.setdefault(folders[0] if folders else "", []).append(here)
    if known is not None:
        _check_codes_known(summary, known, prefix + _CODES, problems)
    if summary.splits is not None:
        _check_placed(summary, of_folder, prefix + _SPLITS, problems)
    return summary


def _check_about(records: Path, prefix: str, problems: Problems) -> None:
    import meds

    file = prefix + _DATASET
    fix = "write it: dataset_name, meds_version ..."
    about = read_object(records / _DATASET, file, problems, code="missing-metadata", severity="warning", fix=fix)
    if about is None:
        return
    try:
        schema: Any = meds.schema.DatasetMetadataSchema
        schema.validate(about)
    except Exception:
        expected, fix = "the fields and types of meds.DatasetMetadataSchema", "correct them"
        problems.add("wrong-metadata", file, severity="warning", expected=expected, got="others", fix=fix)
    version = about.get("meds_version")
    if not str(version).startswith(f"{_MEDS}."):
        problems.add(
            "meds-version",
            file,
            column="meds_version",
            severity="warning",
            expected=f"{_MEDS}",
            got=repr(version),
            fix="write the dataset with that version, or correct the number if it follows it",
        )


def _open_metadata(records: Path, prefix: str, name: str, schema: str, problems: Problems) -> pl.DataFrame | None:
    path, file = records / name, prefix + name
    if not path.exists():
        fix = "write it: every MEDS dataset has one"
        problems.add("missing-metadata", file, expected="the file", got="none", fix=fix, severity="warning")
        return None
    stored = open_parquet(path, file, problems)
    if stored is None or not check_schema(schema, stored.schema_arrow, file, problems):
        return None
    return read_table(path, file, problems)


def _check_codes(codes: pl.DataFrame, file: str, problems: Problems) -> frozenset[str]:
    problems.add_where(
        (~codes["code"].is_first_distinct()).to_numpy(),
        "duplicate-codes",
        file,
        column="code",
        severity="warning",
        expected="one row a code",
        got="{} more",
        fix="merge them",
    )
    return frozenset(codes["code"].drop_nulls().to_list())


def _check_codes_known(summary: RecordSummary, known: frozenset[str], file: str, problems: Problems) -> None:
    codes: Counter[str] = Counter()
    for scan in summary.scans:
        codes.update(scan.codes)
    unknown = [(code, n) for code, n in codes.most_common() if code not in known]
    if unknown:
        problems.add(
            "unknown-code",
            file,
            column="code",
            severity="warning",
            expected="a row for each code of data/",
            got=f"none for {len(unknown):,} of {len(codes):,} codes, {sum(n for _, n in unknown):,} events: "
            + shown([code for code, _ in unknown], 3),
            fix="add them, with parent_codes if they have any",
        )


def _check_splits(splits: pl.DataFrame, file: str, problems: Problems) -> pl.DataFrame:
    """Splits of the subjects, one row each, with the ``row`` of the file."""
    import polars as pl

    splits = splits.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String)).with_row_index("row")
    empty = pl.col("subject_id").is_null() | pl.col("split").is_null()
    other = (pl.col("split") != pl.col("split").first().over("subject_id")).fill_null(False)
    repeated = ~pl.col("subject_id").is_first_distinct() & ~other & ~empty
    for code, column, wrong, expected, got, severity in (
        ("null-split", "split", empty, "a subject_id and a split in every row", "{} rows without", "error"),
        ("subject-in-two-splits", "split", other, "one split a subject", "{} rows with another", "error"),
        ("duplicate-subjects", "subject_id", repeated, "one row a subject", "{} more", "warning"),
    ):
        problems.add_where(
            splits.select(wrong.alias("wrong"))["wrong"].to_numpy(),
            code,
            file,
            column=column,
            severity="warning" if severity == "warning" else "error",
            expected=expected,
            got=got,
            fix="keep one row a subject",
        )
    return splits.drop_nulls().unique("subject_id", keep="first", maintain_order=True)


def _check_elsewhere(path: Path, file: str, here: Int64, seen: Int64, problems: Problems) -> None:
    again = np.intersect1d(here, seen, assume_unique=True)
    if not len(again):
        return
    rows = rows_of(path, lambda subject, time: find_subjects(again, subject)[1])
    problems.add(
        "subject-in-two-files",
        file,
        column="subject_id",
        rows=rows,
        expected="all rows of a subject in one file",
        got=f"{len(again)} subjects that an earlier file has, too",
        fix="bring the rows of a subject together in one file",
    )


def _check_placed(summary: RecordSummary, of_folder: dict[str, list[Int64]], file: str, problems: Problems) -> None:
    """Subjects lie in the folder of their split, where folders are named after splits, and every one has a split."""
    assert summary.splits is not None
    names = {*PARTS, *summary.splits["split"].unique()}
    subject, split = summary.splits["subject_id"].to_numpy(), summary.splits["split"]
    for folder, parts in of_folder.items():
        if folder in names:
            problems.add_where(
                np.isin(subject, np.concatenate(parts)) & (split != folder).to_numpy(),
                "split-mismatch",
                file,
                column="split",
                numbers=summary.splits["row"].to_numpy(),
                expected=f"split {folder} of the subjects in data/{folder}",
                got="{} others",
                fix="move their rows, or correct the split",
            )
    n_without = int((~np.isin(summary.subject_id, subject)).sum())
    if n_without:
        problems.add(
            "subject-without-split",
            file,
            column="subject_id",
            severity="warning",
            expected="every subject of data/",
            got=f"no row for {n_without} of {len(summary.subject_id)}",
            fix="add them",
        )
