"""Who asked what kind of question, and when: JSON lines, each sealed with the one before it. No health data.

    {"n": 0, "time": "2026-11-26T12:00:00.000Z", "event": "start", ..., "previous": "", "sha256": "..."}

``sha256`` is that of the line without it, and ``previous`` the one of the line before: a line that is changed, removed
or put in breaks the chain, which ``ican audit-log verify`` tells. What is cut off at the end shows only against the
last ``sha256`` kept elsewhere; the service writes it to its log when it stops, and ``verify`` prints it. A line is one
write of an append-only file, before the answer leaves, so a killed service leaves whole lines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

_TAIL = 1 << 16


class AuditLogError(ValueError):
    """A log that is not what was written: says at which line."""


class AuditLog:
    """Appends lines to one file, from any thread; no other process may write it meanwhile.

    Raises
    ------
    AuditLogError
        If another process writes the file, or its last line is broken.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._lock = threading.Lock()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(path, "rb") as file:
                self._n, self._last = _last(file)
        except OSError:
            os.close(self._descriptor)
            raise AuditLogError(f"{path.name}: expected a file of this service alone, another one writes it") from None
        except AuditLogError as error:
            os.close(self._descriptor)
            raise AuditLogError(f"{path.name}: {error}; keep it, and give the service another file") from None

    @property
    def last(self) -> str:
        """sha256 of the last line; empty in an empty log."""
        return self._last

    def write(self, event: str, **fields: str | int | float | bool | None) -> None:
        """Append one line."""
        with self._lock:
            entry = {"n": self._n, "time": _now(), "event": event, **fields, "previous": self._last}
            self._last = _seal(entry)
            line = json.dumps({**entry, "sha256": self._last}) + "\n"
            os.write(self._descriptor, line.encode())
            self._n += 1

    def flush(self) -> None:
        """Bring all to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Bring all to the disk, and let others write."""
        self.flush()
        os.close(self._descriptor)


def verify_audit_log(path: Path) -> tuple[int, str]:
    """Number of lines, and the last one's sha256.

    Raises
    ------
    AuditLogError
        At the first line that does not fit the one before it.
    """
    n, last = 0, ""
    with path.open("rb") as file:
        for entry in _entries(file):
            if entry is None or entry["n"] != n or entry["previous"] != last:
                raise AuditLogError(f"{path.name}, line {n + 1}: expected to follow the line before it; it does not")
            n, last = n + 1, str(entry["sha256"])
    return n, last


def _entries(file: BinaryIO) -> Iterator[dict[str, Any] | None]:
    for line in file:
        yield _entry(line)


def _entry(line: bytes) -> dict[str, Any] | None:
    """A whole line as it was sealed, or None."""
    try:
        entry = json.loads(line)
        sealed = entry.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    if not line.endswith(b"\n") or {"n", "previous"} - set(entry) or _seal(entry) != sealed:
        return None
    return {**entry, "sha256": sealed}


def _last(file: BinaryIO) -> tuple[int, str]:
    """The number of the next line, and the sha256 of the last."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return 0, ""
    file.seek(max(0, size - _TAIL))
    entry = _entry(file.read().splitlines(keepends=True)[-1])
    if entry is None:
        raise AuditLogError("expected a last line as it was written, found a broken one")
    return int(entry["n"]) + 1, str(entry["sha256"])


def _seal(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
