"""What must hold of a modality: its kind, its samples and features, its panels, and every entry of X.

In: obs, var and uns of an h5ad file, then the entries of X piece by piece. Out: :class:`Annotations`,
:class:`MatrixCounts`, and violations, noted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import NAT, Int64
from ican_ml.cohort.checks import Problems, Rows, shown
from ican_ml.cohort.stored_matrix import Entries, StoredMatrix

_KINDS = ("count", "binary", "continuous")
_MOSTLY = 0.5
_PANEL = "panel:"
Times = npt.NDArray[np.datetime64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """What obs, var and uns say, as far as it could be read.

    Attributes
    ----------
    kind
        "" where it is none of the known ones.
    features, genes
        Feature ids, and the gene symbol of each ("" = none).
    subject_id, sample_time
        int64 [samples], empty where it is of another type; datetime64[us] [samples], NaT = unknown.
    panels, panel
        Assay name to bool [features], and the assay of each sample; one called ``all`` where there are none.
    """

    kind: str
    features: tuple[str, ...]
    genes: tuple[str, ...]
    subject_id: Int64
    sample_time: Times
    panels: dict[str, Bool]
    panel: npt.NDArray[np.object_]


@dataclass(kw_only=True, slots=True)
class MatrixCounts:
    """Entries of X: how many are measured (stored, or implied zeros of a sparse matrix), and how many are not zero."""

    measured: int
    nonzero: int = 0


def check_annotations(obs: Any, var: Any, uns: Any, file: str, problems: Problems) -> Annotations:
    """Read obs and var (pandas) and uns."""
    ican = uns.get("ican") if isinstance(uns, Mapping) else None
    kind = ican.get("kind") if isinstance(ican, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        problems.add(
            "unknown-kind",
            file,
            column='uns["ican"]["kind"]',
            expected=f'uns["ican"]["kind"] to be one of {shown(_KINDS)}',
            got=repr(kind),
            fix='set uns["ican"] = {"kind": ...}',
        )
        kind = ""
    for what, index in (("sample", obs.index), ("feature", var.index)):
        problems.add_where(
            index.duplicated(),
            f"duplicate-{what}s",
            file,
            column="obs" if what == "sample" else "var",
            expected=f"unique {what} ids",
            got="{} repeated",
            fix="rename or remove them",
        )
    subject_type = obs["subject_id"].dtype if "subject_id" in obs else "no such column"
    typed = subject_type == np.int64
    if not typed:
        problems.add(
            "wrong-dtype" if "subject_id" in obs else "missing-column",
            file,
            column="obs/subject_id",
            expected='obs["subject_id"] of type int64',
            got=str(subject_type),
            fix="give every sample the whole number that its subject has in episodes.parquet",
        )
    if "gene" not in var:
        problems.add(
            "missing-genes",
            file,
            column="var/gene",
            severity="warning",
            expected='gene symbols in var["gene"], which tie features to drug targets',
            got="no such column",
            fix='add it, "" = none',
        )
    sample_time = _read_times(obs, file, problems)
    panels, panel = _read_panels(obs, var, file, problems)
    return Annotations(
        kind=kind,
        features=tuple(map(str, var.index)),
        genes=tuple(_texts(var["gene"])) if "gene" in var else ("",) * len(var),
        subject_id=obs["subject_id"].to_numpy() if typed else np.zeros(0, np.int64),
        sample_time=sample_time,
        panels=panels,
        panel=panel,
    )


def check_matrix(
    matrix: StoredMatrix, pieces: Iterable[Entries], about: Annotations, file: str, problems: Problems
) -> MatrixCounts:
    """Check the entries of ``matrix``, which come in ``pieces``."""
    n_features = matrix.shape[1]
    names = sorted(about.panels)
    measured = np.stack([about.panels[name] for name in names]) if names else np.ones((1, n_features), bool)
    number = {name: i for i, name in enumerate(names)}
    assay = np.array([number.get(name, -1) for name in about.panel], np.int64)
    sparse = matrix.layout != "dense"
    n_by_assay = measured.sum(axis=1)
    counts = MatrixCounts(measured=int(np.where(assay < 0, n_features, n_by_assay[assay]).sum()) if sparse else 0)
    found: dict[str, Bool] = {}
    n_entries: Counter[str] = Counter()
    for row, column, value in pieces:
        inside = (row >= 0) & (row < matrix.shape[0]) & (column >= 0) & (column < n_features)
        if not inside.all():
            n_entries["broken-matrix"] += 1
            row, column, value = row[inside], column[inside], value[inside]
        missing = np.isnan(value)
        counts.nonzero += int(np.count_nonzero(value)) - int(missing.sum())
        if not sparse:
            counts.measured += len(value)
        wrong = {
            "nan-in-sparse": missing,
            "non-finite": np.isinf(value),
            "repeated-entry": _repeated(row, column, n_features) if sparse else np.zeros(0, bool),
            "outside-panel": (value != 0) & (assay[row] >= 0) & ~measured[assay[row], column],
        }
        if about.kind == "count":
            wrong |= {"negative-count": value < 0, "fractional-count": np.isfinite(value) & (value != np.round(value))}
        elif about.kind == "binary":
            wrong |= {"not-binary": (value != 0) & (value != 1) & np.isfinite(value)}
        for code, at in wrong.items():
            if at.any():
                n_entries[code] += int(at.sum())
                found.setdefault(code, np.zeros(matrix.shape[0], bool))[row[at]] = True
    for code, (expected, got, fix) in _ENTRY_FAULTS.items():
        if n_entries[code]:
            rows = Rows()
            rows.add(np.flatnonzero(found.get(code, np.zeros(0, bool))))
            got = got.format(n_entries[code])
            problems.add(code, file, column="X", rows=rows, expected=expected, got=got, fix=fix)
    if not sparse and counts.measured == matrix.shape[0] * n_features and counts.nonzero < _MOSTLY * counts.measured:
        problems.add(
            "dense-zeros",
            file,
            column="X",
            severity="warning",
            expected="a sparse X, since every value is measured and most are zero",
            got=f"a dense one, {1 - counts.nonzero / counts.measured:.0%} zeros",
            fix="store it as scipy.sparse.csr_matrix, or NaN where a feature was not measured",
        )
    return counts


_ENTRY_FAULTS = {
    "broken-matrix": ("indices of features in X", "others", "write it with AnnData.write_h5ad"),
    "nan-in-sparse": (
        "no NaN in a sparse X",
        "{}",
        'store X dense, or say with obs["panel"] which features a sample measures',
    ),
    "repeated-entry": ("one entry a feature", "{} more", "call X.sum_duplicates()"),
    "non-finite": ("finite values", "{} others", "repair X"),
    "negative-count": ("counts of at least 0", "{} others", "repair X, or name another kind"),
    "fractional-count": ("whole counts", "{} others", "round X, or name the kind continuous"),
    "not-binary": ("0 and 1 only", "{} others", "repair X, or name another kind"),
    "outside-panel": (
        "values only of features that the sample's panel measures",
        "{} others",
        'correct the "panel:<name>" column in var or the panel in obs',
    ),
}


def _repeated(row: Int64, column: Int64, n_features: int) -> Bool:
    """Entries whose sample and feature an earlier entry of the piece has."""
    key = row * n_features + column
    if (np.diff(key) > 0).all():
        return np.zeros(len(key), bool)
    order = np.argsort(key, kind="stable")
    repeated = np.zeros(len(key), bool)
    repeated[order[1:]] = key[order[1:]] == key[order[:-1]]
    return repeated


def _read_times(obs: Any, file: str, problems: Problems) -> Times:
    """datetime64[us] [samples] from ISO texts; NaT where "" or the column is absent."""
    if "sample_time" not in obs:
        return np.full(len(obs), NAT).view("datetime64[us]")
    texts = np.array(_texts(obs["sample_time"]), dtype=object)
    distinct, where = np.unique(texts.astype(str), return_inverse=True)
    times = np.full(len(distinct), NAT).view("datetime64[us]")
    bad: dict[str, list[int]] = {"bad-sample-time": [], "timezone": []}
    for i, text in enumerate(distinct.tolist()):
        if text:
            try:
                time = datetime.fromisoformat(text)
            except ValueError:
                bad["bad-sample-time"].append(i)
                continue
            if time.tzinfo is None:
                times[i] = np.datetime64(time, "us")
            else:
                bad["timezone"].append(i)
    for code, found in bad.items():
        expected = "an ISO date" if code == "bad-sample-time" else "a time without a timezone"
        problems.add_where(
            np.isin(where, found),
            code,
            file,
            column="obs/sample_time",
            expected=f'obs["sample_time"] to be "" (unknown) or {expected}',
            got=shown([repr(str(distinct[i])) for i in found], 3),
            fix="write it like 2020-01-31, in the local time of the source",
        )
    return times[where]


def _read_panels(obs: Any, var: Any, file: str, problems: Problems) -> tuple[dict[str, Bool], npt.NDArray[np.object_]]:
    if "panel" not in obs:
        return {"all": np.ones(len(var), bool)}, np.full(len(obs), "all", dtype=object)
    columns = [column for column in var.columns if str(column).startswith(_PANEL)]
    untyped = [column for column in columns if var[column].dtype != np.bool_]
    if untyped:
        problems.add(
            "wrong-dtype",
            file,
            column=f"var/{untyped[0]}",
            expected="boolean panel columns",
            got=shown(untyped),
            fix="convert them to bool",
        )
    panels = {c.removeprefix(_PANEL): var[c].to_numpy() for c in columns if c not in untyped}
    panel = np.array(_texts(obs["panel"]), dtype=object)
    unnamed = sorted(set(panel) - {column.removeprefix(_PANEL) for column in columns})
    problems.add_where(
        np.isin(panel, unnamed),
        "unknown-panel",
        file,
        column="obs/panel",
        expected='a boolean column "panel:<name>" in var for every panel in obs',
        got=f"none for {shown([repr(name) for name in unnamed])}",
        fix="add the columns, or name the panel of every sample",
    )
    return panels, panel


def _texts(column: Any) -> list[str]:
    """A text column as str, "" where it is missing."""
    missing = column.isna().to_numpy()
    return ["" if absent else str(text) for text, absent in zip(column.astype(object), missing, strict=True)]
