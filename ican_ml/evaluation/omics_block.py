"""One modality as the baselines see it: sparse rows, from which bounded dense blocks and principal components are made.

In: normalised values [patients, features] and what each assay measures. Out: `OmicsBlock.dense` for narrow blocks, and
`components` for wide ones, which are never made dense. A standardised sparse block is S + B: an entry that is not
stored has the z of zero, which depends on the patient's indication and assay alone, so B has one row for each pair of
them that occurs; S holds what stored entries add to it. Products with S + B are all that a randomised singular value
decomposition needs (Halko, Martinsson and Tropp, SIAM Review 53, 2011, doi:10.1137/090771806).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.csr import Bool, CSRBatch, Float32, Float64, Int64, row_pieces
from ican_ml.encoding.feature_stats import feature_stats

_MIN_GROUP = 20
_POWER_ITERATIONS, _OVERSAMPLING = 5, 10
_ENTRIES = 1 << 20  # what temporaries in float64 are made for at a time
_SMALLEST_SD = 1e-6  # of the values that `dense` gives
_SMALLEST_RELATIVE_SD = 1e-7  # of the mean: below it float32 tells no two values apart


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OmicsBlock:
    """One modality of some patients.

    Attributes
    ----------
    matrix
        [patients, features]: normalised values, no feature twice in a row.
    mean, inverse_sd
        float32 [features]: centre and inverse spread in training.
    panel
        int64 [patients]: assay number, a row of `measured`.
    measured
        bool [panels + 1, features]: what each assay measures (row 0: nothing).
    explicit
        Every measured entry is stored. Otherwise one that is not stored is zero where measured.
    """

    matrix: CSRBatch
    mean: Float32
    inverse_sd: Float32
    panel: Int64
    measured: Bool
    explicit: bool

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return self.matrix.n_rows

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.matrix.n_features

    @property
    def absent_is_zero(self) -> Bool:
        """bool [panels + 1, features]: whether an entry that is not stored was measured as zero."""
        return self.measured & (not self.explicit)

    def dense(self) -> Float32:
        """float32 [patients, features], centred and scaled; NaN = not measured."""
        block: Float32 = np.where(self.absent_is_zero, np.float32(0), np.float32(np.nan))[self.panel]
        block[self.matrix.row_ids(), self.matrix.indices] = self.matrix.values
        block -= self.mean
        block *= self.inverse_sd
        return block


def components(
    blocks: Sequence[OmicsBlock], training: Int64, groups: Int64, *, count: int, clip: float, seed: int
) -> Float32:
    """Principal components of all blocks' features, standardised inside each group: groups differ in what they measure.

    A group with few training patients is standardised by all of them. What is missing, or constant in training,
    becomes 0. Components keep their relative variance (mean 1), so that a ridge on them is a ridge on the features.
    Memory: about half as much again as the blocks themselves.

    Parameters
    ----------
    training
        int64: the patients that statistics and axes are learnt from.
    groups
        int64 [patients], from 0: the indication.
    count
        Components wanted; fewer where there are fewer training patients or features.
    clip
        Standardised values are cut at plus and minus this.

    Returns
    -------
    float32 [patients, components]
        The largest training score of each component is positive.
    """
    z = _SideBySide([_standardise(block, training, groups, clip) for block in blocks])
    axes = _principal_axes(z, training, max(1, min(count, len(training) - 1, z.n_features)), seed)
    scores = z.times(axes)
    known = scores[training]
    largest = known[np.abs(known).argmax(axis=0), np.arange(known.shape[1])]
    scale = np.sqrt(np.mean(known**2))
    return np.asarray(scores * np.where(largest < 0, -1, 1) / max(scale, 1e-6), np.float32)


@dataclass(frozen=True, slots=True)
class _Standardised:
    """S + B, with row r of B equal to row `pair[r]` of `base`; `pair` as the matrix [patients, pairs] of indicators."""

    sparse: CSRBatch
    pair: CSRBatch
    base: Float32

    def times(self, table: Float32) -> Float32:
        """The product with a table [features, width]: [patients, width]."""
        table = np.ascontiguousarray(table)
        return bag(self.sparse, table) + bag(self.pair, self.base @ table)

    def transposed_times(self, rows_table: Float32) -> Float32:
        """The product of the transposed matrix with a table [patients, width]: [features, width]."""
        return bag_transposed(self.sparse, rows_table) + self.base.T @ bag_transposed(self.pair, rows_table)


@dataclass(frozen=True, slots=True)
class _SideBySide:
    """Blocks of the same patients as one, features in their order."""

    blocks: Sequence[_Standardised]

    @property
    def n_rows(self) -> int:
        return self.blocks[0].sparse.n_rows

    @property
    def n_features(self) -> int:
        return sum(block.sparse.n_features for block in self.blocks)

    def times(self, table: Float32) -> Float32:
        tables = np.split(table, np.cumsum([block.sparse.n_features for block in self.blocks])[:-1])
        return np.asarray(sum(block.times(part) for block, part in zip(self.blocks, tables, strict=True)), np.float32)

    def transposed_times(self, rows_table: Float32) -> Float32:
        return np.concatenate([block.transposed_times(rows_table) for block in self.blocks])


def _standardise(block: OmicsBlock, training: Int64, groups: Int64, clip: float) -> _Standardised:
    size = np.bincount(groups[training], minlength=int(groups.max()) + 1)
    names, group = np.unique(np.where(size[groups] >= _MIN_GROUP, groups, -1), return_inverse=True)
    references = [training if name < 0 else training[groups[training] == name] for name in names.tolist()]
    moments = [_moments(block, rows) for rows in references]
    mean, scale = (np.stack(each) for each in zip(*moments, strict=True))

    absent_is_zero, n_panels = block.absent_is_zero, len(block.measured)
    pairs, pair = np.unique(group * n_panels + block.panel, return_inverse=True)
    of_zero = np.clip(-mean * scale, -clip, clip)[pairs // n_panels]
    base = np.where(absent_is_zero[pairs % n_panels], of_zero, 0).astype(np.float32)

    values, at = np.empty(block.matrix.nnz, np.float32), 0
    for rows, piece in _pieces(block.matrix, np.arange(block.n_patients)):
        row, feature = rows[piece.row_ids()], piece.indices
        z = np.clip((piece.values - mean[group[row], feature]) * scale[group[row], feature], -clip, clip)
        values[at : at + piece.nnz] = z - base[pair[row], feature]
        at += piece.nnz
    return _Standardised(
        sparse=block.matrix.with_values(values),
        pair=CSRBatch.from_arrays(np.arange(len(pair) + 1), pair, np.ones(len(pair), np.float32), len(pairs)),
        base=base,
    )


def _moments(block: OmicsBlock, rows: Int64) -> tuple[Float64, Float64]:
    """Mean and inverse deviation (0 = constant) of each feature over the chosen patients that measured it."""
    absent_is_zero = block.absent_is_zero
    stored = np.zeros(block.n_features, np.int64)
    absent = np.bincount(block.panel[rows], minlength=len(absent_is_zero)) @ absent_is_zero.astype(np.int64)
    for chosen, piece in _pieces(block.matrix, rows):
        stored += np.bincount(piece.indices, minlength=block.n_features)
        inside = absent_is_zero[block.panel[chosen[piece.row_ids()]], piece.indices]
        absent -= np.bincount(piece.indices[inside], minlength=block.n_features)
    count = np.maximum(stored + absent, 1)
    mean = feature_stats(piece for _, piece in _pieces(block.matrix, rows)).sum / count
    centred = feature_stats(
        piece.with_values((piece.values - mean[piece.indices]).astype(np.float32))
        for _, piece in _pieces(block.matrix, rows)
    )
    sd = np.sqrt((centred.sum_of_squares + absent * mean**2) / count)
    varies = (sd * block.inverse_sd > _SMALLEST_SD) & (sd > _SMALLEST_RELATIVE_SD * np.abs(mean))
    return mean, np.divide(1.0, sd, out=np.zeros_like(sd), where=varies)


def _pieces(matrix: CSRBatch, rows: Int64) -> Iterator[tuple[Int64, CSRBatch]]:
    """The chosen rows, about a million entries at a time: their numbers, and what they hold."""
    ends = np.cumsum(np.diff(matrix.indptr)[rows])
    for start, stop in row_pieces(np.append(0, ends), _ENTRIES):
        yield rows[start:stop], matrix.take(rows[start:stop])


def _principal_axes(z: _SideBySide, training: Int64, count: int, seed: int) -> Float32:
    """float32 [features, count]: the leading right singular vectors of the training rows, from the shorter side."""
    n_features = z.n_features

    def times(table: Float32) -> Float32:
        return z.times(table)[training]

    def transposed_times(rows_table: Float32) -> Float32:
        every = np.zeros((z.n_rows, rows_table.shape[1]), np.float32)
        every[training] = rows_table
        return z.transposed_times(every)

    tall = len(training) >= n_features
    there, back = (times, transposed_times) if tall else (transposed_times, times)
    shorter = min(len(training), n_features)
    basis = np.random.RandomState(seed).normal(size=(shorter, count + _OVERSAMPLING)).astype(np.float32)
    for _ in range(_POWER_ITERATIONS):
        basis = np.linalg.qr(back(np.linalg.qr(there(basis))[0]))[0]
    basis = np.linalg.qr(there(basis))[0]
    left, _, right = np.linalg.svd(back(basis), full_matrices=False)
    return np.asarray(left[:, :count] if tall else basis @ right[:count].T, np.float32)
