"""Episodes made of the record alone, to pretrain on: at random times of every subject, how long until what comes next?

In: a record store, and which codes make an outcome. Out: rows in the columns of ``episodes.parquet``, each asked about
no treatment in particular, with the days until the next event of each outcome. They are censored where the subject's
record ends, and where a table was cut (:mod:`ican_ml.records.caps`) at its last row: what follows is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from ican_ml.cohort.asof import find_subjects
from ican_ml.records.caps import Cap, code_groups, find_caps
from ican_ml.records.store import DEATH, RecordStore
from ican_ml.records.vocabulary import Bool, Int64
from ican_ml.training.landmarks import subject_draws

_DAY = 86_400_000_000


def record_episodes(
    store: RecordStore,
    episodes: pl.DataFrame,
    outcomes: Mapping[str, str],
    *,
    per_subject: int,
    seed: int,
    keep: Sequence[str] = (),
) -> pl.DataFrame:
    """Ask about every subject of the episodes ``per_subject`` times.

    Parameters
    ----------
    episodes
        The cohort's own.
    outcomes
        Stem of the columns ``<name>_time`` and ``<name>_event`` to a regular expression of codes; `MEDS_DEATH` may be
        among them. Only what a cohort records for all of its subjects makes an outcome.
    per_subject
        Times are drawn uniformly between a subject's first and last dated event; one without two has none.
    seed
        With it and the ``subject_id``, the draws of a subject; they do not depend on other subjects.
    keep
        Columns of ``episodes`` to keep, each subject's commonest value.

    Returns
    -------
    pl.DataFrame
        By subject and time. An outcome is null where nothing is known after the time.

    Raises
    ------
    ValueError
        If an outcome's expression matches no code of the records.
    """
    wanted = episodes["subject_id"].unique().sort().to_numpy()
    place, known = find_subjects(store.subject_id, wanted)
    owner, dated = np.repeat(np.arange(len(store.subject_id)), np.diff(store.offsets)), ~np.isnat(store.time)
    first, last = _extremes(store, owner, dated)
    place = place[known & (first[place] < last[place])] if len(store.subject_id) else place[:0]
    share = subject_draws(store.subject_id[place], per_subject, seed)
    since = np.sort((share * (last - first)[place, None]).astype(np.int64), axis=1)
    asked = np.repeat(place, per_subject)
    found = pl.DataFrame(
        {"subject_id": store.subject_id[asked], "place": asked, "moment": (first[place, None] + since).ravel()}
    )
    caps = find_caps(store, wanted)
    for name, pattern in outcomes.items():
        found = found.join(_times_to_next(store, pattern, owner, caps, found, name), on=["place", "moment"], how="left")
    shared = [name for name in keep if name in episodes.columns]
    of_subject = episodes.group_by("subject_id").agg(pl.col(name).drop_nulls().mode().min() for name in shared)
    return (
        found.sort("place", "moment")
        .with_columns(
            prediction_time=pl.col("moment").cast(pl.Datetime("us")), treatment=pl.lit([], pl.List(pl.String))
        )
        .join(of_subject, on="subject_id", how="left", maintain_order="left")
        .drop("place", "moment")
    )


def _times_to_next(
    store: RecordStore, pattern: str, owner: Int64, caps: list[Cap], asked: pl.DataFrame, name: str
) -> pl.DataFrame:
    """``asked`` with the days until the next matching event, or until nothing is known any more."""
    expression = re.compile(pattern)
    matches: Bool = np.array([expression.fullmatch(code) is not None for code in store.codes], bool)
    counts_death = expression.fullmatch(DEATH) is not None
    if not matches.any() and not counts_death:
        raise ValueError(
            f"cohort.pretraining.outcomes.{name}: expected codes of the records to match, got none for {pattern!r}"
        )
    at = np.flatnonzero(matches[store.code] & ~np.isnat(store.time))
    event_of, event_at = owner[at], store.time.view(np.int64)[at]
    dead = np.flatnonzero(~np.isnat(store.death))
    death = store.death.view(np.int64)[dead]
    ends = _known_until(store, matches, owner, caps)
    if counts_death:
        event_of, event_at = np.append(event_of, dead), np.append(event_at, death)
        ends[dead] = np.maximum(ends[dead], death)
    events = pl.DataFrame({"place": event_of, "moment": event_at, "next": event_at}).sort("moment")
    days = (pl.min_horizontal("next", "end") - pl.col("moment")) / _DAY
    followed = (
        asked.select("place", "moment")
        .with_columns(end=ends[asked["place"].to_numpy()])
        .unique()
        .sort("moment")
        .join_asof(
            events,
            on="moment",
            by="place",
            strategy="forward",
            allow_exact_matches=False,
            coalesce=True,
            check_sortedness=False,
        )
    )
    return followed.select(
        "place",
        "moment",
        pl.when(days > 0).then(days).alias(f"{name}_time"),
        pl.when(days > 0).then((pl.col("next") <= pl.col("end")).fill_null(False)).alias(f"{name}_event"),
    )


def _known_until(store: RecordStore, matches: Bool, owner: Int64, caps: list[Cap]) -> Int64:
    """int64 [subjects of the store]: the last event, or the last row of a table that was cut."""
    dated = ~np.isnat(store.time)
    ends = _extremes(store, owner, dated)[1]
    groups = code_groups(store.codes)
    for cap in caps:
        members = groups[cap.group]
        if (members & matches).any():
            cut = members[store.code] & dated
            full = np.bincount(owner[cut], minlength=len(ends)) >= cap.events
            ends[full] = _extremes(store, owner, cut)[1][full]
    return ends


def _extremes(store: RecordStore, owner: Int64, chosen: Bool) -> tuple[Int64, Int64]:
    """int64 [subjects of the store] twice: the first and the last of the chosen events, in microseconds."""
    limits = np.iinfo(np.int64)
    moment = store.time.view(np.int64)[chosen]
    first, last = np.full(len(store.subject_id), limits.max), np.full(len(store.subject_id), limits.min)
    np.minimum.at(first, owner[chosen], moment)
    np.maximum.at(last, owner[chosen], moment)
    return first, last
