"""Compile CUDA sources for the emulator: one object for each ``.cu`` file, one executable for a set of them.

Everything is kept in a folder under a digest of what went in, so that a source is compiled once for each build,
wherever its file lies. What nobody used for two weeks is removed.
"""

import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Build = Literal["plain", "asan", "tsan"]

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".emulator"

# DWARF 4: with 5 and a source from standard input, addr2line of binutils 2.40 takes one file's name for another's.
_COMMON = ["-std=c++17", "-gdwarf-4", "-fno-omit-frame-pointer", f"-ffile-prefix-map={HERE}/=", f"-I{HERE}"]
_WARNINGS = ["-Wall", "-Werror"]
# -ffp-contract=off: as with nvcc's __fmul_rn, a product is rounded before it is added to.
_KERNEL = ["-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-unused-function"]
_KERNEL += ["-Wno-sign-compare", "-Wno-maybe-uninitialized"]
_SANITIZERS: dict[Build, list[str]] = {
    "plain": ["-O2"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"],
    # A call in the place of a return would hide where it was made.
    "tsan": ["-O1", "-fsanitize=thread", "-fno-optimize-sibling-calls"],
}
# The scheduler is never instrumented; it is told for which build it is. libtsan is not linked: races.cpp answers.
_RUNTIME: dict[Build, tuple[list[str], list[str]]] = {
    "plain": (["runtime.cpp", "runner.cpp"], []),
    "asan": (["runtime.cpp", "runner.cpp"], ["-DEMULATOR_ASAN"]),
    "tsan": (["runtime.cpp", "runner.cpp", "races.cpp"], ["-DEMULATOR_RACES"]),
}
_LINK: dict[Build, list[str]] = {"plain": [], "asan": ["-fsanitize=address,undefined"], "tsan": []}

# Found after the preprocessor, so that macros may make kernels.
_KERNEL_NAME = re.compile(
    r"""extern \s+ "C" \s+ (?= [^;{]*? __global__) [^;{]*?
        \b void \s+ (?: __launch_bounds__ \s* \( [^)]* \) \s* )? (\w+) \s* \(""",
    re.VERBOSE,
)
_TWO_WEEKS = 14 * 24 * 3600


class EmulatorUnavailable(Exception):
    """This machine cannot run the emulator; the message says why."""


class CompileError(Exception):
    """The compiler refused a source; the message is what it said."""


@dataclass(frozen=True)
class SharedVariable:
    """A static ``__shared__`` variable: its name, its offset in the program and its size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Program:
    """An executable that runs kernels, and the static shared variables in it."""

    path: Path
    variables: tuple[SharedVariable, ...]


def compile_program(build: Build, sources: Sequence[Path], cache: Path = CACHE) -> Program:
    """Compile and link `sources` for one build, or find them compiled.

    Raises
    ------
    EmulatorUnavailable
        Where there is no g++ for x86-64 Linux, or not the sanitizers' libraries.
    CompileError
        Where a source does not compile, or holds no kernel.
    """
    version = compiler_version()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side want the same objects
        headers = _texts(HERE.glob("*.hpp"))
        runtime, defines = _RUNTIME[build]
        flags = [*_COMMON, *_WARNINGS]
        jobs: list[tuple[Path, list[str], Path | None]] = []
        for name in runtime:
            command = [*flags, "-O2", "-Wextra", *defines, "-c", str(HERE / name)]
            target = cache / f"{_digest(version, command, headers, _texts([HERE / name]))}.o"
            jobs.append((target, command, None))
        for source in sources:
            folder = source.resolve().parent
            command = [*flags, *_KERNEL, *_SANITIZERS[build], f"-I{folder}", "-x", "c++", "-c", "-"]
            command.append(f"-ffile-prefix-map={folder}/=")
            texts = _texts([source, *folder.glob("*.cuh")])
            # The folder's name is left out of the digest: the object does not depend on it.
            target = cache / f"{_digest(version, [*flags, *_KERNEL, *_SANITIZERS[build]], headers, texts)}.o"
            jobs.append((target, command, source))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: _compile(*job), jobs))
        objects = [str(target) for target, _, _ in jobs]
        program = cache / _digest(build, version, objects)
        if not program.exists():
            _run(["g++", *_LINK[build], *objects], program)
        _tidy(cache, [program, *(target for target, _, _ in jobs)])
    return Program(program, _shared_variables(program))


@functools.cache
def compiler_version() -> str:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise EmulatorUnavailable(
            f"the emulator needs Linux on x86-64, this is {platform.system()} {platform.machine()}"
        )
    if missing := [name for name in ("g++", "nm", "addr2line") if shutil.which(name) is None]:
        raise EmulatorUnavailable(f"the emulator needs g++ and binutils, {' and '.join(missing)} not found")
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


def _texts(paths: Iterable[Path]) -> list[str]:
    return [part for path in sorted(paths) for part in (path.name, path.read_text(encoding="utf-8"))]


def _digest(*parts: str | list[str]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _compile(target: Path, command: list[str], source: Path | None) -> None:
    if target.exists():
        return
    text = ""
    if source is not None:
        preprocess = ["g++", "-std=c++17", "-E", "-P", "-x", "c++", str(source.resolve())]
        found = subprocess.run(preprocess, capture_output=True, text=True, check=False)
        if found.returncode:
            raise CompileError(found.stderr)
        kernels = _KERNEL_NAME.findall(found.stdout)
        if not kernels:
            raise CompileError(f'{source}: no extern "C" __global__ void name(...) found')
        # In a namespace without a name, files may define the same functions and templates.
        lines = ['#include "cuda.hpp"', "namespace {", f'#include "{source.name}"']
        lines += [f'const emulator::Kernel emulator_{name}("{name}", {name});' for name in kernels]
        text = "\n".join([*lines, "}", ""])
    _run(["g++", *command], target, text)


def _run(command: list[str], target: Path, text: str = "") -> None:
    """Run a compiler or linker, and put its output in place at once and whole."""
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    done = subprocess.run([*command, "-o", str(unfinished)], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        if missing := re.search(r"cannot find \S*?((?:a|ub)san)", done.stderr):
            raise EmulatorUnavailable(f"the emulator needs lib{missing[1]}, which g++ does not find")
        raise CompileError(done.stderr)
    unfinished.replace(target)


def _shared_variables(program: Path) -> tuple[SharedVariable, ...]:
    """Find the static variables of functions: in kernels' code, these are the ``__shared__`` ones.

    Their section cannot be named instead: g++ 12 forgets that in templates.
    """
    symbols, readable = (
        subprocess.run(["nm", option, str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
        for option in ("-Sp", "-SpC")
    )
    start = next((int(line.split()[0], 16) for line in symbols if line.endswith(" __executable_start")), 0)
    variables = []
    for line, name in zip(symbols, readable, strict=True):
        fields = line.split()
        if len(fields) == 4 and fields[2] in "bBdD" and fields[3].startswith("_ZZ"):
            short = name.split(maxsplit=3)[3].replace("(anonymous namespace)::", "").removeprefix("void ")
            short = re.sub(r"\(.*\)::", "::", short)
            variables.append(SharedVariable(short, int(fields[0], 16) - start, int(fields[1], 16)))
    return tuple(variables)


def _tidy(cache: Path, used: list[Path]) -> None:
    for path in used:
        path.touch()
    for path in cache.iterdir():
        if path.stat().st_mtime < time.time() - _TWO_WEEKS:
            path.unlink()
