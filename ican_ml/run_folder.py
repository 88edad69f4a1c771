"""The folder of a run: what may leave the secure environment lies in ``runs/<name>/``, what may not in ``private/``.

Each stage leaves the key of its configuration, data and code beside its result, so that the same command goes on where
it stopped and a stale result is never taken for a current one.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ican_ml

RESULT, ORIGIN = "done.json", "origin.json"
_LIBRARIES = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "numba", "polars", "anndata", "xgboost-cpu")


class RunFolder:
    """``root`` may leave; ``private`` (predictions, checkpoints, configuration with paths) may not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private = root / "private"
        self.private.mkdir(parents=True, exist_ok=True)
        (self.private / ".gitignore").write_text("*\n")

    def stage(self, name: str, key: str) -> Stage:
        """A stage's own private folder, emptied if it holds the work of another configuration or other data."""
        folder = self.private / name
        if folder.exists() and _read_key(folder) != key:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key").write_text(key)
        return Stage(folder, key)

    def write_origin(self, data: str) -> None:
        """Keep the hash of the data and the versions at hand."""
        found = {"data": data, "python": platform.python_version(), "machine": platform.machine()}
        for library in ("ican_ml", *_LIBRARIES):
            with suppress(PackageNotFoundError):
                found[library] = version(library)
        (self.private / ORIGIN).write_text(json.dumps(found, indent=1) + "\n")

    def write_json(self, name: str, document: Any) -> None:
        """Write a result that may leave."""
        (self.root / name).write_text(json.dumps(document, indent=1) + "\n")


class Stage:
    """Work in progress, or done."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    @property
    def is_done(self) -> bool:
        """Whether :meth:`finish` was reached."""
        return (self.folder / RESULT).exists()

    def finish(self, document: Any) -> None:
        """Keep the stage's small results; written last and in one step, so that a killed stage is not done."""
        part = self.folder / f"{RESULT}.part"
        part.write_text(json.dumps(document))
        part.rename(self.folder / RESULT)

    def result(self) -> Any:
        """What :meth:`finish` kept."""
        return json.loads((self.folder / RESULT).read_text())


def stage_key(*parts: Any) -> str:
    """One hash of JSON-like parts and of this package's code: another version of either never shares a result."""
    return hashlib.sha256(json.dumps([_code_hash(), *parts], sort_keys=True, default=str).encode()).hexdigest()


@cache
def _code_hash() -> str:
    return data_hash(Path(ican_ml.__file__).parent, "*.py")


def data_hash(folder: Path, pattern: str = "*") -> str:
    """One hash of the names and bytes of all files below a folder that match the pattern."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob(pattern) if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _read_key(folder: Path) -> str | None:
    path = folder / "key"
    return path.read_text() if path.exists() else None
