"""Typed configuration of training and of the trainer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed")


class Strategy(Enum):
    """How several processes train one network."""

    ddp = "ddp"
    fsdp = "fsdp"


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    """How the network is fitted.

    Attributes
    ----------
    epochs, patience
        At most so many passes; stop when the tuning loss has not improved for ``patience`` of them.
    batch_size, bucket
        Patients of a step's batch, of all processes together; and of how many batches the patients are sorted by
        length among one another, which pads them less (1 = none).
    learning_rate, weight_decay, warmup
        AdamW; ``warmup`` is the share of all steps.
    average
        Decay of the exponential moving average of the weights, by step, that is evaluated and kept; 0 = none.
    table_decay
        Weight decay of the weights on single features, genes, codes and summary columns.
    wide_strengths
        Ridge strengths tried for the linear path, strongest first.
    tree_rate, tree_patience
        Learning rate of the trees; they stop when so many have not lowered the tuning loss.
    init_from
        Name of a pretraining run (`experiment=pretrain`), of the same split; null = from scratch.
    coverage
        Share of episodes whose prediction set is to hold the truth (binary tasks).
    """

    epochs: int = 20
    patience: int = 6
    batch_size: int = 96
    bucket: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    table_decay: float = 30.0
    warmup: float = 0.1
    gradient_clip: float = 1.0
    average: float = 0.97
    wide_strengths: list[float] = field(default_factory=lambda: [1000.0, 300.0, 100.0, 30.0, 10.0])
    tree_rate: float = 0.04
    tree_patience: int = 50
    init_from: str | None = None
    coverage: float = 0.9

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "patience",
            "batch_size",
            "bucket",
            "learning_rate",
            "gradient_clip",
            "tree_rate",
            "tree_patience",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"training.{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "table_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name}: expected a number of at least 0, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training.warmup: expected a share in [0, 1), got {self.warmup}")
        if not 0 < self.coverage < 1:
            raise ValueError(f"training.coverage: expected a share between 0 and 1, got {self.coverage}")
        if not self.wide_strengths or min(self.wide_strengths) <= 0:
            raise ValueError(f"training.wide_strengths: expected positive numbers, got {self.wide_strengths}")
        self.wide_strengths = sorted(self.wide_strengths, reverse=True)


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Where and how it runs.

    Attributes
    ----------
    accelerator, precision
        As Lightning's Trainer takes them; ``auto`` is a GPU where torch finds one.
    devices, nodes
        Processes on each node, one for each GPU, and nodes. Batches are shared out among all.
    strategy
        What several processes share: ``ddp``, gradients; ``fsdp``, gradients, weights and the optimiser's state.
    compile
        Compile the network with ``torch.compile`` (minutes at first, then faster steps).
    accumulate
        Batches whose gradients are added up to one step of the optimiser.
    threads
        CPU threads; 0 = all.
    checkpoint_every
        Also save the resumable state every so many steps (0 = at the end of each epoch only).
    """

    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = Strategy.ddp
    precision: str = "32-true"
    compile: bool = False
    accumulate: int = 1
    threads: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("devices", 1), ("nodes", 1), ("accumulate", 1), ("threads", 0), ("checkpoint_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"trainer.{name}: expected at least {least}, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.accelerator not in ACCELERATORS:
            raise ValueError(
                f"trainer.accelerator: expected one of {', '.join(ACCELERATORS)}, got {self.accelerator!r}"
            )

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU is asked for, or none found."""
        if self.accelerator != "auto":
            return self.accelerator == "cpu"
        import torch

        return not torch.cuda.is_available()


class LogMode(Enum):
    """Whether Weights & Biases keeps a run on disk or sends it."""

    offline = "offline"
    online = "online"


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Where losses go beside the run's own CSV file, which is always written. Nothing of the machine goes with them.

    Attributes
    ----------
    wandb, tensorboard
        Also as a Weights & Biases run, or as TensorBoard's event files.
    project
        Name of the Weights & Biases project.
    mode
        ``offline`` sends nothing. ``online`` sends losses to ``host``, with the key of ``WANDB_API_KEY`` or ``.netrc``.
    host
        URL of that server; null = the environment's ``WANDB_BASE_URL``. One of the two must name it.
    """

    wandb: bool = False
    tensorboard: bool = False
    project: str = "ican_ml"
    mode: LogMode = LogMode.offline
    host: str | None = None

    def __post_init__(self) -> None:
        if self.mode is LogMode.online and not self.wandb:
            raise ValueError("logger.mode: expected online with logger=wandb alone, got it without; set logger=wandb")
        if self.host is not None and not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", self.host):
            raise ValueError(f"logger.host: expected a URL such as https://wandb.my-hospital.org, got {self.host!r}")
