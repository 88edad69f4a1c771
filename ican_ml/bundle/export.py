"""Network + schema -> bundle. The graph is traced once, proved against torch on invented patients, then signed off.

ONNX opset 20, one file, every axis dynamic but the features' own; no Loop or Sequence nodes. Node metadata is removed,
since the exporter writes source paths into it.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

import ican_ml
from ican_ml.bundle.card import ModelCard
from ican_ml.bundle.golden import case_inputs, golden_cases
from ican_ml.bundle.read import (
    APPLICABILITY,
    CALIBRATION,
    CALIBRATION_FORMAT,
    CARD,
    CARD_TEXT,
    CASES,
    FORMAT,
    GOLDEN,
    MANIFEST,
    MODEL,
    OPSET,
    SCHEMA,
    BundleError,
    deviation,
    digest,
    sealed,
)
from ican_ml.encoding.csr_bag import csr_bag_onnx_translation
from ican_ml.evaluation.applicability import EMBEDDING, Applicability
from ican_ml.evaluation.conformal import Calibration
from ican_ml.inputs.answer import summarise
from ican_ml.inputs.encode import Arrays, joined
from ican_ml.inputs.limits import Limit, input_limits
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import PatientTransformer

TOLERANCE = 1e-5


class _Positional(nn.Module):
    """The network with its inputs by position and its outputs as a tuple: what the exporter traces."""

    def __init__(self, network: PatientTransformer, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.names, inputs, strict=True))
        return (*self.network(batch).values(), self.network.embed(batch))


def export_bundle(
    network: PatientTransformer,
    schema: InputSchema,
    folder: Path,
    *,
    calibration: Mapping[str, Calibration] | None = None,
    applicability: Applicability | None = None,
    card: ModelCard | None = None,
) -> float:
    """Write a bundle; an existing one is replaced only when the new one is complete.

    Parameters
    ----------
    calibration
        By binary task, as a fit left it: prediction sets for the predictor. The network itself is calibrated.
    applicability
        As a fit left it: whether a patient is like those of training.
    card
        What the model is for, and how well it does it.

    Returns
    -------
    float
        Largest deviation between onnxruntime and torch over the invented patients' outputs.

    Raises
    ------
    BundleError
        If that difference is above 1e-5.
    """
    network.eval()
    cases = golden_cases(schema)
    each = [case_inputs(schema, case) for case in cases]
    inputs = joined(each)
    model = _trace(network, inputs)
    expected = _torch_outputs(network, inputs)
    difference = parity(model, network, [inputs, each[0], each[3]])
    if not difference <= TOLERANCE:
        raise BundleError(f"export: expected ONNX and torch to agree within {TOLERANCE:g}, got {difference:.2g}")
    used = _graph_inputs(model)
    golden = io.BytesIO()
    arrays: dict[str, Any] = {f"in/{name}": values for name, values in inputs.items() if name in used}
    arrays |= {f"out/{name}": values for name, values in expected.items()}
    arrays |= {f"answer/{task.name}": summarise(task, expected[task.name]) for task in schema.tasks}
    np.savez(golden, **arrays)
    graph, limits = onnx.load_from_string(model).graph, input_limits(schema)
    document = {
        "patient": schema.to_json(),
        "inputs": [_describe(value) | _range(limits[value.name]) for value in graph.input],
        "outputs": [_describe(value) for value in graph.output],
    }
    files = {
        MODEL: model,
        CASES: json.dumps({"cases": cases}).encode(),
        GOLDEN: golden.getvalue(),
        SCHEMA: json.dumps(document).encode(),
    }
    if calibration:
        told = {"format": CALIBRATION_FORMAT, "tasks": [entry.to_dict() for entry in calibration.values()]}
        files[CALIBRATION] = json.dumps(told, indent=1).encode()
    if applicability is not None:
        files[APPLICABILITY] = json.dumps(applicability.to_json()).encode()
    if card is not None:
        files[CARD] = json.dumps(card.to_json(), indent=1).encode()
        files[CARD_TEXT] = card.text().encode()
    manifest = {
        "format": FORMAT,
        "ican_ml": ican_ml.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "opset": OPSET,
        "tolerance": TOLERANCE,
        "sha256": {name: digest(content) for name, content in sorted(files.items())},
    }
    _replace(folder, {**files, MANIFEST: sealed(manifest)})
    return difference


def parity(model: bytes, network: PatientTransformer, batches: list[Arrays]) -> float:
    """Largest deviation between onnxruntime and torch over some batches of inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    used = {node.name for node in session.get_inputs()}
    worst = 0.0
    for inputs in batches:
        outputs = session.run(None, {name: values for name, values in inputs.items() if name in used})
        for got, expected in zip(outputs, _torch_outputs(network, inputs).values(), strict=True):
            worst = max(worst, deviation(got, expected))
    return worst


def _trace(network: PatientTransformer, inputs: Arrays) -> bytes:
    names = list(inputs)
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(values)) for values in inputs.values())
    shapes = tuple(_dynamic_axes(name, tensor) for name, tensor in zip(names, tensors, strict=True))
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Positional(network, names),
            tensors,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(shapes,),
            input_names=names,
            output_names=list(_torch_outputs(network, inputs)),
            custom_translation_table=csr_bag_onnx_translation(),
            verbose=False,
            optimize=False,  # _simplify does what counts in a tenth of the time
        )
    quiet.setLevel(level)
    assert program is not None
    _simplify(program.model)
    return bytes(_without_metadata(program.model_proto).SerializeToString())


def _simplify(model: onnx_ir.Model) -> None:
    """Fold constants and merge what is computed twice; fusing operators is left to onnxruntime."""
    fold_constants(model)
    for simplify in (RemoveUnusedNodesPass(), CommonSubexpressionEliminationPass(), RemoveUnusedNodesPass()):
        simplify(model)


def _dynamic_axes(name: str, tensor: Tensor) -> dict[int, Any]:
    """Which axes vary. One that is 1 long for the invented patients is so for all: no records, or no genes."""
    fixed = {1} if name == "summary" else {3} if name.startswith("treatment_state") else set()
    return {
        axis: torch.export.Dim.STATIC if axis in fixed or size == 1 else torch.export.Dim.DYNAMIC
        for axis, size in enumerate(tensor.shape)
    }


def _without_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        del holder.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    return model


def _torch_outputs(network: PatientTransformer, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    batch = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}
    with torch.inference_mode():
        outputs = {**network(batch), EMBEDDING: network.embed(batch)}
    return {name: output.numpy() for name, output in outputs.items()}


def _graph_inputs(model: bytes) -> set[str]:
    return {value.name for value in onnx.load_from_string(model).graph.input}


def _describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return {
        "name": value.name,
        "dtype": dtype,
        "shape": [axis.dim_value or axis.dim_param for axis in tensor.shape.dim],
    }


def _range(limit: Limit) -> dict[str, Any]:
    return {"shape": list(limit.axes), "range": [limit.low, limit.high]}


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, content in files.items():
        (part / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
