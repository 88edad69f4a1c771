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
import ipaddress
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.staticfiles import StaticFiles

import ican_ml
from ican_ml.bundle.read import BundleError
from ican_ml.cohort.fhir import read_bundle
from ican_ml.cohort.fhir_values import FhirError
from ican_ml.inputs.patient import PatientError
from ican_ml.serving import cds_hooks, inference
from ican_ml.serving.audit_log import AuditLog
from ican_ml.serving.document import answer_document
from ican_ml.serving.errors import ServiceError
from ican_ml.serving.example import example_patient
from ican_ml.serving.guard import Gate, Guard, Metrics, error_response
from ican_ml.serving.loaded import Loaded
from ican_ml.serving.predictor import Device, Predictor
from ican_ml.serving.tokens import read_tokens

_log = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page"
_PROVE_EVERY = 60.0
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """How a service runs.

    Attributes
    ----------
    bundle
        Folder of the bundle; one that is put in its place is taken without a pause.
    name
        Of the model, in the paths of the inference protocol.
    tokens
        File of who may ask (:mod:`ican_ml.serving.tokens`); None: anyone, which only a loopback ``host`` allows.
    audit_log
        File of who asked; None: none is kept.
    timezone, assay
        Of FHIR Bundles: whose wall time instants become, and the assay of variants where the model knows several.
    device, threads
        Where the network runs, and on how many threads one prediction does.
    parallel, waiting
        Predictions that run at once, and that wait; more are told to come back.
    seconds, most_bytes, most_events, most_treatments
        What one request may take.
    reload_every
        Seconds between two looks at the bundle's folder.
    """

    bundle: Path
    host: str = "127.0.0.1"
    name: str = "ican"
    tokens: Path | None = None
    audit_log: Path | None = None
    timezone: str = "Europe/Helsinki"
    assay: str | None = None
    device: Device = "cpu"
    threads: int = 1
    parallel: int = 2
    waiting: int = 64
    seconds: float = 30.0
    most_bytes: int = 8 << 20
    most_events: int = 50_000
    most_treatments: int = 256
    reload_every: float = 5.0

    def __post_init__(self) -> None:
        for name in ("threads", "parallel", "waiting", "seconds", "most_bytes", "most_events", "most_treatments"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name.replace('_', '-')}: expected more than 0, got {getattr(self, name):g}")
        if not self.reload_every > 0:
            raise ValueError(f"reload-every: expected more than 0 seconds, got {self.reload_every:g}")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"timezone: expected a name like Europe/Helsinki, got {self.timezone!r}") from None
        if self.tokens is None and not _is_loopback(self.host):
            raise ValueError(
                f"tokens: expected a file of tokens where the service listens beyond this machine ({self.host}); make "
                "one with `ican serve --new-token NAME --tokens FILE`"
            )


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
    app.add_exception_handler(ServiceError, _error)
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(405, _not_allowed)
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
            raise _invalid(
                "patient", "patient: expected either a plain patient or fhir, a Bundle; not both, not neither"
            )
        if asked.fhir is not None:
            patient = self.patient_of(predictor, asked.fhir, asked.prediction_time, asked.assay)
        else:
            assert asked.patient is not None
            patient = asked.patient
            if asked.prediction_time is not None or asked.assay is not None:
                raise _invalid(
                    "prediction_time", "prediction_time, assay: expected with fhir only; a patient says them"
                )
        self.check_events(patient)
        regimens = self.regimens(predictor, asked.treatments)
        told["treatments"] = len(regimens)
        try:
            answer = predictor.predict(patient, regimens, explain=asked.explain)
        except PatientError as error:
            raise _invalid(_field_of(error), str(error)) from None
        told["abstained"] = answer.applicability.abstain if answer.applicability is not None else None
        self.metrics.answers.labels(str(told["abstained"])).inc()
        document = answer_document(predictor, answer)
        return {**document, "patient": patient} if asked.echo else document

    def patient_of(
        self, predictor: Predictor, fhir: Mapping[str, Any], moment: str | None, assay: str | None
    ) -> dict[str, Any]:
        """The plain patient of a FHIR Bundle, without modalities that the model does not take."""
        try:
            patient = read_bundle(dict(fhir), timezone=self.config.timezone, prediction_time=moment)
        except (FhirError, PatientError) as error:
            raise _invalid(f"fhir.{_field_of(error)}", str(error)) from None
        known = {modality.name for modality in predictor.schema.modalities}
        omics = {name: values for name, values in patient.get("omics", {}).items() if name in known}
        named = assay or self.config.assay
        return {**patient, "omics": omics, "assays": dict.fromkeys(omics, named) if named else {}}

    def check_events(self, patient: Mapping[str, Any]) -> None:
        """Refuse a record that is too long."""
        events = patient.get("events")
        if isinstance(events, list) and len(events) > self.config.most_events:
            raise _invalid("events", f"events: expected at most {self.config.most_events}, got {len(events)}")

    def regimens(self, predictor: Predictor, given: list[list[str]] | None) -> list[tuple[str, ...]]:
        """What is asked about: by default every drug that the model knows."""
        every: list[tuple[str, ...]] = [(drug,) for drug in predictor.schema.drugs] or [()]
        regimens = every if given is None else list(dict.fromkeys(tuple(regimen) for regimen in given))
        most = self.config.most_treatments
        if given is None:
            return regimens[:most]
        if not 1 <= len(regimens) <= most:
            raise _invalid("treatments", f"treatments: expected 1 to {most} regimens, got {len(regimens)}")
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

    @app.get("/v1/model", responses=_ERRORS)
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

    @app.get("/v1/example", responses=_ERRORS)
    async def example() -> dict[str, Any]:
        predictor = service.predictor
        return await service.gate.run(lambda: example_patient(predictor))

    @app.post("/v1/predict", openapi_extra=asked, responses=_ERRORS)
    async def predict(request: Request) -> JSONResponse:
        told = request.state.audit
        told["asked"] = "treatments"
        content = await _body(request)
        try:
            question = PredictRequest.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "body"
            raise _invalid(field, f"{field}: expected a valid request, got {first['msg']}") from None
        return JSONResponse(await service.gate.run(lambda: service.predict(question, told)))

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return inference.server_document()

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses={503: _ERROR})
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2/models/{name}", responses=_ERRORS)
    @app.get("/v2/models/{name}/versions/{version}", responses=_ERRORS)
    async def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return inference.model_document(config.name, _model(service, name, version))

    @app.get("/v2/models/{name}/ready", responses=_ERRORS)
    @app.get("/v2/models/{name}/versions/{version}/ready", responses=_ERRORS)
    async def model_ready(name: str, version: str | None = None) -> JSONResponse:
        _model(service, name, version)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    @app.post("/v2/models/{name}/infer", openapi_extra=body, responses=_ERRORS)
    @app.post("/v2/models/{name}/versions/{version}/infer", openapi_extra=body, responses=_ERRORS)
    async def infer(request: Request, name: str, version: str | None = None) -> JSONResponse:
        predictor = _model(service, name, version)
        request.state.audit.update(asked="tensors", bundle=predictor.version)
        document = await _object(request)
        return JSONResponse(await service.gate.run(lambda: inference.infer(config.name, predictor, document)))

    @app.get("/cds-services")
    async def cds_services() -> dict[str, Any]:
        return cds_hooks.services_document(service.predictor)

    @app.post("/cds-services/{service_id}", openapi_extra=body, responses={**_ERRORS, 412: _ERROR})
    async def cds_service(request: Request, service_id: str) -> JSONResponse:
        if service_id != cds_hooks.SERVICE:
            raise ServiceError(404, "not_found", f"service: expected {cds_hooks.SERVICE!r}, got {service_id!r:.80}")
        told = request.state.audit
        told["asked"] = cds_hooks.SERVICE
        document = await _object(request)
        return JSONResponse(await service.gate.run(lambda: _cards(service, document, told)))


def _cards(service: _Service, document: Mapping[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    predictor = service.predictor
    told["bundle"] = predictor.version
    moment = cds_hooks.now(service.config.timezone)
    patient = service.patient_of(predictor, cds_hooks.bundle_of(document), moment, None)
    service.check_events(patient)
    try:
        answer = predictor.predict(patient, service.regimens(predictor, None))
    except PatientError as error:
        raise _invalid(_field_of(error), str(error)) from None
    told["abstained"] = answer.applicability.abstain if answer.applicability is not None else None
    service.metrics.answers.labels(str(told["abstained"])).inc()
    return cds_hooks.cards_document(predictor, answer)


def _model(service: _Service, name: str, version: str | None) -> Predictor:
    predictor = service.predictor
    if name != service.config.name or version not in (None, predictor.version):
        raise ServiceError(404, "not_found", f"model: expected {service.config.name!r}, version {predictor.version}")
    return predictor


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/fhir+json"):
        raise ServiceError(415, "unsupported", f"content-type: expected application/json, got {kind!r:.80}")
    return await request.body()


class _Object(BaseModel):
    """Any JSON object; pydantic's parser refuses what is nested without end."""

    model_config = ConfigDict(extra="allow", strict=True)


async def _object(request: Request) -> dict[str, Any]:
    try:
        return dict(_Object.model_validate_json(await _body(request)).model_extra or {})
    except ValidationError as error:
        raise ServiceError(
            400, "invalid_json", f"body: expected a JSON object, got {error.errors()[0]['msg']}"
        ) from None


def _invalid(field: str, message: str) -> ServiceError:
    return ServiceError(422, "invalid_request", message, field)


def _field_of(error: ValueError) -> str:
    """The field that a message begins with."""
    return str(error).partition(":")[0].partition(",")[0]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_ERROR: dict[str, Any] = {
    "description": "what was expected and what came",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {}},
            }
        }
    },
}
_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 405, 413, 415, 422, 429, 503), _ERROR)


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    if request.url.path.startswith("/v2"):  # the protocol's own form of an error
        return JSONResponse({"error": error.message}, error.status)
    return error_response(error)


async def _not_found(request: Request, _: Exception) -> Response:
    return await _error(request, ServiceError(404, "not_found", "path: expected one of /openapi.json, got another"))


async def _not_allowed(request: Request, error: Exception) -> Response:
    response = await _error(request, ServiceError(405, "not_allowed", "method: expected another for this path"))
    response.headers.update(getattr(error, "headers", None) or {})
    return response
