"""Whole runs against what they must reach: the simulated cohort on three seeds, and the real cohorts' experiments.

    python benchmarks/runs.py demo                      three seeds of simulator and model (about 7 minutes, 2 cores)
    python benchmarks/runs.py demo --seeds 7 --check    one seed; exit code 1 where a figure falls short
    python benchmarks/runs.py msk_chord gdsc tcga_survival --check    needs ICAN_COHORTS (about 40 minutes)

Writes ``benchmarks/results/<name>.json`` (see ``record.py``). The runs lie in ``runs/``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from record import ROOT, Record

EXPERIMENTS = ("demo", "msk_chord", "gdsc", "tcga_survival")
PARITY = 1e-5


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help=f"of {', '.join(EXPERIMENTS)}; default: all whose data is here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9], help="of the simulated cohort and the model")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.experiments) - set(EXPERIMENTS)):
        parser.error(f"expected experiments among {', '.join(EXPERIMENTS)}, got {', '.join(unknown)}")
    available = EXPERIMENTS if os.environ.get("ICAN_COHORTS") else EXPERIMENTS[:1]
    short: list[str] = []
    for experiment in arguments.experiments or available:
        seeds = arguments.seeds if experiment == "demo" else [7]
        record = Record(experiment)
        for seed in seeds:
            part = f"seed {seed}"
            if part not in record.parts:
                record.add(part, _run(experiment, seed))
            found = record.parts[part]
            print(f"{experiment}, {part}: {json.dumps(found)}")
            short += [f"{experiment}, {part}: {fault}" for fault in _faults(experiment, found)]
    if arguments.check and short:
        sys.exit("\n".join(short))


def _run(experiment: str, seed: int) -> dict[str, Any]:
    name = f"{experiment}-{seed}"
    shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
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


if __name__ == "__main__":
    main()
