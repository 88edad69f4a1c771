"""Whole runs against what they must reach: the simulated cohort on three seeds, and the real cohorts' experiments.

    python benchmarks/runs.py demo                      three seeds of simulator and model (about 7 minutes, 2 cores)
    python benchmarks/runs.py demo --seeds 7 --check    one seed; exit code 1 where a figure falls short
    python benchmarks/runs.py msk_chord gdsc tcga_survival --check    needs ICAN_COHORTS (about 40 minutes)

Writes ``benchmarks/results/<name>.json``: the figures with machine, versions and commit. Runs that are done are not
done again (they lie in ``runs/``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ("demo", "msk_chord", "gdsc", "tcga_survival")
PARITY = 1e-5


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9], help="of the simulated cohort and the model")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    short: list[str] = []
    for experiment in arguments.experiments:
        seeds = arguments.seeds if experiment == "demo" else [7]
        figures = {str(seed): _run(experiment, seed) for seed in seeds}
        path = ROOT / "benchmarks" / "results" / f"{experiment}.json"
        path.write_text(json.dumps({"machine": _machine(), "seeds": figures}, indent=1) + "\n")
        for seed, found in figures.items():
            print(f"{experiment}, seed {seed}: {json.dumps(found)}")
            short += [f"{experiment}, seed {seed}: {fault}" for fault in _faults(experiment, found)]
    if arguments.check and short:
        sys.exit("\n".join(short))


def _run(experiment: str, seed: int) -> dict[str, Any]:
    name = f"{experiment}-{seed}"
    command = [sys.executable, "train.py", f"experiment={experiment}", f"name={name}", f"seed={seed}"]
    command += [f"cohort.simulate.seed={seed}"] if experiment == "demo" else ["split=folds"]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.monotonic() - started
    document = json.loads((ROOT / "runs" / name / "metrics.json").read_text())
    scorers = next(iter(document["tasks"].values()))
    found: dict[str, Any] = {"seconds": round(seconds), "onnx_parity": document["onnx_parity"]}
    for scorer, results in scorers.items():
        headline = results["headline"]
        pooled = results["pooled"]["overall"]["metrics"][headline]
        mean, sd = results["mean_and_sd"][headline]
        found[scorer] = {"metric": headline, "mean": mean, "sd": sd, "low": pooled["low"], "high": pooled["high"]}
    return found


def _faults(experiment: str, found: dict[str, Any]) -> list[str]:
    model = found["model"]["mean"]
    faults = []
    if found["onnx_parity"] > PARITY:
        faults.append(f"ONNX parity {found['onnx_parity']:.1e}, expected at most {PARITY:g}")
    if experiment == "demo":
        oracle = found["oracle"]["mean"]
        if model < oracle - 0.04:
            faults.append(f"model AUROC {model:.3f}, expected within .04 of the oracle's {oracle:.3f}")
        for baseline in ("ridge", "boosting"):
            if model <= found[baseline]["mean"]:
                faults.append(f"model AUROC {model:.3f}, expected above {baseline}'s {found[baseline]['mean']:.3f}")
    if experiment == "msk_chord":
        if model < 0.740:
            faults.append(f"model AUROC {model:.3f}, expected at least .740")
        for baseline, known in (("ridge", 0.753), ("boosting", 0.765)):
            if abs(found[baseline]["mean"] - known) > 0.015:
                faults.append(f"{baseline} AUROC {found[baseline]['mean']:.3f}, expected {known} within .015")
    return faults


def _machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    libraries = ("torch", "lightning", "numpy", "xgboost-cpu", "onnxruntime")
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {library: version(library) for library in libraries},
        "commit": commit.stdout.strip(),
    }


if __name__ == "__main__":
    main()
