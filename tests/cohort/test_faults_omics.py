"""Faults of a modality, each planted in a copy of a healthy cohort: the validator names it, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from scipy.sparse import csr_matrix

MUTATION, CNV, EXPRESSION = (f"omics/{name}.h5ad" for name in ("mutation", "cnv", "expression"))

Change = Callable[[Path], None]


def write(file: str, content: bytes | None) -> Change:
    """Give a change that writes bytes to a file, or removes it."""

    def change(root: Path) -> None:
        (root / file).unlink() if content is None else (root / file).write_bytes(content)

    return change


def cut(file: str) -> Change:
    def change(root: Path) -> None:
        whole = (root / file).read_bytes()
        (root / file).write_bytes(whole[: len(whole) * 2 // 3])

    return change


def omics(file: str, edit: Callable[[anndata.AnnData], None]) -> Change:
    def change(root: Path) -> None:
        data = anndata.read_h5ad(root / file)
        edit(data)
        data.write_h5ad(root / file)

    return change


def stored(file: str, edit: Callable[[h5py.File], None]) -> Change:
    def change(root: Path) -> None:
        with h5py.File(root / file, "r+") as opened:
            edit(opened)

    return change


def entry(value: float) -> Callable[[h5py.File], None]:
    def edit(opened: h5py.File) -> None:
        opened["X/data"][0] = value

    return edit


def replace(name: str, value: Any) -> Callable[[h5py.File], None]:
    def edit(opened: h5py.File) -> None:
        attributes = dict(opened[name].attrs)
        del opened[name]
        opened[name] = value(opened) if callable(value) else value
        opened[name].attrs.update(attributes)

    return edit


def obs(column: str, row: int, value: Any) -> Callable[[anndata.AnnData], None]:
    def edit(data: anndata.AnnData) -> None:
        values = data.obs[column].astype(object).to_numpy(copy=True)
        values[row] = value
        data.obs[column] = values if isinstance(value, str) else values.astype(np.int64)

    return edit


def repeat_first_id(part: str) -> Callable[[h5py.File], None]:
    def edit(opened: h5py.File) -> None:
        index = opened[part][opened[part].attrs["_index"]]
        index[1] = index[0]

    return edit


def repeat_entry(opened: h5py.File) -> None:
    opened["X/indices"][1] = opened["X/indices"][0]


def outside_panel(data: anndata.AnnData) -> None:
    row = int(np.flatnonzero(data.obs["panel"] == "focused")[0])
    column = int(np.flatnonzero(~data.var["panel:focused"].to_numpy())[0])
    dense = data.X.toarray()
    dense[row, column] = 1.0
    data.X = csr_matrix(dense)


def other_panel(data: anndata.AnnData) -> None:
    data.obs["panel"] = data.obs["panel"].astype(str).replace("focused", "tiny")


def dense(data: anndata.AnnData) -> None:
    data.X = data.X.toarray()


def set_x(dtype: Any = np.float32, form: str = "csr") -> Callable[[anndata.AnnData], None]:
    def edit(data: anndata.AnnData) -> None:
        data.X = data.X.asformat(form).astype(dtype)

    return edit


def other_subjects(opened: h5py.File) -> None:
    opened["obs/subject_id"][:] = np.arange(len(opened["obs/subject_id"]))


# name: (change, what is found, rows of the first, severity)
FAULTS: dict[str, tuple[Any, ...]] = {
    "not HDF5": (write(CNV, b"chromosome,gene"), {("unreadable", CNV)}),
    "half a matrix": (cut(EXPRESSION), {("unreadable", EXPRESSION)}),
    "no X": (stored(CNV, lambda opened: opened.__delitem__("X")), {("missing-element", CNV)}),
    "unknown kind": (stored(CNV, replace("uns/ican/kind", "counts")), {("unknown-kind", CNV)}),
    "sample twice": (stored(CNV, repeat_first_id("obs")), {("duplicate-samples", CNV)}, 1),
    "feature twice": (stored(CNV, repeat_first_id("var")), {("duplicate-features", CNV)}, 1),
    "no genes": (
        omics(CNV, lambda d: d.var.drop(columns="gene", inplace=True)),
        {("missing-genes", CNV)},
        None,
        "warning",
    ),
    "subject of nobody": (omics(CNV, obs("subject_id", 4, 7)), {("unknown-subject", CNV)}, 1, "warning"),
    "subjects of nobody": (stored(CNV, other_subjects), {("no-overlap", CNV), ("unknown-subject", CNV)}),
    "sample subjects as text": (
        omics(CNV, lambda d: d.obs.insert(0, "subject_id", d.obs.pop("subject_id").astype(str))),
        {("wrong-dtype", CNV)},
    ),
    "day of sampling as text": (omics(CNV, obs("sample_time", 2, "31.1.2020")), {("bad-sample-time", CNV)}, 1),
    "sampling in a zone": (omics(CNV, obs("sample_time", 2, "2020-01-31T08:00+02:00")), {("timezone", CNV)}, 1),
    "infinite value": (stored(CNV, entry(np.inf)), {("non-finite", CNV)}, 1),
    "NaN in sparse": (stored(CNV, entry(np.nan)), {("nan-in-sparse", CNV)}, 1),
    "negative count": (stored(EXPRESSION, entry(-2)), {("negative-count", EXPRESSION)}, 1),
    "part of a count": (stored(EXPRESSION, entry(2.5)), {("fractional-count", EXPRESSION)}, 1),
    "two mutations": (stored(MUTATION, entry(2)), {("not-binary", MUTATION)}, 1),
    "entry twice": (stored(CNV, repeat_entry), {("repeated-entry", CNV)}, 1),
    "feature beyond X": (
        stored(CNV, lambda opened: opened["X/indices"].__setitem__(0, 10**6)),
        {("broken-matrix", CNV)},
    ),
    "rows beyond X": (stored(CNV, lambda opened: opened["X/indptr"].__setitem__(1, 10**6)), {("broken-matrix", CNV)}),
    "another shape": (
        stored(CNV, lambda opened: opened["X"].attrs.__setitem__("shape", [3, 3])),
        {("wrong-shape", CNV)},
    ),
    "X in double precision": (omics(CNV, set_x(np.float64)), {("inexact-dtype", CNV)}, None, "warning"),
    "X by columns": (omics(CNV, set_x(form="csc")), {("not-csr", CNV)}, None, "warning"),
    "zeros stored": (omics(MUTATION, dense), {("dense-zeros", MUTATION)}, None, "warning"),
    "panel without column": (omics(MUTATION, other_panel), {("unknown-panel", MUTATION)}),
    "value outside its panel": (omics(MUTATION, outside_panel), {("outside-panel", MUTATION)}, 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_else(assert_named: Callable[..., None], name: str) -> None:
    assert_named(*FAULTS[name])
