"""``ican evaluate``: how good is a bundle on a cohort, and what shifted against training. Torch-free."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a bundle on a cohort, and say what shifted against training",
        epilog="example: ican evaluate runs/demo/bundle cohorts/other --out evaluation. What it writes holds no "
        "subject, and no group of fewer than 10 subjects. Every episode counts: on the training cohort the figures "
        "are too good.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="folder of a cohort with outcomes")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write evaluation.json and evaluation.html there")
    parser.add_argument("--task", metavar="FAMILY", help="only the episodes whose task column says so")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run, extra="cohort")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.evaluation.report import write_report
    from ican_ml.transfer import evaluate_bundle

    found = evaluate_bundle(parsed.bundle, parsed.cohort, family=parsed.task)
    document = json.dumps(found.document, indent=1)
    if parsed.out is not None:
        parsed.out.mkdir(parents=True, exist_ok=True)
        (parsed.out / "evaluation.json").write_text(document + "\n", encoding="utf-8")
        write_report(parsed.out / "evaluation.html", found.report)
    print(document if parsed.json else found.table)
