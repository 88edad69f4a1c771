"""A cohort on disk, format ``ican-cohort/1``, read and checked at the door.

In: a folder with ``cohort.json``, ``episodes.parquet`` and, where there are any, ``omics/<modality>.h5ad``,
``records/`` and ``treatments.parquet``. Out: :class:`Cohort`, or one :class:`CohortError` that lists every problem.
Records are read apart (:func:`ican_ml.records.meds.read_records`): they can be large, and not every use needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.cohort.asof import Int64
from ican_ml.cohort.checks import CohortError, Problems, shown
from ican_ml.cohort.files import read_object
from ican_ml.cohort.omics import Modality, latest_samples, read_modality
from ican_ml.cohort.tables import check_records, read_episodes, read_treatments

if TYPE_CHECKING:
    import polars as pl

__all__ = ["FORMAT", "Cohort", "CohortError", "Modality", "latest_samples", "read_cohort"]

FORMAT = "ican-cohort/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """A cohort in memory, without its records.

    Attributes
    ----------
    path
        The folder.
    meta
        ``cohort.json``.
    modalities
        By name, in alphabetical order.
    episodes
        One row a prediction. ``prediction_time`` may be null, ``treatment`` may be [].
    targets
        Every drug of the cohort to its target genes; () = targets unknown.
    classes
        Drug to ATC code, where known.
    has_records
        Whether there is a ``records/`` folder.
    """

    path: Path
    name: str
    meta: dict[str, Any]
    modalities: dict[str, Modality]
    episodes: pl.DataFrame
    targets: dict[str, tuple[str, ...]]
    classes: dict[str, str]
    has_records: bool


def read_cohort(path: str | Path, *, task: str | None = None, modalities: Sequence[str] | None = None) -> Cohort:
    """Read a cohort folder and check all that would break training.

    Parameters
    ----------
    path
        The folder.
    task
        Keep the episodes of this task only; ``None`` keeps all.
    modalities
        Names of the omics modalities to read; ``None`` reads all, [] none.

    Raises
    ------
    CohortError
        With every problem found, one a line: file, what was expected, what was found, how to fix it.
    """
    root = Path(path)
    problems = Problems()
    if not root.is_dir():
        problems.add("missing-file", str(path), expected="a cohort folder", got="no such folder", fix="check the path")
        problems.raise_if_any(root.name)
    meta = read_meta(root, problems)
    episodes = read_episodes(root, task, problems, clocks_of(meta))
    targets, classes = read_treatments(root, problems)
    has_records = check_records(root, problems)
    found: dict[str, Modality] = {}
    for file in _modality_files(root, modalities, problems):
        modality = read_modality(file, problems)
        if modality is not None:
            found[modality.name] = modality
    if episodes is not None:
        for modality in found.values():
            name = f"omics/{modality.name}.h5ad"
            check_overlap(modality.subject_id, episodes["subject_id"].to_numpy(), name, problems)
    problems.raise_if_any(str(meta.get("name", root.name)))
    assert episodes is not None
    drugs = episodes["treatment"].explode().drop_nulls().unique().sort().to_list()
    return Cohort(
        path=root,
        name=str(meta["name"]),
        meta=meta,
        modalities=found,
        episodes=episodes,
        targets={drug: targets.get(drug, ()) for drug in sorted({*drugs, *targets})},
        classes=classes,
        has_records=has_records,
    )


def read_meta(root: Path, problems: Problems) -> dict[str, Any]:
    """``cohort.json``; {} where it cannot be read."""
    file = "cohort.json"
    fix = f'write {{"format": "{FORMAT}", "name": ...}}'
    meta = read_object(root / file, file, problems, code="missing-file", severity="error", fix=fix)
    if meta is None:
        return {}
    if meta.get("format") != FORMAT:
        problems.add(
            "unknown-format",
            file,
            column="format",
            expected=f'"format": "{FORMAT}"',
            got=repr(meta.get("format")),
            fix="convert the cohort, or read it with the version of ican_ml that wrote it",
        )
    if not isinstance(meta.get("name"), str):
        got = repr(meta.get("name"))
        problems.add("missing-name", file, column="name", expected='"name": a text', got=got, fix="name the cohort")
    return meta


def clocks_of(meta: dict[str, Any]) -> dict[str, Any]:
    """By outcome, from when its days count; an outcome that is not named counts from ``prediction_time``."""
    clocks = meta.get("clocks")
    return clocks if isinstance(clocks, dict) else {}


def _modality_files(root: Path, wanted: Sequence[str] | None, problems: Problems) -> list[Path]:
    present = {path.stem: path for path in sorted((root / "omics").glob("*.h5ad"))}
    unknown = [] if wanted is None else sorted(set(wanted) - set(present))
    if unknown:
        fix = "choose among those present"
        problems.add(
            "missing-file", "omics", expected=f"modalities {shown(unknown)}", got=shown(list(present)), fix=fix
        )
    return [path for name, path in present.items() if wanted is None or name in wanted]


def check_overlap(subjects: Int64, episodes: Int64, file: str, problems: Problems) -> None:
    """A part of the cohort none of whose subjects has an episode was written with other identifiers."""
    if len(subjects) and len(episodes) and not np.isin(subjects, episodes).any():
        problems.add(
            "no-overlap",
            file,
            column="subject_id",
            expected=f"{'samples' if file.startswith('omics') else 'events'} of subjects in episodes.parquet",
            got="of none",
            fix="use the same subject_id in both, or leave this part out",
        )
