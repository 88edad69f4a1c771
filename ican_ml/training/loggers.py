"""Where losses go beside the run's own CSV file: Weights & Biases, offline and on request.

wandb records host, user, arguments, paths, git state and all of the console unless each is turned off; here all are.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from ican_ml.training.config import LoggerConfig


def run_loggers(config: LoggerConfig, root: Path, fold: str) -> list[Logger]:
    """Loggers of one fold; files lie in ``root/logs``. What a killed run left there of the machine is removed."""
    logs = root / "logs"
    _remove_debug_logs(logs)
    return [_offline_wandb(logs, config.project, fold)] if config.wandb else []


def close_loggers(root: Path) -> None:
    """End the open Weights & Biases run, if any, and remove its debug logs: they hold absolute paths and user names."""
    logs = root / "logs"
    if not (logs / "wandb").exists():
        return
    import wandb

    wandb.finish()
    _remove_debug_logs(logs)


def _remove_debug_logs(logs: Path) -> None:
    for path in (logs / "wandb").rglob("debug*.log"):
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
