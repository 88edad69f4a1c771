"""Invented FHIR resources: two patients with all that the reader knows, mCODE and variants among it."""

from typing import Any

LOINC, SNOMED, RXNORM = "http://loinc.org", "http://snomed.info/sct", "http://www.nlm.nih.gov/research/umls/rxnorm"
UCUM = "http://unitsofmeasure.org"
NAME, STREET, NOTE = "Quxworthy", "Elm Passage 7", "patient told of her brother"


def concept(system: str, code: str, display: str | None = None) -> dict[str, Any]:
    """One coding as a CodeableConcept."""
    return {"coding": [{"system": system, "code": code, **({"display": display} if display else {})}], "text": NOTE}


def observation(name: str, code: str, patient: str = "p-1", **fields: Any) -> dict[str, Any]:
    """An Observation with a LOINC code."""
    return {
        "resourceType": "Observation",
        "id": name,
        "status": "final",
        "code": concept(LOINC, code),
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": "2021-03-04T10:00:00+02:00",
        **fields,
    }


def variant(name: str, gene: str, when: str = "2021-03-10", patient: str = "p-1", **components: Any) -> dict[str, Any]:
    """A variant of a gene; ``present``, ``source`` (class), ``copies``."""
    parts = [
        {"code": concept(LOINC, "48018-6"), "valueCodeableConcept": concept("http://www.genenames.org", gene, gene)}
    ]
    if source := components.get("source"):
        parts.append({"code": concept(LOINC, "48002-0"), "valueCodeableConcept": concept(LOINC, source)})
    if copies := components.get("copies"):
        parts.append({"code": concept(LOINC, "82155-3"), "valueQuantity": {"value": copies, "unit": "1"}})
    present = concept(LOINC, components.get("present", "LA9633-4"))
    return observation(name, "69548-6", patient, effectiveDateTime=when, valueCodeableConcept=present, component=parts)


def resources() -> list[dict[str, Any]]:
    """All of them, of two patients."""
    patient = {"reference": "Patient/p-1"}

    def quantity(value: float, unit: str, **more: Any) -> dict[str, Any]:
        return {"value": value, "unit": unit, "system": UCUM, "code": unit, **more}

    def own(kind: str, name: str, **fields: Any) -> dict[str, Any]:
        return {"resourceType": kind, "id": name, "subject": patient, **fields}

    aspirin = concept(RXNORM, "1191")
    return [
        {
            "resourceType": "Patient",
            "id": "p-1",
            "name": [{"family": NAME}],
            "address": [{"line": [STREET]}],
            "gender": "female",
            "birthDate": "1957-03",
            "deceasedDateTime": "2022-05-06T23:30:00Z",
        },
        {"resourceType": "Patient", "id": "p-2", "gender": "male", "birthDate": "1971-01-02"},
        own(
            "Encounter",
            "enc",
            status="finished",
            **{"class": {"code": "IMP", "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode"}},
            type=[concept(SNOMED, "32485007")],
            period={"start": "2021-03-01T08:00:00+02:00", "end": "2021-03-05T12:00:00+02:00"},
        ),
        own(
            "Condition",
            "con",
            clinicalStatus=concept("http://terminology.hl7.org/CodeSystem/condition-clinical", "active"),
            verificationStatus=concept("http://terminology.hl7.org/CodeSystem/condition-ver-status", "confirmed"),
            code={"coding": [{"system": "urn:oid:1.2.3", "code": "x"}, {"system": SNOMED, "code": "254637007"}]},
            onsetDateTime="2020",
            recordedDate="2021-03-02",
            stage=[{"summary": concept("http://cancerstaging.org", "3B")}],
            meta={"lastUpdated": "2021-04-01T09:00:00+03:00"},
        ),
        own("Condition", "refuted", verificationStatus=concept("x", "refuted"), code=concept(SNOMED, "1")),
        observation("hgb", "718-7", valueQuantity=quantity(11.25, "g/dL")),
        observation("crp", "1988-5", valueQuantity=quantity(5, "mg/L", comparator="<")),
        observation("psa", "2857-1", valueString=">= 7,5"),
        observation("er", "85337-4", valueString="Positive"),
        observation("story", "10164-2", valueString=NOTE),
        observation("stage", "21908-9", valueCodeableConcept=concept("http://cancerstaging.org", "3B")),
        observation("status", "97509-4", valueCodeableConcept=concept(SNOMED, "268910001")),
        observation(
            "bp",
            "85354-9",
            component=[
                {"code": concept(LOINC, "8480-6"), "valueQuantity": quantity(121, "mm[Hg]")},
                {"code": concept(LOINC, "8462-4"), "valueQuantity": quantity(80, "mm[Hg]")},
            ],
        ),
        observation("wrong", "718-7", status="entered-in-error", valueQuantity=quantity(99, "g/dL")),
        observation("undated", "718-7", effectiveDateTime=None, valueQuantity=quantity(99, "g/dL")),
        observation("unknown", "718-7", dataAbsentReason=concept("x", "unknown")),
        observation("stranger", "718-7", patient="p-9", valueQuantity=quantity(99, "g/dL")),
        observation("second", "718-7", patient="p-2", valueQuantity=quantity(14, "g/dL"), effectiveDateTime="2021-02"),
        own(
            "MedicationRequest",
            "req",
            status="active",
            intent="order",
            authoredOn="2021-03-03",
            medicationReference={"reference": "#m"},
            contained=[{"resourceType": "Medication", "id": "m", "code": aspirin}],
        ),
        own(
            "MedicationRequest",
            "plan",
            status="active",
            intent="plan",
            authoredOn="2021-03-03",
            medicationCodeableConcept=aspirin,
        ),
        own(
            "MedicationAdministration",
            "adm",
            status="completed",
            effectivePeriod={"start": "2021-03-04"},
            medicationReference={"reference": "Medication/m-1"},
        ),
        own(
            "MedicationStatement",
            "sta",
            status="active",
            effectiveDateTime="2021-03-01",
            medicationCodeableConcept=concept("http://www.whocc.no/atc", "L01XA01"),
        ),
        {"resourceType": "Medication", "id": "m-1", "code": concept(RXNORM, "40048")},
        own(
            "Procedure",
            "pro",
            status="completed",
            code=concept(SNOMED, "392021009"),
            performedPeriod={"start": "2021-04-01T09:00:00+03:00"},
        ),
        own("Goal", "goal", lifecycleStatus="active"),
        variant("v-kras", "KRAS"),
        variant("v-tp53", "TP53"),
        variant("v-egfr", "EGFR", present="LA9634-2"),
        variant("v-erbb2", "ERBB2", copies=8),
        variant("v-brca2", "BRCA2", source="LA6683-2"),
        variant("v-later", "BRAF", when="2021-06-01T12:00:00+03:00"),
        variant("v-second", "KRAS", when="2021-01-20", patient="p-2", present="LA9634-2"),
    ]


def bundle(listed: list[dict[str, Any]]) -> dict[str, Any]:
    """A Bundle of them."""
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"fullUrl": f"http://x/{r['resourceType']}/{r['id']}", "resource": r} for r in listed],
    }


def of_patient(listed: list[dict[str, Any]], patient: str) -> list[dict[str, Any]]:
    """The resources of one patient, and those of none."""
    reference = f"Patient/{patient}"
    return [
        r
        for r in listed
        if r.get("subject", {}).get("reference", reference) == reference
        and (r["resourceType"], r["id"] != patient) != ("Patient", True)
    ]
