"""`CSRBatch`: what it refuses, how it is made, and that gathering rows loses nothing."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ican_ml.encoding.csr import CSRBatch


def _batch(indptr: object = (0, 2, 2, 3), indices: object = (1, 0, 2), values: object = (5, 6, 7)) -> CSRBatch:
    return CSRBatch(np.array(indptr, np.int64), np.array(indices, np.int32), np.array(values, np.float32), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": (-1, 1, 2)}, "none below 0"),
        ({"indptr": ()}, r"rows \+ 1 pointers"),
        ({"indptr": (0, 2, 1, 3)}, "never decrease"),
        ({"indptr": (0, 2)}, "spans 2 entries, but there are 3 indices"),
        ({"values": (1, 2)}, "2 values"),
        ({"indices": (0, 3, 1)}, r"0\.\.2 for 3 features, got 0\.\.3"),
        ({"indices": (0, -1, 1)}, r"got -1\.\.1"),
        ({"values": ((1, 2, 3),)}, "one-dimensional float32 or uint16"),
    ],
)
def test_a_broken_layout_is_refused_with_what_was_expected(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _batch(**change)


def test_other_dtypes_and_strides_are_refused() -> None:
    batch = _batch()
    with pytest.raises(ValueError, match=r"indptr must be a one-dimensional int64 array, got int32"):
        CSRBatch(batch.indptr.astype(np.int32), batch.indices, batch.values, 3)
    with pytest.raises(ValueError, match="contiguous"):
        CSRBatch(batch.indptr, batch.indices, np.zeros(6, np.float32)[::2], 3)


def test_from_dense_tells_zero_from_missing() -> None:
    dense = np.array([[0, np.nan, 2], [np.nan, np.nan, np.nan], [3, 0, -0.0]])
    kept = CSRBatch.from_dense(dense, keep_zeros=True)
    assert kept.indptr.tolist() == [0, 2, 2, 5]
    assert kept.indices.tolist() == [0, 2, 0, 1, 2]
    assert kept.values.tolist() == [0, 2, 3, 0, 0]
    sparse = CSRBatch.from_dense(dense, keep_zeros=False)
    assert (sparse.indptr.tolist(), sparse.indices.tolist(), sparse.values.tolist()) == ([0, 1, 1, 2], [2, 0], [2, 3])


def test_from_scipy_drops_nan_and_keeps_stored_zeros() -> None:
    matrix = scipy.sparse.csr_matrix((np.array([1.0, np.nan, 0.0]), [0, 1, 2], [0, 2, 3]), shape=(2, 4))
    batch = CSRBatch.from_scipy(matrix)
    assert (batch.indptr.tolist(), batch.indices.tolist(), batch.values.tolist()) == ([0, 1, 2], [0, 2], [1, 0])
    assert batch.n_features == 4


def test_scipy_round_trip_shares_the_arrays() -> None:
    matrix = scipy.sparse.random(7, 5, 0.4, "csr", dtype=np.float32, random_state=0)
    batch = CSRBatch.from_scipy(matrix)
    assert np.shares_memory(batch.values, matrix.data)
    assert (batch.to_scipy() != matrix).nnz == 0


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_torch_and_anndata_share_the_arrays() -> None:
    matrix = scipy.sparse.random(7, 5, 0.4, "csr", dtype=np.float32, random_state=0)
    data = anndata.AnnData(matrix)
    assert np.shares_memory(CSRBatch.from_scipy(data.X).values, data.X.data)
    parts = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
    tensor = torch.sparse_csr_tensor(*parts, (7, 5), check_invariants=True)
    batch = CSRBatch.from_torch(tensor)
    assert np.shares_memory(batch.values, matrix.data)
    assert np.shares_memory(batch.indices, matrix.indices)
    assert (batch.to_scipy() != matrix).nnz == 0


def test_rows_of_a_large_matrix_are_a_view() -> None:
    far = np.array([0, 2, 2, 3], np.int64) + 2**31 + 5
    batch = CSRBatch(far, np.array([1, 0, 2], np.int32), np.array([5, 6, 7], np.float32), 3)
    view = batch.rows(1, 3)
    assert view.indptr.tolist() == far[1:].tolist()
    assert np.shares_memory(view.values, batch.values)
    assert (view.offsets.tolist(), view.indices.tolist(), view.values.tolist()) == ([0, 0, 1], [2], [7])
    assert view.take([1, 0]).values.tolist() == [7]
    assert batch.to_scipy().sum() == 18
    with pytest.raises(ValueError, match=r"rows must lie in 0\.\.3"):
        batch.rows(2, 4)


@pytest.mark.parametrize(
    ("values", "n_features", "dtypes"),
    [
        ((5, 6, 65535), 3, ("uint16", "uint16")),
        ((5, 6, 65536), 3, ("uint16", "float32")),
        ((5, 0.5, 7), 3, ("uint16", "float32")),
        ((5, -6, 7), 65536, ("uint16", "float32")),
        ((5, 6, 7), 65537, ("int32", "uint16")),
        ((5, np.nan, 7), 65537, ("int32", "float32")),
        ((5, np.inf, 7), 65537, ("int32", "float32")),
    ],
)
def test_compact_narrows_only_what_loses_nothing(
    values: tuple[float, ...], n_features: int, dtypes: tuple[str, str]
) -> None:
    batch = CSRBatch(np.array([0, 2, 3]), np.array([1, 0, 2], np.int32), np.array(values, np.float32), n_features)
    narrow = batch.compact()
    assert (narrow.indices.dtype.name, narrow.values.dtype.name) == dtypes
    np.testing.assert_array_equal(narrow.values.astype(np.float32), batch.values)
    np.testing.assert_array_equal(narrow.indices, batch.indices)


def test_take_gathers_in_order_with_repeats_and_empty_rows() -> None:
    taken = _batch().take([2, -1, 0, 0, 1])
    assert taken.indptr.tolist() == [0, 1, 1, 3, 5, 5]
    assert taken.indices.tolist() == [2, 1, 0, 1, 0]
    assert taken.values.tolist() == [7, 5, 6, 5, 6]


def test_take_of_nothing_and_from_nothing() -> None:
    assert _batch().take([]).n_rows == 0
    empty = CSRBatch.from_dense(np.zeros((0, 3)), keep_zeros=False)
    assert empty.take([-1, -1]).indptr.tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [[3], [-2], [0.5], [True, False, True]])
def test_take_refuses_what_is_no_row(rows: list[float]) -> None:
    with pytest.raises(ValueError, match="rows must"):
        _batch().take(rows)


def test_sorted_orders_features_and_keeps_the_order_of_duplicates() -> None:
    batch = _batch(indptr=(0, 4, 6), indices=(2, 1, 2, 0, 1, 0), values=(1, 2, 3, 4, 5, 6)).sorted()
    assert batch.indices.tolist() == [0, 1, 2, 2, 0, 1]
    assert batch.values.tolist() == [4, 2, 1, 3, 6, 5]
    assert batch.sorted() is batch


def test_with_values_refuses_another_length() -> None:
    with pytest.raises(ValueError, match="expected float32 or uint16"):
        _batch().with_values(np.zeros(2, np.float32))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 2**32 - 1), st.data())
def test_take_equals_indexing_a_dense_array(n_rows: int, n_features: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 3, (n_rows, n_features)).astype(np.float32)
    rows = data.draw(st.lists(st.integers(0, n_rows - 1), max_size=8)) if n_rows else []
    taken = CSRBatch.from_dense(dense, keep_zeros=False).take(rows)
    np.testing.assert_array_equal(taken.to_scipy().toarray(), dense[rows] if rows else np.zeros((0, n_features)))
    assert taken.row_ids().tolist() == [r for r in range(taken.n_rows) for _ in range(np.diff(taken.indptr)[r])]
