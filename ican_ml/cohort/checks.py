"""What is wrong with a cohort, gathered so that one error names everything there is to fix.

A line names the file, what was expected, what was found and how to repair it. No line holds a subject or sample id.
"""

from __future__ import annotations

from collections.abc import Sequence


class CohortError(ValueError):
    """A cohort that cannot be used as it is; the message lists every problem found, one a line."""


class Problems:
    """Collects problems while a cohort is read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, file: str, *, expected: str, got: str, fix: str) -> None:
        """Note one problem."""
        self.lines.append(f"{file}: expected {expected}, got {got}; {fix}")

    def raise_if_any(self, name: str) -> None:
        """Raise one :class:`CohortError` with all problems of the cohort ``name``."""
        if self.lines:
            count = f"{len(self.lines)} problem{'s' if len(self.lines) > 1 else ''}"
            raise CohortError("\n".join([f"cohort {name}: {count}", *self.lines]))


def shown(names: Sequence[str], limit: int = 10) -> str:
    """Names for a message, cut after ``limit``; "none" where there are none."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
