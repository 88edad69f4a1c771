"""The operators on a GPU keep the contract of `backend="reference"`: batches in host memory and on the device."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch, on_device
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.lookup import row_sums
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens
from tests.gpu.batches import batches, counts, equal, finite, host, rows_of_length, signed, weights

pytestmark = pytest.mark.gpu

SCALES = np.array([1, 1, 0.5, 3, 0, -2, 1e-30, 1e30, 1e-40], np.float32)
SMALLEST = 1e-30  # errors of smaller results count as if it were this


@pytest.fixture(params=["host", "device"])
def placed(request: pytest.FixtureRequest) -> Any:
    """Puts a batch or an array where the test wants it."""

    def place(given: Any) -> Any:
        if request.param == "host":
            return given
        if isinstance(given, CSRBatch):
            return given.to_device()
        import cupy

        return cupy.asarray(given)

    place.on_device = request.param == "device"  # type: ignore[attr-defined]
    return place


def test_tokens(placed: Any) -> None:
    for batch, rng in batches(signed):
        scale, rows = rng.choice(SCALES, batch.n_features), rng.integers(-1, batch.n_rows, 4)
        k, by_magnitude, there = int(rng.choice([0, 1, 5, 45, 300, 1000])), bool(rng.random() < 0.5), placed(batch)
        found = rank_tokens(there, placed(scale), k, by_magnitude, backend="cuda")
        assert all(on_device(array) == placed.on_device for array in found)
        equal(found, rank_tokens(batch, scale, k, by_magnitude, backend="reference"))
        fused = row_tokens(there, placed(rows), scale, k, by_magnitude, backend="cuda")
        equal(fused, row_tokens(batch, rows, scale, k, by_magnitude, backend="reference"))


def test_tokens_with_normalised_values(placed: Any) -> None:
    for batch, rng in batches(counts):
        scale, rows = rng.choice(SCALES, batch.n_features), rng.integers(-1, batch.n_rows, 4)
        k = int(rng.choice([1, 5, 45, 300, 1000]))
        tokens, values, lengths = row_tokens(placed(batch), rows, scale, k, target_sum=1e4, backend="cuda")
        expected = row_tokens(batch, rows, scale, k, target_sum=1e4, backend="reference")
        equal((tokens, lengths), expected[::2])
        np.testing.assert_allclose(host(values), expected[1], rtol=4e-7, atol=1e-37)


def test_normalising(placed: Any) -> None:
    ours, allowed = 0.0, 0.0
    for batch, _ in batches(counts):
        found = normalize_log1p(placed(batch), backend="cuda")
        assert on_device(found.values) == placed.on_device
        totals = np.bincount(batch.row_ids(), batch.values, batch.n_rows)
        factors = np.divide(1e4, totals, out=np.zeros(batch.n_rows), where=totals > 0)[batch.row_ids()]
        exact = np.log1p(batch.values.astype(np.float64) * factors)
        ours = max(ours, _relative(host(found.values), exact))
        if batch.nnz and factors.min() > 1e-30 and factors.max() < 1e30:  # what float32 can hold
            plain = np.log1p(batch.values.astype(np.float32) * factors.astype(np.float32))
            allowed = max(allowed, 2 * _relative(plain, exact))
    assert ours <= allowed


def test_normalising_in_place_and_into_an_array(placed: Any) -> None:
    batch = rows_of_length(np.full(50, 200), 400, np.random.default_rng(0).integers(1, 60, 10_000).astype(np.float32))
    expected = host(normalize_log1p(placed(batch), backend="cuda").values)
    there, out = placed(batch), placed(np.empty(batch.nnz, np.float32))
    assert normalize_log1p(there, out=out, backend="cuda").values is out
    assert normalize_log1p(there, out=there.values, backend="cuda").values is there.values
    equal([out, there.values], [expected, expected])


@pytest.mark.parametrize("bad", [-1.0, -1e-40, np.nan])
def test_values_that_are_no_counts_are_refused(placed: Any, bad: float) -> None:
    batch = CSRBatch(np.array([0, 2, 3]), np.array([0, 1, 0], np.int32), np.array([1, bad, 1], np.float32), 2)
    with pytest.raises(ValueError, match="zero or more"):
        normalize_log1p(placed(batch), backend="cuda")
    scale = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="zero or more"):
        row_tokens(placed(batch), [0], scale, 2, target_sum=1e4, backend="cuda")
    row_tokens(placed(batch), [1], scale, 2, target_sum=1e4, backend="cuda")


def test_row_sums(placed: Any) -> None:
    for batch, _ in batches(counts):
        found = row_sums(placed(batch), backend="cuda")
        assert found.dtype == np.float32
        np.testing.assert_allclose(host(found), row_sums(batch, backend="reference"), rtol=1.2e-7, atol=1e-44)


def test_statistics(placed: Any) -> None:
    for batch, _ in batches(finite):
        found, expected = feature_stats(placed(batch), backend="cuda"), feature_stats(batch, backend="reference")
        equal([found.count], [expected.count])
        size = feature_stats(batch.with_values(np.abs(batch.values)), backend="reference").sum
        assert (np.abs(host(found.sum) - expected.sum) <= 1e-14 * size).all()
        np.testing.assert_allclose(host(found.sum_of_squares), expected.sum_of_squares, rtol=1e-13)


def test_statistics_in_pieces(placed: Any) -> None:
    batch = rows_of_length(np.full(40, 60), 300, np.random.default_rng(0).integers(0, 9, 2400).astype(np.float32))
    pieces = feature_stats((placed(batch.rows(i, i + 8)) for i in range(0, 40, 8)), backend="cuda")
    whole = feature_stats(batch, backend="reference")
    equal((pieces.sum, pieces.sum_of_squares, pieces.count), (whole.sum, whole.sum_of_squares, whole.count))


def test_bins(placed: Any) -> None:
    for draw in (signed, counts):
        for batch, rng in batches(draw):
            n_bins = int(rng.choice([1, 2, 7, 51, 1 << 20]))
            found = bin_values(placed(batch), n_bins, backend="cuda")
            assert on_device(found) == placed.on_device
            equal([found], [bin_values(batch, n_bins, backend="reference")])


def test_padding(placed: Any) -> None:
    for batch, rng in batches(signed):
        width, fills = int(rng.choice([0, 1, 31, 45, 800])), (1, 2, np.pi, True)
        columns = [batch.indices, batch.values, batch.values.astype(np.float64), batch.values > 0]
        expected, expected_mask = pad_ragged(batch.indptr, columns, width, fills, backend="reference")
        padded, mask = pad_ragged(placed(batch.indptr), [*map(placed, columns)], width, fills, backend="cuda")
        equal([*padded, mask], [*expected, expected_mask])
        again = pad_ragged(
            placed(batch.indptr), [*map(placed, columns)], width, fills, out=(padded, mask), backend="cuda"
        )
        assert again[1] is mask
        equal([*again[0], mask], [*expected, expected_mask])


def test_bags(placed: Any) -> None:
    errors = np.zeros((2, 2))  # ours and those of plain float32, of both products
    for batch, rng in batches(weights, features=(1, 2, 5, 300)):
        width = int(rng.choice([0, 1, 3, 4, 21, 31, 32, 64, 70, 260]))
        table, by_row = (rng.standard_normal((n, width)).astype(np.float32) for n in (batch.n_features, batch.n_rows))
        found = bag(placed(batch), placed(table), backend="cuda")
        transposed = bag_transposed(placed(batch), placed(by_row), backend="cuda")
        rows = batch.row_ids()
        for each, result, sums in (
            (0, found, (rows, batch.indices, batch.values, table, batch.n_rows)),
            (1, transposed, (batch.indices, rows, batch.values, by_row, batch.n_features)),
        ):
            assert result.dtype == np.float32
            assert on_device(result) == placed.on_device
            exact = _weighted_sums(*sums, np.float64)
            for row, answer in enumerate((host(result), _weighted_sums(*sums, np.float32))):
                assert answer.shape == exact.shape
                errors[row, each] = max(errors[row, each], np.abs(answer - exact).max(initial=0))
    assert (errors[0] <= 2 * errors[1]).all()


def test_the_smallest_numbers_are_not_flushed_to_zero(placed: Any) -> None:
    values = np.array([3e-45, 2e-40, 1e-40, 1e-30], np.float32)
    batch = CSRBatch(np.array([0, 4]), np.arange(4, dtype=np.int32), values, 4)
    for scale in (np.ones(4, np.float32), np.full(4, 1e-12, np.float32), np.full(4, 1e-40, np.float32)):
        equal(rank_tokens(placed(batch), scale, 4, backend="cuda"), rank_tokens(batch, scale, 4, backend="reference"))
    equal([bin_values(placed(batch), 4, backend="cuda")], [bin_values(batch, 4, backend="reference")])
    stats, expected = feature_stats(placed(batch), backend="cuda"), feature_stats(batch, backend="reference")
    equal((stats.sum, stats.count), (expected.sum, expected.count))
    rows = CSRBatch(np.array([0, 3]), batch.indices[:3], values[:3], 4)
    equal([row_sums(placed(rows), backend="cuda")], [row_sums(rows, backend="reference")])
    found, exact = (
        normalize_log1p(place, backend=each).values for place, each in ((placed(rows), "cuda"), (rows, "reference"))
    )  # type: ignore[arg-type]
    np.testing.assert_allclose(host(found), exact, rtol=4e-7)


def test_a_row_gets_the_same_bits_alone_as_in_a_batch(placed: Any) -> None:
    rng, lengths = np.random.default_rng(0), np.array([3, 40, 900, 200, 0, 5000])
    batch = rows_of_length(lengths, 6000, rng.random(lengths.sum()).astype(np.float32))
    scale, table = rng.random(6000).astype(np.float32), rng.standard_normal((6000, 70)).astype(np.float32)

    def everything(rows: CSRBatch) -> list[np.ndarray]:
        there = placed(rows)
        normal, bins = normalize_log1p(there, backend="cuda").values, bin_values(there, 7, backend="cuda")
        tokens = row_tokens(there, np.arange(rows.n_rows), scale, 50, target_sum=1e4, backend="cuda")
        padded, _ = pad_ragged(there.indptr, [normal, bins], 5000, backend="cuda")
        bags = bag(there, placed(table), backend="cuda")
        return [*map(host, (row_sums(there, backend="cuda"), bags, *tokens, *padded))]

    together = everything(batch)
    for r in range(batch.n_rows):
        for alone in (batch.take([r]), batch.rows(r, r + 1)):
            for found, expected in zip(everything(alone), together, strict=True):
                np.testing.assert_array_equal(found[0], expected[r])


def test_a_sum_between_two_floats_does_not_depend_on_other_rows(placed: Any) -> None:
    """Where the last bits of a total decide how it is rounded, alone and among empty rows."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        values = (rng.random(300) * 2.0 ** rng.integers(-60, 1, 300)).astype(np.float32)
        total = values.sum(dtype=np.float64)
        below = np.float32(total)
        missing = (np.float64(below) + np.nextafter(below, np.float32(np.inf))) / 2 - total
        for _ in range(3):
            values = np.append(values, np.float32(missing))
            missing -= np.float64(values[-1])
        alone = CSRBatch(np.array([0, values.size]), np.arange(values.size, dtype=np.int32), values, values.size)
        among = CSRBatch(np.append(0, np.full(50, values.size)), alone.indices, values, values.size)
        sums = [host(row_sums(placed(batch), backend="cuda"))[0] for batch in (alone, among)]
        assert sums[0] == sums[1]


def test_ten_runs_give_the_same_bits(placed: Any) -> None:
    rng, lengths = np.random.default_rng(0), np.array([3, 40, 900, 200, 0, 5000] * 20)
    batch = rows_of_length(lengths, 6000, rng.standard_normal(lengths.sum()).astype(np.float32))
    positive = batch.with_values(np.abs(batch.values))
    scale, rows = rng.random(6000).astype(np.float32), rng.integers(-1, batch.n_rows, 64)
    table, by_row = (placed(rng.standard_normal((n, 70)).astype(np.float32)) for n in (6000, batch.n_rows))
    signed_rows, counted = placed(batch), placed(positive)

    def everything() -> list[bytes]:
        stats = feature_stats(signed_rows, backend="cuda")
        arrays = (
            normalize_log1p(counted, backend="cuda").values,
            row_sums(counted, backend="cuda"),
            *(stats.sum, stats.sum_of_squares, stats.count),
            *rank_tokens(signed_rows, scale, 50, backend="cuda"),
            *row_tokens(counted, rows, scale, 50, target_sum=1e4, backend="cuda"),
            bin_values(signed_rows, 51, backend="cuda"),
            *pad_ragged(signed_rows.indptr, [signed_rows.indices, signed_rows.values], 900, backend="cuda")[0],
            bag(signed_rows, table, backend="cuda"),
            bag_transposed(signed_rows, by_row, backend="cuda"),
        )
        return [host(array).tobytes() for array in arrays]

    expected = everything()
    assert all(everything() == expected for _ in range(9))


@pytest.mark.parametrize(
    ("hidden", "environment", "reason"),
    [("cupy", {}, "needs CuPy"), ("", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA")],
)
def test_a_missing_piece_is_one_sentence(hidden: str, environment: dict[str, str], reason: str) -> None:
    script = f"""
import os, sys
os.environ.update({environment})
if {hidden!r}:
    sys.modules[{hidden!r}] = None
import numpy as np
from ican_ml.encoding.backends import BackendUnavailable
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.lookup import row_sums
batch = CSRBatch.from_dense(np.ones((1, 3)), keep_zeros=False)
assert row_sums(batch).tolist() == [3], "backend='auto' takes another"
for call in (lambda: row_sums(batch, backend="cuda"), batch.to_device):
    try:
        call()
    except BackendUnavailable as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert reason in lines[0]


def _weighted_sums(groups: Any, sources: Any, values: Any, table: Any, n_groups: int, dtype: Any) -> np.ndarray:
    """Sums of `value * table[source]` by group, added one after another in this dtype."""
    out = np.zeros((n_groups, table.shape[1]), dtype)
    np.add.at(out, groups, values.astype(dtype)[:, None] * table[sources].astype(dtype))
    return out


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float((np.abs(found - exact) / np.maximum(exact, SMALLEST)).max(initial=0))
