"""What became of every row or resource of a source: converted, or left for one of a closed list of reasons."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why something of a source is not in the cohort; :data:`MEANING` says what each means and what to do."""

    CONFLICT = "conflict"
    DUPLICATE = "duplicate"
    NO_CODE = "no-code"
    NO_SPLIT = "no-split"
    NO_SUBJECT = "no-subject"
    NO_TIME = "no-time"
    NO_VALUE = "no-value"
    NOT_DONE = "not-done"
    NOT_FINITE = "not-finite"
    NOT_UNDERSTOOD = "not-understood"
    SPLIT_CONFLICT = "split-conflict"
    UNKNOWN_SUBJECT = "unknown-subject"
    UNREADABLE = "unreadable"
    UNUSED_TYPE = "unused-type"


MEANING = {
    Reason.CONFLICT: "it says something else than another of the same subject and time: keep the right one",
    Reason.DUPLICATE: "it is there again, in a later version or the same: nothing to do",
    Reason.NO_CODE: "it has no code of its own, or no gene, only text at most: code it in the source",
    Reason.NO_SPLIT: "its subject is in none of train, tuning, held_out where others are: add it there",
    Reason.NO_SUBJECT: "it names no patient of the source: add the patient, or correct the reference",
    Reason.NO_TIME: "it has no time that can be read, and would count as known always: date it in the source",
    Reason.NO_VALUE: "it says that nothing was found out, or nothing that is used: nothing to do",
    Reason.NOT_DONE: "it was cancelled, refuted, entered in error or only planned: nothing to do",
    Reason.NOT_FINITE: "its value is infinite or no number: repair it in the source",
    Reason.NOT_UNDERSTOOD: "an extension changes its meaning: resolve it in the source",
    Reason.SPLIT_CONFLICT: "its subject lies in two splits: let folders and subject_splits.parquet say the same",
    Reason.UNKNOWN_SUBJECT: "its subject has no records: use the same subject_id in both",
    Reason.UNREADABLE: "it is damaged, or no resource: repair the file, or export it again",
    Reason.UNUSED_TYPE: "events are not made of this type: nothing to do",
}


class Accounting:
    """Counts by table (or type of resource): read = converted + left."""

    def __init__(self) -> None:
        self._read: Counter[str] = Counter()
        self._converted: Counter[str] = Counter()
        self._left: Counter[tuple[str, Reason]] = Counter()

    def read(self, table: str, n: int = 1) -> None:
        """Count what was read."""
        self._read[table] += n

    def converted(self, table: str, n: int = 1) -> None:
        """Count what is in the cohort."""
        self._converted[table] += n

    def left(self, table: str, reason: Reason, n: int = 1) -> None:
        """Count what is not."""
        self._left[table, reason] += n

    def check(self) -> None:
        """Assert that nothing is missing or counted twice."""
        counted = Counter(self._converted)
        for (table, _), n in self._left.items():
            counted[table] += n
        assert counted == self._read, "rows read differ from those converted and left"

    def to_json(self) -> dict[str, Any]:
        """By table: ``read``, ``converted`` and ``left`` by reason."""
        return {
            table: {
                "read": self._read[table],
                "converted": self._converted[table],
                "left": {reason.value: n for reason in Reason if (n := self._left[table, reason])},
            }
            for table in sorted(self._read)
        }

    def table(self) -> str:
        """Summary: one line a table, then one line a reason with what it means."""
        width = max([len("table"), *map(len, self._read)])
        lines = [f"{'table':{width}}  {'read':>12}  {'converted':>12}  {'left':>12}"]
        for table, row in self.to_json().items():
            n_left = sum(row["left"].values())
            lines.append(f"{table:{width}}  {row['read']:>12,}  {row['converted']:>12,}  {n_left:>12,}")
        for reason in Reason:
            n = sum(n for (_, other), n in self._left.items() if other is reason)
            if n:
                lines.append(f"{n:,} left, {reason.value}: {MEANING[reason]}")
        return "\n".join(lines)
