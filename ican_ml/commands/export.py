"""``ican export``: write the bundle of a finished run again, with this version of the exporter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "export",
        help="write the bundle of a finished run again",
        epilog="example: ican export runs/demo --out bundles/demo-2",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of the run, like runs/demo")
    parser.add_argument("--fold", metavar="NAME", help="whose network, where there are several; default: the first")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/bundle, which is replaced")
    parser.set_defaults(run=_run, extra="train")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.release import export_run

    out = parsed.out or parsed.run_folder / "bundle"
    fold, difference = export_run(parsed.run_folder, out, fold=parsed.fold)
    print(f"bundle of {fold} written to {out}; ONNX and torch agree within {difference:.1e}")
