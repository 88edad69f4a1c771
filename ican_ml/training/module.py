"""The Lightning module: the network, its running average, its loss and optimiser, and what a checkpoint needs to go on.

The loss of a process stands for the whole batch of all processes (see :mod:`ican_ml.training.data`): the mean of the
processes' losses, and of their gradients, is that of one process with the whole batch.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from ican_ml.model.blocks import Block
from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.config import TrainingConfig
from ican_ml.training.data import PATIENTS, Batch
from ican_ml.training.losses import total_loss


class PatientModule(lightning.LightningModule):
    """Trains a :class:`PatientTransformer`; logs ``train_loss`` and ``tuning_loss``.

    ``average`` is what is evaluated and kept: the exponential moving average of the weights, by step, or the network
    itself. ``random_states`` of a checkpoint are the random generators' of every process.
    """

    is_averaged: Tensor

    def __init__(
        self, network: PatientTransformer, config: TrainingConfig, *, steps: int, sharded: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        network.wide.requires_grad_(False)
        self.average = copy.deepcopy(network).requires_grad_(False) if config.average else network
        self.register_buffer("is_averaged", torch.zeros((), dtype=torch.bool))
        self.config = config
        self.steps = max(1, steps)
        self.sharded = sharded
        self._random_state: dict[str, Tensor] | None = None

    def configure_model(self) -> None:
        """Shard the parameters over the processes (FSDP2: Zhao et al. 2023, arXiv:2304.11277), where asked for."""
        if self.sharded:
            for network in {id(each): each for each in (self.network, self.average)}.values():
                _shard(network)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Loss of one batch: the mean of the members' own."""
        members = self.network.member_outputs(batch)
        loss = torch.stack([total_loss(self.network.tasks, outputs, batch) for outputs in members]).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=int(batch[PATIENTS]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Loss on the tuning patients."""
        loss = total_loss(self.network.tasks, self.average.eval()(batch), batch)
        self.log("tuning_loss", loss, on_step=False, on_epoch=True, batch_size=int(batch[PATIENTS]), sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, and one of the average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is self.network:
            return
        decay = self.config.average if self.is_averaged else 0.0
        with torch.no_grad():
            mean: list[Tensor] = [parameter for parameter in self.average.parameters() if parameter.numel()]
            now: list[Tensor] = [parameter for parameter in self.network.parameters() if parameter.numel()]
            torch._foreach_lerp_(mean, now, 1 - decay)
            self.is_averaged.fill_(True)

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter 2019), linear warm-up, cosine decay; the linear path stays as it was fitted."""
        config = self.config
        tables = list(self.network.input_tables())
        apart = {id(parameter) for parameter in (*self.network.wide.parameters(), *tables)}
        rest = [parameter for parameter in self.network.parameters() if id(parameter) not in apart]
        optimiser = torch.optim.AdamW(
            [
                {"params": rest, "weight_decay": config.weight_decay},
                {"params": tables, "weight_decay": config.table_decay},
            ],
            lr=config.learning_rate,
            foreach=True if self.sharded else None,  # one by one, sharded tensors cost more than their arithmetic
        )
        warmup = max(1, round(config.warmup * self.steps))

        def rate(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = (step - warmup) / max(1, self.steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the states of the random generators, so that dropout after a resume is the same."""
        own = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.device)
        states: list[Any] = [own] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(states, own)
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the generators' states until training starts."""
        states = checkpoint["random_states"]
        self._random_state = states[self.global_rank] if len(states) == self.trainer.world_size else None

    def on_train_start(self) -> None:
        """Put the generators back where the checkpoint was taken."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if "cuda" in self._random_state and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._random_state["cuda"].cpu(), self.device)
            self._random_state = None


def _shard(network: PatientTransformer) -> None:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    units: list[nn.Module] = [part for part in network.members.modules() if isinstance(part, Block)]
    empty = {parameter for parameter in network.parameters() if not parameter.numel()}
    for parameter in empty:
        parameter.requires_grad_(False)
    for part in (*units, *network.members, network):
        fully_shard(part, ignored_params=empty)
    register_fsdp_forward_method(network, "member_outputs")
