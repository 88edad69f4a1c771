"""What every fold of a run shares: the cohort, its records and outcomes, and its splits; nothing here is fitted."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from ican_ml.cohort.cohort import read_cohort
from ican_ml.cohort.simulate import simulate
from ican_ml.cohort.split import Split, folds, split_episodes, values_in_turn
from ican_ml.config import Method, RunConfig
from ican_ml.fold import Prepared, further_episodes, without_treatments
from ican_ml.records.meds import read_records
from ican_ml.records.store import RecordStore
from ican_ml.run_folder import data_hash
from ican_ml.training.outcomes import read_outcomes
from ican_ml.training.pretraining import record_episodes

_log = logging.getLogger(__name__)


def prepare(config: RunConfig) -> Prepared:
    """Read the cohort (simulating it first where the configuration says so), its outcomes and its splits."""
    path = Path(config.cohort.path)
    if not path.exists() and config.cohort.simulate.subjects:
        _log.info("simulating %d subjects, seed %d", config.cohort.simulate.subjects, config.cohort.simulate.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            simulate(part, subjects=config.cohort.simulate.subjects, seed=config.cohort.simulate.seed)
            try:
                part.rename(path)
            except OSError:
                if not path.exists():  # another run that started with this one made the same
                    raise
    cohort = read_cohort(path, task=config.cohort.family, modalities=config.inputs.modalities)
    if unknown := sorted(set(config.inputs.features) - set(cohort.modalities)):
        raise ValueError(f"inputs.features: expected modalities among {sorted(cohort.modalities)}, got {unknown}")
    chosen = {name: cohort.modalities[name].only(features) for name, features in config.inputs.features.items()}
    cohort = replace(cohort, modalities=cohort.modalities | chosen)
    store = stores = None
    if cohort.has_records and config.inputs.records:
        stores = Path(config.runs) / ".records"
        stores.mkdir(parents=True, exist_ok=True)
        (stores / ".gitignore").write_text("*\n")
        store = read_records(path, stores)
    if (wanted := config.cohort.indications) is not None:
        cohort = replace(cohort, episodes=_of_indications(cohort.episodes, wanted))
    if config.cohort.pretraining.per_subject:
        cohort = replace(cohort, episodes=_of_records(config, cohort.episodes, store))
    if not config.inputs.treatments:
        cohort = replace(cohort, episodes=without_treatments(cohort.episodes))
    outcomes = read_outcomes(cohort.episodes, {o.name: o.kind.value for o in config.task.outcomes})
    splits = _splits(config, cohort.episodes)
    _log.info(
        "cohort %s: %d episodes of %d subjects; %s; %s; %d fold(s)",
        cohort.name,
        len(cohort.episodes),
        cohort.episodes["subject_id"].n_unique(),
        ", ".join(f"{m.name} {m.matrix.n_rows:,} x {len(m.features):,}" for m in cohort.modalities.values())
        or "no omics",
        f"{len(store.code):,} record events" if store else "no records",
        len(splits),
    )
    return Prepared(
        cohort=cohort,
        store=store,
        episodes=cohort.episodes,
        outcomes=outcomes,
        splits=splits,
        data_hash=data_hash(path),
        stores=stores,
        further=further_episodes(config, cohort, store, outcomes),
    )


def _of_records(config: RunConfig, episodes: pl.DataFrame, store: RecordStore | None) -> pl.DataFrame:
    """Episodes made of the records, in place of the cohort's own; covariates that these alone have are unknown."""
    if store is None:
        raise ValueError("cohort.pretraining: expected a cohort with records, got none; set inputs.records=true")
    made = record_episodes(
        store,
        episodes,
        config.cohort.pretraining.outcomes,
        per_subject=config.cohort.pretraining.per_subject,
        seed=config.seed,
        keep=list(dict.fromkeys(("indication", "site", "split", config.split.fold_column))),
    )
    _log.info("%d episodes made of the records, in place of %d", len(made), len(episodes))
    absent = [name for name in config.inputs.covariates if name in episodes.columns and name not in made.columns]
    return made.with_columns(pl.lit(None, episodes.schema[name]).alias(name) for name in absent)


def _splits(config: RunConfig, episodes: pl.DataFrame) -> dict[str, Split]:
    split = config.split
    settings: dict[str, Any] = {
        "seed": config.seed,
        "fold_column": split.fold_column,
        "tuning_fraction": split.tuning_fraction,
        "held_out_fraction": split.held_out_fraction,
        "by_subject": split.by_subject,
        "after": split.after,
        "train_subjects": split.train_subjects,
    }
    if split.method is Method.folds:
        numbers = folds(episodes, split.fold_column)
        return {f"fold-{n}": split_episodes(episodes, method="fold", fold=n, **settings) for n in numbers}
    if split.method in (Method.indication, Method.site) and split.value is None:
        method = split.method.value
        values = values_in_turn(episodes, method)
        _log.info("held out in turn: %s", ", ".join(values))
        return {
            f"{method}-{n}": split_episodes(episodes, method=method, value=value, **settings)
            for n, value in enumerate(values)
        }
    settings["value"] = split.value
    name = f"fold-{split.fold}" if split.method is Method.fold else "split"
    return {name: split_episodes(episodes, method=split.method.value, fold=split.fold, **settings)}


def _of_indications(episodes: pl.DataFrame, wanted: list[str]) -> pl.DataFrame:
    known = episodes["indication"].drop_nulls().unique().sort().to_list() if "indication" in episodes.columns else []
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"cohort.indications: expected some of {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    return episodes.filter(episodes["indication"].is_in(wanted))
