"""Processes that a test talks to over HTTP."""

import socket
import ssl
import time
import urllib.request
from collections.abc import Callable

import pytest

WAIT = 60


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def until(happened: Callable[[], bool]) -> None:
    """Ask until it has happened; fail after a minute."""
    end = time.monotonic() + WAIT
    while not happened():
        if time.monotonic() > end:
            pytest.fail("it never happened")


def answering(url: str, context: ssl.SSLContext | None = None) -> bytes:
    """What is there, as soon as anything is."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=WAIT, context=context) as found:
                content: bytes = found.read()
        except OSError:
            continue
        return content
    pytest.fail(f"{url} does not answer")
