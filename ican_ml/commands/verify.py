"""``ican verify``: check every byte of a bundle and its golden cases."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("verify", help="check every byte of a bundle and its golden cases")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.set_defaults(run=_run, extra="serve")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.serving.predictor import Predictor

    Predictor(parsed.bundle)
    print("every file is as exported, and the golden cases come out as they should")
