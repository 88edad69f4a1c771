"""Train the deep path under Lightning, in one process or several that share every batch; resumable.

Process 0 calls `train_deep`; the others are in `follow`, which is sent the same arguments. Each trains copies of the
network, so that what comes back is neither sharded nor compiled.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.config import Strategy, TrainerConfig, TrainingConfig
from ican_ml.training.data import PatientData, PatientLoader
from ican_ml.training.distributed import Ranks, broadcast
from ican_ml.training.module import PatientModule
from ican_ml.training.progress import Progress, Report, Stopped, WithinEpoch

_BEST, _LAST = "best.ckpt", "last.ckpt"
_OLD, _WHOLE = ".old", "whole.ckpt"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepFit:
    """What every process needs to know of a fit of the deep path.

    Attributes
    ----------
    network
        With its other paths fitted; it is left as it is.
    train, tuning
        With the other paths' scores.
    folder
        Where checkpoints lie: the same for all processes.
    """

    network: PatientTransformer
    train: PatientData
    tuning: PatientData
    training: TrainingConfig
    trainer: TrainerConfig
    folder: Path
    seed: int


Curve = tuple[dict[str, float], ...]


def train_deep(
    fit: DeepFit,
    ranks: Ranks,
    *,
    curve_file: Path | None = None,
    report: Report | None = None,
    loggers: Sequence[lightning.pytorch.loggers.Logger] = (),
) -> tuple[dict[str, Any], Curve]:
    """Weights of the best epoch, and losses by epoch; goes on from ``last.ckpt`` in the folder.

    Raises
    ------
    Stopped
        If a signal asked for it; the state is saved.
    """
    for name in (_BEST, _LAST):
        _restore(fit.folder / name)
    broadcast(fit, ranks)
    return _train(fit, ranks, curve_file, report, loggers)


def follow(ranks: Ranks) -> None:
    """Train with process 0 whenever it asks, until it says that it is done."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # process 0 decides
    while (fit := broadcast(None, ranks)) is not None:
        with suppress(Stopped):
            _train(fit, ranks, None, None, ())


def dismiss(ranks: Ranks) -> None:
    """Tell the processes in `follow` that no more training comes."""
    broadcast(None, ranks)


def _train(
    fit: DeepFit,
    ranks: Ranks,
    curve_file: Path | None,
    report: Report | None,
    loggers: Sequence[lightning.pytorch.loggers.Logger],
) -> tuple[dict[str, Any], Curve]:
    training, trainer, folder = fit.training, fit.trainer, fit.folder
    sharded = ranks.size > 1 and trainer.strategy is Strategy.fsdp
    if ranks.size > 1 and not trainer.threads and trainer.on_cpu:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // trainer.devices))
    if ranks.rank:
        torch.manual_seed(fit.seed + 1000 * ranks.rank)  # other dropout; process 0 draws as if it were alone
    share = {"batch_size": training.batch_size, "rank": ranks.rank, "size": ranks.size}
    loader = PatientLoader(fit.train, seed=fit.seed, bucket=training.bucket, **share)
    network = copy.deepcopy(fit.network).train()
    if trainer.compile:
        for member in network.members:
            member.compile(dynamic=True)
    module = PatientModule(
        network, training, steps=-(-len(loader) // trainer.accumulate) * training.epochs, sharded=sharded
    )
    progress = Progress(loader, folder / _LAST, ranks, curve_file, report)
    checkpoints = [
        ModelCheckpoint(folder, "best", monitor="tuning_loss", enable_version_counter=False),
        ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, every_n_epochs=1, enable_version_counter=False),
    ]
    if trainer.checkpoint_every:
        checkpoints.append(
            WithinEpoch(folder, "last", every_n_train_steps=trainer.checkpoint_every, enable_version_counter=False)
        )
    callbacks: list[Callback] = [*checkpoints, EarlyStopping("tuning_loss", patience=training.patience), progress]
    on_terminal = sys.stderr.isatty() and not ranks.rank
    if on_terminal:
        callbacks.append(TQDMProgressBar())
    several = _Sharded() if sharded else DDPStrategy(broadcast_buffers=False)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    resume = folder / _LAST
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # no in-place use of it
        lightning.Trainer(
            accelerator=trainer.accelerator,
            devices=trainer.devices if ranks.size > 1 else 1,
            num_nodes=trainer.nodes if ranks.size > 1 else 1,
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
            use_distributed_sampler=False,
            strategy=several if ranks.size > 1 else "auto",
            plugins=[TorchElasticEnvironment()] if ranks.size > 1 else None,
        ).fit(
            module,
            loader,
            PatientLoader(fit.tuning, **share),
            ckpt_path=str(resume) if resume.exists() else None,
            weights_only=True,
        )
    progress.raise_if_asked()
    return {} if ranks.rank else _weights(folder / _BEST, averaged=training.average > 0), tuple(progress.rows)


def _weights(path: Path, *, averaged: bool) -> dict[str, Any]:
    """The network's weights in a checkpoint: those of the average, where one was kept; shards are put together."""
    if path.is_dir():
        whole = path.with_name(_WHOLE)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch.distributed")
            dcp_to_torch_save(path, whole)
        state = torch.load(whole, weights_only=True)["state_dict"]
        whole.unlink()
    else:
        state = torch.load(path, weights_only=True)["state_dict"]
    part = "average." if averaged else "network."
    return {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}


class _Sharded(ModelParallelStrategy):
    """FSDP2 over all processes; each writes its shard of a checkpoint, a folder that is replaced when complete."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        part = path.with_name(path.name + ".part")
        if self.global_rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, part, storage_options)
        self.barrier()
        if self.global_rank == 0:
            old = path.with_name(path.name + _OLD)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            part.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        self.barrier()


def _restore(path: Path) -> None:
    """Take the checkpoint before, where a kill came between the removal of that and the renaming of the new one."""
    old = path.with_name(path.name + _OLD)
    if old.exists() and not path.exists():
        old.rename(path)
