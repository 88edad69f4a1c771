"""`rank_tokens` and `row_tokens`: the features that tell most about a row, as the tokens that a transformer reads.

Ranking by a value over the feature's typical value follows Geneformer (Theodoris et al., Nature 2023,
doi:10.1038/s41586-023-06139-9), without the pass that normalises: dividing a row by its total leaves its order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.backends import Backend, resolve
from ican_ml.encoding.csr import CSRBatch, Float32, Int32, row_numbers
from ican_ml.encoding.cuda_device import stream_of
from ican_ml.encoding.normalize_log1p import NOT_COUNTS, check_target_sum


def rank_tokens(
    batch: CSRBatch, scale: Float32, k: int, by_magnitude: bool = False, *, backend: Backend = "auto"
) -> tuple[Int32, Int32]:
    """The k most telling features of every row, most telling first.

    An entry's key is the float32 product `value * scale[feature]`, rounded once and never fused, its absolute value
    where `by_magnitude`. Keys are ranked in descending order, ties by ascending feature id, then as stored. An entry
    whose key is zero (of either sign) or NaN is no token. Negative keys are ordinary: they come last. Each entry is a
    candidate, duplicates included. Equal bit for bit across backends. Reads 8 bytes an entry (4 in 16 bits), writes
    4 bytes a token; the sort moves 8 bytes an entry up to eight times within the cache.

    Parameters
    ----------
    batch
        Values, features in any order within a row.
    scale
        float32 [features], for example one over a feature's typical value.
    k
        Most tokens a row may have.
    by_magnitude
        True for signed modalities, where far below zero tells as much as far above.

    Returns
    -------
    tokens
        int32 [rows, k]. Feature ids, -1 beyond a row's last token.
    lengths
        int32 [rows]. Tokens in each row.

    Raises
    ------
    ValueError
        When `scale` is not float32 [features], or k is negative.
    """
    _check(batch, scale, k)
    rows = np.arange(batch.n_rows, dtype=np.int64)
    tokens, _, lengths, _ = resolve(backend, batch.values).rank_tokens(
        batch, rows, scale, int(k), bool(by_magnitude), None
    )
    return tokens, lengths


def row_tokens(
    batch: CSRBatch,
    rows: npt.ArrayLike,
    scale: Float32,
    k: int,
    by_magnitude: bool = False,
    target_sum: float | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Int32, Float32, Int32]:
    """Tokens and their values of chosen rows, in one pass: gather, rank, normalise, pad.

    Equal to `rank_tokens` of `batch.take(rows)` with the values that belong to the tokens: as stored, or those of
    `normalize_log1p` where `target_sum` is given. Nothing but the result is written.

    Parameters
    ----------
    rows
        Integers [n], repeats allowed; -1 gives a row without tokens.
    target_sum
        Total of a row before the logarithm; None leaves values as they are.

    Returns
    -------
    tokens
        int32 [n, k]. Feature ids, -1 beyond a row's last token.
    values
        float32 [n, k]. Zero beyond a row's last token.
    lengths
        int32 [n]. Tokens in each row.

    Raises
    ------
    ValueError
        As `rank_tokens`; when a row does not exist; and where values are normalised, as `normalize_log1p`.
    """
    _check(batch, scale, k)
    if target_sum is not None:
        check_target_sum(target_sum)
    with stream_of(rows):
        wanted = row_numbers(rows, batch.n_rows)
    options = (int(k), bool(by_magnitude), float(target_sum or 0))
    tokens, values, lengths, refused = resolve(backend, batch.values).rank_tokens(batch, wanted, scale, *options)
    if refused:
        raise ValueError(NOT_COUNTS)
    return tokens, values, lengths


def _check(batch: CSRBatch, scale: Float32, k: int) -> None:
    if scale.dtype != np.float32 or scale.shape != (batch.n_features,) or not scale.flags.c_contiguous:
        raise ValueError(f"scale must be contiguous float32 ({batch.n_features},), got {scale.dtype} {scale.shape}")
    if k < 0:
        raise ValueError(f"k must be zero or more, got {k}")
