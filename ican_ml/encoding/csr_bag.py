"""`csr_bag`: every measured feature of a row, weighted by its value and summed into one embedding (torch).

In: the arrays of a `CSRBatch` as tensors, indptr int64 [rows + 1], indices int32 or int64 [nnz], values [nnz], and a
table [features, width]. Out: [rows, width]. It is `F.embedding_bag(mode="sum", per_sample_weights=values)`, as a
custom operator: its gradient for the table is race-free and repeatable, the gradient for the values is computed only
when asked for, and it exports to ONNX without a loop (`csr_bag_onnx_translation`).

float32 runs on the Numba backend, or on a GPU on the CUDA backend, in place on the tensors' memory. Other dtypes, and
machines without Numba or CuPy, take a plain path in torch operations that needs [nnz, width] of scratch.
Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ican_ml.encoding import cuda_device


def csr_bag(indptr: Tensor, indices: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """Sum of `values[i] * table[indices[i]]` over the entries i of each row.

    Duplicate features of a row add up; an empty row is zero.

    Parameters
    ----------
    indptr
        int64 [rows + 1]. Row r holds entries `indptr[r] - indptr[0]` to `indptr[r + 1] - indptr[0]`.
    indices
        int32 or int64 [nnz]. Rows of `table`, in any order.
    values
        [nnz]. Weights, of the table's dtype.
    table
        [features, width]. Embeddings.

    Returns
    -------
    Tensor
        [rows, width], of the table's dtype.

    Raises
    ------
    ValueError
        When shapes or dtypes differ from the above, or (on the CPU) the offsets or ids point outside their arrays.
    """
    if not (indptr.ndim == indices.ndim == values.ndim == 1 and table.ndim == 2):
        raise ValueError(
            "csr_bag expects indptr, indices and values with 1 dimension and a table with 2, got "
            f"{indptr.ndim}, {indices.ndim}, {values.ndim} and {table.ndim}"
        )
    if indptr.dtype != torch.int64 or indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"csr_bag expects int64 indptr and int32 or int64 indices, got {indptr.dtype} and {indices.dtype}"
        )
    if values.dtype != table.dtype or not table.is_floating_point():
        raise ValueError(
            f"csr_bag expects values and table of one floating dtype, got {values.dtype} and {table.dtype}; "
            "cast the values: values.to(table.dtype)"
        )
    needs_grad = torch.is_grad_enabled() and (values.requires_grad or table.requires_grad)
    if not needs_grad and _eager(indptr, indices, values, table):
        return _bag(indptr, indices, values, table)
    bagged: Tensor = _csr_bag(indptr, indices, values, table)
    return bagged


def _eager(indptr: Tensor, indices: Tensor, values: Tensor, table: Tensor) -> bool:
    """Nobody watches: tensors as they are, not traced, compiled, faked or counted, so torch need not dispatch."""
    return (
        type(indptr) is type(indices) is type(values) is Tensor
        and (type(table) is Tensor or type(table) is torch.nn.Parameter)
        and not torch.compiler.is_dynamo_compiling()
        and not is_in_torch_dispatch_mode()
    )


def _bag(indptr: Tensor, indices: Tensor, values: Tensor, table: Tensor) -> Tensor:
    backend = _backend(table)
    if backend is None:
        _check_bounds(indptr, indices, values.shape[0], table.shape[0])
        wide = _accumulator(table.dtype)
        out = table.new_zeros((indptr.shape[0] - 1, table.shape[1]), dtype=wide)
        out.index_add_(0, _row_ids(indptr), values.to(wide)[:, None] * table[indices.long()].to(wide))
        return out.to(table.dtype)
    entries, n_rows, (n_features, width) = values.size(0), indptr.size(0) - 1, table.shape
    if not table.is_cpu or entries * width >= backend.WORK_WORTH_THREADS or n_rows < 0:
        _check_bounds(indptr, indices, entries, n_features)
        return _through(backend.bag, indptr, indices, values, table)
    # A small batch costs as much to hand over as to add up: addresses are the fastest way in.
    parts = [tensor.contiguous() for tensor in (indptr, indices, values, table)]
    out = table.new_empty((n_rows, width))
    addresses = [tensor.data_ptr() for tensor in (*parts, out)]
    wide_ids = indices.dtype is torch.int64
    if indices.size(0) != entries or not backend.bag_at(*addresses, n_rows, entries, n_features, width, wide_ids):
        _check_bounds(indptr, indices, entries, n_features)
    return out


def _grad_table(indptr: Tensor, indices: Tensor, values: Tensor, grad: Tensor, n_features: int) -> Tensor:
    backend = _backend(grad)
    if backend is not None:
        return _through(backend.bag_transposed, indptr, indices, values, grad, n_features)
    wide = _accumulator(grad.dtype)
    out = grad.new_zeros((n_features, grad.shape[1]), dtype=wide)
    out.index_add_(0, indices.long(), values.to(wide)[:, None] * grad[_row_ids(indptr)].to(wide))
    return out.to(grad.dtype)


def _grad_values(indptr: Tensor, indices: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    backend = _backend(grad)
    if backend is not None:
        return _through(backend.bag_grad_values, indptr, indices, table, grad)
    wide = _accumulator(grad.dtype)
    return (grad[_row_ids(indptr)].to(wide) * table[indices.long()].to(wide)).sum(1).to(grad.dtype)


def _fake_bag(indptr: Tensor, indices: Tensor, values: Tensor, table: Tensor) -> Tensor:
    return table.new_empty((indptr.shape[0] - 1, table.shape[1]))


def _fake_grad_table(indptr: Tensor, indices: Tensor, values: Tensor, grad: Tensor, n_features: int) -> Tensor:
    return grad.new_empty((n_features, grad.shape[1]))


def _fake_grad_values(indptr: Tensor, indices: Tensor, table: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty((indices.shape[0],))


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    indptr, indices, values, table = inputs
    values_need_grad, table_needs_grad = ctx.needs_input_grad[2:4]
    ctx.n_features = table.shape[0]
    ctx.save_for_backward(indptr, indices, values if table_needs_grad else None, table if values_need_grad else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:
    indptr, indices, values, table = ctx.saved_tensors
    grad_values = None if table is None else _OPERATORS.csr_bag_grad_values.default(indptr, indices, table, grad)
    grad_table = (
        None if values is None else _OPERATORS.csr_bag_grad_table.default(indptr, indices, values, grad, ctx.n_features)
    )
    return None, None, grad_values, grad_table


# Registered on torch's own library rather than through `torch.library.custom_op`, whose wrapper takes as long as the
# sums of a small batch. The kernel says nothing of the device: each runs where its tensors are.
_LIBRARY: Any = torch.library.Library("ican", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS: Any = torch.ops.ican
_ARRAYS = "Tensor indptr, Tensor indices"
for _name, _arguments, _kernel, _fake in (
    ("csr_bag", "Tensor values, Tensor table", _bag, _fake_bag),
    ("csr_bag_grad_table", "Tensor values, Tensor grad, SymInt n_features", _grad_table, _fake_grad_table),
    ("csr_bag_grad_values", "Tensor table, Tensor grad", _grad_values, _fake_grad_values),
):
    _LIBRARY.define(f"{_name}({_ARRAYS}, {_arguments}) -> Tensor")
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ican::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("ican::csr_bag", _backward, setup_context=_save_for_backward, lib=_LIBRARY)
_csr_bag = _OPERATORS.csr_bag.default


def csr_bag_onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translation of `csr_bag` for `torch.onnx.export(dynamo=True, opset_version=20, custom_translation_table=...)`.

    The graph scatters the entries into a dense [rows, features] matrix and multiplies it by the table: no loop, any
    number of rows and entries, zero among them. Row ids are the running count of rows that ended before an entry.
    """
    import onnx
    from onnxscript import opset20

    op: Any = opset20
    int_zero = onnx.helper.make_tensor("zero", onnx.TensorProto.INT64, [1], [0])
    int_one = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])

    def translate(indptr: Any, indices: Any, values: Any, table: Any) -> Any:
        zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
        n_entries, n_features = op.Shape(indices), op.Shape(table, start=0, end=1)
        start = op.Slice(indptr, zero, one, zero)
        ends = op.Sub(op.Slice(indptr, one, op.Constant(value_ints=[2**62]), zero), start)
        n_rows = op.Shape(ends)
        ended_here = op.ScatterElements(
            op.ConstantOfShape(op.Add(n_entries, one), value=int_zero),
            ends,
            op.ConstantOfShape(n_rows, value=int_one),
            axis=0,
            reduction="add",
        )
        rows = op.Slice(op.CumSum(ended_here, op.Constant(value_int=0)), zero, n_entries, zero)
        # Not ScatterND: onnxruntime's CPU kernel runs its updates in parallel and loses some where a feature repeats.
        dense = op.ScatterElements(
            op.ConstantOfShape(op.Mul(n_rows, n_features)),
            op.Add(op.Mul(rows, n_features), op.Cast(indices, to=onnx.TensorProto.INT64)),
            values,
            axis=0,
            reduction="add",
        )
        return op.MatMul(op.Reshape(dense, op.Concat(n_rows, n_features, axis=0)), table)

    return {_csr_bag: translate}


@cache
def _module(kind: str) -> Any:
    """The backend of a device, where it runs here."""
    runs = find_spec("numba") is not None if kind == "cpu" else kind == "cuda" and cuda_device.available()
    return import_module(f"ican_ml.encoding.{kind}") if runs else None


def _backend(tensor: Tensor) -> Any:
    """The backend that serves this tensor, else None: the plain path."""
    return _module("cpu" if tensor.is_cpu else tensor.device.type) if tensor.dtype is torch.float32 else None


def _through(function: Callable[..., Any], *arguments: Any) -> Tensor:
    """A backend's function on tensors, in place on their memory."""
    tensors = [argument.detach().contiguous() for argument in arguments if isinstance(argument, Tensor)]
    numbers = arguments[len(tensors) :]
    if tensors[0].is_cpu:
        bagged: Tensor = torch.from_numpy(function(*(tensor.numpy() for tensor in tensors), *numbers))
    else:
        bagged = _module("cuda").on_tensors(function, tensors, *numbers)
    return bagged


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _row_ids(indptr: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(indptr.shape[0] - 1, device=indptr.device), indptr.diff())


def _check_bounds(indptr: Tensor, indices: Tensor, n_values: int, n_features: int) -> None:
    """Refuse what would read outside the arrays; contents on other devices are checked there, without a wait."""
    if indices.shape[0] != n_values or indptr.shape[0] == 0:
        raise ValueError(
            f"expected rows + 1 pointers, and as many indices as values, got {indptr.shape[0]} pointers, "
            f"{indices.shape[0]} indices and {n_values} values"
        )
    if indptr.device.type != "cpu":
        return
    offsets, ids = (tensor.contiguous().numpy() for tensor in (indptr, indices))
    if offsets[-1] - offsets[0] != ids.size:
        raise ValueError(
            f"indptr must span as many entries as there are indices, {ids.size}; it spans {offsets[-1] - offsets[0]}"
        )
    if (offsets[1:] < offsets[:-1]).any():
        raise ValueError("indptr must never decrease: a row ends where the next one starts")
    if ids.size and ids.view(f"uint{8 * ids.itemsize}").max() >= n_features:
        raise ValueError(f"indices must lie in 0..{n_features - 1}, got {ids.min()}..{ids.max()}")
