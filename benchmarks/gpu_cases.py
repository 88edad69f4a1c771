"""Matrices on a GPU, the operators and their peers on them, and how calls are timed: what `gpu.py` measures."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from itertools import cycle
from shutil import which
from statistics import median
from typing import Any

import cupy
import cupyx.scipy.sparse
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.csr_bag import csr_bag
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.normalize_log1p import normalize_log1p
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens

Call = Callable[[], Any]

ROWS, FEATURES, ENTRIES, MUTATIONS = 200_000, 20_000, 2000, 60
K, BINS, WIDTH, TARGET, STEP_ROWS = 2048, 51, 256, 1e4, 256
BAG_ROWS, DENSE_ROWS = 16_384, 8192  # of counts: the bag's gradient sorts entries, and peers want dense rows
SEED, RUNS = 7, 21


def machine() -> dict[str, Any]:
    """The card, its driver and the versions of CUDA."""
    runtime, asked = cupy.cuda.runtime, ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout if which(asked[0]) else ""
    return {
        "name": torch.cuda.get_device_name(),
        "memory GB": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
        "driver": (driver.splitlines() or ["unknown"])[0],
        "cuda": torch.version.cuda,
        "driver's cuda": runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "cupy's cuda": runtime.runtimeGetVersion(),
        "torch": torch.__version__,
    }


def free() -> None:
    """Give back what a part has used."""
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


def milliseconds(*calls: Call) -> float:
    """Median time of a call; calls take turns, each with inputs of its own, after one round to warm up."""
    for call in calls:
        call()
    times = []
    for _, call in zip(range(RUNS), cycle(calls), strict=False):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        del result
        times.append(start.elapsed_time(end))
    return median(times)


def peer(*calls: Call, share: float = 1.0) -> float | str:
    """The same of a peer that worked on this share of the rows, scaled to all; why, where it cannot run here."""
    try:
        return milliseconds(*calls) / share
    except (ImportError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as error:
        return f"not run ({type(error).__name__})"


def copy() -> dict[str, float]:
    """What a copy on the card reads and writes a second."""
    source = torch.ones(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return {"GB/s": 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) / 1e6}


def matrix(rows: int, entries: int, seed: int = SEED) -> CSRBatch:
    """So many entries a row, one in each of as many equal stretches of features; counts, most of them 1."""
    generator = torch.Generator("cuda").manual_seed(seed)
    stretch = FEATURES // entries
    ids = torch.randint(stretch, (rows, entries), generator=generator, device="cuda", dtype=torch.int32)
    ids += stretch * torch.arange(entries, device="cuda", dtype=torch.int32)
    values = torch.empty(rows, entries, device="cuda").geometric_(0.6, generator=generator)
    indptr = torch.arange(rows + 1, device="cuda") * entries
    return CSRBatch(*(cupy.from_dlpack(each.ravel()) for each in (indptr, ids, values)), FEATURES)


def scale_of() -> Any:
    """One over a typical value of every feature, float32 [features], on the card."""
    return cupy.asarray((1 / np.random.default_rng(SEED).lognormal(0, 1, FEATURES)).astype(np.float32))


def counts() -> dict[str, Any]:
    """Every operator on the large matrix, in both layouts; products and padding on a part of it."""
    wide = matrix(ROWS, ENTRIES)
    rows = []
    for layout, batch in (("32 bits", wide), ("16 bits", wide.compact())):
        beside = layout == "32 bits"
        rows += [_normalise(batch, layout, beside), _statistics(batch, layout, beside), _rank(batch, layout, beside)]
        rows += _bins(batch, layout, beside)
    parts = [wide.rows(start, start + BAG_ROWS) for start in (0, BAG_ROWS)]
    rows += [*_products(parts), _pad(parts)]
    return {"matrix": _words(wide), "part": BAG_ROWS, "rows": rows}


def mutations() -> dict[str, Any]:
    """The operators that a sparse matrix of short rows meets."""
    copies = [matrix(ROWS, MUTATIONS, SEED + i) for i in range(3)]
    rows = [_normalise(copies[0], "32 bits", True), _statistics(copies[0], "32 bits", True)]
    return {"matrix": _words(copies[0]), "rows": [*rows, *_products(copies), _pad(copies)]}


def _normalise(batch: CSRBatch, layout: str, beside: bool) -> dict[str, Any]:
    out = cupy.empty(batch.nnz, np.float32)
    row = _row("normalise", layout, batch.values.nbytes + out.nbytes, [lambda: normalize_log1p(batch, TARGET, out=out)])
    if beside:
        dense, share = _dense(batch)
        row["peers"]["torch, dense"] = peer(
            lambda: torch.log1p(dense * (TARGET / dense.sum(1, keepdim=True))), share=share
        )
        if find_spec("rapids_singlecell"):
            row["peers"]["rapids-singlecell"] = peer(_rapids(batch))
    return row


def _rapids(batch: CSRBatch) -> Call:
    """rapids-singlecell's normalize_total and log1p, in place: values change from call to call, the work does not."""

    @cache
    def data() -> Any:
        import anndata

        return anndata.AnnData(_cupyx(batch.with_values(batch.values.copy())))

    def run() -> None:
        import rapids_singlecell

        rapids_singlecell.pp.normalize_total(data(), target_sum=TARGET)
        rapids_singlecell.pp.log1p(data())

    return run


def _statistics(batch: CSRBatch, layout: str, beside: bool) -> dict[str, Any]:
    row = _row("statistics", layout, _entries(batch) + 24 * FEATURES, [lambda: feature_stats(batch)])
    if beside:
        csr, (_, indices, values) = _cupyx(batch), _tensors(batch)
        row["peers"]["cupyx, sums alone"] = peer(lambda: csr.sum(axis=0))
        row["peers"]["torch, sums alone"] = peer(
            lambda: torch.zeros(FEATURES, device="cuda").index_add_(0, indices, values)
        )
    return row


def _rank(batch: CSRBatch, layout: str, beside: bool) -> dict[str, Any]:
    scale, written = scale_of(), 4 * batch.n_rows * (K + 1)
    row = _row("rank", layout, _entries(batch) + scale.nbytes + written, [lambda: rank_tokens(batch, scale, K)])
    if beside:
        (dense, share), factors = _dense(batch), torch.from_dlpack(scale)
        row["peers"]["torch.topk, dense"] = peer(lambda: torch.topk(dense * factors, K, dim=1).indices, share=share)
    return row


def _bins(batch: CSRBatch, layout: str, beside: bool) -> list[dict[str, Any]]:
    rows = [_row("bins of counts", layout, batch.values.nbytes + 4 * batch.nnz, [lambda: bin_values(batch, BINS)])]
    if beside:
        normal = normalize_log1p(batch, TARGET)
        rows.append(_row("bins of log values", layout, 8 * batch.nnz, [lambda: bin_values(normal, BINS)]))
        part = torch.from_dlpack(normal.values).view(ROWS, ENTRIES)[:DENSE_ROWS]
        rows[1]["peers"]["torch.sort, keys alone"] = peer(lambda: torch.sort(part, 1).values, share=DENSE_ROWS / ROWS)
    return rows


def _products(copies: Sequence[CSRBatch]) -> list[dict[str, Any]]:
    """The bag, its gradient for the table and that for the values, each over several matrices in turn."""
    n_rows, generator = copies[0].n_rows, torch.Generator("cuda").manual_seed(SEED)
    table, grad = (torch.randn(n, WIDTH, generator=generator, device="cuda") for n in (FEATURES, n_rows))
    arrays, sparse = [_tensors(each) for each in copies], [_cupyx(each) for each in copies]
    on_card, by_row = cupy.from_dlpack(table), cupy.from_dlpack(grad)
    read, product = _entries(copies[0]), partial(_calls, arrays)

    def forward(indptr: Tensor, indices: Tensor, values: Tensor, leaf: Tensor = table) -> Tensor:
        return csr_bag(indptr, indices, values, leaf)

    def theirs(indptr: Tensor, indices: Tensor, values: Tensor, leaf: Tensor = table) -> Tensor:
        return functional.embedding_bag(indices, leaf, indptr[:-1].int(), mode="sum", per_sample_weights=values)

    def backward(bagged: Callable[..., Tensor]) -> list[Call]:
        leaves = [table.clone().requires_grad_() for _ in arrays]
        sums = [bagged(*each, leaf) for each, leaf in zip(arrays, leaves, strict=True)]
        return [
            partial(torch.autograd.grad, total, leaf, grad, retain_graph=True)
            for total, leaf in zip(sums, leaves, strict=True)
        ]

    layout = f"{n_rows:,} rows"
    bags = _row("bag", layout, read + table.nbytes + grad.nbytes, product(forward))
    bags["peers"] = {
        "embedding_bag": peer(*product(theirs)),
        "cuSPARSE": peer(*(partial(each.dot, on_card) for each in sparse)),
        "ours, CuPy arrays": peer(*(partial(bag, each, on_card) for each in copies)),
    }
    gradient = _row("gradient", layout, read + grad.nbytes + table.nbytes, backward(forward))
    gradient["peers"] = {
        "embedding_bag": peer(*backward(theirs)),
        "cuSPARSE": peer(*(partial(each.T.dot, by_row) for each in sparse)),
        "ours, CuPy arrays": peer(*(partial(bag_transposed, each, by_row) for each in copies)),
    }
    return [bags, gradient]


def _calls(arrays: Sequence[tuple[Tensor, ...]], function: Callable[..., Any]) -> list[Call]:
    return [partial(function, *each) for each in arrays]


def _pad(copies: Sequence[CSRBatch]) -> dict[str, Any]:
    width = 64 if copies[0].nnz < 100 * copies[0].n_rows else K
    calls = []
    for batch in copies:
        run = partial(pad_ragged, batch.indptr, [batch.indices, batch.values], width, (-1, 0))
        calls.append(partial(run, out=run()))
    kept = min(width, copies[0].nnz // copies[0].n_rows) * copies[0].n_rows
    row = _row("pad", f"to {width}", 8 * kept + copies[0].indptr.nbytes + 9 * copies[0].n_rows * width, calls)
    indptr, _, values = _tensors(copies[0])
    padded = torch.ops.aten._jagged_to_padded_dense_forward
    row["peers"]["torch, values alone"] = peer(lambda: padded(values, [indptr - indptr[0]], [width], 0.0))
    return row


def fused() -> dict[str, Any]:
    """Tokens of 256 random rows of the resident matrix, beside taking, ranking and normalising one after another."""
    batch, scale, rng = matrix(ROWS, ENTRIES), scale_of(), np.random.default_rng(SEED)
    chosen, csr = [rng.integers(0, ROWS, STEP_ROWS) for _ in range(8)], _cupyx(batch)
    taken = [_batch(csr[cupy.asarray(rows)]) for rows in chosen]
    parts = {
        "take (cupyx)": milliseconds(*(lambda rows=rows: csr[cupy.asarray(rows)] for rows in chosen)),
        "rank": milliseconds(*(partial(rank_tokens, each, scale, K) for each in taken)),
        "normalise": milliseconds(*(partial(normalize_log1p, each, TARGET) for each in taken)),
    }
    ms = milliseconds(*(partial(row_tokens, batch, rows, scale, K, target_sum=TARGET) for rows in chosen))
    return {"rows": STEP_ROWS, "k": K, "ms": ms, "apart ms": sum(parts.values()), "parts": parts}


def transfer() -> dict[str, float]:
    """Ids and values of one step's rows from the host to the card, and their tokens from the resident matrix."""
    batch, scale = matrix(ROWS, ENTRIES), scale_of()
    rows = np.random.default_rng(SEED).integers(0, ROWS, STEP_ROWS)
    found = {"fused tokens": milliseconds(partial(row_tokens, batch, rows, scale, K, target_sum=TARGET))}
    for name, size in (("32 bits", 8), ("16 bits", 4)):
        for kind in ("pinned", "pageable"):
            source = torch.zeros(STEP_ROWS * ENTRIES * size, dtype=torch.uint8)
            source = source.pin_memory() if kind == "pinned" else source
            target = torch.empty_like(source, device="cuda")
            found[f"{kind}, {name}"] = milliseconds(partial(target.copy_, source, non_blocking=kind == "pinned"))
    return found


def _row(operator: str, layout: str, size: int, calls: Sequence[Call]) -> dict[str, Any]:
    return {"operator": operator, "layout": layout, "bytes": int(size), "ms": milliseconds(*calls), "peers": {}}


def _words(batch: CSRBatch) -> str:
    return f"{batch.n_rows:,} x {batch.n_features:,}, {batch.nnz:,} entries"


def _entries(batch: CSRBatch) -> int:
    return int(batch.indptr.nbytes + batch.indices.nbytes + batch.values.nbytes)


def _tensors(batch: CSRBatch) -> tuple[Tensor, ...]:
    """The arrays of a batch, row pointers from 0, as torch and cuSPARSE want them."""
    return tuple(torch.from_dlpack(each) for each in (batch.indptr - batch.indptr[0], batch.indices, batch.values))


def _cupyx(batch: CSRBatch) -> Any:
    pointers = (batch.indptr - batch.indptr[0]).astype(np.int32)
    shape = (batch.n_rows, batch.n_features)
    return cupyx.scipy.sparse.csr_matrix((batch.values, batch.indices, pointers), shape)


def _batch(csr: Any) -> CSRBatch:
    return CSRBatch(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data, csr.shape[1])


def _dense(batch: CSRBatch) -> tuple[Tensor, float]:
    """The first rows, dense, and which share of all rows they are."""
    part = batch.rows(0, min(DENSE_ROWS, batch.n_rows))
    dense: Tensor = torch.from_dlpack(_cupyx(part).todense(order="C"))
    return dense, part.n_rows / batch.n_rows
