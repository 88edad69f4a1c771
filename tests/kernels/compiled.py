"""What NVRTC makes of the CUDA sources, without a GPU: registers, stack, spills and static shared memory.

``python -m tests.kernels.compiled`` writes the table in ``kernels/README.md`` anew. It takes text and options from
``ican_ml.encoding.cuda_device`` as the product does, and the compiler from the extra ``kernels``.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ican_ml.encoding.cuda_device import OPTIONS, source_text
from ican_ml.resources import resource_folder

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
README = resource_folder("kernels") / "README.md"
SOURCES = tuple(sorted(path.stem for path in README.parent.glob("*.cu")))

_BEGIN, _END = "<!-- compiled: begin -->\n", "<!-- compiled: end -->\n"
_ENTRY = re.compile(
    r"""Compiling\ entry\ function\ '(\w+)'\ for\ '\w+'\n
        .*?Function\ properties\ for\ \1\n
        .*?(\d+)\ bytes\ stack\ frame,\ (\d+)\ bytes\ spill\ stores,\ (\d+)\ bytes\ spill\ loads\n
        .*?Used\ (\d+)\ registers(?:.*?,\ (\d+)\ bytes\ smem)?""",
    re.VERBOSE,
)
# What tells the kernels of a family apart: columns a thread or bits of an item, a row's owner, types.
_VARIANT = re.compile(r"(?:_(?:\d+|warp|block|f32|u16|i32))+$")


class NvrtcUnavailable(Exception):
    """NVRTC cannot be used here; the message says why."""


class CompileError(Exception):
    """NVRTC refused a source; the message is its log."""


@dataclass(frozen=True)
class Kernel:
    """A kernel as compiled for one architecture.

    Attributes
    ----------
    registers : int
        Of a thread.
    stack, spill_stores, spill_loads : int
        Bytes, of a thread.
    shared : int
        Bytes of static shared memory, of a block.
    """

    source: str
    name: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def nvrtc_version() -> str:
    """Give the version of NVRTC's package.

    Raises
    ------
    NvrtcUnavailable
    """
    try:
        _nvrtc()
        return version("nvidia-cuda-nvrtc")
    except PackageNotFoundError as error:
        raise NvrtcUnavailable("NVRTC is needed from its package: pip install 'ican_ml[kernels]'") from error


def compile_source(source: str, architecture: str) -> list[Kernel]:
    """Compile ``kernels/<source>.cu`` and read what the assembler says of its kernels, sorted by name.

    Raises
    ------
    NvrtcUnavailable, CompileError
    """
    nvrtc = _nvrtc()
    options = [*OPTIONS, f"--gpu-architecture={architecture}", "--ptxas-options=-v"]
    program = _checked(nvrtc.nvrtcCreateProgram(source_text(source).encode(), f"{source}.cu".encode(), 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    buffer = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc.nvrtcGetProgramLog(program, buffer))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    log = buffer.decode()
    if status:
        raise CompileError(log)
    return read_log(log, source, architecture)


def read_log(log: str, source: str, architecture: str) -> list[Kernel]:
    """Read the assembler's lines on every kernel.

    Raises
    ------
    CompileError
        If the log does not have the form that is known here, or speaks of no kernel.
    """
    found = _ENTRY.findall(log)
    if not found or len(found) != log.count("Compiling entry function"):
        raise CompileError(f"{source}: expected registers and memory of every kernel in the log, got\n{log}")
    kernels = []
    for name, stack, spill_stores, spill_loads, registers, shared in found:
        numbers = (int(registers), int(stack), int(spill_stores), int(spill_loads), int(shared or 0))
        kernels.append(Kernel(source, name, architecture, *numbers))
    return sorted(kernels, key=lambda kernel: kernel.name)


def compile_all() -> list[Kernel]:
    """Compile every source for every architecture."""
    return [
        kernel
        for source in SOURCES
        for architecture in ARCHITECTURES
        for kernel in compile_source(source, architecture)
    ]


def table(kernels: Iterable[Kernel], compiler: str) -> str:
    """Write a Markdown table: a row for each family of kernels, the most that any of them takes."""
    families: dict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        families[kernel.source, _VARIANT.sub("", kernel.name)].append(kernel)
    lines = [
        f"NVRTC {compiler}. Of a kernel's variants the most: registers a thread, by architecture; on any of these,",
        "bytes of static shared memory a block, and bytes of stack and of spills (stores and loads) a thread.",
        "",
        "| source | kernel | variants | " + " | ".join(ARCHITECTURES) + " | shared | stack | spills |",
        "|---|---|" + "--:|" * (len(ARCHITECTURES) + 4),
    ]
    for (source, family), members in sorted(families.items()):
        cells = [f"`{source}.cu`", f"`{family}`", len({kernel.name for kernel in members})]
        cells += [max(kernel.registers for kernel in members if kernel.architecture == name) for name in ARCHITECTURES]
        cells += [max(kernel.shared for kernel in members), max(kernel.stack for kernel in members)]
        cells.append(max(kernel.spill_stores + kernel.spill_loads for kernel in members))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def with_table(text: str, rows: str) -> str:
    """Put a table between the markers of a text."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"expected the lines {_BEGIN.strip()} and {_END.strip()}, in this order")
    return f"{before}{begin}{rows}{end}{after}"


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        _checked(nvrtc.nvrtcVersion())
    except (ImportError, RuntimeError) as error:  # the bindings raise the latter where the library is missing
        raise NvrtcUnavailable(f"NVRTC is needed, pip install 'ican_ml[kernels]': {error}") from error
    return nvrtc


def _checked(result: tuple[Any, ...]) -> Any:
    """Take a status off what a function of NVRTC returned."""
    status, *values = result
    if status:
        raise RuntimeError(f"NVRTC: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


if __name__ == "__main__":
    README.write_text(
        with_table(README.read_text(encoding="utf-8"), table(compile_all(), nvrtc_version())), encoding="utf-8"
    )
