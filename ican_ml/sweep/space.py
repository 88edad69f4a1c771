"""The search space, in Hydra's own override syntax, as distributions of Optuna.

    training.learning_rate   tag(log, interval(1e-4, 1e-2))     a number between two, drawn on the log scale
    model.width              choice(32, 64, 128)                one of these; any list of values, or of configurations
    training.batch_size      range(32, 129, step=32)            steps; like Python's, without the end
    model.fusion_layers      int(interval(1, 4))                a whole number, ends included
    training.epochs          20                                 fixed

The command line adds, fixes and replaces entries of the configured space by naming them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    OverrideType,
    Quote,
    QuotedString,
    RangeSweep,
)

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from optuna.distributions import BaseDistribution

_SYNTAX = "expected interval(low, high), range(start, stop), choice(a, b) or a value"


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """What is searched, and what is fixed.

    Attributes
    ----------
    distributions
        Name -> distribution.
    texts
        Name -> what was written.
    prefix
        Name -> what stands before it in an override, like ``+``; only where something does.
    fixed
        Overrides of every trial.
    """

    distributions: dict[str, BaseDistribution]
    texts: dict[str, str]
    prefix: dict[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    def overrides(self, values: Mapping[str, Any], groups: Sequence[str] = ()) -> list[str]:
        """These parameters as overrides; ``groups`` are names of configuration groups."""
        return [
            f"{self.prefix.get(name, '')}{name}={value if name in groups else written(value)}"
            for name, value in values.items()
        ]

    def corners(self) -> list[dict[str, Any]]:
        """A few points of the space in which every end and choice occurs: do they work?"""
        from optuna.distributions import CategoricalDistribution

        ends = {
            name: list(known.choices) if isinstance(known, CategoricalDistribution) else [known.low, known.high]  # type: ignore[attr-defined]
            for name, known in self.distributions.items()
        }
        most = max(map(len, ends.values()))
        return [{name: values[point % len(values)] for name, values in ends.items()} for point in range(most)]


def read_space(params: Mapping[str, str], arguments: Sequence[str], loader: ConfigLoader | None = None) -> Space:
    """Parse the configured space and the command line, which has the last word.

    Raises
    ------
    ValueError
        If an entry makes no sense, or none is left to search.
    hydra.errors.HydraException
        If an entry cannot be parsed.
    """
    parser = OverridesParser.create(config_loader=loader)
    found: dict[str, Override] = {}
    lines = [f"{name}={text}" for name, text in params.items()]
    for override in [*parser.parse_overrides(lines), *parser.parse_overrides(list(arguments))]:
        found.pop(override.key_or_group, None)
        found[override.key_or_group] = override
    searched = {name: override for name, override in found.items() if override.is_sweep_override()}
    if not searched:
        raise ValueError(
            "hydra.sweeper.params: expected at least one parameter to search, got none; choose a space, like "
            'sweep=response, or name one: "training.learning_rate=tag(log, interval(1e-4, 1e-2))"'
        )
    return Space(
        distributions={name: _distribution(name, override) for name, override in searched.items()},
        texts={name: override.get_value_string() for name, override in searched.items()},
        prefix={name: _prefix(override) for name, override in searched.items() if _prefix(override)},
        fixed=tuple(str(override.input_line) for override in found.values() if not override.is_sweep_override()),
    )


def written(value: Any) -> str:
    """A value as Hydra's override grammar reads it back."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return QuotedString(value, Quote.single).with_quotes() if isinstance(value, str) else repr(value)


def _prefix(override: Override) -> str:
    return {OverrideType.ADD: "+", OverrideType.FORCE_ADD: "++"}.get(override.type, "")


def _distribution(name: str, override: Override) -> BaseDistribution:
    value, text = override.value(), override.get_value_string()
    try:
        if isinstance(value, IntervalSweep):
            return _interval(value)
        if isinstance(value, RangeSweep):
            return _range(value)
        return _choice(list(value.list) if isinstance(value, ChoiceSweep) else list(override.sweep_iterator()))
    except ValueError as error:
        raise ValueError(f"{name}: {_SYNTAX}, got {text} ({error})") from None


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    return _numbers(low, high, 1 if isinstance(low, int) else None, sweep)


def _range(sweep: RangeSweep) -> BaseDistribution:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None
    assert stop is not None
    if step <= 0:
        raise ValueError("the step must be positive")
    last = start + step * (math.ceil((stop - start) / step - 1e-9) - 1)
    return _numbers(start, last, step, sweep)


def _numbers(
    low: int | float, high: int | float, step: int | float | None, sweep: IntervalSweep | RangeSweep
) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    log = "log" in sweep.tags
    if unknown := sorted(sweep.tags - {"log"}):
        raise ValueError(f"the only tag is log, not {', '.join(unknown)}")
    if not low < high:
        raise ValueError("the first number must be the smaller one")
    if log and low <= 0:
        raise ValueError("a log scale starts above 0")
    if isinstance(low, int) and isinstance(step, int):
        if log and step != 1:
            raise ValueError("a log scale has no steps")
        return IntDistribution(low, int(high), log=log, step=step)
    if log and step is not None:
        raise ValueError("a log scale has no steps")
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _choice(values: Sequence[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution

    plain = [value.text if isinstance(value, QuotedString) else value for value in values]
    if wrong := [value for value in plain if isinstance(value, list | dict)]:
        raise ValueError(f"a choice is among numbers, words, true, false and null, not {wrong[0]}")
    if len(set(map(repr, plain))) != len(plain) or not plain:
        raise ValueError("the choices must differ")
    return CategoricalDistribution(plain)
