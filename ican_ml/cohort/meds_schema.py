"""Files and columns of a MEDS 0.4 dataset (https://github.com/Medical-Event-Data-Standard/meds): what must be there.

In: a folder, the Arrow schema of a file. Out: violations, noted. A type that converts without loss is a warning, since
readers convert it; any other is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ican_ml.cohort.checks import Problems, shown

if TYPE_CHECKING:
    import pyarrow as pa

ZONE_FIX = (
    "convert it to the local wall time of the source (polars: dt.convert_time_zone(source_timezone)"
    ".dt.replace_time_zone(None)) and write source_timezone in cohort.json"
)


def data_files(records: Path, prefix: str, problems: Problems) -> list[tuple[Path, str]]:
    """Data files of a dataset, each with its path in the cohort; ``prefix`` is ``records/`` there."""
    paths = sorted((records / "data").rglob("*.parquet"))
    if not paths:
        fix = "add them or remove records/" if prefix else "add them"
        problems.add("missing-file", f"{prefix}data", expected="Parquet files", got="none", fix=fix)
    return [(path, prefix + path.relative_to(records).as_posix()) for path in paths]


def check_schema(name: str, schema: pa.Schema, file: str, problems: Problems) -> bool:
    """Columns and types against one of the schemas of ``meds``, by its name; whether the rows can be read."""
    import meds

    standard: Any = getattr(meds, name)
    noted = problems.n_errors
    required = standard.required_columns()
    if absent := [name for name in required if name not in schema.names]:
        problems.add(
            "missing-column",
            file,
            column=absent[0],
            expected=shown(required),
            got=f"no {shown(absent)}",
            fix="write MEDS 0.4",
        )
    for column in standard.columns():
        if schema.names.count(column) > 1:
            problems.add(
                "wrong-dtype", file, column=column, expected=f"one column {column}", got="several", fix="keep one"
            )
        elif column in schema.names:
            _check_type(column, standard.schema().field(column).type, schema.field(column).type, file, problems)
    return problems.n_errors == noted


def _check_type(name: str, expected: pa.DataType, found: pa.DataType, file: str, problems: Problems) -> None:
    import pyarrow as pa

    if found == expected:
        return
    if pa.types.is_timestamp(found) and found.tz is not None:
        problems.add(
            "timezone",
            file,
            column=name,
            expected=f"{name} without a timezone",
            got=f"timezone {found.tz}",
            fix=ZONE_FIX,
        )
        return
    kept = _converts(found, expected)
    problems.add(
        "inexact-dtype" if kept else "wrong-dtype",
        file,
        column=name,
        severity="warning" if kept else "error",
        expected=f"{name} of type {expected}",
        got=str(found),
        fix="convert it (meds.DataSchema.align)" if kept else "parse it",
    )


def _converts(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether readers take a type for the expected one."""
    from pyarrow import types

    if types.is_dictionary(found):
        found = found.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    if types.is_null(found):
        return True
    if any(text(expected) for text in texts):
        return any(text(found) for text in texts)
    if types.is_integer(expected):
        return bool(types.is_integer(found) and not types.is_uint64(found))
    if types.is_floating(expected):
        return bool(types.is_integer(found) or types.is_floating(found))
    if types.is_timestamp(expected):
        return bool(types.is_timestamp(found) or types.is_date32(found))
    lists = (types.is_list, types.is_large_list)
    return any(kind(found) for kind in lists) and _converts(found.value_type, expected.value_type)
