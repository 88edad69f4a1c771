"""Train, tuning and held-out rows of the episodes, apart by subject.

In: the episodes table. Out: :class:`Split`, row numbers. A subject falls where sha256 of ``<seed>:<subject>`` puts it:
the same on every machine, for every order of the rows, and whoever else is in the cohort. A person in training is
therefore never among those that a result is reported on, however many episodes or samples there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.checks import CohortError, shown

if TYPE_CHECKING:
    import polars as pl

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
PARTS = ("train", "tuning", "held_out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Row numbers of the episodes, int64, ascending."""

    train: Int64
    tuning: Int64
    held_out: Int64


def split_episodes(
    episodes: pl.DataFrame,
    *,
    method: Literal["file", "fold", "hash"],
    seed: int,
    fold_column: str = "fold",
    fold: int | None = None,
    tuning_fraction: float = 0.1,
    held_out_fraction: float = 0.2,
    by_subject: bool = True,
) -> Split:
    """Divide episodes into train, tuning and held out.

    Parameters
    ----------
    method
        ``file``: by the column ``split`` (train, tuning, held_out). ``fold``: rows of one fold are held out.
        ``hash``: ``held_out_fraction`` of the subjects are held out.
    seed
        Of the hash.
    fold_column, fold
        For ``fold``.
    tuning_fraction
        Part of the subjects that are not held out which tunes (of ``file`` too, where it has no tuning rows).
    held_out_fraction
        Part of all subjects, for ``hash``.
    by_subject
        ``False`` accepts folds that divide a subject's rows, as random (cell line, drug) pairs do; tuning rows are then
        drawn one by one.

    Raises
    ------
    CohortError
        If a column is missing or has other values, a subject lies in two parts, or a part would be empty.
    """
    subject = episodes["subject_id"].to_numpy()
    if method == "hash":
        draw = _draws([f"{seed}:{value}" for value in subject.tolist()])
        part = np.where(_smallest(draw, held_out_fraction), "held_out", "train")
    elif method == "fold":
        in_fold = _folds_of(episodes, fold_column) == _known_fold(episodes, fold_column, fold)
        part = np.where(in_fold, "held_out", "train")
    elif method == "file":
        part = _parts_of(episodes)
    else:
        raise CohortError(f"split method: expected file, fold or hash, got {method!r}")
    if by_subject or method != "fold":
        _check_subjects(subject, part, fold_column if method == "fold" else "split")
        draw = _draws([f"{seed}:tuning:{value}" for value in subject.tolist()])
    else:
        draw = _draws([f"{seed}:row:{row}" for row in range(len(subject))])
    if tuning_fraction > 0 and not (part == "tuning").any():
        train = np.flatnonzero(part == "train")
        part[train[_smallest(draw[train], tuning_fraction)]] = "tuning"
    split = Split(**{name: np.flatnonzero(part == name).astype(np.int64) for name in PARTS})
    if not len(split.train) or not len(split.held_out):
        sizes = ", ".join(f"{len(getattr(split, name))} {name}" for name in PARTS)
        raise CohortError(
            f"split: expected rows to train on and rows held out, got {sizes}; choose another method, fold or fraction"
        )
    return split


def folds(episodes: pl.DataFrame, fold_column: str = "fold") -> list[int]:
    """Fold numbers in the column, ascending.

    Raises
    ------
    CohortError
        If the column is missing, is not of whole numbers or has nulls.
    """
    return [int(fold) for fold in np.unique(_folds_of(episodes, fold_column))]


def _draws(keys: list[str]) -> Float64:
    """A number in 0..1 for every key, by sha256."""
    draw = {key: int.from_bytes(sha256(key.encode()).digest()[:8], "big") / 2**64 for key in dict.fromkeys(keys)}
    return np.array([draw[key] for key in keys], np.float64)


def _smallest(draw: Float64, fraction: float) -> npt.NDArray[np.bool_]:
    """Rows whose draw is below the fraction; where there are none, those of the smallest draw, if others remain."""
    chosen = draw < fraction
    if len(draw) and not chosen.any() and draw.min() < draw.max():
        chosen = draw == draw.min()
    return chosen


def _folds_of(episodes: pl.DataFrame, fold_column: str) -> Int64:
    if fold_column not in episodes.columns:
        raise CohortError(
            f"episodes.parquet: expected a column {fold_column!r} of folds, got columns {shown(episodes.columns, 40)}; "
            "name one of these, or split by hash"
        )
    column = episodes[fold_column]
    if not column.dtype.is_integer() or column.null_count():
        raise CohortError(
            f"episodes.parquet: expected a whole number in every row of {fold_column!r}, got {column.dtype} with "
            f"{column.null_count()} nulls; repair the column, or split by hash"
        )
    return column.to_numpy().astype(np.int64)


def _known_fold(episodes: pl.DataFrame, fold_column: str, fold: int | None) -> int:
    known = folds(episodes, fold_column)
    if fold not in known:
        raise CohortError(f"split: expected fold to be one of {known} of column {fold_column!r}, got {fold}")
    return fold


def _parts_of(episodes: pl.DataFrame) -> npt.NDArray[np.str_]:
    values = episodes["split"].to_list() if "split" in episodes.columns else []
    wrong = sorted({str(value) for value in values} - set(PARTS))
    if wrong or not values:
        raise CohortError(
            f"episodes.parquet: expected split to be one of {shown(PARTS)} in every row, got "
            f"{shown(wrong) if wrong else 'no such column'}; write it, or split by fold or hash"
        )
    return np.array(values, dtype="<U8")


def _check_subjects(subject: Int64, part: npt.NDArray[np.str_], column: str) -> None:
    pairs = np.unique(np.stack([subject, np.unique(part, return_inverse=True)[1]]), axis=1)
    n_divided = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
    if n_divided:
        raise CohortError(
            f"episodes.parquet: expected all rows of a subject in one part, got {n_divided} subjects divided by "
            f"{column!r}; assign parts by subject, or set by_subject=False where the question is about "
            "(subject, treatment) pairs"
        )
