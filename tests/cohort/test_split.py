"""Splits: nobody in training is reported on, and where a subject falls depends on the subject alone."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.cohort.cohort import CohortError
from ican_ml.cohort.split import PARTS, Split, folds, split_episodes, values_in_turn


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


def test_fewer_subjects_to_train_on_are_some_of_the_more() -> None:
    episodes = table()
    whole = split_episodes(episodes, method="fold", fold=2, seed=4)
    before: set[int] = set()
    for number in (20, 50, 10_000):
        split = split_episodes(episodes, method="fold", fold=2, seed=4, train_subjects=number)
        parts = subjects(episodes, split)
        used = parts["train"] | parts["tuning"]
        assert len(used) == min(number, 320)
        assert before <= used
        assert np.array_equal(split.held_out, whole.held_out)
        assert len(split.left_out) == len(episodes) - sum(len(getattr(split, part)) for part in PARTS)
        before = used
    assert np.array_equal(split.train, whole.train)


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
        ({"method": "random"}, "expected one of file, .*, time, got 'random'"),
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


def journeys(n_subjects: int = 300) -> pl.DataFrame:
    """Three lines of therapy a subject, a year apart: the indication is the subject's, site and drugs the line's."""
    subject = np.repeat(np.arange(500, 500 + n_subjects), 3)
    line = np.tile(np.arange(3), n_subjects)
    day = np.datetime64("2015-01-01", "us") + ((subject * 11) % 1500 + line * 365).astype("timedelta64[D]")
    drugs = [[["A"], ["B", "C"], ["C"]][(s + i) % 3] if s % 7 or i else [] for s, i in zip(subject, line, strict=True)]
    return pl.DataFrame(
        {
            "subject_id": subject,
            "prediction_time": day,
            "treatment": pl.Series(drugs, dtype=pl.List(pl.String)),
            "indication": np.array(["LUAD", "SKCM", "BRCA"])[subject % 3],
            "site": pl.Series(np.where((subject % 5 == 0) & (line == 2), 2, 1)),
        }
    )


REQUESTS: list[dict[str, Any]] = [
    {"method": "indication", "value": "LUAD"},
    {"method": "site", "value": "2"},
    {"method": "treatment", "value": "B"},
    {"method": "time", "after": "2017-06-01"},
    {"method": "time", "after": "0.7"},
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_honest_splits_keep_subjects_apart_and_do_not_move(request_: dict[str, Any]) -> None:
    episodes = journeys()
    split = split_episodes(episodes, seed=2, **request_)
    rows = np.concatenate([split.train, split.tuning, split.held_out, split.left_out])
    assert np.array_equal(np.sort(rows), np.arange(len(episodes)))
    who = subjects(episodes, split)
    assert all(who.values())
    assert not who["train"] & who["held_out"] | who["train"] & who["tuning"] | who["tuning"] & who["held_out"]
    again = split_episodes(episodes, seed=2, **request_)
    assert all(np.array_equal(getattr(split, part), getattr(again, part)) for part in (*PARTS, "left_out"))
    order = np.random.default_rng(0).permutation(len(episodes))
    shuffled = split_episodes(episodes[order], seed=2, **request_)
    assert all(np.array_equal(np.sort(order[getattr(shuffled, p)]), getattr(split, p)) for p in (*PARTS, "left_out"))


def test_one_value_out_takes_its_subjects_with_it() -> None:
    episodes = journeys()
    site = episodes["site"].to_numpy()
    split = split_episodes(episodes, seed=0, method="site", value="2")
    assert (site[split.held_out] == 2).all()
    assert len(split.held_out) == 60
    assert len(split.left_out) == 120, "the first two lines of the same subjects"
    drugs = split_episodes(episodes, seed=0, method="treatment", value="B")
    held_out = episodes[drugs.held_out]["treatment"].to_list()
    assert held_out == [["B", "C"]] * len(held_out)
    assert len(held_out) == sum("B" in regimen for regimen in episodes["treatment"])
    indication = split_episodes(episodes, seed=0, method="indication", value="LUAD")
    assert not len(indication.left_out)
    assert len(indication.held_out) == 300


def test_time_drops_what_lies_on_the_other_side() -> None:
    episodes = journeys()
    time = episodes["prediction_time"].to_numpy()
    cut = np.datetime64("2017-06-01")
    split = split_episodes(episodes, seed=0, method="time", after="2017-06-01")
    assert (time[np.concatenate([split.train, split.tuning])] < cut).all()
    assert (time[split.held_out] >= cut).all()
    who = subjects(episodes, split)
    left = {"early": time[split.left_out] < cut, "late": time[split.left_out] >= cut}
    dropped = episodes["subject_id"].to_numpy()[split.left_out]
    assert set(dropped[left["early"]].tolist()) <= who["held_out"]
    assert set(dropped[left["late"]].tolist()) <= who["train"] | who["tuning"]
    assert all(rows.any() for rows in left.values())
    assert (
        split_episodes(episodes, seed=1, method="time", after="2017-06-01").left_out.tolist() != split.left_out.tolist()
    )

    share = split_episodes(episodes, seed=0, method="time", after="0.7")
    assert time[share.held_out].min() >= np.quantile(time.astype(np.int64), 0.69).astype("datetime64[us]")
    undated = episodes.with_columns(
        pl.when(pl.int_range(pl.len()) % 10 > 0).then("prediction_time").alias("prediction_time")
    )
    assert set(range(0, len(episodes), 10)) <= set(
        split_episodes(undated, seed=0, method="time", after="0.5").left_out.tolist()
    )


def test_values_in_turn_are_the_common_ones() -> None:
    episodes = journeys()
    assert values_in_turn(episodes, "indication") == ["BRCA", "LUAD", "SKCM"]
    rare = episodes.with_columns(
        pl.when(pl.col("subject_id") < 509).then(pl.lit("RARE")).otherwise("indication").alias("indication")
    )
    assert values_in_turn(rare, "indication") == ["BRCA", "LUAD", "SKCM"]
    with pytest.raises(CohortError, match=r"two or more values of 'site' in at least 10 subjects each, got 1"):
        values_in_turn(episodes.filter(pl.col("site") == 1), "site")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "indication", "value": "X"}, r"one of column 'indication' \(BRCA, LUAD, SKCM\), got 'X'"),
        ({"method": "site", "value": None}, r"one of column 'site' \(1, 2\), got None"),
        ({"method": "treatment", "value": "D"}, r"a drug of some treatment \(A, B, C\), got 'D'"),
        ({"method": "time", "after": "soon"}, r"a date within the cohort's \(2015 to 2021\), .*, got 'soon'"),
        ({"method": "time", "after": "1999-01-01"}, "a date within .*, got '1999-01-01'"),
        ({"method": "time", "after": "1.5"}, "or a share between 0 and 1, got '1.5'"),
        ({"method": "time"}, "got None"),
    ],
)
def test_values_that_are_not_there_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        split_episodes(journeys(), seed=0, **options)


def test_honest_splits_need_their_columns() -> None:
    with pytest.raises(CohortError, match="expected a column 'site', got columns subject_id"):
        split_episodes(journeys().drop("site"), seed=0, method="site", value="1")
    undated = journeys().with_columns(prediction_time=pl.lit(None, pl.Datetime("us")))
    with pytest.raises(CohortError, match="expected prediction times"):
        split_episodes(undated, seed=0, method="time", after="0.5")
