"""Where losses go beside the run's own CSV file, on request: Weights & Biases, TensorBoard.

Neither may tell of the machine or of a patient. wandb records host, user, arguments, paths, packages, git state and all
of the console unless each is turned off; here all are. What else it keeps on disk, such as its own debug logs, stays in
the run's ``private/``: only the run file itself is moved out, so that a run killed at any moment leaves nothing.

Nothing is sent anywhere, except with ``logger.mode=online``, and then to the server that is named.
"""

from __future__ import annotations

import netrc
import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ican_ml.training.config import LoggerConfig, LogMode
from ican_ml.training.event_file import EventFileLogger

_ANSWER_S = 60.0
_UPLOAD_S = 300.0


def check_loggers(config: LoggerConfig) -> None:
    """Find what is missing before any work is done.

    Raises
    ------
    ValueError
        If TensorBoard is not installed, or an online run has no server or no key.
    """
    if config.tensorboard and find_spec("tensorboard") is None:
        raise ValueError(
            "logger.tensorboard: expected the package tensorboard, found none; python -m pip install tensorboard"
        )
    if config.wandb and config.mode is LogMode.online:
        _server_and_key(config)


def run_loggers(config: LoggerConfig, root: Path, fold: str) -> list[Logger]:
    """Loggers of one fold.

    Parameters
    ----------
    root
        The run's folder: ``root/logs`` may leave, ``root/private`` may not.
    fold
        Their name.

    Raises
    ------
    ValueError
        As :func:`check_loggers`; or if the server of an online run does not answer, or refuses the key.
    """
    check_loggers(config)
    found: list[Logger] = []
    if config.wandb:
        found.append(_wandb(config, root / "private", fold))
    if config.tensorboard:
        found.append(EventFileLogger(root / "logs" / "tensorboard" / fold))
    return found


@rank_zero_only
def close_loggers(root: Path) -> None:
    """End the open Weights & Biases run, if any, and move its run file, and any that a killed run left, to ``logs``."""
    kept = root / "private" / "wandb"
    if not kept.exists():
        return
    import wandb

    wandb.finish()
    for path in kept.glob("*run-*/run-*.wandb"):
        target = root / "logs" / path.relative_to(root / "private")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def _wandb(config: LoggerConfig, folder: Path, fold: str) -> Logger:
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # before the import, which reads it
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    online = config.mode is LogMode.online
    host, key = _server_and_key(config) if online else (None, None)
    settings = wandb.Settings(
        mode=config.mode.value,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        symlink=False,
        disable_job_creation=True,
        host="",
        username="",
        email="",
        docker="",
        program="",
        quiet=True,
        silent=not online,
        init_timeout=_ANSWER_S,
        finish_timeout=_UPLOAD_S,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    if host is not None:
        settings.base_url, settings.api_key = host, key
    logger = WandbLogger(name=fold, project=config.project, save_dir=folder, offline=not online, settings=settings)
    try:
        logger.experiment  # noqa: B018  an online run that cannot start says so now
    except wandb.Error as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"logger.mode: expected a run at {host}, got: {said}; set logger.mode=offline") from None
    return logger


def _server_and_key(config: LoggerConfig) -> tuple[str, str | None]:
    """The server of an online run and the key for it; None where wandb reads an identity token instead."""
    host = config.host or os.environ.get("WANDB_BASE_URL")
    if not host:
        raise ValueError(
            "logger.host: expected the URL of the server to send to, got none; set logger.host or WANDB_BASE_URL "
            "(https://api.wandb.ai is the public one)"
        )
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return host, None
    if not (key := os.environ.get("WANDB_API_KEY") or _netrc_key(host)):
        raise ValueError(
            f"logger.mode: expected an API key for {host}, found none; set WANDB_API_KEY, or run wandb login "
            f"--host {host}"
        )
    return host, key


def _netrc_key(host: str) -> str | None:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        known = netrc.netrc(path).authenticators(urlsplit(host).netloc)
    except (OSError, netrc.NetrcParseError):
        return None
    return known[2] if known is not None else None
