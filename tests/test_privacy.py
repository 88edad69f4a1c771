"""A whole run, started as a user starts it, on a machine whose host, user, folders and subjects have names that nothing
else has: none of them is in any byte that may leave, and nothing goes over the network.
"""

import base64
import binascii
import getpass
import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import pytest

from tests.test_pipeline import cohort, metrics_of

__all__ = ["cohort"]

ROOT = Path(__file__).resolve().parents[1]
HOST, USER, FOLDER, REMOTE = "ylihoitaja-pc-4711", "vvirtanen83", "osasto-kuusi-b", "git.potilastutkimus.example"

# Python itself says these names in every process of the run; what connects elsewhere is noted, and fails.
_PLANTED = f"""
import os, platform, pwd, socket
uname = os.uname()
os.uname = lambda: os.uname_result((uname.sysname, {HOST!r}, *uname[2:]))
socket.gethostname = socket.getfqdn = lambda *_: {HOST!r}
platform.node = lambda: {HOST!r}
entry = pwd.getpwuid(os.getuid())
pwd.getpwuid = lambda _: pwd.struct_passwd(({USER!r}, *entry[1:]))
connect, look_up = socket.socket.connect, socket.getaddrinfo

def guarded(of, host, call):
    if of == socket.AF_UNIX or host in ("127.0.0.1", "localhost", "::1", None, b"localhost"):
        return call()
    with open(os.environ["TOLD"], "a") as file:
        file.write(f"{{host}}\\n")
    raise OSError("no network here")

socket.socket.connect = lambda self, to: guarded(self.family, to[0], lambda: connect(self, to))
socket.getaddrinfo = lambda host, *more, **named: guarded(None, host, lambda: look_up(host, *more, **named))
"""
_TRAIN = (
    *("cohort=mine", "logger=wandb", "logger.tensorboard=true", "name=tiny", "inputs.modalities=[mutation]"),
    *("inputs.max_tokens=4", "inputs.max_events=8", "inputs.survival_bins=4", "inputs.covariates=[]"),
    *("model.width=16", "model.heads=2", "model.bottleneck_tokens=2", "model.resistance=false", "model.members=1"),
    *("training.epochs=1", "training.batch_size=64", "training.wide_strengths=[300.0]", "trainer.threads=1"),
    *("evaluation.replicates=20", "evaluation.permutations=2"),
)
# The loggers alone, with a subject said aloud.
_LOG = """
import sys
from pathlib import Path
{before}
from ican_ml.training.config import LoggerConfig, LogMode
from ican_ml.training import loggers
loggers._ANSWER_S = 2.0
config = LoggerConfig(wandb=True, tensorboard=True, {config})
found = loggers.run_loggers(config, Path("runs/alone").absolute(), "split")
print("subject", sys.argv[1])
for logger in found:
    logger.log_metrics({{"tuning_loss": 0.5}}, 1)
    logger.finalize("success")
loggers.close_loggers(Path("runs/alone").absolute())
"""


@dataclass
class Machine:
    """Whose names are planted, and whose proxy notes whoever asks to be let out."""

    folder: Path
    environment: dict[str, str]
    asked: list[str] = field(default_factory=list)

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def log(self, subject: int, config: str = "", before: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", _LOG.format(config=config, before=before), str(subject), **more)

    def told(self) -> list[str]:
        """Give the addresses that were asked for since the last time."""
        noted = Path(self.environment["TOLD"])
        found = self.asked + (noted.read_text().split() if noted.exists() else [])
        self.asked.clear()
        noted.unlink(missing_ok=True)
        return found


@pytest.fixture(scope="module")
def machine(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    base = tmp_path_factory.mktemp("machine")
    folder, site = base / FOLDER, base / "site"
    shutil.copytree(cohort, folder / "planted")
    site.mkdir()
    (site / "sitecustomize.py").write_text(_PLANTED)
    git = ["git", "-c", f"user.name={USER}", "-c", f"user.email={USER}@{HOST}", "-C", str(folder)]
    for command in (["init", "-q"], ["remote", "add", "origin", f"https://{REMOTE}/a.git"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    server = socket.create_server(("127.0.0.1", 0))
    proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
    kept = {
        key: value
        for key, value in os.environ.items()
        if not re.match(r"(?i)(WANDB|ORT|GITHUB|GITLAB)_|CI$|.*_proxy$", key)
    }
    environment = kept | {
        "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
        "TOLD": str(base / "told"),
        "HOME": str(folder),
        "HOSTNAME": HOST,
        "WANDB_USERNAME": USER,
        "WANDB_USER_EMAIL": f"{USER}@{HOST}",
        **dict.fromkeys(("USER", "LOGNAME", "USERNAME"), USER),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy),
    }
    there = Machine(folder, environment)

    def listen() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                there.asked += client.recv(4096).decode(errors="replace").split()[1:2]

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield there
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.fixture(scope="module")
def subjects(cohort: Path) -> set[int]:
    found = set(pl.read_parquet(cohort / "episodes.parquet")["subject_id"])
    assert {len(str(subject)) for subject in found} == {14}
    return found


@pytest.fixture(scope="module")
def done(machine: Machine) -> subprocess.CompletedProcess[str]:
    """A run with everything: baselines, the audit, every logger, the bundle, one patient asked."""
    machine.told()
    path = machine.folder / "planted"
    return machine.run(str(ROOT / "train.py"), *_TRAIN, f"cohort.path={path}", f"runs={machine.folder / 'runs'}")


@pytest.fixture(scope="module")
def whole(machine: Machine, done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return machine.folder / "runs" / "tiny"


def names() -> list[bytes]:
    """Give what tells of the machine: the planted, and what it is really called where that is a word of its own."""
    real = [socket.gethostname(), str(ROOT), str(Path.home()), sys.prefix, str(Path(sys.prefix).resolve())]
    user = [getpass.getuser()] if len(getpass.getuser()) > 5 else []
    return [name.encode() for name in (HOST, USER, FOLDER, REMOTE, *real, *user) if len(name) > 3 and name != "/root"]


def ids(content: bytes, subjects: set[int]) -> set[int]:
    """Find ids as text, as whole numbers of 8 bytes, as floating-point numbers, and as varints of a protobuf."""
    found = {int(match[1]) for match in re.finditer(rb"(?=(\d{14}))", content)}
    found |= {int(match[1].replace(b"\0", b"")) for match in re.finditer(rb"(?=((?:\d\0){14}))", content)}
    for match in re.finditer(rb"(?=([\x80-\xff]{6}[\x01-\x7f]))", content):
        found.add(sum((byte & 127) << 7 * place for place, byte in enumerate(match[1])))
    for start in range(8):
        part = content[start : start + (len(content) - start) // 8 * 8]
        for kind in ("<i8", ">i8", "<f8"):
            values = np.frombuffer(part, kind)
            with np.errstate(invalid="ignore"):
                near = values[(values >= min(subjects)) & (values <= max(subjects))]
            found |= {int(value) for value in near.tolist()}
    return found & subjects


def unpacked(content: bytes) -> Iterator[bytes]:
    """Give content, and what is compressed or written as base64 in it."""
    yield content
    if content.startswith(b"\x1f\x8b"):
        yield from unpacked(gzip.decompress(content))
    elif zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            yield "\n".join(packed.namelist()).encode()
            for name in packed.namelist():
                yield from unpacked(packed.read(name))
    for match in re.finditer(rb"[A-Za-z0-9+/]{64,}={0,2}", content):
        try:
            inner = base64.b64decode(match[0])
        except binascii.Error:
            continue
        yield from unpacked(inner)


def leaks(folder: Path, told: list[bytes], subjects: set[int]) -> set[tuple[str, str]]:
    """Search every file of a run that may leave, and its name."""
    wanted = re.compile(b"|".join(map(re.escape, told)))
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if "private" in name.parts:
            continue
        for content in (str(name).encode(), *(unpacked(path.read_bytes()) if path.is_file() else ())):
            found |= {(str(name), match[0].decode()) for match in wanted.finditer(content)}
            found |= {(str(name), str(subject)) for subject in ids(content, subjects)}
    return found


def test_a_run_leaves_its_results(whole: Path) -> None:
    scorers = metrics_of(whole)["tasks"]["response"]
    assert {"model", "oracle"} < scorers.keys()
    assert len(scorers) >= 4
    assert all(0 <= found["pooled"]["overall"]["metrics"]["auroc"]["estimate"] <= 1 for found in scorers.values())
    assert metrics_of(whole)["onnx_parity"] < 1e-4
    assert (whole / "report.html").read_text().startswith("<!")
    assert (whole / "logs" / "split.csv").read_text().splitlines()[0] == "epoch,train_loss,tuning_loss"
    assert "results on held-out episodes" in (whole / "log.txt").read_text()
    assert {path.name for path in (whole / "bundle").iterdir()} >= {"model.onnx", "manifest.json", "schema.json"}
    assert (whole / "private" / "patient.json").exists()


def test_a_run_shows_its_audit(whole: Path) -> None:
    for path in ("report.html", "log.txt"):
        page = (whole / path).read_text()
        assert "Label permutation" in page
        assert "bookkeeping alone" in page
    audit = json.loads((whole / "audit.json").read_text())
    assert [found["scorer"] for found in audit["permutations"]] == ["linear path"]
    assert audit["bookkeeping"][0]["values"]["full information"].keys() == {"model", "ridge", "boosting"}


def test_nothing_but_private_tells_of_a_subject_or_of_the_machine(
    whole: Path, done: subprocess.CompletedProcess[str], subjects: set[int]
) -> None:
    assert leaks(whole, names(), subjects) == set()
    assert not [subject for subject in subjects if str(subject) in done.stdout + done.stderr]
    assert leaks(whole / "private" / "split", names(), subjects), "the search finds what is there"


def test_a_run_asks_nothing_of_the_network(whole: Path, machine: Machine, subjects: set[int]) -> None:
    assert machine.told() == []
    machine.run("-c", "import urllib.request as r; r.urlopen('http://one.example')")
    machine.run("-c", "import socket; socket.create_connection(('two.example', 80))")
    assert machine.told() == ["http://one.example", "two.example"]


def test_losses_are_where_their_readers_find_them(whole: Path) -> None:
    pytest.importorskip("tensorboard")
    code = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print([event.value for event in events.Scalars("tuning_loss")])
"""
    folder = whole / "logs" / "tensorboard" / "split"
    read = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    told = (whole / "logs" / "split.csv").read_text().split(",")[-1]
    assert json.loads(read.stdout) == pytest.approx([float(told)])
    assert [path.name for path in folder.iterdir()] == ["events.out.tfevents.0000"]
    (kept,) = (path for path in (whole / "logs" / "wandb").rglob("*") if path.is_file())
    assert kept.match("offline-run-*/run-*.wandb")
    assert b"tuning_loss" in kept.read_bytes()


def test_the_loggers_as_they_come_tell_everything(machine: Machine, subjects: set[int]) -> None:
    """What the search would find if nothing were turned off: it sees each of the planted names."""
    before = """
import wandb
from lightning.pytorch.loggers import TensorBoardLogger
from ican_ml.training import loggers
wandb.Settings, closed = lambda **_: closed(mode="offline"), wandb.Settings
loggers.EventFileLogger = lambda folder: TensorBoardLogger(folder.parent, name=folder.name)
"""
    path = machine.folder / "runs" / "alone"
    done = machine.log(min(subjects), before=before)
    assert done.returncode == 0, done.stderr
    found = leaks(path, names(), subjects)
    assert {HOST, USER, FOLDER, REMOTE, str(min(subjects))} <= {told for name, told in found if name.endswith(".wandb")}
    assert HOST in {told for name, told in found if "tfevents" in name}
    shutil.rmtree(path)


def test_an_online_run_asks_the_server_that_is_named_and_no_other(machine: Machine, subjects: set[int]) -> None:
    machine.told()
    config = 'mode=LogMode.online, host="http://named.example"'
    done = machine.log(min(subjects), config, WANDB_API_KEY="k" * 40, WANDB_BASE_URL="http://other.example")
    assert done.stderr.splitlines()[-1].startswith(
        "ValueError: logger.mode: expected a run at http://named.example, got"
    )
    assert {urlsplit(address).netloc for address in machine.told()} == {"named.example"}
