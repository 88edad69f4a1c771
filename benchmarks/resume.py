"""Kill a training at random moments, start it again, and compare with one that was left alone, bit for bit.

    python benchmarks/resume.py            10 kills (about 10 minutes, 2 cores)
    python benchmarks/resume.py --check    exit code 1 where a weight or a metric differs

Each trial starts a short run of the simulated cohort, sends SIGKILL to it somewhere between the first step of the fit
and its end, and gives the same command again until it ends by itself. Writes ``benchmarks/results/resume.json``.
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

KILLS = 10
_COMMAND = (
    *(sys.executable, "train.py", "experiment=demo", "cohort.simulate.subjects=400", "training.epochs=8"),
    *("trainer.checkpoint_every=2", "trainer.threads=1", "evaluation.replicates=20", "evaluation.baselines=false"),
)


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each trial that ended differently")
    arguments = parser.parse_args()
    record = Record("resume")
    whole = _fresh("resume-whole")
    _start("resume-whole").wait()
    seconds = json.loads((whole / "private" / "split" / "fit" / "done.json").read_text())["seconds"]
    for trial in range(1, KILLS + 1):
        part = f"kill {trial}"
        if part not in record.parts:
            record.add(part, _killed_once(whole, seconds, random.Random(trial).random()))
        print(f"{part}: {json.dumps(record.parts[part])}")
    different = [part for part, found in record.parts.items() if not (found["same_weights"] and found["same_metrics"])]
    if arguments.check and different:
        sys.exit(f"expected the weights and metrics of a run left alone, got others after {', '.join(different)}")


def _killed_once(whole: Path, seconds: float, share: float) -> dict[str, Any]:
    folder = _fresh("resume-killed")
    process = _start("resume-killed")
    fit = folder / "private" / "split" / "fit"
    while not (fit / "key").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(share * seconds)
    was_running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = {
        "share_of_the_fit": round(share, 3),
        "was_running": was_running,
        "checkpoint": (fit / "last.ckpt").exists(),
        "fit_was_done": (fit / "done.json").exists(),
    }
    if _start("resume-killed").wait():
        raise SystemExit("resume: the second start failed")
    weights, expected = (torch.load(run / "private/split/fit/network.pt", weights_only=True) for run in (folder, whole))
    found["same_weights"] = weights.keys() == expected.keys() and all(
        torch.equal(weights[name], expected[name]) for name in expected
    )
    found["same_metrics"] = _metrics(folder) == _metrics(whole)
    return found


def _metrics(folder: Path) -> tuple[Any, Any]:
    curve = json.loads((folder / "private" / "split" / "fit" / "done.json").read_text())["curve"]
    return json.loads((folder / "metrics.json").read_text()), curve


def _fresh(name: str) -> Path:
    folder = ROOT / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _start(name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_COMMAND, f"name={name}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


if __name__ == "__main__":
    main()
