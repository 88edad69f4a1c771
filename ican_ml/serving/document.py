"""An answer as a JSON document: what ``ican predict --json`` prints and the service sends."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ican_ml.serving.predictor import Answer, Predictor


def answer_document(predictor: Predictor, answer: Answer) -> dict[str, Any]:
    """Plain JSON types; the treatments from most to least promising."""
    edges = {task.name: list(task.edges) for task in predictor.schema.tasks if task.kind == "survival"}
    return {
        "bundle": predictor.version,
        "task": answer.task,
        "ranked": [
            {
                "treatment": list(ranked.regimen),
                "prediction": ranked.prediction,
                "sets": {task: list(answers) for task, answers in ranked.sets.items()},
                "interval": {task: list(ends) for task, ends in ranked.interval.items()},
                "uncertainty": ranked.uncertainty,
                "event_free": {
                    task: {"days": edges[task], "probability": list(curve)} for task, curve in ranked.event_free.items()
                },
                "unknown_drugs": list(ranked.unknown_drugs),
            }
            for ranked in answer.ranked
        ],
        "coverage": answer.coverage,
        "applicability": asdict(answer.applicability) if answer.applicability else None,
        "drivers": [asdict(driver) for driver in answer.drivers],
        "missing": list(answer.notes.missing),
        "unknown_features": answer.notes.unknown_features,
        "unknown_covariates": list(answer.notes.unknown_covariates),
        "events_after_prediction": answer.notes.events_after_prediction,
        "record": answer.notes.record,
    }
