"""Values of FHIR R4 (https://hl7.org/fhir/R4/datatypes.html) as plain ones: codes, numbers, times, references.

In: parts of resources, whatever their JSON holds. Out: text, numbers and naive wall times, or ``None`` where a part is
missing or is no such value. Nothing here raises, but for a time with a zone where no zone to convert to was given.

- *Codes* are ``SYSTEM//code``. Of several codings of one concept the first of a named system counts (:data:`SYSTEMS`),
  otherwise the first; a system without a name gives the last part of its URI, a coding without a system ``LOCAL``. A
  concept that is only text has no code: text is never kept.
- *Numbers* may come as text ("<5", "12.5", "7,2", "40 %"); an operator is kept beside the number, which is the limit.
- *Times* with a zone become the wall time of the zone asked for. A date is its midnight. A month or a year is the last
  day that it may mean, so that nothing is known too early; of a birth, the middle day.
"""

from __future__ import annotations

import calendar
import re
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)
_LONGEST_CODE, _LONGEST_DISPLAY, _LONGEST_UNIT = 100, 300, 40
_FIRST_YEAR, _LAST_YEAR = 1800, 2199
_TIME = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?)?)?")
_NUMBER = re.compile(r"(<=|>=|<|>|≤|≥)?\s*([+-]?(?:\d+(?:[.,]\d+)?|[.,]\d+)(?:[eE][+-]?\d{1,3})?)\s*(%)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3},\d{3}")
_COMPARATORS = {"<", "<=", ">=", ">"}
_FINDINGS = {
    *("positive", "negative", "detected", "not detected", "present", "absent", "reactive", "non-reactive"),
    *("equivocal", "indeterminate", "borderline", "trace", "normal", "abnormal", "yes", "no"),
}

# URI (without scheme, final slash and version) or OID to the name that OMOP vocabularies use, where they have one.
SYSTEMS = {
    "snomed.info/sct": "SNOMED",
    "loinc.org": "LOINC",
    "www.nlm.nih.gov/research/umls/rxnorm": "RxNorm",
    "hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "hl7.org/fhir/sid/icd-10": "ICD10",
    "fhir.de/codesystem/bfarm/icd-10-gm": "ICD10GM",
    "fhir.de/codesystem/dimdi/icd-10-gm": "ICD10GM",
    "fhir.de/codesystem/bfarm/ops": "OPS",
    "hl7.org/fhir/sid/icd-9-cm": "ICD9CM",
    "hl7.org/fhir/sid/icd-o-3": "ICDO3",
    "terminology.hl7.org/codesystem/icd-o-3": "ICDO3",
    "www.cms.gov/medicare/coding/icd10": "ICD10PCS",
    "www.whocc.no/atc": "ATC",
    "fhir.de/codesystem/bfarm/atc": "ATC",
    "hl7.org/fhir/sid/cvx": "CVX",
    "hl7.org/fhir/sid/ndc": "NDC",
    "www.ama-assn.org/go/cpt": "CPT4",
    "terminology.hl7.org/codesystem/hcpcs-all-codes": "HCPCS",
    "www.cms.gov/medicare/coding/hcpcsreleasecodesets": "HCPCS",
    "ncicb.nci.nih.gov/xml/owl/evs/thesaurus.owl": "NCIt",
    "ncithesaurus-stage.nci.nih.gov": "NCIt",
    "fdasis.nlm.nih.gov": "UNII",
    "www.genenames.org": "HGNC",
    "www.genenames.org/geneid": "HGNC",
    "cancerstaging.org": "AJCC",
    "dicom.nema.org/resources/ontology/dcm": "DCM",
    "unitsofmeasure.org": "UCUM",
    "2.16.840.1.113883.6.96": "SNOMED",
    "2.16.840.1.113883.6.1": "LOINC",
    "2.16.840.1.113883.6.88": "RxNorm",
    "2.16.840.1.113883.6.90": "ICD10CM",
    "2.16.840.1.113883.6.3": "ICD10",
    "2.16.840.1.113883.6.103": "ICD9CM",
    "2.16.840.1.113883.6.43.1": "ICDO3",
    "2.16.840.1.113883.6.4": "ICD10PCS",
    "2.16.840.1.113883.6.73": "ATC",
    "2.16.840.1.113883.12.292": "CVX",
    "2.16.840.1.113883.6.69": "NDC",
    "2.16.840.1.113883.6.12": "CPT4",
}


class FhirError(ValueError):
    """A source that cannot be read as it is: says what was expected and how to go on, and nothing of a patient."""


def mapping(value: object) -> dict[str, Any]:
    """The object, {} where it is none."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, Any]]:
    """The objects of a list, or of a list's place; what is no object is left out."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


def text(value: object) -> str:
    """The text without blanks around it, "" where it is none."""
    return value.strip() if isinstance(value, str) else ""


def system_of(coding: dict[str, Any]) -> tuple[str, bool]:
    """Name of the code system, and whether it is a named one."""
    uri = text(coding.get("system")).partition("|")[0]
    bare = re.sub(r"^(https?://|urn:oid:|urn:)", "", uri, flags=re.IGNORECASE).rstrip("/")
    if name := SYSTEMS.get(bare.lower()):
        return name, True
    last = re.split(r"[/:#]", bare)[-1]
    return (last if last and len(last) <= _LONGEST_CODE and last.isprintable() else "LOCAL"), False


def code_of(concept: object) -> tuple[str, str] | None:
    """``SYSTEM//code`` and display of a CodeableConcept; the display only of a named system."""
    found = None
    for coding in mappings(mapping(concept).get("coding")):
        code = coding_code(coding)
        if code is None:
            continue
        _, named = system_of(coding)
        if named:
            display = text(coding.get("display"))
            return code, display if len(display) <= _LONGEST_DISPLAY and display.isprintable() else ""
        found = found or (code, "")
    return found


def coding_code(coding: object) -> str | None:
    """``SYSTEM//code`` of one Coding."""
    code = text(mapping(coding).get("code"))
    if not code or len(code) > _LONGEST_CODE or not code.isprintable():
        return None
    return f"{system_of(mapping(coding))[0]}//{code}"


def has_code(concept: object, codes: frozenset[str]) -> bool:
    """Whether any coding of a CodeableConcept is one of ``SYSTEM//code``."""
    return any(coding_code(coding) in codes for coding in mappings(mapping(concept).get("coding")))


def bare_codes(concept: object) -> set[str]:
    """Codes of a CodeableConcept without their systems."""
    return {text(coding.get("code")) for coding in mappings(mapping(concept).get("coding"))}


def number_of(value: object) -> float | None:
    """A finite number that float32 holds, rounded to it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(np.float32(value))


def quantity_of(quantity: object) -> tuple[float, str, str] | None:
    """Number, unit (UCUM where it is given) and the limit as text ("<5"; "" where it is no limit)."""
    given = mapping(quantity)
    number = number_of(given.get("value"))
    if number is None:
        return None
    ucum = text(given.get("code")) if system_of(given)[0] == "UCUM" else ""
    unit = ucum or text(given.get("unit")) or text(given.get("code"))
    comparator = text(given.get("comparator"))
    limit = f"{comparator}{number:g}" if comparator in _COMPARATORS else ""
    return number, unit if len(unit) <= _LONGEST_UNIT and unit.isprintable() else "", limit


def number_in(value: object) -> tuple[float, str, str] | None:
    """What :func:`quantity_of` gives, of a text that is a number, with an operator or a per cent sign or without."""
    found = _NUMBER.fullmatch(text(value)[:_LONGEST_UNIT])
    if found is None or _THOUSANDS.fullmatch(found[2]):
        return None
    number = number_of(float(found[2].replace(",", ".")))
    if number is None:
        return None
    operator = {"≤": "<=", "≥": ">="}.get(found[1], found[1])
    return number, found[3] or "", f"{operator}{number:g}" if operator else ""


def finding_in(value: object) -> str | None:
    """``POSITIVE``, ``NOT_DETECTED`` ...: a text that is one of a closed list of findings."""
    word = " ".join(text(value).lower().split())
    return re.sub(r"\W", "_", word).upper() if word in _FINDINGS else None


def time_of(value: object, zone: ZoneInfo | None, *, birth: bool = False) -> datetime | None:
    """Naive wall time of a date, dateTime or instant.

    Raises
    ------
    FhirError
        If it carries a zone and ``zone`` is ``None``.
    """
    found = _TIME.fullmatch(text(value))
    if found is None:
        return None
    year, month, day, clock = found.groups()
    if not _FIRST_YEAR <= int(year) <= _LAST_YEAR:
        return None
    try:
        if day is None:
            return _partial(int(year), int(month) if month else None, birth)
        moment = datetime.fromisoformat(found[0]) if clock else datetime(int(year), int(month), int(day))
    except ValueError:
        return None
    if moment.tzinfo is None:
        return moment
    if zone is None:
        raise FhirError(
            "times: expected a zone whose wall time to keep, as those given carry one: --timezone Europe/Helsinki"
        )
    return moment.astimezone(zone).replace(tzinfo=None)


def zone_of(name: str | None) -> ZoneInfo | None:
    """The zone of that name in the IANA database; ``None`` where none is asked for."""
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise FhirError(
            f"--timezone: expected a name of the IANA database like Europe/Helsinki, got {name!r}"
        ) from None


def _partial(year: int, month: int | None, birth: bool) -> datetime:
    if birth:
        return datetime(year, month, 15) if month else datetime(year, 7, 1)
    month = month or 12
    return datetime(year, month, calendar.monthrange(year, month)[1])
