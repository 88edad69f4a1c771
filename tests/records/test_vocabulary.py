"""The vocabulary: no code is dropped, no value is read in the wrong unit, nothing describes a few people."""

import doctest
import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.records import vocabulary as module
from ican_ml.records.store import RecordStore, history
from ican_ml.records.vocabulary import UNKNOWN, Events, Vocabulary, back_off
from ican_ml.records.vocabulary_fit import fit_vocabulary

Row = tuple[int, str | None, str, float | None, str]
EventsOf = Callable[..., Events]


@pytest.fixture
def events_of(store_of: Callable[[Sequence[Row]], RecordStore]) -> EventsOf:
    """Give a function from (subject, code, value, unit) to events, one row a subject."""

    def make(*rows: tuple[int, str, float | None, str]) -> Events:
        store = store_of([(subject, "2020-01-01", code, value, unit) for subject, code, value, unit in rows])
        return history(store, store.subject_id, np.full(len(store.subject_id), np.datetime64("2020-01-02", "us")))

    return make


def codes(n: int, code: str) -> list[tuple[int, str, float | None, str]]:
    return [(subject, code, None, "") for subject in range(n)]


def test_codes_need_enough_subjects_not_enough_events(events_of: EventsOf) -> None:
    events = events_of(*codes(3, "COMMON"), *[(0, "OFTEN", None, "")] * 50)
    assert fit_vocabulary(events, min_subjects=3).codes == ("COMMON",)
    assert fit_vocabulary(events, min_subjects=1).codes == ("COMMON", "OFTEN")


def test_rare_codes_share_an_ancestor_that_enough_subjects_reach(events_of: EventsOf) -> None:
    events = events_of((0, "DX//C50.1", None, ""), (1, "DX//C50.9", None, ""), (2, "DX//C34", None, ""))
    vocabulary = fit_vocabulary(events, min_subjects=2)
    assert vocabulary.codes == ("DX", "DX//C", "DX//C50")
    ids, _, _ = vocabulary.encode(events)
    assert [vocabulary.codes[i - 2] for i in ids] == ["DX//C50", "DX//C50", "DX//C"]
    assert vocabulary.coverage(events)["backed_off"] == 1


def test_only_some_codes_are_known_with_all_below_them(events_of: EventsOf) -> None:
    events = events_of(*codes(2, "LAB//HGB"), *codes(2, "LAB//NLR"), *codes(2, "LABEL"), *codes(2, "SEX//F"))
    assert fit_vocabulary(events, 2, ["LAB"]).codes == ("LAB", "LAB//HGB", "LAB//NLR")
    vocabulary = fit_vocabulary(events, 2, ["LAB//NLR", "SEX//F"])
    assert vocabulary.codes == ("LAB//NLR", "SEX//F")
    assert vocabulary.coverage(events)["unknown"] == 0.5, "a code that is left out does not back off"


def test_parents_are_reached_too(events_of: EventsOf) -> None:
    events = events_of((0, "DRUG//A//START", None, ""), (1, "DRUG//A//START", None, ""))
    vocabulary = fit_vocabulary(events, min_subjects=2)
    assert "DRUGCLASS//X" in vocabulary.codes
    assert vocabulary.parents == {"DRUG//A//START": ("DRUGCLASS//X",)}


@pytest.mark.parametrize(
    ("code", "parents", "expected"),
    [
        ("A//B//C", {}, ["A//B", "A"]),
        ("ATC//L01XC18", {}, ["ATC//L01XC", "ATC//L01X", "ATC//L01", "ATC//L", "ATC"]),
        ("ICD10CM/I97.131", {}, ["ICD10CM/I97.13", "ICD10CM/I97.1", "ICD10CM/I97", "ICD10CM/I"]),
        ("DX//C509", {}, ["DX//C50", "DX//C", "DX"]),
        ("LAB//CA15-3", {}, ["LAB"]),
        ("X", {"X": ("Y", "Z"), "Y": ("W",)}, ["Y", "Z", "W"]),
        ("X", {"X": ("Y",), "Y": ("X", "Y")}, ["Y"]),
        ("A//X", {"A//X": ("P//Q",), "A": ("T",)}, ["P//Q", "A", "T", "P"]),
        ("", {}, []),
    ],
)
def test_back_off_goes_to_parents_then_to_shorter_forms(
    code: str, parents: dict[str, tuple[str, ...]], expected: list[str]
) -> None:
    assert list(back_off(code, parents)) == expected


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3).map(tuple)),
    st.sampled_from("abcdef"),
)
def test_back_off_ends_in_any_hierarchy(parents: dict[str, tuple[str, ...]], code: str) -> None:
    above = list(back_off(code, parents))
    assert len(above) == len(set(above))
    assert code not in above


def test_a_deep_lattice_is_quick() -> None:
    parents = {f"{i}{side}": (f"{i + 1}a", f"{i + 1}b") for i in range(2000) for side in "ab"}
    assert len(list(back_off("0a", parents))) == 4000


def test_unknown_codes_become_the_nearest_known_or_unknown_never_nothing() -> None:
    vocabulary = Vocabulary(codes=("DX//C50", "DRUGCLASS//X"), normal={}, parents={"DRUG//NEW": ("DRUGCLASS//X",)})
    assert vocabulary.id_of("DX//C50") == 2
    assert vocabulary.id_of("DX//C50.911") == 2
    assert vocabulary.id_of("DRUG//NEW") == 3
    assert vocabulary.id_of("DRUG//NEWER") == UNKNOWN


def test_a_hierarchy_that_comes_with_new_events_is_used(events_of: EventsOf) -> None:
    vocabulary = Vocabulary(codes=("DRUGCLASS//X",), normal={}, parents={})
    ids, _, _ = vocabulary.encode(events_of((0, "DRUG//A//START", None, ""), (0, "DRUG//B", None, "")))
    assert ids.tolist() == [2, UNKNOWN]


def hgb(n: int) -> list[tuple[int, str, float | None, str]]:
    grams = [(subject, "LAB//HGB", 100.0 + subject, "g/L") for subject in range(n)]
    return [*grams, *((subject, "LAB//HGB", 10 + subject / 10, "g/dL") for subject in range(n))]


def test_units_have_their_own_statistics(events_of: EventsOf) -> None:
    events = events_of(*hgb(41))
    vocabulary = fit_vocabulary(events, min_subjects=10)
    assert vocabulary.normal["LAB//HGB", "g/L"] == (120.0, pytest.approx(20 / 1.349))
    assert vocabulary.normal["LAB//HGB", "g/dL"] == (pytest.approx(12.0), pytest.approx(2 / 1.349, rel=1e-5))
    _, values, has_value = vocabulary.encode(events)
    by_unit = [np.sort(values[events.unit == unit]) for unit in (events.units.index("g/L"), events.units.index("g/dL"))]
    assert has_value.all()
    np.testing.assert_allclose(*by_unit, atol=1e-5)


def test_a_value_in_an_unseen_unit_or_of_a_backed_off_code_is_no_value(events_of: EventsOf) -> None:
    vocabulary = fit_vocabulary(events_of(*hgb(20)), min_subjects=10)
    events = events_of((0, "LAB//HGB", 7.0, "mmol/L"), (1, "LAB//HGB", 7.0, ""), (2, "LAB//HGB//POC", 110.0, "g/L"))
    ids, values, has_value = vocabulary.encode(events)
    assert ids.tolist() == [vocabulary.id_of("LAB//HGB")] * 3
    assert not has_value.any()
    assert not values.any()
    assert vocabulary.coverage(events)["values_kept"] == 0


def test_far_values_are_logarithmic_and_a_constant_has_scale_one(events_of: EventsOf) -> None:
    vocabulary = fit_vocabulary(events_of(*[(s, "X", 3.0, "") for s in range(10)]), min_subjects=10)
    assert vocabulary.normal == {("X", ""): (3.0, 1.0)}
    given = [1e30, -1e30, 4.0, 8.0, 503.0]
    _, values, has_value = vocabulary.encode(events_of(*[(s, "X", value, "") for s, value in enumerate(given)]))
    assert has_value.all()
    np.testing.assert_allclose(values, [15.0, -15.0, 1.0, 5.0, 5 + np.log(100)], rtol=1e-6)


def test_no_statistic_describes_a_few_people(events_of: EventsOf) -> None:
    events = events_of(*codes(10, "X"), *[(0, "X", float(i), "rare") for i in range(100)])
    assert fit_vocabulary(events, min_subjects=10).normal == {}


def test_coverage_counts_every_event(events_of: EventsOf) -> None:
    vocabulary = fit_vocabulary(events_of(*codes(10, "LAB//HGB"), *hgb(10)), min_subjects=10)
    events = events_of(
        (0, "LAB//HGB", 105.0, "g/L"), (0, "LAB//NEW", 1.0, ""), (1, "NEW", None, ""), (1, "LAB", None, "")
    )
    coverage = vocabulary.coverage(events)
    assert (coverage["events"], coverage["known"], coverage["backed_off"], coverage["unknown"]) == (4, 0.5, 0.25, 0.25)
    assert (coverage["valued_events"], coverage["values_kept"], coverage["values_far"]) == (2, 0.5, 0)


def test_general_ids_name_what_a_code_would_back_off_to(events_of: EventsOf) -> None:
    vocabulary = fit_vocabulary(events_of(*codes(3, "DX//C50.9"), *codes(3, "SEX")), min_subjects=3)
    general = vocabulary.general_ids()
    assert general.shape == (vocabulary.n_ids, 4)
    above = [vocabulary.id_of(code) for code in ("DX//C50", "DX//C", "DX")]
    assert general[vocabulary.id_of("DX//C50.9")].tolist() == [*above, UNKNOWN]
    assert general[vocabulary.id_of("DX//C")].tolist() == [vocabulary.id_of("DX"), UNKNOWN] * 2
    assert general[vocabulary.id_of("DX")].tolist() == general[vocabulary.id_of("SEX")].tolist() == [UNKNOWN] * 4
    assert general[:2].tolist() == [[0] * 4, [1] * 4]


def test_json_restores_the_same_bits(events_of: EventsOf) -> None:
    values = np.random.default_rng(0).lognormal(size=200).astype(np.float32)
    events = events_of(*[(s, f"LAB//{s % 3}", float(v), "u") for s, v in enumerate(values)])
    vocabulary = fit_vocabulary(events, min_subjects=5)
    document = json.loads(json.dumps(vocabulary.to_json()))
    assert document["encoding"] == "ican-vocabulary"
    assert document["version"] == 2
    restored = Vocabulary.from_json(document)
    assert restored == vocabulary
    for before, after in zip(vocabulary.encode(events), restored.encode(events), strict=True):
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("change", [{"encoding": "ican-aggregates"}, {"version": 1}, {"encoding": None}])
def test_other_documents_are_refused(change: dict[str, object]) -> None:
    document = Vocabulary(codes=(), normal={}, parents={}).to_json() | change
    with pytest.raises(ValueError, match="expected encoding 'ican-vocabulary' version 2"):
        Vocabulary.from_json(document)


def test_an_empty_record_is_encoded_to_nothing(events_of: EventsOf) -> None:
    empty = events_of()
    vocabulary = fit_vocabulary(empty, min_subjects=1)
    assert vocabulary.codes == ()
    assert [part.size for part in vocabulary.encode(empty)] == [0, 0, 0]
    assert vocabulary.coverage(empty)["known"] == 0


def test_wrong_input_is_explained(events_of: EventsOf) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fit_vocabulary(events_of(), min_subjects=0)
    none = np.empty(0, np.float32)
    with pytest.raises(ValueError, match=r"expected rows \+ 1 offsets"):
        Events(
            offsets=np.array([0, 1]), code=np.empty(0, np.int32), value=none, unit=np.empty(0, np.int32), gap=none,
            age=np.zeros(1, np.float32), codes=(),
        )  # fmt: skip


def test_docstring_examples() -> None:
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=1)
