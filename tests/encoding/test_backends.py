"""What all operators keep: a row alone as in a batch, any number of threads, machines without Numba, forked workers."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numba
import numpy as np
import pytest

from ican_ml.encoding import cpu, cuda_device
from ican_ml.encoding.backends import Backend, BackendUnavailable
from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.lookup import lookup, row_sums
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens
from tests.encoding.batches import both, random_batch, shuffled


@both
def test_a_row_gets_the_same_bits_alone_as_in_a_batch(backend: Backend) -> None:
    batch, rng = shuffled(random_batch(9, 400, 0.5)), np.random.default_rng(0)
    scale, table = rng.random(400).astype(np.float32), rng.standard_normal((400, 70)).astype(np.float32)

    def everything(rows: CSRBatch) -> list[np.ndarray]:
        normal = normalize_log1p(rows, backend=backend).values
        bins = bin_values(rows, 7, backend=backend)
        tokens = row_tokens(rows, np.arange(rows.n_rows), scale, 50, target_sum=1e4, backend=backend)
        padded, _ = pad_ragged(rows.indptr, [normal, bins], 400, backend=backend)
        return [row_sums(rows, backend=backend), bag(rows, table, backend=backend), *tokens, *padded]

    together = everything(batch)
    for r in range(9):
        for alone in (batch.take([r]), batch.rows(r, r + 1)):
            for found, expected in zip(everything(alone), together, strict=True):
                np.testing.assert_array_equal(found[0], expected[r])


@pytest.mark.parametrize("bits", [16, 32])
def test_the_number_of_threads_changes_no_bit(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, rng = random_batch(33, 700, 0.3), np.random.default_rng(0)
    batch = batch.compact() if bits == 16 else batch
    scale = rng.random(700).astype(np.float32)
    table, grad = rng.standard_normal((700, 101)).astype(np.float32), rng.standard_normal((33, 101)).astype(np.float32)
    signed = rng.standard_normal(batch.nnz).astype(np.float32)

    def everything() -> list[bytes]:
        stats = feature_stats(batch, backend="cpu")
        results = (
            normalize_log1p(batch, backend="cpu").values,
            row_sums(batch, backend="cpu"),
            *(stats.sum, stats.sum_of_squares, stats.count),
            *rank_tokens(batch, scale, 40, backend="cpu"),
            *row_tokens(batch, [5, -1, 32, 0], scale, 40, target_sum=1e4, backend="cpu"),
            bin_values(batch, 51, backend="cpu"),
            bin_values(batch.with_values(signed), 51, backend="cpu"),
            *pad_ragged(batch.indptr, [batch.indices, batch.values], 90, backend="cpu")[0],
            bag(batch, table, backend="cpu"),
            bag_transposed(batch, grad, backend="cpu"),
            cpu.bag_grad_values(batch.indptr, batch.indices, table, grad),
        )
        return [array.tobytes() for array in results]

    monkeypatch.setattr(cpu, "_ENTRIES_PER_STATS_PART", 1000)
    monkeypatch.setattr(cpu, "_CACHED_TABLE", 0)
    serial = everything()
    monkeypatch.setattr(cpu, "_USES_WORTH_PACKING", 1e9)
    assert everything() == serial
    monkeypatch.setattr(cpu, "WORK_WORTH_THREADS", 0)
    for threads in (2, 3, 7):
        monkeypatch.setattr(numba, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(cpu, "_USES_WORTH_PACKING", 4 if threads == 3 else 1e9)
        assert everything() == serial


def test_read_only_arrays_are_welcome() -> None:
    batch = random_batch(3, 8, 0.5)
    for array in (batch.indptr, batch.indices, batch.values):
        array.flags.writeable = False
    np.testing.assert_array_equal(row_sums(batch, backend="cpu"), row_sums(batch, backend="reference"))


def test_backends_that_cannot_run_say_why() -> None:
    batch = random_batch(1, 3, 1)
    with pytest.raises(BackendUnavailable, match="needs CuPy"):
        row_sums(batch, backend="cuda")
    with pytest.raises(ValueError, match="backend must be one of"):
        row_sums(batch, backend="gpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "reason"),
    [(0, "found no CUDA device"), (RuntimeError("CUDA driver is a stub library"), "driver and device.*a stub library")],
)
def test_cupy_without_a_device_says_why_in_one_line(devices: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Mock(side_effect=[devices] * 2)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=Mock(getDeviceCount=count))))
    monkeypatch.setattr(cuda_device, "find_spec", lambda name: True)
    monkeypatch.setattr(cuda_device, "why_unavailable", cuda_device.why_unavailable.__wrapped__)
    with pytest.raises(BackendUnavailable, match=f"^[^\n]*{reason}[^\n]*$"):
        random_batch(1, 3, 1).to_device()


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    njit, asked = numba.njit, []

    def without_a_folder(**options: Any) -> Any:
        asked.append(options["cache"])
        if options["cache"]:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    assert jit()(lambda x: x + 1)(2) == 3
    assert asked == [True, False]


def test_a_driver_is_compiled_twice_under_two_names() -> None:
    def add_up(n: int, values: np.ndarray) -> float:
        total = 0.0
        for part in numba.prange(n):
            total += values[part::n].sum()
        return total

    driver = Driver(add_up)
    assert driver(1, np.arange(10.0)) == driver(2, np.arange(10.0)) == 45
    names = {function.py_func.__qualname__ for function in (driver._serial, driver._threads)}
    assert len(names) == 2, "Numba's cache would take one for the other"


def test_the_operators_need_numpy_only() -> None:
    script = """
import sys
for name in ("torch", "numba", "cupy", "scipy", "onnx"):
    sys.modules[name] = None
import numpy as np
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.backends import BackendUnavailable
from ican_ml.encoding.lookup import row_sums
from ican_ml.encoding.rank_tokens import rank_tokens
batch = CSRBatch.from_dense(np.array([[0, 3, 1]]), keep_zeros=False)
print(rank_tokens(batch, np.ones(3, np.float32), 2)[0].tolist())
try:
    row_sums(batch, backend="cpu")
except BackendUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[[1, 2]]"
    assert "needs numba" in done.stdout


def test_a_forked_worker_can_use_the_operators_after_its_parent_used_threads() -> None:
    script = """
import os
import numpy as np
from ican_ml.encoding import cpu, cuda_device
from ican_ml.encoding.csr import CSRBatch
cpu.WORK_WORTH_THREADS = 0
batch = CSRBatch.from_dense(np.ones((8, 8)), keep_zeros=False)
expected = cpu.row_sums(batch)
child = os.fork()
if child == 0:
    os._exit(0 if (cpu.row_sums(batch) == expected).all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


@both
def test_no_operator_makes_a_dense_matrix(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(20_000, 100, replace=False)) for _ in range(2000)]
    indptr, indices = np.arange(2001) * 100, np.concatenate(ids).astype(np.int32)
    batch = CSRBatch(indptr, indices, rng.integers(1, 9, indices.size).astype(np.float32), 20_000)
    scale, table = np.ones(20_000, np.float32), np.ones((20_000, 2), np.float32)
    by_row = np.ones((2000, 2), np.float32)
    calls: list[Callable[[], object]] = [
        lambda: normalize_log1p(batch, backend=backend),
        lambda: feature_stats(batch, backend=backend),
        lambda: row_tokens(batch, np.arange(2000), scale, 32, target_sum=1e4, backend=backend),
        lambda: bin_values(batch, 51, backend=backend),
        lambda: pad_ragged(indptr, [batch.indices, batch.values], 100, backend=backend),
        lambda: lookup(batch, np.arange(30), backend=backend),
        lambda: bag(batch, table, backend=backend),
        lambda: bag_transposed(batch, by_row, backend=backend),
        lambda: batch.take(np.arange(2000)).sorted().compact(),
    ]
    for call in calls:
        call()  # compiles
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2000 * 20_000 / 2  # bytes: half a dense matrix of one byte a cell
