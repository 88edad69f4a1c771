"""Plain log lines, on the terminal and in a file."""

from __future__ import annotations

import logging
from pathlib import Path


def log_to(logger: logging.Logger, path: Path) -> None:
    """From now on a logger and those below it write there alone, with the time of day."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    for handler in (logging.StreamHandler(), logging.FileHandler(path)):
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
