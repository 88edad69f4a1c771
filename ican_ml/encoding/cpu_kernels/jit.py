"""How the kernels are compiled: ahead-of-time caches where one can be written, and no fast-math beyond what is named.

Compiled code is cached beside the source or in NUMBA_CACHE_DIR, for all later processes; where neither can be written,
each process compiles anew what it uses. Numba looks only at a function's own file for changes, so its cache name
carries a digest of all the kernels: one that calls another is compiled anew when that other changes.

Division follows NumPy. `contract` lets a product be fused into the sum that it is added to; `reassociate` lets the
compiler choose, once, the order of a sum's terms. Neither may touch what decides an integer result.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import numba

_DIGEST = sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()[:12]


def jit(
    parallel: bool = False, contract: bool = False, reassociate: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compile a function when it is first called with given dtypes."""
    relaxed = {flag for flag, asked in (("contract", contract), ("reassoc", reassociate)) if asked}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__qualname__ = f"{function.__name__}_{_DIGEST}"

        def compiled(cache: bool) -> Callable[..., Any]:
            compiler = numba.njit(cache=cache, parallel=parallel, error_model="numpy", fastmath=relaxed or False)
            return cast(Callable[..., Any], compiler(function))

        try:
            return compiled(cache=True)
        except RuntimeError:  # Numba found no folder for its cache that it may write
            return compiled(cache=False)

    return decorate


class Driver:
    """A function `f(n, ...)` that shares its work among n ranges with `numba.prange`: for one thread, or for many.

    The two are compiled from one source under two names, because Numba's cache tells functions apart by name only.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        apart = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_threads")
        apart.__module__ = function.__module__
        self._serial, self._threads = jit()(function), jit(parallel=True)(apart)

    def __call__(self, threads: int, *arguments: Any) -> Any:
        """Run on the caller's thread alone (1), or on Numba's threads, four ranges each."""
        return self._serial(1, *arguments) if threads == 1 else self._threads(4 * threads, *arguments)
