"""``ican simulate``: write a simulated cohort whose truth is planted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("simulate", help="write a simulated cohort, its truth planted")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--subjects", type=int, default=3000, help="how many (default 3000)")
    parser.add_argument("--seed", type=int, default=7, help="same seed, same cohort (default 7)")
    parser.set_defaults(run=_run, extra="train")


def _run(parsed: argparse.Namespace) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ican_ml.cohort.simulate import simulate

    with tqdm(total=5, disable=None, unit="step") as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(what)
            bar.update(done - bar.n)

        summary = simulate(parsed.out, subjects=parsed.subjects, seed=parsed.seed, progress=tell)
    for name, value in summary.table().items():
        print(f"{name.replace('_', ' '):28} {value:>12}")
