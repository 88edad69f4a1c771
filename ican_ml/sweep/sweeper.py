"""The sweeper that Hydra runs: ``python train.py -m sweep=response`` asks a study for trials until enough are finished.

Workers are the same command, started as often as there are machines for it. Hydra's launcher runs the trials: one after
the other in this process, or as jobs of a cluster (``hydra/launcher=submitit_slurm hydra.sweeper.together=8``).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ican_ml.logs import log_to
from ican_ml.sweep.queue import Claim, Queue
from ican_ml.sweep.space import Space, read_space, written
from ican_ml.sweep.storage import default_url, heartbeats, without_password
from ican_ml.sweep.trial import ERROR, TrialConfig, said

FORMAT, FILE = "ican-sweep/1", "sweep.json"
_NAME = "hydra_plugins.ican_ml.StudySweeper"  # Hydra takes plugins under names of this package alone
_HOPELESS = 3
_OWN = ("hydra", "name", "runs", "trial")
_log = logging.getLogger("ican_sweep")


@dataclass(kw_only=True, slots=True)
class SweeperConfig:
    """How a sweep is run.

    Attributes
    ----------
    study
        Its name, and that of its folder below ``runs``.
    storage
        URL of its database; null = SQLite in that folder. For several machines: PostgreSQL.
    params
        Name -> what is tried, see :mod:`ican_ml.sweep.space`.
    trials
        So many end complete or pruned.
    seed
        Of the sampler (TPE).
    prune_startup, prune_warmup
        Once so many trials are complete, stop one whose loss is worse than their median, not before so many epochs; a
        startup of 0: never.
    together
        Trials launched at once, where the launcher runs several.
    heartbeat
        Seconds between signs of life; a trial without any for three of them has lost its worker and is run again.
    """

    _target_: str = _NAME
    study: str = "???"
    storage: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    trials: int = 30
    seed: int = 7
    prune_startup: int = 5
    prune_warmup: int = 3
    together: int = 1
    heartbeat: int = 60

    def __post_init__(self) -> None:
        if not self.study or any(c in self.study for c in "/\\") or self.study.startswith("."):
            raise ValueError(f"hydra.sweeper.study: expected a plain folder name, got {self.study!r}")
        for name, least in (("trials", 1), ("seed", 0), ("together", 1), ("heartbeat", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"hydra.sweeper.{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("prune_startup", "prune_warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"hydra.sweeper.{name}: expected at least 0, got {getattr(self, name)}")


class StudySweeper(Sweeper):
    """Trials of an Optuna study, run by Hydra's launcher."""

    def __init__(self, **_: object) -> None:  # Hydra passes the settings, which `setup` reads with their types
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        with open_dict(config):
            config.hydra.sweep.dir = str(Path(config.runs) / config.hydra.sweeper.study)  # for what a launcher writes
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> float | None:
        """Run trials until the study has enough; gives its best value, if any is complete."""
        try:
            from ican_ml.sweep.summary import best_line, best_value, table, trial_line

            settings, queue, groups, space = self._prepare(arguments)
        except ImportError as error:
            raise HydraException(
                f"{str(error.name).partition('.')[0]} is not installed; pip install 'ican_ml[sweep]'"
            ) from None
        except ValueError as error:
            raise HydraException(str(error)) from None
        folder = self._folder(settings)
        claims: list[Claim] = []
        failed = done = 0
        waiting = False
        try:
            while True:
                claims = queue.claim(settings.together)
                now = queue.counts()
                if not claims and now.finished >= settings.trials:
                    break
                if not claims:
                    if not waiting:
                        _log.info("waiting for %d trials of other workers to finish or to go stale", now.running)
                    waiting = True
                    time.sleep(min(5.0, settings.heartbeat))
                    continue
                waiting = False
                why = self._launch(settings, queue, space, groups, claims, done)
                for claim in claims:
                    _log.info("%s", trial_line(queue.study, claim.number))
                ended = [queue.study.trials[claim.number] for claim in claims]
                claims = []
                done += len(ended)
                failed += sum(trial.state.name == "FAIL" for trial in ended)
                why = ended[-1].user_attrs.get(ERROR, why)
                if failed == done >= _HOPELESS or queue.counts().failed > settings.trials + _HOPELESS:
                    raise HydraException(f"sweep: {failed} trials failed, with {done - failed} that did not; {why}")
        except (KeyboardInterrupt, SystemExit):
            queue.release(claims)
            _log.info("stopped; the same command goes on")
            sys.exit(130)
        _log.info("\n%s\n\n%s", table(queue.study), best_line(queue.study))
        _log.info("to look closer, and for the best configuration as an experiment: ican sweep-report %s", folder)
        return best_value(queue.study)

    def _prepare(self, arguments: list[str]) -> tuple[SweeperConfig, Queue, list[str], Space]:
        assert self.config is not None
        assert self.hydra_context is not None
        settings = OmegaConf.to_object(self.config.hydra.sweeper)
        assert isinstance(settings, SweeperConfig)
        space = read_space(settings.params, arguments, self.hydra_context.config_loader)
        choices = self.config.hydra.runtime.choices
        groups = [name for name in space.distributions if name in choices]
        self._try_corners(space, groups)
        folder = self._folder(settings)
        storage = without_password(settings.storage) if settings.storage else default_url(folder)
        queue = Queue(
            folder,
            storage,
            settings.study,
            space,
            trials=settings.trials,
            seed=settings.seed,
            heartbeat=settings.heartbeat,
            made={"space": space.texts, "groups": sorted(groups), "experiment": self._experiment(space)},
        )
        kept = {"format": FORMAT, "study": settings.study, "storage": storage if settings.storage else None}
        (folder / FILE).write_text(json.dumps(kept, indent=1) + "\n")
        settings.storage = storage
        log_to(_log, folder / "log.txt")
        now = queue.counts()
        _log.info(
            "study %s: %d of %d trials finished, %d being run; %d parameters; folder %s",
            *(settings.study, now.finished, settings.trials, now.running, len(space.distributions), folder),
        )
        return settings, queue, groups, space

    def _folder(self, settings: SweeperConfig) -> Path:
        assert self.config is not None
        return Path(self.config.runs) / settings.study

    def _launch(
        self,
        settings: SweeperConfig,
        queue: Queue,
        space: Space,
        groups: Sequence[str],
        claims: Sequence[Claim],
        done: int,
    ) -> str:
        """Run the trials; what their processes could not tell is told here. Gives the launcher's own error, if any."""
        assert self.launcher is not None
        batch = [
            [*space.fixed, *space.overrides(claim.params, groups), _trial_override(settings, claim)] for claim in claims
        ]
        errors: list[str | None] = [None] * len(claims)
        why = "their processes were lost"
        with heartbeats(queue.study, [claim.number for claim in claims], settings.heartbeat):
            try:
                jobs: Sequence[JobReturn] = self.launcher.launch(batch, initial_job_idx=done)
                errors = [_failure(job) for job in jobs]
            except Exception as error:  # of a launcher's jobs, those that ended have told it themselves
                why = said(error)
                _log.info("launcher: %s", why)
        queue.settle(claims, errors)
        return why

    def _try_corners(self, space: Space, groups: Sequence[str]) -> None:
        """Compose a few points of the space: an unknown name or a wrong type ends the sweep before its first trial."""
        refused: list[ValueError] = []
        corners = space.corners()
        for values in corners:
            try:
                composed = self._composed([*space.fixed, *space.overrides(values, groups)])
                with open_dict(composed):
                    del composed["hydra"]
                OmegaConf.to_object(composed)
            except OmegaConfBaseException as error:
                raise ValueError(said(error).partition(": ")[2] or str(error)) from None
            except ValueError as error:
                refused.append(error)
        if len(refused) == len(corners):
            raise refused[0]

    def _experiment(self, space: Space) -> dict[str, Any]:
        """What the trials share, as an experiment would say it: the one they start from, groups, settings."""
        full = self._composed(list(space.fixed))
        choices = full.hydra.runtime.choices
        given = (text.lstrip("+").partition("=")[0] for text in space.fixed)
        named = [name for name in given if name in choices and name not in ("experiment", "sweep")]
        groups = {name: choices[name] for name in named}
        start = choices.get("experiment")
        chosen = [text for text in full.hydra.overrides.hydra if text.startswith("hydra/sweeper=")]
        known = (
            [] if chosen else ["hydra/sweeper=study"]
        )  # what ``hydra.sweeper.x=`` needs, without the file that has it
        named = [f"{name}={of}" for name, of in groups.items()]
        base = self._composed([*known, f"experiment={start or 'null'}", *named])
        settings = _changed(*(_plain(config) for config in (base, full)))
        return {"experiment": start, "groups": groups, "settings": settings}

    def _composed(self, overrides: list[str]) -> DictConfig:
        assert self.hydra_context is not None
        assert self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)


def register(schema: type) -> None:
    """Make the typed schema of a run, and the sweeper as ``hydra/sweeper: study``, known to Hydra."""
    ConfigStore.instance().store(name="run_config", node=schema)
    ConfigStore.instance().store(group="hydra/sweeper", name="study", node=SweeperConfig, provider="ican_ml")
    plugins = Plugins.instance()
    plugins.register(StudySweeper)
    plugins.class_name_to_class[_NAME] = StudySweeper


def _trial_override(settings: SweeperConfig, claim: Claim) -> str:
    trial = TrialConfig(
        study=settings.study,
        storage=str(settings.storage),
        number=claim.number,
        folder=claim.folder,
        heartbeat=settings.heartbeat,
        startup=settings.prune_startup,
        warmup=settings.prune_warmup,
    )
    return "trial={" + ",".join(f"{name}:{written(value)}" for name, value in asdict(trial).items()) + "}"


def _failure(job: JobReturn) -> str | None:
    return said(job._return_value) if job.status is JobStatus.FAILED else None


def _plain(config: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items() if name not in _OWN}


def _changed(base: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """The leaves of ``full`` that ``base`` has otherwise or not at all."""
    found: dict[str, Any] = {}
    for name, value in full.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            if inner := _changed(base[name], value):
                found[name] = inner
        elif name not in base or base[name] != value:
            found[name] = value
    return found
