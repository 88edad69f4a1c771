"""The CUDA backend keeps the operators' contract: kernels as they ship, on the emulator, in every build and order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.sparse import vstack

from ican_ml.encoding import cpu, cuda
from ican_ml.encoding.backends import Backend
from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.lookup import row_sums
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens
from tests.emulator.device import EmulatedDevice, emulated
from tests.emulator.emulator import KernelFault
from tests.emulator.planted import plant
from tests.encoding.batches import COUNTS, FINITE, SIGNED, batches, random_batch, shuffled

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "kernels"
OTHERS: tuple[Backend, ...] = ("reference", "cpu")
SCALES = np.array([1, 1, 0.5, 3, 0, -2, 1e-30, 1e30], np.float32)
SEEDS = st.integers(0, 2**32 - 1)
SMALL_SHARED = st.booleans()  # so little that items go to scratch in global memory


@pytest.fixture(scope="module", params=["plain", "asan", "tsan"])
def device(request: pytest.FixtureRequest) -> Iterator[EmulatedDevice]:
    with emulated(request.param) as device:
        yield device


def _share(device: EmulatedDevice, small: bool) -> None:
    device.largest_shared = (11 if small else 227) * 1024


def test_tokens(device: EmulatedDevice) -> None:
    @device.fuzz(batches(SIGNED), st.integers(0, 45), st.booleans(), SEEDS, SMALL_SHARED)
    def check(batch: CSRBatch, k: int, by_magnitude: bool, seed: int, small: bool) -> None:
        _share(device, small and k > 30)
        rng = np.random.default_rng(seed)
        scale, rows = rng.choice(SCALES, batch.n_features), rng.integers(-1, batch.n_rows, 4)
        found = rank_tokens(batch, scale, k, by_magnitude, backend="cuda")
        fused = row_tokens(batch, rows, scale, k, by_magnitude, backend="cuda")
        for other in OTHERS:
            _equal(found, rank_tokens(batch, scale, k, by_magnitude, backend=other))
            _equal(fused, row_tokens(batch, rows, scale, k, by_magnitude, backend=other))


def test_tokens_with_normalised_values(device: EmulatedDevice) -> None:
    @device.fuzz(batches(COUNTS), st.integers(0, 12), SEEDS)
    def check(batch: CSRBatch, k: int, seed: int) -> None:
        _share(device, False)
        rng = np.random.default_rng(seed)
        scale, rows = rng.choice(SCALES, batch.n_features), rng.integers(-1, batch.n_rows, 4)
        tokens, values, lengths = row_tokens(batch, rows, scale, k, target_sum=1e4, backend="cuda")
        for other in OTHERS:
            expected = row_tokens(batch, rows, scale, k, target_sum=1e4, backend=other)
            _equal((tokens, lengths), (expected[0], expected[2]))
            np.testing.assert_allclose(values, expected[1], rtol=4e-7)


@pytest.mark.parametrize("k", [1, 7, 255, 256, 2500])
@pytest.mark.parametrize("bits", [16, 32])
def test_tokens_of_long_rows(device: EmulatedDevice, k: int, bits: int) -> None:
    batch, device.orders = random_batch(5, 3000, 0.4), (2, 3)
    scale = np.random.default_rng(2).choice(np.array([0.1, 0.5, 1, 1, 7], np.float32), 3000)
    for each in (batch, shuffled(batch)):
        asked = each.compact() if bits == 16 else each
        for small in (False, True):
            _share(device, small and k > 200)
            found = row_tokens(asked, [3, 3, -1, 4, 0], scale, k, backend="cuda")
            _equal(found, row_tokens(each, [3, 3, -1, 4, 0], scale, k, backend="reference"))


def test_sorts_of_more_than_a_tile(device: EmulatedDevice) -> None:
    batch, device.orders = random_batch(2, 6000, 0.85), (2, 3)  # three tiles of 2,048
    signed = batch.with_values(np.random.default_rng(0).integers(-9, 9, batch.nnz).astype(np.float32))
    for each in (signed, shuffled(signed)):
        for small in (False, True):
            _share(device, small)
            found = row_tokens(each, [1, 0], np.ones(6000, np.float32), 5000, backend="cuda")
            _equal(found, row_tokens(each, [1, 0], np.ones(6000, np.float32), 5000, backend="reference"))
            _equal([bin_values(each, 51, backend="cuda")], [bin_values(each, 51, backend="reference")])


def test_bins(device: EmulatedDevice) -> None:
    @device.fuzz(batches(st.one_of(SIGNED, COUNTS)), st.sampled_from([1, 2, 7, 51, 1 << 20]), SMALL_SHARED)
    def check(batch: CSRBatch, n_bins: int, small: bool) -> None:
        _share(device, small)
        found = bin_values(batch, n_bins, backend="cuda")
        for other in OTHERS:
            _equal([found], [bin_values(batch, n_bins, backend=other)])


def test_bins_of_long_rows(device: EmulatedDevice) -> None:
    device.orders = (3, 2)
    counts = random_batch(4, 3000, 0.4)
    signed = counts.with_values(np.random.default_rng(0).standard_normal(counts.nnz).astype(np.float32))
    for batch in (counts, counts.compact(), signed):
        for small in (False, True):
            _share(device, small)
            _equal([bin_values(batch, 51, backend="cuda")], [bin_values(batch, 51, backend="reference")])


def test_padding(device: EmulatedDevice) -> None:
    @device.fuzz(batches(SIGNED), st.integers(0, 45))
    def check(batch: CSRBatch, width: int) -> None:
        columns = [batch.indices, batch.values, batch.values.astype(np.float64), batch.values > 0]
        fills = (1, 2, np.pi, True)
        padded, mask = pad_ragged(batch.indptr, columns, width, fills, backend="cuda")
        for other in OTHERS:
            expected, expected_mask = pad_ragged(batch.indptr, columns, width, fills, backend=other)
            _equal([*padded, mask], [*expected, expected_mask])


def test_normalising_and_row_sums(device: EmulatedDevice) -> None:
    @device.fuzz(batches(COUNTS), st.sampled_from([1.0, 1e4, 1e37]))
    def check(batch: CSRBatch, target_sum: float) -> None:
        expected = normalize_log1p(batch, target_sum, backend="reference").values
        np.testing.assert_allclose(
            normalize_log1p(batch, target_sum, backend="cuda").values, expected, rtol=4e-7, atol=1e-44
        )
        np.testing.assert_allclose(row_sums(batch, backend="cuda"), row_sums(batch, backend="reference"), rtol=1.2e-7)


def test_statistics(device: EmulatedDevice) -> None:
    @device.fuzz(batches(st.one_of(FINITE, COUNTS)), SMALL_SHARED)
    def check(batch: CSRBatch, small: bool) -> None:
        _share(device, small and batch.n_features <= 300)
        found, expected = (feature_stats(batch, backend=backend) for backend in ("cuda", "reference"))  # type: ignore[arg-type]
        _equal([found.count], [expected.count])
        scale = feature_stats(batch.with_values(np.abs(batch.values)), backend="reference").sum
        assert (np.abs(found.sum - expected.sum) <= 1e-14 * scale).all()
        np.testing.assert_allclose(found.sum_of_squares, expected.sum_of_squares, rtol=1e-14)


@pytest.mark.parametrize("odd", [None, 0.5, 65_536, -1, np.inf])
def test_statistics_of_whole_numbers(device: EmulatedDevice, odd: float | None) -> None:
    """Squares beyond 32 bits are carried; a number that is not whole, or of more than 16 bits, comes late."""
    indices = np.tile(np.arange(40, dtype=np.int32), 300)
    values = np.random.default_rng(0).integers(65_000, 65_536, indices.size).astype(np.float32)
    if odd is not None:
        values[-3] = odd
    batch = CSRBatch(np.arange(301) * 40, indices, values, 41)
    found, expected = (feature_stats(batch, backend=backend) for backend in ("cuda", "reference"))  # type: ignore[arg-type]
    _equal([found.count, found.sum, found.sum_of_squares], [expected.count, expected.sum, expected.sum_of_squares])


def test_statistics_of_a_feature_that_a_row_holds_often(device: EmulatedDevice) -> None:
    """Sums of whole numbers that 32 bits cannot hold."""
    n = 66_000
    batch = CSRBatch(np.array([0, n]), np.zeros(n, np.int32), np.full(n, 65_535, np.float32), 1)
    found, expected = (feature_stats(batch, backend=backend) for backend in ("cuda", "reference"))  # type: ignore[arg-type]
    _equal([found.count, found.sum, found.sum_of_squares], [expected.count, expected.sum, expected.sum_of_squares])


def test_bags(device: EmulatedDevice) -> None:
    @device.fuzz(batches(st.floats(-8, 8, width=16)), st.sampled_from([0, 1, 21, 32, 70, 130]))
    def check(batch: CSRBatch, width: int) -> None:
        rng = np.random.default_rng(width)
        table = rng.standard_normal((batch.n_features, width)).astype(np.float32)
        by_row = rng.standard_normal((batch.n_rows, width)).astype(np.float32)
        if batch.n_features <= 300:
            found, expected = (bag_transposed(batch, by_row, backend=each) for each in ("cuda", "cpu"))  # type: ignore[arg-type]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)
        found, expected = (bag(batch, table, backend=each) for each in ("cuda", "cpu"))  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)
        arrays = (batch.indptr, batch.indices, table, by_row)
        np.testing.assert_allclose(cuda.bag_grad_values(*arrays), cpu.bag_grad_values(*arrays), rtol=1e-5, atol=2e-4)


def test_errors_are_at_most_twice_those_of_plain_float32(device: EmulatedDevice) -> None:
    batch, rng = shuffled(random_batch(9, 500, 0.4)), np.random.default_rng(1)
    matrix = batch.to_scipy()
    exact = matrix.astype(np.float64)
    for width in (1, 31, 64, 256):
        table, by_row = (rng.standard_normal((n, width)).astype(np.float32) for n in (500, 9))
        for found, plain, wanted in (
            (bag(batch, table, backend="cuda"), matrix @ table, exact @ table.astype(np.float64)),
            (bag_transposed(batch, by_row, backend="cuda"), matrix.T @ by_row, exact.T @ by_row.astype(np.float64)),
        ):
            assert np.abs(found - wanted).max() <= 2 * np.abs(plain - wanted).max() + 1e-7
    sums = np.repeat(np.add.reduceat(batch.values, batch.offsets[:-1], dtype=np.float64), np.diff(batch.indptr))
    plain = np.log1p(batch.values * (np.float32(1e4) / sums.astype(np.float32)))
    wanted = np.log1p(batch.values * (1e4 / sums))
    found = normalize_log1p(batch, 1e4, backend="cuda").values
    assert np.abs(found / wanted - 1).max() <= 2 * np.abs(plain / wanted - 1).max()


def test_orders_of_threads_and_blocks_change_no_bit(device: EmulatedDevice) -> None:
    batch, rng = shuffled(random_batch(9, 600, 0.5)), np.random.default_rng(0)
    scale = rng.random(600).astype(np.float32)
    table, by_row = (rng.standard_normal((n, 70)).astype(np.float32) for n in (600, 9))
    signed = batch.with_values(rng.standard_normal(batch.nnz).astype(np.float32))

    def everything() -> list[bytes]:
        stats = feature_stats(signed, backend="cuda")
        arrays = (
            normalize_log1p(batch, backend="cuda").values,
            row_sums(batch, backend="cuda"),
            *(stats.sum, stats.sum_of_squares, stats.count),
            *row_tokens(batch, [5, -1, 8, 0], scale, 40, target_sum=1e4, backend="cuda"),
            bin_values(signed, 51, backend="cuda"),
            *pad_ragged(batch.indptr, [batch.indices, batch.values], 90, backend="cuda")[0],
            bag(signed, table, backend="cuda"),
            bag_transposed(signed, by_row, backend="cuda"),
            cuda.bag_grad_values(batch.indptr, batch.indices, table, by_row),
        )
        return [array.tobytes() for array in arrays]

    _share(device, False)
    device.orders = (0, 0)
    expected = everything()
    for device.orders in ((1, 1), (2, 3), (5, 4)):
        assert everything() == expected


def test_a_row_gets_the_same_bits_alone_as_in_a_batch(device: EmulatedDevice) -> None:
    rng = np.random.default_rng(0)
    counts = random_batch(4, 300, 0.5)
    short, long = random_batch(30, 300, 0.02), random_batch(1, 300, 1).to_scipy()
    table = rng.standard_normal((300, 70)).astype(np.float32)
    sums = (partial(row_sums, backend="cuda"), lambda rows: bag(rows, table, backend="cuda"))
    for batch in (counts, CSRBatch.from_scipy(vstack([long, short.to_scipy()]).tocsr())):  # a block or a warp a row
        normal = normalize_log1p(batch, backend="cuda")
        half = np.exp(rng.uniform(0, 50, batch.indptr[1] // 2))  # the first row's sum is what rounding leaves
        cancelling = rng.standard_normal(batch.nnz).astype(np.float32)
        cancelling[: 2 * half.size] = rng.permutation(np.append(half, -half))
        together = [f(batch.with_values(cancelling)) for f in sums]
        for r in range(batch.n_rows):
            alone = batch.with_values(cancelling).rows(r, r + 1)
            _equal([f(alone) for f in sums], [array[r : r + 1] for array in together])
            counted = normalize_log1p(batch.rows(r, r + 1), backend="cuda")
            _equal([counted.values], [normal.rows(r, r + 1).values])


def test_what_leads_outside_a_table_stops_the_kernel(device: EmulatedDevice) -> None:
    table = np.zeros((4, 2), np.float32)
    for indptr, indices in (([0, 1], [4]), ([0, 1], [-1]), ([0, 2], [0])):
        with pytest.raises(KernelFault, match="__trap"):
            cuda.bag(np.array(indptr), np.array(indices, np.int32), np.ones(1, np.float32), table)


PLANTED = sorted((HERE / "planted").glob("kernels_*.patch"))


@pytest.mark.parametrize("patch", PLANTED, ids=lambda path: path.stem)
def test_planted_bugs_are_named_by_file_and_line(patch: Path, tmp_path: Path) -> None:
    build, line = patch.read_text().splitlines()[1].removeprefix("Caught by ").split(" at: ")
    sources = plant(patch, KERNELS, tmp_path)
    with emulated(build, sources), pytest.raises(KernelFault) as caught:  # type: ignore[arg-type]
        _use_every_operator()
    named = [(tmp_path / name).read_text().splitlines()[number - 1].strip() for name, number in caught.value.places]
    assert line in named, caught.value


def _use_every_operator() -> None:
    counts = random_batch(6, 600, 0.5)
    signed = counts.with_values(np.random.default_rng(0).standard_normal(counts.nnz).astype(np.float32))
    scale, table = np.ones(600, np.float32), np.ones((600, 70), np.float32)
    for batch in (counts, signed, shuffled(signed)):
        normalize_log1p(counts, backend="cuda")
        row_tokens(batch, [0, 3, 5], scale, 100, backend="cuda")
        bin_values(batch, 51, backend="cuda")
        feature_stats(batch, backend="cuda")
        pad_ragged(batch.indptr, [batch.values], 200, backend="cuda")
        bag(batch, table, backend="cuda")


def _equal(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
