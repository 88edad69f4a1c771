"""OMOP CDM 5.3.1 and 5.4 -> a cohort folder (format ``ican-cohort/1``), every row accounted for.

In: a folder of tables (:mod:`ican_ml.cohort.omop_tables`), with the table concept if there is one. Out:
``cohort.json``, ``records/`` (MEDS 0.4), and ``conversion.json``.

- *person*: ``MEDS_BIRTH``, static ``SEX//F`` or ``SEX//M``; of a birth known by year or month, the middle day. Nothing
  else is read. *death*: ``MEDS_DEATH``; of several that differ, the earliest.
- *Codes* are ``VOCABULARY//code`` of the standard concept, without the table concept ``OMOP//<concept_id>``; where it
  is 0 or missing, of the source concept, else ``SOURCE//<TABLE>//<source value>``, of 50 characters at most. The source
  values of visits are never used: they tend to be numbers of stays. A source code beside a standard one is kept in
  ``codes.parquet`` with the standard one as its parent: who later meets it alone backs off to what is known.
- *visit_occurrence*, *visit_detail*: the code at the start, ``VISIT_END//<code>`` at the end. *episode*: the code, and
  ``EPISODE_OBJECT//<code>`` of what it is an episode of.
- *Values* of measurement and observation: ``value_as_number``, else a number in text ("<5", "1,5"), whose limit is kept
  in ``text_value``; else the name of ``value_as_concept_id``, or a finding of a closed list ("Negative"). Other text
  may be free text: the event is kept without it, and counted. Unit: its code, else the source's own. A number outside
  its reference range has a second event, ``<code>//LOW`` or ``<code>//HIGH``.
- *Left out*: ends of other rows than visits, quantities and doses, causes of death.

A table is in memory at a time, beside the concepts and the events themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ican_ml.cohort import omop_tables as omop
from ican_ml.cohort.accounting import Accounting, Reason
from ican_ml.cohort.convert_fhir import number_subjects
from ican_ml.cohort.fhir_values import finding_in, number_in, zone_of
from ican_ml.cohort.meds_writer import write_converted
from ican_ml.cohort.omop_tables import EVENTS, EventTable, OmopError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

Progress = Callable[[int, int], None]
BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
_MALE, _FEMALE = 8507, 8532
_LONGEST_CODE, _LONGEST_UNIT = 50, 40
_CONTROL = r"[\p{C}]"
_SCHEMA: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "unit": pl.String(),
}


@dataclass(kw_only=True, slots=True)
class Conversion:
    """What came of a source.

    Attributes
    ----------
    subjects
        ``person_id`` of each person in the source to its ``subject_id``: it identifies people.
    values_left
        Values that are neither numbers nor concepts nor findings: their event was kept without them.
    """

    accounting: Accounting
    subjects: dict[str, int]
    events: int
    values_left: int


def convert_omop(
    source: Path, out: Path, *, name: str, timezone: str | None = None, progress: Progress | None = None
) -> Conversion:
    """Convert a source into a new cohort folder.

    Parameters
    ----------
    out
        Folder to fill: new or empty.
    name
        Of the cohort.
    timezone
        IANA name of the zone whose wall time to keep; needed where times carry a zone.
    progress
        Called as (tables done, tables in all).

    Raises
    ------
    ValueError
        If a table is missing, doubled or damaged, or a time has a zone and ``timezone`` is ``None``.
    """
    zone = zone_of(timezone)
    tables = omop.find_tables(source)
    tell = progress or (lambda done, total: None)
    tally = Accounting()
    person = omop.read_table("person", tables["person"], omop.PERSON, zone)
    subjects = number_subjects(set(person.select(omop.plain_id("person_id")).to_series().drop_nulls()))
    if not subjects:
        raise OmopError("person: expected rows with a person_id, got none")
    concepts = _read_concepts(tables.get("concept"))
    frames = [_persons(person, subjects, zone, tally)]
    values_left = 0
    parents = []
    for done, (table, path) in enumerate(tables.items()):
        tell(done, len(tables))
        if table == "death":
            frames.append(_deaths(omop.read_table(table, path, omop.DEATH, zone), subjects, zone, tally))
        elif table in EVENTS:
            frame = omop.read_table(table, path, EVENTS[table].columns, zone)
            events, above, n = _events(table, frame, subjects, concepts, zone, tally)
            frames.append(events)
            parents.append(above)
            values_left += n
        elif table in omop.UNUSED:
            n = omop.count_rows(table, path)
            tally.read(table, n)
            tally.left(table, Reason.UNUSED_TYPE, n)
    tell(len(tables), len(tables))
    tally.check()
    events = pl.concat(frames)
    codes = _codes(events, concepts, parents)
    write_converted(out, events, codes, tally, name=name, source_timezone=timezone)
    return Conversion(accounting=tally, subjects=subjects, events=len(events), values_left=values_left)


def _read_concepts(path: Path | None) -> pl.DataFrame:
    """``id`` int64, ``code`` as in events, ``bare`` without its vocabulary, ``name``: one row a concept."""
    if path is None:
        empty = dict.fromkeys(omop.CONCEPT, pl.String())
        frame = pl.DataFrame(schema=empty)
    else:
        frame = omop.read_table("concept", path, omop.CONCEPT, None)
    return (
        frame.select(
            id=omop.concept_id("concept_id"),
            code=pl.format("{}//{}", "vocabulary_id", "concept_code"),
            bare=pl.col("concept_code"),
            name=pl.col("concept_name"),
        )
        .drop_nulls(["id", "code"])
        .unique("id", keep="first", maintain_order=True)
    )


def _look_up(concepts: pl.DataFrame, ids: pl.Expr, column: str) -> pl.Expr:
    """A column of the concepts by id; ``null`` where there is none."""
    return ids.replace_strict(concepts["id"], concepts[column], default=None, return_dtype=pl.String)


def _code(concepts: pl.DataFrame, name: str) -> pl.Expr:
    """Code of the concept in a column, ``null`` where it is 0 or missing."""
    ids = omop.concept_id(name)
    return pl.coalesce(_look_up(concepts, ids, "code"), pl.format("OMOP//{}", ids))


def _subject(subjects: dict[str, int]) -> pl.Expr:
    """``subject_id`` of each row, ``null`` for a person unknown."""
    names = pl.Series(list(subjects), dtype=pl.String)
    numbers = pl.Series(list(subjects.values()), dtype=pl.Int64)
    return omop.plain_id("person_id").replace_strict(names, numbers, default=None, return_dtype=pl.Int64)


def _persons(frame: pl.DataFrame, subjects: dict[str, int], zone: ZoneInfo | None, tally: Accounting) -> pl.DataFrame:
    month, day = omop.whole("month_of_birth"), omop.whole("day_of_birth")
    middle = pl.when(month.is_null()).then(1).when(day.is_null()).then(15).otherwise(day)
    date = pl.format(
        "{}-{}-{}",
        omop.whole("year_of_birth"),
        month.fill_null(7).cast(pl.String).str.zfill(2),
        middle.cast(pl.String).str.zfill(2),
    )
    frame = frame.with_columns(subject_id=_subject(subjects), birth_date=date)
    frame = frame.with_columns(omop.time("birth", frame, zone))
    gender, word = omop.whole("gender_concept_id"), pl.col("gender_source_value").str.to_uppercase()
    male = (gender == _MALE) | (~gender.is_in([_MALE, _FEMALE]).fill_null(False) & word.is_in(["M", "MALE"]))
    female = (gender == _FEMALE) | (~gender.is_in([_MALE, _FEMALE]).fill_null(False) & word.is_in(["F", "FEMALE"]))
    frame = frame.with_columns(sex=pl.when(male).then(pl.lit("SEX//M")).when(female).then(pl.lit("SEX//F")))
    reason = _first_of(
        {
            Reason.NO_SUBJECT: pl.col("subject_id").is_null(),
            Reason.DUPLICATE: ~pl.struct(pl.all()).is_first_distinct(),
            Reason.CONFLICT: ~pl.col("subject_id").is_first_distinct(),
            Reason.NO_VALUE: pl.col("time").is_null() & pl.col("sex").is_null(),
        }
    )
    kept = _account("person", frame.with_columns(reason=reason), tally)
    births = kept.filter(pl.col("time").is_not_null()).with_columns(code=pl.lit(BIRTH))
    static = kept.filter(pl.col("sex").is_not_null()).with_columns(code=pl.col("sex"), time=None)
    return pl.concat([_complete(births), _complete(static)])


def _deaths(frame: pl.DataFrame, subjects: dict[str, int], zone: ZoneInfo | None, tally: Accounting) -> pl.DataFrame:
    frame = frame.select(_subject(subjects).alias("subject_id"), omop.time("death", frame, zone))
    frame = frame.sort("time", nulls_last=True, maintain_order=True).with_columns(code=pl.lit(DEATH))
    reason = _first_of(
        {
            Reason.NO_SUBJECT: pl.col("subject_id").is_null(),
            Reason.NO_TIME: pl.col("time").is_null(),
            Reason.DUPLICATE: ~pl.struct("subject_id", "time").is_first_distinct(),
            Reason.CONFLICT: ~pl.col("subject_id").is_first_distinct(),
        }
    )
    return _complete(_account("death", frame.with_columns(reason=reason), tally))


def _events(
    table: str,
    frame: pl.DataFrame,
    subjects: dict[str, int],
    concepts: pl.DataFrame,
    zone: ZoneInfo | None,
    tally: Accounting,
) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Events of a table, its source codes with the ``code`` each has as parent, and the number of values left."""
    about: EventTable = EVENTS[table]
    source = [_code(concepts, about.source_concept)]
    if about.source:
        text = pl.col(about.source)
        short = (text.str.len_chars() <= _LONGEST_CODE) & ~text.str.contains(_CONTROL)
        source.append(pl.when(short).then(pl.format(f"SOURCE//{table.upper()}//{{}}", text)))
    frame = frame.with_columns(_subject(subjects).alias("subject_id"), source=pl.coalesce(source))
    frame = frame.with_columns(code=pl.coalesce(_code(concepts, about.concept), "source"))
    frame = frame.with_columns(omop.time(about.start, frame, zone))
    reason = _first_of(
        {
            Reason.NO_SUBJECT: pl.col("subject_id").is_null(),
            Reason.NO_TIME: pl.col("time").is_null(),
            Reason.NO_CODE: pl.col("code").is_null(),
        }
    )
    kept = _account(table, frame.with_columns(reason=reason), tally)
    values_left = 0
    if about.valued:
        kept, values_left = _with_values(kept, concepts)
    parts = [_complete(kept)]
    if about.ranged:
        value, low, high = pl.col("numeric_value"), omop.number("range_low"), omop.number("range_high")
        side = pl.when(value < low).then(pl.lit("LOW")).when(value > high).then(pl.lit("HIGH"))
        flags = kept.select("subject_id", "time", code=pl.format("{}//{}", "code", side))
        parts.append(_complete(flags.filter(pl.col("code").is_not_null())))
    if about.end:
        ends = kept.with_columns(omop.time(about.end, kept, zone), code=pl.format("VISIT_END//{}", "code"))
        parts.append(_complete(ends.filter(pl.col("time").is_not_null())))
    if about.object:
        objects = kept.with_columns(code=pl.format("EPISODE_OBJECT//{}", _code(concepts, about.object)))
        parts.append(_complete(objects.filter(pl.col("code").is_not_null())))
    above = kept.select("source", "code").drop_nulls().filter(pl.col("source") != pl.col("code")).unique()
    return pl.concat(parts), above, values_left


def _with_values(frame: pl.DataFrame, concepts: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Numbers, texts and units of rows, and how many values were left."""
    frame = frame.with_columns(
        number=omop.number("value_as_number"),
        concept=pl.coalesce(
            _look_up(concepts, omop.concept_id("value_as_concept_id"), "name"),
            pl.format("OMOP//{}", omop.concept_id("value_as_concept_id")),
        ),
        given=pl.coalesce("value_as_string", "value_source_value", "value_as_number"),
        operator=omop.concept_id("operator_concept_id").replace_strict(
            omop.OPERATORS, default=None, return_dtype=pl.String
        ),
    )
    read = _read_texts(frame.filter(pl.col("number").is_null())["given"].drop_nulls().unique())
    frame = frame.join(read, on="given", how="left", maintain_order="left")
    has_number = pl.col("number").is_not_null()
    bare = pl.col("number").cast(pl.String).str.replace(r"\.0$", "")
    limit = pl.when(has_number).then(pl.format("{}{}", "operator", bare)).otherwise("limit")
    unit = pl.coalesce(_look_up(concepts, omop.concept_id("unit_concept_id"), "bare"), "unit_source_value", "sign")
    short = (unit.str.len_chars() <= _LONGEST_UNIT) & ~unit.str.contains(_CONTROL)
    frame = frame.with_columns(
        numeric_value=pl.coalesce("number", "read"),
        text_value=pl.coalesce(limit, "concept", pl.when(~has_number).then("finding")),
        unit=pl.when(short).then(unit),
    )
    lost = pl.col("given").is_not_null() & pl.col("numeric_value").is_null() & pl.col("text_value").is_null()
    return frame, int(frame.select(lost.sum()).item())


def _read_texts(texts: pl.Series) -> pl.DataFrame:
    """What texts say: ``read`` number, ``limit`` as text, ``sign`` (%), ``finding``; ``null`` for what they do not."""
    rows = []
    for text in texts.to_list():
        value, sign, limit = number_in(text) or (None, "", "")
        finding = None if value is not None else finding_in(re.sub(r"\s*\([a-z ]+\)$", "", text))
        rows.append((text, value, sign or None, limit or None, finding))
    schema = {
        "given": pl.String(),
        "read": pl.Float32(),
        "sign": pl.String(),
        "limit": pl.String(),
        "finding": pl.String(),
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _first_of(reasons: dict[Reason, pl.Expr]) -> pl.Expr:
    """The first reason that holds, ``null`` for none."""
    return pl.coalesce([pl.when(holds).then(pl.lit(reason.value)) for reason, holds in reasons.items()])


def _account(table: str, frame: pl.DataFrame, tally: Accounting) -> pl.DataFrame:
    """Count rows by ``reason``; gives those without one."""
    tally.read(table, len(frame))
    kept = frame.filter(pl.col("reason").is_null())
    tally.converted(table, len(kept))
    for reason, n in frame["reason"].drop_nulls().value_counts().iter_rows():
        tally.left(table, Reason(reason), n)
    return kept


def _complete(frame: pl.DataFrame) -> pl.DataFrame:
    """Events with all columns, ``null`` where a table has none."""
    absent = [pl.lit(None, kind).alias(name) for name, kind in _SCHEMA.items() if name not in frame.columns]
    return frame.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())


def _codes(events: pl.DataFrame, concepts: pl.DataFrame, parents: list[pl.DataFrame]) -> pl.DataFrame:
    """One row a code of events or of the source, described by the name of its concept."""
    links = pl.concat([pl.DataFrame(schema={"source": pl.String(), "code": pl.String()}), *parents]).unique()
    above = links.sort("source", "code").group_by("source").agg(parent_codes="code").rename({"source": "code"})
    codes = pl.concat([events["code"], above["code"]]).unique().sort().to_frame()
    names = concepts.select("code", description="name").unique("code", keep="first", maintain_order=True)
    joined = codes.join(names, on="code", how="left", maintain_order="left")
    return joined.join(above, on="code", how="left", maintain_order="left")
