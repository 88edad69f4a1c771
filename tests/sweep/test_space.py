"""The search space as it is written, and what Optuna draws from."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ican_ml.sweep.space import read_space, written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.1, 0.5)", FloatDistribution(0.1, 0.5)),
        ("interval(1, 4)", FloatDistribution(1.0, 4.0)),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1, 4))", IntDistribution(1, 4)),
        ("tag(log, int(interval(1, 100)))", IntDistribution(1, 100, log=True)),
        ("range(32, 129, step=32)", IntDistribution(32, 128, step=32)),
        ("range(0.0, 1.0, step=0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("choice(32, 64)", CategoricalDistribution([32, 64])),
        ("32,64", CategoricalDistribution([32, 64])),
        ("choice(base, 'two words', true)", CategoricalDistribution(["base", "two words", True])),
    ],
)
def test_every_form_becomes_a_distribution(text: str, expected: object) -> None:
    assert read_space({"x": text}, []).distributions == {"x": expected}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("interval(2, 1)", "x: expected interval"),
        ("tag(log, interval(0, 1))", "a log scale starts above 0"),
        ("range(5, 5)", "the first number must be the smaller one"),
        ("range(1, 5, step=-1)", "the step must be positive"),
        ("tag(log, range(1, 9, step=2))", "a log scale has no steps"),
        ("tag(odd, interval(0, 1))", "the only tag is log, not odd"),
        ("choice([1, 2], 3)", "not \\[1, 2\\]"),
        ("choice(1, 1)", "the choices must differ"),
    ],
)
def test_nonsense_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_space({"x": text}, [])


def test_the_command_line_adds_fixes_and_replaces() -> None:
    params = {"a": "interval(0, 1)", "b": "choice(1, 2)", "c": "5"}
    space = read_space(params, ["b=2", "+d=choice(x, y)", "a=interval(2, 3)", "other=1"])
    assert space.distributions == {
        "d": CategoricalDistribution(["x", "y"]),
        "a": FloatDistribution(2.0, 3.0),
    }
    assert space.fixed == ("c=5", "b=2", "other=1")
    assert space.overrides({"a": 2.5, "d": "x"}) == ["a=2.5", "+d='x'"]
    assert space.overrides({"d": "x"}, groups=["d"]) == ["+d=x"]
    assert space.corners() == [{"d": "x", "a": 2.0}, {"d": "y", "a": 3.0}]


def test_nothing_to_search_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.params: expected at least one parameter"):
        read_space({"a": "1"}, ["b=2"])


@pytest.mark.parametrize("value", [None, True, 3, 1e-05, "plain", "it's", "a\\", "{x: 1}", "sqlite:////a b/c?d=e"])
def test_values_are_read_back_as_they_were(value: object) -> None:
    assert OverridesParser.create().parse_override(f"x={written(value)}").value() == value
