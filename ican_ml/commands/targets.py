"""``ican targets``: which genes tell who benefits from which drug, and which drugs share a target."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from ican_ml.commands import Commands

_SHOWN = 20


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "targets",
        help="rank genes as targets and as markers of resistance, drug by drug",
        epilog="example: ican targets cohorts/simulated --outcome response --out targets.parquet",
    )
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="folder of the cohort")
    parser.add_argument("--task", metavar="FAMILY", help="family of episodes, where the cohort has several")
    parser.add_argument("--outcome", metavar="NAME", help="default: response, sensitivity or the first survival one")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.parquet", help="every drug and gene; no subject"
    )
    parser.add_argument("--by", choices=("drug", "class"), default="drug", help="class: drugs of one ATC code together")
    parser.add_argument("--permutations", type=int, default=1000, metavar="N", help="of the outcomes (%(default)s)")
    parser.add_argument("--level", type=float, default=0.1, metavar="Q", help="false discovery rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="same seed, same table (%(default)s)")
    parser.set_defaults(run=_run, extra="train")


def _run(parsed: argparse.Namespace) -> None:
    if parsed.permutations < 1 or not 0 < parsed.level < 1:
        raise ValueError("--permutations, --level: expected at least 1 permutation and a level between 0 and 1")
    if parsed.out.suffix != ".parquet" or not parsed.out.absolute().parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists, ending in .parquet, got {parsed.out.name!r}")
    from ican_ml.cohort.cohort import read_cohort
    from ican_ml.commands.audit import choose_outcome
    from ican_ml.targets.discover import discover
    from ican_ml.training.outcomes import read_outcomes

    cohort = read_cohort(parsed.cohort, task=parsed.task)
    chosen = choose_outcome(cohort.episodes, parsed.outcome, None)
    outcome = read_outcomes(cohort.episodes, {chosen.name: chosen.kind.value})[chosen.name]
    found = discover(cohort, outcome, by=parsed.by, permutations=parsed.permutations, seed=parsed.seed)
    found.write_parquet(parsed.out)
    for sign, title in ((1, "benefit more"), (-1, "benefit less")):
        print(_summary(found, sign, f"{title} ({chosen.name})", parsed.level))


def _summary(found: pl.DataFrame, sign: int, title: str, level: float) -> str:
    import polars as pl

    from ican_ml.evaluation.table import summary_table

    by = found.columns[0]
    told = found.filter((pl.col("q") <= level) & (pl.col("z") * sign > 0)).sort("q", pl.col("z") * -sign)
    rows = [
        {
            by.capitalize(): row[by],
            "Gene": row["gene"],
            "Episodes": row["episodes"],
            "By": row["modality"],
            "z": row["z"],
            "Elsewhere": row["elsewhere"],
            "q": row["q"],
            "Rank": row["rank"],
            "Listed": "yes" if row["known"] else "",
        }
        for row in told.head(_SHOWN).iter_rows(named=True)
    ]
    head = f"Those in whom the gene is higher or altered {title}: {len(told)} at a false discovery rate of {level:g}"
    more = f"\n... and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return f"{head}\n\n{summary_table(rows)}{more}\n" if rows else f"{head}\n"
