"""Between Hydra and the pipeline: the typed configuration of a run or of a sweep's trial, and errors in one line."""

from __future__ import annotations

from dataclasses import replace

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ican_ml.config import RunConfig

# In configuration or data: they end in one line, all else in a traceback.
MISTAKES = (HydraException, OmegaConfBaseException, ValueError, OSError)
_PLUGINS = {"submitit_slurm": "slurm"}


def is_trial() -> bool:
    """Whether this is one of the runs of a sweep (``-m``, or ``launcher=slurm``)."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def typed(composed: DictConfig) -> RunConfig:
    """What Hydra composed, checked. Each run of a grid gets a folder of its own, ``<name>-<its number>``.

    Raises
    ------
    OmegaConfBaseException, ValueError
        If a name is unknown, or a value of the wrong type or nonsense.
    """
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.to_container(composed))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, RunConfig)
    named = is_trial() and not config.trial.study  # a study names the folders of its trials
    return replace(config, name=f"{config.name}-{HydraConfig.get().job.num}") if named else config


def one_line(error: Exception) -> str:
    """What went wrong, and the remedy, as one line."""
    said = str(error).partition("\nConfig search path")[0].partition("    full_key:")[0]
    for choice, extra in _PLUGINS.items():
        if f"Could not find 'hydra/launcher/{choice}'" in said:
            return f"launcher={extra} needs a plugin of Hydra; to install it: pip install 'ican_ml[{extra}]'"
    said = said.replace("\nTo append to your config use", "; to add it:")
    why = str(error.__cause__ or "").partition("\n")[0]
    return " ".join(f"{said} {why}".split())
