"""The service at work: who may ask, too many at once, faults, abstention, and a bundle that is exchanged."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ican_ml.bundle.read import CARD
from ican_ml.evaluation.applicability import Applicability, Block
from ican_ml.inputs.schema import InputSchema
from ican_ml.serving.audit_log import verify_audit_log
from ican_ml.serving.config import ServiceConfig
from ican_ml.serving.predictor import Predictor
from ican_ml.serving.service import create_app
from ican_ml.serving.tokens import new_token
from tests.bundle.resealed import resealed
from tests.serving.processes import until
from tests.serving.test_service import config, error_of, patient

__all__ = ["config", "patient"]
Json = dict[str, Any]


def test_where_the_model_abstains_it_says_why(
    config: ServiceConfig, sim_bundle: Path, sim_schema: InputSchema, tmp_path: Path, patient: Json
) -> None:
    k = 16
    block = Block(means=np.zeros((1, k)), precision=np.eye(k), centre=0.0, spread=1.0)
    strict = Applicability(
        modalities=tuple(m.name for m in sim_schema.modalities),
        blocks={"summary": block},
        has_record=True,
        threshold=-100.0,
        most_unknown=0.25,
        n_subjects=100,
    )
    resealed(sim_bundle, tmp_path / "bundle", applicability=strict.to_json())
    with TestClient(create_app(replace(config, bundle=tmp_path / "bundle"))) as client:
        judged = client.post("/v1/predict", json={"patient": patient}).json()["applicability"]
        assert judged["abstain"]
        assert "unlike the patients" in judged["reasons"][0]
        person = {"resourceType": "Patient", "id": "1"}
        asked = {"hook": "patient-view", "hookInstance": "1", "context": {}, "prefetch": {"patient": person}}
        (card,) = client.post("/cds-services/ican-treatments", json=asked).json()["cards"]
        assert card["indicator"] == "warning"
        assert not any(drug in json.dumps(card) for drug in sim_schema.drugs)
        assert 'ican_answers_total{abstained="True"} 2.0' in client.get("/metrics").text


def test_who_has_no_token_is_told_so(sim_bundle: Path, tmp_path: Path, patient: Json) -> None:
    tokens, log = tmp_path / "tokens", tmp_path / "audit.jsonl"
    token = new_token(tokens, "clinic")
    config = ServiceConfig(bundle=sim_bundle, host="0.0.0.0", tokens=tokens, audit_log=log)
    with TestClient(create_app(config)) as client:
        for path in ("/v1/predict", f"/v2/models/{config.name}/infer", "/cds-services/ican-treatments"):
            response = client.post(path, json={})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/model").status_code == 401
        for path in ("/", "/static/page.js", "/metrics", "/v2/health/ready", "/cds-services"):
            assert client.get(path).status_code == 200
        bearer = {"authorization": f"Bearer {token}"}
        assert client.post("/v1/predict", json={"patient": patient}, headers=bearer).status_code == 200
        assert client.post("/v1/predict", json={"patient": {"name": "N. N."}}, headers=bearer).status_code == 422
    n, _ = verify_audit_log(log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == n
    assert [line["event"] for line in lines] == ["start", *["request"] * 6, "stop"]
    assert [line["status"] for line in lines[1:-1]] == [401, 401, 401, 401, 200, 422]
    assert [line["caller"] for line in lines[1:-1]] == [None, None, None, None, "clinic", "clinic"]
    text = log.read_text()
    told = [event["code"] for event in patient["events"]] + list(patient["omics"]["mutation"]) + ["N. N.", token]
    assert not [each for each in told if f'"{each}"' in text]


def test_a_service_for_all_stays_on_this_machine(sim_bundle: Path) -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "service.example"):
        with pytest.raises(ValueError, match="tokens: expected a file"):
            ServiceConfig(bundle=sim_bundle, host=host)
    for host in ("127.0.0.1", "::1", "localhost"):
        ServiceConfig(bundle=sim_bundle, host=host)


@pytest.mark.parametrize("wrong", [{"parallel": 0}, {"seconds": 0.0}, {"timezone": "Mars"}, {"reload_every": -1.0}])
def test_nonsense_is_refused(sim_bundle: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ServiceConfig(bundle=sim_bundle, **wrong)


def test_too_many_at_once_are_told_to_come_back(config: ServiceConfig, patient: Json) -> None:
    app = create_app(replace(config, parallel=1, waiting=1, seconds=20))
    go, began = threading.Event(), threading.Event()
    with TestClient(app) as client, pytest.MonkeyPatch.context() as patched:
        predict = Predictor.predict

        def slow(self: Predictor, *given: Any, **more: Any) -> Any:
            began.set()
            assert go.wait(20)
            return predict(self, *given, **more)

        patched.setattr(Predictor, "predict", slow)
        found: list[int] = []

        def ask() -> None:
            found.append(client.post("/v1/predict", json={"patient": patient}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert began.wait(20)
        threads[1].start()
        until(lambda: "ican_predictions_inside 2.0" in client.get("/metrics").text)
        response = client.post("/v1/predict", json={"patient": patient})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert client.get("/v2/health/live").status_code == 200
        go.set()
        for thread in threads:
            thread.join()
        assert found == [200, 200]


def test_a_slow_answer_is_given_up(config: ServiceConfig, patient: Json) -> None:
    go = threading.Event()
    with TestClient(create_app(replace(config, seconds=0.05))) as client, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Predictor, "predict", lambda *_, **__: go.wait(20))
        response = client.post("/v1/predict", json={"patient": patient})
        go.set()
    assert response.status_code == 503
    assert error_of(response)["code"] == "timeout"


def test_a_fault_of_ours_says_nothing_of_the_patient(
    config: ServiceConfig, patient: Json, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("SECRET-CODE")

    with TestClient(create_app(config)) as client, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Predictor, "predict", broken)
        response = client.post("/v1/predict", json={"patient": patient})
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal"
    assert response.headers["x-request-id"] in caplog.text
    assert "SECRET-CODE" not in caplog.text + response.text


def test_a_new_bundle_is_taken_and_a_broken_one_is_not(
    config: ServiceConfig, sim_bundle: Path, tmp_path: Path, patient: Json
) -> None:
    folder = Path(shutil.copytree(sim_bundle, tmp_path / "bundle"))
    card = json.loads((sim_bundle / CARD).read_text())
    other = resealed(sim_bundle, tmp_path / "other", model_card={**card, "name": "next"})
    with TestClient(create_app(replace(config, bundle=folder, reload_every=0.01))) as client:
        first = client.get("/v1/model").json()["bundle"]
        (folder / "model.onnx").write_bytes(b"broken")
        (folder / "manifest.json").touch()
        until(lambda: "ican_bundles_refused 1.0" in client.get("/metrics").text)
        assert client.get("/v1/model").json()["bundle"] == first
        assert client.post("/v1/predict", json={"patient": patient}).status_code == 200
        shutil.rmtree(folder)
        other.rename(folder)
        until(lambda: client.get("/v1/model").json()["card"]["name"] == "next")
        assert (
            client.post("/v1/predict", json={"patient": patient}).json()["bundle"] == Predictor(folder).version != first
        )
