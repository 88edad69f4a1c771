"""``ican reproduce``: run a finished run again from what it kept, and compare the metrics."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands

_SHOWN = 20


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "reproduce",
        help="run a finished run again and compare the metrics",
        epilog="example: ican reproduce runs/demo. It refuses other data, names other versions, and writes "
        "runs/demo-again; exit code 1 if a metric differs by more than --tolerance.",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of the run, like runs/demo")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="absolute difference that is none (%(default)g)"
    )
    parser.set_defaults(run=_run, extra="train")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.evaluation.table import summary_table
    from ican_ml.reproduce import reproduce

    if not parsed.tolerance >= 0:
        raise ValueError(f"--tolerance: expected a number of at least 0, got {parsed.tolerance}")
    found = reproduce(parsed.run_folder, tolerance=parsed.tolerance)
    for name, (then, now) in found.versions.items():
        print(f"{name}: {then} then, {now} now")
    print(f"{found.compared} figures compared, largest difference {found.largest:g}; the run again: {found.folder}")
    if not found.differences:
        return
    rows = [{"figure": name, "then": str(a), "now": str(b)} for name, (a, b) in found.differences.items()]
    print(summary_table(rows[:_SHOWN]))
    sys.exit(f"reproduce: {len(rows)} figures differ by more than {parsed.tolerance:g}")
