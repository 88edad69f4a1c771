"""``ican validate``: say what a cohort holds and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ican_ml.cohort.checks import Violation
    from ican_ml.cohort.validate import Report
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("validate", help="say what a cohort holds and what is wrong with it")
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="folder of a cohort, or of a MEDS dataset")
    parser.add_argument("--strict", action="store_true", help="count warnings as errors")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run, extra="cohort")


def _run(parsed: argparse.Namespace) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ican_ml.cohort.validate import validate

    with tqdm(disable=None, unit="B", unit_scale=True, leave=False) as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(what)
            bar.update(done - bar.n)

        report = validate(parsed.cohort, tell)
    print(json.dumps(report.as_dictionary(), indent=2) if parsed.json else _as_text(report))
    if report.count("error") or (parsed.strict and report.violations):
        sys.exit(1)


def _as_text(report: Report) -> str:
    from ican_ml.evaluation.table import summary_table

    parts = report.summary
    blocks = [f"cohort {report.name}"]
    if subjects := parts.get("subjects"):
        blocks.append("subjects: " + ", ".join(f"{n:,} {what}" for what, n in subjects.items()))
    if omics := parts.get("omics"):
        blocks.append(summary_table([{**line, "assays": _pairs(line["assays"])} for line in omics]))
    if records := parts.get("records"):
        blocks.append(summary_table([{name: str(n) if "year" in name else n for name, n in records.items()}]))
    if episodes := parts.get("episodes"):
        blocks.append(summary_table([{**line, "outcomes": _outcomes(line["outcomes"])} for line in episodes]))
    blocks += [_as_lines(violation) for violation in report.violations]
    n_errors, n_warnings = report.count("error"), report.count("warning")
    return "\n\n".join([*blocks, f"{_plural(n_errors, 'error')}, {_plural(n_warnings, 'warning')}"])


def _as_lines(violation: Violation) -> str:
    where = [violation.file, *([violation.column] if violation.column else [])]
    if violation.n_rows:
        more = ", ..." if violation.n_rows > len(violation.rows) else ""
        rows = f" {', '.join(map(str, violation.rows))}{more}" if violation.rows else ""
        where.append(f"row{rows}" if violation.n_rows == 1 else f"{violation.n_rows:,} rows{':' if rows else ''}{rows}")
    return "\n".join(
        [
            f"{violation.severity} {violation.code}: {', '.join(where)}",
            f"  expected {violation.expected}",
            f"  got {violation.got}",
            f"  {violation.fix}",
        ]
    )


def _pairs(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _outcomes(outcomes: dict[str, dict[str, Any]]) -> str:
    texts = []
    for name, figures in outcomes.items():
        what = next(figure for figure in figures if figure != "known")
        value = f"{figures[what]:.2f}" if what == "mean" else f"{figures[what]:.1%}"
        texts.append(f"{name} {value} {what} of {figures['known']:,}")
    return "; ".join(texts)


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
