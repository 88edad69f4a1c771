"""Changes to a copy of a cohort (format ``ican-cohort/1``): what a leak would carry from where it must not come.

Every change takes ``since``: a table of ``subject_id`` and ``since`` (datetime[us]). What lies later than ``since`` is
changed; null = everything of that subject. The order of rows in every file stays, new ones follow.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Edit = Callable[[Path, pl.DataFrame, np.random.Generator], None]

_LONG_AGO = datetime(1990, 1, 1)
_OUTCOMES = ("response", "sensitivity")
_MEMBERSHIP = ("subject_id", "prediction_time", "task", "split")


def is_open(frame: pl.DataFrame, since: pl.DataFrame, time: str) -> pl.Series:
    """Which rows are later than ``since``; with ``since`` null all of them, undated ones too."""
    listed = since.with_columns(pl.lit(True).alias("_listed"))
    joined = frame.select("subject_id", time).join(listed, on="subject_id", how="left", maintain_order="left")
    later = pl.col("since").is_null() | (pl.col(time) > pl.col("since")).fill_null(False)
    return joined.select((pl.col("_listed").fill_null(False) & later).alias("open"))["open"]


def change_events(folder: Path, since: pl.DataFrame, rng: np.random.Generator) -> None:
    """Delete, shift or give another value to each event, and add events one second after ``since``."""
    paths = sorted((folder / "records" / "data").rglob("*.parquet"))
    for i, path in enumerate(paths):
        frame = pl.read_parquet(path)
        where, luck = is_open(frame, since, "time"), pl.Series(rng.integers(0, 3, len(frame)))
        days = pl.Series(rng.integers(1, 400, len(frame))) * timedelta(days=1)
        changed = {"time": (where & (luck == 1), frame["time"] + days)}
        if "numeric_value" in frame.columns:
            changed["numeric_value"] = (where, frame["numeric_value"] * -3 + 7)
        frame = frame.with_columns(
            new.zip_with(at, frame[name]).alias(name) for name, (at, new) in changed.items()
        ).filter(~(where & (luck == 0)))
        if not i:
            frame = pl.concat([frame, _new_events(frame, since, rng)], how="diagonal_relaxed")
        frame.write_parquet(path)


def _new_events(frame: pl.DataFrame, since: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Of every subject one event of a new code, and ten of known codes."""
    time = pl.col("since").fill_null(_LONG_AGO) + pl.duration(seconds=1)
    base = since.select("subject_id", time.alias("time"))
    new = base.with_columns(pl.lit("ADDED//CODE").alias("code"))
    usual = frame.drop("subject_id", "time")[rng.integers(0, max(len(frame), 1), 10 if len(frame) else 0)]
    return pl.concat([new, base.join(usual, how="cross")], how="diagonal_relaxed")


def change_samples(folder: Path, since: pl.DataFrame, rng: np.random.Generator) -> None:
    """Give every sample other values, and add samples one day after ``since``."""
    import anndata

    for path in sorted((folder / "omics").glob("*.h5ad")):
        data = anndata.read_h5ad(path)
        data.obs = data.obs.astype({c: object for c in data.obs if str(data.obs[c].dtype) == "category"})
        if "sample_time" not in data.obs:
            data.obs["sample_time"] = ""
        times = np.array(data.obs["sample_time"].fillna("").tolist(), "datetime64[us]")
        taken = pl.DataFrame({"subject_id": data.obs["subject_id"].to_numpy(), "time": times})
        where = np.flatnonzero(is_open(taken, since, "time").to_numpy())
        again = (
            taken.with_row_index().join(since.drop_nulls(), on="subject_id").unique("subject_id", maintain_order=True)
        )
        added = again["index"].to_numpy().astype(np.int64)
        late = [(time + timedelta(days=1)).date().isoformat() for time in again["since"]]
        obs = data.obs.iloc[np.concatenate([np.arange(len(data.obs)), added])].copy()
        obs.index = [*data.obs.index, *(f"added-{i}" for i in range(len(added)))]
        obs.iloc[len(data.obs) :, obs.columns.get_loc("sample_time")] = late
        matrix = _with_rows(data.X, where, _other_values(data, where))
        matrix = _stacked(matrix, _other_values(data, added))
        changed = anndata.AnnData(X=matrix, obs=obs, var=data.var)
        changed.uns.update(data.uns)
        changed.write_h5ad(path)


def _other_values(data: Any, rows: npt.NDArray[np.int64]) -> Any:
    """Other values of some samples: of a dense matrix all, of a sparse one what is stored, three features further on.

    A sparse sample with nothing stored gets one feature. What a sample's panel does not measure stays as it is.
    """
    import scipy.sparse as sp

    values = data.X[rows]
    kind, n_features = str(data.uns["ican"]["kind"]), data.n_vars
    if isinstance(values, np.ndarray):
        changed = {"binary": 1 - values, "count": 3 * values + 1, "continuous": 1 - 2 * values}[kind]
        return changed.astype(np.float32)
    names = data.obs["panel"].iloc[rows] if "panel" in data.obs else np.full(len(rows), "")
    moved = values.tocsr().copy()
    row_of_entry = np.repeat(np.arange(len(rows)), np.diff(moved.indptr))
    added = np.zeros(len(rows), np.int64)
    for name in np.unique(names):
        measured = np.flatnonzero(data.var[f"panel:{name}"]) if name else np.arange(n_features)
        further = np.arange(n_features)
        further[measured] = np.roll(measured, -3)
        chosen = np.asarray(names == name)
        added[chosen] = measured[0]
        entries = chosen[row_of_entry]
        moved.indices[entries] = further[moved.indices[entries]]
    if kind != "binary":
        moved.data *= {"count": 3, "continuous": -2}[kind]
    moved.sort_indices()
    empty = np.flatnonzero(np.diff(moved.indptr) == 0)
    ones = np.ones(len(empty), np.float32)
    return moved + sp.csr_matrix((ones, (empty, added[empty])), shape=moved.shape)


def _with_rows(matrix: Any, rows: npt.NDArray[np.int64], values: Any) -> Any:
    order = np.arange(matrix.shape[0])
    order[rows] = matrix.shape[0] + np.arange(len(rows))
    return _stacked(matrix, values)[order]


def _stacked(matrix: Any, values: Any) -> Any:
    import scipy.sparse as sp

    if isinstance(matrix, np.ndarray):
        return np.concatenate([matrix, values])
    return sp.vstack([matrix, values], format="csr")


def change_covariates(folder: Path, since: pl.DataFrame, rng: np.random.Generator) -> None:
    """Other numbers, truths and categories in every column that is neither outcome, treatment nor membership."""

    def is_covariate(name: str) -> bool:
        return not (_is_outcome(name) or name == "treatment" or name in _MEMBERSHIP or name.startswith("fold"))

    _change_episodes(folder, since, is_covariate)


def change_outcomes(folder: Path, since: pl.DataFrame, rng: np.random.Generator) -> None:
    """The opposite response and event, and other times and sensitivities."""
    _change_episodes(folder, since, _is_outcome)


def change_treatments(folder: Path, since: pl.DataFrame, rng: np.random.Generator) -> None:
    """One more drug in every regimen, a new one."""
    _change_episodes(folder, since, lambda name: name == "treatment")


def _is_outcome(name: str) -> bool:
    return name in _OUTCOMES or (name.endswith(("_time", "_event", "_entry")) and name not in _MEMBERSHIP)


def _change_episodes(folder: Path, since: pl.DataFrame, chosen: Callable[[str], bool]) -> None:
    path = folder / "episodes.parquet"
    frame = pl.read_parquet(path)
    where = is_open(frame, since, "prediction_time")
    changed = [_other(frame[name]).zip_with(where, frame[name]).alias(name) for name in frame.columns if chosen(name)]
    frame.with_columns(changed).write_parquet(path)


def _other(column: pl.Series) -> pl.Series:
    """Another value of the same type in every row."""
    kind = column.dtype
    if kind == pl.Boolean:
        return ~column
    if kind.is_numeric():
        return (column * 3 + 5).cast(kind)
    if kind == pl.String:
        return column + " elsewhere"
    if kind == pl.List(pl.String):
        return pl.Series(column.name, [[*(drugs or ()), "ADDED-DRUG"] for drugs in column.to_list()], dtype=kind)
    return column


EVERYTHING: tuple[Edit, ...] = (change_events, change_samples, change_covariates, change_outcomes, change_treatments)
FUTURE: tuple[Edit, ...] = (change_events, change_samples)
