"""Whole runs on simulated cohorts against what they must reach.

    python benchmarks/runs.py demo                      three seeds of simulator and model (about 7 minutes, 2 cores)
    python benchmarks/runs.py demo --seeds 7 --check    one seed; exit code 1 where a figure falls short
    python benchmarks/runs.py simulated --check         10,000 subjects, every drug asked (some minutes)

Where patients are many the model should be close to the oracle, which knows what was planted, and should rank the drugs
of one patient as the oracle does: by Spearman's correlation over all drugs, the mean over held-out episodes. How many
of the planted pairs of resistance gene and drug class it found, and how many that were not planted, is told too. Writes
``benchmarks/results/<name>.json`` (see ``record.py``). The runs lie in ``runs/``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from record import ROOT, Record
from scipy import stats

PARITY, SPEARMAN = 1e-5, 0.8
BELOW_ORACLE = {"demo": 0.04, "simulated": 0.015}


def main() -> None:
    """Run, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BELOW_ORACLE)}; default: both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9], help="of demo's simulated cohort and model")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(BELOW_ORACLE)):
        parser.error(f"expected names among {', '.join(BELOW_ORACLE)}, got {', '.join(unknown)}")
    short: list[str] = []
    for name in arguments.names or BELOW_ORACLE:
        record = Record(name)
        for seed in arguments.seeds if name == "demo" else [7]:
            part = f"seed {seed}"
            if part not in record.parts:
                record.add(part, _run(name, seed))
            found = record.parts[part]
            print(f"{name}, {part}: {json.dumps(found)}")
            short += [f"{name}, {part}: {fault}" for fault in _faults(name, found)]
    if arguments.check and short:
        sys.exit("\n".join(short))


def _run(name: str, seed: int) -> dict[str, Any]:
    folder = ROOT / "runs" / f"{name}-{seed}"
    if name == "demo":
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "train.py", f"experiment={name}", f"name={folder.name}", f"seed={seed}"]
    command += [f"cohort.simulate.seed={seed}"]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.monotonic() - started
    document = json.loads((folder / "metrics.json").read_text())
    scorers = next(iter(document["tasks"].values()))
    found: dict[str, Any] = {"seconds": round(seconds), "onnx_parity": document["onnx_parity"]}
    for scorer, results in scorers.items():
        headline = results["headline"]
        pooled = results["pooled"]["overall"]["metrics"][headline]
        mean, sd = results["mean_and_sd"][headline]
        found[scorer] = {"metric": headline, "mean": mean, "sd": sd, "low": pooled["low"], "high": pooled["high"]}
    if name == "simulated":
        cohort = ROOT / "cohorts" / f"simulated-10000-{seed}"
        found["spearman"] = spearman(folder, cohort)
        found["resistance"] = resistance(document["resistance"], cohort)
    return found


def resistance(found: list[dict[str, Any]], cohort_path: Path) -> dict[str, int]:
    """How many pairs of gene and drug class were planted, how many of them were found, and how many others."""
    from ican_ml.cohort.simulate_truth import read_truth

    planted = read_truth(cohort_path).resistance
    treatments = pl.read_parquet(cohort_path / "treatments.parquet")
    class_of = dict(treatments.select("drug", "atc").iter_rows())
    pairs = {(gene, class_of[drug]) for drug, genes in planted.items() for gene in genes}
    told = {(each["feature"], each["drug_class"]) for each in found}
    return {"planted": len(pairs), "found": len(pairs & told), "others": len(told - pairs)}


def spearman(folder: Path, cohort_path: Path, episodes: int = 500) -> float:
    """Mean correlation, over held-out episodes, of the predicted and the planted response to every drug."""
    from ican_ml.cohort.cohort import read_cohort
    from ican_ml.cohort.simulate_truth import read_truth
    from ican_ml.inputs.answer import summarise
    from ican_ml.inputs.assemble import assemble
    from ican_ml.inputs.encode import encode
    from ican_ml.records.meds import read_records
    from ican_ml.release import load_fitted
    from ican_ml.training.loop import predict

    network, schema = load_fitted(folder / "private" / "split" / "fit")
    cohort, truth = read_cohort(cohort_path), read_truth(cohort_path)
    rows = np.flatnonzero(cohort.episodes["split"].to_numpy() == "held_out")[:episodes]
    asked = cohort.episodes[np.repeat(rows, len(truth.drugs))]
    asked = asked.with_columns(treatment=pl.Series([[drug] for drug in truth.drugs] * len(rows)))
    states = assemble(cohort, read_records(cohort_path), asked, [c.name for c in schema.covariates])
    outputs = predict(network, encode(schema, states.patients), np.arange(len(states.subject_id)))
    predicted = summarise(schema.tasks[0], outputs[schema.tasks[0].name])[states.patient, states.slot]
    predicted = predicted.reshape(len(rows), len(truth.drugs))
    found = [
        stats.spearmanr(ours, true).statistic for ours, true in zip(predicted, truth.probability[rows], strict=True)
    ]
    return float(np.mean(found))


def _faults(name: str, found: dict[str, Any]) -> list[str]:
    model, oracle, below = found["model"]["mean"], found["oracle"]["mean"], BELOW_ORACLE[name]
    faults = []
    if found["onnx_parity"] > PARITY:
        faults.append(f"ONNX parity {found['onnx_parity']:.1e}, expected at most {PARITY:g}")
    if model < oracle - below:
        faults.append(f"model AUROC {model:.3f}, expected within {below} of the oracle's {oracle:.3f}")
    if found.get("spearman", 1.0) < SPEARMAN:
        faults.append(f"Spearman within a patient {found['spearman']:.3f}, expected at least {SPEARMAN}")
    for baseline in ("ridge", "boosting"):
        if model <= found[baseline]["mean"]:
            faults.append(f"model AUROC {model:.3f}, expected above {baseline}'s {found[baseline]['mean']:.3f}")
    return faults


if __name__ == "__main__":
    main()
