"""Seeded random batches for the tests on a GPU, in NumPy alone: such a machine need not have the whole test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ican_ml.encoding.csr import CSRBatch

Draw = Callable[[np.random.Generator, int], np.ndarray]

_COUNTS = np.array([0, -0.0, 1, 1, 2, 255, 256, 3e4, 2**24, 1e30, 3e38, 1e-40], np.float32)
_SIGNED = np.array([0, -0.0, 1, 1, -1, 1e-40, -1e-40, -1e-30, 1e30, -3e38, np.nan, np.inf, -np.inf], np.float32)


def counts(rng: np.random.Generator, n: int) -> np.ndarray:
    """Small counts, huge ones, the smallest numbers; for some batches small ones alone."""
    if rng.random() < 0.4:
        return rng.integers(0, 5, n).astype(np.float32)
    return np.where(rng.random(n) < 0.5, rng.choice(_COUNTS, n), rng.integers(0, 10**6, n)).astype(np.float32)


def signed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Numbers of either sign, many equal, NaN and infinities among them."""
    return np.where(rng.random(n) < 0.5, rng.choice(_SIGNED, n), rng.integers(-200, 201, n) / 2).astype(np.float32)


def finite(rng: np.random.Generator, n: int) -> np.ndarray:
    """The same without NaN and infinities."""
    return np.where(rng.random(n) < 0.5, rng.choice(_SIGNED[:-3], n), rng.standard_normal(n)).astype(np.float32)


def weights(rng: np.random.Generator, n: int) -> np.ndarray:
    """Numbers from -8 to 8."""
    return (rng.integers(-128, 129, n) / 16).astype(np.float32)


def batches(
    draw: Draw, features: tuple[int, ...] = (1, 2, 5, 300, 70_000), n: int = 200
) -> Iterator[tuple[CSRBatch, np.random.Generator]]:
    """So many batches, and a generator for what goes with each.

    Rows in any order of features, with duplicates, empty rows and stored zeros; in 32 or 16 bits; with row pointers of
    the first or of a far later row of a larger matrix.
    """
    for seed in range(n):
        rng = np.random.default_rng(seed)
        n_features, n_rows = int(rng.choice(features)), int(rng.integers(0, 7))
        lengths = rng.choice([0, 1, 3, 40, 300, 700], n_rows, p=[0.2, 0.1, 0.2, 0.3, 0.1, 0.1])
        indices = rng.integers(0, n_features, lengths.sum()).astype(np.int32)
        indptr = np.cumsum([rng.choice([0, 0, 7, 2**31 + 5]), *lengths], dtype=np.int64)
        batch = CSRBatch(indptr, indices, draw(rng, indices.size), n_features)
        batch = batch.sorted() if rng.random() < 0.5 else batch
        yield batch.compact() if rng.random() < 0.5 and not np.isnan(batch.values).any() else batch, rng


def rows_of_length(lengths: np.ndarray, n_features: int, values: np.ndarray, seed: int = 0) -> CSRBatch:
    """Rows of these lengths, features at random."""
    rng, indptr = np.random.default_rng(seed), np.append(0, np.cumsum(lengths))
    return CSRBatch(indptr, rng.integers(0, n_features, indptr[-1]).astype(np.int32), values, n_features)


def host(array: Any) -> np.ndarray:
    """A result's contents as a NumPy array."""
    return array.get() if hasattr(array, "get") else array


def equal(found: Any, expected: Any) -> None:
    """Same bits in same dtypes; any NaN equals any."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(host(one), other)
