"""The vocabulary on real records: a code that training never saw backs off to one above codes that it saw, and no value
is NaN."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ican_ml.records.meds import read_records
from ican_ml.records.store import history
from ican_ml.records.vocabulary import FIRST_KNOWN, UNKNOWN, Events, back_off
from ican_ml.records.vocabulary_fit import fit_vocabulary

UNSEEN_ROWS = {"train": 0, "tuning": 391, "held_out": 594}


@pytest.fixture(scope="module")
def events_of(cohorts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Events]:
    """Give a function from a split of the MIMIC-IV demo to all events of its subjects, one row each."""
    dataset = cohorts / "records" / "mimic_iv_demo"
    if not dataset.is_dir():
        pytest.skip("needs records/mimic_iv_demo in ICAN_COHORTS")
    root = tmp_path_factory.mktemp("mimic")
    (root / "records").symlink_to(dataset)
    store = read_records(root)
    splits = pl.read_parquet(dataset / "metadata" / "subject_splits.parquet")

    def events(part: str) -> Events:
        subject = splits.filter(pl.col("split") == part)["subject_id"].sort().to_numpy()
        return history(store, subject, np.full(len(subject), np.datetime64("NaT", "us")))

    return events


@pytest.mark.parametrize("min_subjects", [1, 10])
def test_unseen_codes_back_off_to_what_stands_above_seen_ones(
    min_subjects: int, events_of: Callable[[str], Events]
) -> None:
    train = events_of("train")
    seen = {train.codes[position] for position in np.unique(train.code)}
    vocabulary = fit_vocabulary(train, min_subjects)
    above = {general for code in seen for general in back_off(code, train.parents)}
    for part, expected in UNSEEN_ROWS.items():
        events = events_of(part)
        ids, values, has_value = vocabulary.encode(events)
        unseen = np.array([code not in seen for code in events.codes])[events.code]
        assert unseen.sum() == expected
        assert len(ids) == len(events.code) == events.offsets[-1]
        assert (ids >= UNKNOWN).all()
        assert (ids[unseen] >= FIRST_KNOWN).all()
        assert part == "train" or (ids != UNKNOWN).all()
        assert {vocabulary.codes[i - FIRST_KNOWN] for i in np.unique(ids[unseen])} <= above | seen
        assert not has_value[unseen].any()
        assert np.isfinite(values).all()
        assert (values[~has_value] == 0).all()


def test_only_bare_rare_codes_of_training_itself_are_unknown(events_of: Callable[[str], Events]) -> None:
    train = events_of("train")
    ids, _, _ = fit_vocabulary(train, 10).encode(train)
    unknown = {train.codes[position] for position in train.code[ids == UNKNOWN]}
    assert (ids == UNKNOWN).sum() == 6
    assert all(code.startswith("Blood Pressure ") for code in unknown)
    assert not (fit_vocabulary(train, 1).encode(train)[0] == UNKNOWN).any()
