"""Whether what is timed is right: integers as the reference has them, floats near float64, peers with the same answer.

On a subsample of a matrix's rows, cut out of results for the whole matrix; the gradient on some of its columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import peers
import torch
from matrices import BINS, TARGET, Matrix

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.csr_bag import csr_bag
from ican_ml.encoding.feature_stats import feature_stats
from ican_ml.encoding.pad_ragged import pad_ragged
from ican_ml.encoding.rank_tokens import rank_tokens, row_tokens

_COLUMNS = 32
_CLOSE = 1e-5


def agree(m: Matrix) -> dict[str, Any]:
    """The matrix in words, and for every operator the three answers."""
    ones = np.count_nonzero(m.batch.values == 1) / m.batch.nnz
    return {
        "matrix": f"{m.batch.n_rows:,} x {m.batch.n_features:,}, {m.batch.nnz:,} entries, {ones:.0%} of them 1",
        "equal": _equal_integers(m),
        "errors": _errors(m),
        "peers": _equal_peers(m),
    }


def _equal_integers(m: Matrix) -> dict[str, bool]:
    """Integers of the backend that is timed against the reference's."""
    rows, part = m.checked, m.batch.take(m.checked)
    fused = row_tokens(m.batch, rows, m.scale, m.k, target_sum=TARGET)
    pairs = {
        "rank": (
            [array[rows] for array in rank_tokens(m.batch, m.scale, m.k)],
            rank_tokens(part, m.scale, m.k, backend="reference"),
        ),
        "row tokens": (
            fused[::2],
            row_tokens(part, np.arange(rows.size), m.scale, m.k, target_sum=TARGET, backend="reference")[::2],
        ),
        "bins": (
            [_of_rows(m, bin_values(batch, BINS)) for batch in (m.batch, m.normal)],
            [bin_values(batch.take(rows), BINS, backend="reference") for batch in (m.batch, m.normal)],
        ),
        "statistics": ([feature_stats(m.batch).count], [feature_stats(m.batch, backend="reference").count]),
        "pad": ([array[rows] for array in _padded(m.batch, m.k)], _padded(part, m.k, "reference")),
    }
    return {
        operator: all(np.array_equal(a, b) for a, b in zip(ours, reference, strict=True))
        for operator, (ours, reference) in pairs.items()
    }


def _errors(m: Matrix) -> dict[str, float]:
    """Largest error against float64, in largest errors of the plain formula in float32.

    Absolute errors; where the formula only ever grows, relative ones too, and the worse ratio of the two.
    """
    rows, part, wide = m.checked, m.batch.take(m.checked), m.csr.astype(np.float64)
    sums = np.repeat(m.totals[rows], np.diff(part.indptr))
    exact = np.log1p(part.values.astype(np.float64) * TARGET / sums)
    plain = np.log1p(part.values * (np.float32(TARGET) / sums.astype(np.float32)))
    tokens, values, lengths = row_tokens(m.batch, rows, m.scale, m.k, target_sum=TARGET)
    there = np.arange(m.k) < lengths[:, None]
    exact_fused, plain_fused = (_at_tokens(part, each, tokens)[there] for each in (exact, plain))
    ones, normal = np.ones(m.batch.n_rows, np.float32), m.normal.to_scipy()
    stats, exact_stats = feature_stats(m.normal), feature_stats(m.normal, backend="reference")
    bagged, gradient = _bag_and_gradient(m)
    some = np.ascontiguousarray(m.grad[:, :_COLUMNS])
    return {
        "normalise": _error(m.normal.take(rows).values, plain, exact, positive=True),
        "row tokens": _error(values[there], plain_fused, exact_fused, positive=True),
        "sums": _error(stats.sum, ones @ normal, exact_stats.sum),
        "sums of squares": _error(stats.sum_of_squares, ones @ normal.power(2), exact_stats.sum_of_squares),
        "bag": _error(bagged[rows], m.csr[rows] @ m.table, wide[rows] @ m.table.astype(np.float64)),
        "gradient": _error(gradient[:, :_COLUMNS], m.csr.T @ some, wide.T @ some.astype(np.float64)),
    }


def _equal_peers(m: Matrix) -> dict[str, bool]:
    """Whether a peer answers what ours answers, to 1e-5 of the largest number; tokens by their keys, for ties."""
    rows, part = m.checked, m.batch.take(m.checked)
    indptr, indices, values, table, grad = m.tensors
    keys = part.values / m.medians[part.indices]
    loop = peers.geneformer(m.csr[rows], m.totals[rows], m.medians, m.token_of, m.k)
    chosen, _ = peers.chosen_tokens(m.csr, rows, m.totals, m.medians, m.token_of, m.k)
    ranked = _at_tokens(part, keys, rank_tokens(m.batch, m.scale, m.k)[0][rows])
    leaf = table.clone().requires_grad_()
    bagged, gradient = _bag_and_gradient(m)
    theirs = peers.embedding_bag(indices, leaf, indptr[:-1].int(), values)
    (their_gradient,) = torch.autograd.grad(theirs, leaf, grad)
    return {
        "normalise": _close(peers.scanpy_normalise(m.annotated()).X.data, m.normal.values),
        "rank": _close(_at_tokens(part, keys, loop - 1), ranked),
        "row tokens": _close(_at_tokens(part, keys, chosen - 1), ranked),
        "statistics": _close(peers.mean_var(m.csr)[0] * m.batch.n_rows, feature_stats(m.batch).sum),
        "bag": _close(theirs.detach().numpy(), bagged),
        "gradient": _close(their_gradient.numpy(), gradient),
        "pad": _close(peers.padded(values, indptr, m.k).numpy(), _padded(m.batch, m.k)[1]),
    }


def _bag_and_gradient(m: Matrix) -> tuple[Any, Any]:
    indptr, indices, values, table, grad = m.tensors
    leaf = table.clone().requires_grad_()
    bagged = csr_bag(indptr, indices, values, leaf)
    (gradient,) = torch.autograd.grad(bagged, leaf, grad)
    return bagged.detach().numpy(), gradient.numpy()


def _padded(batch: CSRBatch, width: int, backend: Backend = "auto") -> list[Any]:
    columns, mask = pad_ragged(batch.indptr, [batch.indices, batch.values], width, (-1, 0), backend=backend)
    return [*columns, mask]


def _of_rows(m: Matrix, entries: Any) -> Any:
    """Of one number an entry of the matrix, those of the checked rows; small whole numbers."""
    return m.batch.with_values(entries.astype(np.float32)).take(m.checked).values


def _at_tokens(part: CSRBatch, entries: Any, tokens: Any) -> Any:
    """Of one number an entry of the checked rows, those of the tokens [rows, k]; 0 where there is none."""
    dense = np.zeros((part.n_rows, part.n_features + 1))
    dense[part.row_ids(), part.indices] = entries
    return np.take_along_axis(dense, tokens.astype(np.int64) % (part.n_features + 1), axis=1)


def _error(ours: Any, plain: Any, exact: Any, positive: bool = False) -> float:
    ratios = []
    for unit in (1.0, exact) if positive else (1.0,):
        error, allowed = (float(np.abs((found - exact) / unit).max()) for found in (ours, plain))
        ratios.append(error / allowed if allowed else (np.inf if error else 0.0))
    return max(ratios)


def _close(theirs: Any, ours: Any) -> bool:
    return bool(np.abs(theirs - ours).max() <= _CLOSE * np.abs(ours).max())
