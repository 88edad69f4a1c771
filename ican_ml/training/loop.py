"""One fit: the linear path, then the network under Lightning, resumable; the best epoch by tuning loss is returned,
calibrated on the tuning patients.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.loggers import Logger

from ican_ml.evaluation.conformal import Calibration
from ican_ml.inputs.encode import EncodedPatients, Float32, Int64
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.training.calibration import calibrate
from ican_ml.training.columns import fit_columns
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.data import PatientData, PatientLoader
from ican_ml.training.deep import Curve, DeepFit, train_deep
from ican_ml.training.distributed import Ranks
from ican_ml.training.kernel import fit_kernel
from ican_ml.training.progress import Report
from ican_ml.training.resistance import Resistance, fit_resistance
from ican_ml.training.trees import fit_trees
from ican_ml.training.wide import NOTHING, cross_fit, fit_wide

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """The fitted network, its losses by epoch (``{"epoch", "train_loss", "tuning_loss"}`` each), its calibration.

    ``tuning_loss``: the lowest, that of the network.
    ``resistance``: which altered genes make a tumour resist which drugs, where that was searched for.
    """

    network: PatientTransformer
    curve: Curve
    tuning_loss: float
    calibration: Mapping[str, Calibration]
    resistance: tuple[Resistance, ...] = ()


def fit(
    schema: InputSchema,
    train: PatientData,
    tuning: PatientData,
    *,
    subject: Int64,
    model: ModelConfig,
    training: TrainingConfig,
    trainer: TrainerConfig,
    folder: Path,
    seed: int,
    earlier: PatientTransformer | None = None,
    ranks: Ranks | None = None,
    curve_file: Path | None = None,
    report: Report | None = None,
    loggers: Sequence[Logger] = (),
) -> FitResult:
    """Fit on ``train``, stop by ``tuning`` and calibrate on it; the state to resume from lives in ``folder``.

    ``subject`` [N] says whose state each patient is. A ``last.ckpt`` in ``folder`` is gone on from: the
    caller removes it when configuration or data have changed. ``earlier`` is a pretrained network under the same schema
    but for the tasks. ``ranks`` are the processes that train with this one. ``curve_file`` gets the losses by epoch as
    CSV; ``report`` is called with each epoch's number and tuning loss, and may raise to end the fit.
    """
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    torch.use_deterministic_algorithms(mode=True)  # or threads add gradients up in the order in which they come
    torch.manual_seed(seed)
    network = PatientTransformer(model, schema, earlier)
    network.start_from_earlier()
    if model.trees:
        train, tuning = fit_trees(network, train, tuning, subject=subject, training=training, seed=seed)
        assert network.trees is not None
        grown = zip(network.tasks, network.trees.leaf, strict=True)
        told = ", ".join(f"{int(leaf[0, 0].any(1).sum())} for {task.name}" for task, leaf in grown)
        _log.info("trees grown: %s%s", told, f", {network.n_members} times" if network.n_members > 1 else "")
    if network.columns is not None:
        fit_columns(network, train, seed=seed)
    if network.kernel is not None:
        train, tuning = fit_kernel(network, train, tuning, subject=subject, seed=seed)
    wide = fit_wide(network, train, tuning, strengths=training.wide_strengths)
    how = "left empty" if wide.strength == NOTHING else f"fitted, ridge strength {wide.strength:g}"
    _log.info("linear path %s, tuning loss %.4f", how, dict(wide.path)[wide.strength])
    curve: Curve = ()
    loss, resistance = dict(wide.path)[wide.strength], []
    if model.deep:
        train = cross_fit(network, train, subject, strength=wide.strength, seed=seed)
        deep = DeepFit(
            network=network, train=train, tuning=tuning, training=training, trainer=trainer, folder=folder, seed=seed
        )
        best, curve = train_deep(deep, ranks or Ranks(), curve_file=curve_file, report=report, loggers=loggers)
        network.load_state_dict(best)
        loss = min(row["tuning_loss"] for row in curve)
        if network.resistance is not None:
            resistance = fit_resistance(network, schema, train, tuning)
    calibration = calibrate(network, tuning, subject, coverage=training.coverage)
    if network.columns is not None and len(tuning.rows):  # all else was chosen beside columns that did not know them
        fit_columns(network, train, tuning, seed=seed)
    return FitResult(
        network=network.eval(),
        curve=curve,
        tuning_loss=loss,
        calibration=calibration,
        resistance=tuple(resistance),
    )


def predict(
    network: PatientTransformer, encoded: EncodedPatients, rows: Int64, *, batch_size: int = 256
) -> dict[str, Float32]:
    """Outputs by task for the chosen patients, ``[n, R, ...]``, padded to the most regimens of any of them."""
    network.eval()
    data = PatientData(encoded=encoded, outcomes={}, rows=rows)
    parts: dict[str, list[Float32]] = {task.name: [] for task in network.tasks}
    with torch.inference_mode():
        for batch in PatientLoader(data, batch_size=batch_size):
            outputs = network(batch)
            for name, found in parts.items():
                found.append(outputs[name].float().cpu().numpy())
    return {name: _stack(outputs) for name, outputs in parts.items()}


def _stack(outputs: list[Float32]) -> Float32:
    widest = max(output.shape[1] for output in outputs)
    padding = [[(0, 0), (0, widest - o.shape[1])] + [(0, 0)] * (o.ndim - 2) for o in outputs]
    return np.concatenate([np.pad(o, p) for o, p in zip(outputs, padding, strict=True)])
