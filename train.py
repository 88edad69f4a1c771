"""Train, evaluate and export: ``python train.py experiment=demo``; ``python train.py --help`` shows what can be set.
Hydra composes ``configs/`` and the command line into a typed configuration; everything else is `ican_ml.pipeline`.
"""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ican_ml.config import RunConfig
from ican_ml.resources import resource_folder
from ican_ml.sweep.sweeper import register

register(RunConfig)


@hydra.main(version_base="1.3", config_path=str(resource_folder("configs")), config_name="config")
def main(composed: DictConfig) -> float | None:
    """Run the pipeline, or a sweep's trial; a mistake in configuration or data ends in one clear message."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.to_container(composed)))
        from ican_ml.pipeline import start  # seconds, which a mistake need not wait for

        return start(config)  # type: ignore[arg-type]
    except (OmegaConfBaseException, ValueError, OSError) as error:
        if composed.trial.study:
            raise  # the sweep tells it
        sys.exit(f"train.py: {str(error).partition('    full_key:')[0].strip()}")


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise, instead of printing several lines and exiting
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        said = str(error).partition("\nConfig search path")[0].replace("\nTo append to your config use", "; to add it:")
        sys.exit("train.py: " + " ".join(f"{said} {str(error.__cause__ or '').partition(chr(10))[0]}".split()))
