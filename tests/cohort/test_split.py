"""Splits: nobody in training is reported on, and where a subject falls depends on the subject alone."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.cohort.cohort import CohortError
from ican_ml.cohort.split import PARTS, Split, folds, split_episodes


def table(n_subjects: int = 400, rows_each: int = 3) -> pl.DataFrame:
    subject = np.repeat(np.arange(1000, 1000 + n_subjects), rows_each)
    return pl.DataFrame(
        {
            "subject_id": subject,
            "fold": (subject % 5).astype(np.int8),
            "fold_random": np.tile(np.arange(rows_each, dtype=np.int8), n_subjects),
            "split": np.where(subject % 4 == 0, "held_out", "train"),
        }
    )


def subjects(episodes: pl.DataFrame, split: Split) -> dict[str, set[int]]:
    return {part: set(episodes["subject_id"].to_numpy()[getattr(split, part)].tolist()) for part in PARTS}


def assert_whole(episodes: pl.DataFrame, split: Split) -> None:
    rows = np.concatenate([getattr(split, part) for part in PARTS])
    assert np.array_equal(np.sort(rows), np.arange(len(episodes)))
    assert all((np.diff(getattr(split, part)) > 0).all() for part in PARTS)


def test_hash_keeps_subjects_apart_and_the_fractions() -> None:
    episodes = table()
    split = split_episodes(episodes, method="hash", seed=1, tuning_fraction=0.1, held_out_fraction=0.2)
    assert_whole(episodes, split)
    who = subjects(episodes, split)
    assert not who["train"] & who["held_out"] | who["train"] & who["tuning"] | who["tuning"] & who["held_out"]
    assert len(who["held_out"]) == pytest.approx(80, abs=25)
    assert len(who["tuning"]) == pytest.approx(32, abs=18)


@given(order=st.randoms(use_true_random=False), dropped=st.integers(0, 60))
def test_hash_depends_on_the_subject_alone(order: object, dropped: int) -> None:
    episodes = table(80, 2)
    rows = list(range(len(episodes)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    fewer = episodes[rows[dropped:]]
    before = subjects(episodes, split_episodes(episodes, method="hash", seed=3))
    after = subjects(fewer, split_episodes(fewer, method="hash", seed=3))
    assert all(after[part] <= before[part] for part in PARTS)


def test_seed_changes_the_hash() -> None:
    episodes = table()
    first, second = (split_episodes(episodes, method="hash", seed=seed).held_out.tolist() for seed in (0, 1))
    assert first != second
    assert first == split_episodes(episodes, method="hash", seed=0).held_out.tolist()


def test_fold_holds_out_that_fold_and_every_row_once_over_all_folds() -> None:
    episodes = table()
    held_out = []
    for fold in folds(episodes):
        split = split_episodes(episodes, method="fold", fold=fold, seed=0)
        assert_whole(episodes, split)
        assert set(episodes["fold"].to_numpy()[split.held_out].tolist()) == {fold}
        who = subjects(episodes, split)
        assert not who["tuning"] & who["train"]
        assert len(split.tuning)
        held_out.append(split.held_out)
    assert np.array_equal(np.sort(np.concatenate(held_out)), np.arange(len(episodes)))


def test_a_subject_in_two_folds_is_refused_unless_rows_are_the_unit() -> None:
    episodes = table()
    with pytest.raises(CohortError, match=r"400 subjects divided by 'fold_random'.*by_subject=False"):
        split_episodes(episodes, method="fold", fold_column="fold_random", fold=0, seed=0)
    split = split_episodes(episodes, method="fold", fold_column="fold_random", fold=0, seed=0, by_subject=False)
    assert_whole(episodes, split)
    who = subjects(episodes, split)
    assert who["tuning"] & who["train"], "tuning rows are drawn one by one"


def test_file_uses_the_column_and_makes_tuning_where_there_is_none() -> None:
    episodes = table()
    split = split_episodes(episodes, method="file", seed=0)
    assert (episodes["split"].to_numpy()[split.held_out] == "held_out").all()
    who = subjects(episodes, split)
    assert who["tuning"]
    assert not who["tuning"] & who["train"]

    first = episodes["subject_id"][1]
    given_tuning = episodes.with_columns(
        split=pl.when(pl.col("subject_id") == first + 1).then(pl.lit("tuning")).otherwise("split")
    )
    assert subjects(given_tuning, split_episodes(given_tuning, method="file", seed=0))["tuning"] == {first + 1}


def test_a_small_cohort_still_has_tuning_and_held_out_subjects() -> None:
    episodes = table(12, 2)
    for seed in range(20):
        split = split_episodes(episodes, method="hash", seed=seed)
        assert all(len(getattr(split, part)) for part in PARTS)
    assert not len(split_episodes(episodes, method="hash", seed=0, tuning_fraction=0).tuning)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fold", "fold": 9}, r"fold to be one of \[0, 1, 2, 3, 4\] of column 'fold', got 9"),
        ({"method": "fold"}, "got None"),
        (
            {"method": "fold", "fold": 0, "fold_column": "site"},
            "a column 'site' of folds, got columns subject_id, fold",
        ),
        ({"method": "fold", "fold": 0, "fold_column": "split"}, "a whole number in every row of 'split'"),
        ({"method": "random"}, "expected file, fold or hash, got 'random'"),
        ({"method": "hash", "held_out_fraction": 1.0, "tuning_fraction": 0}, "got 0 train, 0 tuning, 1200 held_out"),
    ],
)
def test_wrong_requests_are_explained(options: dict[str, object], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        split_episodes(table(), seed=0, **options)  # type: ignore[arg-type]


def test_file_with_other_names_or_gaps_is_refused() -> None:
    with pytest.raises(CohortError, match="got None, validation"):
        split_episodes(pl.DataFrame({"subject_id": [1, 2], "split": ["validation", None]}), method="file", seed=0)
    with pytest.raises(CohortError, match="no such column"):
        split_episodes(pl.DataFrame({"subject_id": [1, 2]}), method="file", seed=0)
