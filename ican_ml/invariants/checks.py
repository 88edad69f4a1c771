"""What the checks share: how far two results differ, and the one error that says so. NumPy alone.

A check is a function without arguments that raises :class:`InvariantError` or returns. Checks come as pairs of name and
function, in the manner of scikit-learn's common checks, so that pytest can take them one by one:

    @pytest.mark.parametrize(("name", "check"), model_checks(network, schema))
    def test_network(name, check):
        check()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Check = Callable[[], None]
Checks = Iterator[tuple[str, Check]]
Subject = TypeVar("Subject")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One invariant that does not hold.

    Attributes
    ----------
    invariant
        Its name.
    changed
        What was changed that should have changed nothing.
    expected, got
        What should have come, and what came.
    difference
        How far apart: absolute up to 1, relative beyond; ``inf`` = another shape, type or text, not finite, no answer.
    """

    changed: str
    expected: str
    got: str
    difference: float = math.inf
    invariant: str = ""

    def __str__(self) -> str:
        return f"{self.invariant}: {self.changed}: expected {self.expected}, got {self.got}"


class InvariantError(AssertionError):
    """One line for every invariant that does not hold; ``failures`` has them one by one."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__("\n".join(map(str, failures)))
        self.failures = tuple(failures)


def named(checks: Sequence[Callable[[Subject], None]], subject: Subject, prefix: str = "") -> Checks:
    """Pairs of name and check; the name is the function's, in plain words."""
    for check in checks:
        name = prefix + check.__name__.strip("_").replace("_", " ")
        yield name, partial(_run, name, check, subject)


def run_all(checks: Iterable[tuple[str, Check]]) -> None:
    """Run every check, then raise one error for all that failed.

    Raises
    ------
    InvariantError
        If any of them does not hold.
    """
    failures: list[Failure] = []
    for _, check in checks:
        try:
            check()
        except InvariantError as error:
            failures += error.failures
    if failures:
        raise InvariantError(failures)


def demand_same(changed: str, found: Any, expected: Any, *, tolerance: float = 0.0) -> None:
    """Raise unless two results are the same, bit for bit or within a tolerance (see :func:`difference`).

    Raises
    ------
    InvariantError
        Naming what was changed, where the largest difference lies and how large it is.
    """
    size, where = difference(found, expected)
    if not size <= tolerance:
        same, got = f"the same {where or 'result'}", f"a difference of {size:.3g}"
        raise InvariantError([Failure(changed=changed, expected=same, got=got, difference=size)])


def demand_finite(changed: str, arrays: Mapping[str, Array]) -> None:
    """Raise unless every number is finite.

    Raises
    ------
    InvariantError
        Naming what was changed and the first array that is not finite.
    """
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise InvariantError([Failure(changed=changed, expected=f"finite {name}", got="NaN or infinity")])


def difference(found: Any, expected: Any, where: str = "") -> tuple[float, str]:
    """Largest difference between two results, and where: nested mappings and sequences of arrays, numbers and texts.

    Parameters
    ----------
    found, expected
        Of arrays and numbers ``|found - expected| / max(1, |expected|)`` counts; two NaN are the same.
    where
        Name of what is compared.

    Returns
    -------
    tuple of float and str
        0 = all the same; ``inf`` = another shape, type, key or text, or a NaN on one side.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or found.keys() != expected.keys():
            return math.inf, where
        parts = ((found[key], expected[key], str(key)) for key in expected)
    elif isinstance(expected, list | tuple) and not _is_numbers(expected):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return math.inf, where
        parts = ((f, e, "") for f, e in zip(found, expected, strict=True))
    elif isinstance(expected, np.ndarray | np.generic | list | tuple | float | int) and not isinstance(expected, bool):
        return _distance(found, expected), where
    else:
        return (0.0 if found == expected else math.inf), where
    each = (difference(f, e, f"{where}.{key}".strip(".") if key else where) for f, e, key in parts)
    return max(each, key=lambda part: part[0], default=(0.0, where))


def _is_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, float | int) and not isinstance(value, bool) for value in values)


def _distance(found: Any, expected: Any) -> float:
    first, second = np.asarray(found), np.asarray(expected)
    if first.shape != second.shape or first.dtype != second.dtype or second.dtype.kind not in "fiub":
        return 0.0 if first.shape == second.shape and np.array_equal(first, second) else math.inf
    if np.array_equal(first, second, equal_nan=second.dtype.kind == "f"):
        return 0.0
    first, second = first.astype(np.float64), second.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(first - second) / np.maximum(1.0, np.abs(second)))
    return float(np.where(np.isnan(apart), math.inf, apart).max())


def _run(name: str, check: Callable[[Subject], None], subject: Subject) -> None:
    try:
        check(subject)
    except InvariantError as error:
        raise InvariantError([replace(failure, invariant=name) for failure in error.failures]) from None
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        failure = Failure(invariant=name, changed="patients invented from the schema", expected="an answer", got=said)
        raise InvariantError([failure]) from error
