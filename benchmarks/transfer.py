"""A bundle on another cohort: the demo's, asked about an unseen indication, unseen drugs and without copy numbers.

    python benchmarks/transfer.py            about two minutes once the demo's run is there, six without (2 cores)
    python benchmarks/transfer.py --check    exit code 1 where a figure falls short

The second cohort is simulated with another seed; one indication and the drugs of one class are then renamed, and the
copy numbers removed. Checked: ``ican evaluate`` gives the metrics of the training code (torch, the same cohort) within
1e-6, names the shift, and the unseen drugs, scored by their targets, stay near the known ones.
Writes ``benchmarks/results/transfer.json`` (see ``record.py``). The run and the cohorts lie in ``runs/``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from record import ROOT, Record

from ican_ml.cohort.cohort import read_cohort
from ican_ml.cohort.simulate import simulate
from ican_ml.inputs.answer import summarise
from ican_ml.inputs.assemble import assemble
from ican_ml.inputs.encode import encode
from ican_ml.records.meds import read_records
from ican_ml.results import MODEL, Scores, evaluate_scores
from ican_ml.training.loop import predict
from ican_ml.training.outcomes import read_outcomes

FOLDER = ROOT / "runs" / "transfer"
SUBJECTS, SEED = 3000, 23
INDICATION, DRUGS, MODALITY = "MELANOMA", "EGF", "cnv"
CLOSE = 1e-6


def main() -> None:
    """Train where needed, edit, evaluate, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    record = Record("transfer")
    if "demo" not in record.parts:
        record.add("demo", _measure())
    found = record.parts["demo"]
    print(json.dumps(found, indent=1))
    if arguments.check and (short := _faults(found)):
        sys.exit("\n".join(short))


def _measure() -> dict[str, Any]:
    command = [sys.executable, "train.py", "experiment=demo", "name=transfer", "evaluation.baselines=false"]
    subprocess.run(command, cwd=ROOT, check=True)  # goes on where it stopped
    original, other = FOLDER / "private" / "original", FOLDER / "private" / "other"
    for cohort in (original, other):
        shutil.rmtree(cohort, ignore_errors=True)
    simulate(original, subjects=SUBJECTS, seed=SEED)
    _edit(original, other)
    same, found = (_evaluate(cohort) for cohort in (original, other))
    response = found["tasks"]["response"]
    drugs = {name: group["metrics"]["auroc"]["estimate"] for name, group in response["by"]["drug"].items()}
    unseen = [auroc for name, auroc in drugs.items() if name.startswith("NEW-")]
    return {
        "unchanged": same["tasks"]["response"]["overall"]["metrics"],
        "edited": response["overall"]["metrics"],
        "difference_from_training_code": _difference(other, response),
        "unseen_indication": response["by"]["indication"]["UNSEEN"]["metrics"],
        "mean_auroc_of_unseen_drugs": float(np.mean(unseen)),
        "mean_auroc_of_known_drugs": float(np.mean([a for name, a in drugs.items() if not name.startswith("NEW-")])),
        "slope": response["calibration"]["slope"],
        "shift": {
            "indications": found["shift"]["covariates"]["indication"]["unseen"],
            "drugs": found["shift"]["drugs"],
            MODALITY: found["shift"]["modalities"][MODALITY],
        },
    }


def _edit(original: Path, other: Path) -> None:
    shutil.copytree(original, other)
    (other / "omics" / f"{MODALITY}.h5ad").unlink()
    renamed = pl.element().str.replace(f"^{DRUGS}-", "NEW-")
    episodes = pl.read_parquet(other / "episodes.parquet")
    episodes.with_columns(
        pl.col("indication").replace(INDICATION, "UNSEEN"), pl.col("treatment").list.eval(renamed)
    ).write_parquet(other / "episodes.parquet")
    treatments = pl.read_parquet(other / "treatments.parquet")
    treatments.with_columns(pl.col("drug").str.replace(f"^{DRUGS}-", "NEW-")).write_parquet(
        other / "treatments.parquet"
    )


def _evaluate(cohort: Path) -> dict[str, Any]:
    out = cohort.with_name(f"{cohort.name}-evaluation")
    command = [sys.executable, "-m", "ican_ml.cli", "evaluate", str(FOLDER / "bundle"), str(cohort), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    document: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return document


def _difference(path: Path, response: dict[str, Any]) -> float:
    """Largest difference of any overall metric or bound from what training's own code finds on the cohort."""
    from ican_ml.release import load_fitted

    network, schema = load_fitted(FOLDER / "private" / "split" / "fit")
    cohort = read_cohort(path)
    schema = replace(
        schema,
        targets={**cohort.targets, **schema.targets},
        class_of={**cohort.classes, **schema.class_of},
    )
    states = assemble(cohort, read_records(path), cohort.episodes, [c.name for c in schema.covariates])
    encoded = encode(schema, states.patients)
    outputs = predict(network, encoded, np.arange(encoded.n_rows))
    values = summarise(schema.tasks[0], outputs["response"])[states.patient, states.slot]
    scores = Scores(name="other", rows=np.arange(len(values)), arrays={f"response/{MODEL}": values}, curve=())
    outcome = read_outcomes(cohort.episodes, {"response": "binary"})["response"]
    expected = evaluate_scores("response", outcome, cohort.episodes, [scores], replicates=300, seed=7)
    wanted = expected.pooled[MODEL].to_dict()["overall"]["metrics"]
    got = response["overall"]["metrics"]
    return max(abs(got[metric][part] - wanted[metric][part]) for metric in wanted for part in wanted[metric])


def _faults(found: dict[str, Any]) -> list[str]:
    faults = []
    if not found["difference_from_training_code"] <= CLOSE:
        faults.append(f"metrics differ by {found['difference_from_training_code']:.1e}, expected at most {CLOSE:g}")
    if found["unchanged"]["auroc"]["estimate"] < 0.78:
        faults.append(f"AUROC {found['unchanged']['auroc']['estimate']:.3f} on another seed, expected at least .78")
    if found["mean_auroc_of_unseen_drugs"] < 0.65:
        faults.append(f"AUROC {found['mean_auroc_of_unseen_drugs']:.3f} of unseen drugs, expected at least .65")
    shift = found["shift"]
    if [one["name"] for one in shift["indications"]["common"]] != ["UNSEEN"] or shift["drugs"]["names"] != 3:
        faults.append(f"expected one unseen indication and three unseen drugs to be named, got {shift}")
    if shift[MODALITY]["used"]:
        faults.append(f"expected {MODALITY} to be reported as not used, got {shift[MODALITY]}")
    return faults


if __name__ == "__main__":
    main()
