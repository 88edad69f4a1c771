"""What a model file may hold, read from its bytes before onnxruntime sees it. Standard library only.

A hostile ONNX file can name a file outside itself (external data), call an operator of a library that it brings, or
run a loop without end. None of these is in what training exports, so none is let in: operators of the ``ai.onnx``
domain at the exported opset, no control flow, no sequences, no model-local functions, every weight inside the file.

The wire format is Protocol Buffers (https://protobuf.dev/programming-guides/encoding); the field numbers are those of
``onnx.proto3`` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of the messages on the way to everything that is checked.
_MODEL_OPSET, _MODEL_GRAPH, _MODEL_FUNCTION = 8, 7, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS, _ATTRIBUTE_SPARSE = 5, 10, (22, 23)
_ATTRIBUTE_GRAPHS = (6, 11)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_REFUSED = {"If", "Loop", "Scan", "Optional", "OptionalGetElement", "OptionalHasElement"}
_MOST_NODES = 100_000


class GraphError(ValueError):
    """A model file that may not be run: says what it holds."""


def check_graph(model: bytes, opset: int) -> None:
    """Refuse a model file that is no ONNX, or holds what the module docstring names.

    Raises
    ------
    GraphError
        With what was expected and what came.
    """
    graphs, versions = [], []
    for number, value in _fields(memoryview(model)):
        if number == _MODEL_FUNCTION:
            raise GraphError("expected no functions of its own, got one")
        if number == _MODEL_OPSET:
            versions.append(_opset(_message(value)))
        elif number == _MODEL_GRAPH:
            graphs.append(_message(value))
    own = [version for domain, version in versions if domain in ("", "ai.onnx")]
    if len(graphs) != 1 or own != [opset]:
        raise GraphError(f"expected one graph of opset {opset}, got {len(graphs)} of {own or 'none'}")
    _check(graphs[0])


def _check(graph: memoryview) -> None:
    nodes = 0
    for number, value in _fields(graph):
        if number == _GRAPH_SPARSE:
            raise GraphError("expected dense weights, got sparse ones")
        if number == _GRAPH_INITIALIZER:
            _check_tensor(_message(value))
        elif number == _GRAPH_NODE:
            nodes += 1
            _check_node(_message(value))
    if nodes > _MOST_NODES:
        raise GraphError(f"expected at most {_MOST_NODES} operators, got {nodes}")


def _check_node(node: memoryview) -> None:
    domain = operator = ""
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            _check_attribute(_message(value))
    if domain not in ("", "ai.onnx"):
        raise GraphError(f"expected operators of ONNX, got {operator!r} of the domain {domain!r}")
    if operator in _REFUSED or "Sequence" in operator:
        raise GraphError(f"expected no control flow and no sequences, got {operator!r}")


def _check_attribute(attribute: memoryview) -> None:
    for number, value in _fields(attribute):
        if number in _ATTRIBUTE_GRAPHS:
            raise GraphError("expected no control flow, got a graph inside an operator")
        if number in _ATTRIBUTE_SPARSE:
            raise GraphError("expected dense constants, got sparse ones")
        if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _check_tensor(_message(value))


def _check_tensor(tensor: memoryview) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            raise GraphError("expected every weight inside the file, got one that lies in another file")


def _opset(entry: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(entry):
        if number == _OPSET_DOMAIN:
            domain = _text(value)
        elif number == _OPSET_VERSION and isinstance(value, int):
            version = value
    return domain, version


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one message: a number, or the bytes of text, tensor or message."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == _VARINT:
            value, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            value, at = 0, at + (8 if kind == _FIXED64 else 4)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise GraphError("expected an ONNX file, got something else")
        if at > end:
            raise GraphError("expected a whole ONNX file, got the beginning of one")
        yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise GraphError("expected a whole ONNX file, got the beginning of one")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise GraphError("expected an ONNX file, got something else")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise GraphError("expected an ONNX file, got something else")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8", "replace")
