"""The trials of a study as its workers share them: claimed one by one under a lock, so that none is run twice, none is
lost with a killed worker, and as many as asked for end complete or pruned.

A claimed trial shows signs of life. One that no longer does has lost its worker: it is failed, and its parameters wait
to be claimed again, under the same folder, so that the fit goes on from its checkpoint. One that failed by an error of
its own is not run again, and another takes its place.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.sweep.space import Space
from ican_ml.sweep.storage import beat, open_study, quiet, trial_id
from ican_ml.sweep.trial import ERROR, INTERRUPTED, WORKER

if TYPE_CHECKING:
    import optuna

RETRIES = 3
# Attributes of a trial that is run again: the first one's number, those before it, how often a worker was lost.
_FIRST, _HISTORY, _LOST = "failed_trial", "retry_history", "lost"
_MADE = "made"
# What may differ between the workers of a study.
_OF_A_MACHINE = ("groups.trainer", "groups.logger", "settings.trainer", "settings.logger", "settings.cohort.path")


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A trial that this worker has to run; ``folder`` is the same each time that it is run."""

    number: int
    folder: str
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Trials of a study: finished (complete or pruned), being run, failed for good."""

    finished: int
    running: int
    failed: int


class Queue:
    """One worker's hold on a study.

    Parameters
    ----------
    folder
        The study's; all workers share it.
    storage
        URL without password.
    made
        What the study is about, kept in it: another search space or other settings are another study.
    """

    def __init__(
        self,
        folder: Path,
        storage: str,
        name: str,
        space: Space,
        *,
        trials: int,
        seed: int,
        heartbeat: int,
        made: dict[str, Any],
    ) -> None:
        from filelock import FileLock

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        self._space, self._trials, self._seed = space, trials, seed
        self.worker = uuid.uuid4().hex[:8]
        with self._lock:
            self.study = open_study(storage, name, heartbeat=heartbeat, create=True)
            known = self.study.user_attrs.get(_MADE)
            if known is None:
                self.study.set_user_attr(_MADE, made)
            elif differ := [name for name in _differences(known, made) if not name.startswith(_OF_A_MACHINE)]:
                raise ValueError(
                    f"hydra.sweeper.study: expected the settings that study {name!r} was made with, got others "
                    f"({', '.join(sorted(differ))}); name another: hydra.sweeper.study=NAME"
                )

    def claim(self, at_most: int) -> list[Claim]:
        """Up to so many trials to run now; none if enough are finished or being run by others."""
        with self._lock:
            self._find_lost()
            now = self.counts()
            free = self._trials - now.finished - now.running
            return [self._ask() for _ in range(min(at_most, free))]

    def counts(self) -> Counts:
        """Where the study is."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        return Counts(
            finished=sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials),
            running=sum(trial.state is TrialState.RUNNING for trial in trials),
            failed=sum(trial.state is TrialState.FAIL and ERROR in trial.user_attrs for trial in trials),
        )

    def settle(self, claims: Sequence[Claim], errors: Sequence[str | None]) -> None:
        """What their own processes did not tell: how they failed, or (no error) that these processes are gone."""
        with self._lock:
            for claim, error in zip(claims, errors, strict=True):
                self._fail(claim.number, **({ERROR: error} if error else {}))
            self._find_lost()

    def release(self, claims: Sequence[Claim]) -> None:
        """Give back trials that this worker does not finish."""
        with self._lock:
            for claim in claims:
                self._fail(claim.number, **{INTERRUPTED: True})
            self._find_lost()

    def _ask(self) -> Claim:
        from optuna.samplers import TPESampler

        # Workers that draw in turn must not draw the same: what is drawn depends on the trial, not on who asks.
        drawn = np.random.SeedSequence([self._seed, len(self.study.get_trials(deepcopy=False))]).generate_state(1)[0]
        with quiet():
            self.study.sampler = TPESampler(seed=int(drawn), multivariate=True, constant_liar=True)
            trial = self.study.ask(self._space.distributions)
        beat(self.study, trial.number)
        trial.set_user_attr(WORKER, self.worker)
        first = self.study.trials[trial.number].system_attrs.get(_FIRST, trial.number)
        return Claim(number=trial.number, folder=f"{first:04d}", params=dict(trial.params))

    def _fail(self, number: int, **attributes: Any) -> None:
        from optuna.trial import TrialState

        storage, found = self.study._storage, trial_id(self.study, number)
        if storage.get_trial(found).state is TrialState.RUNNING:
            for name, value in attributes.items():
                storage.set_trial_user_attr(found, name, value)
            storage.set_trial_state_values(found, TrialState.FAIL)

    def _find_lost(self) -> None:
        """Fail trials without signs of life, and have all those run again that were lost with their worker."""
        import optuna
        from optuna.trial import TrialState

        with quiet():
            optuna.storages.fail_stale_trials(self.study)
        trials = self.study.get_trials(deepcopy=False)
        again = {number for trial in trials for number in trial.system_attrs.get(_HISTORY, ())}
        for trial in trials:
            if trial.state is TrialState.RUNNING and WORKER not in trial.user_attrs:  # killed while it claimed this
                beat(self.study, trial.number)
                self.study._storage.set_trial_user_attr(trial_id(self.study, trial.number), WORKER, "lost")
            if trial.state is not TrialState.FAIL or ERROR in trial.user_attrs or trial.number in again:
                continue
            lost = trial.system_attrs.get(_LOST, 0) + (INTERRUPTED not in trial.user_attrs)
            if lost <= RETRIES:
                known = {
                    _FIRST: trial.system_attrs.get(_FIRST, trial.number),
                    _HISTORY: [*trial.system_attrs.get(_HISTORY, ()), trial.number],
                    _LOST: lost,
                }
                self.study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING,
                        params=trial.params,
                        distributions=trial.distributions,
                        intermediate_values=trial.intermediate_values,
                        system_attrs=known,
                    )
                )


def made_of(study: optuna.Study) -> dict[str, Any]:
    """What the study is about, as :class:`Queue` kept it."""
    found: dict[str, Any] = study.user_attrs.get(_MADE, {})
    return found


def _differences(known: Any, made: Any, at: str = "") -> set[str]:
    if isinstance(known, dict) or isinstance(made, dict):
        known, made = ({} if part is None else part for part in (known, made))
    if isinstance(known, dict) and isinstance(made, dict):
        parts = (_differences(known.get(n), made.get(n), f"{at}.{n}" if at else n) for n in known.keys() | made.keys())
        return set().union(*parts)
    return set() if known == made else {at.removeprefix("experiment.")}
