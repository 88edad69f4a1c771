"""Every row read is converted or left for a reason that is explained."""

import pytest

from ican_ml.cohort.accounting import MEANING, Accounting, Reason


def _tally() -> Accounting:
    tally = Accounting()
    tally.read("visits", 5)
    tally.converted("visits", 3)
    tally.left("visits", Reason.NO_TIME, 2)
    return tally


def test_every_reason_says_what_it_means_and_what_to_do() -> None:
    assert set(MEANING) == set(Reason)
    assert all(": " in meaning for meaning in MEANING.values())


def test_what_was_read_was_converted_or_left() -> None:
    _tally().check()
    assert _tally().to_json() == {"visits": {"read": 5, "converted": 3, "left": {"no-time": 2}}}


@pytest.mark.parametrize("count", ["read", "converted"])
def test_a_row_that_is_missing_or_counted_twice_is_found(count: str) -> None:
    tally = _tally()
    getattr(tally, count)("visits")
    with pytest.raises(AssertionError, match="rows read"):
        tally.check()


def test_the_summary_names_tables_and_reasons() -> None:
    first, table, reason = _tally().table().split("\n")
    assert first.split() == ["table", "read", "converted", "left"]
    assert table.split() == ["visits", "5", "3", "2"]
    assert reason.startswith("2 left, no-time: ")
