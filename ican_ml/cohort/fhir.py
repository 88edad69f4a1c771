"""Reads FHIR R4 resources of many patients, or a Bundle of one as the plain dictionary that serving takes.

    patient = read_bundle(json.load(file), timezone="Europe/Helsinki")   # for ican_ml.inputs.patient.read_patient

In: Bundles and single resources as dictionaries. Out: :class:`Found` of every resource
(:mod:`ican_ml.cohort.fhir_resources`), whose it is, or the reason why it is left: so each is accounted for. The
conversion of a cohort (:mod:`ican_ml.cohort.convert_fhir`) reads through the same functions, which is why a patient
gives the network the same bits either way. NumPy and the standard library only.

- Of several resources with one type and id the one with the latest ``meta.lastUpdated`` counts, of equals the last.
- References may be relative, absolute, a ``fullUrl`` of the Bundle or ``#contained``; versions are ignored.
- Patient: ``birthDate``, ``gender`` as static ``SEX//F`` or ``SEX//M``, ``deceasedDateTime``; nothing else is read.
- Variants of one calendar day are one sample. The dictionary has the latest sample at the prediction time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from ican_ml.cohort.accounting import Reason
from ican_ml.cohort.fhir_resources import CLINICAL, Event, Found, Variant, read_clinical
from ican_ml.cohort.fhir_values import FhirError, mapping, mappings, text, time_of, zone_of

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
MODALITY = "mutation"
_SEX = {"female": "SEX//F", "male": "SEX//M", "other": "SEX//OTHER"}
_DEEPEST = 8
_NEVER_UPDATED = float("-inf")


@dataclass(kw_only=True, slots=True)
class Index:
    """What must be known of all resources before the first can be read.

    Attributes
    ----------
    patients
        Ids of the Patient resources.
    medications
        Id to the ``code`` of the Medication.
    aliases
        ``fullUrl`` to type/id, where it does not end in the id.
    newest
        Hash of type/id to the time of the last update and the position of the resource that counts.
    """

    patients: set[str] = field(default_factory=set)
    medications: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    newest: dict[int, tuple[float, int]] = field(default_factory=dict)

    def add(self, position: int, resource: dict[str, Any] | None, full_url: str) -> None:
        """Take in the resource at a position of the source."""
        kind, name = _identity(resource, full_url)
        if resource is None or not kind or not name:
            return
        if full_url and _last(full_url) != name:
            self.aliases[full_url] = f"{kind}/{name}"
        updated = _updated(resource)
        key = hash((kind, name))
        if updated >= self.newest.get(key, (_NEVER_UPDATED, 0))[0]:
            self.newest[key] = updated, position
            if kind == "Medication":
                self.medications[name] = mapping(resource.get("code"))
        if kind == "Patient":
            self.patients.add(name)

    def counts(self, position: int, kind: str, name: str) -> bool:
        """Whether the resource at this position is the one to read of all with its type and id."""
        return not name or self.newest[hash((kind, name))][1] == position

    def target(self, reference: object, kind: str) -> str:
        """Id that a Reference to a resource of that type names, "" = none."""
        given = text(mapping(reference).get("reference"))
        given = self.aliases.get(given, given).partition("/_history/")[0]
        *before, name = given.removeprefix("urn:uuid:").removeprefix("urn:oid:").split("/")
        return name if not before or before[-1] == kind else ""

    def medication(self, reference: dict[str, Any], holder: dict[str, Any]) -> dict[str, Any]:
        """The code of a Medication that a resource refers to, {} = none."""
        given = text(reference.get("reference"))
        if given.startswith("#"):
            inside = mappings(holder.get("contained"))
            return next((mapping(part.get("code")) for part in inside if part.get("id") == given[1:]), {})
        return self.medications.get(self.target(reference, "Medication"), {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """One resource as it was read.

    Attributes
    ----------
    kind, name
        Type and id, "" where there is none.
    patient
        Id of the patient, "" where ``found`` gives a reason.
    """

    kind: str
    name: str
    patient: str
    found: Found


def resources_of(document: object) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Resources of a parsed file with their ``fullUrl``; Bundles are opened, ``None`` stands for what is none."""
    queue: list[tuple[object, str, int]] = [(document, "", 0)]
    while queue:
        given, full_url, depth = queue.pop()
        if isinstance(given, list) and depth == 0:
            queue += [(item, "", 1) for item in reversed(given)]
        elif isinstance(given, dict) and given.get("resourceType") == "Bundle" and depth < _DEEPEST:
            entries = given.get("entry")
            entries = [] if entries is None else entries if isinstance(entries, list) else [entries]
            opened = [mapping(entry) for entry in entries]
            queue += [(entry.get("resource"), text(entry.get("fullUrl")), depth + 1) for entry in reversed(opened)]
        else:
            yield (given if isinstance(given, dict) else None), full_url


def read_resources(
    resources: Iterable[tuple[dict[str, Any] | None, str]], index: Index, zone: ZoneInfo | None
) -> Iterator[Read]:
    """Read every resource, in the order in which ``index`` took them in.

    Raises
    ------
    FhirError
        If a time carries a zone and ``zone`` is ``None``.
    """
    for position, (resource, full_url) in enumerate(resources):
        kind, name = _identity(resource, full_url)
        patient, found = "", Found(reason=Reason.UNREADABLE)
        if resource is not None and kind:
            patient, found = _read_one(resource, kind, name, index, zone, index.counts(position, kind, name))
        yield Read(kind=kind, name=name, patient="" if found.reason else patient, found=found)


def _read_one(
    resource: dict[str, Any], kind: str, name: str, index: Index, zone: ZoneInfo | None, counts: bool
) -> tuple[str, Found]:
    if not counts:
        return "", Found(reason=Reason.DUPLICATE)
    if kind == "Patient":
        return name, _demographics(resource, zone) if name else Found(reason=Reason.NO_SUBJECT)
    if kind not in CLINICAL:
        return "", Found(reason=Reason.UNUSED_TYPE)
    subject = index.target(resource.get("subject") or resource.get("patient"), "Patient")
    if subject not in index.patients:
        return "", Found(reason=Reason.NO_SUBJECT)
    return subject, read_clinical(kind, resource, zone, index.medication)


def _demographics(patient: dict[str, Any], zone: ZoneInfo | None) -> Found:
    if patient.get("modifierExtension"):
        return Found(reason=Reason.NOT_UNDERSTOOD)
    events = []
    birth = time_of(patient.get("birthDate"), zone, birth=True)
    death = time_of(patient.get("deceasedDateTime"), zone)
    if birth:
        events.append(Event(code=BIRTH, time=birth))
    if sex := _SEX.get(text(patient.get("gender"))):
        events.append(Event(code=sex, time=None))
    if death:
        events.append(Event(code=DEATH, time=death))
    return Found(events=events) if events else Found(reason=Reason.NO_VALUE)


def read_bundle(bundle: object, *, timezone: str | None = None, prediction_time: str | None = None) -> dict[str, Any]:
    """The one patient of a Bundle as the dictionary that :func:`ican_ml.inputs.patient.read_patient` takes.

    Parameters
    ----------
    timezone
        IANA name of the zone whose wall time to keep; needed where times carry a zone.
    prediction_time
        Wall time; what is later is left to the reader of the dictionary, but for samples. ``None`` = no limit.

    Raises
    ------
    FhirError
        If the Bundle does not hold exactly one Patient, or a time cannot be read.
    """
    resources = list(resources_of(bundle))
    index = Index()
    for position, (resource, full_url) in enumerate(resources):
        index.add(position, resource, full_url)
    if len(index.patients) != 1:
        raise FhirError(f"expected a Bundle with one Patient, got {len(index.patients)}")
    try:
        limit = time_of(prediction_time, None)
    except FhirError:  # it carries a zone
        limit = None
    if prediction_time is not None and limit is None:
        raise FhirError(
            "prediction_time: expected a date or wall time without a zone, like 2024-05-02 or 2024-05-02T08:15:00, "
            f"got {prediction_time!r:.80}"
        )
    read = list(read_resources(resources, index, zone_of(timezone)))
    events = [event for one in read for event in one.found.events]
    births = [event.time for event in events if event.code == BIRTH and event.time]
    patient: dict[str, Any] = {
        "events": [_as_dictionary(event) for event in events if event.code not in (BIRTH, DEATH)]
    }
    if births:
        patient["birth_time"] = min(births).isoformat()
    if limit is not None:
        patient["prediction_time"] = limit.isoformat()
    samples = group_samples(variant for one in read for variant in one.found.variants)
    known = [sample for sample in samples if limit is None or sample.time <= limit]
    if known:
        patient["omics"] = {MODALITY: {gene: int(mutated) for gene, mutated in sorted(known[-1].genes.items())}}
    return patient


@dataclass(kw_only=True, slots=True)
class Sample:
    """Variants of one day: the last of their times, and of each gene whether it is mutated."""

    time: datetime
    genes: dict[str, bool]


def group_samples(variants: Iterable[Variant]) -> list[Sample]:
    """Samples of one patient by time. A gene that was found mutated stays so."""
    samples: dict[date, Sample] = {}
    for variant in variants:
        sample = samples.setdefault(variant.time.date(), Sample(time=variant.time, genes={}))
        sample.time = max(sample.time, variant.time)
        sample.genes[variant.gene] = variant.mutated or sample.genes.get(variant.gene, False)
    return [samples[day] for day in sorted(samples)]


def _as_dictionary(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {"code": event.code}
    if event.time is not None:
        document["time"] = event.time.isoformat()
    if event.value is not None:
        document["value"] = event.value
    if event.unit:
        document["unit"] = event.unit
    return document


def _identity(resource: dict[str, Any] | None, full_url: str) -> tuple[str, str]:
    """Type and id; a resource without an id has that of its ``fullUrl``."""
    given = mapping(resource)
    return text(given.get("resourceType")), text(given.get("id")) or _last(full_url)


def _last(url: str) -> str:
    return url.removeprefix("urn:uuid:").removeprefix("urn:oid:").rpartition("/")[2]


def _updated(resource: dict[str, Any]) -> float:
    try:
        updated = datetime.fromisoformat(text(mapping(resource.get("meta")).get("lastUpdated")))
        return (updated if updated.tzinfo else updated.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return _NEVER_UPDATED
