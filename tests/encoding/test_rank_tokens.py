"""`rank_tokens` and `row_tokens`: the documented order to the last tie, and the fused path equal to its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens
from tests.encoding.batches import COUNTS, SIGNED, batches, both, fuzz, random_batch, rows_of, shuffled

_SCALES = np.array([1, 1, 0.5, 3, 0, -2, 1e-30, 1e30], np.float32)


def _scale(n_features: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(_SCALES, n_features)


@both
@fuzz
@given(batches(SIGNED), st.integers(0, 45), st.booleans(), st.integers(0, 2**32 - 1))
def test_tokens_are_sorted_as_documented(
    backend: Backend, batch: CSRBatch, k: int, by_magnitude: bool, seed: int
) -> None:
    scale = _scale(batch.n_features, seed)
    tokens, lengths = rank_tokens(batch, scale, k, by_magnitude, backend=backend)
    fused, values, fused_lengths = row_tokens(batch, np.arange(batch.n_rows), scale, k, by_magnitude, backend=backend)
    assert tokens.shape == values.shape == (batch.n_rows, k)
    assert tokens.dtype == lengths.dtype == np.int32
    np.testing.assert_array_equal(fused, tokens)
    np.testing.assert_array_equal(fused_lengths, lengths)
    for r, row in enumerate(rows_of(batch)):
        with np.errstate(all="ignore"):
            keys = [value * scale[feature] for feature, value in row]
        if by_magnitude:
            keys = [abs(key) for key in keys]
        order = sorted(
            (i for i, key in enumerate(keys) if key != 0 and not np.isnan(key)),
            key=lambda i: (-float(keys[i]), row[i][0]),
        )[:k]
        beyond = k - len(order)
        assert tokens[r].tolist() == [row[i][0] for i in order] + [-1] * beyond
        assert values[r].tolist() == [row[i][1] for i in order] + [0] * beyond
        assert lengths[r] == len(order)


@both
@fuzz
@given(batches(COUNTS), st.integers(0, 12), st.integers(0, 2**32 - 1), st.data())
def test_the_fused_path_equals_its_parts(
    backend: Backend, batch: CSRBatch, k: int, seed: int, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(-1, batch.n_rows - 1), max_size=6))
    scale = _scale(batch.n_features, seed)
    tokens, values, lengths = row_tokens(batch, rows, scale, k, target_sum=1e4, backend=backend)
    chosen = batch.take(rows)
    expected, expected_lengths = rank_tokens(chosen, scale, k, backend=backend)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(lengths, expected_lengths)
    normal = rows_of(normalize_log1p(chosen, backend=backend))
    for r in range(len(rows)):
        found = list(zip(tokens[r, : lengths[r]].tolist(), values[r].tolist(), strict=False))
        held = [(feature, pytest.approx(float(value), rel=3e-7)) for feature, value in normal[r]]
        assert all(pair in held for pair in found)
        assert not values[r, lengths[r] :].any()


@pytest.mark.parametrize("k", [1, 7, 255, 256, 5000])
@pytest.mark.parametrize("bits", [16, 32])
def test_long_rows_give_the_same_tokens_on_every_backend(k: int, bits: int) -> None:
    batch = random_batch(12, 3000, 0.4)
    scale = np.random.default_rng(2).choice(np.array([0.1, 0.5, 1, 1, 7], np.float32), 3000)
    for each in (batch, shuffled(batch)):
        asked = each.compact() if bits == 16 else each
        rows = np.array([3, 3, -1, 11, 0])
        for found, expected in zip(
            (*rank_tokens(asked, scale, k, backend="cpu"), *row_tokens(asked, rows, scale, k, backend="cpu")),
            (*rank_tokens(each, scale, k, backend="reference"), *row_tokens(each, rows, scale, k, backend="reference")),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)


@both
def test_the_product_is_rounded_once(backend: Backend) -> None:
    # In float64 the first product is the larger; in float32 they are equal, and the lower feature id goes first.
    scale = np.array([1, 1 + 2**-23], np.float32)
    values = np.array([1 + 2**-22, 1 + 2**-23], np.float32)
    batch = CSRBatch(np.array([0, 2]), np.array([0, 1], np.int32), values, 2)
    assert values[0] * scale[0] == values[1] * scale[1]
    assert np.prod([values[1], scale[1]], dtype=float) > values[0]
    assert rank_tokens(batch, scale, 2, backend=backend)[0].tolist() == [[0, 1]]


def test_what_does_not_fit_is_refused() -> None:
    batch, scale = random_batch(2, 4, 1), np.ones(4, np.float32)
    for wrong in (np.ones(3, np.float32), np.ones(4), np.ones(8, np.float32)[::2]):
        with pytest.raises(ValueError, match=r"scale must be contiguous float32 \(4,\)"):
            rank_tokens(batch, wrong, 2)
    with pytest.raises(ValueError, match="k must be"):
        rank_tokens(batch, scale, -1)
    with pytest.raises(ValueError, match=r"rows must lie in 0\.\.1"):
        row_tokens(batch, [2], scale, 2)
    with pytest.raises(ValueError, match="target_sum"):
        row_tokens(batch, [0], scale, 2, target_sum=0.0)


@both
@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_only_rows_that_are_asked_for_must_be_counts(backend: Backend, bad: float) -> None:
    batch = CSRBatch.from_scipy(random_batch(3, 5, 1).to_scipy())
    batch.values[0] = bad
    scale = np.ones(5, np.float32)
    row_tokens(batch, [1, 2], scale, 2, target_sum=1e4, backend=backend)
    with pytest.raises(ValueError, match="zero or more"):
        row_tokens(batch, [0], scale, 2, target_sum=1e4, backend=backend)
