"""Two workers on one study, killed now and then: is every trial run once, and does every one end?

    python benchmarks/sweeps.py            20 trials (two to five minutes, 2 cores)
    python benchmarks/sweeps.py --check    exit code 1 where a trial is lost, run twice, or too many or few are finished

Two processes share a study on SQLite. One of them gets SIGKILL in the middle of a trial, and is started again; later
both get it, and are started again. Then every point that was drawn must have ended once, complete or pruned, in one
folder. Writes ``benchmarks/results/sweeps.json`` (see ``record.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from record import ROOT, Record

from ican_ml.sweep.storage import default_url, open_study

TRIALS = 20
_FOLDER = ROOT / "runs" / "sweeps"
_COHORT = ROOT / "runs" / "sweeps-cohort"
_COMMAND = (
    *(sys.executable, "train.py", "-m", "sweep=response", "experiment=sanity", "model=base", f"cohort.path={_COHORT}"),
    *("hydra.sweeper.study=sweeps", f"hydra.sweeper.trials={TRIALS}", "hydra.sweeper.heartbeat=4"),
    *("hydra.sweeper.prune_startup=4", "hydra.sweeper.prune_warmup=2", "training.epochs=10", "trainer.threads=1"),
    *("inputs.modalities=[mutation]", "inputs.max_events=16", "trainer.checkpoint_every=1"),
)
_FINISHED = ("COMPLETE", "PRUNED")


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and say what went wrong")
    arguments = parser.parse_args()
    record = Record("sweeps", libraries=("optuna", "sqlalchemy"))
    if "two workers" not in record.parts:
        record.add("two workers", _study())
    found = record.parts["two workers"]
    print(json.dumps(found))
    faults = [
        name
        for name, good in {
            f"expected {TRIALS} trials finished, got {found['finished']}": found["finished"] == TRIALS,
            "a point was lost": not found["lost"],
            "a point was run to its end twice": not found["twice"],
            "a trial was still open": not found["open"],
            "none was pruned": found["pruned"] > 0,
            "the killed trial was not finished by another worker": found["killed_finished_by_another"],
            "a worker did not end by itself": not any(found["exit_codes"]),
        }.items()
        if not good
    ]
    if arguments.check and faults:
        sys.exit("\n".join(faults))


def _study() -> dict[str, Any]:
    for folder in (_FOLDER, _COHORT):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "ican_ml.cli", "simulate", _COHORT, "--subjects", "240"], check=True)
    started = time.monotonic()
    first = _start()
    _wait(lambda trials: any("worker" in trial.user_attrs for trial in trials))
    name = _trials()[0].user_attrs["worker"]
    second = _start()
    in_the_middle = _wait(lambda trials: _finished(trials) >= 4 and _running(trials, name))
    _kill(first)
    killed = next(trial.number for trial in in_the_middle if _is_in_the_middle(trial, name))
    first = _start()
    _wait(lambda trials: _finished(trials) >= 12 and _running(trials))
    _kill(first)
    _kill(second)
    stopped = _finished(_trials())
    codes = [process.wait() for process in (_start(), _start())]
    trials = _trials()
    ended = Counter(_first(trial) for trial in trials if trial.state.name in _FINISHED)
    again = [trial for trial in trials if killed in trial.system_attrs.get("retry_history", ())]
    return {
        "finished": _finished(trials),
        "complete": sum(trial.state.name == "COMPLETE" for trial in trials),
        "pruned": sum(trial.state.name == "PRUNED" for trial in trials),
        "failed_by_an_error": sum("error" in trial.user_attrs for trial in trials),
        "lost_workers": sum(trial.state.name == "FAIL" and "error" not in trial.user_attrs for trial in trials),
        "finished_at_the_full_stop": stopped,
        "lost": sorted({_first(trial) for trial in trials if "error" not in trial.user_attrs} - set(ended)),
        "twice": sorted(number for number, times in ended.items() if times > 1),
        "open": sum(trial.state.name in ("RUNNING", "WAITING") for trial in trials),
        "folders": len(list((_FOLDER / "trials").iterdir())),
        "killed_finished_by_another": any(
            trial.state.name in _FINISHED and trial.user_attrs["worker"] != name for trial in again
        ),
        "workers": len({trial.user_attrs["worker"] for trial in trials if trial.state.name in _FINISHED}),
        "exit_codes": codes,
        "seconds": round(time.monotonic() - started),
    }


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _COMMAND, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise SystemExit("sweeps: expected a worker at work, got one that has ended")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _trials() -> list[FrozenTrial]:
    if not (Path(_FOLDER) / "sweep.json").exists():
        return []
    return open_study(default_url(_FOLDER), "sweeps").trials


def _wait(until: Callable[[list[FrozenTrial]], bool], limit: float = 900.0) -> list[FrozenTrial]:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if until(trials := _trials()):
            return trials
        time.sleep(0.3)
    raise SystemExit(f"sweeps: waited {limit:.0f} s in vain, at {_finished(_trials())} finished trials")


def _finished(trials: list[FrozenTrial]) -> int:
    return sum(trial.state.name in _FINISHED for trial in trials)


def _running(trials: list[FrozenTrial], worker: str | None = None) -> bool:
    return any(_is_in_the_middle(trial, worker) for trial in trials)


def _is_in_the_middle(trial: FrozenTrial, worker: str | None = None) -> bool:
    named = worker is None or trial.user_attrs.get("worker") == worker
    return trial.state.name == "RUNNING" and named and len(trial.intermediate_values) > 0


def _first(trial: FrozenTrial) -> int:
    """The trial that this one runs again, or itself."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


if __name__ == "__main__":
    main()
