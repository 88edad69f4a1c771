"""Tables of the OMOP CDM 5.3.1 and 5.4 (https://ohdsi.github.io/CommonDataModel): what is read of each, as text.

In: a folder with one file a table, ``.csv``, ``.csv.gz`` or ``.parquet``, names of files and columns in any case. Out:
frames whose columns are all text, ``null`` where a column or value is missing, and expressions that give whole numbers,
times and numbers of such text, ``null`` where it is none.

A CSV may be separated by tabs, as vocabularies from Athena are, and is then without quotation marks. Files are named by
their table in messages: other names may hold names of patients.
"""

from __future__ import annotations

import gzip
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zoneinfo import ZoneInfo

import polars as pl

_ENDINGS = (".parquet", ".csv", ".csv.gz")
_FIRST_YEAR, _LAST_YEAR = 1800, 2199
_TIME = (
    r"^(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[T ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,6})\d*)?)?\s*(?:(Z|UTC|GMT)|([+-])(\d\d)(?::?(\d\d))?)?)?$"
)
_LARGEST = 3.4028234663852886e38


class OmopError(ValueError):
    """A source that cannot be read as it is: says what was expected and how to go on, and nothing of a patient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventTable:
    """Columns of a table whose rows become events.

    Attributes
    ----------
    concept, source_concept, source
        Standard concept, the source's own concept, and its text; "" where that text may name a patient or visit.
    start
        Stem of the columns ``<start>_date`` and ``<start>_datetime``.
    end, object
        Stem of the end, and the concept, of a second event of each row; "" where there is none.
    valued, ranged
        Whether the rows have values and units, and reference ranges.
    """

    concept: str
    source_concept: str
    source: str = ""
    start: str
    end: str = ""
    object: str = ""
    valued: bool = False
    ranged: bool = False

    @property
    def columns(self) -> list[str]:
        """All that are read."""
        stems = [stem for stem in (self.start, self.end) if stem]
        names = ["person_id", self.concept, self.source_concept, self.source, self.object]
        names += [f"{stem}_{kind}" for stem in stems for kind in ("date", "datetime")]
        names += [*(_VALUES if self.valued else ()), *(_RANGE if self.ranged else ())]
        return [name for name in names if name]


def _usual(stem: str, start: str, *, valued: bool = False, ranged: bool = False) -> EventTable:
    return EventTable(
        concept=f"{stem}_concept_id",
        source_concept=f"{stem}_source_concept_id",
        source=f"{stem}_source_value",
        start=start,
        valued=valued,
        ranged=ranged,
    )


def _visit(stem: str) -> EventTable:
    return EventTable(
        concept=f"{stem}_concept_id",
        source_concept=f"{stem}_source_concept_id",
        start=f"{stem}_start",
        end=f"{stem}_end",
    )


_VALUES = (
    *("value_as_number", "value_as_string", "value_source_value", "value_as_concept_id", "operator_concept_id"),
    *("unit_concept_id", "unit_source_value"),
)
_RANGE = ("range_low", "range_high")
PERSON = (
    *("person_id", "birth_datetime", "year_of_birth", "month_of_birth", "day_of_birth"),
    *("gender_concept_id", "gender_source_value"),
)
DEATH = ("person_id", "death_date", "death_datetime")
CONCEPT = ("concept_id", "concept_name", "vocabulary_id", "concept_code")
EVENTS = {
    "visit_occurrence": _visit("visit"),
    "visit_detail": _visit("visit_detail"),
    "condition_occurrence": _usual("condition", "condition_start"),
    "drug_exposure": _usual("drug", "drug_exposure_start"),
    "procedure_occurrence": _usual("procedure", "procedure"),
    "device_exposure": _usual("device", "device_exposure_start"),
    "measurement": _usual("measurement", "measurement", valued=True, ranged=True),
    "observation": _usual("observation", "observation", valued=True),
    "episode": EventTable(
        concept="episode_concept_id",
        source_concept="episode_source_concept_id",
        source="episode_source_value",
        start="episode_start",
        object="episode_object_concept_id",
    ),
}
UNUSED = (
    *("care_site", "cdm_source", "condition_era", "cost", "dose_era", "drug_era", "episode_event", "fact_relationship"),
    *("location", "metadata", "note", "note_nlp", "observation_period", "payer_plan_period", "provider", "specimen"),
)
OPERATORS = {4171754: "<=", 4171755: ">=", 4171756: "<", 4172704: ">"}


def find_tables(source: Path) -> dict[str, Path]:
    """Files of the tables that are read or counted, by table.

    Raises
    ------
    OmopError
        If ``source`` is no folder, has no table person, or two files of one table.
    """
    if not source.is_dir():
        raise OmopError("SRC: expected a folder with one file for each table, found none")
    known = {*EVENTS, *UNUSED, "person", "death", "concept"}
    tables: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        name, _, ending = path.name.lower().partition(".")
        if f".{ending}" not in _ENDINGS or name not in known or not path.is_file():
            continue
        if name in tables:
            raise OmopError(f"{name}: expected one file, got two: remove one")
        tables[name] = path
    if "person" not in tables:
        raise OmopError("SRC: expected person.csv, person.csv.gz or person.parquet, got none of them")
    return tables


def read_table(table: str, path: Path, columns: tuple[str, ...] | list[str], zone: ZoneInfo | None) -> pl.DataFrame:
    """Columns of a table as text without blanks around it, in the order asked for.

    Raises
    ------
    OmopError
        If the file is damaged, or a Parquet column has a zone and ``zone`` is ``None``.
    """
    try:
        frame = _read_parquet(path, columns) if path.suffix.lower() == ".parquet" else _read_csv(path, columns)
    except (pl.exceptions.PolarsError, OSError, EOFError, ValueError):
        raise OmopError(f"{table}: expected a table that can be read, got a damaged file: export it again") from None
    texts, absent = [], []
    for name in columns:
        if name not in frame.columns:
            absent.append(pl.lit(None, pl.String).alias(name))
            continue
        kind = frame.schema[name]
        column = pl.col(name)
        if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
            column = column.dt.convert_time_zone(_needed(zone).key).dt.replace_time_zone(None)
        elif isinstance(kind, pl.Binary):
            column = column.cast(pl.String, strict=False)
        elif kind.is_nested():
            column = pl.lit(None, pl.String).alias(name)
        text = column.cast(pl.String, strict=False).str.strip_chars()
        texts.append(pl.when(text != "").then(text).alias(name))
    return frame.with_columns(texts).with_columns(absent).select(columns)


def count_rows(table: str, path: Path) -> int:
    """Rows of a table whose contents are not read."""
    try:
        if path.suffix.lower() == ".parquet":
            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
        return len(_read_csv(path, None))
    except (pl.exceptions.PolarsError, OSError, EOFError, ValueError):
        raise OmopError(f"{table}: expected a table that can be read, got a damaged file: export it again") from None


def _read_parquet(path: Path, columns: tuple[str, ...] | list[str]) -> pl.DataFrame:
    header = list(pl.read_parquet_schema(path))
    names = _wanted(header, columns)
    return pl.read_parquet(path, columns=list(names) or header[:1]).rename(names)


def _read_csv(path: Path, columns: tuple[str, ...] | list[str] | None) -> pl.DataFrame:
    """Columns by name, or the first one."""
    with _open(path) as file:
        head = file.readline().decode("utf-8", "replace").lstrip("\ufeff")
    separator = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
    header = [name.strip().strip('"') for name in head.rstrip("\r\n").split(separator)]
    names = _wanted(header, columns) if columns is not None else {header[0]: header[0]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = pl.read_csv(
            path,
            has_header=False,
            skip_rows=1,
            schema={f"{i}": pl.String() for i in range(len(header))},
            columns=[header.index(name) for name in names] or [0],
            separator=separator,
            quote_char=None if separator == "\t" else '"',
            encoding="utf8-lossy",
            truncate_ragged_lines=True,
            ignore_errors=True,
            raise_if_empty=False,
        )
    if caught:  # quotation marks that do not match: rows may be missing
        raise ValueError(str(caught[0].message))
    return frame.rename({f"{header.index(name)}": new for name, new in names.items()})


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _wanted(header: list[str], columns: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Names in a file to those of the standard; the first of two that differ in case only."""
    names: dict[str, str] = {}
    for name in header:
        if name.lower() in columns and name.lower() not in names.values():
            names[name] = name.lower()
    return names


def whole(name: str) -> pl.Expr:
    """A whole number, also where it was written as 12.0."""
    return plain_id(name).cast(pl.Int64, strict=False)


def plain_id(name: str) -> pl.Expr:
    """An identifier, 12 where it was written as 12.0."""
    return pl.col(name).str.replace(r"^(\d+)\.0+$", "$1")


def concept_id(name: str) -> pl.Expr:
    """A concept; ``null`` for 0, which says that there is none."""
    return pl.when(whole(name) > 0).then(whole(name))


def number(name: str) -> pl.Expr:
    """A finite number that float32 holds."""
    value = pl.col(name).cast(pl.Float64, strict=False)
    return pl.when(value.is_finite() & (value.abs() <= _LARGEST)).then(value).cast(pl.Float32)


def time(stem: str, frame: pl.DataFrame, zone: ZoneInfo | None) -> pl.Series:
    """Naive wall times of ``<stem>_datetime``, else midnight of ``<stem>_date``.

    Raises
    ------
    OmopError
        If one carries a zone and ``zone`` is ``None``.
    """
    moments, dates = (moment(frame[f"{stem}_{kind}"], zone) for kind in ("datetime", "date"))
    return moments.zip_with(moments.is_not_null(), dates).alias("time")


def moment(texts: pl.Series, zone: ZoneInfo | None) -> pl.Series:
    """Naive wall times of dates and date-times; ``null`` for what is none, or of no year from 1800 to 2199."""
    parts = ("year", "month", "day", "hour", "minute", "second", "fraction", "utc", "sign", "zh", "zm")
    groups = [pl.col("text").str.extract(_TIME, i).alias(name) for i, name in enumerate(parts, start=1)]
    distinct = texts.drop_nulls().unique()
    found = pl.DataFrame({"text": distinct}).select(groups)
    clock = [pl.col(name).fill_null("00") for name in ("hour", "minute", "second")]
    fraction = pl.col("fraction").fill_null("0").str.pad_end(6, "0")
    written = pl.format("{}-{}-{} {}:{}:{}.{}", "year", "month", "day", *clock, fraction)
    naive = written.str.to_datetime("%Y-%m-%d %H:%M:%S%.6f", time_unit="us", strict=False)
    minutes = pl.col("zh").cast(pl.Int64) * 60 + pl.col("zm").fill_null("0").cast(pl.Int64)
    offset = pl.when(pl.col("sign") == "-").then(-minutes).otherwise(minutes).fill_null(0)
    zoned = pl.col("utc").is_not_null() | pl.col("sign").is_not_null()
    found = found.select(naive=naive, offset=offset, zoned=zoned)
    if found["zoned"].any():
        utc = (pl.col("naive") - pl.duration(minutes="offset")).dt.replace_time_zone("UTC")
        local = utc.dt.convert_time_zone(_needed(zone).key).dt.replace_time_zone(None)
        found = found.with_columns(naive=pl.when("zoned").then(local).otherwise("naive"))
    year = pl.col("naive").dt.year()
    moments = found.select(pl.when(year.is_between(_FIRST_YEAR, _LAST_YEAR)).then("naive"))["naive"]
    return texts.replace_strict(distinct, moments, default=None, return_dtype=pl.Datetime("us"))


def _needed(zone: ZoneInfo | None) -> ZoneInfo:
    if zone is None:
        raise OmopError(
            "times: expected a zone whose wall time to keep, as those given carry one: --timezone Europe/Helsinki"
        )
    return zone
