"""A run, end to end: prepare -> fit -> evaluate -> export -> verify, for one split or for every fold in turn.

Each fold's fit and baselines are stages keyed by configuration and data (:mod:`ican_ml.run_folder`): the same command
goes on where it stopped. Results that may leave lie in ``runs/<name>/``, all else in its ``private/``.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

import ican_ml
from ican_ml.audit.audit import Audit, audit_cohort
from ican_ml.audit.permutation import LINEAR
from ican_ml.bundle.export import parity
from ican_ml.bundle.read import open_bundle
from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.simulate_truth import read_truth
from ican_ml.cohort.split import Split
from ican_ml.config import RunConfig
from ican_ml.evaluation.conformal import calibrations
from ican_ml.fold import (
    Prepared,
    baseline_scores,
    encode_fold,
    fit_fold,
    indication_of,
    network_scores,
    with_further,
)
from ican_ml.inputs.answer import Float64
from ican_ml.inputs.assemble import as_dictionary, assemble
from ican_ml.inputs.encode import collate, encode
from ican_ml.prepare import prepare
from ican_ml.release import EARLIER, MODEL_FILE, NETWORK_FILE, SCHEMA_FILE, card_of, export_fitted, load_fitted
from ican_ml.results import (
    MODEL,
    ORACLE,
    Scores,
    TaskResults,
    evaluate_scores,
    metrics_document,
    resistance_sections,
    results_table,
    write_run_report,
)
from ican_ml.run_folder import RESULT, RunFolder, Stage, data_hash, stage_key
from ican_ml.training.applicability import fit_embedding
from ican_ml.training.loggers import close_loggers, run_loggers
from ican_ml.training.loop import fit
from ican_ml.training.resistance import Resistance

_log = logging.getLogger(__name__)
_SUBJECTS = "subjects.npz"
Int64 = npt.NDArray[np.int64]


def run(config: RunConfig) -> Path:
    """Run everything that is not done yet; returns the run's folder."""
    if config.trainer.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator: expected a GPU that torch can use, found none; set trainer=cpu")
    folder = RunFolder(Path(config.runs) / config.name)
    _log_to(folder.root / "log.txt")
    torch.set_num_threads(config.trainer.threads or torch.get_num_threads())
    prepared = prepare(config)
    fitted = [_fit_fold(config, prepared, folder, name) for name in prepared.splits]
    scores = [
        _score_fold(config, prepared, folder, name, stage) for name, stage in zip(prepared.splits, fitted, strict=True)
    ]
    results = [
        evaluate_scores(
            name, outcome, prepared.episodes, scores, replicates=config.evaluation.replicates, seed=config.seed
        )
        for name, outcome in prepared.outcomes.items()
    ]
    difference = _export(config, prepared, folder, fitted[0], results)
    audit = _audit(config, prepared, scores, folder)
    _conclude(config, prepared, scores, results, audit, folder, difference)
    return folder.root


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


def _key(config: RunConfig, prepared: Prepared, name: str, *parts: str) -> str:
    document = asdict(config)
    used = {part: document[part] for part in ("seed", "task", "split", "inputs", *parts)}
    of = [document["cohort"][part] for part in ("family", "indications", "pretraining", "lines", "landmarks")]
    source = _pretrained(config, name)
    of.append((source / "key").read_text() if source is not None else None)
    return stage_key(used, *of, prepared.data_hash, name, ican_ml.__version__)


def _fit_fold(config: RunConfig, prepared: Prepared, folder: RunFolder, name: str) -> Stage:
    stage = folder.stage(f"{name}/fit", _key(config, prepared, name, "model", "training", "trainer"))
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
        curve_file=folder.root / "logs" / f"{name}.csv",
        loggers=run_loggers(config.logger, folder.root, name),
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
            "seconds": seconds,
            "calibration": calibration,
            "resistance": resistance,
            "applicability": applicability.to_json() if applicability is not None else None,
        }
    )
    return stage


def _score_fold(config: RunConfig, prepared: Prepared, folder: RunFolder, name: str, fitted: Stage) -> Scores:
    """Predictions of the held-out episodes by the model, the baselines and, where simulated, the oracle."""
    rows = prepared.splits[name].held_out
    key = _key(config, prepared, name, "model", "training", "trainer")
    stage = folder.stage(f"{name}/scores", stage_key(key, asdict(config.evaluation)["baselines"]))
    if not stage.is_done:
        network, schema = load_fitted(fitted.folder)
        fold = encode_fold(config, prepared, schema)
        arrays = {f"{task}/{MODEL}": values for task, values in network_scores(network, fold, rows).items()}
        if config.evaluation.baselines:
            found = baseline_scores(config, prepared, fold, prepared.splits[name])
            arrays |= {f"{task}/{by}": values for task, scores in found.items() for by, values in scores.items()}
        for task in prepared.outcomes:
            if (truth := _oracle(prepared.cohort, task)) is not None:
                arrays[f"{task}/{ORACLE}"] = truth[rows]
        np.savez(stage.folder / "scores.npz", **cast("dict[str, Any]", arrays))
        stage.finish({})
        _log.info("%s: held-out episodes scored", name)
    with np.load(stage.folder / "scores.npz") as stored:
        arrays = dict(stored)
    known = fitted.result()
    return Scores(
        name=name,
        rows=rows,
        arrays=arrays,
        curve=tuple(known["curve"]),
        calibration=calibrations(known["calibration"]),
        resistance=tuple(Resistance(**found) for found in known["resistance"]),
    )


def _export(
    config: RunConfig, prepared: Prepared, folder: RunFolder, fitted: Stage, results: list[TaskResults]
) -> float:
    """Write the bundle, and prove it on invented and on real held-out patients; returns the largest difference."""
    bundle = folder.root / "bundle"
    card = card_of(config, prepared, fitted, results)
    stage = folder.stage("export", stage_key(fitted.key, card.to_json()))
    if stage.is_done and data_hash(bundle) == stage.result()["bundle"]:
        return float(stage.result()["difference"])
    network, schema = load_fitted(fitted.folder)
    difference = export_fitted(network, schema, fitted.folder, bundle, card)
    rows = next(iter(prepared.splits.values())).held_out[:256]
    states = assemble(prepared.cohort, prepared.store, prepared.episodes[rows], config.inputs.covariates)
    encoded = encode(schema, states.patients, backend=config.encoding.choice)
    batch = collate(encoded, np.arange(encoded.n_rows))
    difference = max(difference, parity(open_bundle(bundle).model, network, [batch]))
    stage.finish({"bundle": data_hash(bundle), "difference": difference})
    _log.info("bundle written; ONNX and torch agree within %.1e", difference)
    return difference


def _audit(config: RunConfig, prepared: Prepared, scores: list[Scores], folder: RunFolder) -> Audit:
    """What bookkeeping tells, beside what the run's scorers know; permuted outcomes under the linear path."""
    key = _key(config, prepared, "audit", "model", "training", "trainer", "evaluation")
    stage = folder.stage("audit", key)
    if not stage.is_done:
        _log.info("audit: bookkeeping, %d permutations of the outcomes", config.evaluation.permutations)
        full: list[dict[str, dict[str, Float64]]] = [{task: {} for task in prepared.outcomes} for _ in scores]
        for fold, known in zip(scores, full, strict=True):
            for name, values in fold.arrays.items():
                task, _, by = name.rpartition("/")
                if by != ORACLE:
                    known[task][by] = values
        stage.finish(audit_cohort(config, prepared, scorer=LINEAR, full=full).to_dict())
    return Audit.from_dict(stage.result())


def _oracle(cohort: Cohort, task: str) -> Float64 | None:
    """Planted probabilities of a simulated cohort: the best that any model can reach."""
    if task != "response" or not (cohort.path / "truth.parquet").exists():
        return None
    return read_truth(cohort.path).response_probability


def _conclude(
    config: RunConfig,
    prepared: Prepared,
    scores: list[Scores],
    results: list[TaskResults],
    audit: Audit,
    folder: RunFolder,
    difference: float,
) -> None:
    """Metrics, report, the table, and one patient asked through the torch-free predictor."""
    folder.write_json("metrics.json", metrics_document(results, scores, difference))
    folder.write_json("audit.json", audit.to_dict())
    cohort, episodes = prepared.cohort, prepared.episodes
    size: dict[str, str | int | float] = {
        "Subjects": episodes["subject_id"].n_unique(),
        "Episodes": len(episodes),
        **{f"Samples, {m.name}": f"{m.matrix.n_rows:,} x {len(m.features):,}" for m in cohort.modalities.values()},
        "Record events": len(prepared.store.code) if prepared.store else 0,
        "Held-out episodes": sum(len(fold.rows) for fold in scores),
    }
    write_run_report(
        folder.root / "report.html",
        title=f"{config.name}: {', '.join(prepared.outcomes)}",
        description=f"Cohort {cohort.name}. {cohort.meta.get('description', '')}",
        cohort=size,
        episodes=episodes,
        outcomes=prepared.outcomes,
        scores=scores,
        results=results,
        sections=audit.sections(),
        notes=[
            f"Exported network and training code agree within {difference:.1e}.",
            f"Seed {config.seed}; ican_ml {ican_ml.__version__}. Research software, not a medical device.",
        ],
    )
    for section in audit.sections():
        _log.info("audit\n\n%s\n", section.text())
    for section in resistance_sections(scores):
        _log.info("found\n\n%s\n", section.text())
    _log.info("results on held-out episodes\n\n%s\n", results_table(results))
    _ask_one_patient(config, prepared, scores[0].rows, folder)
    print(f"report: {folder.root / 'report.html'}")  # not into the log: the folder may tell of the machine


def _ask_one_patient(config: RunConfig, prepared: Prepared, rows: npt.NDArray[np.int64], folder: RunFolder) -> None:
    """Write one held-out patient as JSON (private) and rank every drug for it as a hospital would: without torch."""
    states = assemble(prepared.cohort, prepared.store, prepared.episodes[rows[:1]], config.inputs.covariates)
    path = folder.private / "patient.json"
    path.write_text(json.dumps(as_dictionary(prepared.cohort, prepared.store, states, 0), indent=1))
    bundle = folder.root / "bundle"
    drugs = open_bundle(bundle).schema.drugs[:24]
    command = [sys.executable, "-m", "ican_ml.cli", "predict", str(bundle), str(path)]
    command += [part for drug in drugs for part in ("--treatment", drug)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _log.info("one held-out patient, ranked by the torch-free predictor\n\n%s", answer)


def _log_to(path: Path) -> None:
    """Plain lines on the terminal and in the run's log."""
    root = logging.getLogger("ican_ml")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in (logging.StreamHandler(), logging.FileHandler(path)):
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
