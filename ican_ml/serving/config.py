"""How a service runs, checked before it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ican_ml.serving.predictor import Device


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
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # slow to start, and `ican --help` needs none

        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"timezone: expected a name like Europe/Helsinki, got {self.timezone!r}") from None
        if self.tokens is None and not _is_loopback(self.host):
            raise ValueError(
                f"tokens: expected a file of tokens where the service listens beyond this machine ({self.host}); make "
                "one with `ican serve --new-token NAME --tokens FILE`"
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
