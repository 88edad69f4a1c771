"""Does the exported model know whom it does not know? Each indication left out of training in turn.

    python benchmarks/applicability.py            five trainings, 3 to 6 minutes each; goes on where it stopped
    python benchmarks/applicability.py --check    exit code 1, and each figure that falls short by name

On the simulated cohort a model is trained on four cancers, of which some subjects are held out. Its bundle is then
asked about these, and about everybody with the fifth cancer; the requests of both have indication and diagnosis codes
masked, so that *unseen* must be told by the tumour. Told are the AUROC of the score, and how often the bundle abstains
from those it should know (false alarms) and from those it should not (caught).
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
from record import ROOT, Record, composed, train

from ican_ml.evaluation.metrics import auroc

INDICATIONS = ("BLADDER", "BREAST", "COLORECTAL", "LUNG", "MELANOMA")
DIAGNOSIS = "ICD10//C"
LEAST_AUROC, MOST_FALSE_ALARMS = 0.8, 0.05


def main() -> None:
    """Measure what is not on file, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    record = Record("applicability")
    for left_out in INDICATIONS:
        if left_out not in record.parts:
            record.add(left_out, measured(left_out))
    print(f"{'left out':12}{'AUROC':>8}{'false alarms':>14}{'unmasked':>10}{'caught':>8}")
    short = []
    for left_out, found in record.parts.items():
        print(
            f"{left_out:12}{found['auroc']:8.3f}{found['false_alarms']:14.1%}{found['false_alarms_unmasked']:10.1%}"
            f"{found['caught']:8.1%}"
        )
        if found["auroc"] < LEAST_AUROC:
            short.append(f"{left_out}: AUROC {found['auroc']:.3f}, expected at least {LEAST_AUROC}")
        for name in ("false_alarms", "false_alarms_unmasked"):
            if found[name] > MOST_FALSE_ALARMS:
                short.append(f"{left_out}: {name} {found[name]:.3f}, expected at most {MOST_FALSE_ALARMS}")
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def measured(left_out: str) -> dict[str, Any]:
    """Train without an indication, then ask the bundle about held-out subjects and about that indication."""
    from ican_ml.prepare import prepare
    from ican_ml.serving.predictor import Predictor

    name = f"applicability-{left_out}"
    others = [each for each in INDICATIONS if each != left_out]
    common = ("experiment=demo", "evaluation.baselines=false", "evaluation.permutations=0", f"name={name}")
    arguments = [*common, "split=hash", f"cohort.indications=[{','.join(others)}]"]
    train(*arguments)
    os.chdir(ROOT)
    predictor = Predictor(ROOT / "runs" / name / "bundle")
    seen = prepare(composed(*arguments))
    unseen = prepare(composed(*common, "split=hash", f"cohort.indications=[{left_out}]"))
    split = next(iter(seen.splits.values()))
    asked = {
        "seen": _judged(predictor, seen, split.held_out, masked=True),
        "seen_unmasked": _judged(predictor, seen, split.held_out, masked=False),
        "unseen": _judged(predictor, unseen, np.arange(len(unseen.episodes)), masked=True),
    }
    scores = [np.array([each.score for each in asked[group]]) for group in ("seen", "unseen")]
    told = {group: float(np.mean([each.abstain for each in judged])) for group, judged in asked.items()}
    return {
        "auroc": auroc(np.repeat([0, 1], [len(scores[0]), len(scores[1])]), np.concatenate(scores)),
        "false_alarms": told["seen"],
        "false_alarms_unmasked": told["seen_unmasked"],
        "caught": told["unseen"],
        "subjects": {group: len(judged) for group, judged in asked.items()},
    }


def _judged(predictor: Any, prepared: Any, rows: np.ndarray[Any, Any], *, masked: bool) -> list[Any]:
    """What the bundle says of one episode a subject."""
    from ican_ml.inputs.assemble import as_dictionary, assemble

    subject = prepared.episodes["subject_id"].to_numpy()[rows]
    first = rows[np.sort(np.unique(subject, return_index=True)[1])]
    states = assemble(prepared.cohort, prepared.store, prepared.episodes[first], ["indication", "line"])
    found = []
    for row in range(len(states.subject_id)):
        patient = as_dictionary(prepared.cohort, prepared.store, states, row)
        if masked:
            patient["covariates"]["indication"] = None
            patient["events"] = [event for event in patient["events"] if not event["code"].startswith(DIAGNOSIS)]
        found.append(predictor.predict(patient, [(predictor.schema.drugs[0],)]).applicability)
    return found


if __name__ == "__main__":
    main()
