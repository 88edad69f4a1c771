"""What stands between the network and a handler: who may ask, how much, how many at once; metrics and audit log.

A request passes :class:`Guard`, which knows no health data: it checks the token, cuts a body that is too large, gives
every answer its id and headers, counts it, and writes it to the audit log before its first byte leaves. A prediction
then passes :class:`Gate`: some run at once, some wait, the rest are told to come back (429).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ican_ml.serving.audit_log import AuditLog
from ican_ml.serving.errors import ServiceError
from ican_ml.serving.tokens import caller_of

T = TypeVar("T")
_log = logging.getLogger(__name__)
_OPEN = ("/", "/metrics", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/cds-services")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


def error_response(error: ServiceError) -> JSONResponse:
    """``{"error": {"code", "message", "field"}}``."""
    headers = {"retry-after": "1"} if error.status in (429, 503) else {}
    headers |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
    body = {"error": {"code": error.code, "message": error.message, "field": error.field}}
    return JSONResponse(body, error.status, headers)


class Metrics:
    """Prometheus metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ican_requests", "Requests answered", ["endpoint", "status"], registry=self.registry)
        self.seconds = Histogram(
            "ican_request_seconds", "From request to answer", ["endpoint"], buckets=_BUCKETS, registry=self.registry
        )
        self.inside = Gauge("ican_predictions_inside", "Predictions that run or wait", registry=self.registry)
        self.answers = Counter("ican_answers", "Patients answered", ["abstained"], registry=self.registry)
        self.bundle = Gauge(
            "ican_bundle_since_seconds", "When the bundle was taken", ["version"], registry=self.registry
        )
        self.refused = Gauge("ican_bundles_refused", "New bundles that could not be used", registry=self.registry)


class Gate:
    """Runs predictions on threads of its own: ``parallel`` at once while ``waiting`` more wait.

    Raises
    ------
    ServiceError
        429 where too many wait already; 503 where an answer took more than ``seconds``.
    """

    def __init__(self, *, parallel: int, waiting: int, seconds: float, inside: Gauge) -> None:
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="predict")
        self._most = parallel + waiting
        self._seconds = seconds
        self._now = 0
        self._gauge = inside

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, or raises."""
        if self._now >= self._most:
            raise ServiceError(429, "busy", f"expected at most {self._most} requests at once; try again in a second")
        self._now += 1
        self._gauge.set(self._now)
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._pool, work), self._seconds)
        except TimeoutError:
            raise ServiceError(503, "timeout", f"expected an answer within {self._seconds:g} s, got none") from None
        finally:
            self._now -= 1
            self._gauge.set(self._now)

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Guard:
    """ASGI middleware, see the module docstring. What a handler puts into ``request.state.audit`` is logged."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Mapping[str, str] | None,
        most_bytes: int,
        metrics: Metrics,
        audit: AuditLog | None,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self.most_bytes = most_bytes
        self._metrics = metrics
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, receive, send)
        state = scope.setdefault("state", {})
        state["audit"], state["request_id"] = exchange.audit, exchange.request_id
        headers = Headers(scope=scope)
        path = scope["path"]
        try:
            if self._tokens is not None and path not in _OPEN and not path.startswith("/static/"):
                exchange.caller = caller_of(self._tokens, headers.get("authorization"))
                if exchange.caller is None:
                    raise ServiceError(
                        401, "unauthorised", "expected 'Authorization: Bearer' and a token of this service"
                    )
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > self.most_bytes:
                raise self.too_large()
            await self._app(scope, exchange.receive, exchange.send)
        except ServiceError as error:
            if not exchange.started:
                await error_response(error)(scope, receive, exchange.send)
        except Exception as error:
            _log.error("request %s failed: %s", exchange.request_id, type(error).__name__)  # a message may hold data
            if not exchange.started:
                wrong = ServiceError(
                    500, "internal", f"something went wrong; the log has request {exchange.request_id}"
                )
                await error_response(wrong)(scope, receive, exchange.send)

    def too_large(self) -> ServiceError:
        """A body that is too large."""
        return ServiceError(413, "too_large", f"expected a body of at most {self.most_bytes} bytes, got more")

    def answered(self, endpoint: str, status: int, seconds: float, exchange: _Exchange) -> None:
        """Count one answer, and log it if it asked about a patient or was turned away."""
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.seconds.labels(endpoint).observe(seconds)
        if self._audit is not None and (exchange.audit or status == 401):
            self._audit.write(
                "request",
                request_id=exchange.request_id,
                caller=exchange.caller,
                endpoint=endpoint,
                status=status,
                milliseconds=round(seconds * 1000, 1),
                **exchange.audit,
            )


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._began = time.monotonic()
        self._bytes = 0
        self.request_id = uuid.uuid4().hex
        self.caller: str | None = None
        self.audit: MutableMapping[str, str | int | bool | None] = {}
        self.started = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._guard.most_bytes:
            raise self._guard.too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in {**_HEADERS, "x-request-id": self.request_id}.items():
                headers[name] = value
            route = self._scope.get("route")
            endpoint = str(getattr(route, "path", "other"))
            self._guard.answered(endpoint, message["status"], time.monotonic() - self._began, self)
        await self._send(message)


ERROR: dict[str, Any] = {
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
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 405, 413, 415, 422, 429, 503), ERROR)


async def on_error(request: Request, error: Exception) -> Response:
    """Handler of :class:`ServiceError`."""
    assert isinstance(error, ServiceError)
    if request.url.path.startswith("/v2"):  # the protocol's own form of an error
        return JSONResponse({"error": error.message}, error.status)
    return error_response(error)


async def on_not_found(request: Request, _: Exception) -> Response:
    """Handler of 404."""
    return await on_error(request, ServiceError(404, "not_found", "path: expected one of /openapi.json, got another"))


async def on_not_allowed(request: Request, error: Exception) -> Response:
    """Handler of 405."""
    response = await on_error(request, ServiceError(405, "not_allowed", "method: expected another for this path"))
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def body_of(request: Request) -> bytes:
    """The bytes of a JSON request."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/fhir+json"):
        raise ServiceError(415, "unsupported", f"content-type: expected application/json, got {kind!r:.80}")
    return await request.body()


class _Object(BaseModel):
    """Any JSON object; pydantic's parser refuses what is nested without end."""

    model_config = ConfigDict(extra="allow", strict=True)


async def object_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request."""
    try:
        return dict(_Object.model_validate_json(await body_of(request)).model_extra or {})
    except ValidationError as error:
        raise ServiceError(
            400, "invalid_json", f"body: expected a JSON object, got {error.errors()[0]['msg']}"
        ) from None
