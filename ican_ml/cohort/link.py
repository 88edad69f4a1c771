"""Joins sources on a personal identifier without keeping it: a keyed hash of the identity code becomes subject_id.

In: a table with a column of Finnish identity codes (henkilötunnus, DDMMYYCZZZQ), and a secret key. Out: the same table
with ``subject_id`` (int64, 63 bits of HMAC-SHA256, RFC 2104) in that column's place, and how many rows had no code to
link, by reason. The same key gives the same person the same subject_id in every source; without the key a subject_id
cannot be traced back, though there are few enough codes to try them all with it. So the key lies outside the cohort.

Identity codes follow the Population Information Decree 128/2010 as amended in 2022: the century sign is ``+`` (1800s),
``- U V W X Y`` (1900s) or ``A B C D E F`` (2000s) and part of the code; Q is DDMMYYZZZ modulo 31. Individual numbers
900-999 mark temporary codes, which each unit gives out for itself: two people in two sources may share one, so they are
not linked.

No message and no result of this module holds an identifier. Tables are held in memory.
"""

from __future__ import annotations

import datetime
import hmac
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

KEY_BYTES = 32
_CENTURY = {"+": 1800, **dict.fromkeys("-UVWXY", 1900), **dict.fromkeys("ABCDEF", 2000)}
_CONTROL = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_CODE = re.compile(r"([0-9]{2})([0-9]{2})([0-9]{2})([-+A-FU-Y])([0-9]{3})([0-9A-FHJ-NPR-Y])")
_CODE_IN_TEXT = r"(?i)[0-9]{6}\s*[-+A-FU-Y]\s*[0-9]{3}\s*[0-9A-FHJ-NPR-Y]"
_PURPOSE = b"ican-subject/1\0"
_SEPARATORS = ",;\t|"


class Invalid(StrEnum):
    """Why a row has no subject_id. The list is closed."""

    MISSING = "missing"
    FORM = "form"
    DATE = "date"
    NUMBER = "number"
    CONTROL = "control"
    TEMPORARY = "temporary"

    @property
    def meaning(self) -> str:
        """What it means, and what to do."""
        return _MEANING[self]


_MEANING = {
    Invalid.MISSING: "no identifier: look it up in the source",
    Invalid.FORM: "not of the form DDMMYYCZZZQ: correct it in the source, or choose the right column",
    Invalid.DATE: "its day of birth is not in the calendar: correct it in the source",
    Invalid.NUMBER: "its individual number is 000 or 001, which nobody has: correct it in the source",
    Invalid.CONTROL: "its control character is wrong, a misprint: correct it in the source",
    Invalid.TEMPORARY: "a temporary code (900-999), which two people may share: replace it by the permanent one",
}


class LinkError(ValueError):
    """A key or a table that cannot be used; the message holds no identifier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkReport:
    """How many rows were read, linked and left out by reason, and how many subjects they are of."""

    read: int
    linked: int
    subjects: int
    left: dict[Invalid, int]


def normalise(identifier: str) -> str:
    """The identifier without blanks, in capitals."""
    return "".join(identifier.split()).upper()


def fault(code: str) -> Invalid | None:
    """What is wrong with a normalised identity code; ``None`` where it can be linked.

    >>> fault("131052-308T"), fault("131052-308U")
    (None, <Invalid.CONTROL: 'control'>)
    """
    if not code:
        return Invalid.MISSING
    match = _CODE.fullmatch(code)
    if match is None:
        return Invalid.FORM
    day, month, year, century, number, control = match.groups()
    try:
        datetime.date(_CENTURY[century] + int(year), int(month), int(day))
    except ValueError:
        return Invalid.DATE
    if int(number) < 2:
        return Invalid.NUMBER
    if control != _CONTROL[int(day + month + year + number) % len(_CONTROL)]:
        return Invalid.CONTROL
    return Invalid.TEMPORARY if number >= "900" else None


def subject_of(code: str, key: bytes) -> int:
    """subject_id of a normalised code: the first 63 bits of its HMAC-SHA256."""
    return int.from_bytes(hmac.digest(key, _PURPOSE + code.encode(), "sha256")[:8], "big") >> 1


def link(frame: pl.DataFrame, column: str, key: bytes) -> tuple[pl.DataFrame, LinkReport]:
    """Put ``subject_id`` in the place of an identifier.

    Parameters
    ----------
    frame
        Columns of plain types; ``column`` is text.
    key
        Of :func:`read_key`.

    Returns
    -------
    linked : DataFrame
        Rows that could be linked, by subject_id: the order of the source may be that of the identifiers. Rows of one
        subject keep their order.
    report : LinkReport

    Raises
    ------
    LinkError
        If the column is missing, another column or its name holds an identity code, a column is nested, or two codes
        share a subject_id.
    """
    import polars as pl

    _check_columns(frame, column)
    texts = frame[column].cast(pl.String).fill_null("")
    subject: dict[str, int | None] = {}
    faults: dict[str, Invalid] = {}
    of_subject: dict[int, str] = {}
    for text in texts.unique().to_list():
        code = normalise(text)
        wrong = fault(code)
        if wrong is not None:
            faults[text] = wrong
            continue
        number = subject_of(code, key)
        if of_subject.setdefault(number, code) != code:
            raise LinkError("expected one person a subject_id, got two: make a new key and link every source again")
        subject[text] = number
    left = Counter(faults[text] for text in texts.to_list() if text in faults)
    numbers = texts.replace_strict(subject, default=None, return_dtype=pl.Int64).alias("subject_id")
    place = frame.columns.index(column)
    linked = frame.drop(column).insert_column(place, numbers).filter(pl.col("subject_id").is_not_null())
    linked = linked.sort("subject_id", maintain_order=True)
    report = LinkReport(
        read=len(frame),
        linked=len(linked),
        subjects=len(of_subject),
        left={reason: left[reason] for reason in Invalid if left[reason]},
    )
    assert report.read == report.linked + sum(report.left.values())
    return linked, report


def read_source(path: Path) -> pl.DataFrame:
    """Read a Parquet file, or a CSV (UTF-8, fields apart by comma, semicolon, tab or bar) with every column as text.

    Raises
    ------
    LinkError
        If it cannot be read.
    """
    import polars as pl

    if not path.is_file():
        raise LinkError(f"expected a file, got none at {path}: check the path")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        with path.open(encoding="utf-8-sig") as lines:
            header = lines.readline()
        separator = max(_SEPARATORS, key=header.count)
        return pl.read_csv(path, separator=separator, infer_schema=False)
    except (OSError, ValueError, pl.exceptions.PolarsError):
        # The libraries' messages quote the line at fault.
        raise LinkError(
            f"{path.name}: expected a Parquet file, or a CSV in UTF-8 with a header; write it again"
        ) from None


def write_linked(frame: pl.DataFrame, path: Path) -> None:
    """Write a linked table as the suffix says, Parquet or CSV, all of it or nothing.

    Raises
    ------
    LinkError
        If the file is there already, or is to be of another kind.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise LinkError(f"expected a file name ending in .parquet or .csv, got {path.name!r}")
    if path.exists():
        raise LinkError(f"expected a new file, got {path.name!r} that is there already: remove it or choose another")
    part = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".parquet":
            frame.write_parquet(part)
        else:
            frame.write_csv(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def new_key(path: Path) -> None:
    """Write a new random key that only its owner can read.

    Raises
    ------
    LinkError
        If the file is there already, or lies in a cohort.
    """
    _refuse_in_cohort(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise LinkError(
            f"expected a new file, got {path.name!r} that is there already: a key is never replaced"
        ) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, 0o600)
        file.write(secrets.token_hex(KEY_BYTES) + "\n")


def read_key(path: Path, beside: Sequence[Path] = ()) -> bytes:
    """Read a key of at least 32 bytes, written as hexadecimal digits.

    Parameters
    ----------
    beside
        Files that must not lie in the key's folder: what is given away together is no secret.

    Raises
    ------
    LinkError
        If there is no key, it lies in a cohort or in a folder of ``beside``, others may read it, or it is too short.
    """
    _refuse_in_cohort(path)
    if any(path.resolve().parent == other.resolve().parent for other in beside):
        raise LinkError("expected the key in a folder of its own, got it beside the linked table: move it away")
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1 << 16)
    except OSError as error:
        raise LinkError(f"expected a key file, got {error.strerror}: make one with ican link new-key") from None
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise LinkError(f"expected a key that only its owner can read, got mode {mode & 0o777:o}: chmod 600 it")
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise LinkError("expected a key in hexadecimal digits, got something else: see ican link new-key") from None
    if len(key) < KEY_BYTES:
        raise LinkError(
            f"expected a key of at least {KEY_BYTES} bytes, got {len(key)}: make one with ican link new-key"
        )
    return key


def _refuse_in_cohort(path: Path) -> None:
    """A cohort is handed on; a folder above the key that holds one would take the key along."""
    for folder in path.resolve().parents:
        if any((folder / name).exists() for name in ("cohort.json", "episodes.parquet", "metadata/dataset.json")):
            raise LinkError(f"expected a key outside every cohort, got it inside {folder.name!r}: move it away")


def _check_columns(frame: pl.DataFrame, column: str) -> None:
    import polars as pl
    import polars.selectors as selectors

    # Without a header the names are a row of the table, so no message shows them.
    if column not in frame.columns:
        raise LinkError(f"expected a column {column!r} of identifiers, got {len(frame.columns)} others: name it")
    if frame.schema[column] not in (pl.String, pl.Null):
        raise LinkError(f"column {column!r}: expected text, got {frame.schema[column]}: write it as text")
    rest = frame.drop(column)
    if "subject_id" in rest.columns:
        raise LinkError("expected no column subject_id beside the identifier, got one: rename it")
    if any(dtype.is_nested() or dtype in (pl.Binary, pl.Object) for dtype in rest.dtypes):
        raise LinkError("expected columns of plain types, got nested or binary ones: take them apart or leave them out")
    texts = rest.select(selectors.string() | selectors.categorical() | selectors.enum())
    for place, values in enumerate([pl.Series(rest.columns, dtype=pl.String), *texts.cast(pl.String).iter_columns()]):
        n_rows = sum(map(_holds_code, values.drop_nulls().filter(values.drop_nulls().str.contains(_CODE_IN_TEXT))))
        if n_rows:
            where = f"column {frame.columns.index(values.name) + 1}" if place else "the column names"
            raise LinkError(f"{where}: expected no identity code, got {n_rows} rows with one: remove them first")


def _holds_code(text: str) -> bool:
    found = (normalise(match.group()) for match in re.finditer(_CODE_IN_TEXT, text))
    return any(fault(code) in (None, Invalid.TEMPORARY) for code in found)
