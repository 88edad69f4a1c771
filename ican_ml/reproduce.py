"""A finished run again, from what it kept: its configuration, the hash of its data, the versions that made it.

Same seed, same data, same machine, same versions: the same metrics, to the last bit. On another machine or with other
versions they may differ in the last digits, and what differs is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ican_ml.config import read_config
from ican_ml.pipeline import run
from ican_ml.run_folder import ORIGIN, data_hash

_METRICS, _AGAIN = "metrics.json", "-again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reproduced:
    """What came of it.

    Attributes
    ----------
    folder
        The new run.
    versions
        Of the data and of what made the run, where it is not as it was: name -> (then, now).
    differences
        Metrics that differ by more than was allowed: path in ``metrics.json`` -> (then, now).
    compared, largest
        How many numbers, and the largest absolute difference.
    """

    folder: Path
    versions: dict[str, tuple[str, str]]
    differences: dict[str, tuple[Any, Any]]
    compared: int
    largest: float


def reproduce(root: Path, *, tolerance: float = 0.0) -> Reproduced:
    """Run a finished run again, in ``<name>-again`` beside it, and compare the metrics.

    Raises
    ------
    ValueError
        If the folder is none of a finished run, its data have changed, or there is such a folder already.
    """
    config = read_config(root)
    if not (root / "private" / ORIGIN).exists() or not (root / _METRICS).exists():
        raise ValueError(
            f"reproduce: expected a finished run, got {root.name!r} without {_METRICS}; let it finish first"
        )
    known = _origin(root)
    again = replace(config, name=config.name + _AGAIN)
    folder = Path(again.runs) / again.name
    if folder.exists():
        raise ValueError(f"reproduce: expected no folder {folder.name!r} beside the run, found one; move or remove it")
    data = Path(config.cohort.path)
    if data.exists() and data_hash(data) != known["data"]:
        raise ValueError(f"reproduce: expected the data of the run, got others in {data.name!r}; restore them first")
    run(again)
    now = _origin(folder)
    before, after = (json.loads((path / _METRICS).read_text()) for path in (root, folder))
    pairs, found = _pairs(before, after), gaps(before, after)
    return Reproduced(
        folder=folder,
        versions={
            name: (known.get(name, "none"), now.get(name, "none"))
            for name in known | now
            if known.get(name) != now.get(name)
        },
        differences={name: pairs[name] for name, gap in found.items() if gap > tolerance},
        compared=len(found),
        largest=max(found.values(), default=0.0),
    )


def gaps(then: Any, now: Any) -> dict[str, float]:
    """Absolute differences of two JSON documents, by path: infinite where one is missing or no number and not equal."""
    return {name: _gap(*pair) for name, pair in _pairs(then, now).items()}


def _pairs(then: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    before, after = dict(_leaves(then)), dict(_leaves(now))
    return {name: (before.get(name), after.get(name)) for name in before | after}


def _origin(run: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((run / "private" / ORIGIN).read_text())
    return found


def _leaves(document: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a JSON document under its path."""
    parts = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in parts:
        yield from _leaves(value, f"{at}/{key}" if at else str(key))
    if not isinstance(document, dict | list):
        yield at, document


def _gap(then: Any, now: Any) -> float:
    if isinstance(then, int | float) and isinstance(now, int | float):
        return abs(then - now)
    return 0.0 if then == now else math.inf
