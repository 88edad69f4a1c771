"""The operators of every backend against loops that follow the documentation word by word."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ican_ml.encoding import cpu, cpu_kernels
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.operators import (
    Backend,
    BackendUnavailable,
    feature_stats,
    lookup,
    normalize_log1p,
    rank_tokens,
    row_sums,
)

BACKENDS: tuple[Backend, ...] = ("reference", "cpu")
both = pytest.mark.parametrize("backend", BACKENDS)
fuzz = settings(deadline=None, max_examples=60)

_COUNTS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, 3e4, 2.0**24, 1e30, 3e38]), st.integers(0, 10**6).map(float)
)
_SIGNED = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-30, 1e30, -3e38, math.nan, math.inf]),
    st.floats(-100, 100, width=32),
)


@st.composite
def _batches(draw: st.DrawFn, values: st.SearchStrategy[float]) -> CSRBatch:
    """Rows in any order of features, with duplicates, empty rows and stored zeros."""
    n_features = draw(st.sampled_from([1, 2, 5, 300, 70000]))
    entry = st.tuples(st.integers(0, n_features - 1), values)
    rows = draw(st.lists(st.lists(entry, max_size=20), max_size=5))
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    entries = [e for row in rows for e in row]
    indices = np.array([f for f, _ in entries], np.int32)
    return CSRBatch(indptr, indices, np.array([v for _, v in entries], np.float32), n_features)


def _rows(batch: CSRBatch) -> list[list[tuple[int, np.float32]]]:
    bounds = zip(batch.indptr[:-1], batch.indptr[1:], strict=True)
    return [[(int(batch.indices[i]), batch.values[i]) for i in range(start, end)] for start, end in bounds]


def _sparse(n_rows: int, n_features: int, density: float, seed: int = 0) -> CSRBatch:
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 60, (n_rows, n_features)) * (rng.random((n_rows, n_features)) < density)
    return CSRBatch.from_dense(dense, keep_zeros=False)


@both
@fuzz
@given(_batches(_COUNTS))
def test_normalize_log1p_follows_its_formula(backend: Backend, batch: CSRBatch) -> None:
    found = normalize_log1p(batch, 1e4, backend=backend)
    assert found.indptr is batch.indptr
    assert found.indices is batch.indices
    expected = []
    for row in _rows(batch):
        total = math.fsum(float(v) for _, v in row)
        expected += [math.log1p(float(v) * (1e4 / total)) if total else 0.0 for _, v in row]
    np.testing.assert_allclose(found.values, expected, rtol=3e-7, atol=0)


@both
def test_normalize_log1p_errs_at_most_twice_as_much_as_plain_float32(backend: Backend) -> None:
    rng = np.random.default_rng(1)
    dense = np.exp(rng.uniform(-18, 9, (20, 5000))).astype(np.float32)
    batch = CSRBatch.from_dense(dense, keep_zeros=False)
    exact = np.log1p(dense.astype(np.float64) * 1e4 / dense.sum(axis=1, dtype=np.float64, keepdims=True)).ravel()
    plain = np.log1p(dense * (np.float32(1e4) / dense.sum(axis=1, keepdims=True))).ravel()
    found = normalize_log1p(batch, backend=backend).values
    for scale in (1.0, exact):  # absolute, then relative
        assert np.abs((found - exact) / scale).max() <= 2 * np.abs((plain - exact) / scale).max()


@both
def test_normalize_log1p_of_rows_that_sum_to_zero_is_zero(backend: Backend) -> None:
    batch = CSRBatch.from_dense(np.zeros((2, 3)), keep_zeros=True)
    assert normalize_log1p(batch, backend=backend).values.tolist() == [0] * 6


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_normalize_log1p_refuses_values_that_are_no_counts(bad: float) -> None:
    batch = CSRBatch(np.array([0, 2]), np.array([0, 1], np.int32), np.array([1, bad], np.float32), 2)
    with pytest.raises(ValueError, match="zero or more"):
        normalize_log1p(batch)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_normalize_log1p_refuses_a_target_that_is_not_positive(target: float) -> None:
    with pytest.raises(ValueError, match="target_sum"):
        normalize_log1p(_sparse(1, 3, 1), target)


@both
@fuzz
@given(_batches(_SIGNED.filter(math.isfinite)))
def test_feature_stats_counts_and_sums_every_stored_entry(backend: Backend, batch: CSRBatch) -> None:
    found = feature_stats(batch, backend=backend)
    entries: dict[int, list[float]] = {}
    for feature, value in (e for row in _rows(batch) for e in row):
        entries.setdefault(feature, []).append(float(value))
    assert found.sum.dtype == found.sum_of_squares.dtype == np.float64
    assert found.count.dtype == np.int64
    assert found.sum.shape == found.sum_of_squares.shape == found.count.shape == (batch.n_features,)
    for feature, values in entries.items():
        size = math.fsum(abs(v) for v in values)
        assert abs(found.sum[feature] - math.fsum(values)) <= 1e-14 * size
        assert found.sum_of_squares[feature] == pytest.approx(math.fsum(v * v for v in values), rel=1e-13)
        assert found.count[feature] == sum(v != 0 for v in values)
    assert np.count_nonzero(found.count) == sum(any(v != 0 for v in values) for values in entries.values())


@both
@fuzz
@given(_batches(_SIGNED), st.integers(0, 25), st.booleans(), st.integers(0, 2**32 - 1))
def test_rank_tokens_sorts_as_documented(
    backend: Backend, batch: CSRBatch, k: int, by_magnitude: bool, seed: int
) -> None:
    choices = np.array([1, 1, 0.5, 3, 0, -2, 1e-30, 1e30], np.float32)
    scale = np.random.default_rng(seed).choice(choices, batch.n_features)
    tokens, lengths = rank_tokens(batch, scale, k, by_magnitude, backend=backend)
    assert tokens.shape == (batch.n_rows, k)
    assert tokens.dtype == lengths.dtype == np.int32
    for r, row in enumerate(_rows(batch)):
        with np.errstate(all="ignore"):
            keys = [(value * scale[feature], feature) for feature, value in row]
        if by_magnitude:
            keys = [(abs(key), feature) for key, feature in keys]
        ranked = sorted((-float(key), feature) for key, feature in keys if key != 0 and not np.isnan(key))
        expected = [feature for _, feature in ranked][:k]
        assert tokens[r].tolist() == expected + [-1] * (k - len(expected))
        assert lengths[r] == len(expected)


@pytest.mark.parametrize("k", [1, 7, 255, 256, 5000])
def test_rank_tokens_of_long_rows_is_the_same_on_every_backend(k: int) -> None:
    batch = _sparse(12, 3000, 0.4)
    shuffled = np.random.default_rng(0).permutation(3000).astype(np.int32)
    unsorted = CSRBatch(batch.indptr, shuffled[batch.indices], batch.values, 3000)
    scale = np.random.default_rng(2).choice(np.array([0.1, 0.5, 1, 1, 7], np.float32), 3000)
    for each in (batch, unsorted):
        for found, expected in zip(
            rank_tokens(each, scale, k, backend="cpu"), rank_tokens(each, scale, k, backend="reference"), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


@both
def test_rank_tokens_rounds_the_product_once(backend: Backend) -> None:
    # In float64 the first product is the larger; in float32 they are equal, and the lower feature id goes first.
    scale = np.array([1, 1 + 2**-23], np.float32)
    values = np.array([1 + 2**-22, 1 + 2**-23], np.float32)
    batch = CSRBatch(np.array([0, 2]), np.array([0, 1], np.int32), values, 2)
    assert values[0] * scale[0] == values[1] * scale[1]
    assert np.prod([values[1], scale[1]], dtype=float) > values[0]
    assert rank_tokens(batch, scale, 2, backend=backend)[0].tolist() == [[0, 1]]


def test_rank_tokens_refuses_a_scale_of_another_shape_or_dtype() -> None:
    batch = _sparse(2, 4, 1)
    for scale in (np.ones(3, np.float32), np.ones(4)):
        with pytest.raises(ValueError, match=r"scale must be float32 \(4,\)"):
            rank_tokens(batch, scale, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be"):
        rank_tokens(batch, np.ones(4, np.float32), -1)


@both
@fuzz
@given(_batches(_COUNTS))
def test_row_sums_are_rounded_once(backend: Backend, batch: CSRBatch) -> None:
    found = row_sums(batch, backend=backend)
    with np.errstate(over="ignore"):
        expected = np.array([math.fsum(float(v) for _, v in row) for row in _rows(batch)], np.float64).astype(
            np.float32
        )
    np.testing.assert_allclose(found, expected, rtol=1.2e-7)
    assert found.dtype == np.float32


@fuzz
@given(_batches(_SIGNED.filter(math.isfinite)), st.data())
def test_lookup_finds_the_first_stored_entry(batch: CSRBatch, data: st.DataObject) -> None:
    features = data.draw(st.lists(st.integers(-1, batch.n_features - 1), max_size=6))
    values, stored = lookup(batch, np.array(features, np.int32))
    assert values.shape == stored.shape == (batch.n_rows, len(features))
    for r, row in enumerate(_rows(batch)):
        for q, feature in enumerate(features):
            held = [value for f, value in row if f == feature]
            assert stored[r, q] == bool(held)
            assert values[r, q] == (held[0] if held else 0)


def test_lookup_of_each_rows_own_features_tells_stored_zeros_from_nothing() -> None:
    matrix = CSRBatch(np.array([0, 2, 2, 3]), np.array([0, 2, 1], np.int32), np.array([5, 0, 7], np.float32), 3)
    values, stored = lookup(matrix, [[2, 0, -1], [1, 1, 1], [0, 2, 1]])
    assert values.tolist() == [[0, 5, 0], [0, 0, 0], [0, 0, 7]]
    assert stored.tolist() == [[True, True, False], [False] * 3, [False, False, True]]


def test_lookup_refuses_a_feature_that_is_not_there() -> None:
    for features in ([4], [-2], [0.5], [[1]], 1):
        with pytest.raises(ValueError, match="features must"):
            lookup(_sparse(2, 4, 1), features)


@both
def test_a_row_gets_the_same_bits_alone_as_in_a_batch(backend: Backend) -> None:
    batch, scale = _sparse(9, 400, 0.5), np.random.default_rng(0).random(400).astype(np.float32)
    normal, sums = normalize_log1p(batch, backend=backend), row_sums(batch, backend=backend)
    tokens, _ = rank_tokens(batch, scale, 50, backend=backend)
    for r in range(9):
        alone = batch.take([r])
        np.testing.assert_array_equal(normalize_log1p(alone, backend=backend).values, normal.take([r]).values)
        np.testing.assert_array_equal(row_sums(alone, backend=backend), sums[[r]])
        np.testing.assert_array_equal(rank_tokens(alone, scale, 50, backend=backend)[0], tokens[[r]])


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, rng = _sparse(33, 700, 0.3), np.random.default_rng(0)
    scale = rng.random(700).astype(np.float32)
    table, grad = rng.standard_normal((700, 37)).astype(np.float32), rng.standard_normal((33, 37)).astype(np.float32)
    arrays = (batch.indptr, batch.indices, batch.values)

    def everything() -> list[bytes]:
        stats = feature_stats(batch, backend="cpu")
        tokens, lengths = rank_tokens(batch, scale, 40, backend="cpu")
        results = (
            normalize_log1p(batch, backend="cpu").values,
            row_sums(batch, backend="cpu"),
            *(stats.sum, stats.sum_of_squares, stats.count, tokens, lengths),
            cpu.bag(*arrays, table),
            cpu.bag_grad_table(*arrays, grad, 700),
            cpu.bag_grad_values(batch.indptr, batch.indices, table, grad),
        )
        return [array.tobytes() for array in results]

    monkeypatch.setattr(cpu, "_ENTRIES_PER_STATS_PART", 1000)
    serial = everything()
    monkeypatch.setattr(cpu, "_WORK_WORTH_THREADS", 0)
    for threads in (2, 3, 7):
        monkeypatch.setattr(numba, "get_num_threads", lambda threads=threads: threads)
        assert everything() == serial


def test_read_only_arrays_are_welcome() -> None:
    batch = _sparse(3, 8, 0.5)
    for array in (batch.indptr, batch.indices, batch.values):
        array.flags.writeable = False
    np.testing.assert_array_equal(row_sums(batch, backend="cpu"), row_sums(batch, backend="reference"))


def test_backends_that_cannot_run_say_why() -> None:
    batch = _sparse(1, 3, 1)
    with pytest.raises(BackendUnavailable, match="no kernels in this version"):
        row_sums(batch, backend="cuda")
    with pytest.raises(ValueError, match="backend must be one of"):
        row_sums(batch, backend="gpu")  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    njit, asked = numba.njit, []

    def without_a_folder(**options: Any) -> Any:
        asked.append(options["cache"])
        if options["cache"]:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    assert cpu_kernels._compile()(lambda x: x + 1)(2) == 3
    assert asked == [True, False]


def test_the_operators_need_numpy_only() -> None:
    script = """
import sys
for name in ("torch", "numba", "cupy", "scipy", "onnx"):
    sys.modules[name] = None
import numpy as np
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding import operators, reference
batch = CSRBatch.from_dense(np.array([[0, 3, 1]]), keep_zeros=False)
print(operators.rank_tokens(batch, np.ones(3, np.float32), 2)[0].tolist())
try:
    operators.row_sums(batch, backend="cpu")
except operators.BackendUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[[1, 2]]"
    assert "needs numba" in done.stdout


def test_a_forked_worker_can_use_the_operators_after_its_parent_used_threads() -> None:
    script = """
import os
import numpy as np
from ican_ml.encoding import cpu
from ican_ml.encoding.csr import CSRBatch
cpu._WORK_WORTH_THREADS = 0
batch = CSRBatch.from_dense(np.ones((8, 8)), keep_zeros=False)
expected = cpu.row_sums(batch)
child = os.fork()
if child == 0:
    os._exit(0 if (cpu.row_sums(batch) == expected).all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
