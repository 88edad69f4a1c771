"""The Open Inference Protocol, version 2, on JSON: the network's own tensors in and out.

https://github.com/kserve/open-inference-protocol: server and model metadata, readiness, inference. For programs that
encode patients themselves; whoever has a patient asks ``/v1/predict``. Tensors are row-major, flat or nested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import ican_ml
from ican_ml.inputs.limits import InputError
from ican_ml.serving.errors import ServiceError
from ican_ml.serving.predictor import Predictor

PLATFORM = "onnxruntime_onnx"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}
_REQUEST = {"id", "parameters", "inputs", "outputs"}
_TENSOR = {"name", "shape", "datatype", "data", "parameters"}


def server_document() -> dict[str, Any]:
    """``GET /v2``."""
    return {"name": "ican_ml", "version": ican_ml.__version__, "extensions": []}


def model_document(name: str, predictor: Predictor) -> dict[str, Any]:
    """``GET /v2/models/{name}``: an axis that varies is -1."""
    return {
        "name": name,
        "versions": [predictor.version],
        "platform": PLATFORM,
        "inputs": [_described(entry) for entry in predictor.input_entries],
        "outputs": [_described(entry) for entry in predictor.output_entries],
    }


def _described(entry: Mapping[str, Any]) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in entry["shape"]]
    return {"name": entry["name"], "datatype": _DATATYPES[entry["dtype"]], "shape": shape}


def infer(name: str, predictor: Predictor, body: Mapping[str, Any]) -> dict[str, Any]:
    """``POST /v2/models/{name}/infer``.

    Raises
    ------
    ServiceError
        400: a tensor is missing, unknown, or cannot come from a patient.
    """
    _only("request", body, _REQUEST)
    given = body.get("inputs")
    if not isinstance(given, list):
        raise _wrong("inputs", f"expected a list of tensors, got {type(given).__name__}")
    dtypes = {entry["name"]: str(entry["dtype"]) for entry in predictor.input_entries}
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for i, tensor in enumerate(given):
        where = f"inputs[{i}]"
        if not isinstance(tensor, dict):
            raise _wrong(where, f"expected a tensor, got {type(tensor).__name__}")
        _only(where, tensor, _TENSOR)
        of = tensor.get("name")
        if not isinstance(of, str) or of not in dtypes or of in arrays:
            raise _wrong(f"{where}.name", f"expected an input of the model, each once, got {of!r:.80}")
        arrays[of] = _array(where, tensor, dtypes[of])
    if missing := sorted(set(dtypes) - set(arrays)):
        raise _wrong("inputs", f"expected every input of the model, missing {missing}")
    wanted = _wanted(body.get("outputs"), [entry["name"] for entry in predictor.output_entries])
    try:
        outputs = predictor.infer(arrays)
    except InputError as error:
        raise ServiceError(400, "invalid_tensor", str(error), str(error).partition(":")[0]) from None
    answer = {
        "model_name": name,
        "model_version": predictor.version,
        "outputs": [
            {
                "name": each,
                "datatype": _DATATYPES[outputs[each].dtype.name],
                "shape": list(outputs[each].shape),
                "data": outputs[each].ravel().tolist(),
            }
            for each in wanted
        ],
    }
    return answer | ({"id": body["id"]} if isinstance(body.get("id"), str) else {})


def _array(where: str, tensor: Mapping[str, Any], dtype: str) -> npt.NDArray[np.generic]:
    if tensor.get("datatype") != _DATATYPES[dtype]:
        raise _wrong(f"{where}.datatype", f"expected {_DATATYPES[dtype]!r}, got {tensor.get('datatype')!r:.80}")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape):
        raise _wrong(f"{where}.shape", f"expected a list of sizes, got {shape!r:.80}")
    flat = _flat(tensor.get("data"))
    if flat is None or len(flat) != int(np.prod(shape, dtype=object)):
        raise _wrong(f"{where}.data", f"expected numbers that fill the shape {shape}, got others")
    whole = dtype == "int64"
    if not all(type(value) is int or (not whole and type(value) is float) for value in flat):
        raise _wrong(f"{where}.data", f"expected {'integers' if whole else 'numbers'}, got something else")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=dtype).reshape(shape)
    except (OverflowError, ValueError):
        raise _wrong(f"{where}.data", f"expected numbers that fit {dtype} in {len(shape)} axes, got others") from None


def _flat(data: object) -> list[Any] | None:
    """The numbers of a flat or nested list, in order."""
    if not isinstance(data, list):
        return None
    while any(isinstance(part, list) for part in data):
        if not all(isinstance(part, list) for part in data):
            return None
        data = [value for part in data for value in part]
    return data


def _wanted(given: object, known: list[str]) -> list[str]:
    if given is None:
        return known
    names = (
        [part.get("name") if isinstance(part, dict) else None for part in given] if isinstance(given, list) else [None]
    )
    if not names or set(names) - set(known):
        raise _wrong("outputs", f"expected outputs among {known}, got others")
    return [name for name in known if name in names]


def _only(where: str, given: Mapping[str, Any], allowed: set[str]) -> None:
    if unknown := sorted(set(given) - allowed):
        raise _wrong(where, f"expected fields among {sorted(allowed)}, got {unknown!r:.200}")


def _wrong(field: str, message: str) -> ServiceError:
    return ServiceError(400, "invalid_request", f"{field}: {message}", field)
