"""The CUDA backend on the emulator: its own host code and the shipped kernels, with NumPy for memory on the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ican_ml.encoding import backends, cuda, cuda_device
from tests.emulator.emulator import Build, emulator_for_tests

LARGEST_SHARED = 227 * 1024
ORDERS = st.tuples(st.integers(0, 3), st.integers(0, 3))


class EmulatedDevice:
    """What `ican_ml.encoding.cuda_device.CudaDevice` is, without a GPU.

    Parameters
    ----------
    build
        Of the emulator.
    sources
        The ``.cu`` files; those that ship by default.
    """

    xp = np

    def __init__(self, build: Build, sources: list[Path] | None = None) -> None:
        self.emulator = emulator_for_tests(build, sources)
        self.largest_shared = LARGEST_SHARED
        self.orders = (0, 0)
        self.examples = 300 if build == "plain" else 40

    def current(self) -> Any:
        return nullcontext()

    def to_device(self, array: Any) -> Any:
        return np.ascontiguousarray(array)

    def to_host(self, array: Any, out: Any = None) -> Any:
        if out is None:
            return array
        out[...] = array
        return out

    def launch(self, source: str, kernel: str, blocks: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
        threads_in, blocks_in = self.orders
        self.emulator.launch(
            kernel, blocks, threads, shared_bytes, *arguments, thread_order=threads_in, block_order=blocks_in
        )

    def fuzz(self, *inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
        """Decorator that checks at once, on many inputs and, each time, other orders of threads and blocks."""

        def decorate(check: Callable[..., None]) -> None:
            @settings(deadline=None, max_examples=self.examples, suppress_health_check=list(HealthCheck))
            @given(ORDERS, st.tuples(*inputs))
            def run(orders: tuple[int, int], drawn: tuple[Any, ...]) -> None:
                self.orders = orders
                check(*drawn)

            run()

        return decorate


@contextmanager
def emulated(build: Build, sources: list[Path] | None = None) -> Iterator[EmulatedDevice]:
    """`backend="cuda"` is the emulator, within."""
    device = EmulatedDevice(build, sources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "device", lambda: device)
        patch.setattr(cuda_device, "why_unavailable", lambda: "")
        backends._load.cache_clear()
        yield device
    backends._load.cache_clear()
    device.emulator.close()
