"""The CUDA sources compile for every architecture without spills, within their registers, as their README says."""

import os
from collections import Counter

import pytest

from ican_ml.encoding import cuda
from tests.kernels.compiled import (
    ARCHITECTURES,
    README,
    SOURCES,
    CompileError,
    Kernel,
    NvrtcUnavailable,
    compile_all,
    nvrtc_version,
    read_log,
    table,
    with_table,
)

# Of 65,536 in a multiprocessor: four blocks of 256 threads have 64 each, as does one of 1,024 (feature_stats).
MOST_REGISTERS = 64


@pytest.fixture(scope="module")
def compiler() -> str:
    """Give NVRTC's version, or skip the test where there is none; fail it there if ICAN_REQUIRE_EMULATOR=1."""
    try:
        return nvrtc_version()
    except NvrtcUnavailable as error:
        if os.environ.get("ICAN_REQUIRE_EMULATOR") == "1":
            pytest.fail(f"ICAN_REQUIRE_EMULATOR is set, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def kernels(compiler: str) -> list[Kernel]:
    return compile_all()


def test_every_source_compiles_for_every_architecture(kernels: list[Kernel]) -> None:
    assert {(kernel.source, kernel.architecture) for kernel in kernels} == {
        (source, architecture) for source in SOURCES for architecture in ARCHITECTURES
    }
    assert set(Counter(kernel.name for kernel in kernels).values()) == {len(ARCHITECTURES)}, "one name, one kernel"


def test_no_kernel_spills_or_has_a_stack(kernels: list[Kernel]) -> None:
    assert [kernel for kernel in kernels if kernel.spill_stores or kernel.spill_loads or kernel.stack] == []


def test_no_kernel_takes_more_registers_than_it_may(kernels: list[Kernel]) -> None:
    assert [kernel for kernel in kernels if kernel.registers > MOST_REGISTERS] == []


def test_launches_leave_room_for_static_shared_memory(kernels: list[Kernel]) -> None:
    assert [kernel for kernel in kernels if kernel.shared > cuda._STATIC_SHARED] == []


def test_the_readme_has_the_table_of_these_sources(kernels: list[Kernel], compiler: str) -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text, table(kernels, compiler)), "run: python -m tests.kernels.compiled"


LOG = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function 'one_f32' for 'sm_90'
ptxas info    : Function properties for one_f32
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 70 registers, used 1 barriers, 16 bytes cumulative stack size, 8336 bytes smem
ptxas info    : Compile time = 84.721 ms
ptxas info    : Compiling entry function 'another_u16' for 'sm_90'
ptxas info    : Function properties for another_u16
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""


def test_logs_are_read() -> None:
    assert read_log(LOG, "file", "sm_90") == [
        Kernel("file", "another_u16", "sm_90", registers=20, stack=0, spill_stores=0, spill_loads=0, shared=0),
        Kernel("file", "one_f32", "sm_90", registers=70, stack=16, spill_stores=8, spill_loads=12, shared=8336),
    ]
    for unknown in ("", LOG.replace("spill loads", "loads spilled")):
        with pytest.raises(CompileError, match="expected registers and memory of every kernel"):
            read_log(unknown, "file", "sm_90")


def test_variants_share_a_row() -> None:
    names = ("bag_4_f32_u16", "bag_1_u16_i32", "row_sums_warp_f32", "pad_8", "pad_mask")
    variants = [
        Kernel("file", name, architecture, registers, 0, 0, 4 if name == "pad_8" else 0, 1024)
        for name, registers in zip(names, (30, 40, 20, 8, 9), strict=True)
        for architecture in ARCHITECTURES
    ]
    assert table(variants, "13.0.0").splitlines()[5:] == [
        "| `file.cu` | `bag` | 2 | 40 | 40 | 40 | 1024 | 0 | 0 |",
        "| `file.cu` | `pad` | 1 | 8 | 8 | 8 | 1024 | 0 | 4 |",
        "| `file.cu` | `pad_mask` | 1 | 9 | 9 | 9 | 1024 | 0 | 0 |",
        "| `file.cu` | `row_sums` | 1 | 20 | 20 | 20 | 1024 | 0 | 0 |",
    ]


def test_a_text_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="in this order"):
        with_table("<!-- compiled: end -->\n<!-- compiled: begin -->\n", "")
