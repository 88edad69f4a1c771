"""Writes what a conversion made: a cohort, and in it its records, a MEDS 0.4 dataset.

The format: https://github.com/Medical-Event-Data-Standard/meds.

In: events and codes as polars frames. Out: ``data/<n>.parquet`` of about a million rows, no subject in two of them,
``metadata/codes.parquet`` and ``metadata/dataset.json``. The column ``unit`` is added to those of MEDS.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from meds import schema as meds

import ican_ml
from ican_ml.cohort.accounting import Accounting
from ican_ml.cohort.cohort import FORMAT

_ROWS = 1_000_000


def write_converted(
    out: Path,
    events: pl.DataFrame,
    codes: pl.DataFrame,
    accounting: Accounting,
    *,
    name: str,
    source_timezone: str | None,
) -> None:
    """Write ``records/`` (see :func:`write_meds`), ``cohort.json`` and ``conversion.json`` into the folder ``out``."""
    write_meds(out / "records", events, codes, name=name, source_timezone=source_timezone)
    about = {"format": FORMAT, "name": name}
    if source_timezone is not None:
        about["source_timezone"] = source_timezone
    for file, content in (("cohort.json", about), ("conversion.json", accounting.to_json())):
        (out / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_meds(
    folder: Path, events: pl.DataFrame, codes: pl.DataFrame, *, name: str, source_timezone: str | None = None
) -> None:
    """Write a dataset.

    Parameters
    ----------
    folder
        ``records/`` of a cohort, new.
    events
        ``subject_id`` int64, ``time`` datetime[us] (null = static), ``code`` text, ``numeric_value`` f32,
        ``text_value`` and ``unit`` text, in any order.
    codes
        ``code``, ``description``, ``parent_codes`` list of text: one row a code.
    source_timezone
        Whose wall time the times are.
    """
    order = ["subject_id", "time", "code", "numeric_value", "text_value", "unit"]
    events = events.select(order).sort(order, nulls_last=False)
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for number, part in enumerate(_parts(events)):
        table = meds.DataSchema.align(part.to_arrow())
        meds.DataSchema.validate(table)
        pq.write_table(table, folder / "data" / f"{number}.parquet")
    table = meds.CodeMetadataSchema.align(codes.sort("code").to_arrow())
    meds.CodeMetadataSchema.validate(table)
    pq.write_table(table, folder / "metadata" / "codes.parquet")
    about = meds.DatasetMetadataSchema(
        dataset_name=name, etl_name="ican convert", etl_version=ican_ml.__version__, meds_version=version("meds")
    ).to_dict()
    if source_timezone is not None:
        about["source_timezone"] = source_timezone
    (folder / "metadata" / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _parts(events: pl.DataFrame) -> list[pl.DataFrame]:
    """Pieces that end where a subject does."""
    subject = events["subject_id"].to_numpy()
    ends = np.append(np.flatnonzero(np.diff(subject)) + 1, len(subject))
    chosen = np.unique(ends[np.minimum(np.searchsorted(ends, np.arange(_ROWS, len(subject), _ROWS)), len(ends) - 1)])
    bounds = [0, *chosen.tolist(), *([len(subject)] if not len(chosen) or chosen[-1] < len(subject) else [])]
    return [events[start:stop] for start, stop in pairwise(bounds)]
