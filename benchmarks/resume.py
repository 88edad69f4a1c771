"""Kill a training at random moments, over and over, and compare what it ends with to one that was left alone.

    python benchmarks/resume.py            20 kills of one process, 20 of two (about half an hour, 2 cores)
    python benchmarks/resume.py --check    exit code 1 where a weight or a metric differs

A series starts a short run of the simulated cohort, sends SIGKILL somewhere between the first step of the fit and its
end, gives the same command again, and so on; after the last kill it may end by itself. Of two processes every second
kill hits the started one alone: the other must then end by itself, with one line. One process must reach the same
weights and metrics bit for bit, two the same metrics to 1e-6. Writes ``benchmarks/results/resume.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import ROOT, Record

from ican_ml.reproduce import gaps

SERIES, KILLS = 4, 5
TOLERANCE = 1e-6
PROCESSES = {"one process": ("trainer=cpu",), "two processes": ("trainer=ddp", "trainer.accelerator=cpu")}
_COMMAND = (
    *(sys.executable, "train.py", "experiment=demo", "cohort.simulate.subjects=400", "training.epochs=8"),
    *("trainer.checkpoint_every=2", "trainer.threads=1", "evaluation.replicates=20", "evaluation.baselines=false"),
    *("evaluation.permutations=0", "inputs.max_events=32"),
)


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each series that ended differently")
    arguments = parser.parse_args()
    record = Record("resume")
    different = []
    for name, trainer in PROCESSES.items():
        whole = ROOT / "runs" / f"resume-whole-{len(trainer)}"
        parts = [f"{name}, series {number}" for number in range(1, SERIES + 1)]
        if not all(part in record.parts for part in parts):
            shutil.rmtree(whole, ignore_errors=True)
            if _start(whole.name, trainer).wait():
                raise SystemExit(f"resume: {name} left alone failed")
        for number, part in enumerate(parts):
            if part not in record.parts:
                record.add(part, _killed(whole, trainer, random.Random(number)))
            print(f"{part}: {json.dumps(record.parts[part])}")
            found = record.parts[part]
            same = found["same weights"] if len(trainer) == 1 else found["largest difference of a metric"] <= TOLERANCE
            different += [] if same and found["ended by themselves"] else [part]
    if arguments.check and different:
        sys.exit(f"expected the weights and metrics of a run left alone, got others after {', '.join(different)}")


def _killed(whole: Path, trainer: tuple[str, ...], draw: random.Random) -> dict[str, Any]:
    folder = ROOT / "runs" / "resume-killed"
    shutil.rmtree(folder, ignore_errors=True)
    seconds = json.loads((whole / "private" / "split" / "fit" / "done.json").read_text())["seconds"]
    fit = folder / "private" / "split" / "fit"
    moments, alone = [], []
    for kill in range(KILLS):
        process = _start(folder.name, trainer)
        while not (fit / "key").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() * seconds)
        others = _children(process.pid) if len(trainer) > 1 and kill % 2 else []
        moments.append(_moment(folder, process))
        if others:
            os.kill(others[0], signal.SIGKILL)
            try:
                alone.append(process.wait(120) != 0 or moments[-1] == "after the fit")
            except subprocess.TimeoutExpired:
                alone.append(False)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if _start(folder.name, trainer).wait():
        raise SystemExit("resume: the last start failed")
    weights, expected = (torch.load(run / "private/split/fit/network.pt", weights_only=True) for run in (folder, whole))
    return {
        "killed": moments,
        "ended by themselves": all(alone),
        "same weights": all(torch.equal(weights[name], expected[name]) for name in expected),
        "largest difference of a metric": max(gaps(_metrics(folder), _metrics(whole)).values()),
    }


def _moment(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Where a run is when it is killed."""
    fit = folder / "private" / "split" / "fit"
    if process.poll() is not None:
        return "after the run"
    if (fit / "done.json").exists():
        return "after the fit"
    return "after a checkpoint" if (fit / "last.ckpt").exists() else "before a checkpoint"


def _children(pid: int) -> list[int]:
    """The processes that a run has started to train with it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"follower" in command:
            found.append(int(path.parent.name))
    return found


def _metrics(folder: Path) -> Any:
    curve = json.loads((folder / "private" / "split" / "fit" / "done.json").read_text())["curve"]
    return [json.loads((folder / "metrics.json").read_text()), curve]


def _start(name: str, trainer: tuple[str, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_COMMAND, *trainer, f"name={name}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


if __name__ == "__main__":
    main()
