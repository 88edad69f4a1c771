"""``ican serve``: the clinical service of a bundle."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ican_ml.serving.config import ServiceConfig

if TYPE_CHECKING:
    from ican_ml.commands import Commands

_GRACE = 30


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a bundle over HTTP: page, JSON, inference protocol, CDS Hooks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  ican serve runs/demo/bundle\n"
        "  ican serve --new-token clinic-a --tokens tokens.txt\n"
        "  ican serve runs/demo/bundle --host 0.0.0.0 --tokens tokens.txt --audit-log audit.jsonl "
        "--tls-certificate service.crt --tls-key service.key",
    )
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--host", metavar="ADDRESS", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="(%(default)s)")
    parser.add_argument("--name", help="of the model in the inference protocol (%(default)s)")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="who may ask: names and digests of bearer tokens")
    parser.add_argument("--new-token", metavar="NAME", help="add a caller to --tokens, print the token once, and end")
    parser.add_argument("--audit-log", type=Path, metavar="FILE", help="JSON lines of who asked; no health data")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    parser.add_argument("--timezone", metavar="ZONE", help="of FHIR times (%(default)s)")
    parser.add_argument("--assay", metavar="NAME", help="of variants in FHIR, where the model knows several")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where the network runs (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of one prediction (%(default)s)")
    parser.add_argument("--parallel", type=int, metavar="N", help="predictions at once (%(default)s)")
    parser.add_argument("--waiting", type=int, metavar="N", help="requests that may wait (%(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="longest answer (%(default)s)")
    parser.add_argument("--most-bytes", type=int, metavar="N", help="of a request (%(default)s)")
    parser.add_argument("--most-events", type=int, metavar="N", help="of a record (%(default)s)")
    parser.add_argument("--most-treatments", type=int, metavar="N", help="of a request (%(default)s)")
    parser.add_argument("--reload-every", type=float, metavar="S", help="look for a new bundle (%(default)s)")
    defaults = {field.name: field.default for field in fields(ServiceConfig) if field.name != "bundle"}
    parser.set_defaults(run=_run, extra="serve", **defaults)


def _run(parsed: argparse.Namespace) -> None:
    if parsed.new_token is not None:
        from ican_ml.serving.tokens import new_token

        if parsed.tokens is None:
            raise ValueError("--new-token: expected --tokens, the file to add it to, got none")
        print(new_token(parsed.tokens, parsed.new_token))
        return
    if parsed.bundle is None:
        raise ValueError("BUNDLE: expected the folder of a bundle, like runs/demo/bundle, got none")
    if (parsed.tls_certificate is None) != (parsed.tls_key is None):
        raise ValueError("--tls-certificate, --tls-key: expected both or neither, got one")
    for path in (parsed.tls_certificate, parsed.tls_key, parsed.tokens):
        if path is not None and not path.is_file():
            raise ValueError(f"{path.name}: expected a file, found none")
    import uvicorn

    from ican_ml.serving.service import create_app

    config = ServiceConfig(**{field.name: getattr(parsed, field.name) for field in fields(ServiceConfig)})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    app = create_app(config)
    scheme = "https" if parsed.tls_certificate else "http"
    print(f"bundle {parsed.bundle.name} proved; page and API at {scheme}://{parsed.host}:{parsed.port}/", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it has ended in good order
    uvicorn.run(
        app,
        host=parsed.host,
        port=parsed.port,
        ssl_certfile=parsed.tls_certificate,
        ssl_keyfile=parsed.tls_key,
        access_log=False,
        server_header=False,
        log_level="warning",
        timeout_graceful_shutdown=_GRACE,
    )
