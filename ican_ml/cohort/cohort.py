"""A cohort on disk, format ``ican-cohort/1``, read and checked at the door.

In: a folder with ``cohort.json``, ``episodes.parquet`` and, where there are any, ``omics/<modality>.h5ad``,
``records/`` and ``treatments.parquet``. Out: :class:`Cohort`, or one :class:`CohortError` that lists every problem.
Records are read apart (:func:`ican_ml.records.meds.read_records`): they can be large, and not every use needs them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.cohort.checks import CohortError, Problems, shown
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
        problems.add(str(path), expected="a cohort folder", got="no such folder", fix="check the path")
        problems.raise_if_any(root.name)
    meta = _read_meta(root, problems)
    episodes = read_episodes(root, task, problems)
    targets, classes = read_treatments(root, problems)
    has_records = check_records(root, problems)
    found: dict[str, Modality] = {}
    for file in _modality_files(root, modalities, problems):
        modality = read_modality(file, problems)
        if modality is not None:
            found[modality.name] = modality
    if episodes is not None:
        _check_overlap(found, episodes, problems)
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


def _read_meta(root: Path, problems: Problems) -> dict[str, Any]:
    file = "cohort.json"
    try:
        meta = json.loads((root / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.add(file, expected="the file", got="none", fix=f'write {{"format": "{FORMAT}", "name": ...}}')
        return {}
    except ValueError:
        problems.add(file, expected="JSON", got="something else", fix="correct its syntax")
        return {}
    if not isinstance(meta, dict):
        problems.add(file, expected="a JSON object", got=type(meta).__name__, fix="see the cohort format")
        return {}
    if meta.get("format") != FORMAT:
        fix = "convert the cohort, or read it with the version of ican_ml that wrote it"
        problems.add(file, expected=f'"format": "{FORMAT}"', got=repr(meta.get("format")), fix=fix)
    if not isinstance(meta.get("name"), str):
        problems.add(file, expected='"name": a text', got=repr(meta.get("name")), fix="name the cohort")
    return meta


def _modality_files(root: Path, wanted: Sequence[str] | None, problems: Problems) -> list[Path]:
    present = {path.stem: path for path in sorted((root / "omics").glob("*.h5ad"))}
    unknown = [] if wanted is None else sorted(set(wanted) - set(present))
    if unknown:
        fix = "choose among those present"
        problems.add("omics", expected=f"modalities {shown(unknown)}", got=shown(list(present)), fix=fix)
    return [path for name, path in present.items() if wanted is None or name in wanted]


def _check_overlap(modalities: dict[str, Modality], episodes: pl.DataFrame, problems: Problems) -> None:
    subjects = episodes["subject_id"].to_numpy()
    for name, modality in modalities.items():
        if len(subjects) and not np.isin(subjects, modality.subject_id).any():
            problems.add(
                f"omics/{name}.h5ad",
                expected="samples of subjects in episodes.parquet",
                got="of none",
                fix="use the same subject_id in both, or leave the modality out",
            )
