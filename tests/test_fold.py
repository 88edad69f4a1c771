"""Further training episodes: lines and landmarks together, each with its weight, of training subjects alone."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.split import Split, split_episodes
from ican_ml.config import CohortConfig, Kind, LandmarksConfig, LinesConfig, OutcomeConfig, RunConfig, TaskConfig
from ican_ml.fold import Further, Prepared, further_episodes, with_further
from ican_ml.records.store import RecordStore
from ican_ml.training.outcomes import read_outcomes

KINDS = {"response": Kind.binary, "os": Kind.survival, "sensitivity": Kind.regression}
LINES = LinesConfig(start="DRUG//(.+)//START", window=7, weight=0.25)


def _config(lines: LinesConfig, landmarks: LandmarksConfig) -> RunConfig:
    return RunConfig(
        cohort=CohortConfig(path="", lines=lines, landmarks=landmarks),
        task=TaskConfig(outcomes=[OutcomeConfig(name=name, kind=kind) for name, kind in KINDS.items()]),
    )


@pytest.fixture
def prepared(sim_cohort: Cohort, sim_records: RecordStore) -> Prepared:
    """The simulated cohort without further episodes."""
    return Prepared(
        cohort=sim_cohort,
        store=sim_records,
        episodes=sim_cohort.episodes,
        outcomes=read_outcomes(sim_cohort.episodes, {name: kind.value for name, kind in KINDS.items()}),
        splits={},
        data_hash="",
    )


@pytest.fixture
def split(prepared: Prepared) -> Split:
    """Training, tuning and held-out rows, and some that are left out."""
    found = split_episodes(prepared.episodes, method="hash", seed=3)
    return replace(found, train=found.train[5:], left_out=found.train[:5])


def _found(prepared: Prepared, lines: LinesConfig, landmarks: LandmarksConfig) -> Further | None:
    return further_episodes(_config(lines, landmarks), prepared.cohort, prepared.store, prepared.outcomes)


def test_nothing_changes_where_nothing_is_asked_for(prepared: Prepared, split: Split) -> None:
    assert _found(prepared, LinesConfig(), LandmarksConfig()) is None
    same, same_split, weight = with_further(prepared, split)
    assert same is prepared
    assert same_split is split
    np.testing.assert_array_equal(weight, np.ones(len(prepared.episodes)))


def test_lines_and_landmarks_keep_their_weights(prepared: Prepared) -> None:
    lines = _found(prepared, LINES, LandmarksConfig())
    landmarks = _found(prepared, LinesConfig(), LandmarksConfig(per_episode=2))
    both = _found(prepared, LINES, LandmarksConfig(per_episode=2))
    assert lines is not None
    assert landmarks is not None
    assert both is not None
    assert len(lines.episodes) > 0
    assert len(landmarks.episodes) > len(prepared.episodes)
    np.testing.assert_array_equal(both.weight, [0.25] * len(lines.episodes) + [0.5] * len(landmarks.episodes))
    assert both.episodes[len(lines.episodes) :].select(landmarks.episodes.columns).equals(landmarks.episodes)


def test_further_episodes_are_those_of_training_subjects(prepared: Prepared, split: Split) -> None:
    further = _found(prepared, LINES, LandmarksConfig(per_episode=1))
    assert further is not None
    both, extended, weight = with_further(replace(prepared, further=further), split)
    n, subject = len(prepared.episodes), both.episodes["subject_id"].to_numpy()
    more = extended.train[len(split.train) :]
    np.testing.assert_array_equal(more, np.arange(n, len(both.episodes)))
    assert both.episodes[:n].equals(prepared.episodes)
    others = subject[np.concatenate([split.tuning, split.held_out, split.left_out])]
    kept = ~np.isin(further.episodes["subject_id"].to_numpy(), others)
    assert 0 < kept.sum() < len(kept)
    assert not np.isin(subject[more], others).any()
    assert both.episodes[n:]["subject_id"].equals(further.episodes["subject_id"].filter(pl.Series(kept)))
    np.testing.assert_array_equal(weight, np.append(np.ones(n, np.float32), further.weight[kept]))
    for part in ("tuning", "held_out", "left_out"):
        np.testing.assert_array_equal(getattr(extended, part), getattr(split, part))
    assert all(len(outcome) == len(both.episodes) for outcome in both.outcomes.values())


def test_landmarks_need_outcomes_that_count_from_the_prediction(prepared: Prepared) -> None:
    meta = prepared.cohort.meta | {"clocks": {"os": "diagnosis"}}
    other = replace(prepared, cohort=replace(prepared.cohort, meta=meta))
    with pytest.raises(ValueError, match=r"cohort\.landmarks: .*os from diagnosis"):
        _found(other, LinesConfig(), LandmarksConfig(per_episode=1))
