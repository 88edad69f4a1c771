"""The operators on a GPU at the sizes where they change their way: long rows, many rows, wide tables."""

from __future__ import annotations

import numpy as np
import pytest

from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch, on_device
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens
from tests.gpu.batches import equal, host, rows_of_length

pytestmark = pytest.mark.gpu

LONG = 50_000


@pytest.fixture(scope="module", params=["signed", "counts", "large counts"])
def long_rows(request: pytest.FixtureRequest) -> CSRBatch:
    """Rows of 50,000 entries among short ones."""
    lengths, rng = np.array([LONG, 10, 0, LONG, 700]), np.random.default_rng(1)
    values = {
        "signed": rng.standard_normal(lengths.sum()),
        "counts": rng.geometric(0.5, lengths.sum()),
        "large counts": rng.integers(0, 1 << 16, lengths.sum()),
    }[request.param]
    batch = rows_of_length(lengths, 60_000, values.astype(np.float32))
    return batch if request.param == "signed" else batch.compact()


def test_bins_of_long_rows(long_rows: CSRBatch) -> None:
    expected = bin_values(long_rows, 51, backend="reference")
    equal([bin_values(long_rows, 51, backend="cuda")], [expected])
    equal([bin_values(long_rows.to_device(), 51, backend="cuda")], [expected])


# 2,600 and 3,000: with what the kernel declares itself, more than the 48 KiB that a block has unasked.
@pytest.mark.parametrize("k", [1, 255, 2048, 2600, 3000, 3072, 6000, 20_000, 60_000])
def test_tokens_of_long_rows(long_rows: CSRBatch, k: int) -> None:
    rng = np.random.default_rng(2)
    scale, rows = rng.choice(np.array([0.1, 0.5, 1, 1, 7], np.float32), 60_000), [3, 3, -1, 4, 0]
    for batch in (long_rows, long_rows.sorted()):
        expected = row_tokens(batch, rows, scale, k, backend="reference")
        equal(row_tokens(batch, rows, scale, k, backend="cuda"), expected)
        equal(row_tokens(batch.to_device(), rows, scale, k, backend="cuda"), expected)


def test_sizes_of_shared_memory_may_come_in_any_order() -> None:
    values = np.random.default_rng(0).standard_normal(26_000 + 6_000 + 100).astype(np.float32)
    batch = rows_of_length(np.array([26_000, 6_000, 100]), 30_000, values)
    for r in (2, 0, 1, 2, 1, 0):
        part = batch.take([r])
        equal([bin_values(part, 51, backend="cuda")], [bin_values(part, 51, backend="reference")])


@pytest.fixture(scope="module")
def short_rows() -> CSRBatch:
    """100,000 rows of 0 to 29 entries."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 30, 100_000)
    return rows_of_length(lengths, 2000, rng.geometric(0.5, lengths.sum()).astype(np.float32))


@pytest.mark.parametrize("bits", [16, 32])
def test_many_short_rows(short_rows: CSRBatch, bits: int) -> None:
    batch = short_rows.compact() if bits == 16 else short_rows
    there, scale = batch.to_device(), np.random.default_rng(4).random(2000).astype(np.float32)
    found = normalize_log1p(there, backend="cuda")
    expected = normalize_log1p(batch, backend="reference")
    assert on_device(found.values)
    np.testing.assert_allclose(host(found.values), expected.values, rtol=4e-7)
    equal(rank_tokens(there, scale, 16, backend="cuda"), rank_tokens(batch, scale, 16, backend="reference"))
    equal([bin_values(there, 51, backend="cuda")], [bin_values(batch, 51, backend="reference")])
    stats, sums = feature_stats(there, backend="cuda"), feature_stats(batch, backend="reference")
    equal((stats.sum, stats.sum_of_squares, stats.count), (sums.sum, sums.sum_of_squares, sums.count))
    columns, mask = pad_ragged(there.indptr, [there.indices, there.values], 20, backend="cuda")
    wanted, wanted_mask = pad_ragged(batch.indptr, [batch.indices, batch.values], 20, backend="reference")
    equal([*columns, mask], [*wanted, wanted_mask])


@pytest.mark.parametrize("width", [1, 31, 64, 256, 1024])
def test_wide_tables(short_rows: CSRBatch, width: int) -> None:
    import cupy

    batch, rng = short_rows.rows(500, 1500), np.random.default_rng(width)
    table, by_row = (rng.standard_normal((n, width)).astype(np.float32) for n in (2000, 1000))
    expected = bag(batch, table, backend="reference"), bag_transposed(batch, by_row, backend="reference")
    for shift in (0, 1):  # floats off the alignment of a vector
        tables = []
        for array in (table, by_row):
            memory = cupy.empty(array.size + shift, np.float32)
            memory[shift:] = cupy.asarray(array.ravel())
            tables.append(memory[shift:].reshape(array.shape))
            assert tables[-1].data.ptr % 16 == 4 * shift
        found = bag(batch.to_device(), tables[0], backend="cuda")
        transposed = bag_transposed(batch.to_device(), tables[1], backend="cuda")
        for one, other in zip((found, transposed), expected, strict=True):
            np.testing.assert_allclose(host(one), other, rtol=1e-5, atol=1e-4)


def test_more_features_than_a_tile_of_statistics_holds() -> None:
    rng = np.random.default_rng(5)
    batch = rows_of_length(np.full(300, 900), 200_000, rng.integers(0, 9, 270_000).astype(np.float32))
    for each in (batch, batch.sorted()):
        found, expected = feature_stats(each.to_device(), backend="cuda"), feature_stats(each, backend="reference")
        equal((found.sum, found.sum_of_squares, found.count), (expected.sum, expected.sum_of_squares, expected.count))
