"""What a fit tells as it goes: losses by epoch, throughput; and that it stops when asked to, losing nothing.

A signal (SIGTERM, or SIGUSR1, which SLURM sends ahead of a time limit with ``--signal=USR1@120``) only raises a flag:
saving within a handler may hang. At the end of the batch all processes learn of it, the state is saved, and the fit
ends with `Stopped`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ican_ml.training.data import PATIENTS, TOKENS, Batch, PatientLoader
from ican_ml.training.distributed import Ranks
from ican_ml.training.module import PatientModule
from ican_ml.training.throughput import device_peak, flops_per_token, peak_memory

_log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
Report = Callable[[int, float], None]


class Stopped(BaseException):
    """The run was asked to stop, all is saved: the same command goes on. ``signal`` is its number.

    No ``Exception``: the signal may come while a library catches and wraps every one of these.
    """

    def __init__(self, number: int, where: str) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} {where}; all is saved, the same command goes on")
        self.signal = number


class Progress(Callback):
    """Collects losses by epoch, tells them in plain lines and as CSV, and saves what Lightning does not.

    That is: these losses, the running one of an unfinished epoch, the loader's place, and that training had stopped
    early. ``report`` is called with each epoch's number, from 1, and its tuning loss, and may raise to end the fit.
    """

    def __init__(
        self, loader: PatientLoader, last: Path, ranks: Ranks, curve_file: Path | None, report: Report | None
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self._loader, self._last, self._ranks = loader, last, ranks
        self._curve_file, self._report = curve_file, report
        self._loss = self._patients = 0.0
        self._start = self._epoch_start = self._batch_end = time.monotonic()
        self._loading = self._seen = self._tokens = 0.0
        self._flops_per_token = 0.0
        self._peak: float | None = None
        self._asked = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._peak = device_peak(trainer.precision, pl_module.device)
        trainer.should_stop = any(stopping.stopped_epoch for stopping in trainer.early_stopping_callbacks)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # Lightning puts the former handlers back
                signal.signal(number, self._ask_to_stop)

    def on_train_epoch_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        self.raise_if_asked()
        self._epoch_start = self._batch_end = time.monotonic()
        self._loading = self._seen = self._tokens = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._loading += time.monotonic() - self._batch_end
        if self._peak and not self._flops_per_token:
            assert isinstance(pl_module, PatientModule)
            self._flops_per_token = flops_per_token(pl_module.network, batch)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, _: lightning.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loss, tokens, asked = self._mean(float(outputs["loss"]), float(batch[TOKENS]), self._asked)
        patients = int(batch[PATIENTS])
        self._loss += loss * patients
        self._patients += patients
        self._seen += patients
        self._tokens += tokens * self._ranks.size
        self._batch_end = time.monotonic()
        if asked and not trainer.is_last_batch:  # after the last one, the state of the whole epoch is saved
            trainer.save_checkpoint(self._last)
            raise Stopped(self._signal(), f"in epoch {trainer.current_epoch + 1}, after {batch_idx + 1} batches")

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        losses = {
            "train_loss": self._loss / self._patients,
            "tuning_loss": float(trainer.callback_metrics["tuning_loss"]),
        }
        self._loss = self._patients = 0.0
        self.rows.append({"epoch": trainer.current_epoch + 1, **losses})
        if self._ranks.rank:
            return
        if self._curve_file is not None:
            lines = [",".join(self.rows[0]), *(",".join(map(str, row.values())) for row in self.rows)]
            self._curve_file.parent.mkdir(parents=True, exist_ok=True)
            self._curve_file.write_text("\n".join(lines) + "\n")
        seconds = max(self._batch_end - self._epoch_start, 1e-9)
        rates = {
            "patients_per_second": self._seen / seconds,
            "tokens_per_second": self._tokens / seconds,
            "loading_share": self._loading / seconds,
            "memory_gb": peak_memory() / 1e9,
        }
        if self._peak:
            work = rates["tokens_per_second"] * self._flops_per_token
            rates["model_flop_utilisation"] = work / (self._peak * self._ranks.size)
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)
        _log.info(
            "epoch %d/%d  train loss %.4f  tuning loss %.4f  (%.0f s; %.0f patients/s, %s tokens/s, loading %.0f%%, "
            "%.1f GB%s)",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            *losses.values(),
            time.monotonic() - self._start,
            rates["patients_per_second"],
            f"{rates['tokens_per_second']:,.0f}",
            100 * rates["loading_share"],
            rates["memory_gb"],
            f", MFU {100 * rates['model_flop_utilisation']:.0f}%" if "model_flop_utilisation" in rates else "",
        )
        if self._report is not None:
            self._report(trainer.current_epoch + 1, losses["tuning_loss"])

    def raise_if_asked(self) -> None:
        """End as `Stopped` where the signal came with the last batch of an epoch, whose state is saved by now."""
        if any(self._mean(self._asked)):
            raise Stopped(self._signal(), f"after epoch {len(self.rows)}")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "running": (self._loss, self._patients), "loader": self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
        self._loss, self._patients = state["running"]
        self._loader.load_state_dict(state["loader"])

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def _signal(self) -> int:
        """Which it was: this process itself may not have got one."""
        return self._asked or signal.SIGUSR1

    def _mean(self, *values: float) -> list[float]:
        """Of each, over all processes."""
        found = torch.tensor(values, dtype=torch.float64)
        if self._ranks.size > 1:
            torch.distributed.all_reduce(found)
        return [float(value) for value in found / self._ranks.size]


class WithinEpoch(ModelCheckpoint):
    """Saves between an epoch's steps, never after its last: a fit resumed from there would skip the validation."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
