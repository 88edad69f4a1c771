"""``ican link``: put a pseudonym in the place of a personal identifier, the same in every source."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("link", help="replace identity codes by a subject_id that joins sources")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    key = actions.add_parser("new-key", help="make a secret key, in a file outside every cohort")
    key.add_argument("file", type=Path, metavar="FILE", help="file to make, mode 600")
    key.set_defaults(run=_new_key, extra="cohort")
    table = actions.add_parser("table", help="replace the identifiers of one table")
    table.add_argument("source", type=Path, metavar="SOURCE", help="CSV or Parquet file")
    table.add_argument("out", type=Path, metavar="OUT", help="file to make, .csv or .parquet")
    table.add_argument("--key", type=Path, required=True, metavar="FILE", help="the key; the same for every source")
    table.add_argument("--column", default="identifier", help="column of the identity codes (default identifier)")
    table.set_defaults(run=_table, extra="cohort")


def _new_key(parsed: argparse.Namespace) -> None:
    from ican_ml.cohort.link import new_key

    new_key(parsed.file)
    print("key written; keep it apart from the data: whoever holds both can find out who is who")


def _table(parsed: argparse.Namespace) -> None:
    from ican_ml.cohort.link import link, read_key, read_source, write_linked
    from ican_ml.evaluation.table import Cell, summary_table

    key = read_key(parsed.key, beside=[parsed.out])
    linked, report = link(read_source(parsed.source), parsed.column, key)
    write_linked(linked, parsed.out)
    print(f"{report.read:,} rows read, {report.linked:,} linked, {report.subjects:,} subjects")
    if report.left:
        lines: list[dict[str, Cell]] = [
            {"left out": reason.value, "rows": n, "because": reason.meaning} for reason, n in report.left.items()
        ]
        print("\n" + summary_table(lines))
