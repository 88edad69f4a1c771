"""The Lightning module: the network, its loss, its optimiser, and what a checkpoint needs to go on bit for bit."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor

from ican_ml.model.patient_transformer import PatientTransformer
from ican_ml.training.config import TrainingConfig
from ican_ml.training.data import Batch
from ican_ml.training.losses import total_loss


class PatientModule(lightning.LightningModule):
    """Trains a :class:`PatientTransformer`; logs ``train_loss`` and ``tuning_loss``."""

    def __init__(self, network: PatientTransformer, config: TrainingConfig, *, steps: int) -> None:
        super().__init__()
        self.network = network
        network.wide.requires_grad_(False)
        self.config = config
        self.steps = max(1, steps)
        self._random_state: Tensor | None = None

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Loss of one batch: the mean of the members' own."""
        members = self.network.member_outputs(batch)
        loss = torch.stack([total_loss(self.network.tasks, outputs, batch) for outputs in members]).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["summary"]))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Loss on the tuning patients."""
        loss = total_loss(self.network.tasks, self.network(batch), batch)
        self.log("tuning_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["summary"]))

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
        """Keep the state of the random generator, so that dropout after a resume is the same."""
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the generator's state until training starts."""
        self._random_state = checkpoint["random_state"]

    def on_train_start(self) -> None:
        """Put the generator back where the checkpoint was taken."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
            self._random_state = None
