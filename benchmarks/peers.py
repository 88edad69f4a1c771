"""What people use today for the work of the encoding operators, called as shipped, and how calls are timed.

A peer gets the values that ours gets, in the layout and dtypes that it likes best (indices in 32 bits, rows already
dense where it wants them dense, totals already summed), and what it returns stays as it is. Where it does less than
ours, its docstring says so. The two loops are written anew with the calls, in the order, of what they stand for:
`geneformer` of Geneformer's transcriptome tokenizer (Theodoris et al., Nature 2023, doi:10.1038/s41586-023-06139-9),
`scgpt` of scGPT's preprocessing (Cui et al., Nature Methods 2024, doi:10.1038/s41592-024-02201-0).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import anndata
import numpy as np
import scanpy
import scipy.sparse
import torch
from fast_array_utils import stats
from torch import Tensor

CHUNK = 512  # cells that Geneformer's tokenizer scales at a time
SLOW = 1.0  # seconds
ROUNDS, BLOCK = 7, 0.02  # blocks of calls, seconds a block

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


@dataclass(frozen=True)
class Call:
    """A call to time: `run(prepare())`, or `run()`; what `prepare` does is not timed."""

    run: Callable[..., Any]
    prepare: Callable[[], Any] | None = None

    def seconds(self) -> float:
        """Wall time of one call; its result is dropped after the clock stopped."""
        arguments = () if self.prepare is None else (self.prepare(),)
        started = time.perf_counter()
        result = self.run(*arguments)
        stopped = time.perf_counter()
        del result
        return stopped - started


def median_ms(calls: dict[str, Call]) -> dict[str, float]:
    """Median wall time of every call in ms, the same rule for all.

    The first call of each warms it up. Then 7 rounds, in which each takes its turn for one call or for 20 ms, so that a
    busy machine slows all alike. What takes more than a second is called twice in all, and the faster call counts.
    """
    times: dict[str, list[float]] = {}
    for name, call in calls.items():
        first = call.seconds()
        second = call.seconds() if first > SLOW else 0.0
        times[name] = [min(first, second)] if second > SLOW else []
    fast = [name for name in calls if not times[name]]
    for _ in range(ROUNDS):
        for name in fast:
            spent = 0.0
            while spent < BLOCK:
                times[name].append(calls[name].seconds())
                spent += times[name][-1]
    return {name: 1e3 * median(measured) for name, measured in times.items()}


def bandwidths() -> dict[str, float]:
    """What this machine's memory gives torch's threads now, GB/s: reading alone; copying, read and written bytes."""
    source = torch.ones(1 << 27)  # 512 MiB
    target = torch.empty_like(source)
    calls = {
        "read": Call(lambda: torch.dot(source, source)),
        "copy": Call(lambda: target.copy_(source)),
        "memcpy": Call(lambda: np.copyto(target.numpy(), source.numpy())),
    }
    found = median_ms(calls)
    size = source.nbytes / 1e6
    return {"read": size / found["read"], "copy": 2 * size / min(found["copy"], found["memcpy"])}


def scanpy_normalise(data: anndata.AnnData) -> anndata.AnnData:
    """scanpy: `pp.normalize_total` and `pp.log1p`, in place."""
    scanpy.pp.normalize_total(data, target_sum=1e4)
    scanpy.pp.log1p(data)
    return data


def geneformer(counts: Any, totals: Any, medians: Any, token_of: Any, k: int, sliced: bool = True) -> Any:
    """Tokens int64 [cells, k] as Geneformer's tokenizer makes them, cut to k and padded with 0.

    Left out, though the tokenizer does it as well: AnnData's row views and the choice of columns.

    Parameters
    ----------
    counts
        SciPy CSR float32 [cells, genes].
    totals, medians
        float64 [cells] and [genes].
    token_of
        int64 [genes].
    sliced
        False takes raw slices of a chunk's arrays where the tokenizer has SciPy make a matrix of every row, twice.
    """
    cells = []
    for start in range(0, counts.shape[0], CHUNK):
        chunk = counts[start : start + CHUNK]
        scaled = scipy.sparse.csr_matrix(chunk / totals[start : start + CHUNK, None] * 1e4 / medians)
        rows = _sliced(scaled) if sliced else _bare(scaled)
        cells += [token_of[indices][np.argsort(-keys)] for keys, indices in rows]
    tokens = np.zeros((len(cells), k), np.int64)
    for row, cell in zip(tokens, cells, strict=True):
        row[: cell.size] = cell[:k]
    return tokens


def _sliced(matrix: Any) -> Iterator[tuple[Any, Any]]:
    for row in range(matrix.shape[0]):
        yield matrix[row].data, matrix[row].indices


def _bare(matrix: Any) -> Iterator[tuple[Any, Any]]:
    for start, stop in pairwise(matrix.indptr):
        yield matrix.data[start:stop], matrix.indices[start:stop]


def chosen_tokens(counts: Any, rows: Any, totals: Any, medians: Any, token_of: Any, k: int) -> tuple[Any, Any]:
    """Tokens and normalised values of chosen rows: SciPy's row indexing, NumPy's arithmetic, Geneformer's loop.

    Values stay with the row's entries: unlike ours, they are neither put in the order of tokens nor padded.
    """
    chosen = counts[rows]
    factors = (1e4 / totals[rows]).astype(np.float32)
    chosen_values = np.log1p(chosen.data * np.repeat(factors, np.diff(chosen.indptr)))
    return geneformer(chosen, totals[rows], medians, token_of, k), chosen_values


def scgpt(dense: Any, n_bins: int, rng: np.random.Generator) -> Any:
    """Bins int64 [cells, genes] as scGPT makes them: quantile edges, values equal to several edges drawn at random.

    Parameters
    ----------
    dense
        float32 [cells, genes].
    """
    rows = []
    for row in dense:
        binned = np.zeros_like(row, dtype=np.int64)
        if row.max() > 0:
            present = row.nonzero()
            binned[present] = _digits(row[present], n_bins, rng)
        rows.append(binned)
    return np.stack(rows)


def scgpt_bare(values: Any, offsets: Any, n_bins: int, rng: np.random.Generator) -> Any:
    """The same bins of a sparse matrix's entries, int64 [nnz]: nothing dense is read or written."""
    bounds = pairwise(offsets)
    return np.concatenate([_digits(values[start:stop], n_bins, rng) for start, stop in bounds if stop > start])


def _digits(values: Any, n_bins: int, rng: np.random.Generator) -> Any:
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    left = np.digitize(values, edges)
    right = np.digitize(values, edges, right=True)
    return np.ceil(rng.random(values.size) * (right - left) + left).astype(np.int64)


def mean_var(counts: Any) -> tuple[Any, Any]:
    """fast-array-utils: means and variances float64 [genes], what scanpy calls."""
    mean, variance = stats.mean_var(counts, axis=0, correction=1)
    return mean, variance


def embedding_bag(indices: Tensor, table: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """torch: weighted sums of embeddings [rows, width]."""
    return torch.nn.functional.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=values)


def padded(values: Tensor, offsets: Tensor, width: int) -> Tensor:
    """torch: values [rows, width] padded with 0. Values only: neither ids nor a mask."""
    return torch.ops.aten._jagged_to_padded_dense_forward(values, [offsets], [width], 0.0)
