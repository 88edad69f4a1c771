"""The fit of one fold as a stage of a run: schema, network, calibration and applicability, kept on disk.

A fit is keyed by configuration, data and code (:mod:`ican_ml.run_folder`): asked for again, it is not done again.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch

import ican_ml
from ican_ml.cohort.split import Split
from ican_ml.config import RunConfig
from ican_ml.fold import Prepared, fit_fold, indication_of, with_further
from ican_ml.release import EARLIER, MODEL_FILE, NETWORK_FILE, SCHEMA_FILE, load_fitted
from ican_ml.run_folder import RESULT, RunFolder, Stage, stage_key
from ican_ml.training.applicability import fit_embedding
from ican_ml.training.distributed import Ranks
from ican_ml.training.loggers import close_loggers, run_loggers
from ican_ml.training.loop import fit
from ican_ml.training.progress import Report

_log = logging.getLogger(__name__)
_SUBJECTS = "subjects.npz"


def _pretrained(config: RunConfig, name: str) -> Path | None:
    """The fit stage that ``training.init_from`` names: of the same fold, or the only one."""
    if config.training.init_from is None:
        return None
    private = Path(config.runs) / config.training.init_from / "private"
    found = sorted(path.parent for path in private.glob(f"*/fit/{RESULT}"))
    same = [path for path in found if path.parent.name == name]
    if len(same or found) != 1:
        had = ", ".join(path.parent.name for path in found) or "none"
        raise ValueError(
            f"training.init_from: expected a finished run {config.training.init_from!r} with one fit, or one of "
            f"{name}, got {had}; run python train.py experiment=pretrain name={config.training.init_from}, with the "
            "same split"
        )
    return (same or found)[0]


def _check_apart(source: Path, episodes: pl.DataFrame, split: Split) -> None:
    """Nobody held out, and nobody who tunes, may have been pretrained on; nobody held out may have tuned that."""
    subject = episodes["subject_id"].to_numpy()
    tuning, held_out = (np.unique(subject[rows]) for rows in (split.tuning, split.held_out))
    with np.load(source / _SUBJECTS) as known:
        seen = np.isin(held_out, np.concatenate([known["train"], known["tuning"]])).sum()
        seen += np.isin(tuning, known["train"]).sum()
    if seen:
        raise ValueError(
            f"training.init_from: expected a run that has not seen the subjects to tune on and held out, got one that "
            f"saw {seen} of them; pretrain with the same split and seed"
        )


def fit_key(config: RunConfig, prepared: Prepared, name: str, *parts: str) -> str:
    document = asdict(config)
    used = {part: document[part] for part in ("seed", "task", "split", "inputs", *parts)}
    of = [document["cohort"][part] for part in ("family", "indications", "pretraining", "lines", "landmarks")]
    source = _pretrained(config, name)
    of.append((source / "key").read_text() if source is not None else None)
    return stage_key(used, *of, prepared.data_hash, name, ican_ml.__version__)


def fit_stage(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    name: str,
    *,
    ranks: Ranks | None = None,
    report: Report | None = None,
) -> Stage:
    """The fit of the fold ``name``, done now or before; ``ranks`` and ``report`` as in `ican_ml.training.loop.fit`."""
    stage = folder.stage(f"{name}/fit", fit_key(config, prepared, name, "model", "training", "trainer"))
    if stage.is_done:
        _log.info("%s: already fitted", name)
        return stage
    started = time.monotonic()
    earlier, source = None, _pretrained(config, name)
    own = prepared.splits[name]
    prepared, split, weight = with_further(prepared, own)
    subject = prepared.episodes["subject_id"].to_numpy()
    parts = {part: np.unique(subject[rows]) for part, rows in (("train", split.train), ("tuning", split.tuning))}
    np.savez(stage.folder / _SUBJECTS, **cast("dict[str, Any]", parts))
    if source is None:
        fold = fit_fold(config, prepared, split)
    else:
        _check_apart(source, prepared.episodes, split)
        shutil.copytree(source, stage.folder / EARLIER, ignore=shutil.ignore_patterns("*.ckpt"), dirs_exist_ok=True)
        earlier, known = load_fitted(stage.folder / EARLIER)
        fold = fit_fold(config, prepared, split, known)
    schema = fold.schema
    (stage.folder / MODEL_FILE).write_text(json.dumps(asdict(config.model)))
    (stage.folder / SCHEMA_FILE).write_text(json.dumps(schema.to_json()))
    train, tuning = fold.data(prepared.outcomes, split.train, split.tuning, weight=weight)
    _log.info(
        "%s: %d training, %d tuning, %d held-out episodes, %d left out; %d summary columns, %d drugs, %d genes",
        name,
        *(len(rows) for rows in (split.train, split.tuning, split.held_out, split.left_out)),
        len(schema.summary_names),
        len(schema.drugs),
        len(schema.genes),
    )
    result = fit(
        schema,
        train,
        tuning,
        model=config.model,
        training=config.training,
        trainer=config.trainer,
        folder=stage.folder,
        seed=config.seed,
        subject=fold.states.subject_id,
        earlier=earlier,
        ranks=ranks,
        curve_file=folder.root / "logs" / f"{name}.csv",
        loggers=run_loggers(config.logger, folder.root, name),
        report=report,
    )
    close_loggers(folder.root)
    applicability = fit_embedding(
        result.network,
        schema,
        fold.encoded,
        train=np.unique(fold.states.patient[own.train]),
        tuning=np.unique(fold.states.patient[own.tuning]),
        subject=fold.states.subject_id,
        indication=indication_of(prepared.episodes, fold.states),
        seed=config.seed,
    )
    torch.save(result.network.state_dict(), stage.folder / NETWORK_FILE)
    seconds = time.monotonic() - started
    _log.info("%s: fitted in %.0f s", name, seconds)
    calibration = [found.to_dict() for found in result.calibration.values()]
    resistance = [asdict(found) for found in result.resistance]
    stage.finish(
        {
            "curve": result.curve,
            "tuning_loss": result.tuning_loss,
            "seconds": seconds,
            "calibration": calibration,
            "resistance": resistance,
            "applicability": applicability.to_json() if applicability is not None else None,
        }
    )
    return stage
