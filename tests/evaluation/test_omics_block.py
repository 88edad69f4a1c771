"""Omics blocks: what is dense, and components of sparse rows against the same in dense float64."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from ican_ml.encoding.csr import CSRBatch
from ican_ml.evaluation.omics_block import OmicsBlock, components

PATIENTS, CLIP = 90, 1.5
GROUPS = np.array([0] * 40 + [1] * 40 + [2] * 10)
TRAINING = np.flatnonzero(np.arange(PATIENTS) % 3)


def random_block(n_features: int, *, explicit: bool) -> OmicsBlock:
    """Three assays and patients without any; features that are constant, in one group alone or in all; heavy tails."""
    rng = np.random.default_rng(n_features)
    measured = np.concatenate([np.zeros((1, n_features), bool), rng.random((3, n_features)) < 0.8])
    panel = np.where(np.arange(PATIENTS) % 15, rng.integers(1, 4, PATIENTS), 0)
    values = rng.standard_t(2, (PATIENTS, n_features)) * rng.uniform(0.1, 10, n_features) + 1
    values[rng.random(values.shape) < 0.5] = 0
    values[:, 0], values[:, 1], values[:40, 2], values[40:80, 3] = 0, 3.7, 0, 3.7
    known = measured[panel]
    if explicit:
        known &= rng.random(known.shape) < 0.9
    return OmicsBlock(
        matrix=CSRBatch.from_dense(np.where(known, values, np.nan), keep_zeros=explicit),
        mean=rng.normal(size=n_features).astype(np.float32),
        inverse_sd=rng.uniform(0.5, 2, n_features).astype(np.float32) * (np.arange(n_features) != 4),
        panel=panel,
        measured=measured,
        explicit=explicit,
    )


def dense_components(block: OmicsBlock, count: int) -> np.ndarray:
    """The definition, in float64 and with a whole singular value decomposition."""
    values = block.dense().astype(np.float64)
    z = np.zeros_like(values)
    for group in np.unique(GROUPS):
        reference = TRAINING[GROUPS[TRAINING] == group]
        known = values[reference if len(reference) >= 20 else TRAINING]
        n = np.maximum((~np.isnan(known)).sum(axis=0), 1)
        mean = np.nansum(known, axis=0) / n
        sd = np.sqrt(np.nansum((known - mean) ** 2, axis=0) / n)
        varies = sd > 1e-6
        members = np.equal(GROUPS, group)
        z[members] = np.clip((values[members] - mean) / np.where(varies, sd, 1), -CLIP, CLIP) * varies
    z = np.nan_to_num(z)
    assert (np.abs(z) == CLIP).any()
    scores = z @ np.linalg.svd(z[TRAINING])[2][:count].T
    return scores / np.sqrt(np.mean(scores[TRAINING] ** 2))


def test_a_dense_block_tells_zero_from_not_measured() -> None:
    matrix = CSRBatch.from_dense([[2, 0, 0], [0, 3, 0], [0, 0, 0]], keep_zeros=False)
    block = OmicsBlock(
        matrix=matrix,
        mean=np.array([1, 1, 0], np.float32),
        inverse_sd=np.array([2, 2, 0], np.float32),
        panel=np.array([1, 2, 0]),
        measured=np.array([[False] * 3, [True] * 3, [False, True, True]]),
        explicit=False,
    )
    np.testing.assert_array_equal(block.dense(), [[2, -2, 0], [np.nan, 4, 0], [np.nan] * 3])
    explicit = replace(block, explicit=True).dense()
    np.testing.assert_array_equal(explicit, [[2, np.nan, np.nan], [np.nan, 4, np.nan], [np.nan] * 3])


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(("n_features", "count"), [(30, 30), (40, 35), (200, 50)])
def test_components_are_those_of_the_dense_block(n_features: int, count: int, explicit: bool) -> None:
    block = random_block(n_features, explicit=explicit)
    found = components([block], TRAINING, GROUPS, count=count, clip=CLIP, seed=3)
    expected = dense_components(block, count)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5 * np.abs(expected @ expected.T).max())
    if count == n_features:
        return
    signs = np.sign((found * expected).sum(axis=0))
    leading = slice(0, 10)
    np.testing.assert_allclose((found * signs)[:, leading], expected[:, leading], atol=2e-4 * np.abs(expected).max())


def test_components_of_two_blocks_are_those_of_their_features_side_by_side() -> None:
    one, other = random_block(30, explicit=True), random_block(40, explicit=True)
    stored = [replace(each, mean=0 * each.mean, inverse_sd=0 * each.mean + 1).dense() for each in (one, other)]
    joined = replace(
        one,
        matrix=CSRBatch.from_dense(np.concatenate(stored, axis=1), keep_zeros=True),
        mean=np.concatenate([one.mean, other.mean]),
        inverse_sd=np.concatenate([one.inverse_sd, other.inverse_sd]),
        measured=np.concatenate([one.measured, other.measured], axis=1),
    )
    found, expected = (
        components(blocks, TRAINING, GROUPS, count=20, clip=CLIP, seed=3) for blocks in ([one, other], [joined])
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("explicit", [False, True])
def test_held_out_patients_do_not_touch_the_components_of_others(explicit: bool) -> None:
    block = random_block(200, explicit=explicit)
    held_out = np.setdiff1d(np.arange(PATIENTS), TRAINING)
    values = block.matrix.values.copy()
    values[np.isin(block.matrix.row_ids(), held_out)] *= -7
    changed = replace(block, matrix=block.matrix.with_values(values))
    before, after = (components([b], TRAINING, GROUPS, count=10, clip=CLIP, seed=3) for b in (block, changed))
    np.testing.assert_array_equal(before[TRAINING], after[TRAINING])
    assert (before[held_out] != after[held_out]).any()


def test_a_block_without_any_entry_has_components_of_zero() -> None:
    block = replace(random_block(300, explicit=False), matrix=CSRBatch.from_dense(np.zeros((PATIENTS, 300)), False))
    assert not components([block], TRAINING, GROUPS, count=10, clip=CLIP, seed=3).any()


def test_memory_stays_near_that_of_the_entries() -> None:
    patients, features, stored = 3000, 20_000, 400
    rng = np.random.default_rng(0)
    start = rng.integers(0, features // stored, (patients, stored))
    indices = (np.arange(stored) * (features // stored) + start).astype(np.int32).ravel()
    block = OmicsBlock(
        matrix=CSRBatch(
            np.arange(patients + 1) * stored, indices, rng.exponential(size=indices.size).astype(np.float32), features
        ),
        mean=np.zeros(features, np.float32),
        inverse_sd=np.ones(features, np.float32),
        panel=np.ones(patients, np.int64),
        measured=np.array([[False], [True]]).repeat(features, axis=1),
        explicit=False,
    )
    small = random_block(300, explicit=False)
    components([small], TRAINING, GROUPS, count=60, clip=CLIP, seed=0)  # compiles the kernels
    tracemalloc.start()
    try:
        with threadpool_limits(1):
            components([block], np.arange(2400), rng.integers(0, 5, patients), count=60, clip=10.0, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    dense = 4 * patients * features
    assert peak < dense / 2, f"{peak / 1e6:.0f} MB; the dense block has {dense / 1e6:.0f} MB"
