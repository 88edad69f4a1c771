"""The service under load, on the demo's bundle: latency, failures, memory, a bundle swapped and a kill in mid-flight.

    python benchmarks/service.py            some ten minutes on two cores (and the demo's training, if there is none)
    python benchmarks/service.py --check    exit code 1, and each figure that falls short by name

Requests ask ``/v1/predict`` to rank every drug for held-out patients of the simulated cohort, from 1, 8 and 64 clients
with a connection of their own, which share the machine with the service. Beside them: the predictor without HTTP
against torch on the same patients and one thread, and the cost of 50 treatments against one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, Record, composed, train

REQUESTS, CLIENTS, PATIENTS = 20_000, (1, 8, 64), 200
REPEATS = 40
MOST_START, MOST_GROWTH, MOST_FOR_FIFTY, MOST_AGAINST_TORCH = 3.0, 50e6, 2.0, 1.2
ARGUMENTS = ("experiment=demo", "name=service", "evaluation.baselines=false", "evaluation.permutations=0")
BUNDLE = ROOT / "runs" / "service" / "bundle"


def main() -> None:
    """Measure what is not on file, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    record = Record("service", libraries=("fastapi", "uvicorn"))
    parts = {"load": load, "swap": swap, "kill": kill, "predictor": predictor_alone}
    if set(parts) - set(record.parts):
        train(*ARGUMENTS)
        patients = patients_of_demo()
        for name, measure in parts.items():
            if name not in record.parts:
                record.add(name, measure(patients))
    print(json.dumps(record.parts, indent=1))
    short = faults(record.parts)
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def faults(parts: dict[str, Any]) -> list[str]:
    """What falls short, in words."""
    short = []
    loaded, alone = parts["load"], parts["predictor"]
    failed = sum(each["failed"] for each in loaded["clients"].values())
    for value, most, what in (
        (loaded["seconds_to_first_answer"], MOST_START, "seconds from start to first answer"),
        (loaded["growth_bytes"], MOST_GROWTH, "bytes that memory grew by after the first thousand requests"),
        (failed, 0, "requests that failed"),
        (parts["swap"]["failed"], 0, "requests that failed while the bundle was swapped"),
        (parts["kill"]["broken"], 0, "breaks in the audit chain after a kill"),
        (alone["fifty_treatments_to_one"], MOST_FOR_FIFTY, "cost of 50 treatments to one"),
        (alone["predictor_to_torch"], MOST_AGAINST_TORCH, "predictor to torch eager"),
    ):
        if value > most:
            short.append(f"{what}: {value:g}, expected at most {most:g}")
    if parts["swap"]["versions"] != 2:
        short.append(f"versions seen over a swap: {parts['swap']['versions']}, expected 2")
    return short


class Service:
    """``ican serve`` in a process of its own."""

    def __init__(self, bundle: Path, *more: str) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        command = [sys.executable, "-m", "ican_ml.cli", "serve", str(bundle), "--port", str(self.port), *more]
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not self.is_ready():
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return Client(self.port).get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it."""
        self.process.send_signal(how)
        self.process.wait()


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        return response.status, response.read()

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        self._connection.request("POST", path, body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        return response.status, response.read()


@cache
def patients_of_demo() -> list[bytes]:
    """Requests about held-out patients of the demo, to rank every drug."""
    from ican_ml.inputs.assemble import as_dictionary, assemble
    from ican_ml.prepare import prepare

    os.chdir(ROOT)
    prepared = prepare(composed(*ARGUMENTS))
    rows = next(iter(prepared.splits.values())).held_out[:PATIENTS]
    states = assemble(prepared.cohort, prepared.store, prepared.episodes[rows], ["indication", "line"])
    found = [as_dictionary(prepared.cohort, prepared.store, states, row) for row in range(len(states.subject_id))]
    return [json.dumps({"patient": patient}).encode() for patient in found]


def _pressed(port: int, patients: list[bytes], clients: int, requests: int) -> tuple[list[float], int, set[str]]:
    """Seconds of each answer, how many failed, and the bundles that answered."""
    seconds: list[float] = []
    failed, versions, lock = [0], set(), threading.Lock()
    turns = iter(range(requests))

    def press() -> None:
        client = Client(port)
        own: list[float] = []
        for turn in turns:
            began = time.perf_counter()
            try:
                status, body = client.post("/v1/predict", patients[turn % len(patients)])
            except (OSError, http.client.HTTPException):
                status, body = 0, b""
                client = Client(port)
            own.append(time.perf_counter() - began)
            with lock:
                if status == 200:
                    versions.add(json.loads(body)["bundle"])
                else:
                    failed[0] += 1
        with lock:
            seconds.extend(own)

    threads = [threading.Thread(target=press) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, failed[0], versions


def load(patients: list[bytes]) -> dict[str, Any]:
    """Latency by number of clients, from a cold start; failures; growth of memory."""
    service = Service(BUNDLE)
    status, _ = Client(service.port).post("/v1/predict", patients[0])
    found: dict[str, Any] = {"seconds_to_first_answer": time.monotonic() - service.began, "clients": {}}
    assert status == 200
    _pressed(service.port, patients, 8, 1000)
    before = service.memory()
    for clients in CLIENTS:
        requests = REQUESTS // len(CLIENTS) + 1
        began = time.monotonic()
        seconds, failed, _ = _pressed(service.port, patients, clients, requests)
        p50, p95, p99 = (float(np.quantile(seconds, q)) * 1000 for q in (0.5, 0.95, 0.99))
        rate = requests / (time.monotonic() - began)
        found["clients"][str(clients)] = {
            "requests": requests,
            "failed": failed,
            "requests_per_second": rate,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
        }
    found["growth_bytes"] = service.memory() - before
    found["resident_bytes"] = service.memory()
    service.stop()
    return found


def swap(patients: list[bytes]) -> dict[str, Any]:
    """Another version of the bundle is put in place while 8 clients ask."""
    from ican_ml.bundle.card import ModelCard
    from ican_ml.bundle.read import CARD
    from ican_ml.release import export_fitted, load_fitted

    folder, other = ROOT / "runs" / "service" / "served", ROOT / "runs" / "service" / "next"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BUNDLE, folder)
    card = ModelCard.from_json(json.loads((BUNDLE / CARD).read_text()))
    export_fitted(*load_fitted(_fit()), _fit(), other, replace(card, name="next"))
    service = Service(folder, "--reload-every", "0.2")

    def exchange() -> None:
        time.sleep(2)
        folder.rename(folder.with_name("old"))
        other.rename(folder)

    shutil.rmtree(folder.with_name("old"), ignore_errors=True)
    thread = threading.Thread(target=exchange)
    thread.start()
    seconds, failed, versions = _pressed(service.port, patients, 8, 1500)
    thread.join()
    service.stop()
    return {"requests": len(seconds), "failed": failed, "versions": len(versions)}


def _fit() -> Path:
    (folder,) = (ROOT / "runs" / "service" / "private").glob("*/fit")
    return folder


def kill(patients: list[bytes]) -> dict[str, Any]:
    """SIGKILL under the load of 8 clients; the log must be whole, and be gone on with."""
    from ican_ml.serving.audit_log import AuditLogError, verify_audit_log

    log = ROOT / "runs" / "service" / "audit.jsonl"
    log.unlink(missing_ok=True)
    broken = lines = 0
    for _ in range(5):
        service = Service(BUNDLE, "--audit-log", str(log))
        thread = threading.Timer(1.5, service.stop, (signal.SIGKILL,))
        thread.start()
        _pressed(service.port, patients, 8, 400)
        thread.join()
        try:
            lines = verify_audit_log(log)[0]
        except AuditLogError:
            broken += 1
    return {"kills": 5, "lines": lines, "broken": broken}


def predictor_alone(patients: list[bytes]) -> dict[str, Any]:
    """The predictor without HTTP: 50 treatments against one, and its network against torch (one thread each)."""
    import torch

    from ican_ml.release import load_fitted
    from ican_ml.serving.predictor import Predictor

    torch.set_num_threads(1)
    predictor = Predictor(BUNDLE)
    network, schema = load_fitted(_fit())
    drugs = [(drug,) for drug in schema.drugs]
    pairs = [(a, b) for i, (a,) in enumerate(drugs) for (b,) in drugs[i + 1 :]]
    fifty = [*drugs, *pairs][:50]
    documents = [json.loads(patient)["patient"] for patient in patients[:REPEATS]]
    times: dict[str, list[float]] = {"one": [], "fifty": [], "onnxruntime": [], "torch": []}
    for document in [documents[0], *documents]:  # the first warms up
        for name, regimens in (("one", fifty[:1]), ("fifty", fifty)):
            times[name].append(
                _timed(lambda regimens=regimens, document=document: predictor.predict(document, regimens))
            )
        inputs, _ = predictor.inputs(document, drugs)
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        times["onnxruntime"].append(_timed(lambda inputs=inputs: predictor.run(inputs)))
        with torch.inference_mode():
            times["torch"].append(_timed(lambda tensors=tensors: network(tensors)))
    median = {name: float(np.median(each[1:])) * 1000 for name, each in times.items()}
    return {
        "milliseconds": median,
        "fifty_treatments_to_one": median["fifty"] / median["one"],
        "predictor_to_torch": median["onnxruntime"] / median["torch"],
    }


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
