"""Opens the files of a cohort. Whatever bytes are on disk, what comes out is the contents, or ``None`` and one
violation: the libraries that parse JSON, Parquet and HDF5 raise a different error for each kind of damage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ican_ml.cohort.checks import Problems, Severity

if TYPE_CHECKING:
    import polars as pl
    import pyarrow.parquet as pq

T = TypeVar("T")


def read_object(
    path: Path, file: str, problems: Problems, *, code: str, severity: Severity, fix: str
) -> dict[str, Any] | None:
    """Object in a JSON file; ``code``, ``severity`` and ``fix`` say what it means that the file is not there."""
    if not path.exists():
        problems.add(code, file, expected="the file", got="none", fix=fix, severity=severity)
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        problems.add("unreadable", file, expected="JSON", got="something else", fix="correct its syntax")
        return None
    if not isinstance(found, dict):
        got = type(found).__name__
        problems.add("unreadable", file, expected="a JSON object", got=got, fix="see the cohort format")
        return None
    return found


def read_table(path: Path, file: str, problems: Problems) -> pl.DataFrame | None:
    """All of a Parquet file that exists; categories as text."""
    import polars as pl
    import polars.selectors as selectors
    import pyarrow.parquet as pq

    def read() -> pl.DataFrame:
        # Polars' own reader panics on some damaged files, which is no Exception.
        frame = pl.from_arrow(pq.ParquetFile(path).read())
        assert isinstance(frame, pl.DataFrame)
        return frame.with_columns(selectors.categorical().cast(pl.String), selectors.enum().cast(pl.String))

    return opened(read, "a Parquet file", file, problems)


def open_parquet(path: Path, file: str, problems: Problems) -> pq.ParquetFile | None:
    """Parquet file that is read piece by piece, never a whole row group at once."""
    import pyarrow.parquet as pq

    return opened(lambda: pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False), "a Parquet file", file, problems)


def opened(read: Callable[[], T], what: str, file: str, problems: Problems) -> T | None:
    """What ``read`` gives; ``None``, noted, where it fails."""
    try:
        return read()
    except Exception as error:
        _note_damage(error, what, file, problems)
        return None


def each(parts: Iterator[T], what: str, file: str, problems: Problems) -> Iterator[T]:
    """Parts of a file as they are read; they end, noted, at the first that cannot be."""
    try:
        yield from parts
    except Exception as error:
        _note_damage(error, what, file, problems)


def _note_damage(error: Exception, what: str, file: str, problems: Problems) -> None:
    got = f"something else, or a damaged one ({type(error).__name__})"
    problems.add("unreadable", file, expected=what, got=got, fix="write it again")
