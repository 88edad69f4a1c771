"""`csr_bag`: values, gradients, torch's own checks of a custom operator, and the same numbers out of onnxruntime."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ican_ml.encoding import csr_bag as bag
from ican_ml.encoding.csr_bag import csr_bag, csr_bag_onnx_translation

FEATURES, WIDTH = 30, 21


def _entries(
    lengths: list[int], dtype: torch.dtype = torch.float32, index: torch.dtype = torch.int64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    indptr = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))
    indices = torch.from_numpy(rng.integers(0, FEATURES, sum(lengths))).to(index)
    return indptr, indices, torch.from_numpy(rng.standard_normal(sum(lengths))).to(dtype)


def _table(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(9).standard_normal((FEATURES, WIDTH))).to(dtype)


def _loops(indptr: Tensor, indices: Tensor, values: Tensor, table: Tensor) -> Tensor:
    out = torch.zeros(len(indptr) - 1, table.shape[1], dtype=torch.float64)
    for r in range(len(indptr) - 1):
        for i in range(int(indptr[r]), int(indptr[r + 1])):
            out[r] += values[i].double() * table[indices[i]].double()
    return out


SHAPES = [[5], [0], [3, 0, 17, 1], [0, 0, 0], [0, 9, 0], []]


@pytest.mark.parametrize("lengths", SHAPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("numba", [True, False])
def test_csr_bag_equals_loops(
    lengths: list[int], index: torch.dtype, numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not numba:
        monkeypatch.setattr(bag, "_module", lambda kind: None)
    entries = _entries(lengths, index=index)
    found = csr_bag(*entries, _table())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), _loops(*entries, _table()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numba", [True, False])
def test_row_pointers_need_not_start_at_0(numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not numba:
        monkeypatch.setattr(bag, "_module", lambda kind: None)
    (indptr, indices, values), table = _entries([3, 0, 17]), _table().requires_grad_()
    near, far = (csr_bag(pointers, indices, values, table) for pointers in (indptr, indptr + 2**31 + 5))
    torch.testing.assert_close(near, far, rtol=0, atol=0)
    near, far = (torch.autograd.grad((each**2).sum(), table)[0] for each in (near, far))
    torch.testing.assert_close(near, far, rtol=0, atol=0)


def test_csr_bag_keeps_the_table_s_dtype() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
        entries = _entries([3, 0, 17], dtype)
        found = csr_bag(*entries, _table(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), _loops(*entries, _table(dtype)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lengths", SHAPES)
def test_gradients_pass_gradcheck(lengths: list[int]) -> None:
    indptr, indices, values = _entries(lengths, torch.float64)
    values, table = values.requires_grad_(), _table(torch.float64)[:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, t: csr_bag(indptr, indices, v, t), (values, table))


@pytest.mark.parametrize("lengths", SHAPES)
def test_float32_gradients_equal_float64_ones(lengths: list[int]) -> None:
    grads = {}
    for dtype in (torch.float32, torch.float64):
        indptr, indices, values = _entries(lengths, dtype)
        table = _table(dtype)
        values.requires_grad_(), table.requires_grad_()
        grads[dtype] = torch.autograd.grad((csr_bag(indptr, indices, values, table) ** 2).sum(), (values, table))
    for found, expected in zip(grads[torch.float32], grads[torch.float64], strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_come_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> Tensor:
        raise AssertionError("this gradient was not asked for")

    indptr, indices, values = _entries([4, 0, 3])
    table = _table().requires_grad_()
    monkeypatch.setattr(bag, "_grad_values", never)
    torch.autograd.grad(csr_bag(indptr, indices, values, table).sum(), table)
    monkeypatch.undo()
    monkeypatch.setattr(bag, "_grad_table", never)
    torch.autograd.grad(csr_bag(indptr, indices, values.requires_grad_(), _table()).sum(), values)


def test_a_gradient_that_is_not_contiguous_is_read_right() -> None:
    entries, table = _entries([4, 0, 3]), _table().requires_grad_()
    (expanded,) = torch.autograd.grad(csr_bag(*entries, table).sum(), table)  # strides (0, 0)
    (transposed,) = torch.autograd.grad(csr_bag(*entries, table), table, torch.ones(WIDTH, 3).T)
    torch.testing.assert_close(expanded, transposed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[3, 0, 17, 1], [0, 0]])
def test_torch_finds_no_fault_with_the_operators(lengths: list[int], dtype: torch.dtype) -> None:
    indptr, indices, values = _entries(lengths, dtype)
    table, grad = _table(dtype), torch.ones(len(lengths), WIDTH, dtype=dtype)
    ops = torch.ops.ican
    torch.library.opcheck(ops.csr_bag.default, (indptr, indices, values, table.clone().requires_grad_()))
    torch.library.opcheck(
        ops.csr_bag.default,
        (indptr, indices, values.clone().requires_grad_(), table.clone().requires_grad_()),
    )
    torch.library.opcheck(ops.csr_bag_grad_table.default, (indptr, indices, values, grad, FEATURES))
    torch.library.opcheck(ops.csr_bag_grad_values.default, (indptr, indices, table, grad))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": torch.tensor([0, 2, 1, 3])}, "never decrease"),
        ({"indptr": torch.tensor([0, 1, 2, 9])}, "span as many entries"),
        ({"indptr": torch.tensor([0, 1, 2, 3], dtype=torch.int32)}, "int64 indptr"),
        ({"indices": torch.tensor([0, 1, FEATURES])}, r"got 0\.\.30"),
        ({"indices": torch.tensor([0, -1, 1], dtype=torch.int32)}, r"got -1\.\.1"),
        ({"values": torch.zeros(2)}, "3 indices and 2 values"),
        ({"values": torch.zeros(3, dtype=torch.float64)}, "one floating dtype"),
        ({"values": torch.zeros(3, 1)}, "1 dimension"),
    ],
)
def test_csr_bag_refuses_what_would_read_outside_its_arrays(change: dict[str, Tensor], message: str) -> None:
    arguments = {
        "indptr": torch.tensor([0, 1, 2, 3]),
        "indices": torch.tensor([0, 1, 2]),
        "values": torch.zeros(3),
        "table": _table(),
    } | change
    with pytest.raises(ValueError, match=message):
        csr_bag(**arguments)


class _TwoModalities(nn.Module):
    """Bags of two modalities beside a dense input, as the network has them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(_table())
        self.head = nn.Linear(WIDTH + 2, 3)

    def forward(
        self,
        a_indptr: Tensor,
        a_indices: Tensor,
        a_values: Tensor,
        b_indptr: Tensor,
        b_indices: Tensor,
        b_values: Tensor,
        summary: Tensor,
    ) -> Tensor:
        bags = csr_bag(a_indptr, a_indices, a_values, self.table) + csr_bag(b_indptr, b_indices, b_values, self.table)
        head: Tensor = self.head(torch.cat([bags, summary], dim=1))
        return head


def _inputs(a: list[int], b: list[int]) -> dict[str, Tensor]:
    names = [f"{m}_{array}" for m in "ab" for array in ("indptr", "indices", "values")]
    return dict(zip(names, (*_entries(a), *_entries(b, seed=1)), strict=True)) | {"summary": torch.ones(len(a), 2)}


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, Any]:
    module, example = _TwoModalities().eval(), _inputs([2, 0, 3], [1, 4, 2])
    program = torch.onnx.export(
        module,
        kwargs=example,
        dynamo=True,
        opset_version=20,
        input_names=list(example),
        output_names=["out"],
        dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC} for name in example},
        custom_translation_table=csr_bag_onnx_translation(),
        verbose=False,
    )
    assert program is not None
    return module, program


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([4], [2]),
        ([0], [0]),
        ([3, 0, 9, 0, 1], [0, 1, 0, 0, 7]),
        ([0] * 5, [0] * 5),
        ([0] * 5, [0, 0, 3, 0, 0]),
        ([200] * 8, [1] * 8),
    ],
)
def test_onnxruntime_gives_the_eager_numbers(exported: tuple[nn.Module, Any], a: list[int], b: list[int]) -> None:
    module, program = exported
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    inputs = _inputs(a, b)
    inputs["b_indptr"] += 2**31 + 5
    with torch.no_grad():
        expected = module(**inputs).numpy()
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * max(1, np.abs(expected).max()))


@pytest.mark.filterwarnings("ignore")
def test_the_exported_graph_has_no_loop(exported: tuple[nn.Module, Any]) -> None:
    model = exported[1].model
    kinds = {node.op_type for node in model.graph}
    assert not kinds & {"Loop", "Scan", "If"}
    assert not any("Sequence" in kind for kind in kinds)
    assert model.opset_imports[""] == 20
    assert {node.domain for node in model.graph} == {""}
