"""The tables of a cohort: ``episodes.parquet``, ``treatments.parquet``, and the columns of ``records/``.

Out: the episodes of one task (polars, ``prediction_time`` datetime[us], ``treatment`` list of text, [] where null),
drug targets and drug classes. What would break training later is noted here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ican_ml.cohort.checks import Problems, shown

if TYPE_CHECKING:
    import polars as pl

_EPISODES, _TREATMENTS = "episodes.parquet", "treatments.parquet"
_ZONE_FIX = (
    "convert it to the local wall time of the source (polars: dt.convert_time_zone(source_timezone)"
    ".dt.replace_time_zone(None)) and write source_timezone in cohort.json"
)


def read_episodes(root: Path, task: str | None, problems: Problems) -> pl.DataFrame | None:
    """Episodes of ``task`` (``None`` = all), or ``None`` where they are unusable."""
    import polars as pl

    frame = _read_table(root / _EPISODES, problems)
    if frame is None:
        return None
    noted = len(problems.lines)
    required = ("subject_id", "prediction_time", "treatment")
    if absent := [name for name in required if name not in frame.columns]:
        problems.add(
            _EPISODES, expected=f"columns {shown(required)}", got=f"no {shown(absent)}", fix="add them (null = unknown)"
        )
    subject, time, treatment = (frame.schema.get(name) for name in required)
    if subject is not None and subject != pl.Int64:
        problems.add(
            _EPISODES, expected="subject_id int64", got=str(subject), fix="map the identifiers to whole numbers"
        )
    elif subject is not None and (n_null := frame["subject_id"].null_count()):
        problems.add(_EPISODES, expected="a subject_id in every row", got=f"{n_null} null", fix="remove these rows")
    if isinstance(time, pl.Datetime) and time.time_zone is not None:
        problems.add(
            _EPISODES, expected="prediction_time without a timezone", got=f"timezone {time.time_zone}", fix=_ZONE_FIX
        )
    elif time is not None and not isinstance(time, pl.Datetime | pl.Date | pl.Null):
        problems.add(_EPISODES, expected="prediction_time timestamp[us]", got=str(time), fix="parse it to a timestamp")
    if treatment is not None and treatment not in (pl.List(pl.String), pl.List(pl.Null)):
        problems.add(
            _EPISODES,
            expected="treatment list<string>",
            got=str(treatment),
            fix="write a list of drug names, [] = none",
        )
    if task is not None:
        frame = _of_task(frame, task, problems)
    _check_outcomes(frame, problems)
    if len(problems.lines) > noted:
        return None
    return frame.with_columns(
        pl.col("prediction_time").cast(pl.Datetime("us")),
        pl.col("treatment").cast(pl.List(pl.String)).fill_null([]),
    )


def read_treatments(root: Path, problems: Problems) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Targets and ATC class of the drugs; both empty without the file."""
    import polars as pl

    path = root / _TREATMENTS
    frame = _read_table(path, problems) if path.exists() else None
    if frame is None:
        return {}, {}
    noted = len(problems.lines)
    types = {"drug": (pl.String,), "targets": (pl.List(pl.String), pl.List(pl.Null)), "atc": (pl.String, pl.Null)}
    for name, allowed in types.items():
        found = frame.schema.get(name)
        if found not in allowed and (found is not None or name != "atc"):
            got = "no such column" if found is None else str(found)
            problems.add(_TREATMENTS, expected=f"{name} of type {allowed[0]}", got=got, fix="see the cohort format")
    if len(problems.lines) > noted:
        return {}, {}
    if repeated := frame.filter(pl.col("drug").is_duplicated())["drug"].unique().sort().to_list():
        problems.add(_TREATMENTS, expected="one row a drug", got=f"several for {shown(repeated)}", fix="merge them")
    drugs = frame["drug"].to_list()
    targets = {
        drug: tuple(dict.fromkeys(gene for gene in genes or () if gene))
        for drug, genes in zip(drugs, frame["targets"].to_list(), strict=True)
    }
    atc = frame["atc"].to_list() if "atc" in frame.columns else [None] * len(drugs)
    return targets, {drug: code for drug, code in zip(drugs, atc, strict=True) if code}


def check_records(root: Path, problems: Problems) -> bool:
    """Whether there are records; notes files whose columns cannot be read as MEDS."""
    import polars as pl

    if not (root / "records").is_dir():
        return False
    paths = sorted((root / "records" / "data").rglob("*.parquet"))
    if not paths:
        problems.add("records/data", expected="Parquet files", got="none", fix="add them or remove records/")
    for path in paths:
        file = path.relative_to(root).as_posix()
        try:
            schema = pl.read_parquet_schema(path)
        except (OSError, pl.exceptions.PolarsError):
            problems.add(file, expected="a Parquet file", got="something else", fix="write it again")
            continue
        if absent := [name for name in ("subject_id", "time", "code") if name not in schema]:
            problems.add(file, expected="subject_id, time, code", got=f"no {shown(absent)}", fix="write MEDS 0.4")
        time = schema.get("time")
        if isinstance(time, pl.Datetime) and time.time_zone is not None:
            problems.add(file, expected="time without a timezone", got=f"timezone {time.time_zone}", fix=_ZONE_FIX)
    return True


def _read_table(path: Path, problems: Problems) -> pl.DataFrame | None:
    import polars as pl

    if not path.exists():
        problems.add(path.name, expected="the file", got="none", fix="every cohort has one, see the cohort format")
        return None
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        problems.add(path.name, expected="a Parquet file", got="something else", fix="write it again")
        return None


def _of_task(frame: pl.DataFrame, task: str, problems: Problems) -> pl.DataFrame:
    import polars as pl

    present: list[str] = []
    if "task" in frame.columns:
        present = sorted(str(name) for name in frame["task"].drop_nulls().unique())
    if task in present:
        return frame.filter(pl.col("task") == task)
    problems.add(
        _EPISODES,
        expected=f"episodes of task {task!r}",
        got=f"tasks {shown(present)}",
        fix="choose one of these" if present else "leave the task out",
    )
    return frame.clear()


def _check_outcomes(frame: pl.DataFrame, problems: Problems) -> None:
    """Types and values of outcome columns, as far as they are there."""
    import polars as pl

    def wrong_type(name: str, expected: str, right: bool, fix: str) -> bool:
        if not right:
            problems.add(_EPISODES, expected=f"{name} {expected}", got=str(frame.schema[name]), fix=fix)
        return not right

    if "response" in frame.columns:
        dtype: Any = frame.schema["response"]
        wrong_type("response", "bool", dtype in (pl.Boolean, pl.Null), "convert it, null = unknown")
    if "sensitivity" in frame.columns:
        dtype = frame.schema["sensitivity"]
        if not wrong_type("sensitivity", "float", dtype.is_numeric() or dtype == pl.Null, "convert it"):
            _check_values(frame, "sensitivity", pl.col("sensitivity").is_finite(), "finite", problems)
    for event in [name for name in frame.columns if name.endswith("_event")]:
        stem = event.removesuffix("_event")
        time = f"{stem}_time"
        if time not in frame.columns:
            problems.add(_EPISODES, expected=f"{time} beside {event}", got="no such column", fix="add it (days)")
            continue
        dtype = frame.schema[time]
        if wrong_type(event, "bool", frame.schema[event] in (pl.Boolean, pl.Null), "true = happened, false = censored"):
            continue
        if wrong_type(time, "float (days)", dtype.is_numeric() or dtype == pl.Null, "convert it to days"):
            continue
        _check_values(frame, time, pl.col(time).is_finite() & (pl.col(time) >= 0), "finite, at least 0", problems)
        _check_values(frame, time, pl.col(event).is_not_null(), f"null where {event} is null", problems)


def _check_values(frame: pl.DataFrame, name: str, right: pl.Expr, expected: str, problems: Problems) -> None:
    n_wrong = frame.filter(frame[name].is_not_null() & ~right).height
    if n_wrong:
        problems.add(
            _EPISODES, expected=f"{name} {expected}", got=f"{n_wrong} other rows", fix="repair them or set null"
        )
