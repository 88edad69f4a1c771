"""Results of a benchmark or study: one JSON file that says what was measured, on which sources, with which versions.

Each part is written as soon as it is measured, and a part measured on the same sources is not measured again: a killed
study goes on where it stopped, and a changed package starts anew.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ican_ml.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("torch", "lightning", "numpy", "xgboost-cpu", "onnxruntime")


class Record:
    """``benchmarks/results/<name>.json``.

    Parameters
    ----------
    name
        Stem of the file.
    sources
        Tracked files and folders whose committed content the figures depend on.
    libraries
        What is measured beside, whose versions are noted as well.
    """

    def __init__(
        self,
        name: str,
        sources: tuple[str, ...] = ("ican_ml", "configs", "kernels"),
        libraries: tuple[str, ...] = (),
    ) -> None:
        self.path = ROOT / "benchmarks" / "results" / f"{name}.json"
        trees = {source: _git("rev-parse", f"HEAD:{source}") for source in sources}
        if _git("status", "--porcelain", "--", *sources):
            raise SystemExit(f"{name}: expected {', '.join(sources)} as committed, got changes; commit them first")
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.parts: dict[str, Any] = found["parts"] if found.get("sources") == trees else {}
        self._head = {"commit": _git("rev-parse", "HEAD"), "sources": trees, "machine": _machine(libraries)}

    def add(self, part: str, figures: Any) -> None:
        """Keep one part's figures, at once and in one step."""
        self.parts[part] = figures
        self.path.parent.mkdir(exist_ok=True)
        written = self.path.with_suffix(".part")
        written.write_text(json.dumps({**self._head, "parts": self.parts}, indent=1) + "\n")
        written.replace(self.path)


def _machine(libraries: tuple[str, ...]) -> dict[str, Any]:
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {library: found for library in (*_LIBRARIES, *libraries) if (found := _version(library))},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def composed(*overrides: str) -> RunConfig:
    """The configuration that ``train.py`` would run under these arguments."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from ican_ml.config import RunConfig
    from ican_ml.sweep.sweeper import register

    register(RunConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, RunConfig)
    return config


def train(*arguments: str) -> None:
    """Run ``train.py``, or what is left to do of it; its output goes where errors go."""
    subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, check=True, stdout=sys.stderr)


def anonymous_memory() -> float:
    """GB of memory that this process holds and no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6
