"""Does the bundle say of every patient of a real cohort what the training code says?

    python benchmarks/parity.py            one short training and every patient, half an hour on two cores
    python benchmarks/parity.py --check    exit code 1, and what falls short

A model of genomics and records is trained for one epoch (how good it is does not matter here) and predicts every
episode twice. Training code: the cohort's matrices and record store, Numba, torch. Bundle: each patient as the plain
dictionary that the service takes, NumPy, onnxruntime. Told is the largest difference, of days as a share of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
from record import ROOT, Record, composed, train

MOST = 1e-5
AT_ONCE = 32
ARGUMENTS = (
    "experiment=msk_chord",
    "name=parity",
    "training.epochs=1",
    "model.trees=40",
    "evaluation.baselines=false",
    "evaluation.permutations=0",
)


def main() -> None:
    """Measure what is not on file, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    record = Record("parity")
    if "msk_chord" not in record.parts:
        record.add("msk_chord", measured())
    found = record.parts["msk_chord"]
    print(f"{found['subjects']:,} subjects, {found['episodes']:,} episodes")
    print("\n".join(f"{task:12}{difference:.1e}" for task, difference in found["difference"].items()))
    short = [
        f"{task}: {worst:.1e}, expected at most {MOST}" for task, worst in found["difference"].items() if worst > MOST
    ]
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def measured() -> dict[str, Any]:
    """Largest difference by task, over all episodes."""
    from tqdm import tqdm

    from ican_ml.bundle.read import deviation
    from ican_ml.fold import encode_fold
    from ican_ml.inputs.answer import summarise
    from ican_ml.inputs.assemble import as_dictionary, assemble
    from ican_ml.prepare import prepare
    from ican_ml.release import load_fitted
    from ican_ml.serving.predictor import Predictor
    from ican_ml.training.loop import predict

    train(*ARGUMENTS)
    os.chdir(ROOT)
    config = composed(*ARGUMENTS)
    prepared = prepare(config)
    (fit,) = (ROOT / "runs" / "parity" / "private").glob("*/fit")
    network, schema = load_fitted(fit)
    encoded = encode_fold(config, prepared, schema).encoded
    trained = predict(network, encoded, np.arange(encoded.n_rows))
    predictor = Predictor(ROOT / "runs" / "parity" / "bundle")
    states = assemble(prepared.cohort, prepared.store, prepared.episodes, config.inputs.covariates)
    served: dict[str, list[list[float]]] = {task.name: [] for task in schema.tasks}
    n_patients = len(states.subject_id)
    for start in tqdm(range(0, n_patients, AT_ONCE), desc="patients", disable=not sys.stderr.isatty()):
        asked = [
            (as_dictionary(prepared.cohort, prepared.store, states, row), states.patients.regimens[row])
            for row in range(start, min(start + AT_ONCE, n_patients))
        ]
        for (_, regimens), answer in zip(asked, predictor.predict_batch(asked), strict=True):
            of = {ranked.regimen: ranked.prediction for ranked in answer.ranked}
            for task, values in served.items():
                values.append([of[tuple(sorted(set(regimen)))][task] for regimen in regimens])
    difference = {}
    for task in schema.tasks:
        each = zip(states.patient.tolist(), states.slot.tolist(), strict=True)
        own = np.array([served[task.name][patient][slot] for patient, slot in each])
        difference[task.name] = deviation(own, summarise(task, trained[task.name])[states.patient, states.slot])
    return {
        "subjects": len(np.unique(states.subject_id)),
        "episodes": len(prepared.episodes),
        "patients": n_patients,
        "difference": difference,
    }


if __name__ == "__main__":
    main()
