"""CUDA tensors: results that torch reads without a copy, `csr_bag` with its gradients, and torch's streams."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ican_ml.encoding.bag import bag
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import row_tokens
from tests.gpu.batches import host, rows_of_length

torch: Any = pytest.importorskip("torch", reason="needs torch")

pytestmark = pytest.mark.gpu

FEATURES = 500
SHAPES = [[5], [0], [3, 0, 17, 1], [0, 0, 0], [0, 900, 0, 2], []]


def _entries(lengths: Any, index: Any = None, start: int = 0, seed: int = 0) -> tuple[Any, Any, Any]:
    rng, n = np.random.default_rng(seed), int(np.sum(lengths))
    indptr = torch.from_numpy(np.cumsum([start, *lengths], dtype=np.int64))
    indices = torch.from_numpy(rng.integers(0, FEATURES, n)).to(index or torch.int64)
    values = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    return indptr.cuda(), indices.cuda(), values.cuda()


def _table(width: int = 64, seed: int = 9) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((FEATURES, width)).astype(np.float32)).cuda()


def _sums_and_gradients(function: Any, values: Any, table: Any, grad: Any) -> list[Any]:
    values, table = values.detach().requires_grad_(), table.detach().requires_grad_()
    bagged = function(values, table)
    return [bagged.detach(), *torch.autograd.grad(bagged, (values, table), grad)]


def _exact(indptr: Any, indices: Any) -> Any:
    """The plain formula, differentiable, in the dtype of its arguments."""
    rows = torch.repeat_interleave(torch.arange(len(indptr) - 1, device="cuda"), indptr.diff())

    def sums(values: Any, table: Any) -> Any:
        return table.new_zeros(len(indptr) - 1, table.shape[1]).index_add(0, rows, values[:, None] * table[indices])

    return sums


def test_torch_reads_every_result_where_it_lies() -> None:
    batch = rows_of_length(np.full(8, 40), 300, np.random.default_rng(0).integers(1, 60, 320).astype(np.float32))
    there, scale = batch.to_device(), np.ones(300, np.float32)
    stats = feature_stats(there, backend="cuda")
    padded, mask = pad_ragged(there.indptr, [there.indices, there.values], 30, backend="cuda")
    results = {
        "normal": normalize_log1p(there, backend="cuda").values,
        "sum": stats.sum,
        "count": stats.count,
        "bins": bin_values(there, 51, backend="cuda"),
        **dict(zip(("tokens", "values", "lengths"), row_tokens(there, [0, 5], scale, 20, backend="cuda"), strict=True)),
        **dict(zip(("ids", "counts", "mask"), (*padded, mask), strict=True)),
    }
    for name, array in results.items():
        tensor = torch.from_dlpack(array)
        assert tensor.is_cuda, name
        assert tensor.data_ptr() == array.data.ptr, name
        np.testing.assert_array_equal(tensor.cpu().numpy(), host(array), name)


@pytest.mark.parametrize("width", [1, 21, 64, 256])
@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("lengths", SHAPES)
def test_csr_bag_errs_no_more_than_embedding_bag(lengths: list[int], index: str, width: int) -> None:
    from ican_ml.encoding.csr_bag import csr_bag

    indptr, indices, values = _entries(lengths, getattr(torch, index))
    table, grad = _table(width), torch.ones(len(lengths), width, device="cuda") / 3
    exact = _sums_and_gradients(_exact(indptr, indices), values.double(), table.double(), grad.double())
    ours = _sums_and_gradients(lambda v, t: csr_bag(indptr, indices, v, t), values, table, grad)

    def embedding_bag(v: Any, t: Any) -> Any:
        offsets = indptr[:-1].to(indices.dtype)
        return torch.nn.functional.embedding_bag(indices, t, offsets, mode="sum", per_sample_weights=v)

    plain = _sums_and_gradients(_exact(indptr, indices), values, table, grad)
    theirs = _sums_and_gradients(embedding_bag, values, table, grad) if sum(lengths) else plain
    for found, other, formula, wanted in zip(ours, theirs, plain, exact, strict=True):
        assert found.is_cuda
        assert found.shape == wanted.shape
        error, allowed, formula_error = (
            float((each.double() - wanted).abs().amax()) if wanted.numel() else 0.0 for each in (found, other, formula)
        )
        assert error <= 2 * max(allowed, formula_error) + 1e-7


def test_csr_bag_reads_rows_of_a_larger_matrix() -> None:
    from ican_ml.encoding.csr_bag import csr_bag

    (indptr, indices, values), table = _entries([3, 0, 700]), _table()
    near, far = (csr_bag(pointers, indices, values, table) for pointers in (indptr, indptr + 2**31 + 5))
    assert torch.equal(near, far)


def test_csr_bag_takes_what_torch_hands_it() -> None:
    """A table off the alignment of a vector, one that is not contiguous, and gradients that are expanded."""
    from ican_ml.encoding.csr_bag import csr_bag

    entries, table = _entries([3, 0, 700]), _table(64)
    expected = csr_bag(*entries, table)
    memory = torch.empty(table.numel() + 1, device="cuda")
    memory[1:] = table.ravel()
    unaligned = csr_bag(*entries, memory[1:].view(FEATURES, 64))  # adds its 700 entries in another order
    torch.testing.assert_close(unaligned, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(csr_bag(*entries, table.T.contiguous().T), expected)
    leaf = table.clone().requires_grad_()
    (expanded,) = torch.autograd.grad(csr_bag(*entries, leaf).sum(), leaf)
    (transposed,) = torch.autograd.grad(csr_bag(*entries, leaf), leaf, torch.ones(64, 3, device="cuda").T)
    torch.testing.assert_close(expanded, transposed)


@pytest.mark.parametrize("seed", range(3))
def test_ten_runs_give_the_same_bits(seed: int) -> None:
    from ican_ml.encoding.csr_bag import csr_bag

    lengths = np.random.default_rng(seed).integers(0, 900, 200)
    (indptr, indices, values), table = _entries(lengths, seed=seed), _table(256)
    grad = torch.from_numpy(np.random.default_rng(1).standard_normal((200, 256)).astype(np.float32)).cuda()
    runs = [_sums_and_gradients(lambda v, t: csr_bag(indptr, indices, v, t), values, table, grad) for _ in range(10)]
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("lengths", [[3, 0, 17, 1], [0, 0]])
def test_torch_finds_no_fault_with_the_operators(lengths: list[int]) -> None:
    from ican_ml.encoding import csr_bag  # noqa: F401 (registers the operators)

    (indptr, indices, values), table, ops = _entries(lengths), _table(21), torch.ops.ican
    grad = torch.ones(len(lengths), 21, device="cuda")
    leaf = table.clone().requires_grad_()
    torch.library.opcheck(ops.csr_bag.default, (indptr, indices, values, leaf))
    torch.library.opcheck(ops.csr_bag.default, (indptr, indices, values.clone().requires_grad_(), leaf))
    torch.library.opcheck(ops.csr_bag_grad_table.default, (indptr, indices, values, grad, FEATURES))
    torch.library.opcheck(ops.csr_bag_grad_values.default, (indptr, indices, table, grad))


def test_csr_bag_keeps_to_the_current_stream() -> None:
    """What is queued before it on a stream that waits is seen, and what is queued after sees its result."""
    from ican_ml.encoding.csr_bag import csr_bag

    entries = _entries([700] * 50)
    csr_bag(*entries, _table()), torch.cuda.synchronize()  # compiles
    expected = _sums_and_gradients(
        lambda v, t: csr_bag(*entries[:2], v, t), entries[2], _table(), torch.ones(50, 64, device="cuda")
    )
    table, grad, stream = (
        torch.zeros(FEATURES, 64, device="cuda"),
        torch.zeros(50, 64, device="cuda"),
        torch.cuda.Stream(),
    )
    ready = _table()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(300_000_000)
        table.copy_(ready), grad.fill_(1)
        found = _sums_and_gradients(lambda v, t: csr_bag(*entries[:2], v, t), entries[2], table, grad)
        copies = [each.clone() for each in found]
        table.zero_(), grad.zero_()
    stream.synchronize()
    for copy, wanted in zip(copies, expected, strict=True):
        assert torch.equal(copy, wanted)


def test_operators_keep_to_the_current_stream() -> None:
    rng = np.random.default_rng(0)
    batch = rows_of_length(np.full(400, 700), 3000, rng.integers(1, 60, 280_000).astype(np.float32))
    scale, table = rng.random(3000).astype(np.float32), rng.standard_normal((3000, 64)).astype(np.float32)

    def everything(stream: Any) -> list[Any]:
        """Every operator while the stream is still busy with something else."""
        results: list[Any] = []
        with torch.cuda.stream(stream):
            for operator in (
                lambda there: [normalize_log1p(there, backend="cuda").values],
                lambda there: row_tokens(there, [3, 9], scale, 50, target_sum=1e4, backend="cuda"),
                lambda there: [bin_values(there, 51, backend="cuda")],
                lambda there: pad_ragged(there.indptr, [there.values], 500, backend="cuda")[0],
                lambda there: [feature_stats([there, there], backend="cuda").sum],
            ):
                torch.cuda._sleep(100_000_000)
                there = batch.to_device()
                torch.cuda._sleep(100_000_000)
                results += [torch.from_dlpack(array).clone() for array in operator(there)]
        stream.synchronize()
        return [result.cpu() for result in results]

    expected = everything(torch.cuda.default_stream())
    for _ in range(3):
        for found, wanted in zip(everything(torch.cuda.Stream()), expected, strict=True):
            assert torch.equal(found, wanted)
    np.testing.assert_allclose(
        host(bag(batch, table, backend="cuda")), bag(batch, table, backend="reference"), rtol=1e-5, atol=1e-3
    )


def test_gradients_come_from_other_threads() -> None:
    """Autograd runs backward on a thread of its own; two models at once share nothing."""
    from concurrent.futures import ThreadPoolExecutor

    from ican_ml.encoding.csr_bag import csr_bag

    def step(seed: int) -> list[Any]:
        with torch.cuda.stream(torch.cuda.Stream()):
            indptr, indices, values = _entries([40, 0, 300], seed=seed)
            grad = torch.ones(3, 64, device="cuda")
            found = _sums_and_gradients(lambda v, t: csr_bag(indptr, indices, v, t), values, _table(seed=seed), grad)
            torch.cuda.current_stream().synchronize()
            return [each.cpu() for each in found]

    alone = [step(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(step, range(8)), alone, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("indptr", "indices"), [([0, 1], [4]), ([0, 1], [-1]), ([0, 2], [0])])
def test_what_leads_outside_a_table_stops_the_kernel(indptr: list[int], indices: list[int]) -> None:
    """In a process of its own: what stops a kernel ends the use of its device."""
    script = f"""
import torch
from ican_ml.encoding.csr_bag import csr_bag
csr_bag(torch.tensor({indptr}).cuda(), torch.tensor({indices}).cuda(), torch.ones(1).cuda(), torch.ones(4, 2).cuda())
try:
    torch.cuda.synchronize()
except RuntimeError:
    print("stopped", flush=True)
    import os
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "stopped", done.stderr


def test_a_batch_read_through_a_view_stays_where_it_is() -> None:
    batch = rows_of_length(np.full(40, 30), 300, np.ones(1200, np.float32)).to_device()
    part = batch.rows(10, 20)
    assert isinstance(part, CSRBatch)
    assert part.values.data.ptr == batch.values.data.ptr + 4 * 300
    assert torch.from_dlpack(part.values).data_ptr() == part.values.data.ptr
    np.testing.assert_array_equal(host(bin_values(part, 5, backend="cuda")), 5)
