"""One fit: the linear path, then the network under Lightning, resumable; the best epoch by tuning loss is returned,
calibrated on the tuning patients.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar

from ican_ml.evaluation.conformal import Calibration
from ican_ml.inputs.encode import EncodedPatients, Float32, Int64
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.training.calibration import calibrate
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.data import Batch, PatientData, PatientLoader
from ican_ml.training.kernel import fit_kernel
from ican_ml.training.module import PatientModule
from ican_ml.training.resistance import Resistance, fit_resistance
from ican_ml.training.trees import fit_trees
from ican_ml.training.wide import NOTHING, cross_fit, fit_wide

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """The fitted network, its losses by epoch (``{"epoch", "train_loss", "tuning_loss"}`` each), its calibration.

    ``tuning_loss``: that of the network returned.

    ``resistance``: which altered genes make a tumour resist which drugs, where that was searched for.
    """

    network: PatientTransformer
    curve: tuple[dict[str, float], ...]
    calibration: Mapping[str, Calibration]
    tuning_loss: float
    resistance: tuple[Resistance, ...] = ()


class _Progress(Callback):
    """Collects losses by epoch, tells them in plain lines and as CSV, and saves what Lightning does not.

    That is: these losses, the running one of an unfinished epoch, the loader's place at the end of an epoch, and that
    training had stopped early.
    """

    def __init__(
        self, loader: PatientLoader, curve_file: Path | None, report: Callable[[int, float], None] | None
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self._curve_file = curve_file
        self._loader = loader
        self._report = report
        self._loss = self._patients = 0.0
        self._start = self._epoch_start = self._batch_end = time.monotonic()
        self._loading, self._seen = 0.0, 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        self._epoch_start = self._batch_end = time.monotonic()
        self._loading, self._seen = 0.0, 0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, _: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._loading += time.monotonic() - self._batch_end

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        trainer.should_stop = any(stopping.stopped_epoch for stopping in trainer.early_stopping_callbacks)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, _: lightning.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._loss += float(outputs["loss"]) * len(batch["summary"])
        self._patients += len(batch["summary"])
        self._seen += len(batch["summary"])
        self._batch_end = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        losses = {
            "train_loss": self._loss / self._patients,
            "tuning_loss": float(trainer.callback_metrics["tuning_loss"]),
        }
        self._loss = self._patients = 0.0
        self.rows.append({"epoch": trainer.current_epoch + 1, **losses})
        if self._curve_file is not None:
            lines = [",".join(self.rows[0]), *(",".join(map(str, row.values())) for row in self.rows)]
            self._curve_file.parent.mkdir(parents=True, exist_ok=True)
            self._curve_file.write_text("\n".join(lines) + "\n")
        trained = max(self._batch_end - self._epoch_start, 1e-9)
        _log.info(
            "epoch %d/%d  train loss %.4f  tuning loss %.4f  (%.0f s; %.0f patients/s, loading %.0f%%)",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            *losses.values(),
            time.monotonic() - self._start,
            self._seen / trained,
            100 * self._loading / trained,
        )
        if self._report is not None:
            self._report(trainer.current_epoch + 1, losses["tuning_loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "running": (self._loss, self._patients), "loader": self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
        self._loss, self._patients = state["running"]
        self._loader.load_state_dict(state["loader"])


class _WithinEpoch(ModelCheckpoint):
    """Saves between an epoch's steps, never after its last: a fit resumed from there would skip the validation."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


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
    curve_file: Path | None = None,
    loggers: Sequence[lightning.pytorch.loggers.Logger] = (),
    report: Callable[[int, float], None] | None = None,
) -> FitResult:
    """Fit on ``train``, stop by ``tuning`` and calibrate on it; the state to resume from lives in ``folder``.

    ``subject`` [N] says whose state each patient is. A ``last.ckpt`` in ``folder`` is gone on from: the
    caller removes it when configuration or data have changed. ``earlier`` is a pretrained network under the same schema
    but for the tasks. ``curve_file`` gets the losses by epoch as CSV. ``report`` is called after each epoch with its
    number, from 1, and its tuning loss; what it raises ends the fit.
    """
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    torch.manual_seed(seed)
    network = PatientTransformer(model, schema, earlier)
    network.start_from_earlier()
    if model.trees:
        train, tuning = fit_trees(network, train, tuning, subject=subject, training=training, seed=seed)
        assert network.trees is not None
        grown = zip(network.tasks, network.trees.leaf, strict=True)
        told = ", ".join(f"{int(leaf[0].any(1).sum())} for {task.name}" for task, leaf in grown)
        _log.info("trees grown: %s%s", told, f", {network.n_members} times" if network.n_members > 1 else "")
    if network.kernel is not None:
        train, tuning = fit_kernel(network, train, tuning, subject=subject, seed=seed)
    wide = fit_wide(network, train, tuning, strengths=training.wide_strengths)
    how = "left empty" if wide.strength == NOTHING else f"fitted, ridge strength {wide.strength:g}"
    _log.info("linear path %s, tuning loss %.4f", how, dict(wide.path)[wide.strength])
    resume = folder / "last.ckpt"
    if not model.deep:
        calibration = calibrate(network, tuning, subject, coverage=training.coverage)
        return FitResult(
            network=network.eval(), curve=(), calibration=calibration, tuning_loss=dict(wide.path)[wide.strength]
        )
    train = cross_fit(network, train, subject, strength=wide.strength, seed=seed)
    network.train()
    loader = PatientLoader(train, batch_size=training.batch_size, seed=seed)
    module = PatientModule(network, training, steps=-(-len(loader) // trainer.accumulate) * training.epochs)
    progress = _Progress(loader, curve_file, report)
    checkpoints = [
        ModelCheckpoint(folder, filename="best", monitor="tuning_loss", save_last=False, enable_version_counter=False),
        ModelCheckpoint(
            folder,
            filename="last",
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
            every_n_epochs=1,
        ),
    ]
    if trainer.checkpoint_every:
        checkpoints.append(
            _WithinEpoch(
                folder,
                filename="last",
                save_top_k=1,
                enable_version_counter=False,
                every_n_train_steps=trainer.checkpoint_every,
            )
        )
    callbacks: list[Callback] = [
        *checkpoints,
        EarlyStopping("tuning_loss", patience=training.patience),
        progress,
    ]
    if training.average > 0:
        callbacks.append(EMAWeightAveraging(decay=training.average, use_buffers=False))
    on_terminal = sys.stderr.isatty()
    if on_terminal:
        callbacks.append(TQDMProgressBar())
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        lightning.Trainer(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            precision=trainer.precision,  # type: ignore[arg-type]
            max_epochs=training.epochs,
            accumulate_grad_batches=trainer.accumulate,
            gradient_clip_val=training.gradient_clip,
            callbacks=callbacks,
            logger=list(loggers) or False,
            enable_progress_bar=on_terminal,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic=True,
            default_root_dir=folder,
        ).fit(
            module,
            loader,
            PatientLoader(tuning, batch_size=training.batch_size),
            ckpt_path=str(resume) if resume.exists() else None,
            weights_only=True,
        )
    best = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in best.items()})
    resistance = fit_resistance(network, schema, train, tuning) if network.resistance is not None else []
    calibration = calibrate(network, tuning, subject, coverage=training.coverage)
    return FitResult(
        network=network.eval(),
        curve=tuple(progress.rows),
        calibration=calibration,
        tuning_loss=min(row["tuning_loss"] for row in progress.rows),
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
