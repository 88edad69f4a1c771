"""Validates a cohort folder (format ``ican-cohort/1``), or a bare MEDS dataset, whatever bytes lie in it.

In: a folder. Out: :class:`Report`: what the cohort holds, and every violation of the format. Training's own door
(:func:`ican_ml.cohort.cohort.read_cohort`) runs the same checks on the part that it reads and refuses what is an error
here; this module also reads the rows of the records, and holds the parts of the cohort against each other.

X and the records are read in pieces, so that both may be larger than memory; episodes, obs and var are read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.cohort import summary
from ican_ml.cohort.asof import Int64
from ican_ml.cohort.checks import Problems, Violation, shown
from ican_ml.cohort.cohort import check_overlap, clocks_of, read_meta
from ican_ml.cohort.episode_checks import EPISODES, check_outcomes, check_parts, check_repeated, survival_names
from ican_ml.cohort.files import each
from ican_ml.cohort.meds_checks import RecordSummary, check_dataset
from ican_ml.cohort.omics import WHAT, open_modality
from ican_ml.cohort.omics_checks import check_matrix
from ican_ml.cohort.stored_matrix import Entries, StoredMatrix
from ican_ml.cohort.tables import TREATMENTS, check_columns, open_episodes, read_treatments

if TYPE_CHECKING:
    import polars as pl

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a cohort holds, and what is wrong with it.

    Attributes
    ----------
    summary
        Plain numbers and texts by part: ``subjects``, ``omics``, ``records``, ``episodes``.
    violations
        Errors first.
    """

    name: str
    summary: dict[str, Any]
    violations: tuple[Violation, ...]

    def count(self, severity: str) -> int:
        """How many violations are an ``error`` or a ``warning``."""
        return sum(violation.severity == severity for violation in self.violations)

    def as_dictionary(self) -> dict[str, Any]:
        """The report as plain types, for JSON."""
        return {
            "name": self.name,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "summary": self.summary,
            "violations": [asdict(violation) for violation in self.violations],
        }


def validate(path: str | Path, progress: Progress | None = None) -> Report:
    """Validate a folder; faults end in the report, never in an exception.

    Parameters
    ----------
    path
        Folder of a cohort, or of a MEDS dataset (``data/``, ``metadata/``).
    progress
        Called as (file, bytes done, bytes in all).
    """
    root = Path(path)
    problems = Problems()
    parts: dict[str, Any] = {}
    name = root.name
    if (root / "cohort.json").exists() or (root / EPISODES).exists():
        name, parts = _validate_cohort(root, problems, _tell(root, progress))
    elif (root / "data").is_dir():
        found = check_dataset(root, "", problems, _tell(root, progress))
        parts = {"records": summary.of_records(found)}
    else:
        problems.add(
            "not-a-cohort",
            ".",
            expected="cohort.json and episodes.parquet, or the folder data/ of a MEDS dataset",
            got="neither" if root.is_dir() else "no such folder",
            fix="check the path, or convert the data first",
        )
    violations = sorted(problems.violations, key=lambda violation: violation.severity)
    return Report(name=name, summary=parts, violations=tuple(violations))


def _tell(root: Path, progress: Progress | None) -> Callable[[str, Path, float], None]:
    """Function to call with a file and the share of it that was read."""
    paths = [*root.rglob("*.parquet"), *root.glob("omics/*.h5ad")]
    size = {path: path.stat().st_size for path in paths if path.is_file()}
    done = dict.fromkeys(size, 0)

    def tell(file: str, path: Path, share: float) -> None:
        done[path] = int(share * size.get(path, 0))
        if progress is not None:
            progress(file, sum(done.values()), sum(size.values()))

    return tell


def _validate_cohort(
    root: Path, problems: Problems, tell: Callable[[str, Path, float], None]
) -> tuple[str, dict[str, Any]]:
    meta = read_meta(root, problems)
    episodes = open_episodes(root, problems, severity="warning")
    if episodes is not None:
        row = np.arange(len(episodes))
        check_columns(episodes, problems)
        check_outcomes(episodes, row, problems, clocks_of(meta))
        check_repeated(episodes, row, problems)
        check_parts(episodes, row, problems)
        _check_clocks(meta, episodes, problems)
    tell(EPISODES, root / EPISODES, 1.0)
    targets, _ = read_treatments(root, problems)
    if episodes is not None and targets:
        _check_drugs(episodes, targets, problems)
    has_records = (root / "records").is_dir()
    records = check_dataset(root / "records", "records/", problems, tell) if has_records else RecordSummary()
    asked = summary.subjects_of(episodes)
    if asked is not None:
        check_overlap(records.subject_id, asked, "records/data", problems)
    if episodes is not None and records.splits is not None:
        _check_same_split(episodes, records.splits, problems)
    omics, sampled = [], [np.zeros(0, np.int64)]
    for path in sorted((root / "omics").glob("*.h5ad")):
        line, subjects = _validate_modality(path, problems, partial(tell, f"omics/{path.name}", path))
        omics += line
        sampled.append(subjects)
        if asked is not None:
            check_overlap(subjects, asked, f"omics/{path.name}", problems)
            if records.complete:
                _check_known(subjects, np.union1d(asked, records.subject_id), f"omics/{path.name}", problems)
    return str(meta.get("name", root.name)), {
        "subjects": summary.of_subjects(asked, np.unique(np.concatenate(sampled)), records.subject_id),
        "omics": omics,
        "records": summary.of_records(records) if has_records else {},
        "episodes": summary.of_episodes(episodes) if episodes is not None else [],
    }


def _validate_modality(
    path: Path, problems: Problems, tell: Callable[[float], None]
) -> tuple[list[dict[str, Any]], Int64]:
    """Line of the summary, and the subject of each sample."""
    file = f"omics/{path.name}"
    with open_modality(path, file, problems) as (about, matrix):
        if about is None:
            return [], np.zeros(0, np.int64)
        counts = None
        if matrix is not None:
            pieces = each(_told(matrix, tell), WHAT, file, problems)
            counts = check_matrix(matrix, pieces, about, file, problems)
        return [summary.of_modality(path.stem, about, matrix, counts)], about.subject_id


def _told(matrix: StoredMatrix, tell: Callable[[float], None]) -> Iterator[Entries]:
    n_entries = max(int(matrix.offsets[-1]) or matrix.shape[0] * matrix.shape[1], 1)
    n_done = 0
    for piece in matrix.entries():
        yield piece
        n_done += len(piece[0])
        tell(min(n_done / n_entries, 1.0))


def _check_clocks(meta: dict[str, Any], episodes: pl.DataFrame, problems: Problems) -> None:
    """A clock is that of an outcome; one that does not start at the prediction needs the day of the prediction."""
    for outcome, clock in clocks_of(meta).items():
        if outcome not in survival_names(episodes):
            problems.add(
                "unknown-clock",
                "cohort.json",
                column="clocks",
                severity="warning",
                expected=f"a survival outcome {outcome!r} in episodes.parquet",
                got=f"outcomes {shown(survival_names(episodes))}",
                fix="correct the name, or remove the clock",
            )
        elif clock != "prediction_time" and f"{outcome}_entry" not in episodes.columns:
            problems.add(
                "clock-without-entry",
                EPISODES,
                column=f"{outcome}_entry",
                severity="warning",
                expected=f"{outcome}_entry, the day of prediction on the clock from {clock}",
                got="no such column",
                fix="add it: nobody is at risk before the prediction is asked for",
            )


def _check_drugs(episodes: pl.DataFrame, targets: dict[str, tuple[str, ...]], problems: Problems) -> None:
    import polars as pl

    if episodes.schema.get("treatment") != pl.List(pl.String):
        return
    given = episodes["treatment"].explode().drop_nulls().unique().sort().to_list()
    if absent := [drug for drug in given if drug not in targets]:
        problems.add(
            "drug-without-row",
            TREATMENTS,
            column="drug",
            severity="warning",
            expected="a row for each drug of the episodes",
            got=f"none for {len(absent)} of {len(given)}: {shown(absent)}",
            fix="add them; without target genes a drug is known by its name only",
        )


def _check_same_split(episodes: pl.DataFrame, splits: pl.DataFrame, problems: Problems) -> None:
    import polars as pl

    if episodes.schema.get("subject_id") != pl.Int64 or episodes.schema.get("split") != pl.String:
        return
    both = episodes.select("subject_id", "split").join(
        splits.select("subject_id", pl.col("split").alias("other")), on="subject_id", how="left", maintain_order="left"
    )
    problems.add_where(
        both.select((pl.col("split") != pl.col("other")).fill_null(False).alias("wrong"))["wrong"].to_numpy(),
        "split-mismatch",
        EPISODES,
        column="split",
        expected="the split of records/metadata/subject_splits.parquet",
        got="another in {} rows",
        fix="let both say the same: who is held out must not be trained on",
    )


def _check_known(subjects: Int64, known: Int64, file: str, problems: Problems) -> None:
    problems.add_where(
        ~np.isin(subjects, known),
        "unknown-subject",
        file,
        column="obs/subject_id",
        severity="warning",
        expected="subjects that have an episode or a record",
        got="{} samples of others",
        fix="correct subject_id, or remove these samples",
    )
