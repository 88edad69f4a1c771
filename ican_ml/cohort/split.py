"""Train, tuning and held-out rows of the episodes, apart by subject.

In: the episodes table. Out: :class:`Split`, row numbers. A subject falls where sha256 of ``<seed>:<subject>`` puts it:
the same on every machine, for every order of the rows, and whoever else is in the cohort. A person in training is
therefore never among those that a result is reported on, however many episodes or samples there are.

A claim about another hospital, cancer, drug or year needs that one held out. The subjects of the rows held out then
leave training entirely, and their other rows are in no part (``left_out``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.checks import CohortError, shown

if TYPE_CHECKING:
    import polars as pl

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Method = Literal["file", "fold", "hash", "indication", "site", "treatment", "time"]
PARTS = ("train", "tuning", "held_out")
_LEFT_OUT = "left_out"
_MIN_SUBJECTS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Row numbers of the episodes, int64, ascending; ``left_out`` are in no part."""

    train: Int64
    tuning: Int64
    held_out: Int64
    left_out: Int64


def split_episodes(
    episodes: pl.DataFrame,
    *,
    method: Method,
    seed: int,
    fold_column: str = "fold",
    fold: int | None = None,
    tuning_fraction: float = 0.1,
    held_out_fraction: float = 0.2,
    by_subject: bool = True,
    value: str | None = None,
    after: str | None = None,
    train_subjects: int | None = None,
) -> Split:
    """Divide episodes into train, tuning and held out.

    Parameters
    ----------
    method
        ``file``: by the column ``split`` (train, tuning, held_out). ``fold``: rows of one fold are held out.
        ``hash``: ``held_out_fraction`` of the subjects are held out. ``indication``, ``site``: rows whose column of
        that name is ``value`` are held out. ``treatment``: rows whose regimen holds the drug ``value``. ``time``: rows
        at or after ``after``; a subject with rows on both sides falls on one by its hash.
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
    value
        For ``indication``, ``site`` and ``treatment``.
    after
        For ``time``: an ISO date, or the share of the rows that lie before the cut. What is known of training
        subjects' outcomes may still come from after the cut.
    train_subjects
        At most so many subjects train and tune, drawn by the seed; the others' rows are left out. The subjects of a
        smaller number are among those of a larger one.

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
    elif method == "time":
        part = _before_and_after(episodes, after, _draws([f"{seed}:side:{value}" for value in subject.tolist()]))
    elif method in ("indication", "site", "treatment"):
        chosen = _having(episodes, method, value)
        left = np.isin(subject, subject[chosen])
        part = np.where(chosen, "held_out", np.where(left, _LEFT_OUT, "train"))
    else:
        raise CohortError(f"split method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    if by_subject or method != "fold":
        kept = part != _LEFT_OUT
        _check_subjects(subject[kept], part[kept], fold_column if method == "fold" else "split")
        draw = _draws([f"{seed}:tuning:{value}" for value in subject.tolist()])
    else:
        draw = _draws([f"{seed}:row:{row}" for row in range(len(subject))])
    if train_subjects is not None:
        usable = np.isin(part, ("train", "tuning"))
        order = _draws([f"{seed}:few:{value}" for value in subject.tolist()])
        limit = np.sort(np.unique(order[usable]))[:train_subjects]
        part[usable & (order > limit[-1])] = _LEFT_OUT
    if tuning_fraction > 0 and not (part == "tuning").any():
        train = np.flatnonzero(part == "train")
        part[train[_smallest(draw[train], tuning_fraction)]] = "tuning"
    split = Split(**{name: np.flatnonzero(part == name).astype(np.int64) for name in (*PARTS, _LEFT_OUT)})
    if not len(split.train) or not len(split.held_out):
        sizes = ", ".join(f"{len(getattr(split, name))} {name}" for name in PARTS)
        raise CohortError(
            f"split: expected rows to train on and rows held out, got {sizes}; choose another method, fold, value or "
            "fraction"
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


def values_in_turn(episodes: pl.DataFrame, method: Literal["indication", "site"]) -> list[str]:
    """Values of the column that at least 10 subjects have, in alphabetical order: what can be left out in turn.

    Raises
    ------
    CohortError
        If the column is missing, or fewer than two values are that common.
    """
    values = _texts_of(episodes, method)
    pairs = {(value, subject) for value, subject in zip(values, episodes["subject_id"], strict=True) if value}
    count = Counter(value for value, _ in pairs)
    common = sorted(value for value, n in count.items() if n >= _MIN_SUBJECTS)
    if len(common) < 2:
        raise CohortError(
            f"episodes.parquet: expected two or more values of {method!r} in at least {_MIN_SUBJECTS} subjects each, "
            f"got {shown(common)}; choose another method"
        )
    return common


def _having(episodes: pl.DataFrame, method: str, value: str | None) -> Bool:
    """bool [rows]: the column holds the value, or the regimen the drug."""
    if method == "treatment":
        treatments: list[list[str] | None] = episodes["treatment"].to_list()
        held = [set(drugs or ()) for drugs in treatments]
        known = sorted(set().union(*held))
    else:
        texts = _texts_of(episodes, method)
        held = [{text} for text in texts]
        known = sorted(set(texts) - {""})
    if value not in known:
        what = "a drug of some treatment" if method == "treatment" else f"one of column {method!r}"
        raise CohortError(f"split.value: expected {what} ({shown(known, 40)}), got {value!r}")
    return np.array([value in values for values in held], bool)


def _texts_of(episodes: pl.DataFrame, column: str) -> list[str]:
    """The column as text, "" where it is null."""
    if column not in episodes.columns:
        raise CohortError(
            f"episodes.parquet: expected a column {column!r}, got columns {shown(episodes.columns, 40)}; add it, or "
            "choose another method"
        )
    return ["" if value is None else str(value) for value in episodes[column].to_list()]


def _before_and_after(episodes: pl.DataFrame, after: str | None, draw: Float64) -> npt.NDArray[np.str_]:
    """Parts by time; ``draw`` decides which side keeps a subject that has rows on both. Undated rows are left out."""
    time = episodes["prediction_time"].to_numpy().astype("datetime64[us]")
    dated = ~np.isnat(time)
    if not dated.any():
        raise CohortError(
            "split: expected prediction times in episodes.parquet to split by, got none; choose another method"
        )
    late = dated & (time >= _cut(time[dated], after))
    _, subject = np.unique(episodes["subject_id"].to_numpy(), return_inverse=True)
    has_early, has_late = (np.bincount(subject, weights=rows) > 0 for rows in (dated & ~late, late))
    is_late = (has_late & ~has_early)[subject] | ((has_late & has_early)[subject] & (draw < 0.5))
    side = np.where(late, "held_out", "train")
    return np.where(dated & (late == is_late), side, _LEFT_OUT)


def _cut(time: npt.NDArray[np.datetime64], after: str | None) -> np.datetime64:
    """The first moment that is held out: a date, or the time before which a share of the rows lies."""
    years = " to ".join(str(moment.astype("datetime64[Y]")) for moment in (time.min(), time.max()))
    expected = f"split.after: expected a date within the cohort's ({years}), or a share between 0 and 1"
    try:
        share = float(after or "")
    except ValueError:
        try:
            moment = np.datetime64(datetime.fromisoformat(after or "").replace(tzinfo=None), "us")
        except (ValueError, TypeError):
            raise CohortError(f"{expected}, got {after!r}") from None
        if not time.min() < moment <= time.max():
            raise CohortError(f"{expected}, got {after!r}") from None
        return moment
    if not 0 < share < 1:
        raise CohortError(f"{expected}, got {after!r}")
    ordered = np.sort(time)
    return np.datetime64(ordered[min(int(np.ceil(share * len(ordered))), len(ordered) - 1)], "us")


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
