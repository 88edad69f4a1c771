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
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

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


def _ask(typing: Any, array: Any, at: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        pointer, number = builder.bitcast(builder.gep(source.data, [arguments[1]]), cgutils.voidptr_t), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, *(ir.Constant(number, n) for n in (0, 3, 1))])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


ask: Any = intrinsic(_ask)
"""`(array, at)`: ask for the line of the cache that an element of a flat array lies in; nothing waits for it."""


def _wide(typing: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # Past llvmlite's own list of attributes: this one is LLVM's, and other targets ignore it.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), emit


wide_vectors: Any = intrinsic(_wide)
"""Called in a function, has its loops use vectors of 512 bits where there are any; LLVM by itself stops at 256."""


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
