"""Few patients of one cancer: a start from records of the others against a start from nothing; needs ICAN_COHORTS.

    python benchmarks/few_shot.py                  100, 200 and 400 patients of each of three cancers, three draws each
    python benchmarks/few_shot.py --check          exit code 1 where pretraining gains nothing (40 minutes)

Pretraining (``experiment=pretrain``) sees no subject of the cancer in question. Then the same small network is trained
on the same few patients with and without it, and evaluated on the held-out fold's patients of that cancer. Prints the
means by cancer, and the mean gain over all draws with its 95% interval (Student's t). Writes
``benchmarks/results/few_shot.json`` and the curve ``docs/few_shot.svg``, the means over the cancers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import numpy as np
from record import ROOT, Record, train
from science import Float, difference

CANCERS, PATIENTS, SEEDS = ("NSCLC", "BRCA", "CRC"), (100, 200, 400), (7, 8, 9)
STARTS = ("pretrained", "scratch")
SCORERS = (*STARTS, "ridge", "boosting")
SMALL = ("model=base", "model.members=1", "evaluation.permutations=0", "evaluation.replicates=1")


def main() -> None:
    """Run, draw, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1, naming each size where pretraining gains nothing")
    arguments = parser.parse_args()
    if not os.environ.get("ICAN_COHORTS"):
        sys.exit("benchmarks/few_shot.py: expected ICAN_COHORTS to name the folder of the cohorts, got nothing")
    record = Record("few_shot")
    for cancer in CANCERS:
        draws = {_part(cancer, n, s): (n, s) for n in PATIENTS for s in SEEDS}
        left = {part: draw for part, draw in draws.items() if part not in record.parts}
        if left:
            train(
                "experiment=pretrain",
                "cohort=msk_chord",
                f"name={_pretrained(cancer)}",
                *("split=indication", f"split.value={cancer}", "training.epochs=5", "evaluation.baselines=false"),
            )
        for part, draw in left.items():
            record.add(part, _compare(cancer, *draw))
    values = {
        by: np.array([[[record.parts[_part(c, n, s)][by] for n in PATIENTS] for s in SEEDS] for c in CANCERS])
        for by in SCORERS
    }
    _draw({by: found.mean((0, 1)) for by, found in values.items()})
    for c, cancer in enumerate(CANCERS):
        for n, patients in enumerate(PATIENTS):
            print(f"{patients} patients of {cancer}: {_told({by: found[c, :, n] for by, found in values.items()})}")
    short = []
    for n, patients in enumerate(PATIENTS):
        drawn = {by: found[..., n].ravel() for by, found in values.items()}
        gain, low, high = difference(*(drawn[start] for start in STARTS))
        print(f"{patients} patients, all: {_told(drawn)}; pretraining gains {gain:+.4f} [{low:+.4f}, {high:+.4f}]")
        if gain <= 0:
            short.append(f"{patients} patients: pretraining gains {gain:+.4f}, expected more than 0")
    if arguments.check and short:
        sys.exit("\n".join(short))


def _part(cancer: str, patients: int, seed: int) -> str:
    return f"{cancer}, {patients} patients, seed {seed}"


def _told(drawn: dict[str, Float]) -> str:
    return ", ".join(f"{by} {values.mean():.3f}" for by, values in drawn.items())


def _pretrained(cancer: str) -> str:
    return f"few-shot-without-{cancer}"


def _compare(cancer: str, patients: int, seed: int) -> dict[str, float]:
    """AUROC of both starts, and of the baselines on the same few patients."""
    found: dict[str, float] = {}
    for start in STARTS:
        name = f"few-shot-{cancer}-{patients}-{seed}-{start}"
        train(
            "experiment=msk_chord",
            *(f"name={name}", f"seed={seed}", *SMALL),
            *(f"cohort.indications=[{cancer}]", f"split.train_subjects={patients}", "training.epochs=20"),
            f"training.init_from={_pretrained(cancer) if start == 'pretrained' else 'null'}",
        )
        by = json.loads((ROOT / "runs" / name / "metrics.json").read_text())["tasks"]["response"]
        found |= {start if scorer == "model" else scorer: _auroc(each) for scorer, each in by.items()}
    return found


def _auroc(results: dict[str, Any]) -> float:
    return float(results["pooled"]["overall"]["metrics"]["auroc"]["estimate"])


def _draw(means: dict[str, Float]) -> None:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "few-shot"  # the same drawing, the same file
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for by, found in means.items():
        axes.plot(PATIENTS, found, "o-" if by in STARTS else "o--", label=by)
    axes.set(xlabel="patients of one cancer trained on", ylabel="AUROC, mean of three cancers", xticks=PATIENTS)
    axes.legend()
    figure.savefig(ROOT / "docs" / "few_shot.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
