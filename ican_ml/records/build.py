"""Builds a record store on disk from events of any number, in any order, in bounded memory.

In: sources (files) of events, chunk by chunk. Out: a folder (format ``ican-records/1``) of flat arrays that
:func:`open_store` memory-maps as a :class:`~ican_ml.records.store.RecordStore`: many processes share one copy, and only
what is read is loaded.

Every chunk becomes a *run*, sorted by subject. When all sources are there, ranges of subjects are gathered from the
runs, sorted by :func:`~ican_ml.records.store.build_store` and written to their place. So how events were spread over
sources and chunks leaves no trace, and memory grows with a chunk, a range and the number of subjects, not with the
events. A source whose runs are complete is not read again: a build that was stopped goes on. Of several processes that
want one store, one builds it while the others wait.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import row_pieces
from ican_ml.records.store import RecordStore, Times, build_store, is_birth_or_death
from ican_ml.records.vocabulary import Float32, Int64

FORMAT = "ican-records/1"
RANGE_EVENTS = 1 << 20
_ROW = np.dtype([("subject", "<i8"), ("time", "<i8"), ("code", "<i4"), ("unit", "<i4"), ("value", "<f4")])
_COLUMNS = {"time": "<M8[us]", "code": "<i4", "value": "<f4", "unit": "<i4"}
_SUBJECTS = {"subject_id": "<i8", "birth": "<M8[us]", "death": "<M8[us]"}
ARRAYS = (*_COLUMNS, *_SUBJECTS, "offsets")
Rows = npt.NDArray[Any]


class Chunk(NamedTuple):
    """Events in any order; NaT = static, NaN = no value; ``code`` and ``unit`` are positions in the two lists."""

    subject_id: Int64
    time: Times
    code: Int64
    value: Float32
    unit: Int64
    codes: Sequence[str]
    units: Sequence[str]


def open_store(folder: Path) -> RecordStore:
    """Memory-map a finished store.

    Raises
    ------
    ValueError
        If the folder holds another format.
    """
    document = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    if document.get("format") != FORMAT:
        raise ValueError(
            f"{folder.name}: expected format {FORMAT!r}, got {document.get('format')!r}; remove the folder"
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    parents = {code: tuple(above) for code, above in document["parents"].items()}
    return RecordStore(**arrays, codes=tuple(document["codes"]), units=tuple(document["units"]), parents=parents)


def build(
    folder: Path,
    sources: Mapping[str, Callable[[], Iterable[Chunk]]],
    parents: Mapping[str, Sequence[str]],
    *,
    range_events: int = RANGE_EVENTS,
    workers: int | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> RecordStore:
    """Build the store in ``folder``, or open the one that is there.

    Parameters
    ----------
    folder
        Named by the contents of the sources; what is built lies in ``<folder>.part`` until it is complete.
    sources
        By a name that stands for its contents: a function that reads a source's events.
    parents
        Code to the codes above it.
    range_events
        Events sorted at a time; one subject's are never parted.
    workers
        Threads; the number of cores, at most 4, where None.
    tell
        Called with the share of the work that is done, 0 to 1.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "store.json").exists():
            _build(folder, sources, parents, range_events, workers or min(4, os.cpu_count() or 1), tell)
    return open_store(folder)


def _build(
    folder: Path,
    sources: Mapping[str, Callable[[], Iterable[Chunk]]],
    parents: Mapping[str, Sequence[str]],
    range_events: int,
    workers: int,
    tell: Callable[[float], None],
) -> None:
    work = folder.with_name(folder.name + ".part")
    (work / "runs").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_sort, work / "runs", name, read) for name, read in sources.items()]
        for n, job in enumerate(jobs, start=1):
            job.result()
            tell(0.5 * n / len(jobs))
        _merge(work, sorted(sources), parents, range_events, pool, tell)
    shutil.rmtree(work / "runs")
    work.rename(folder)


def _sort(runs: Path, name: str, read: Callable[[], Iterable[Chunk]]) -> None:
    """Write a source's runs, and last the names of its codes and units."""
    done = runs / f"{name}.json"
    if done.exists():
        return
    codes: dict[str, int] = {}
    units: dict[str, int] = {}
    n_runs = 0
    for chunk in read():
        rows = np.empty(len(chunk.subject_id), _ROW)
        order = np.argsort(chunk.subject_id, kind="stable")
        rows["subject"], rows["value"] = chunk.subject_id[order], chunk.value[order]
        rows["time"] = chunk.time[order].astype("datetime64[us]").view(np.int64)
        rows["code"] = _numbers(codes, chunk.codes)[chunk.code[order]]
        rows["unit"] = _numbers(units, chunk.units)[chunk.unit[order]]
        np.save(runs / f"{name}-{n_runs}.npy", rows)
        n_runs += 1
    written = done.with_suffix(".part")
    written.write_text(json.dumps({"runs": n_runs, "codes": list(codes), "units": list(units)}), encoding="utf-8")
    written.rename(done)


class _Run(NamedTuple):
    """A run on disk, and the numbers of its codes and units in the whole store."""

    path: Path
    code: Int64
    unit: Int64

    def rows(self) -> Rows:
        rows: Rows = np.load(self.path, mmap_mode="r")
        return rows


def _merge(
    work: Path,
    sources: list[str],
    parents: Mapping[str, Sequence[str]],
    range_events: int,
    pool: ThreadPoolExecutor,
    tell: Callable[[float], None],
) -> None:
    found = {name: json.loads((work / "runs" / f"{name}.json").read_text(encoding="utf-8")) for name in sources}
    codes = sorted({code for each in found.values() for code in each["codes"]})
    units = sorted({"", *(unit for each in found.values() for unit in each["units"])})
    runs = [
        _Run(work / "runs" / f"{name}-{n}.npy", _places(codes, each["codes"]), _places(units, each["units"]))
        for name, each in found.items()
        for n in range(each["runs"])
    ]
    subjects, n_rows, n_events = _count(runs, is_birth_or_death(codes))
    offsets = np.append(0, np.cumsum(n_events)).astype(np.int64)
    out = {name: _new(work, name, kind, offsets[-1]) for name, kind in _COLUMNS.items()}
    out |= {name: _new(work, name, kind, len(subjects)) for name, kind in _SUBJECTS.items()}
    ranges = row_pieces(np.append(0, np.cumsum(n_rows)), range_events)

    def place(first: int, last: int) -> None:
        store = _gather(runs, subjects[first], subjects[last - 1], codes, units)
        for name in _COLUMNS:
            out[name][offsets[first] : offsets[last]] = getattr(store, name)
        for name in _SUBJECTS:
            out[name][first:last] = getattr(store, name)

    jobs = [pool.submit(place, *bounds) for bounds in ranges]
    for n, job in enumerate(jobs, start=1):
        job.result()
        tell(0.5 + 0.5 * n / len(jobs))
    for array in out.values():
        array.flush()
    np.save(work / "offsets.npy", offsets)
    document = {"format": FORMAT, "codes": codes, "units": units, "parents": {c: list(a) for c, a in parents.items()}}
    (work / "store.json").write_text(json.dumps(document), encoding="utf-8")


def _count(runs: list[_Run], left_out: npt.NDArray[np.bool_]) -> tuple[Int64, Int64, Int64]:
    """Subjects, ascending; the rows of each, and those of them that become events."""
    subjects, n_rows, n_events = (np.empty(0, np.int64) for _ in range(3))
    for run in runs:
        rows = run.rows()
        subject, place = np.unique(rows["subject"], return_inverse=True)
        kept = ~left_out[run.code[rows["code"]]]
        subjects, position = np.unique(np.append(subjects, subject), return_inverse=True)
        old, new = position[: len(n_rows)], position[len(n_rows) :]
        counts = np.zeros((2, len(subjects)), np.int64)
        counts[0, old], counts[1, old] = n_rows, n_events
        counts[0, new] += np.bincount(place, minlength=len(subject))
        counts[1, new] += np.bincount(place[kept], minlength=len(subject))
        n_rows, n_events = counts
    return subjects, n_rows, n_events


def _gather(runs: list[_Run], first: int, last: int, codes: list[str], units: list[str]) -> RecordStore:
    """Store of the subjects first to last, from all runs."""
    parts = []
    for run in runs:
        rows = run.rows()
        part = rows[np.searchsorted(rows["subject"], first) : np.searchsorted(rows["subject"], last, side="right")]
        parts.append((part, run.code[part["code"]], run.unit[part["unit"]]))
    rows = np.concatenate([part for part, _, _ in parts])
    return build_store(
        subject_id=rows["subject"],
        time=rows["time"].view("datetime64[us]"),
        code=np.concatenate([code for _, code, _ in parts]),
        value=rows["value"],
        unit=np.concatenate([unit for _, _, unit in parts]),
        codes=codes,
        units=units,
        parents={},
    )


def _new(work: Path, name: str, kind: str, size: int) -> Any:
    return np.lib.format.open_memmap(work / f"{name}.npy", mode="w+", dtype=np.dtype(kind), shape=(int(size),))


def _numbers(known: dict[str, int], names: Sequence[str]) -> Int64:
    """Number of each name, in the order of their first use."""
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def _places(all_names: list[str], names: list[str]) -> Int64:
    place = {name: i for i, name in enumerate(all_names)}
    return np.array([place[name] for name in names], np.int64)
