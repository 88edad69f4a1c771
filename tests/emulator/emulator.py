"""Run CUDA C++ sources, unchanged, on the CPU.

An :class:`Emulator` compiles ``.cu`` files with g++ against ``cuda.hpp`` and starts one process that runs their
kernels: each CUDA thread is a fiber, all take turns on one thread of the machine, in an order that the launch chooses.
Three builds see different faults:

``plain``
    barriers that not all threads reach, deadlocks, wrong lane masks. Fast: for comparing results.
``asan``
    the same, and AddressSanitizer and UBSan: reads and writes beside arrays, static and dynamic shared memory.
``tsan``
    the same as ``plain``, and races between the threads of a block or of different blocks, and reads of shared memory
    that was never written. The compiler's thread instrumentation, answered by a detector that knows CUDA (races.cpp).

In all of them shared memory is filled with 0xFF bytes before each block (NaN, -1).

Not covered: speed, `__threadfence` between blocks, what only one GPU's compiler or memory system does, kernels that
wait for other blocks, grids and blocks of more than one dimension.
"""

import contextlib
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

import numpy as np

from tests.emulator.build import CACHE, HERE, Build, CompileError, EmulatorUnavailable, Program, compile_program

__all__ = ["Build", "CompileError", "Emulator", "EmulatorUnavailable", "KernelFault", "emulator_for_tests"]

KERNELS = HERE.parents[1] / "kernels"
MAX_THREADS = 1024
MAX_SHARED_BYTES = 227 * 1024

_NULL, _SCALAR = -1, -2
_OPTIONS = {
    # Leaks are no matter here; stack-use-after-return would move locals off the fibers' stacks.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
# AddressSanitizer of older compilers does not start under every layout of addresses; where switching randomisation off
# is forbidden, most starts succeed all the same.
_FIXED_ADDRESSES = "import ctypes, os, sys; ctypes.CDLL(None).personality(0x40000); os.execv(sys.argv[1], sys.argv[1:])"
_HEADLINE = re.compile(r"^emulator: .*|ERROR: AddressSanitizer.*|runtime error: .*|.*Assertion.*", re.MULTILINE)
_PLACE = re.compile(r"([^\s/:()]+\.cuh?):(\d+)")


class KernelFault(Exception):
    """A kernel did what it must not.

    Attributes
    ----------
    report : str
        All that the emulator or the sanitizer wrote, with source lines.
    places : list of (str, int)
        The file names and lines of CUDA sources in it, in order; the first is where the fault was noticed.
    """

    def __init__(self, message: str, report: str) -> None:
        self.report = report
        self.places = [(name, int(line)) for name, line in _PLACE.findall(report)]
        if self.places:
            message += f" ({self.places[0][0]}:{self.places[0][1]})"
        super().__init__(message)


class Emulator:
    """Kernels that run on the CPU; a context manager.

    Parameters
    ----------
    build : {"plain", "asan", "tsan"}
        Which faults are seen, see the module.
    sources : sequence of Path, optional
        The ``.cu`` files; all of ``kernels/`` by default. Kernels' names must differ among them.
    cache : Path, optional
        The folder of compiled files.
    seconds : int, optional
        A launch that takes longer is a fault.

    Raises
    ------
    EmulatorUnavailable, CompileError
        See :func:`tests.emulator.build.compile_program`.
    """

    def __init__(
        self, build: Build, sources: Sequence[Path] | None = None, cache: Path = CACHE, seconds: int = 60
    ) -> None:
        self.build = build
        self.seconds = seconds
        sources = sorted(KERNELS.glob("*.cu")) if sources is None else sources
        self._program: Program = compile_program(build, sources, cache)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (close() does)
        self._kernels: dict[str, tuple[int, list[str]]] = {}
        try:
            self._start()
        except EmulatorUnavailable:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._stop()
        self._errors.close()

    @property
    def kernels(self) -> dict[str, list[str]]:
        """The kernels' names and their parameters' types, as ``i4``; pointers are ``*f4`` or, to const, ``*cf4``."""
        return {name: parameters for name, (_, parameters) in self._kernels.items()}

    def launch(
        self,
        kernel: str,
        grid: int,
        block: int,
        shared_bytes: int,
        *arguments: Any,
        thread_order: int = 0,
        block_order: int = 0,
    ) -> None:
        """Run a kernel; arrays are changed in place.

        Parameters
        ----------
        kernel : str
        grid, block : int
            Blocks, and threads in each.
        shared_bytes : int
            Size of the dynamic shared memory.
        *arguments : numpy.ndarray, number or None
            One for each parameter. Pointers take a C-contiguous array of their type (of any type, where they point to
            a struct or to void) or None; scalars take what NumPy converts to their type without loss of range. An array
            may be given twice: it is then one on the device, too.
        thread_order, block_order : int
            0 for ascending, 1 for descending, any other seeds a random permutation.

        Raises
        ------
        KernelFault
            After which the emulator goes on: arrays are as they were.
        ValueError, TypeError, OverflowError
            If the kernel would not start so on a device.
        """
        if kernel not in self._kernels:
            raise ValueError(f"no kernel {kernel!r}; there are {', '.join(sorted(self._kernels))}")
        if grid < 1 or not 1 <= block <= MAX_THREADS:
            raise ValueError(
                f"{kernel}: expected at least 1 block of 1 to {MAX_THREADS} threads, got {grid} of {block}"
            )
        if not 0 <= shared_bytes <= MAX_SHARED_BYTES:
            raise ValueError(
                f"{kernel}: expected at most {MAX_SHARED_BYTES} bytes of shared memory, got {shared_bytes}"
            )
        number, parameters = self._kernels[kernel]
        if len(arguments) != len(parameters):
            raise TypeError(f"{kernel}: expected {len(parameters)} arguments, got {len(arguments)}")
        arrays: list[np.ndarray[Any, Any]] = []
        returns: list[bool] = []
        packed = []
        for position, (argument, parameter) in enumerate(zip(arguments, parameters, strict=True)):
            try:
                packed.append(_pack(argument, parameter, arrays, returns))
            except (TypeError, ValueError, OverflowError) as error:
                raise type(error)(f"{kernel}, argument {position}: {error}") from None
        orders = (thread_order, block_order, len(arrays), len(packed), self.seconds)
        request = [struct.pack("<9I", number, grid, block, shared_bytes, *orders)]
        for array, back in zip(arrays, returns, strict=True):
            request += [struct.pack("<2Q", array.nbytes, back), array.tobytes()]
        request += packed
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"".join(request))
            process.stdin.flush()
        except BrokenPipeError:
            self._fault(kernel, packed)
        if len(process.stdout.read(4)) != 4:
            self._fault(kernel, packed)
        for array, back in zip(arrays, returns, strict=True):
            if back:
                answer = process.stdout.read(array.nbytes)
                array[...] = np.frombuffer(answer, array.dtype).reshape(array.shape)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [str(self._program.path)]
        if self.build == "asan":
            command = [sys.executable, "-I", "-S", "-c", _FIXED_ADDRESSES, *command]
        self._errors.seek(0)
        self._errors.truncate()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | _OPTIONS,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        variables = self._program.variables
        offsets = [number for variable in variables for number in (variable.offset, variable.size)]
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(struct.pack(f"<{1 + len(offsets)}Q", len(variables), *offsets))
            process.stdin.flush()
        kernels: dict[str, tuple[int, list[str]]] = {}
        while (line := process.stdout.readline()) not in (b".\n", b""):
            name, *parameters = line.decode().split()
            kernels[name] = (len(kernels), parameters)
        if line == b"":
            raise EmulatorUnavailable(f"the {self.build} build does not start here: {self._stop()[1]}")
        self._kernels = kernels
        return process

    def _stop(self) -> tuple[int, str]:
        """End the process; give its exit status and what it wrote to standard error."""
        process, self._process = self._process, None
        if process is None:
            return 0, ""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        status = process.wait()
        self._errors.seek(0)
        return status, self._errors.read().decode(errors="replace")

    def _fault(self, kernel: str, packed: Sequence[bytes]) -> NoReturn:
        status, report = self._stop()
        report = self._with_names(report, packed)
        headline = _HEADLINE.search(report)
        if headline:
            what = headline[0].removeprefix("emulator: ").removeprefix("ERROR: ")
        elif status == -signal.SIGALRM:
            what = f"did not end within {self.seconds} s"
        elif status < 0:
            what = f"killed by {signal.Signals(-status).name} (the asan build says where)"
        else:
            what = f"exit status {status}"
        if not what.startswith(kernel):
            what = f"{kernel}: {what}"
        raise KernelFault(f"{self.build} build: {what}", report)

    def _with_names(self, report: str, packed: Sequence[bytes]) -> str:
        """Replace numbers by what only this side knows: source lines, names of variables, arguments."""
        arrays = [int.from_bytes(argument[:8], "little", signed=True) for argument in packed]

        def lines(match: re.Match[str]) -> str:
            command = ["addr2line", "-i", "-e", str(self._program.path), hex(int(match[1]))]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            sources = [line.split(" ")[0].rpartition("/")[2] for line in found if _PLACE.search(line)]
            return "\n    in ".join(sources) or match[0]

        report = re.sub(r"site (\d+)", lines, report)
        report = re.sub(r"shared variable (\d+)", lambda match: self._program.variables[int(match[1])].name, report)
        return re.sub(r"array #(\d+)", lambda match: f"argument {arrays.index(int(match[1]))}", report)


def _pack(argument: Any, parameter: str, arrays: list[np.ndarray[Any, Any]], returns: list[bool]) -> bytes:
    """Encode an argument; an array is added to `arrays` unless it is there already."""
    if not parameter.startswith("*"):
        if isinstance(argument, np.ndarray) or argument is None:
            raise TypeError(f"expected a number for a parameter of type {parameter}, got {type(argument).__name__}")
        kind = np.dtype(parameter)
        if kind.kind in "iu" and argument != int(argument):
            raise TypeError(f"expected a whole number, got {argument!r}")
        if kind.kind in "iu" and not np.iinfo(kind).min <= argument <= np.iinfo(kind).max:
            raise OverflowError(f"{argument!r} is no {kind}")
        return struct.pack("<q", _SCALAR) + np.array(argument, kind).tobytes().ljust(8, b"\0")
    if argument is None:
        return struct.pack("<qQ", _NULL, 0)
    if not isinstance(argument, np.ndarray) or not argument.flags.c_contiguous:
        raise TypeError(f"expected a C-contiguous array or None, got {type(argument).__name__}")
    target = parameter.removeprefix("*").removeprefix("c")
    if target[0] != "V" and argument.dtype != np.dtype(target):
        raise TypeError(f"expected an array of {np.dtype(target)}, got {argument.dtype}")
    comes_back = not parameter.startswith("*c") and argument.flags.writeable
    for index, array in enumerate(arrays):
        if argument.size and np.may_share_memory(argument, array):
            if (argument.ctypes.data, argument.nbytes) != (array.ctypes.data, array.nbytes):
                raise ValueError("overlaps another argument in part")
            returns[index] |= comes_back
            return struct.pack("<qQ", index, 0)
    arrays.append(argument)
    returns.append(comes_back)
    return struct.pack("<qQ", len(arrays) - 1, 0)


def emulator_for_tests(build: Build, sources: Sequence[Path] | None = None) -> Emulator:
    """Give an emulator, or skip the test where there can be none; fail it there if ICAN_REQUIRE_EMULATOR=1."""
    import pytest

    try:
        return Emulator(build, sources)
    except EmulatorUnavailable as error:
        if os.environ.get("ICAN_REQUIRE_EMULATOR") == "1":
            pytest.fail(f"ICAN_REQUIRE_EMULATOR is set, but {error}")
        pytest.skip(str(error))
