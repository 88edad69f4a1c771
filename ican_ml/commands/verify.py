"""``ican verify``: is a bundle what was exported, and does it compute here what it should?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("verify", help="check every byte of a bundle, its graph and its golden cases")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument(
        "--sha256", metavar="DIGEST", help="of the manifest, as the research environment told it: tells a forged bundle"
    )
    parser.add_argument(
        "--subjects", type=Path, metavar="FILE", help="text file, a subject id a line: none may stand in the bundle"
    )
    parser.set_defaults(run=_run, extra="serve")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.bundle.private import check_private
    from ican_ml.bundle.read import BundleError
    from ican_ml.serving.predictor import Predictor

    predictor = Predictor(parsed.bundle)
    if parsed.sha256 is not None and parsed.sha256.lower() != predictor.digest:
        raise BundleError(
            f"bundle: expected the manifest {parsed.sha256:.80}, got {predictor.digest}; it is another one"
        )
    ids = parsed.subjects.read_text().split() if parsed.subjects is not None else []
    check_private(parsed.bundle, ids)
    print("every file is as exported, nothing in it names a machine or a subject, and the golden cases come out")
    print(f"manifest sha256 {predictor.digest}")
