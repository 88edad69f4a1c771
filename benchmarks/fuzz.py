"""The service under 10,000 requests that nobody would send: no 5xx, no NaN, no crash, every refusal in words.

    python benchmarks/fuzz.py            some ten minutes on two cores (and the demo's training, if there is none)
    python benchmarks/fuzz.py --check    exit code 1, and each request that was not answered as it should be

*openapi*: requests that Schemathesis draws from ``/openapi.json``, valid and not, each answer held against it.
*patients*, *fhir*, *tensors*: real requests to ``/v1/predict`` and the inference protocol, with one to four parts
changed by Hypothesis: ids out of range, NaN, infinities, negative ages, events to come, unknown codes, drugs and
genes, missing modalities, other types, empty and huge texts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from record import Record, train
from service import ARGUMENTS, BUNDLE, Client, Service, patients_of_demo

EXAMPLES = {"openapi": 4000, "patients": 4000, "fhir": 1500, "tensors": 1500}
LEAST, SHOWN, FEW = 10_000, 20, 25
JUNK: list[Any] = [
    *(None, True, "", " ", "x" * 5000, "\x00", "😀", "NaN", "'; --", "1e999", "-1", [], {}, [[]], {"": {}}),
    *(0, -1, 2**31, 2**63, 10**40, 0.5, -0.0, 1e-45, 3.5e38, -3.5e38, 1e308, math.nan, math.inf, -math.inf),
    *("2199-01-01", "0001-01-01T00:00", "9999-12-31T23:59:59", "2024-02-30", "2024-05-02T08:00:00Z", "yesterday"),
    *("inhibitor:", "inhibitor:NO-GENE", "a drug without a name", "DRUG//", "//", "ICD10//C50.999", "GENDER//?"),
]
FHIR: dict[str, Any] = {
    "resourceType": "Bundle",
    "type": "collection",
    "entry": [
        {"resource": {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1957-03-11"}},
        {
            "resource": {
                "resourceType": "Condition",
                "subject": {"reference": "Patient/p"},
                "code": {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "C50.4"}]},
                "recordedDate": "2023-11-02T10:00:00+02:00",
            }
        },
        {
            "resource": {
                "resourceType": "Observation",
                "status": "final",
                "subject": {"reference": "Patient/p"},
                "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
                "effectiveDateTime": "2024-04-30T08:15:00+03:00",
                "valueQuantity": {"value": 112, "unit": "g/L", "code": "g/L", "system": "http://unitsofmeasure.org"},
            }
        },
    ],
}


def main() -> None:
    """Measure what is not on file, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name what was not answered as it should be")
    arguments = parser.parse_args()
    record = Record("fuzz", libraries=("fastapi", "hypothesis", "schemathesis"))
    if set(EXAMPLES) - set(record.parts):
        train(*ARGUMENTS)
        service = Service(BUNDLE)
        for name, fuzz in (("openapi", _openapi), ("patients", _patients), ("fhir", _fhir), ("tensors", _tensors)):
            if name not in record.parts:
                found = fuzz(service)
                if service.process.poll() is not None:
                    found.fault("the service ended", service.process.returncode)
                record.add(name, found.to_dict())
        service.stop()
    short = []
    for name, part in record.parts.items():
        print(f"{name:10}{part['requests']:>8} requests, answered with {part['statuses']}")
        short += [f"{name}: {fault}" for fault in part["faults"]]
    total = sum(part["requests"] for part in record.parts.values())
    if total < LEAST:
        short.append(f"requests: {total}, expected at least {LEAST}")
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


@dataclass
class Found:
    """What the answers of one part were."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str, about: object) -> None:
        """Keep the first few."""
        if len(self.faults) < SHOWN:
            self.faults.append(f"{what}: {about!s:.400}")

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        return {"requests": self.statuses.total(), "statuses": statuses, "faults": self.faults}


def _run(examples: int, strategy: st.SearchStrategy[Any], ask: Callable[[Any], None]) -> None:
    """So many examples, the same at every run."""

    @seed(0)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(drawn: Any) -> None:
        ask(drawn)

    each()


def _openapi(service: Service) -> Found:
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    found = Found()
    url = f"http://127.0.0.1:{service.port}"
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]

    def ask(case: Any) -> None:
        response = case.call()
        found.statuses[response.status_code] += 1
        try:
            case.validate_response(response, checks=wanted)
        except BaseExceptionGroup as group:
            found.fault(f"{case.method} {case.path}", "; ".join(str(error) for error in group.exceptions))

    operations = [result.ok() for result in schema.get_all_operations()]
    with_body = [operation for operation in operations if operation.method.lower() == "post"]
    places = {"name": "ican", "service_id": "ican-treatments"}
    for operation in operations:
        examples = EXAMPLES["openapi"] // (2 * len(with_body)) if operation in with_body else FEW
        known = {name: place for name, place in places.items() if f"{{{name}}}" in operation.path}
        valid = operation.as_strategy(GenerationMode.POSITIVE, path_parameters=known or None)
        _run(examples, valid, ask)
        try:
            _run(examples, operation.as_strategy(GenerationMode.NEGATIVE), ask)
        except Unsatisfiable:  # it takes nothing that could be wrong
            print(f"{operation.label}: has no invalid requests")
    return found


def _paths(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands; of a long list or table the first few places."""
    parts = list(document.items() if isinstance(document, dict) else enumerate(document))[:12]
    found = []
    for key, part in parts:
        found.append((*path, key))
        if isinstance(part, dict | list):
            found += _paths(part, (*path, key))
    return found


def _changed(documents: list[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """One of the documents with one to four parts replaced, removed, renamed, or repeated."""

    @st.composite
    def changed(draw: st.DrawFn) -> dict[str, Any]:
        document = deepcopy(documents[draw(st.integers(0, len(documents) - 1))])
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 4]))):
            paths = _paths(document)
            if not paths:
                break
            *way, last = draw(st.sampled_from(paths))
            holder: Any = document
            for part in way:
                holder = holder[part]
            match draw(st.integers(0, 5)):
                case 0:
                    del holder[last]
                case 1 if isinstance(holder, dict):
                    holder[draw(st.sampled_from([key for key in JUNK if isinstance(key, str)]))] = holder.pop(last)
                case 2 if isinstance(holder, list):
                    holder += [holder[last]] * draw(st.integers(1, 40))
                case _:
                    holder[last] = draw(st.sampled_from(JUNK) | st.floats(width=32) | st.text(max_size=20))
        return document

    return changed()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _asked(found: Found, client: Client, path: str, body: dict[str, Any], refusals: set[int]) -> Any:
    """The answer, if it is one; whatever it is, it is JSON without NaN, and a refusal says what was expected."""
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    try:
        status, text = client.post(path, content)
    except OSError as error:
        found.statuses[0] += 1
        return found.fault(type(error).__name__, content[:400])
    found.statuses[status] += 1
    try:
        answer = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        return found.fault(f"{status}, {error}", content[:400])
    if status == 200:
        return answer
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    if status not in refusals or not isinstance(message, str) or "expected" not in message:
        found.fault(f"{status} {text[:200]!r}", content[:400])
    return None


def _predictions(service: Service, documents: list[dict[str, Any]], examples: int) -> Found:
    """Changed requests to ``/v1/predict``; whatever is answered ranks something, by shares between 0 and 1."""
    found, client = Found(), Client(service.port)

    def ask(body: dict[str, Any]) -> None:
        answer = _asked(found, client, "/v1/predict", body, {422})
        if answer is None:
            return
        shares = []
        for one in answer["ranked"]:
            shares += [one["prediction"][task] for task in one["sets"]]
            shares += [share for curve in one["event_free"].values() for share in curve["probability"]]
            shares += [end for ends in one["interval"].values() for end in ends]
        if not shares or not all(0 <= share <= 1 for share in shares):
            found.fault("a share outside 0 to 1", json.dumps(body)[:400])

    _run(examples, _changed(documents), ask)
    return found


def _patients(service: Service) -> Found:
    first = json.loads(Client(service.port).post("/v1/predict", patients_of_demo()[0])[1])
    drugs = [one["treatment"] for one in first["ranked"][:4]]
    treatments = [*drugs, drugs[0] + drugs[1], ["new"]]
    documents = [{**json.loads(patient), "treatments": treatments} for patient in patients_of_demo()[:20]]
    return _predictions(service, documents, EXAMPLES["patients"])


def _fhir(service: Service) -> Found:
    return _predictions(service, [{"fhir": FHIR, "prediction_time": "2024-05-02T08:00:00"}], EXAMPLES["fhir"])


def _tensors(service: Service) -> Found:
    from ican_ml.serving.predictor import Predictor

    found, client, predictor = Found(), Client(service.port), Predictor(BUNDLE)
    inputs, _ = predictor.inputs(json.loads(patients_of_demo()[0])["patient"], [(predictor.schema.drugs[0],)])
    kind = {"float32": "FP32", "int64": "INT64"}
    entries = [(entry["name"], kind[entry["dtype"]]) for entry in predictor.input_entries]
    tensors = [
        {"name": name, "shape": list(inputs[name].shape), "datatype": datatype, "data": inputs[name].ravel().tolist()}
        for name, datatype in entries
    ]

    def ask(body: dict[str, Any]) -> None:
        answer = _asked(found, client, "/v2/models/ican/infer", body, {400})
        if answer is not None and not all(math.isfinite(v) for each in answer["outputs"] for v in each["data"]):
            found.fault("not finite", json.dumps(body)[:400])

    each_own = [{"inputs": [tensor, *(other for other in tensors if other is not tensor)]} for tensor in tensors]
    _run(EXAMPLES["tensors"], _changed(each_own), ask)
    return found


if __name__ == "__main__":
    main()
