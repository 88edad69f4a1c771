"""Few patients of one cancer: a start from records of the others against a start from nothing; needs ICAN_COHORTS.

    python benchmarks/few_shot.py                  100, 200 and 400 patients, three draws each (about an hour, 2 cores)
    python benchmarks/few_shot.py --check          exit code 1 where pretraining loses

Pretraining (``experiment=pretrain``) sees no subject of the cancer in question. Then the same small network is trained
on the same few patients with and without it, and evaluated on the held-out fold's patients of that cancer. Writes
``benchmarks/results/few_shot.json`` and the curve ``docs/few_shot.svg``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import numpy as np
from record import ROOT, Record, train

CANCER = "CRC"
PATIENTS, SEEDS = (100, 200, 400), (7, 8, 9)
PRETRAINED = "few-shot-pretrained"
STARTS = {"pretrained": PRETRAINED, "scratch": "null"}
SMALL = ("model=base", "model.members=1", "evaluation.permutations=0", "evaluation.replicates=1")


def main() -> None:
    """Run, draw, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each size where pretraining loses")
    arguments = parser.parse_args()
    if not os.environ.get("ICAN_COHORTS"):
        sys.exit("benchmarks/few_shot.py: expected ICAN_COHORTS to name the folder of the cohorts, got nothing")
    record = Record("few_shot")
    left = {f"{n} patients, seed {s}": (n, s) for n in PATIENTS for s in SEEDS}
    left = {part: of for part, of in left.items() if part not in record.parts}
    if left:
        train(
            "experiment=pretrain",
            "cohort=msk_chord",
            f"name={PRETRAINED}",
            *("split=indication", f"split.value={CANCER}", "training.epochs=5", "evaluation.baselines=false"),
        )
    for part, (patients, seed) in left.items():
        record.add(part, _compare(patients, seed))
    means = {
        by: [float(np.mean([record.parts[f"{n} patients, seed {s}"][by] for s in SEEDS])) for n in PATIENTS]
        for by in (*STARTS, "ridge", "boosting")
    }
    _draw(means)
    for i, patients in enumerate(PATIENTS):
        print(f"{patients} patients of {CANCER}: " + ", ".join(f"{by} {found[i]:.3f}" for by, found in means.items()))
    short = [
        f"{n} patients: pretrained {ours:.3f}, expected above scratch's {scratch:.3f}"
        for n, ours, scratch in zip(PATIENTS, means["pretrained"], means["scratch"], strict=True)
        if ours <= scratch
    ]
    if arguments.check and short:
        sys.exit("\n".join(short))


def _compare(patients: int, seed: int) -> dict[str, float]:
    """AUROC of both starts, and of the baselines on the same few patients."""
    found: dict[str, float] = {}
    for start, source in STARTS.items():
        name = f"few-shot-{patients}-{seed}-{start}"
        train(
            "experiment=msk_chord",
            *(f"name={name}", f"seed={seed}", *SMALL),
            *(f"cohort.indications=[{CANCER}]", f"split.train_subjects={patients}", "training.epochs=20"),
            f"training.init_from={source}",
        )
        by = json.loads((ROOT / "runs" / name / "metrics.json").read_text())["tasks"]["response"]
        found |= {start if scorer == "model" else scorer: _auroc(each) for scorer, each in by.items()}
    return found


def _auroc(results: dict[str, Any]) -> float:
    return float(results["pooled"]["overall"]["metrics"]["auroc"]["estimate"])


def _draw(means: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for by, found in means.items():
        axes.plot(PATIENTS, found, "o-" if by in STARTS else "o--", label=by)
    axes.set(xlabel=f"patients with {CANCER} trained on", ylabel="AUROC, held-out patients", xticks=PATIENTS)
    axes.legend()
    figure.savefig(ROOT / "docs" / "few_shot.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
