"""One trial of a sweep, in whichever process it runs: it reports its losses, stops if pruned, and tells how it ended.

The process that fits opens the study by URL, so that nothing is lost if the one that asked for the trial is gone. A
trial that others took for dead in the meantime has been given to another worker: it stops and its result is not told.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ican_ml.sweep.storage import heartbeats, open_study, trial_id

if TYPE_CHECKING:
    import optuna

# Attributes of a trial.
ERROR, PRUNED_AT, WORKER, INTERRUPTED = "error", "pruned_at", "worker", "interrupted"

Report: TypeAlias = Callable[[int, float, str], None]
"""Takes a step, the loss there, and what the step is called; raises to end the fit."""


@dataclass(kw_only=True, slots=True)
class TrialConfig:
    """Which trial a run is; a sweep sets it. No study: the run is none.

    Attributes
    ----------
    study, storage, number
        Where it is told.
    folder
        Its folder's name; the same for a trial that was killed and is run again.
    heartbeat
        Seconds between signs of life.
    startup, warmup
        Prune after so many finished trials, not before so many epochs; ``startup=0``: never.
    """

    study: str = ""
    storage: str = ""
    number: int = 0
    folder: str = ""
    heartbeat: int = 60
    startup: int = 0
    warmup: int = 0

    def root(self, runs: Path) -> Path:
        """Its run folder."""
        return runs / self.study / "trials" / self.folder


class _PrunedError(Exception):
    pass


class _TakenOverError(Exception):
    pass


def run_trial(trial: TrialConfig, objective: Callable[[Report], float], *, root: Path) -> float | None:
    """Run a trial and tell the study; gives its value, or none if it was pruned, failed or taken over.

    Parameters
    ----------
    objective
        Fits, reports, and returns the loss.
    root
        The trial's run folder: gets the traceback of a failure, and loses its checkpoints once it has ended.
    """
    from optuna.trial import TrialState

    study = open_study(trial.storage, trial.study, heartbeat=trial.heartbeat)
    running = _Running(study, trial)
    with suppress(_TakenOverError), heartbeats(study, [trial.number], trial.heartbeat):
        try:
            running.check()
            value = objective(running.report)
            if not math.isfinite(value):
                raise ValueError(f"tuning loss: expected a number, got {value}")
        except _TakenOverError:
            raise
        except _PrunedError:
            running.end(TrialState.PRUNED)
            _remove_checkpoints(root)
        except Exception as error:
            (root / "private").mkdir(parents=True, exist_ok=True)
            (root / "private" / "error.txt").write_text(traceback.format_exc())
            running.end(TrialState.FAIL, error=said(error))
        else:
            running.end(TrialState.COMPLETE, value)
            _remove_checkpoints(root)
            return value
    return None


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).partition("    full_key:")[0].split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def pruner(startup: int, warmup: int) -> optuna.pruners.BasePruner:
    """Stop a trial whose best loss so far is worse than the median of the others at this epoch."""
    from optuna.pruners import MedianPruner, NopPruner

    return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup) if startup else NopPruner()


def _remove_checkpoints(root: Path) -> None:
    for checkpoint in root.glob("private/*/fit/*.ckpt"):
        checkpoint.unlink()


class _Running:
    """A trial as its own process sees it."""

    def __init__(self, study: optuna.Study, trial: TrialConfig) -> None:
        self._study = study
        self._pruner = pruner(trial.startup, trial.warmup)
        self._number = trial.number
        self._id = trial_id(study, trial.number)

    def _now(self) -> optuna.trial.FrozenTrial:
        return self._study._storage.get_trial(self._id)

    def check(self) -> None:
        """Stop where others have taken this trial for dead."""
        if self._now().state.is_finished():
            raise _TakenOverError

    def report(self, step: int, loss: float, name: str) -> None:
        import optuna

        self.check()
        try:
            if step not in self._now().intermediate_values:  # an earlier attempt may have got further
                self._study._storage.set_trial_intermediate_value(self._id, step, loss)
            if not math.isfinite(loss) or self._pruner.prune(self._study, self._now()):
                self._study._storage.set_trial_user_attr(self._id, PRUNED_AT, name)
                raise _PrunedError
        except optuna.exceptions.UpdateFinishedTrialError:
            raise _TakenOverError from None

    def end(self, state: optuna.trial.TrialState, value: float | None = None, error: str | None = None) -> None:
        import optuna

        try:
            if error is not None:
                self._study._storage.set_trial_user_attr(self._id, ERROR, error)
            self._study.tell(self._number, value, state)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            if not self._now().state.is_finished():
                raise
            raise _TakenOverError from None
