"""Which implementation of the operators runs: the one place that knows the three backends.

Each backend is a module with the functions of `EncodingBackend`, imported when it is first asked for, so that a
machine without Numba or CuPy can still import and use this room. Errors for bad input are raised by the operators;
a backend trusts its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol, cast

import numpy.typing as npt

from ican_ml.encoding import cuda_device
from ican_ml.encoding.csr import Bool, CSRBatch, Float32, Float64, Int32, Int64, on_device

Backend = Literal["auto", "cuda", "cpu", "reference"]

_NAMES = ("auto", "cuda", "cpu", "reference")


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot run on this machine; the message says why."""


class EncodingBackend(Protocol):
    """What a backend module offers; the operators' own modules say what each function means."""

    def normalize_log1p(self, batch: CSRBatch, target_sum: float, out: Float32) -> int: ...
    def row_sums(self, batch: CSRBatch) -> Float32: ...
    def feature_stats(self, batch: CSRBatch) -> tuple[Float64, Float64, Int64]: ...
    def rank_tokens(
        self, batch: CSRBatch, rows: Int64, scale: Float32, k: int, by_magnitude: bool, target_sum: float | None
    ) -> tuple[Int32, Float32, Int32, int]: ...
    def bin_values(self, batch: CSRBatch, n_bins: int) -> Int32: ...
    def pad_ragged(
        self,
        offsets: Int64,
        columns: Sequence[Any],
        fills: Sequence[Any],
        padded: Sequence[npt.NDArray[Any]],
        mask: Bool,
    ) -> None: ...
    def bag(self, indptr: Int64, indices: Any, values: Any, table: Float32) -> Float32: ...
    def bag_transposed(
        self, indptr: Int64, indices: Any, values: Any, rows_table: Float32, n_features: int
    ) -> Float32: ...


def resolve(name: Backend, data: Any = None) -> EncodingBackend:
    """Backend module of that name; "auto" goes where the data lies: cuda on a device, else cpu, or reference.

    Parameters
    ----------
    data
        An array that the backend will read.

    Raises
    ------
    ValueError
        When the name is not a backend's, or data on a device is meant for a backend that reads the host's memory.
    BackendUnavailable
        When the backend cannot run on this machine.
    """
    if name not in _NAMES:
        raise ValueError(f"backend must be one of {', '.join(_NAMES)}; got {name!r}")
    if on_device(data) and name not in ("auto", "cuda"):
        raise ValueError(f"data on a CUDA device needs backend 'auto' or 'cuda', got {name!r}; or copy it to the host")
    return _load(name if name != "auto" else "cuda" if on_device(data) else _fastest_of_host())


@cache
def _fastest_of_host() -> str:
    return "cpu" if find_spec("numba") else "reference"


@cache
def _load(name: str) -> EncodingBackend:
    if name == "cuda" and not cuda_device.available():
        raise BackendUnavailable(cuda_device.why_unavailable())
    if name == "cpu" and not find_spec("numba"):
        raise BackendUnavailable("the cpu backend needs numba: pip install numba, or use backend='reference'")
    return cast(EncodingBackend, import_module(f"ican_ml.encoding.{name}"))
