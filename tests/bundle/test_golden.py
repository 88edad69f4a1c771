"""Golden cases notice whatever makes a patient another: every statistic of the schema, every constant of the code."""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ican_ml.bundle.read import SCHEMA, BundleError
from ican_ml.serving.predictor import Predictor
from tests.bundle.resealed import resealed

# What lies between a plain patient and the arrays of the network.
MODULES = [
    f"ican_ml.{name}"
    for name in (
        "cohort.asof",
        "encoding.csr",
        "encoding.lookup",
        "encoding.pad_ragged",
        "encoding.rank_tokens",
        "encoding.reference",
        "inputs.encode",
        "inputs.patient",
        "inputs.regimens",
        "inputs.schema",
        "records.aggregates",
        "records.groups",
        "records.recent",
        "records.store",
        "records.vocabulary",
    )
]
# No patient becomes another by these: sizes of pieces and of arrays, and what chooses columns when a schema is fitted.
WITHOUT_EFFECT = {"PIECE_EVENTS", "_LARGEST_FEATURE_COUNT", "_LARGEST", "MOST_CODES", "_MIN_ROWS", "_MIN_FRACTION"}
Number = int | float | np.integer | np.floating


def _other(value: Any) -> Any:
    """Another value of the same kind; None where there is none to change."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Number):
        return type(value)(value * 1.25 + 1)
    if isinstance(value, re.Pattern):
        return re.compile("(?!)")
    if isinstance(value, tuple) and value and all(isinstance(part, Number) for part in value):
        return (*value[:-1], _other(value[-1]))
    return None


def _constants() -> Iterator[Any]:
    for module in MODULES:
        for name, value in vars(importlib.import_module(module)).items():
            own = re.search(rf"^{name}(: \w+)? = |^(\w+, )*{name}(, \w+)* = ", _source(module), re.MULTILINE)
            if own and name not in WITHOUT_EFFECT and _other(value) is not None:
                yield pytest.param(name, value, id=f"{module.removeprefix('ican_ml.')}.{name}")


def _source(module: str) -> str:
    return Path(str(sys.modules[module].__file__)).read_text()


@pytest.mark.parametrize(("name", "value"), list(_constants()))
def test_a_changed_constant_is_noticed(
    sim_bundle: Path, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for key, module in sys.modules.items() if key.startswith("ican_ml.")]:
        if vars(module).get(name) is value:
            monkeypatch.setattr(module, name, _other(value))
    with pytest.raises(BundleError):
        Predictor(sim_bundle)


# Only the network and what explains it read these; of tasks, the network alone.
NOT_READ = re.compile(
    r"aggregates/names|modalities/\d/(mean|inverse_sd)|tasks/\d/(centre|scale)|vocabulary/(encoding|version)"
)


def _fields(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The parts of a schema: each list, each number beside them, and of a large table the ends and the middle."""
    if isinstance(document, dict):
        names = list(document)
        for name in names if len(names) <= 16 else {names[0], names[len(names) // 2], names[-1]}:
            yield from _fields(document[name], (*path, name))
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        for i, part in enumerate(document):
            yield from _fields(part, (*path, i))
    elif document not in (None, [], ""):
        yield path


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value} changed"
    if isinstance(value, list):
        return [_another(part) if i % 2 == 0 else part for i, part in enumerate(value)]
    return value * 1.25 + 1


def test_a_changed_schema_is_noticed(sim_bundle: Path, tmp_path: Path) -> None:
    document = json.loads((sim_bundle / SCHEMA).read_text())
    vocabulary = document["patient"]["vocabulary"]
    known = set(vocabulary["codes"])  # these back off to nothing
    rare = {code: above for code, above in vocabulary["parents"].items() if code not in known}
    assert rare
    parts = {**document["patient"], "vocabulary": {**vocabulary, "parents": rare}}
    names = sorted(path for path in _fields(parts) if not NOT_READ.fullmatch("/".join(map(str, path))))
    assert len(names) > 30
    unnoticed = []
    for i, (*way, last) in enumerate(names):
        changed = deepcopy(document)
        holder = changed["patient"]
        for part in way:
            holder = holder[part]
        holder[last] = _another(holder[last])
        try:
            Predictor(resealed(sim_bundle, tmp_path / str(i), schema=changed))
            unnoticed.append("/".join(map(str, (*way, last))))
        except BundleError:
            shutil.rmtree(tmp_path / str(i))
    assert unnoticed == []
