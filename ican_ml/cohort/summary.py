"""What a cohort holds, in plain numbers and texts: subjects, omics, records, and episodes with their outcomes.

Counts and rates only: no subject, no date finer than a year.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.cohort.asof import Int64
from ican_ml.cohort.episode_checks import survival_names
from ican_ml.cohort.meds_checks import RecordSummary
from ican_ml.cohort.omics_checks import Annotations, MatrixCounts
from ican_ml.cohort.stored_matrix import StoredMatrix

if TYPE_CHECKING:
    import polars as pl


def subjects_of(episodes: pl.DataFrame | None) -> Int64 | None:
    """Subjects of the episodes, ascending; ``None`` where they cannot be read."""
    import polars as pl

    if episodes is None or episodes.schema.get("subject_id") != pl.Int64:
        return None
    return np.unique(episodes["subject_id"].drop_nulls().to_numpy())


def of_subjects(asked: Int64 | None, sampled: Int64, recorded: Int64) -> dict[str, int]:
    """Subjects with episodes, samples and records."""
    asked = np.zeros(0, np.int64) if asked is None else asked
    anywhere = np.union1d(sampled, recorded)
    return {
        "all": len(np.union1d(asked, anywhere)),
        "with episodes": len(asked),
        "with samples": len(sampled),
        "with records": len(recorded),
        "with episodes and nothing else": len(np.setdiff1d(asked, anywhere)),
    }


def of_modality(
    name: str, about: Annotations, matrix: StoredMatrix | None, counts: MatrixCounts | None
) -> dict[str, Any]:
    """One modality. ``measured`` is the share of entries that are not NaN, ``nonzero`` that of the measured ones."""
    n_entries = len(about.panel) * len(about.features)
    return {
        "modality": name,
        "kind": about.kind,
        "layout": matrix.layout if matrix else "",
        "samples": len(about.panel),
        "subjects": len(np.unique(about.subject_id)),
        "features": len(about.features),
        "measured": round(counts.measured / n_entries, 4) if counts and n_entries else None,
        "nonzero": round(counts.nonzero / counts.measured, 4) if counts and counts.measured else None,
        "assays": dict(sorted(Counter(map(str, about.panel)).items())),
    }


def of_records(records: RecordSummary) -> dict[str, Any]:
    """The record: events of all data files; years are those of the first and the last dated event."""
    codes: set[str] = set()
    for scan in records.scans:
        codes.update(scan.codes)
    dated = [scan for scan in records.scans if scan.earliest <= scan.latest]
    moments = [moment for scan in dated for moment in (scan.earliest, scan.latest)]
    years = [int(np.datetime64(moment, "us").astype("datetime64[Y]").astype(int)) + 1970 for moment in moments]
    return {
        "files": len(records.scans),
        "subjects": len(records.subject_id),
        "events": sum(scan.n_rows for scan in records.scans),
        "static events": sum(scan.n_static for scan in records.scans),
        "codes": len(codes),
        "first year": min(years, default=None),
        "last year": max(years, default=None),
    }


def of_episodes(episodes: pl.DataFrame) -> list[dict[str, Any]]:
    """Episodes, subjects and outcomes by task and indication, as far as these columns are there."""
    import polars as pl

    by = [name for name in ("task", "indication") if episodes.schema.get(name) == pl.String]
    groups = episodes.group_by(by) if by else [((), episodes)]
    lines = []
    for key, group in groups:
        names = dict(zip(by, key, strict=True))
        outcomes = _outcomes(group)
        n_subjects = group["subject_id"].n_unique() if "subject_id" in group.columns else 0
        line = {"task": names.get("task") or "", "indication": names.get("indication") or ""}
        lines.append({**line, "episodes": len(group), "subjects": n_subjects, "outcomes": outcomes})
    return sorted(lines, key=lambda line: (line["task"], line["indication"]))


def _outcomes(group: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each outcome that any row has: how many rows know it, and its rate (binary, survival) or mean."""
    import polars as pl

    found = {}
    for name, column, figure in (
        ("response", "response", "rate"),
        *((name, f"{name}_event", "events") for name in survival_names(group)),
        ("sensitivity", "sensitivity", "mean"),
    ):
        dtype = group.schema.get(column)
        if dtype is None or not (dtype == pl.Boolean or (figure == "mean" and dtype.is_numeric())):
            continue
        known = group[column].cast(pl.Float64).drop_nulls()
        known = known.filter(known.is_finite())
        if len(known):
            found[name] = {"known": len(known), figure: round(float(known.to_numpy().mean()), 4)}
    return found
