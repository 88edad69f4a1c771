"""CDS Hooks 2.0: a ``patient-view`` card with the treatments that the model ranks first.

https://cds-hooks.hl7.org/2.0/. The record comes in the prefetch alone: the service calls nobody, so a request without
the prefetched Patient is answered 412, and ``fhirServer`` is not used. What is prefetched is one FHIR R4 Bundle to
:func:`ican_ml.cohort.fhir.read_bundle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from ican_ml.serving.errors import ServiceError
from ican_ml.serving.predictor import Answer, Predictor, Ranked

SERVICE = "ican-treatments"
_HOOK = "patient-view"
_TOP = 5
_SUMMARY = 139  # the specification: fewer than 140 characters
_SEARCHES = {
    "conditions": "Condition?patient={{context.patientId}}",
    "observations": "Observation?patient={{context.patientId}}",
    "medications": "MedicationRequest?patient={{context.patientId}}",
    "administrations": "MedicationAdministration?patient={{context.patientId}}",
    "procedures": "Procedure?patient={{context.patientId}}",
}


def services_document(predictor: Predictor) -> dict[str, Any]:
    """``GET /cds-services``."""
    task = predictor.schema.tasks[0].name
    return {
        "services": [
            {
                "hook": _HOOK,
                "id": SERVICE,
                "title": f"Treatments by predicted {task}",
                "description": "Ranks the treatments that the model knows for this patient. For research.",
                "prefetch": {"patient": "Patient/{{context.patientId}}", **_SEARCHES},
            }
        ]
    }


def bundle_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The prefetched resources of a ``patient-view`` request as one Bundle.

    Raises
    ------
    ServiceError
        400: not such a request; 412: no Patient in the prefetch.
    """
    if body.get("hook") != _HOOK:
        raise ServiceError(400, "invalid_request", f"hook: expected {_HOOK!r}, got {body.get('hook')!r:.80}", "hook")
    for field, kind in (("hookInstance", str), ("context", dict)):
        if not isinstance(body.get(field), kind):
            raise ServiceError(400, "invalid_request", f"{field}: expected {kind.__name__}, got none", field)
    prefetch = body.get("prefetch")
    prefetch = prefetch if isinstance(prefetch, dict) else {}
    patient = prefetch.get("patient")
    if not isinstance(patient, dict) or patient.get("resourceType") != "Patient":
        raise ServiceError(
            412, "no_prefetch", "prefetch.patient: expected the Patient resource, got none", "prefetch.patient"
        )
    resources = [patient]
    for name, found in prefetch.items():
        if name == "patient" or not isinstance(found, dict):
            continue
        if found.get("resourceType") == "Bundle":
            entries = found.get("entry")
            inside = [e.get("resource") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
            resources += [resource for resource in inside if isinstance(resource, dict)]
        elif "resourceType" in found:
            resources.append(found)
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": each} for each in resources]}


def now(timezone: str) -> str:
    """The wall time there, to the second: when a hook fires is what it asks about."""
    return datetime.now(ZoneInfo(timezone)).replace(tzinfo=None).isoformat(timespec="seconds")


def _told(task: str, ranked: Ranked) -> str:
    ends = ranked.interval.get(task)
    return f"{ranked.prediction[task]:.3g}" + (f" (95% interval {ends[0]:.3g} to {ends[1]:.3g})" if ends else "")


def cards_document(predictor: Predictor, answer: Answer) -> dict[str, Any]:
    """``POST /cds-services/{id}``: one card; where the model abstains it says so and names no treatment."""
    source = {"label": f"ican_ml, bundle {predictor.version}"}
    doubts = answer.applicability
    if doubts is not None and doubts.abstain:
        detail = "\n".join(f"- {reason}" for reason in doubts.reasons)
        summary = "No ranking: this patient is unlike those the model knows"
        return {"cards": [{"summary": summary, "indicator": "warning", "detail": detail, "source": source}]}
    first = answer.ranked[0]
    summary = f"Ranked first by predicted {answer.task}: {' + '.join(first.regimen)}"
    lines = [f"| treatment | {answer.task} |", "|---|---|"]
    lines += [f"| {' + '.join(each.regimen)} | {_told(answer.task, each)} |" for each in answer.ranked[:_TOP]]
    lines += ["", "Associations in past patients, not effects. Research software, not a medical device."]
    return {
        "cards": [{"summary": summary[:_SUMMARY], "indicator": "info", "detail": "\n".join(lines), "source": source}]
    }
