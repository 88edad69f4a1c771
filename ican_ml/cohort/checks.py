"""What is wrong with a cohort, gathered so that one report names everything there is to fix.

A violation names its kind by a stable code, then the file, column and rows, what was expected, what was found and how
to repair it. An error breaks the format: a reader would refuse the cohort or misread it. A warning can be used as it
is, and is seldom what was meant. No violation holds a subject or sample id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Severity = Literal["error", "warning"]
_ROWS_SHOWN = 5


class CohortError(ValueError):
    """A cohort that cannot be used as it is; the message lists every problem found, one a line."""


@dataclass(kw_only=True, slots=True)
class Rows:
    """Numbers of the rows at fault, 0-based: the first few, and how many in all."""

    first: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, numbers: npt.NDArray[Any]) -> None:
        """Add row numbers, ascending."""
        self.count += len(numbers)
        self.first += numbers[: _ROWS_SHOWN - len(self.first)].tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One fault of a cohort.

    Attributes
    ----------
    code
        Kind of fault, such as ``unsorted-subjects``: stable, for programs.
    file
        Path in the cohort's folder.
    column
        Column, "" where the fault is not one column's.
    rows, n_rows
        First few row numbers, 0-based, and how many rows in all; 0 where the fault lies in no row.
    expected, got, fix
        What should be there, what is there, what to do about it.
    """

    code: str
    severity: Severity
    file: str
    column: str
    rows: tuple[int, ...]
    n_rows: int
    expected: str
    got: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: expected {self.expected}, got {self.got}; {self.fix}"


class Problems:
    """Collects violations while a cohort is read."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    @property
    def n_errors(self) -> int:
        """How many errors were noted so far."""
        return sum(violation.severity == "error" for violation in self.violations)

    def add(
        self,
        code: str,
        file: str,
        *,
        expected: str,
        got: str,
        fix: str,
        column: str = "",
        rows: Rows | None = None,
        severity: Severity = "error",
    ) -> None:
        """Note one violation."""
        rows = rows or Rows()
        self.violations.append(
            Violation(
                code=code,
                severity=severity,
                file=file,
                column=column,
                rows=tuple(rows.first),
                n_rows=rows.count,
                expected=expected,
                got=got,
                fix=fix,
            )
        )

    def add_where(
        self,
        wrong: npt.NDArray[np.bool_],
        code: str,
        file: str,
        *,
        column: str,
        expected: str,
        got: str,
        fix: str,
        severity: Severity = "error",
        numbers: npt.NDArray[Any] | None = None,
    ) -> None:
        """Note one violation if a mask marks any row; ``{}`` in ``got`` is their number.

        ``numbers`` are those of the rows in their file, where the mask covers a part of it.
        """
        rows = Rows()
        rows.add(np.flatnonzero(wrong) if numbers is None else numbers[wrong])
        if rows.count:
            got = got.replace("{}", str(rows.count))
            self.add(code, file, column=column, rows=rows, severity=severity, expected=expected, got=got, fix=fix)

    def raise_if_any(self, name: str) -> None:
        """Raise one :class:`CohortError` with all errors of the cohort ``name``; warnings do not raise."""
        lines = [str(violation) for violation in self.violations if violation.severity == "error"]
        if lines:
            count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
            raise CohortError("\n".join([f"cohort {name}: {count}", *lines]))


def shown(names: Sequence[str], limit: int = 10) -> str:
    """Names for a message, cut after ``limit``; "none" where there are none."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
