"""Where losses go: a CSV file always, Weights & Biases offline on request.

wandb records host, user, arguments, paths, git state and all of the console unless each is turned off; here all are.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from ican_ml.training.config import LoggerConfig


def run_loggers(config: LoggerConfig, root: Path, fold: str) -> list[Logger]:
    """Loggers of one fold; files lie in ``root/logs``."""
    logs = root / "logs"
    loggers: list[Logger] = [CSVLogger(logs, name=fold, version="")]
    if config.wandb:
        loggers.append(_offline_wandb(logs, config.project, fold))
    return loggers


def close_loggers(root: Path) -> None:
    """End the open Weights & Biases run, if any, and remove its debug logs: they hold absolute paths and user names."""
    logs = root / "logs" / "wandb"
    if not logs.exists():
        return
    import wandb

    wandb.finish()
    for path in logs.rglob("debug*.log"):
        path.unlink()


def _offline_wandb(folder: Path, project: str, fold: str) -> Logger:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    settings = wandb.Settings(
        mode="offline",
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        symlink=False,
        disable_job_creation=True,
        host="",
        username="",
        program="",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
    )
    return WandbLogger(name=fold, project=project, save_dir=folder, offline=True, settings=settings)
