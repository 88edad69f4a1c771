"""The service over HTTP: what it answers, and that whatever it is sent it answers in words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ican_ml.cohort.cohort import Cohort
from ican_ml.inputs.assemble import CohortStates, as_dictionary
from ican_ml.records.store import RecordStore
from ican_ml.serving.config import ServiceConfig
from ican_ml.serving.predictor import Predictor
from ican_ml.serving.service import create_app
from tests.cohort.invented_fhir import bundle, of_patient, resources

Json = dict[str, Any]


@pytest.fixture(scope="module")
def config(sim_bundle: Path) -> ServiceConfig:
    return ServiceConfig(bundle=sim_bundle, assay="wide", most_bytes=1 << 20, most_events=500, most_treatments=40)


@pytest.fixture(scope="module")
def client(config: ServiceConfig) -> Iterator[TestClient]:
    with TestClient(create_app(config), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(sim_bundle: Path) -> Predictor:
    return Predictor(sim_bundle)


@pytest.fixture(scope="module")
def patient(sim_cohort: Cohort, sim_records: RecordStore, sim_states: CohortStates) -> Json:
    assert sim_states.patients.events is not None
    row = int(np.diff(sim_states.patients.events.offsets).argmax())
    return json.loads(json.dumps(as_dictionary(sim_cohort, sim_records, sim_states, row)))


def _fhir() -> Json:
    return bundle(of_patient(resources(), "p-1"))


def error_of(response: Any) -> Json:
    error: Json = response.json()["error"]
    assert set(error) == {"code", "message", "field"}
    return error


def test_the_answer_is_the_predictors(client: TestClient, predictor: Predictor, patient: Json) -> None:
    drugs = predictor.schema.drugs[:4]
    response = client.post("/v1/predict", json={"patient": patient, "treatments": [[drug] for drug in drugs]})
    assert response.status_code == 200
    answer = response.json()
    expected = predictor.predict(patient, [(drug,) for drug in drugs])
    assert [one["treatment"] for one in answer["ranked"]] == [list(one.regimen) for one in expected.ranked]
    assert [one["prediction"] for one in answer["ranked"]] == [one.prediction for one in expected.ranked]
    curve = answer["ranked"][0]["event_free"]["os"]
    assert len(curve["days"]) == len(curve["probability"])
    assert sorted(curve["probability"], reverse=True) == curve["probability"]
    assert answer["bundle"] == predictor.version


def test_without_treatments_every_drug_is_ranked(client: TestClient, predictor: Predictor, patient: Json) -> None:
    answer = client.post("/v1/predict", json={"patient": patient, "explain": True, "echo": True}).json()
    assert {tuple(one["treatment"]) for one in answer["ranked"]} == {(drug,) for drug in predictor.schema.drugs}
    assert answer["drivers"]
    assert answer["patient"] == patient


def test_a_fhir_bundle_is_answered(client: TestClient, predictor: Predictor) -> None:
    asked = {"fhir": _fhir(), "prediction_time": "2024-05-02T08:15:00", "assay": "wide", "echo": True}
    response = client.post("/v1/predict", json=asked)
    assert response.status_code == 200, response.text
    understood = response.json()["patient"]
    assert understood["prediction_time"].startswith("2024-05-02T08:15")
    assert client.post("/v1/predict", json={"patient": understood}).json()["ranked"] == response.json()["ranked"]


def test_the_example_can_be_asked_about(client: TestClient) -> None:
    example = client.get("/v1/example").json()
    assert client.post("/v1/predict", json={"patient": example}).status_code == 200
    assert client.get("/v1/example").json() == example


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"omics": {"nothing": {}}}, "omics"),
        ({"omics": {"mutation": {"TP53": 2}}, "assays": {"mutation": "wide"}}, "omics.mutation.TP53"),
        ({"omics": {"expression": {"TP53": -1}}, "assays": {}}, "omics.expression.TP53"),
        ({"events": [{"code": "LAB//HGB", "time": "yesterday"}]}, "events[0].time"),
        ({"events": [{"code": "LAB//HGB", "time": "2024-01-01T00:00:00Z"}]}, "events[0].time"),
        ({"events": [{"code": 7}]}, "events[0].code"),
        ({"events": [{"code": "LAB//HGB", "value": "high"}]}, "events[0].value"),
        ({"events": {}}, "events"),
        ({"events": [{"code": "A"}] * 501}, "events"),
        ({"birth_time": 1957}, "birth_time"),
        ({"covariates": {"line": "many"}}, "covariates.line"),
        ({"covariates": {"weight": 1}}, "covariates"),
        ({"name": "N. N."}, "patient"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, patient: Json, change: Json, field: str) -> None:
    response = client.post("/v1/predict", json={"patient": {**patient, **change}})
    assert response.status_code == 422
    error = error_of(response)
    assert error["field"] == field
    assert "expected" in error["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"birth_time": "2070-01-01"},  # born after the prediction: no age
        {"birth_time": "1700-01-01"},
        {"events": [{"code": "NEVER//SEEN", "value": 3.0}]},
        {"events": [{"code": "LAB//HGB", "time": "2099-01-01", "value": 112, "unit": "g/L"}]},
        {"events": [{"code": "LAB//HGB", "time": "0001-01-01", "value": 3.4e38, "unit": "g/L"}]},
        {"events": None, "omics": None, "assays": None, "covariates": None, "birth_time": None},
        {"prediction_time": None},
        {"covariates": {"indication": "NEVER SEEN", "line": -3.4e38}},
    ],
)
def test_what_is_strange_is_answered(client: TestClient, patient: Json, change: Json) -> None:
    response = client.post("/v1/predict", json={"patient": {**patient, **change}})
    assert response.status_code == 200, response.text
    assert all(np.isfinite(list(one["prediction"].values())).all() for one in response.json()["ranked"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'{"patient": 1}', 422),
        (b'{"patient": {}, "patients": {}}', 422),
        (b'{"patient": {}, "fhir": {}}', 422),
        (b"{}", 422),
        (b'{"patient": {}, "treatments": []}', 422),
        (b'{"patient": {}, "treatments": [[]]}', 422),
        (b'{"patient": {}, "treatments": [["inhibitor:NO-GENE"]]}', 422),
        (b'{"patient": {}, "prediction_time": "2024-05-02"}', 422),
        (b'{"patient": {"covariates": {"line": NaN}}}', 422),
        (b'{"patient": {"covariates": {"line": Infinity}}}', 422),
        (b'{"patient": {"covariates": {"line": 1e400}}}', 422),
        (b'{"patient": {"covariates": {"line": ' + b"9" * 400 + b"}}}", 422),
        (b'{"fhir": {"resourceType": "Bundle", "entry": 3}}', 422),
        (b'{"fhir": {"resourceType": "Patient"}}', 422),
        (b"[" * 100_000, 422),
        (b'{"patient": ' + b'{"a":' * 50_000, 422),
        (b"\xff\xfe", 422),
        (b" " * (1 << 20) + b"{}", 413),
    ],
)
def test_any_body_gets_a_sentence(client: TestClient, body: bytes, status: int) -> None:
    response = client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert "expected" in error_of(response)["message"]


def test_a_body_that_does_not_say_its_length_is_cut(client: TestClient) -> None:
    chunks = (b" " * 4096 for _ in range(300))
    response = client.post("/v1/predict", content=chunks)
    assert "content-length" not in response.request.headers
    assert response.status_code == 413


def test_other_paths_methods_and_types_are_refused_in_words(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"))["code"] == "not_found"
    assert error_of(client.get("/v1/predict"))["code"] == "not_allowed"
    wrong = client.post("/v1/predict", content=b"a=1", headers={"content-type": "application/x-www-form-urlencoded"})
    assert wrong.status_code == 415
    assert client.get("/static/../service.py").status_code == 404
    assert client.get("/static/%2e%2e/service.py").status_code == 404


def test_every_answer_has_an_id_and_keeps_the_browser_at_home(client: TestClient) -> None:
    responses = [client.get(path) for path in ("/", "/v2/health/live", "/v1/nothing", "/static/page.js")]
    assert len({response.headers["x-request-id"] for response in responses}) == len(responses)
    for response in responses:
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"
    text = responses[0].text + responses[3].text + client.get("/static/page.css").text
    assert "http://www.w3.org/2000/svg" in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0, "the page asks nobody else"


def test_health_metrics_and_description(client: TestClient, config: ServiceConfig) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get(f"/v2/models/{config.name}/ready").status_code == 200
    text = client.get("/metrics").text
    assert 'ican_requests_total{endpoint="/v2/health/ready",status="200"}' in text
    assert "ican_request_seconds_bucket" in text
    assert set(client.get("/openapi.json").json()["paths"]) >= {"/v1/predict", "/v2/models/{name}/infer"}


def test_the_inference_protocol_gives_what_the_network_gives(
    client: TestClient, predictor: Predictor, config: ServiceConfig, patient: Json
) -> None:
    inputs, _ = predictor.inputs(patient, [(drug,) for drug in predictor.schema.drugs[:2]])
    document = client.get(f"/v2/models/{config.name}").json()
    datatypes = {entry["name"]: entry["datatype"] for entry in document["inputs"]}
    tensors = [
        {"name": name, "shape": list(inputs[name].shape), "datatype": kind, "data": inputs[name].tolist()}
        for name, kind in datatypes.items()
    ]
    path = f"/v2/models/{config.name}/versions/{predictor.version}/infer"
    asked = {"id": "7", "inputs": tensors, "outputs": [{"name": "response"}]}
    answer = client.post(path, json=asked).json()
    assert answer["id"] == "7"
    (output,) = answer["outputs"]
    expected = predictor.run(inputs)["response"]
    assert np.array_equal(np.array(output["data"], np.float32).reshape(output["shape"]), expected)

    def refused(change: Json) -> str:
        changed = [{**tensor, **change} if tensor["name"] == "event_code" else tensor for tensor in tensors]
        response = client.post(path, json={"inputs": changed})
        assert response.status_code == 400, response.text
        message: str = response.json()["error"]
        return message

    n = int(np.prod(inputs["event_code"].shape))
    assert "from 0 to" in refused({"data": [-1] * n})
    assert "from 0 to" in refused({"data": [10**9] * n})
    assert "integers" in refused({"data": [0.5] * n})
    assert "integers" in refused({"data": [True] * n})
    assert "fit int64" in refused({"data": [10**30] * n})
    assert "fill the shape" in refused({"data": [0]})
    assert "shape" in refused({"shape": [-1, n]})
    assert "INT64" in refused({"datatype": "FP32"})
    assert "each once" in refused({"name": "cnv_panel"})
    assert client.post(f"/v2/models/{config.name}/versions/other/infer", json=asked).status_code == 404
    assert client.post("/v2/models/other/infer", json=asked).status_code == 404


def test_a_hook_gets_a_card(client: TestClient) -> None:
    (service,) = client.get("/cds-services").json()["services"]
    resources = [entry["resource"] for entry in _fhir()["entry"]]
    person = next(each for each in resources if each["resourceType"] == "Patient")
    rest = {"resourceType": "Bundle", "entry": [{"resource": each} for each in resources if each is not person]}
    asked = {
        "hook": "patient-view",
        "hookInstance": "1",
        "context": {"patientId": person["id"], "userId": "Practitioner/1"},
        "prefetch": {"patient": person, "observations": rest, "conditions": None},
    }
    (card,) = client.post(f"/cds-services/{service['id']}", json=asked).json()["cards"]
    assert len(card["summary"]) < 140
    assert card["indicator"] in ("info", "warning")
    assert card["source"]["label"]
    path = f"/cds-services/{service['id']}"
    assert client.post(path, json={**asked, "prefetch": {}}).status_code == 412
    assert client.post(path, json={**asked, "hook": "order-sign"}).status_code == 400
    assert client.post("/cds-services/other", json=asked).status_code == 404
