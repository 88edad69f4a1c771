"""Train, evaluate and export: ``python train.py experiment=demo``; ``python train.py --help`` shows what can be set.

Hydra composes ``configs/`` and the command line into a typed configuration; everything else is `ican_ml.pipeline`.
"""

import os
import sys

import hydra
from omegaconf import DictConfig

from ican_ml.config import RunConfig
from ican_ml.entry import MISTAKES, is_trial, one_line, typed
from ican_ml.resources import resource_folder
from ican_ml.sweep.sweeper import register

register(RunConfig)


@hydra.main(version_base="1.3", config_path=str(resource_folder("configs")), config_name="config")
def main(composed: DictConfig) -> float | None:
    """Run the pipeline, or a sweep's trial; a mistake in configuration or data ends in one clear message."""
    try:
        config = typed(composed)
        from ican_ml.pipeline import start  # seconds, which a mistake need not wait for

        return start(config)
    except MISTAKES as error:
        if is_trial():
            raise  # to the sweep, which may run on another machine
        sys.exit(f"train.py: {one_line(error)}")


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise, instead of printing several lines and exiting
    try:
        main()
    except MISTAKES as error:
        sys.exit(f"train.py: {one_line(error)}")
