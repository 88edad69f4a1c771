"""Matrices on disk: pieces, rows and maps give what the matrix in memory gives; broken files are refused."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse

from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.rank_tokens import row_tokens
from ican_ml.encoding.stored import map_csr, open_csr, save_csr
from tests.encoding.batches import random_batch


@pytest.fixture
def batch() -> CSRBatch:
    return random_batch(50, 80, 0.2)


def _write(batch: CSRBatch, path: Path) -> Path:
    data = anndata.AnnData(scipy.sparse.csr_matrix(batch.to_scipy()))
    data.layers["wide"] = data.X.astype(np.float64)
    data.obsm["dense"] = np.ones((50, 2))
    if path.suffix == ".zarr":
        data.write_zarr(path)
    else:
        data.write_h5ad(path, compression="gzip")
    return path


def _same(found: CSRBatch, expected: CSRBatch) -> None:
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.n_features == expected.n_features


@pytest.mark.filterwarnings("ignore")  # zarr's own
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("element", ["X", "layers/wide"])
def test_pieces_and_rows_equal_the_matrix(batch: CSRBatch, suffix: str, element: str, tmp_path: Path) -> None:
    with open_csr(_write(batch, tmp_path / f"m{suffix}"), element) as stored:
        assert (stored.n_rows, stored.nnz, stored.n_features) == (50, batch.nnz, 80)
        pieces = list(stored.pieces(entries=100))
        assert len(pieces) > 5
        assert all(piece.nnz <= 100 or piece.n_rows == 1 for piece in pieces)
        _same(stored.take(np.arange(50)), batch)
        for rows in ([7, 8, 9, -1, 3, 7, 49, 0], [-1], []):
            _same(stored.take(rows), batch.take(rows))
        found, expected = feature_stats(stored.pieces(entries=100)), feature_stats(batch)
    np.testing.assert_array_equal(found.sum, expected.sum)
    np.testing.assert_array_equal(found.count, expected.count)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_mapped_matrix_is_a_batch_that_stays_on_disk(batch: CSRBatch, bits: int, tmp_path: Path) -> None:
    saved = batch.compact() if bits == 16 else batch
    save_csr((saved.rows(i, i + 10) for i in range(0, 50, 10)), tmp_path / "m")
    mapped = map_csr(tmp_path / "m")
    _same(mapped, saved)
    assert isinstance(mapped.values.base, np.memmap)
    assert mapped.values.dtype == saved.values.dtype
    scale = np.ones(80, np.float32)
    for found, expected in zip(
        row_tokens(mapped, [4, 40, -1], scale, 5), row_tokens(batch, [4, 40, -1], scale, 5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert not list(tmp_path.glob("*.part"))


def test_a_matrix_without_entries_can_be_mapped(tmp_path: Path) -> None:
    save_csr(CSRBatch.from_dense(np.zeros((2, 3)), keep_zeros=False), tmp_path / "m")
    assert map_csr(tmp_path / "m").nnz == 0


def test_what_cannot_be_saved_is_refused(batch: CSRBatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        save_csr([], tmp_path / "m")
    with pytest.raises(ValueError, match="share width and dtypes"):
        save_csr([batch, batch.compact()], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    save_csr(batch, tmp_path / "m")
    with pytest.raises(ValueError, match="expected a new folder, got m"):
        save_csr(batch, tmp_path / "m")


def test_what_cannot_be_opened_is_refused(batch: CSRBatch, tmp_path: Path) -> None:
    path = _write(batch, tmp_path / "m.h5ad")
    for element, message in (("layers/x", "no such element"), ("obsm/dense", "got array; write it as a CSR matrix")):
        with pytest.raises(ValueError, match=message), open_csr(path, element):
            pass
    with h5py.File(path, "a") as file:
        file["X/indptr"][3] = 10**6
    with pytest.raises(ValueError, match="do not belong together"), open_csr(path):
        pass
    with pytest.raises(ValueError, match=r"without a csr\.json"):
        map_csr(tmp_path)
    (tmp_path / "csr.json").write_text('{"format": "ican-csr/2"}')
    with pytest.raises(ValueError, match="expected format ican-csr/1, got 'ican-csr/2'"):
        map_csr(tmp_path)
