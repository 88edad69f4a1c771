"""``ican targets``: which genes tell who benefits from which drug, and which drugs share a target."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands
    from ican_ml.targets.config import TargetsConfig


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "targets",
        help="rank genes as targets and as markers of response and resistance, drug by drug",
        epilog="examples: ican targets cohorts/simulated --out targets.parquet   (the cohort's own outcomes: minutes). "
        "ican targets runs/demo   (and its network: virtual inhibition, attribution, alteration; fits it anew without "
        "each share of the drugs; writes targets.parquet and targets.html into the run).",
    )
    parser.add_argument("source", type=Path, metavar="COHORT|RUN", help="folder of a cohort, or of a finished run")
    parser.add_argument("--task", metavar="FAMILY", help="of a cohort with several families of episodes")
    parser.add_argument("--outcome", metavar="NAME", help="default: response, sensitivity or the first survival one")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.parquet",
        help="of a cohort: every drug and gene, no subject",
    )
    parser.add_argument("--by", choices=("drug", "class"), default="drug", help="class: drugs of one ATC code together")
    parser.add_argument("--permutations", type=int, default=1000, metavar="N", help="of the outcomes (%(default)s)")
    parser.add_argument("--level", type=float, default=0.1, metavar="Q", help="false discovery rate (%(default)s)")
    parser.add_argument(
        "--lists", type=Path, metavar="FILE.csv", help="gene,list: known drivers, known targets, essential genes ..."
    )
    parser.add_argument("--seed", type=int, default=7, help="of a cohort: same seed, same table (%(default)s)")
    parser.set_defaults(run=_run, extra="train")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.targets.config import TargetsConfig

    lists = str(parsed.lists) if parsed.lists is not None else None
    settings = TargetsConfig(by=parsed.by, permutations=parsed.permutations, level=parsed.level, lists=lists)
    if (parsed.source / "cohort.json").exists():
        _of_cohort(parsed, settings)
        return
    if parsed.out is not None or parsed.task is not None or parsed.outcome is not None:
        raise ValueError("--out, --task, --outcome: expected with a cohort's folder only; a run has its own")
    from ican_ml.config import read_config
    from ican_ml.pipeline import run

    config = read_config(parsed.source)
    known = config.targets
    settings = replace(settings, networks=known.networks, patients=known.patients, genes=known.genes)
    run(replace(config, discover=True, targets=settings))


def _of_cohort(parsed: argparse.Namespace, settings: TargetsConfig) -> None:
    out: Path | None = parsed.out
    if out is None or out.suffix != ".parquet" or not out.absolute().parent.is_dir():
        got = "nothing" if out is None else repr(out.name)
        raise ValueError(f"--out: expected a file in a folder that exists, ending in .parquet, got {got}")
    from ican_ml.cohort.cohort import read_cohort
    from ican_ml.commands.audit import choose_outcome
    from ican_ml.targets.discover import discover
    from ican_ml.targets.lists import with_lists
    from ican_ml.targets.observations import Observations
    from ican_ml.targets.page import Page, write_page
    from ican_ml.training.outcomes import read_outcomes

    cohort = read_cohort(parsed.source, task=parsed.task)
    chosen = choose_outcome(cohort.episodes, parsed.outcome, None)
    outcome = read_outcomes(cohort.episodes, {chosen.name: chosen.kind.value})[chosen.name]
    observed = Observations.of(cohort, outcome, by=settings.choice)
    table = with_lists(discover(observed, permutations=settings.permutations, seed=parsed.seed), settings.lists)
    table.write_parquet(out)
    page = Page(title=f"{cohort.name}, {chosen.name}", table=table, observed=observed, level=settings.level)
    print(write_page(out.with_suffix(".html"), page))
