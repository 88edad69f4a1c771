"""One FHIR R4 resource -> the events and gene variants that it states, or the reason why it states none.

In: a resource as a dictionary, whatever it holds. Out: :class:`Found`. mCODE (https://hl7.org/fhir/us/mcode) needs no
case of its own but the genes: stage groups, disease status and tumour markers are Observations.

When a resource was known: an Observation at its effective time (the end of a period); a Condition or an allergy when it
was recorded, else at its onset, since a diagnosis entered later was not known at the onset; a DiagnosticReport when it
was issued; a request when it was authored; a procedure or a dose when it began; a stage within a Condition, which may
have been added later, when that was last updated. What has no time is left: an event without one would count as known
always. ``partOf``, ``basedOn`` and other links are not followed.

Codes of events: ``SYSTEM//code``; a coded result goes behind it (``LOINC//21908-9//AJCC//3B``), and so does a finding
of a closed list that comes as text (``//POSITIVE``). Other text is never kept. An Encounter is ``ENCOUNTER//<class>``
and the codes of its type at its start, and ``ENCOUNTER_END//<class>`` where it ends on another day. An allergy is
``ALLERGY//SYSTEM//code``, so that it is not taken for a prescription.

A variant (LOINC 69548-6) gives its genes (48018-6): mutated, or not mutated where it is absent. A copy number or a
germline variant is an event ``COPY_NUMBER//<gene>`` or ``GERMLINE//<gene>`` instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from ican_ml.cohort.accounting import Reason
from ican_ml.cohort.fhir_values import (
    bare_codes,
    code_of,
    coding_code,
    finding_in,
    has_code,
    mapping,
    mappings,
    number_in,
    number_of,
    quantity_of,
    text,
    time_of,
)

_VARIANT = frozenset({"LOINC//69548-6"})
_GENE = frozenset({"LOINC//48018-6"})
_SOURCE_CLASS, _COPIES = frozenset({"LOINC//48002-0"}), frozenset({"LOINC//82155-3"})
_CHANGE_TYPE = frozenset({"LOINC//48019-4"})
_ABSENT, _UNCALLED, _GERMLINE = "LA9634-2", {"LA18198-4", "LA11884-6"}, "LA6683-2"
_COPY_CHANGES = {"SO:0001019", "SO:0001742", "SO:0001743", "LA14033-7", "LA14034-5"}
_SYMBOL = re.compile(r"[A-Z][A-Z0-9]{0,14}(orf[0-9]{1,4})?(-[A-Z0-9]{1,8})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event; ``time`` None = static, ``value`` None = no number; ``limit`` is "<5" where the value is a limit."""

    code: str
    time: datetime | None
    value: float | None = None
    unit: str = ""
    limit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A gene that was found mutated, or not, in a sample taken at ``time``."""

    gene: str
    time: datetime
    mutated: bool


@dataclass(kw_only=True, slots=True)
class Found:
    """What a resource states; ``reason`` says why nothing.

    Attributes
    ----------
    displays
        Code to the name that its code system gives it.
    values_left
        Results that are neither numbers nor codes, so that only their event was kept.
    """

    events: list[Event] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    displays: dict[str, str] = field(default_factory=dict)
    values_left: int = 0
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where the codes and times of a type lie, first one found; ``unmade`` statuses say that it did not happen."""

    codes: tuple[str, ...]
    times: tuple[str, ...]
    unmade: frozenset[str] = frozenset()
    prefix: str = ""


_NEVER = frozenset({"entered-in-error", "cancelled", "not-done", "refuted"})
_RECORDED = ("recordedDate", "onsetDateTime", "onsetPeriod.start")
_EFFECTIVE = ("effectiveDateTime", "effectiveInstant", "effectivePeriod.start")
_PERFORMED = ("performedDateTime", "performedPeriod.start")
_MEDICATION = ("medicationCodeableConcept", "medicationReference")
_RULES = {
    "Condition": _Rule(("code",), _RECORDED),
    "AllergyIntolerance": _Rule(("code",), _RECORDED, prefix="ALLERGY//"),
    "Procedure": _Rule(("code",), _PERFORMED, frozenset({"preparation", "on-hold"})),
    "Immunization": _Rule(("vaccineCode",), ("occurrenceDateTime",)),
    "MedicationRequest": _Rule(_MEDICATION, ("authoredOn",), frozenset({"draft"})),
    "MedicationStatement": _Rule(_MEDICATION, (*_EFFECTIVE, "dateAsserted"), frozenset({"not-taken", "intended"})),
    "MedicationAdministration": _Rule(_MEDICATION, _EFFECTIVE),
    "MedicationDispense": _Rule(
        _MEDICATION, ("whenHandedOver", "whenPrepared"), frozenset({"preparation", "declined", "on-hold"})
    ),
    "DiagnosticReport": _Rule(
        ("conclusionCode", "code"),
        ("issued", "effectiveDateTime", "effectivePeriod.end", "effectivePeriod.start"),
        frozenset({"registered"}),
    ),
    "ImagingStudy": _Rule(("procedureCode", "modality", "series.modality"), ("started",), frozenset({"registered"})),
}
_OBSERVED = ("effectiveDateTime", "effectiveInstant", "effectivePeriod.end", "effectivePeriod.start", "issued")
_UNMADE_ENCOUNTER, _UNMADE_OBSERVATION = frozenset({"planned"}), frozenset({"registered"})
_ONLY_PROPOSED = {"proposal", "plan", "option"}
CLINICAL = frozenset({*_RULES, "Observation", "Encounter"})

Medications = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def read_clinical(kind: str, resource: dict[str, Any], zone: ZoneInfo | None, medication: Medications) -> Found:
    """What a resource states.

    Parameters
    ----------
    kind
        Its type, one of :data:`CLINICAL`.
    zone
        Whose wall time to keep.
    medication
        From a reference and the resource that holds it to the code of the Medication; {} where it is not found.

    Raises
    ------
    FhirError
        If a time carries a zone and ``zone`` is ``None``.
    """
    if kind == "Observation":
        return _observation(resource, zone)
    if kind == "Encounter":
        return _encounter(resource, zone)
    rule = _RULES[kind]
    if reason := _unmade(resource, rule.unmade):
        return Found(reason=reason)
    time = _first_time(resource, rule.times, zone)
    found = Found()
    for name in rule.codes:
        for concept in _at(resource, name):
            concept = medication(concept, resource) if name == "medicationReference" else concept
            # A Coding stands for a CodeableConcept of one.
            _add_code(found, concept if "coding" in concept else {"coding": [concept]}, time, rule.prefix)
        if found.events:
            break
    for stage in mappings(resource.get("stage")) if kind == "Condition" and found.events else ():
        staged = _first_time(resource, ("meta.lastUpdated",), zone)
        if staged and not stage.get("assessment"):
            _add_code(found, stage.get("summary"), staged, "STAGE//")
    return _settled(found, time)


def _observation(resource: dict[str, Any], zone: ZoneInfo | None) -> Found:
    if reason := _unmade(resource, _UNMADE_OBSERVATION):
        return Found(reason=reason)
    time = _first_time(resource, _OBSERVED, zone)
    if has_code(resource.get("code"), _VARIANT):
        return _variant(resource, time) if time else Found(reason=Reason.NO_TIME)
    components = [part for part in mappings(resource.get("component")) if code_of(part.get("code"))]
    found = Found()
    absent = 0
    for part in [resource, *components]:
        if part.get("dataAbsentReason") and not _value_of(part):
            absent += 1
        elif part is not resource or _value_of(part) or not components:
            _add_result(found, part, time)
    if absent and not found.events and time:
        return Found(reason=Reason.NO_VALUE)
    return _settled(found, time)


def _add_result(found: Found, part: dict[str, Any], time: datetime | None) -> None:
    named = code_of(part.get("code"))
    if named is None:
        return
    code, display = named
    name = _value_of(part)
    value = part.get(name)
    number: tuple[float, str, str] | None = None
    finding: str | None = None
    if name == "valueQuantity":
        number = quantity_of(value)
    elif name == "valueInteger":
        whole = number_of(value)
        number = (whole, "", "") if whole is not None else None
    elif name == "valueBoolean":
        finding = {"True": "TRUE", "False": "FALSE"}.get(str(value))
    elif name == "valueString":
        number, finding = number_in(value), finding_in(value)
    elif name == "valueCodeableConcept":
        coded = code_of(value)
        if coded:
            finding = coded[0]
            if coded[1]:
                display = f"{display}: {coded[1]}"
        else:
            words = mapping(value).get("text")
            number, finding = number_in(words), finding_in(words)
    if name and number is None and finding is None:
        found.values_left += 1
    if finding is not None:
        code = f"{code}//{finding}"
    amount, unit, limit = number or (None, "", "")
    found.events.append(Event(code=code, time=time, value=amount, unit=unit, limit=limit))
    if display:
        found.displays[code] = display


def _variant(resource: dict[str, Any], time: datetime) -> Found:
    parts = mappings(resource.get("component"))
    genes = [gene for part in parts if has_code(part.get("code"), _GENE) if (gene := _gene_of(part))]
    if not genes:
        return Found(reason=Reason.NO_CODE)
    present = bare_codes(resource.get("valueCodeableConcept"))
    if present & _UNCALLED or (resource.get("dataAbsentReason") and not present):
        return Found(reason=Reason.NO_VALUE)
    mutated = _ABSENT not in present
    copies = [part for part in parts if has_code(part.get("code"), _COPIES)]
    changes = _codes_of(parts, _CHANGE_TYPE)
    if copies or changes & _COPY_CHANGES:
        amount = next((found for part in copies if (found := quantity_of(part.get("valueQuantity")))), None)
        value = amount[0] if amount else None
        return _as_events("COPY_NUMBER", genes, time, value) if mutated else Found(reason=Reason.NO_VALUE)
    if _GERMLINE in _codes_of(parts, _SOURCE_CLASS):
        return _as_events("GERMLINE", genes, time, None) if mutated else Found(reason=Reason.NO_VALUE)
    return Found(variants=[Variant(gene=gene, time=time, mutated=mutated) for gene in dict.fromkeys(genes)])


def _as_events(name: str, genes: list[str], time: datetime, value: float | None) -> Found:
    return Found(events=[Event(code=f"{name}//{gene}", time=time, value=value) for gene in dict.fromkeys(genes)])


def _codes_of(parts: list[dict[str, Any]], wanted: frozenset[str]) -> set[str]:
    chosen = [part.get("valueCodeableConcept") for part in parts if has_code(part.get("code"), wanted)]
    return set().union(*map(bare_codes, chosen))


def _gene_of(part: dict[str, Any]) -> str | None:
    """Symbol of the gene studied: a display, a code or a text that looks like one."""
    concept = mapping(part.get("valueCodeableConcept"))
    codings = mappings(concept.get("coding"))
    texts = [c.get("display") for c in codings] + [concept.get("text"), part.get("valueString")]
    texts += [c.get("code") for c in codings]
    return next((text(t) for t in texts if _SYMBOL.fullmatch(text(t))), None)


def _encounter(resource: dict[str, Any], zone: ZoneInfo | None) -> Found:
    if reason := _unmade(resource, _UNMADE_ENCOUNTER):
        return Found(reason=reason)
    period = mapping(resource.get("period"))
    start, end = time_of(period.get("start"), zone), time_of(period.get("end"), zone)
    found = Found()
    code = coding_code(resource.get("class"))
    name = code.rpartition("//")[2] if code else ""
    if name:
        found.events.append(Event(code=f"ENCOUNTER//{name}", time=start))
    for concept in mappings(resource.get("type")):
        _add_code(found, concept, start, "")
    if name and start and end and end.date() > start.date():
        found.events.append(Event(code=f"ENCOUNTER_END//{name}", time=end))
    return _settled(found, start)


def _settled(found: Found, time: datetime | None) -> Found:
    if not found.events:
        return Found(reason=Reason.NO_CODE)
    return found if time else Found(reason=Reason.NO_TIME)


def _add_code(found: Found, concept: object, time: datetime | None, prefix: str) -> None:
    named = code_of(concept)
    if named is None:
        return
    code = prefix + named[0]
    if all(event.code != code for event in found.events):
        found.events.append(Event(code=code, time=time))
    if named[1]:
        found.displays[code] = named[1]


def _unmade(resource: dict[str, Any], more: frozenset[str]) -> Reason | None:
    """Why a resource says that something did not happen, or says something that nobody can read."""
    statuses = {text(resource.get("status"))} | bare_codes(resource.get("verificationStatus"))
    if statuses & _NEVER or statuses & more:
        return Reason.NOT_DONE
    if text(resource.get("intent")) in _ONLY_PROPOSED or resource.get("doNotPerform") is True:
        return Reason.NOT_DONE
    return Reason.NOT_UNDERSTOOD if resource.get("modifierExtension") else None


def _first_time(resource: dict[str, Any], names: tuple[str, ...], zone: ZoneInfo | None) -> datetime | None:
    for name in names:
        outer, _, inner = name.partition(".")
        value = mapping(resource.get(outer)).get(inner) if inner else resource.get(outer)
        time = time_of(value, zone)
        if time:
            return time
    return None


def _at(resource: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    outer, _, inner = name.partition(".")
    for part in mappings(resource.get(outer)):
        yield from mappings(part.get(inner)) if inner else [part]


def _value_of(part: dict[str, Any]) -> str:
    """Name of the ``value[x]`` that is there, "" = none."""
    return next((name for name in part if name.startswith("value") and part[name] is not None), "")
