"""The three matrices that the encoding operators are measured on, made from a fixed seed."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import scipy.sparse
import torch

from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.normalize_log1p import normalize_log1p

MATRICES = ("counts", "mutations", "small")
SEED, TARGET, BINS = 7, 1e4, 51
_FUSED_ROWS, _CHECKED_ROWS = 256, 200


class Matrix:
    """A matrix and what the operators take beside it, in the form that each side likes best.

    Parameters
    ----------
    k
        Tokens of a row, entries of a padded row.
    width
        Columns of the table.
    """

    def __init__(self, batch: CSRBatch, k: int, width: int) -> None:
        rng, (rows, features) = np.random.default_rng(SEED), (batch.n_rows, batch.n_features)
        self.batch, self.k, self.width = batch, k, width
        self.normal = normalize_log1p(batch, TARGET)
        self.csr = scipy.sparse.csr_matrix((batch.values, batch.indices, batch.indptr), shape=(rows, features))
        self.totals = self.csr.sum(axis=1, dtype=np.float64).A1
        self.medians = rng.lognormal(0, 1, features)
        self.scale = (1 / self.medians).astype(np.float32)
        self.token_of = np.arange(1, features + 1)  # 0 pads
        # In torch's own memory, as parameters and gradients are: aligned, for all who read them.
        table, grad = (torch.from_numpy(rng.standard_normal((n, width))).float() for n in (features, rows))
        self.table, self.grad = table.numpy(), grad.numpy()
        self.some_rows = rng.integers(0, rows, min(_FUSED_ROWS, rows))
        self.checked = np.sort(rng.permutation(rows)[:_CHECKED_ROWS])
        self.tensors = (*map(torch.from_numpy, (batch.indptr, batch.indices, batch.values)), table, grad)

    def annotated(self) -> anndata.AnnData:
        """A copy of the matrix for scanpy to write into."""
        values = self.batch.values.copy()
        return anndata.AnnData(scipy.sparse.csr_matrix((values, self.csr.indices, self.csr.indptr), self.csr.shape))


def make(name: str) -> Matrix:
    """One of the three matrices, the same at every call."""
    rng = np.random.default_rng(SEED)
    if name == "counts":  # 20,000 cells, 20,000 genes: about 1,010 genes a cell, most of them counted once
        totals = (1215 * np.exp(0.35 * rng.standard_normal(20_000) - 0.06)).astype(np.int64)
        popularity = np.cumsum(np.exp(1.5 * rng.standard_normal(20_000)))
        parts = [multinomial(rng, totals[start : start + 500], popularity) for start in range(0, 20_000, 500)]
        lengths, indices, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Matrix(CSRBatch(np.append(0, np.cumsum(lengths)), indices, values, 20_000), 2048, 256)
    if name == "mutations":  # 20,000 samples, 20,000 genes, .3% mutated
        lengths = rng.binomial(20_000, 0.003, 20_000)
        indices = [np.sort(rng.choice(20_000, length, replace=False)).astype(np.int32) for length in lengths]
        pointers = np.append(0, np.cumsum(lengths))
        return Matrix(CSRBatch(pointers, np.concatenate(indices), np.ones(pointers[-1], np.float32), 20_000), 2048, 256)
    counts = rng.geometric(0.5, (64, 700)) * (rng.random((64, 700)) < 0.2)
    return Matrix(CSRBatch.from_dense(counts, keep_zeros=False), 256, 256)


def multinomial(rng: np.random.Generator, totals: Any, popularity: Any) -> tuple[Any, Any, Any]:
    """Genes a cell, ids and counts of cells with these totals; popularity: running sum over genes."""
    genes = np.searchsorted(popularity, rng.random(totals.sum()) * popularity[-1], side="right")
    cell_and_gene = np.repeat(np.arange(totals.size), totals) * popularity.size + genes
    entries, counts = np.unique(cell_and_gene, return_counts=True)
    lengths = np.bincount(entries // popularity.size, minlength=totals.size)
    return lengths, (entries % popularity.size).astype(np.int32), counts.astype(np.float32)
