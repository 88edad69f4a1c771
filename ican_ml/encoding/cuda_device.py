"""Where kernels run: finding a CUDA device, compiling the sources in `kernels/`, launching on torch's current stream.

Sources are compiled when they are first used and kept on disk by CuPy, keyed by source, options and architecture
(CUPY_CACHE_DIR, else ~/.cupy/kernel_cache). CuPy is imported when a device is first asked for.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from ican_ml.resources import resource_folder


class Device(Protocol):
    """Where kernels run: a GPU, or in the tests its emulation, whose memory is the host's."""

    xp: Any
    """CuPy, or what has its interface."""

    largest_shared: int
    """Bytes of shared memory that a block may have."""

    def current(self) -> AbstractContextManager[Any]:
        """The stream that arrays and kernels are ordered by."""
        ...

    def to_host(self, array: Any, out: Any = None) -> Any:
        """An array's contents in host memory, in `out` where given."""
        ...

    def launch(self, source: str, kernel: str, blocks: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
        """Launch `kernel` of `kernels/<source>.cu`; scalars are NumPy's, of the kernel's types, None a null pointer."""
        ...


class CudaDevice:
    """The current CUDA device, through CuPy."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self.largest_shared = int(cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])

    def current(self) -> AbstractContextManager[Any]:
        """Torch's current stream where torch uses the device, else CuPy's."""
        torch: Any = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return nullcontext()
        return self.xp.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def to_host(self, array: Any, out: Any = None) -> Any:
        """See `Device.to_host`."""
        return array.get(out=out)

    def launch(self, source: str, kernel: str, blocks: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
        """See `Device.launch`."""
        values = tuple(np.uint64(0) if argument is None else argument for argument in arguments)
        function = _kernel(self.xp, self.xp.cuda.Device().id, source, kernel, shared_bytes)
        function((blocks,), (threads,), values, shared_mem=shared_bytes)


@cache
def _module(xp: Any, device: int, source: str) -> Any:
    folder = resource_folder("kernels")
    common = (folder / "common.cuh").read_text().replace("#pragma once\n", "")
    code = (folder / f"{source}.cu").read_text().replace('#include "common.cuh"\n', common)
    return xp.RawModule(code=code, options=("--std=c++17",))


@cache
def _kernel(xp: Any, device: int, source: str, kernel: str, shared_bytes: int) -> Any:
    function = _module(xp, device, source).get_function(kernel)
    if shared_bytes > function.max_dynamic_shared_size_bytes:
        function.max_dynamic_shared_size_bytes = shared_bytes
    return function


def available() -> bool:
    """Whether the operators can run on a CUDA device here."""
    return not why_unavailable()


@cache
def why_unavailable() -> str:
    """One sentence for the user who asked for this backend; empty where it can run."""
    if not find_spec("cupy"):
        return "the cuda backend needs CuPy: pip install 'ican_ml[gpu]', or use backend='auto', 'cpu' or 'reference'"
    try:
        import cupy

        found = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a missing driver or library shows as one of many
        said = " ".join(str(error).split())
        return f"the cuda backend needs an NVIDIA driver and device; CuPy says: {said}; use backend='cpu'"
    return "" if found else "the cuda backend found no CUDA device; use backend='cpu'"


@cache
def device() -> Device:
    """The device of this process."""
    return CudaDevice()
