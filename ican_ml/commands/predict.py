"""``ican predict``: rank treatments for one patient, or predict every episode of a cohort.

One patient needs NumPy and onnxruntime, a cohort the extra ``cohort``; neither needs torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.commands import Commands
    from ican_ml.serving.predictor import Answer

_SET = 16


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "predict",
        help="rank treatments for one patient, or predict every episode of a cohort",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  ican predict runs/demo/bundle patient.json --treatment EGF-101 --treatment RAF-101+MEK-101\n"
        "  ican predict runs/demo/bundle cohorts/other --out predictions.parquet",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument(
        "patient",
        type=Path,
        metavar="PATIENT.json|COHORT",
        help="patient, as ican_ml.inputs.patient says or as a FHIR R4 Bundle, or folder of a cohort",
    )
    parser.add_argument(
        "--treatment",
        action="append",
        default=[],
        metavar="REGIMEN",
        help="drugs joined by +, inhibitor:GENE for a virtual inhibitor; repeatable; none if the model has none",
    )
    parser.add_argument("--at", metavar="TIME", help="of a FHIR Bundle: prediction time like 2024-05-02T08:15:00")
    parser.add_argument("--timezone", metavar="ZONE", help="of a FHIR Bundle: whose wall time, like Europe/Helsinki")
    parser.add_argument(
        "--assay", metavar="NAME", help="of a FHIR Bundle: the assay of its variants, if several are known"
    )
    parser.add_argument("--explain", action="store_true", help="of a patient: also tell what drove the first answer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.parquet",
        help="of a cohort: where its predictions go. The file holds subject ids: keep it where the cohort may lie",
    )
    parser.add_argument("--task", metavar="FAMILY", help="of a cohort: the episodes whose task column says so")
    parser.set_defaults(run=_run, extra="serve")


def _run(parsed: argparse.Namespace) -> None:
    if parsed.patient.is_dir():
        _predict_cohort(parsed)
    else:
        _predict_patient(parsed)


def _predict_cohort(parsed: argparse.Namespace) -> None:
    if parsed.treatment or parsed.json or parsed.explain or _of_bundle(parsed):
        raise ValueError(
            "--treatment, --at, --timezone, --assay, --json, --explain: expected with a PATIENT.json only; a "
            "cohort's episodes say what they ask"
        )
    if parsed.out is None or parsed.out.suffix != ".parquet":
        got = "nothing" if parsed.out is None else repr(parsed.out.name)
        raise ValueError(f"--out: expected a file for the predictions that ends in .parquet, got {got}")
    if not parsed.out.parent.is_dir():
        raise ValueError(f"--out: expected a folder that exists, got {parsed.out.parent.name!r}; make it first")
    parsed.extra = "cohort"
    from ican_ml.serving.cohort import predict_cohort, write_predictions

    found = predict_cohort(parsed.bundle, parsed.patient, family=parsed.task)
    write_predictions(found, parsed.out)
    print(f"{found.shift['episodes']:,} episodes of {found.shift['subjects']:,} subjects predicted")
    print("the file holds subject ids; `ican evaluate` sums up what its note_ columns say of each episode")


def _predict_patient(parsed: argparse.Namespace) -> None:
    if parsed.out or parsed.task:
        raise ValueError("--out, --task: expected with the folder of a cohort only; it is no folder")
    if not parsed.patient.exists():
        raise ValueError(f"{parsed.patient.name}: expected a patient's file or a cohort's folder, found none")
    from ican_ml.serving.predictor import Predictor

    try:
        patient = json.loads(parsed.patient.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{parsed.patient.name}: expected JSON, got something else ({error})") from None
    if not isinstance(patient, dict):
        raise ValueError(f"{parsed.patient.name}: expected a JSON object, got {type(patient).__name__}")
    predictor = Predictor(parsed.bundle)
    if patient.get("resourceType") == "Bundle":
        patient = predictor.patient_of(patient, timezone=parsed.timezone, prediction_time=parsed.at, assay=parsed.assay)
    elif _of_bundle(parsed):
        raise ValueError("--at, --timezone, --assay: expected with a FHIR Bundle only; a dictionary says these itself")
    regimens = [tuple(drug for drug in regimen.split("+") if drug) for regimen in parsed.treatment or [""]]
    answer = predictor.predict(patient, regimens, explain=parsed.explain)
    if parsed.json:
        from ican_ml.serving.document import answer_document

        print(json.dumps(answer_document(predictor, answer)))
    else:
        print(_as_table(answer))


def _of_bundle(parsed: argparse.Namespace) -> bool:
    return bool(parsed.at or parsed.timezone or parsed.assay)


def _as_table(answer: Answer) -> str:
    tasks = list(answer.ranked[0].prediction)
    names = ["+".join(ranked.regimen) or "(none)" for ranked in answer.ranked]
    width = max(len("treatment"), *(len(name) for name in names))
    sets = [f"{task} at {coverage:.0%}".ljust(_SET) for task, coverage in answer.coverage.items()]
    intervals = {task: f"{task}, 95%".ljust(_SET) for task in answer.ranked[0].interval}
    head = [*(f"{task:>12}" for task in tasks), *intervals.values(), *sets]
    lines = [("rank  " + "treatment".ljust(width) + "".join(f"  {name}" for name in head)).rstrip()]
    for i, (name, ranked) in enumerate(zip(names, answer.ranked, strict=True), start=1):
        values = "".join(f"  {ranked.prediction[task]:12.3f}" for task in tasks)
        for task, title in intervals.items():
            low, high = ranked.interval[task]
            values += f"  {f'{low:.3f} to {high:.3f}'.ljust(len(title))}"
        values += "".join(f"  {_set_text(ranked.sets[task]).ljust(_SET)}" for task in answer.coverage)
        unknown = f"  not seen in training: {', '.join(ranked.unknown_drugs)}" if ranked.unknown_drugs else ""
        lines.append(f"{i:>4}  {name.ljust(width)}{values}{unknown}".rstrip())
    if answer.applicability is not None and answer.applicability.abstain:
        lines = [*(f"NOT TO BE RELIED ON: {reason}" for reason in answer.applicability.reasons), "", *lines]
    if answer.drivers:
        lines += ["", f"what drove the first answer, and by how much it moved {answer.task}:"]
        lines += [
            f"  {d.effect:+.4f}  {d.kind}: {d.name}{f' ({d.modality})' if d.kind == 'gene' else ''}"
            for d in answer.drivers
        ]
        lines.append("")
    notes = answer.notes
    if sum(notes.unknown_features.values()):
        lines.append(f"features that the model does not know, not used: {notes.unknown_features}")
    if notes.unknown_covariates:
        lines.append(f"covariates with a category not seen in training: {', '.join(notes.unknown_covariates)}")
    if notes.events_after_prediction:
        lines.append(f"events after prediction_time, not used: {notes.events_after_prediction}")
    if notes.record.get("events"):
        shares = (f"{notes.record[part]:.0%} {part.replace('_', ' ')}" for part in ("known", "backed_off", "unknown"))
        lines.append(f"codes of the record: {', '.join(shares)}")
    return "\n".join(lines)


def _set_text(answers: tuple[str, ...]) -> str:
    return answers[0] if len(answers) == 1 else "undecided"
