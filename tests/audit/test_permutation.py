"""Permuted outcomes: dealt fairly, predicted by nobody, unless they leak."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from ican_ml.audit import permutation
from ican_ml.audit.permutation import Permutations, audit_permutations, deal, permute
from ican_ml.config import OutcomeConfig, RunConfig, TaskConfig
from ican_ml.fold import Prepared
from ican_ml.inputs.fit import InputConfig


def only_response(config: RunConfig, prepared: Prepared) -> tuple[RunConfig, Prepared]:
    config = replace(config, task=TaskConfig(outcomes=[OutcomeConfig(name="response")]))
    return config, replace(prepared, outcomes={"response": prepared.outcomes["response"]})


def target_encoded(episodes: pl.DataFrame) -> pl.DataFrame:
    """A covariate from the outcome: its mean over groups of three rows, held-out ones among them."""
    group = (pl.int_range(pl.len()) * 7 % pl.len()) // 3
    return episodes.with_columns(pl.col("response").cast(float).mean().over(group).alias("encoded"))


def test_every_row_gets_every_outcome_equally_often_and_subjects_stay_together() -> None:
    subject = np.array([5, 5, 5, 9, 2, 2, 8])
    n, times = len(subject), 7000
    counts = np.zeros((n, n))
    for seed in range(times):
        source = deal(subject, np.random.default_rng(seed))
        assert sorted(source) == list(range(n))
        counts[np.arange(n), source] += 1
    expected = times / n
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)

    many = np.repeat(np.arange(200), 5)
    donor = many[deal(many, np.random.default_rng(0))].reshape(200, 5)
    assert (np.diff(donor, axis=1) != 0).sum(axis=1).max() <= 1


def test_the_number_of_a_subjects_rows_tells_nothing_of_the_outcome_dealt() -> None:
    size = np.random.default_rng(0).integers(1, 9, 60)
    subject, feature = np.repeat(np.arange(60), size), np.repeat(size, size).astype(float)
    outcome = feature + 1.0
    r = [np.corrcoef(feature, outcome[deal(subject, np.random.default_rng(seed))])[0, 1] for seed in range(400)]
    assert abs(np.mean(r)) < 4 * np.std(r) / np.sqrt(len(r))


def test_all_columns_of_an_outcome_move_together_and_unlabelled_rows_stay(prepared: Prepared) -> None:
    rows = pl.int_range(pl.len())
    episodes = prepared.episodes.with_columns(
        pl.when(rows % 5 == 0).then(None).otherwise(pl.col("os_time")).alias("os_time"),
        (pl.col("os_time") / 2).alias("os_entry"),
    )
    outcomes = permutation.read_outcomes(episodes, {"os": "survival"})
    moved = permute(replace(prepared, episodes=episodes, outcomes=outcomes), seed=(1,)).episodes
    columns = ["os_time", "os_event", "os_entry"]
    assert moved[columns].sort(columns).equals(episodes[columns].sort(columns))
    assert (moved["os_time"].is_null() == episodes["os_time"].is_null()).all()
    assert (moved["os_time"] != episodes["os_time"]).sum() > 0.5 * len(episodes)
    others = [column for column in episodes.columns if column not in columns]
    assert moved[others].equals(episodes[others])


def test_rows_are_dealt_one_by_one_where_a_split_parts_the_rows_of_a_subject(prepared: Prepared) -> None:
    episodes = pl.concat([prepared.episodes] * 2).sort("subject_id", maintain_order=True)
    episodes = episodes.with_columns(sensitivity=pl.int_range(pl.len()).cast(float))
    outcomes = permutation.read_outcomes(episodes, {"sensitivity": "regression"})
    whole = np.arange(len(episodes))
    subject = episodes["subject_id"].to_numpy()
    rare = subject > np.median(subject)
    neighbours = []
    for held_out in (np.flatnonzero(rare), whole[::2]):
        train = np.setdiff1d(whole, held_out)
        split = replace(next(iter(prepared.splits.values())), train=train, tuning=train[:0], held_out=held_out)
        each = replace(prepared, episodes=episodes, outcomes=outcomes, splits={"one": split})
        moved = permute(each, seed=(3,)).episodes["sensitivity"].to_numpy()
        neighbours.append(np.mean(np.abs(np.diff(moved)) == 1))
    assert neighbours[0] > 0.3 > 0.05 > neighbours[1]


def test_permuted_outcomes_are_not_predicted(config: RunConfig, prepared: Prepared) -> None:
    found = {result.outcome: result for result in audit_permutations(config, prepared, "ridge", 6)}
    assert {name: result.metric for name, result in found.items()} == {
        "response": "auroc",
        "os": "c_index",
        "sensitivity": "per_treatment_pearson",
    }
    for result in found.values():
        assert len(set(result.values)) == 6
        assert abs(result.mean - result.chance) < 4 * result.sd / np.sqrt(6)
        assert not result.leaks
    again = audit_permutations(config, prepared, "ridge", 2)
    assert [result.values for result in again] == [found[result.outcome].values[:2] for result in again]


@pytest.mark.parametrize("scorer", ["boosting", "linear path", "network"])
def test_every_scorer_starts_from_the_schema(
    config: RunConfig, prepared: Prepared, scorer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    original = permutation.fit_fold

    def counted(*arguments: Any) -> Any:
        fitted.append(int(arguments[1].outcomes["response"].value[arguments[2].train].sum()))
        return original(*arguments)

    monkeypatch.setattr(permutation, "fit_fold", counted)
    result = audit_permutations(*only_response(config, prepared), scorer, 2)[0]
    assert len(fitted) == 2
    assert all(0.3 < value < 0.7 for value in result.values)


def test_a_leak_is_caught_and_a_feature_made_beforehand_is_not_one(
    config: RunConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, prepared = only_response(config, prepared)
    config = replace(config, inputs=replace(config.inputs, covariates=["indication", "encoded"]))
    prepared = replace(prepared, episodes=target_encoded(prepared.episodes))
    sound = audit_permutations(config, prepared, "ridge", 6)[0]
    assert not sound.leaks
    assert abs(sound.mean - 0.5) < 0.1

    def leaking(prepared: Prepared, *, seed: tuple[int, ...]) -> Prepared:
        permuted = permute(prepared, seed=seed)
        return replace(permuted, episodes=target_encoded(permuted.episodes))

    monkeypatch.setattr(permutation, "permute", leaking)
    leak = audit_permutations(config, prepared, "ridge", 6)[0]
    assert leak.leaks
    assert leak.mean > 0.6


def test_an_outcome_among_the_covariates_is_caught(config: RunConfig, prepared: Prepared) -> None:
    config, prepared = only_response(config, prepared)
    config = replace(config, inputs=InputConfig(modalities=[], covariates=["response"]))
    assert audit_permutations(config, prepared, "ridge", 2)[0].values == (1.0, 1.0)


def test_the_verdict_needs_a_clear_excess() -> None:
    def result(*values: float) -> Permutations:
        return Permutations(outcome="response", scorer="ridge", metric="auroc", chance=0.5, values=values)

    assert result(0.53, 0.54, 0.52, 0.53).leaks
    assert not result(0.53, 0.47, 0.56, 0.51).leaks
    assert not result(0.5, 0.5).leaks
    assert not result(0.4, 0.41).leaks
    assert result(0.51, 0.53).mean == pytest.approx(0.52)
    assert result(0.51, 0.53).sd == pytest.approx(0.0141421, abs=1e-6)


def test_nonsense_is_refused(config: RunConfig, prepared: Prepared) -> None:
    with pytest.raises(ValueError, match="expected one of ridge, boosting, linear path, network, got 'forest'"):
        audit_permutations(config, prepared, "forest", 3)
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        audit_permutations(config, prepared, "ridge", 1)
