"""The patient page in a real browser: a clinician opens the example, asks, reads the answer; a mistake is told.

Needs Debian's ``chromium`` and ``chromium-driver``, which it speaks to by the W3C WebDriver protocol. With
ICAN_SCREENSHOT set to a file, the answered page is drawn into it: ``docs/page.png`` is made so.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.processes import WAIT, answering, free_port

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """A headless window."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1280,1500",
            "--force-color-profile=srgb",
        ]
        options = {"args": arguments, "binary": shutil.which("chromium")}
        asked = {
            "capabilities": {
                "alwaysMatch": {
                    "browserName": "chrome",
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
            }
        }
        self._base += f"/session/{self._call('POST', '/session', asked)['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, content, {"content-type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        """Go there."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def element(self, css: str) -> str:
        """The first that matches."""
        found: str = self._call("POST", "/element", {"using": "css selector", "value": css})[_ELEMENT]
        return found

    def click(self, css: str) -> None:
        """With the mouse."""
        self._call("POST", f"/element/{self.element(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """With the keyboard."""
        self._call("POST", f"/element/{self.element(css)}/value", {"text": text})

    def wait(self, script: str) -> Any:
        """Until a script returns something that is true."""
        end = time.monotonic() + WAIT
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
        return found

    def screenshot(self) -> bytes:
        """As PNG."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """What the browser's console says is wrong."""
        return [
            entry["message"]
            for entry in self._call("POST", "/se/log", {"type": "browser"})
            if entry["level"] == "SEVERE"
        ]

    def close(self) -> None:
        """End."""
        self._call("DELETE", "")


@pytest.fixture(scope="module")
def service(sim_bundle: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "ican_ml.cli", "serve", str(sim_bundle), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        answering(f"http://127.0.0.1:{port}/v2/health/ready")
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(timeout=WAIT) == 0, "the service ends when it is asked to"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        assert not os.environ.get("ICAN_REQUIRE_BROWSER"), "chromium and chromium-driver are not installed"
        pytest.skip("needs chromium and chromium-driver")
    port = free_port()
    with subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL) as process:
        answering(f"http://127.0.0.1:{port}/status")
        window = Browser(port)
        yield window
        window.close()
        process.terminate()


def _text(browser: Browser, css: str) -> str:
    found: str = browser.run(f"return document.querySelector({css!r}).innerText")
    return found


def test_a_clinician_opens_asks_and_reads(browser: Browser, service: str) -> None:
    browser.open(service)
    browser.wait("return document.getElementById('model').textContent.startsWith('Bundle')")
    browser.click("#example")
    browser.wait("return document.getElementById('patient').value.includes('events')")
    browser.click("#ask button[type=submit]")
    browser.wait("return !document.getElementById('result').hidden")
    assert "treatments ranked by predicted response" in _text(browser, "#status")
    assert browser.run("return document.activeElement.id") == "answer", "the keyboard goes to the answer"
    head = _text(browser, "#ranked thead")
    assert head.split("\t")[:5] == ["Rank", "Treatment", "response", "95% interval", "os, days"]
    with urllib.request.urlopen(f"{service}/v1/model") as found:
        drugs = json.load(found)["treatments"]
    assert browser.run("return document.querySelectorAll('#ranked tbody tr').length") == len(drugs)
    values = browser.run(
        "return [...document.querySelectorAll('#ranked tbody td.number:nth-child(3)')].map(td => +td.innerText)"
    )
    assert values == sorted(values, reverse=True)
    assert browser.run("return document.querySelectorAll('#drivers tbody tr').length") > 3
    assert browser.run("return document.querySelectorAll('#timeline circle').length") > 10
    assert browser.run("return document.querySelectorAll('#curves polyline').length") == 5
    assert browser.run("return document.querySelectorAll('#missing li').length") > 0
    if path := os.environ.get("ICAN_SCREENSHOT"):
        Path(path).write_bytes(browser.screenshot())
    assert browser.complaints() == []


def test_a_bundle_may_be_pasted_and_treatments_chosen(browser: Browser, service: str) -> None:
    person = {"resourceType": "Patient", "id": "1", "birthDate": "1960-01-01", "gender": "female"}
    document = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": person}]}
    browser.open(service)
    browser.type("#patient", json.dumps(document))
    browser.type("#treatments", "EGF-101\nRAF-101 + MEK-101\nNEVER-SEEN")
    browser.click("#ask button[type=submit]")
    browser.wait("return !document.getElementById('result').hidden")
    told = _text(browser, "#ranked tbody")
    assert "MEK-101 + RAF-101" in told
    assert "not seen in training: NEVER-SEEN" in told
    assert "not measured" in _text(browser, "#missing")


def test_a_mistake_is_told_and_nothing_is_lost(browser: Browser, service: str) -> None:
    browser.open(service)
    for given, told in (("{", "expected JSON"), ('{"omics": {"x": {}}}', "omics: expected modalities among")):
        browser.run("document.getElementById('clear').click()")
        browser.type("#patient", given)
        browser.click("#ask button[type=submit]")
        browser.wait("return !document.getElementById('refused').hidden")
        assert told in _text(browser, "#refused")
        assert browser.run("return document.getElementById('patient').value") == given
        assert browser.run("return document.getElementById('result').hidden")


def test_every_control_has_a_name_and_takes_the_keyboard(browser: Browser, service: str) -> None:
    browser.open(service)
    nameless = """
        return [...document.querySelectorAll('button, input, textarea, summary, a, [tabindex]')].filter((each) =>
          !each.innerText.trim() && !each.labels?.length
          && !each.getAttribute('aria-label') && !each.getAttribute('aria-labelledby')
        ).map((each) => each.outerHTML.slice(0, 80))"""
    assert browser.run(nameless) == []
    reached = []
    for _ in range(8):
        browser.type("body", "\ue004")
        reached.append(browser.run("return document.activeElement.id || document.activeElement.className"))
    assert {"skip", "example", "clear", "patient"} <= set(reached)
    assert browser.run("return document.documentElement.lang") == "en"
