"""Where kernels run: finding a CUDA device, compiling the sources in `kernels/`, launching on torch's current stream.

A source is compiled by NVRTC when it is first used and kept on disk, named by what went in: source, options, compiler
and architecture (in CUPY_CACHE_DIR, else ~/.cupy/kernel_cache; for the process alone where that cannot be written).
CuPy would compile it too, but has subnormal numbers flushed to zero, and these decide which entries are tokens.
CuPy is imported when a device is first asked for.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ican_ml.encoding.csr import on_device
from ican_ml.resources import resource_folder

OPTIONS = ("--std=c++17",)
"""What the compiler is told of every source. No fast-math: subnormal numbers count, divisions are exact."""


class Device(Protocol):
    """Where kernels run: a GPU, or in the tests its emulation, whose memory is the host's."""

    xp: Any
    """CuPy, or what has its interface."""

    largest_shared: int
    """Bytes of shared memory that a block may have."""

    def current(self) -> AbstractContextManager[Any]:
        """The stream that arrays and kernels are ordered by."""
        ...

    def to_device(self, array: Any) -> Any:
        """A contiguous array on the device, itself where it is one."""
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
        return self.xp.cuda.Stream.from_external(torch.cuda.current_stream())

    def to_device(self, array: Any) -> Any:
        """See `Device.to_device`."""
        return self.xp.asarray(array, order="C", blocking=True)

    def to_host(self, array: Any, out: Any = None) -> Any:
        """See `Device.to_host`."""
        return array.get(out=out)

    def launch(self, source: str, kernel: str, blocks: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
        """See `Device.launch`."""
        values = tuple(np.uint64(0) if argument is None else argument for argument in arguments)
        function = _kernel(self.xp, self.xp.cuda.Device().id, source, kernel)
        function((blocks,), (threads,), values, shared_mem=shared_bytes)


def source_text(source: str) -> str:
    """The text of `kernels/<source>.cu` as the compiler gets it, `common.cuh` in its place."""
    folder = resource_folder("kernels")
    common = (folder / "common.cuh").read_text().replace("#pragma once\n", "")
    return (folder / f"{source}.cu").read_text().replace('#include "common.cuh"\n', common)


def compiled(nvrtc: Any, source: str, architecture: str) -> Path:
    """The file of a source compiled for an architecture such as "sm_90"; `nvrtc` is `cupy.cuda.nvrtc`.

    Raises
    ------
    RuntimeError
        When the compiler refuses the source; the message is its log.
    """
    text, options = source_text(source), (*OPTIONS, f"--gpu-architecture={architecture}")
    digest = sha256(repr((text, options, nvrtc.getVersion())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    path = folder / f"ican_{source}_{architecture}_{digest}.cubin"
    if path.exists():
        return path
    program = nvrtc.createProgram(text, f"{source}.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        binary = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{source}.cu: {error}\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)
    written = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written.write_bytes(binary)
    except OSError:
        written = path = Path(tempfile.mkdtemp(prefix="ican_kernels_")) / path.name
        written.write_bytes(binary)
    return written.replace(path)


@cache
def _module(xp: Any, device: int, source: str) -> Any:
    architecture = f"sm_{xp.cuda.Device(device).compute_capability}"
    return xp.RawModule(path=str(compiled(xp.cuda.nvrtc, source, architecture)))


@cache
def _kernel(xp: Any, device: int, source: str, kernel: str) -> Any:
    """A kernel that may use all the shared memory of a block; what a launch asks for decides what it takes."""
    function = _module(xp, device, source).get_function(kernel)
    largest = int(xp.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])
    function.max_dynamic_shared_size_bytes = largest - function.shared_size_bytes
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


def stream_of(array: Any) -> AbstractContextManager[Any]:
    """The stream that an array's arithmetic is ordered by; nothing for one in host memory."""
    return device().current() if on_device(array) else nullcontext()
