"""One omics modality: ``omics/<name>.h5ad`` of a cohort as sparse rows with their subjects, times and assays.

In: AnnData on disk (https://anndata.readthedocs.io), X [samples x features] CSR or dense float32; obs ``subject_id``,
optional ``sample_time`` (ISO date, "" = unknown) and ``panel``; var ``gene`` and boolean ``panel:<name>`` columns;
``uns["ican"]["kind"]``. Out: :class:`Modality`. "Not measured" stays apart from "zero": by NaN where the matrix is
dense, by the panel where it is sparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import NAT, Int64, end_of_known, find_subjects
from ican_ml.cohort.checks import Problems, shown
from ican_ml.encoding.csr import CSRBatch

KINDS = ("count", "binary", "continuous")
_PANEL = "panel:"
Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """Samples of one omics modality.

    Attributes
    ----------
    kind
        ``count``, ``binary`` or ``continuous``.
    matrix
        [samples, features], feature ids ascending within a row.
    explicit
        True: the source was dense, every measured entry is stored, zeros too. False: an entry that is not stored is
        zero if the sample's panel measures its feature.
    features, genes
        Feature ids, and the gene symbol of each ("" = none).
    subject_id, sample_time
        int64 [samples]; datetime64[us] [samples], NaT = unknown.
    panels
        Assay name to bool [features]: what it measures. Without assays in the source, one called ``all``.
    panel
        Assay name of each sample.
    """

    name: str
    kind: str
    matrix: CSRBatch
    explicit: bool
    features: tuple[str, ...]
    genes: tuple[str, ...]
    subject_id: Int64
    sample_time: Times
    panels: dict[str, npt.NDArray[np.bool_]]
    panel: npt.NDArray[np.object_]


def latest_samples(modality: Modality, subject_id: Int64, prediction_time: Times) -> Int64:
    """Row of the latest sample that was taken at or before each prediction time.

    Parameters
    ----------
    modality
        The samples. One without a time is usable at any time, and loses to a dated one. Of several at one time the
        last row counts.
    subject_id, prediction_time
        int64 [n], datetime64 [n]; NaT = no limit.

    Returns
    -------
    int64 [n]
        -1 = none.
    """
    moment = modality.sample_time.astype("datetime64[us]").view(np.int64)
    order = np.lexsort((moment, modality.subject_id))
    subjects, first = np.unique(modality.subject_id[order], return_index=True)
    position, found = find_subjects(subjects, np.asarray(subject_id, np.int64))
    if not len(subjects):
        return np.full(len(position), -1, np.int64)
    start, stop = first[position], np.append(first[1:], len(order))[position]
    end = end_of_known(moment[order], start, stop, prediction_time.astype("datetime64[us]").view(np.int64))
    return np.where(found & (end > start), order[np.maximum(end - 1, 0)], -1)


def read_modality(path: Path, problems: Problems) -> Modality | None:
    """Read and check one modality; ``None`` where it has problems, which are noted."""
    file = f"omics/{path.name}"
    noted = len(problems.lines)
    parts = _read_parts(path, file, problems)
    if parts is None:
        return None
    obs, var = parts["obs"], parts["var"]
    kind = parts["uns"].get("ican", {}).get("kind")
    if kind not in KINDS:
        expected = f'uns["ican"]["kind"] to be one of {shown(KINDS)}'
        problems.add(file, expected=expected, got=repr(kind), fix='set uns["ican"] = {"kind": ...}')
    for what, index in (("sample", obs.index), ("feature", var.index)):
        if n_repeated := int(index.duplicated().sum()):
            problems.add(file, expected=f"unique {what} ids", got=f"{n_repeated} repeated", fix="rename or remove them")
    subject_type = obs["subject_id"].dtype if "subject_id" in obs else "no such column"
    if subject_type != np.int64:
        problems.add(
            file,
            expected='obs["subject_id"] of type int64',
            got=str(subject_type),
            fix="give every sample the whole number that its subject has in episodes.parquet",
        )
    sample_time = _read_times(obs, file, problems)
    panels, panel = _read_panels(obs, var, file, problems)
    matrix = _read_matrix(parts["X"], str(kind), file, problems)
    if len(problems.lines) > noted or matrix is None:
        return None
    explicit = isinstance(parts["X"], np.ndarray)
    if not explicit:
        _check_measured(matrix, panels, panel, file, problems)
    return Modality(
        name=path.stem,
        kind=str(kind),
        matrix=matrix,
        explicit=explicit,
        features=tuple(map(str, var.index)),
        genes=tuple(_texts(var["gene"])) if "gene" in var else ("",) * len(var),
        subject_id=obs["subject_id"].to_numpy(),
        sample_time=sample_time,
        panels=panels,
        panel=panel,
    )


def _read_parts(path: Path, file: str, problems: Problems) -> dict[str, Any] | None:
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path, "r") as stored:
            parts = {key: read_elem(stored[key]) for key in ("X", "obs", "var", "uns") if key in stored}
    except OSError:
        problems.add(file, expected="an HDF5 file", got="something else", fix="write it with AnnData.write_h5ad")
        return None
    absent = [key for key in ("X", "obs", "var") if key not in parts]
    if absent:
        problems.add(file, expected="X, obs and var", got=f"no {shown(absent)}", fix="write it with AnnData.write_h5ad")
        return None
    return {"uns": {}, **parts}


def _read_matrix(stored: Any, kind: str, file: str, problems: Problems) -> CSRBatch | None:
    """The matrix as sorted rows; a dense source keeps its measured zeros."""
    noted = len(problems.lines)
    if isinstance(stored, np.ndarray):
        matrix = CSRBatch.from_dense(stored, keep_zeros=True)
    else:
        if n_missing := int(np.isnan(stored.data).sum()):
            problems.add(
                file,
                expected="no NaN in a sparse X",
                got=f"{n_missing}",
                fix='store X dense, or say with obs["panel"] which features a sample measures',
            )
        matrix = CSRBatch.from_scipy(stored).sorted()
        repeated = (np.diff(matrix.indices) == 0) & (np.diff(matrix.row_ids()) == 0)
        if n_repeated := int(repeated.sum()):
            problems.add(file, expected="one entry a feature", got=f"{n_repeated} more", fix="call X.sum_duplicates()")
    values = matrix.values
    wrong = {
        "finite values": ~np.isfinite(values),
        "counts of at least 0": values < 0 if kind == "count" else np.zeros(0, bool),
        "0 and 1 only": (values != 0) & (values != 1) if kind == "binary" else np.zeros(0, bool),
    }
    for expected, at in wrong.items():
        if n_wrong := int(at.sum()):
            problems.add(file, expected=expected, got=f"{n_wrong} others", fix="repair X, or name another kind")
    return matrix if len(problems.lines) == noted else None


def _read_times(obs: Any, file: str, problems: Problems) -> Times:
    """datetime64[us] [samples] from ISO texts; NaT where "" or the column is absent."""
    if "sample_time" not in obs:
        return np.full(len(obs), NAT).view("datetime64[us]")
    texts = np.array(_texts(obs["sample_time"]), dtype=object)
    distinct, where = np.unique(texts.astype(str), return_inverse=True)
    times = np.full(len(distinct), NAT).view("datetime64[us]")
    bad: dict[str, list[str]] = {"an ISO date": [], "a time without a timezone": []}
    for i, text in enumerate(distinct.tolist()):
        if text:
            try:
                time = datetime.fromisoformat(text)
            except ValueError:
                bad["an ISO date"].append(repr(text))
                continue
            if time.tzinfo is None:
                times[i] = np.datetime64(time, "us")
            else:
                bad["a time without a timezone"].append(repr(text))
    for expected, found in bad.items():
        if found:
            problems.add(
                file,
                expected=f'obs["sample_time"] to be "" (unknown) or {expected}',
                got=shown(found, 3),
                fix="write it like 2020-01-31, in the local time of the source",
            )
    return times[where]


def _read_panels(
    obs: Any, var: Any, file: str, problems: Problems
) -> tuple[dict[str, npt.NDArray[np.bool_]], npt.NDArray[np.object_]]:
    if "panel" not in obs:
        return {"all": np.ones(len(var), bool)}, np.full(len(obs), "all", dtype=object)
    columns = [column for column in var.columns if str(column).startswith(_PANEL)]
    untyped = [column for column in columns if var[column].dtype != np.bool_]
    if untyped:
        problems.add(file, expected="boolean panel columns", got=shown(untyped), fix="convert them to bool")
    panels = {c.removeprefix(_PANEL): var[c].to_numpy() for c in columns if c not in untyped}
    panel = np.array(_texts(obs["panel"]), dtype=object)
    unnamed = sorted(set(panel) - {column.removeprefix(_PANEL) for column in columns})
    if unnamed:
        problems.add(
            file,
            expected='a boolean column "panel:<name>" in var for every panel in obs',
            got=f"none for {shown([repr(name) for name in unnamed])}",
            fix="add the columns, or name the panel of every sample",
        )
    return panels, panel


def _check_measured(
    matrix: CSRBatch,
    panels: dict[str, npt.NDArray[np.bool_]],
    panel: npt.NDArray[np.object_],
    file: str,
    problems: Problems,
) -> None:
    """A value of a feature that the sample's panel does not measure would be seen or not, depending on the reader."""
    names = sorted(panels)
    measured = np.stack([panels[name] for name in names])
    number = {name: i for i, name in enumerate(names)}
    of_sample = np.array([number[name] for name in panel], np.int64)
    outside = ~measured[of_sample[matrix.row_ids()], matrix.indices] & (matrix.values != 0)
    if n_outside := int(outside.sum()):
        problems.add(
            file,
            expected="values only of features that the sample's panel measures",
            got=f"{n_outside} others",
            fix='correct the "panel:<name>" column in var or the panel in obs',
        )


def _texts(column: Any) -> list[str]:
    """A text column as str, "" where it is missing."""
    missing = column.isna().to_numpy()
    return ["" if absent else str(text) for text, absent in zip(column.astype(object), missing, strict=True)]
