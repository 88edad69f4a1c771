"""Figures of shift: what they count, and whom they never show."""

import numpy as np

from ican_ml.evaluation.shift import ColumnShift, RecordShift, unseen_names
from ican_ml.records.vocabulary import Events, Vocabulary


def test_columns_count_values_beyond_and_means_moved() -> None:
    shift = ColumnShift(["still", "moved", "rare"])
    rng = np.random.default_rng(0)
    for part in range(2):
        subject = np.repeat(np.arange(10), 2) + 10 * part
        z = rng.normal([0, 2, 0], 0.1, (20, 3))
        z[0, 0], known = 6.0, np.ones((20, 3), bool)
        known[:, 2] = subject < 4
        beyond, of = shift.add(z, known, subject)
        assert beyond.tolist() == [1] + [0] * 19
        assert np.array_equal(of, known.sum(axis=1))
    found = shift.to_dict()
    assert (found["columns"], found["moved_by_1_sd"]) == (2, 1)
    assert found["most_moved"][0]["column"] == "moved"
    assert found["beyond"] == 2 / 80
    assert "rare" not in str(found), "four subjects have it"
    assert ColumnShift(["a"], ranged=False).to_dict()["beyond"] is None


def test_records_count_what_is_understood() -> None:
    vocabulary = Vocabulary(codes=("A", "B"), normal={("A", "g"): (0.0, 1.0)}, parents={})
    n = 12
    events = Events(
        offsets=np.append(np.arange(n) * 3, [3 * n, 3 * n]).astype(np.int64),
        code=np.tile(np.array([0, 1, 2], np.int32), n),
        value=np.tile(np.array([1, 1, np.nan], np.float32), n),
        unit=np.tile(np.array([1, 0, 0], np.int32), n),
        gap=np.zeros(3 * n, np.float32),
        age=np.zeros(n + 1, np.float32),
        codes=("A", "B//1", "C"),
        units=("", "g"),
    )
    shift = RecordShift(vocabulary)
    shares = shift.add(events, np.append(np.arange(n), 0))
    assert np.allclose(shares["unknown"][:n], 1 / 3)
    assert np.isnan(shares["unknown"][n])
    found = shift.to_dict()
    assert (found["known"], found["backed_off"], found["unknown"]) == (1 / 3, 1 / 3, 1 / 3)
    assert found["values_kept"] == 0.5
    assert {(c["code"], c["understood"]) for c in found["commonest_unseen_codes"]} == {
        ("B//1", "backed off"),
        ("C", "not"),
    }
    few = RecordShift(vocabulary)
    few.add(events, np.append(np.arange(n) % 9, 0))
    assert few.to_dict()["commonest_unseen_codes"] == []
    assert few.to_dict()["unseen_codes"] == 2


def test_names_of_few_subjects_are_counted_and_not_shown() -> None:
    subject = np.arange(30) // 2
    unseen = [["X"] if row < 24 else ["Y", "X"] if row < 26 else [] for row in range(30)]
    found = unseen_names(unseen, subject)
    assert found == {"names": 2, "episodes": 26, "common": [{"name": "X", "episodes": 26, "subjects": 13}]}
    assert unseen_names([["Y"], []], np.array([1, 2]))["episodes"] is None
    assert unseen_names([[], []], np.array([1, 2])) == {"names": 0, "episodes": 0, "common": []}
