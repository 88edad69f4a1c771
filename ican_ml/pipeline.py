"""A run, end to end: prepare -> fit -> evaluate -> discover -> export -> verify, for one split or every fold in turn.

Each fold's fit and baselines are stages keyed by configuration and data (:mod:`ican_ml.run_folder`): the same command
goes on where it stopped. Results that may leave lie in ``runs/<name>/``, all else in its ``private/``.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

import ican_ml
from ican_ml.audit.audit import Audit, audit_cohort
from ican_ml.audit.permutation import LINEAR
from ican_ml.bundle.export import parity
from ican_ml.bundle.read import open_bundle
from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.simulate_truth import read_truth
from ican_ml.config import RunConfig, write_config
from ican_ml.discovery import PAGE, discover_targets, observations
from ican_ml.entry import is_trial
from ican_ml.evaluation.conformal import calibrations
from ican_ml.fitting import fit_key, fit_stage
from ican_ml.fold import (
    Prepared,
    baseline_scores,
    encode_fold,
    network_scores,
)
from ican_ml.inputs.answer import Float64
from ican_ml.inputs.assemble import as_dictionary, assemble
from ican_ml.inputs.encode import collate, encode
from ican_ml.logs import log_to
from ican_ml.prepare import prepare
from ican_ml.release import card_of, export_fitted, load_fitted
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
from ican_ml.run_folder import RunFolder, Stage, data_hash, stage_key
from ican_ml.stopping import stoppable
from ican_ml.sweep.trial import Report
from ican_ml.sweep.trial import run_trial as tell_trial
from ican_ml.training.deep import dismiss, follow
from ican_ml.training.distributed import Ranks, started_outside, together
from ican_ml.training.loggers import check_loggers
from ican_ml.training.resistance import Resistance

_log = logging.getLogger(__name__)
Int64 = npt.NDArray[np.int64]


def start(config: RunConfig) -> float | None:
    """What ``train.py`` does: a run or, for a sweep, a trial, whose value it gives."""
    if config.trial.study:
        return run_trial(config)
    run(config)
    return None


def run(config: RunConfig) -> Path:
    """Run everything that is not done yet, in all processes of the run; returns its folder.

    A signal to stop ends it with its state saved; under SLURM, SIGUSR1 also puts the job back into the queue.
    """
    _check(config)
    with together(config.trainer, json.dumps(asdict(config), default=str)) as ranks, stoppable(ranks):
        if ranks.rank:
            follow(ranks)
        else:
            _run(config, ranks)
    return Path(config.runs) / config.name


def _run(config: RunConfig, ranks: Ranks) -> None:
    folder, prepared = _begin(config, Path(config.runs) / config.name)
    observed = observations(config, prepared) if config.discover else None
    fitted = {name: fit_stage(config, prepared, folder, name, ranks=ranks) for name in prepared.splits}
    dismiss(ranks)
    scores = [_score_fold(config, prepared, folder, name, stage) for name, stage in fitted.items()]
    results = [
        evaluate_scores(
            name, outcome, prepared.episodes, scores, replicates=config.evaluation.replicates, seed=config.seed
        )
        for name, outcome in prepared.outcomes.items()
    ]
    if observed is not None:
        discover_targets(config, prepared, observed, fitted, scores, folder)
    difference = _export(config, prepared, folder, next(iter(fitted.values())), results)
    audit = _audit(config, prepared, scores, folder)
    _conclude(config, prepared, scores, results, audit, folder, difference)


def _check(config: RunConfig) -> None:
    """Find at once what this machine, or a sweep, cannot do."""
    if config.trainer.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator: expected a GPU that torch can use, found none; set trainer=cpu")
    check_loggers(config.logger)
    asked = config.trainer.devices * config.trainer.nodes
    if asked > 1 and (config.trial.study or (is_trial() and not started_outside())):
        raise ValueError(
            f"trainer.devices: expected one process a trial in a multirun (-m), got {asked}; set trainer.devices=1 and "
            "start several workers, or give the trials of a grid their processes with launcher=slurm"
        )


def run_trial(config: RunConfig) -> float | None:
    """A trial of a sweep: fit every fold, score and export nothing; gives the mean tuning loss, and tells the study."""
    root = config.trial.root(Path(config.runs))
    try:
        with stoppable(Ranks()):
            return tell_trial(config.trial, partial(_tuning_loss, config, root), root=root)
    finally:  # the next trial may run in this process
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _tuning_loss(config: RunConfig, root: Path, report: Report) -> float:
    """The mean of the folds' best tuning losses, reported by epoch; a later fold's epochs count on."""
    _check(config)
    folder, prepared = _begin(config, root)
    losses: list[float] = []

    def told(epoch: int, loss: float) -> None:
        fold = list(prepared.splits)[len(losses)]
        where = f"epoch {epoch}" + (f" of {fold}" if len(prepared.splits) > 1 else "")
        report(len(losses) * config.training.epochs + epoch, float(np.mean([*losses, loss])), where)

    for name in prepared.splits:
        losses.append(fit_stage(config, prepared, folder, name, report=told).result()["tuning_loss"])
    return float(np.mean(losses))


def _begin(config: RunConfig, root: Path) -> tuple[RunFolder, Prepared]:
    folder = RunFolder(root)
    log_to(logging.getLogger("ican_ml"), folder.root / "log.txt")
    torch.set_num_threads(config.trainer.threads or torch.get_num_threads())
    write_config(config, folder.private)
    prepared = prepare(config)
    folder.write_origin(prepared.data_hash)
    return folder, prepared


def _score_fold(config: RunConfig, prepared: Prepared, folder: RunFolder, name: str, fitted: Stage) -> Scores:
    """Predictions of the held-out episodes by the model, the baselines and, where simulated, the oracle."""
    rows = prepared.splits[name].held_out
    key = fit_key(config, prepared, name, "model", "training", "trainer")
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
    key = fit_key(config, prepared, "audit", "model", "training", "trainer", "evaluation")
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
    pages = ["report.html", PAGE] if config.discover else ["report.html"]
    print("\n".join(f"report: {folder.root / page}" for page in pages))  # not into the log: it may tell of the machine


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
