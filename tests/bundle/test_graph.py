"""A model file that could reach beyond itself, or never end, is refused before onnxruntime sees it."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ican_ml.bundle.graph import GraphError, check_graph
from ican_ml.bundle.read import MODEL, OPSET

Change = Callable[[onnx.ModelProto], None]


def _small() -> onnx.ModelProto:
    """x + a constant, in the form that training exports."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    weight = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [out], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _external_constant(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32), "c")
    tensor.external_data.add(key="location", value="weights")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _loop(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Loop", ["n", ""], ["l"], body=_small().graph))


def _hidden_graph(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["r"], body=_small().graph))


def _custom(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["x"], ["r"], domain="com.example"))


def _sequence(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("SequenceConstruct", ["x"], ["s"]))


def _function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="com.example")


def _sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = OPSET + 1


def _no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def test_what_training_exports_passes(sim_bundle: Path) -> None:
    check_graph((sim_bundle / MODEL).read_bytes(), OPSET)
    check_graph(_small().SerializeToString(), OPSET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external, "another file"),
        (_external_constant, "another file"),
        (_loop, "control flow"),
        (_hidden_graph, "graph inside"),
        (_custom, r"'Run' of the domain 'com\.example'"),
        (_sequence, "SequenceConstruct"),
        (_function, "functions of its own"),
        (_sparse, "sparse"),
        (_opset, "opset 20"),
        (_no_graph, "one graph"),
    ],
)
def test_what_reaches_beyond_is_refused(change: Change, message: str) -> None:
    model = _small()
    change(model)
    with pytest.raises(GraphError, match=message):
        check_graph(model.SerializeToString(), OPSET)


def test_two_graphs_in_one_file_are_refused() -> None:
    content = _small().SerializeToString()
    with pytest.raises(GraphError, match="one graph"):
        check_graph(content + content, OPSET)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused_in_words(content: bytes) -> None:
    with pytest.raises(GraphError, match="expected"):
        check_graph(content, OPSET)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_never_ends_in_another_error(at: int, byte: int) -> None:
    content = bytearray(_small().SerializeToString())
    content[at % len(content)] = byte
    with contextlib.suppress(GraphError):
        check_graph(bytes(content), OPSET)
