"""The ``ican`` command: simulate a cohort, predict from a bundle, verify one. (Training is ``python train.py``.)

``ican predict`` and ``ican verify`` need numpy and onnxruntime alone: each command imports what it uses when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ican_ml

if TYPE_CHECKING:
    from ican_ml.serving.predictor import Answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; a mistake in the input ends in one message and exit code 1."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (ValueError, OSError) as error:
        sys.exit(f"ican {parsed.command}: {error}")
    except ImportError as error:
        sys.exit(f"ican {parsed.command}: {error.name} is not installed; pip install 'ican_ml[{parsed.extra}]'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ican", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=f"ican_ml {ican_ml.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    simulate = commands.add_parser("simulate", help="write a simulated cohort, its truth planted")
    simulate.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    simulate.add_argument("--subjects", type=int, default=3000, help="how many (default 3000)")
    simulate.add_argument("--seed", type=int, default=7, help="same seed, same cohort (default 7)")
    simulate.set_defaults(run=_simulate, extra="train")

    predict = commands.add_parser(
        "predict",
        help="rank treatments for one patient",
        epilog="example: ican predict runs/demo/bundle patient.json --treatment EGF-101 --treatment RAF-101+MEK-101",
    )
    predict.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    predict.add_argument("patient", type=Path, metavar="PATIENT.json", help="patient, as ican_ml.inputs.patient says")
    predict.add_argument(
        "--treatment",
        action="append",
        default=[],
        metavar="REGIMEN",
        help="drugs joined by +, inhibitor:GENE for a virtual inhibitor; repeatable; none if the model has none",
    )
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.set_defaults(run=_predict, extra="serve")

    verify = commands.add_parser("verify", help="check every byte of a bundle and its golden cases")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.set_defaults(run=_verify, extra="serve")
    return parser


def _simulate(parsed: argparse.Namespace) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ican_ml.cohort.simulate import simulate

    with tqdm(total=5, disable=None, unit="step") as bar:

        def tell(what: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(what)
            bar.update(done - bar.n)

        summary = simulate(parsed.out, subjects=parsed.subjects, seed=parsed.seed, progress=tell)
    for name, value in summary.table().items():
        print(f"{name.replace('_', ' '):28} {value:>12}")


def _predict(parsed: argparse.Namespace) -> None:
    from ican_ml.serving.predictor import Predictor

    try:
        patient = json.loads(parsed.patient.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{parsed.patient.name}: expected JSON, got something else ({error})") from None
    if not isinstance(patient, dict):
        raise ValueError(f"{parsed.patient.name}: expected a JSON object, got {type(patient).__name__}")
    regimens = [tuple(drug for drug in regimen.split("+") if drug) for regimen in parsed.treatment or [""]]
    answer = Predictor(parsed.bundle).predict(patient, regimens)
    print(_as_json(answer) if parsed.json else _as_table(answer))


def _verify(parsed: argparse.Namespace) -> None:
    from ican_ml.serving.predictor import Predictor

    Predictor(parsed.bundle)
    print("every file is as exported, and the golden cases come out as they should")


def _as_table(answer: Answer) -> str:
    tasks = list(answer.ranked[0].prediction)
    names = ["+".join(ranked.regimen) or "(none)" for ranked in answer.ranked]
    width = max(len("treatment"), *(len(name) for name in names))
    lines = ["rank  " + "treatment".ljust(width) + "".join(f"  {task:>12}" for task in tasks)]
    for i, (name, ranked) in enumerate(zip(names, answer.ranked, strict=True), start=1):
        values = "".join(f"  {ranked.prediction[task]:12.3f}" for task in tasks)
        unknown = f"  not seen in training: {', '.join(ranked.unknown_drugs)}" if ranked.unknown_drugs else ""
        lines.append(f"{i:>4}  {name.ljust(width)}{values}{unknown}")
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


def _as_json(answer: Answer) -> str:
    return json.dumps(
        {
            "task": answer.task,
            "ranked": [
                {"treatment": list(r.regimen), "prediction": r.prediction, "unknown_drugs": list(r.unknown_drugs)}
                for r in answer.ranked
            ],
            "unknown_features": answer.notes.unknown_features,
            "unknown_covariates": list(answer.notes.unknown_covariates),
            "events_after_prediction": answer.notes.events_after_prediction,
            "record": answer.notes.record,
        }
    )


if __name__ == "__main__":
    main()
