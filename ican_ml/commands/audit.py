"""``ican audit``: do labels leak, and does mere bookkeeping predict the outcome? For a cohort before it is believed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from ican_ml.commands import Commands
    from ican_ml.config import OutcomeConfig, SplitConfig

_KINDS = ("binary", "survival", "regression")
_SCORERS = ("ridge", "boosting", "linear path", "network")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "audit",
        help="look for leaks of labels and artefacts of bookkeeping",
        epilog="example: ican audit cohorts/simulated --covariate indication --covariate line --scorer boosting",
    )
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="folder of the cohort")
    parser.add_argument("--task", metavar="FAMILY", help="family of episodes, where the cohort has several")
    parser.add_argument("--outcome", metavar="NAME", help="default: response, sensitivity or the first survival one")
    parser.add_argument("--kind", choices=_KINDS, help="of the outcome (default: as its columns say)")
    parser.add_argument(
        "--covariate", action="append", metavar="NAME", help="column known beforehand; repeatable (default: indication)"
    )
    parser.add_argument(
        "--split",
        choices=("file", "fold", "folds", "hash"),
        help="who is held out: by the split column, the first fold, every fold, or a hash of the subject "
        "(default: the first of file, fold and hash that the cohort has columns for)",
    )
    parser.add_argument("--fold-column", default="fold", metavar="NAME", help="column of folds (default: fold)")
    parser.add_argument("--permutations", type=int, default=10, metavar="N", help="0 = none (default 10)")
    parser.add_argument("--scorer", choices=_SCORERS, default="ridge", help="of permuted outcomes (default: ridge)")
    parser.add_argument("--seed", type=int, default=7, help="same seed, same audit (default 7)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run, extra="train")


def _run(parsed: argparse.Namespace) -> None:
    from ican_ml.audit.audit import audit_cohort
    from ican_ml.cohort.cohort import read_cohort
    from ican_ml.config import CohortConfig, EvaluationConfig, RunConfig, TaskConfig
    from ican_ml.inputs.fit import InputConfig
    from ican_ml.prepare import prepare

    episodes = read_cohort(parsed.cohort, task=parsed.task, modalities=[]).episodes
    config = RunConfig(
        seed=parsed.seed,
        cohort=CohortConfig(path=str(parsed.cohort), family=parsed.task),
        task=TaskConfig(outcomes=[choose_outcome(episodes, parsed.outcome, parsed.kind)]),
        split=choose_split(episodes, parsed.split, parsed.fold_column),
        inputs=InputConfig(covariates=parsed.covariate or [c for c in ("indication",) if c in episodes.columns]),
        evaluation=EvaluationConfig(permutations=parsed.permutations),
    )
    audit = audit_cohort(config, prepare(config), scorer=parsed.scorer)
    if parsed.json:
        print(json.dumps(audit.to_dict()))
    else:
        print("\n\n\n".join(section.text() for section in audit.sections()))


def choose_outcome(episodes: pl.DataFrame, name: str | None, kind: str | None) -> OutcomeConfig:
    """The outcome that was asked for, or the first that has labels; its kind from its columns.

    Raises
    ------
    ValueError
        If there is no such outcome, or none at all.
    """
    from ican_ml.config import Kind, OutcomeConfig

    labelled = [column for column in episodes.columns if episodes[column].null_count() < len(episodes)]
    survival = [column.removesuffix("_event") for column in labelled if column.endswith("_event")]
    known = [column for column in ("response", "sensitivity") if column in labelled] + survival
    name = name or next(iter(known), None)
    if name is None:
        raise ValueError(
            f"expected a labelled outcome in the episodes, got columns {', '.join(labelled)}; name one: --outcome"
        )
    if kind is None and name not in known and name not in labelled:
        raise ValueError(f"--outcome: expected one of {', '.join(known) or 'none here'}, got {name!r}")
    if kind is None:
        kind = "survival" if name in survival else "binary" if _is_binary(episodes[name]) else "regression"
    return OutcomeConfig(name=name, kind=Kind[kind])


def _is_binary(column: pl.Series) -> bool:
    return set(column.drop_nulls().unique().to_list()) <= {0, 1}


def choose_split(episodes: pl.DataFrame, method: str | None, fold_column: str) -> SplitConfig:
    """The way of splitting that was asked for, or the first of file, fold and hash that there are columns for."""
    from ican_ml.cohort.split import folds
    from ican_ml.config import Method, SplitConfig

    if method is None:
        filed = "split" in episodes.columns and not episodes["split"].null_count()
        method = "file" if filed else "fold" if fold_column in episodes.columns else "hash"
    first = folds(episodes, fold_column)[0] if method == "fold" else None
    return SplitConfig(method=Method[method], fold_column=fold_column, fold=first)
