"""Audits against what a sound pipeline gives: permuted outcomes of the simulated cohort, bookkeeping of the real ones.

    python benchmarks/audit.py --check                       everything whose data is here (about 25 minutes, 2 cores)
    python benchmarks/audit.py ridge boosting --check        some scorers of permuted outcomes (about 5 minutes)
    python benchmarks/audit.py bookkeeping                   of the real cohorts too, where ICAN_COHORTS names them

10 permutations of the simulated cohort (3,000 subjects, seed 7), everything refitted, the network with all its epochs.
``--check``: their mean AUROC lies within .02 of .50 and is not above it beyond chance; bookkeeping warns of nothing on
the simulated cohort. Writes ``benchmarks/results/audit.json`` (see ``record.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import ROOT, Record

from ican_ml.audit.audit import audit_cohort
from ican_ml.audit.permutation import SCORERS, audit_permutations
from ican_ml.config import (
    CohortConfig,
    EvaluationConfig,
    Kind,
    Method,
    OutcomeConfig,
    RunConfig,
    SimulateConfig,
    SplitConfig,
    TaskConfig,
)
from ican_ml.inputs.fit import InputConfig
from ican_ml.prepare import prepare

PERMUTATIONS = 10
TOLERANCE = 0.02
BOOKKEEPING = "bookkeeping"
_SIMULATED = "simulated"
# Cohort, family of episodes, outcome, kind, covariates; the first fold is held out, of loris its own test set.
_REAL = (
    ("msk-chord", "line_benefit", "response", Kind.binary, ["indication", "line"]),
    ("msk-chord", "os_sequencing", "os", Kind.survival, ["indication"]),
    ("tcga-survival", "os_diagnosis", "os", Kind.survival, ["indication"]),
    ("loris", None, "response", Kind.binary, ["indication"]),
    ("loris", None, "os", Kind.survival, ["indication"]),
)


def main() -> None:
    """Run, print, write, check."""
    parts = (*SCORERS, BOOKKEEPING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; default: all")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.parts) - set(parts)):
        parser.error(f"expected parts among {', '.join(parts)}, got {', '.join(unknown)}")
    record = Record("audit")
    short: list[str] = []
    for part in arguments.parts or parts:
        for name, config in _jobs(part):
            if name not in record.parts:
                record.add(name, _measure(part, config))
            print(f"{name}: {json.dumps(record.parts[name])}", flush=True)
            short += [f"{name}: {fault}" for fault in _faults(name, record.parts[name])]
    if arguments.check and short:
        sys.exit("\n".join(short))


def _jobs(part: str) -> list[tuple[str, RunConfig]]:
    simulated = RunConfig(
        cohort=CohortConfig(
            path=str(ROOT / "cohorts" / "simulated-3000-7"), simulate=SimulateConfig(subjects=3000, seed=7)
        ),
        inputs=InputConfig(covariates=["indication", "line"]),
    )
    if part != BOOKKEEPING:
        return [(part, simulated)]
    jobs = [(f"{BOOKKEEPING}, {_SIMULATED}", simulated)]
    for cohort, family, outcome, kind, covariates in _REAL if os.environ.get("ICAN_COHORTS") else ():
        split = SplitConfig() if cohort == "loris" else SplitConfig(method=Method.fold, fold=0)
        config = RunConfig(
            cohort=CohortConfig(path=str(Path(os.environ["ICAN_COHORTS"]) / cohort), family=family),
            task=TaskConfig(outcomes=[OutcomeConfig(name=outcome, kind=kind)]),
            split=split,
            inputs=InputConfig(covariates=covariates),
        )
        jobs.append((f"{BOOKKEEPING}, {cohort}, {outcome}", config))
    return jobs


def _measure(part: str, config: RunConfig) -> dict[str, Any]:
    started = time.monotonic()
    if part == BOOKKEEPING:
        config = replace(config, evaluation=EvaluationConfig(permutations=0))
        document = audit_cohort(config, prepare(config), scorer="ridge").to_dict()
        found = {name: document[name] for name in ("conditions", "bookkeeping", "caps", "warnings")}
    else:
        (result,) = audit_permutations(config, prepare(config), part, PERMUTATIONS)
        found = {"values": result.values, "mean": result.mean, "sd": result.sd, "leaks": result.leaks}
    return {"seconds": round(time.monotonic() - started), **found}


def _faults(name: str, found: dict[str, Any]) -> list[str]:
    if name.startswith(BOOKKEEPING):
        return found["warnings"] if name.endswith(_SIMULATED) else []
    faults = []
    if abs(found["mean"] - 0.5) > TOLERANCE:
        faults.append(f"mean AUROC {found['mean']:.3f} of permuted outcomes, expected .50 within {TOLERANCE:g}")
    if found["leaks"]:
        faults.append("permuted outcomes are predicted better than by chance")
    return faults


if __name__ == "__main__":
    main()
