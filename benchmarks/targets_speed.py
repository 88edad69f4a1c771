"""How long the network's lines of evidence take, and is attribution complete? 400 simulated patients.

    python benchmarks/targets_speed.py            ten minutes on two cores, most of them for the fit
    python benchmarks/targets_speed.py --check    exit code 1, and each figure that falls short by name

Virtual inhibition of 706 genes, alteration of the 50 that are mutated most often, integrated gradients of everything;
on as many threads as torch takes, under a network trained for eight epochs on 10,000 subjects without a fifth of the
drugs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from record import Record
from targets import EPOCHS, SEEDS, SUBJECTS, run_on, simulated_cohort

from ican_ml.discovery import cross_fitted_inhibition
from ican_ml.fold import encode_fold
from ican_ml.release import load_fitted
from ican_ml.targets.alteration import alter
from ican_ml.targets.asking import as_batch, omics_of, own_regimen
from ican_ml.targets.attribution import COMPLETE, attribute
from ican_ml.targets.inhibition import virtual_inhibition

ASKED, INHIBITED, ALTERED = 400, 706, 50
MOST = {"virtual inhibition, seconds": 120, "alteration, seconds": 180, "attribution, largest error": COMPLETE}


def main() -> None:
    """Measure what is not on file, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    record = Record("targets_speed")
    if "speed" not in record.parts:
        record.add("speed", speed())
    print(json.dumps(record.parts, indent=1))
    found = record.parts["speed"]
    short = [
        f"{name}: {found[name]:.3g}, expected at most {most:g}" for name, most in MOST.items() if found[name] > most
    ]
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def speed() -> dict[str, Any]:
    """Seconds for 400 patients of the first simulated cohort under its network; how complete attribution is."""
    path = simulated_cohort(SUBJECTS, SEEDS[0]).path
    config, prepared, observed, folder = run_on(
        str(path), "experiment=demo", EPOCHS, f"name=targets-simulated-{SEEDS[0]}"
    )
    cross_fitted_inhibition(config, prepared, observed, folder, (0,))
    network, schema = load_fitted(next(folder.private.glob("targets/*/fit")))
    fold = encode_fold(config, prepared, schema)
    rows = next(iter(prepared.splits.values())).held_out[:ASKED]
    patient, slot = fold.states.patient[rows], fold.states.slot[rows]
    arrays = own_regimen(fold.encoded, patient, slot)
    pieces = np.array_split(np.arange(ASKED), 13)
    batches = [as_batch(own_regimen(fold.encoded, patient[piece], slot[piece])) for piece in pieces]
    omics = omics_of(fold.encoded, patient)
    regimens = [fold.states.patients.regimens[p][s] for p, s in zip(patient.tolist(), slot.tolist(), strict=True)]
    count = np.bincount(omics["mutation"].matrix.indices, minlength=len(schema.modalities[0].genes))
    carried = {m.name: m.genes for m in schema.modalities}["mutation"]
    genes = [carried[g] for g in np.argsort(-count, kind="stable")[:ALTERED]]
    started = time.perf_counter()
    virtual_inhibition(network, schema, fold.encoded, patient, schema.genes[:INHIBITED])
    inhibited = time.perf_counter()
    alter(network, schema, arrays, omics, regimens, genes)
    altered = time.perf_counter()
    found = attribute(network, schema, batches)
    return {
        "threads": torch.get_num_threads(),
        "virtual inhibition, seconds": inhibited - started,
        "alteration, seconds": altered - inhibited,
        "attribution, seconds": time.perf_counter() - altered,
        "attribution, largest error": float(found.error.max()),
    }


if __name__ == "__main__":
    main()
