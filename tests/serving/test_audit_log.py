"""The log of who asked: whole after a kill, and broken by any change."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ican_ml.serving.audit_log import AuditLog, AuditLogError, verify_audit_log

_WRITER = """
import sys
from pathlib import Path
from ican_ml.serving.audit_log import AuditLog

log = AuditLog(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    log.write("request", caller="a", status=200)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    for start in (0, 3):  # opened twice: the chain goes on
        audit = AuditLog(path)
        for i in range(start, start + 3):
            audit.write("request", caller=f"caller {i}", status=200)
        audit.close()
    return path


def test_every_line_follows_the_one_before(log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(6))
    assert [line["previous"] for line in lines[1:]] == [line["sha256"] for line in lines[:-1]]
    assert verify_audit_log(log) == (6, lines[-1]["sha256"])


@pytest.mark.parametrize("change", ["edit", "remove", "swap", "insert", "half a line", "no line"])
def test_a_change_is_told_with_its_line(log: Path, change: str) -> None:
    lines = log.read_text().splitlines(keepends=True)
    changed = {
        "edit": [*lines[:2], lines[2].replace("caller 2", "caller 9"), *lines[3:]],
        "remove": [*lines[:2], *lines[3:]],
        "swap": [*lines[:2], lines[3], lines[2], *lines[4:]],
        "insert": [*lines[:2], lines[0], *lines[2:]],
        "half a line": [*lines[:2], lines[2][:30]],
        "no line": [*lines[:2], "not one of ours\n", *lines[2:]],
    }[change]
    log.write_text("".join(changed))
    with pytest.raises(AuditLogError, match="line 3"):
        verify_audit_log(log)


def test_a_broken_end_is_not_gone_on_from(log: Path) -> None:
    log.write_text(log.read_text()[:-20])
    with pytest.raises(AuditLogError, match=r"broken one; keep it"):
        AuditLog(log)


def test_two_writers_are_one_too_many(log: Path) -> None:
    first = AuditLog(log)
    with pytest.raises(AuditLogError, match="another one writes it"):
        AuditLog(log)
    first.close()
    AuditLog(log).close()


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        while not path.exists() or path.stat().st_size < 20_000:
            pass
        os.kill(writer.pid, signal.SIGKILL)
    n, _ = verify_audit_log(path)
    audit = AuditLog(path)
    audit.write("start")
    audit.close()
    assert verify_audit_log(path)[0] == n + 1
