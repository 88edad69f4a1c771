"""One data file of a MEDS dataset, read in batches: what it holds, and which of its rows break the standard.

In: Parquet with the columns of ``meds.DataSchema``, of any length. Out: :class:`FileScan`, and violations, noted.
Memory grows with the number of subjects and of distinct codes, not of rows.

Rows are ordered by subject, then time, static rows (time null) first; so a batch needs only the last row of the one
before. Where a subject's first dated event precedes its birth, a second pass finds the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.asof import NAT, Int64, find_subjects
from ican_ml.cohort.checks import Problems, Rows
from ican_ml.cohort.files import each, open_parquet

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1 << 15
_NEVER = np.iinfo(np.int64).max
_BIRTH = "MEDS_BIRTH"
Bool = npt.NDArray[np.bool_]
Tell = Callable[[float], None]


@dataclass(slots=True)
class SubjectTimes:
    """Each subject's first dated event and its birth, int64 microseconds, the largest int64 = none; ids ascending."""

    subject_id: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    first: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    birth: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    _pending: list[tuple[Int64, Int64, Int64]] = field(default_factory=list)
    _n_pending: int = 0

    def add(self, subject_id: Int64, first: Int64, birth: Int64) -> None:
        """Add runs of rows; they are merged when they outnumber the subjects, so that few rows are sorted twice."""
        self._pending.append((subject_id, first, birth))
        self._n_pending += len(subject_id)
        if self._n_pending > max(1 << 18, 2 * len(self.subject_id)):
            self.merge()

    def merge(self) -> None:
        """Make the arrays hold all that was added."""
        subject, first, birth = map(
            np.concatenate, zip((self.subject_id, self.first, self.birth), *self._pending, strict=True)
        )
        self._pending, self._n_pending = [], 0
        order = np.argsort(subject, kind="stable")
        subject = subject[order]
        start = np.flatnonzero(np.diff(subject, prepend=subject[:1] - 1) != 0)
        self.subject_id = subject[start]
        if len(start):
            self.first, self.birth = (np.minimum.reduceat(part[order], start) for part in (first, birth))


@dataclass(kw_only=True, slots=True)
class FileScan:
    """Counts of one data file. Times are int64 microseconds; ``earliest > latest`` where nothing is dated."""

    n_rows: int = 0
    n_static: int = 0
    earliest: int = _NEVER
    latest: int = NAT
    codes: Counter[str] = field(default_factory=Counter)
    subjects: SubjectTimes = field(default_factory=SubjectTimes)


def scan_file(path: Path, file: str, problems: Problems, tell: Tell) -> FileScan:
    """Read a data file whose columns were checked.

    Parameters
    ----------
    path, file
        Where it lies, and its path in the cohort.
    problems
        Takes the violations.
    tell
        Called with the share of the file that was read, 0 to 1.
    """
    scan = FileScan()
    found = {name: Rows() for name in (*_FAULTS, "unsorted-subjects")}
    n_runs, last_subject, last_time = 0, None, NAT
    for batch in _batches(path, file, problems, tell):
        row = np.arange(scan.n_rows, scan.n_rows + len(batch.subject))
        scan.n_rows += len(row)
        usable = batch.has_subject & (batch.code >= 0)
        found["null-subject"].add(row[~batch.has_subject])
        found["null-code"].add(row[batch.code < 0])
        found["non-finite-value"].add(row[batch.non_finite])
        row, subject, time, code = (part[usable] for part in (row, batch.subject, batch.time, batch.code))
        if not len(row):
            continue
        n_of_code = np.bincount(code, minlength=len(batch.codes))
        scan.codes.update({name: int(n) for name, n in zip(batch.codes, n_of_code, strict=True) if n})
        before = np.concatenate(([subject[0] if last_subject is None else last_subject], subject[:-1]))
        same = subject == before
        same[0] &= last_subject is not None
        earlier = time < np.concatenate(([last_time], time[:-1]))
        found["unsorted-subjects"].add(row[subject < before])
        found["unsorted-times"].add(row[same & earlier])
        n_runs += int((~same).sum())
        last_subject, last_time = subject[-1], time[-1]
        dated = time != NAT
        scan.n_static += int((~dated).sum())
        if dated.any():
            scan.earliest, scan.latest = min(scan.earliest, int(time[dated].min())), max(scan.latest, int(time.max()))
        start = np.flatnonzero(np.concatenate(([True], ~same[1:])))
        moment = np.where(dated, time, _NEVER)
        birth = np.array([name == _BIRTH for name in batch.codes])[code]
        scan.subjects.add(
            subject[start],
            np.minimum.reduceat(moment, start),
            np.minimum.reduceat(np.where(birth, moment, _NEVER), start),
        )
    scan.subjects.merge()
    _note_order(found["unsorted-subjects"], n_runs - len(scan.subjects.subject_id), file, problems)
    _note_rows(found, file, problems)
    _note_before_birth(path, file, scan.subjects, problems)
    return scan


def rows_of(path: Path, wanted: Callable[[Int64, Int64], Bool]) -> Rows:
    """Rows that ``wanted`` marks, given their subjects and times: a second pass over a file that was read once."""
    rows, n_rows = Rows(), 0
    for batch in _batches(path, path.name, Problems(), lambda share: None):
        rows.add(n_rows + np.flatnonzero(batch.has_subject & wanted(batch.subject, batch.time)))
        n_rows += len(batch.subject)
    return rows


_FAULTS = {
    "null-subject": ("subject_id", "a subject_id in every row", "{} null", "remove these rows"),
    "null-code": ("code", "a code in every row", "{} null", "remove these rows"),
    "unsorted-times": (
        "time",
        "the rows of a subject by time, null first",
        "{} rows earlier than the one before",
        "sort by subject_id, then time, nulls first",
    ),
    "non-finite-value": (
        "numeric_value",
        "finite numbers or null",
        "{} others",
        "set them null: they are read as such",
    ),
}


def _note_rows(found: dict[str, Rows], file: str, problems: Problems) -> None:
    for fault, (column, expected, got, fix) in _FAULTS.items():
        if found[fault].count:
            problems.add(
                fault,
                file,
                column=column,
                rows=found[fault],
                severity="warning" if fault == "non-finite-value" else "error",
                expected=expected,
                got=got.format(found[fault].count),
                fix=fix,
            )


def _note_order(backwards: Rows, n_scattered: int, file: str, problems: Problems) -> None:
    if not backwards.count:
        return
    problems.add(
        "scattered-subjects" if n_scattered else "unsorted-subjects",
        file,
        column="subject_id",
        rows=backwards,
        expected="the rows of a subject together, subjects ascending",
        got=f"subject_id smaller than in the row before {backwards.count} times"
        + (f", {n_scattered} of them inside a subject's rows" if n_scattered else ""),
        fix="sort by subject_id, then time, nulls first",
    )


def _note_before_birth(path: Path, file: str, subjects: SubjectTimes, problems: Problems) -> None:
    early = (subjects.birth != _NEVER) & (subjects.first < subjects.birth)
    if not early.any():
        return
    who, birth = subjects.subject_id[early], subjects.birth[early]

    def wanted(subject: Int64, time: Int64) -> Bool:
        position, known = find_subjects(who, subject)
        early: Bool = known & (time != NAT) & (time < birth[position])
        return early

    rows = rows_of(path, wanted)
    problems.add(
        "before-birth",
        file,
        column="time",
        rows=rows,
        severity="warning",
        expected="events at or after MEDS_BIRTH",
        got=f"{rows.count} earlier rows of {len(who)} subjects",
        fix="correct the dates, or remove these rows",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    subject: Int64
    has_subject: Bool
    time: Int64
    codes: list[str]
    code: Int64
    non_finite: Bool


def _batches(path: Path, file: str, problems: Problems, tell: Tell) -> Iterator[_Batch]:
    stored = open_parquet(path, file, problems)
    if stored is None:
        return
    names = [name for name in ("subject_id", "time", "code", "numeric_value") if name in stored.schema_arrow.names]

    def read() -> Iterator[_Batch]:
        for batch in stored.iter_batches(batch_size=_BATCH, columns=names):
            yield _as_arrays(batch)

    n_rows = 0
    for batch in each(read(), "a Parquet file", file, problems):
        yield batch
        n_rows += len(batch.subject)
        tell(n_rows / max(stored.metadata.num_rows, 1))


def _as_arrays(batch: pa.RecordBatch) -> _Batch:
    import pyarrow as pa
    import pyarrow.compute as pc

    def whole(column: Any, absent: int) -> Int64:
        numbers: Int64 = column.cast(pa.int64()).fill_null(absent).to_numpy()
        return numbers

    subject, code = batch.column("subject_id"), batch.column("code")
    time = batch.column("time").cast(pa.timestamp("us"), safe=False)
    if not pa.types.is_dictionary(code.type) or code.dictionary.null_count:
        code = code.cast(pa.large_string()).dictionary_encode()
    non_finite = np.zeros(len(batch), bool)
    if "numeric_value" in batch.schema.names:
        value = batch.column("numeric_value").cast(pa.float64(), safe=False)
        non_finite = pc.invert(pc.is_finite(value)).fill_null(False).to_numpy(zero_copy_only=False)
    return _Batch(
        subject=whole(subject, 0),
        has_subject=subject.is_valid().to_numpy(zero_copy_only=False),
        time=whole(time, NAT),
        codes=code.dictionary.to_pylist(),
        code=whole(code.indices, -1),
        non_finite=non_finite,
    )
