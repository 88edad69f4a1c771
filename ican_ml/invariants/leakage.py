"""What no data path may do: learn from the future, or from subjects that it is not trained on. Shown by rebuilding.

In: a function from a cohort folder to what it derives, and a cohort. The cohort is copied, the copy changed where the
result must not depend on it, and everything is derived again: what must be the same must be so bit for bit.

=======================  ==========================================================  ==================================
invariant                what is changed                                             what must stay
=======================  ==========================================================  ==================================
future                   all events and samples after each subject's last episode    everything
future of an episode     those after the first episode of some held-out subjects     all but their later episodes
tuning subjects          everything of the tuning subjects                           ``fitted``; other episodes' inputs
held-out subjects        everything of half of the held-out subjects                 all but their own episodes
=======================  ==========================================================  ==================================
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ican_ml.invariants.checks import Checks, Failure, InvariantError, difference, run_all
from ican_ml.invariants.edits import EVERYTHING, FUTURE, Edit, is_open

Build = Callable[[Path], Mapping[str, Any]]

_BY_EPISODE = ("inputs", "predictions")


def check_leakage(build: Build, cohort_folder: Path, scratch: Path, *, seed: int = 0) -> None:
    """Run every check of :func:`leakage_checks`.

    Raises
    ------
    InvariantError
        Naming every invariant that does not hold, what was changed, and how far which result differs.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    checks = list(leakage_checks(build, cohort_folder, scratch, seed=seed))
    run_all(tqdm(checks, disable=None, unit="check"))


def leakage_checks(build: Build, cohort_folder: Path, scratch: Path, *, seed: int = 0) -> Checks:
    """Checks of a data path, by name; the unchanged cohort is built once, at the first of them.

    Parameters
    ----------
    build
        From a cohort folder to a dictionary of arrays, numbers, texts, sequences and mappings of these:

        - ``split``: row numbers of the episodes, in the order of the file, by ``train``, ``tuning``, ``held_out``
        - ``fitted``: what training rows alone decide (vocabularies, statistics)
        - ``tuned``: what training and tuning rows decide (strengths, epochs, weights); optional
        - ``inputs``, ``predictions``: name to one entry an episode; optional. Predictions may depend on tuning rows

        :func:`ican_ml.invariants.derive.derive` is the package's own.
    cohort_folder
        The cohort, format ``ican-cohort/1``; it stays as it is.
    scratch
        An empty folder for the changed copies.
    seed
        Of the choices of what is changed, and how.
    """
    bench = _Bench(build, cohort_folder, scratch, seed)
    for name, change in _CHANGES.items():
        yield name, partial(bench.check, name, change)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """Whose data since when is changed in which ways, and whether tuning may follow it."""

    since: pl.DataFrame
    edits: tuple[Edit, ...]
    tunes: bool = False


class _Bench:
    def __init__(self, build: Build, cohort: Path, scratch: Path, seed: int) -> None:
        self.build, self.cohort, self.scratch, self.seed = build, cohort, scratch, seed
        self._derived: Mapping[str, Any] | None = None

    @property
    def derived(self) -> Mapping[str, Any]:
        """What the cohort as it is leads to."""
        if self._derived is None:
            self._derived = self.build(self.cohort)
        return self._derived

    @property
    def episodes(self) -> pl.DataFrame:
        columns = ["subject_id", "prediction_time"]
        return pl.read_parquet(self.cohort / "episodes.parquet", columns=columns)

    def subjects(self, part: str) -> pl.Series:
        """Subjects of a part of the split, ascending."""
        rows = np.asarray(self.derived["split"][part], np.int64)
        return self.episodes["subject_id"][rows].unique().sort()

    def check(self, name: str, plan: Callable[[_Bench], _Change]) -> None:
        change = plan(self)
        if not len(change.since):
            return
        size, where = self._differs(change, change.edits)
        if not size > 0:
            return
        alone = [edit for edit in change.edits if self._differs(change, (edit,))[0] > 0]
        what = ", ".join(edit.__name__.removeprefix("change_") for edit in alone or change.edits)
        changed = f"{what} of {len(change.since)} subjects changed"
        got = f"a difference of {size:.3g}"
        failure = Failure(invariant=name, changed=changed, expected=f"the same {where}", got=got, difference=size)
        raise InvariantError([failure])

    def _differs(self, change: _Change, edits: Sequence[Edit]) -> tuple[float, str]:
        folder = self.scratch / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.cohort, folder)
        for edit in edits:
            edit(folder, change.since, np.random.default_rng(self.seed))
        found = self.build(folder)
        shutil.rmtree(folder)
        rows = np.flatnonzero(~is_open(self.episodes, change.since, "prediction_time").to_numpy())
        free = {"tuned", "predictions"} if change.tunes else set()
        parts = [
            difference(_rows(found[name], rows), _rows(value, rows), name)
            if name in _BY_EPISODE
            else difference(found[name], value, name)
            for name, value in self.derived.items()
            if name not in free
        ]
        return max(parts, key=lambda part: part[0])


def _rows(values: Mapping[str, Sequence[Any]], rows: np.ndarray[Any, Any]) -> dict[str, list[Any]]:
    return {name: [each[row] for row in rows] for name, each in values.items()}


def _times(bench: _Bench) -> pl.DataFrame:
    """First and last prediction time of every subject whose episodes all have one."""
    time = pl.col("prediction_time")
    columns = [time.min().alias("first"), time.max().alias("last"), time.null_count().alias("undated")]
    return bench.episodes.group_by("subject_id", maintain_order=True).agg(columns).filter(pl.col("undated") == 0)


def _future(bench: _Bench) -> _Change:
    return _Change(since=_times(bench).select("subject_id", pl.col("last").alias("since")), edits=FUTURE)


def _future_of_an_episode(bench: _Bench) -> _Change:
    chosen = pl.col("subject_id").is_in(_half(bench.subjects("held_out"), bench.seed).implode())
    several = _times(bench).filter(chosen & (pl.col("first") < pl.col("last")))
    return _Change(since=several.select("subject_id", pl.col("first").alias("since")), edits=FUTURE)


def _tuning_subjects(bench: _Bench) -> _Change:
    return _Change(since=_whole(bench.subjects("tuning")), edits=EVERYTHING, tunes=True)


def _held_out_subjects(bench: _Bench) -> _Change:
    return _Change(since=_whole(_half(bench.subjects("held_out"), bench.seed)), edits=EVERYTHING)


_CHANGES: dict[str, Callable[[_Bench], _Change]] = {
    "future": _future,
    "future of an episode": _future_of_an_episode,
    "tuning subjects": _tuning_subjects,
    "held-out subjects": _held_out_subjects,
}


def _half(subjects: pl.Series, seed: int) -> pl.Series:
    """Half of them, at least one."""
    chosen = np.random.default_rng(seed).permutation(len(subjects))[: -(-len(subjects) // 2)]
    return subjects[np.sort(chosen)]


def _whole(subjects: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": subjects, "since": pl.Series([None] * len(subjects), dtype=pl.Datetime("us"))})
