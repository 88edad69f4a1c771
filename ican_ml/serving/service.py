"""The clinical service (``ican serve``): HTTP in front of one bundle. No torch, nothing stored, nobody called.

    GET  /                             the patient page                 POST /v1/predict         rank treatments
    GET  /v1/model                     card, treatments, covariates     GET  /v1/example         an invented patient
    GET  /v2, /v2/models/{name} ...    Open Inference Protocol 2        GET  /metrics            Prometheus
    GET  /cds-services, POST ...       CDS Hooks 2.0, patient-view      GET  /openapi.json       all of it, described

Every request is checked at the door: token, size, fields, values. What is wrong with it comes back as
``{"error": {"code", "message", "field"}}``; whatever the request, an answer is never NaN and never a traceback. No log
holds health data: see :mod:`ican_ml.serving.audit_log`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.staticfiles import StaticFiles

import ican_ml
from ican_ml.bundle.read import BundleError
from ican_ml.cohort.fhir_values import FhirError
from ican_ml.inputs.patient import PatientError
from ican_ml.serving import cds_hooks, inference
from ican_ml.serving.audit_log import AuditLog
from ican_ml.serving.config import ServiceConfig
from ican_ml.serving.document import answer_document
from ican_ml.serving.errors import ServiceError, field_of, invalid
from ican_ml.serving.example import example_patient
from ican_ml.serving.guard import (
    ERROR,
    ERRORS,
    Gate,
    Guard,
    Metrics,
    body_of,
    object_of,
    on_error,
    on_not_allowed,
    on_not_found,
)
from ican_ml.serving.loaded import Loaded
from ican_ml.serving.predictor import Answer, Predictor
from ican_ml.serving.tokens import read_tokens

_log = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page"
_PROVE_EVERY = 60.0


class PredictRequest(BaseModel):
    """``POST /v1/predict``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    patient: dict[str, Any] | None = Field(None, description="a plain patient: see ican_ml.inputs.patient")
    fhir: dict[str, Any] | None = Field(None, description="instead of it: a FHIR R4 Bundle of one patient")
    prediction_time: str | None = Field(None, description="with fhir: local wall time, like 2024-05-02T08:15:00")
    assay: str | None = Field(None, description="with fhir: the assay of its variants; default: the service's own")
    treatments: list[list[str]] | None = Field(
        None, description="regimens, each a list of drugs; null: every drug known"
    )
    explain: bool = Field(False, description="also tell what drove the first answer")
    echo: bool = Field(False, description="also return the plain patient as it was understood")


def create_app(config: ServiceConfig) -> FastAPI:
    """The service as an ASGI application.

    Raises
    ------
    ValueError
        If the bundle, the tokens or the audit log cannot be used.
    """
    tokens = read_tokens(config.tokens) if config.tokens is not None else None
    loaded = Loaded(
        folder=config.bundle,
        open=lambda folder: Predictor(folder, threads=config.threads, device=config.device),
    )
    metrics = Metrics()
    gate = Gate(parallel=config.parallel, waiting=config.waiting, seconds=config.seconds, inside=metrics.inside)
    audit = AuditLog(config.audit_log) if config.audit_log is not None else None
    service = _Service(config=config, loaded=loaded, metrics=metrics, gate=gate, audit=audit)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.started()
        watching = asyncio.create_task(service.watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            service.stopped()

    app = FastAPI(
        title="ican_ml",
        version=ican_ml.__version__,
        description="Ranks treatments for one patient. Research software, not a medical device.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, tokens=tokens, most_bytes=config.most_bytes, metrics=metrics, audit=audit)
    app.add_exception_handler(ServiceError, on_error)
    app.add_exception_handler(404, on_not_found)
    app.add_exception_handler(405, on_not_allowed)
    _add_routes(app, service)
    app.mount("/static", StaticFiles(directory=_PAGE), name="static")
    return app


@dataclass(kw_only=True, slots=True)
class _Service:
    config: ServiceConfig
    loaded: Loaded
    metrics: Metrics
    gate: Gate
    audit: AuditLog | None
    ready: bool = True

    @property
    def predictor(self) -> Predictor:
        return self.loaded.predictor

    def started(self) -> None:
        self._tell_bundle("start")

    def stopped(self) -> None:
        self.ready = False
        self.gate.close()
        if self.audit is not None:
            self.audit.write("stop", bundle=self.predictor.version)
            _log.info("audit log ends with %s", self.audit.last)
            self.audit.close()

    async def watch(self) -> None:
        """Take new bundles, prove the one in use now and then, and bring the audit log to the disk."""
        since_proof = 0.0
        while True:
            await asyncio.sleep(self.config.reload_every)
            since_proof += self.config.reload_every
            if await asyncio.to_thread(self.loaded.refresh):
                self.ready, since_proof = True, 0.0
                self._tell_bundle("bundle")
            self.metrics.refused.set(self.loaded.refused)
            if since_proof >= _PROVE_EVERY:
                since_proof = 0.0
                self.ready = await asyncio.to_thread(self._proved)
            if self.audit is not None:
                await asyncio.to_thread(self.audit.flush)

    def _proved(self) -> bool:
        try:
            self.predictor.prove()
        except BundleError as error:
            _log.error("%s", error)
            return False
        return True

    def _tell_bundle(self, event: str) -> None:
        self.metrics.bundle.clear()
        self.metrics.bundle.labels(self.predictor.version).set(self.loaded.since)
        if self.audit is not None:
            self.audit.write(event, bundle=self.predictor.version, sha256_of_bundle=self.predictor.digest)

    def predict(self, asked: PredictRequest, told: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``/v1/predict``; ``told`` is what the audit log hears."""
        predictor = self.predictor
        told["bundle"] = predictor.version
        if (asked.patient is None) == (asked.fhir is None):
            raise invalid(
                "patient", "patient: expected either a plain patient or fhir, a Bundle; not both, not neither"
            )
        if asked.fhir is not None:
            patient = self.patient_of(predictor, asked.fhir, asked.prediction_time, asked.assay)
        else:
            assert asked.patient is not None
            patient = asked.patient
            if asked.prediction_time is not None or asked.assay is not None:
                raise invalid("prediction_time", "prediction_time, assay: expected with fhir only; a patient says them")
        answer = self.answer(predictor, patient, asked.treatments, told, explain=asked.explain)
        document = answer_document(predictor, answer)
        return {**document, "patient": patient} if asked.echo else document

    def cards(self, document: Mapping[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        """The answer to a hook; ``told`` is what the audit log hears."""
        predictor = self.predictor
        told["bundle"] = predictor.version
        moment = cds_hooks.now(self.config.timezone)
        patient = self.patient_of(predictor, cds_hooks.bundle_of(document), moment, None)
        return cds_hooks.cards_document(predictor, self.answer(predictor, patient, None, told))

    def answer(
        self,
        predictor: Predictor,
        patient: Mapping[str, Any],
        treatments: list[list[str]] | None,
        told: dict[str, Any],
        *,
        explain: bool = False,
    ) -> Answer:
        """What the predictor says, counted and told."""
        events = patient.get("events")
        if isinstance(events, list) and len(events) > self.config.most_events:
            raise invalid("events", f"events: expected at most {self.config.most_events}, got {len(events)}")
        regimens = self.regimens(predictor, treatments)
        told["treatments"] = len(regimens)
        try:
            answer = predictor.predict(patient, regimens, explain=explain)
        except PatientError as error:
            raise invalid(field_of(error), str(error)) from None
        told["abstained"] = answer.applicability.abstain if answer.applicability is not None else None
        self.metrics.answers.labels(str(told["abstained"])).inc()
        return answer

    def patient_of(
        self, predictor: Predictor, fhir: Mapping[str, Any], moment: str | None, assay: str | None
    ) -> dict[str, Any]:
        """The plain patient of a FHIR Bundle."""
        try:
            return predictor.patient_of(
                fhir, timezone=self.config.timezone, prediction_time=moment, assay=assay or self.config.assay
            )
        except (FhirError, PatientError) as error:
            raise invalid(f"fhir.{field_of(error)}", str(error)) from None

    def regimens(self, predictor: Predictor, given: list[list[str]] | None) -> list[tuple[str, ...]]:
        """What is asked about: by default every drug that the model knows."""
        most = self.config.most_treatments
        if given is None:
            every: list[tuple[str, ...]] = [(drug,) for drug in predictor.schema.drugs] or [()]
            return every[:most]
        regimens = list(dict.fromkeys(tuple(regimen) for regimen in given))
        if not 1 <= len(regimens) <= most:
            raise invalid("treatments", f"treatments: expected 1 to {most} regimens, got {len(regimens)}")
        return regimens


def _add_routes(app: FastAPI, service: _Service) -> None:
    config = service.config
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
    asked = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": PredictRequest.model_json_schema()}},
        }
    }

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((_PAGE / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/model", responses=ERRORS)
    async def model() -> dict[str, Any]:
        predictor = service.predictor
        schema = predictor.schema
        return {
            "bundle": predictor.version,
            "sha256": predictor.digest,
            "card": predictor.card,
            "tasks": [{"name": task.name, "kind": task.kind} for task in schema.tasks],
            "treatments": list(schema.drugs),
            "modalities": {m.name: {"kind": m.kind, "assays": list(m.panels)} for m in schema.modalities},
            "covariates": {c.name: c.categories for c in schema.covariates},
        }

    @app.get("/v1/example", responses=ERRORS)
    async def example() -> dict[str, Any]:
        predictor = service.predictor
        return await service.gate.run(lambda: example_patient(predictor))

    @app.post("/v1/predict", openapi_extra=asked, responses=ERRORS)
    async def predict(request: Request) -> JSONResponse:
        told = request.state.audit
        told["asked"] = "treatments"
        content = await body_of(request)
        try:
            question = PredictRequest.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "body"
            raise invalid(field, f"{field}: expected a valid request, got {first['msg']}") from None
        return JSONResponse(await service.gate.run(lambda: service.predict(question, told)))

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return inference.server_document()

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses={503: ERROR})
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2/models/{name}", responses=ERRORS)
    @app.get("/v2/models/{name}/versions/{version}", responses=ERRORS)
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return inference.model_document(config.name, _model(service, name, version))

    @app.get("/v2/models/{name}/ready", responses=ERRORS)
    @app.get("/v2/models/{name}/versions/{version}/ready", responses=ERRORS)
    async def model_ready(name: str, version: str | None = None) -> JSONResponse:
        _model(service, name, version)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    @app.post("/v2/models/{name}/infer", openapi_extra=body, responses=ERRORS)
    @app.post("/v2/models/{name}/versions/{version}/infer", openapi_extra=body, responses=ERRORS)
    async def infer(request: Request, name: str, version: str | None = None) -> JSONResponse:
        predictor = _model(service, name, version)
        request.state.audit.update(asked="tensors", bundle=predictor.version)
        document = await object_of(request)
        return JSONResponse(await service.gate.run(lambda: inference.infer(config.name, predictor, document)))

    @app.get("/cds-services")
    async def cds_services() -> dict[str, Any]:
        return cds_hooks.services_document(service.predictor)

    @app.post("/cds-services/{service_id}", openapi_extra=body, responses={**ERRORS, 412: ERROR})
    async def cds_service(request: Request, service_id: str) -> JSONResponse:
        if service_id != cds_hooks.SERVICE:
            raise ServiceError(404, "not_found", f"service: expected {cds_hooks.SERVICE!r}, got {service_id!r:.80}")
        told = request.state.audit
        told["asked"] = cds_hooks.SERVICE
        document = await object_of(request)
        return JSONResponse(await service.gate.run(lambda: service.cards(document, told)))


def _model(service: _Service, name: str, version: str | None) -> Predictor:
    predictor = service.predictor
    if name != service.config.name or version not in (None, predictor.version):
        raise ServiceError(404, "not_found", f"model: expected {service.config.name!r}, version {predictor.version}")
    return predictor
