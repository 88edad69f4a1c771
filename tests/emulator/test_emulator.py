"""The emulator runs right kernels with a GPU's results, and names what wrong ones do by file and line."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.emulator import build as building
from tests.emulator.emulator import (
    Build,
    CompileError,
    Emulator,
    EmulatorUnavailable,
    KernelFault,
    emulator_for_tests,
)
from tests.emulator.planted import plant

HERE = Path(__file__).resolve().parent
FIXTURES = HERE / "fixtures"
BUILDS: tuple[Build, ...] = ("plain", "asan", "tsan")
ORDERS = [(0, 0), (1, 1), (2, 3), (5, 4)]

orders = pytest.mark.parametrize(("thread_order", "block_order"), ORDERS)


def _started(builds: tuple[Build, ...]) -> Iterator[dict[Build, Emulator]]:
    emulators = {build: emulator_for_tests(build, sorted(FIXTURES.glob("*.cu"))) for build in builds}
    yield emulators
    for emulator in emulators.values():
        emulator.close()


@pytest.fixture(scope="module")
def emulators() -> Iterator[dict[Build, Emulator]]:
    yield from _started(BUILDS)


@pytest.fixture(params=BUILDS)
def emulator(request: pytest.FixtureRequest, emulators: dict[Build, Emulator]) -> Emulator:
    return emulators[request.param]


@pytest.fixture
def plain(emulators: dict[Build, Emulator]) -> Emulator:
    return emulators["plain"]


@orders
def test_block_reduction(emulator: Emulator, thread_order: int, block_order: int) -> None:
    values = np.arange(1000, dtype=np.float32)
    sums = np.full(4, np.nan, np.float32)
    emulator.launch(
        "block_sums", 4, 256, 0, values, sums, values.size, thread_order=thread_order, block_order=block_order
    )
    np.testing.assert_array_equal(sums, np.add.reduceat(values, [0, 256, 512, 768]))


@orders
@pytest.mark.parametrize("width", ["u32", "u64"])
def test_histogram(emulator: Emulator, width: str, thread_order: int, block_order: int) -> None:
    values = np.random.default_rng(1).integers(0, 256, 1500, dtype=np.uint8)
    counts = np.zeros(256, np.dtype(width.replace("32", "4").replace("64", "8")))
    name = f"histogram_{width}"
    emulator.launch(name, 3, 128, 0, values, counts, 1500, thread_order=thread_order, block_order=block_order)
    np.testing.assert_array_equal(counts, np.bincount(values, minlength=256))


@orders
def test_shared_memory_between_barriers(emulator: Emulator, thread_order: int, block_order: int) -> None:
    values = np.arange(96, dtype=np.int32)
    emulator.launch("reverse", 1, 96, 4 * 96, values, thread_order=thread_order, block_order=block_order)
    np.testing.assert_array_equal(values, np.arange(96)[::-1])
    emulator.launch("swap_in_warps", 1, 96, 0, values, thread_order=thread_order, block_order=block_order)
    np.testing.assert_array_equal(values, np.arange(96)[::-1].reshape(-1, 2)[:, ::-1].ravel())
    values = np.arange(7, 39, dtype=np.int32)
    emulator.launch("chain_of_lanes", 1, 32, 0, values, thread_order=thread_order)
    assert set(values.tolist()) == {7}


@pytest.mark.parametrize("thread_order", [0, 1, 2])
def test_warp_operations(emulator: Emulator, thread_order: int) -> None:
    values = np.random.default_rng(2).integers(-4, 5, 32).astype(np.int32)
    lane = np.arange(32)
    results = np.zeros((14, 32), np.int32)
    emulator.launch("warp_operations", 1, 32, 0, values, results, thread_order=thread_order)

    def bits(which: np.ndarray) -> np.int32:
        return np.uint32(sum(1 << int(i) for i in np.flatnonzero(which))).view(np.int32)

    expected = [
        np.full(32, values[3]),
        values[lane // 8 * 8 + 1],
        values[np.where(lane < 2, lane, lane - 2)],
        values[np.where(lane % 8 < 2, lane, lane - 2)],
        values[np.where(lane > 26, lane, lane + 5)],
        values[np.where(lane % 16 > 10, lane, lane + 5)],
        values[lane ^ 7],
        np.full(32, bits(values > 0)),
        np.ones(32),
        np.full(32, np.all(values != 0)),
        np.array([bits(values == value) for value in values]),
        np.full(32, values.sum()),
        np.full(32, values.max()),
        np.where(lane < 16, values[:16].sum(), values[lane ^ 1]),
    ]
    np.testing.assert_array_equal(results, np.array(expected, np.int32))


def test_block_votes(emulator: Emulator) -> None:
    flags = np.array([0, 3] * 32, np.int32)
    out = np.zeros(3, np.int32)
    emulator.launch("block_votes", 1, 64, 0, flags, out)
    assert out.tolist() == [32, 1, 0]


def test_atomics(emulator: Emulator) -> None:
    values = np.random.default_rng(3).integers(-1000, 1000, 128).astype(np.int32)
    results = np.array([10**6, -(10**6), 0, -1, 0, values[5]], np.int32)
    emulator.launch("atomics", 2, 64, 0, values, results)
    reduced = [
        ufunc.reduce(values) for ufunc in (np.minimum, np.maximum, np.bitwise_or, np.bitwise_and, np.bitwise_xor)
    ]
    assert results.tolist() == [*reduced, -1]


def test_arithmetic_rounds_once(emulator: Emulator) -> None:
    a, b = np.float32(1 + 2**-12), np.float32(1 - 2**-12)
    out = np.zeros(6, np.float32)
    emulator.launch("arithmetic", 1, 1, 0, *(np.array([x], np.float32) for x in (a, b, -1)), out)
    assert out.tolist() == [a * b - np.float32(1), a * b - np.float32(1), -(2.0**-24), 7.5, 8 + 31 + 4 + 63 + 64, 2]


def test_vectors_and_null_pointers(emulator: Emulator) -> None:
    values = np.arange(32, dtype=np.float32).reshape(8, 4)
    sums = np.zeros(8, np.float32)
    emulator.launch("vectors", 1, 8, 0, values, sums, None)
    np.testing.assert_array_equal(sums, values.sum(axis=1))


def test_scalars_take_the_parameters_types(plain: Emulator) -> None:
    out = np.zeros(7)
    plain.launch("scalars", 1, 1, 0, -5, np.uint32(2**32 - 1), -(2**40), 0.1, np.float64(0.1), True, 65535, out)
    assert out.tolist() == [-5, 2**32 - 1, -(2**40), np.float32(0.1), 0.1, 1, 65535]
    for wrong in (-1, 2**32):
        with pytest.raises(OverflowError, match="scalars, argument 1: "):
            plain.launch("scalars", 1, 1, 0, 0, wrong, 0, 0, 0, 0, 0, out)


def test_orders(plain: Emulator) -> None:
    seen = []
    for thread_order, block_order in ORDERS:
        turns = np.full((3, 8), -1, np.int32)
        next_turn = np.zeros(1, np.int32)
        plain.launch("tickets", 3, 8, 0, next_turn, turns, thread_order=thread_order, block_order=block_order)
        assert next_turn == 24
        seen.append(np.argsort(turns, axis=None).reshape(3, 8))
    np.testing.assert_array_equal(seen[0], np.arange(24).reshape(3, 8))
    np.testing.assert_array_equal(seen[1], seen[0][::-1, ::-1])
    for turns in seen[2:]:  # blocks run one after another
        assert np.unique(turns // 8, axis=1).shape == (3, 1) or all(len(set(row // 8)) == 1 for row in turns)
        assert sorted(turns.ravel()) == list(range(24))
    assert len({turns.tobytes() for turns in seen}) == len(ORDERS)


def test_arrays_come_back_unless_read_only(plain: Emulator) -> None:
    values = np.arange(64, dtype=np.int32)
    values.flags.writeable = False
    plain.launch("reverse", 1, 64, 256, values)
    np.testing.assert_array_equal(values, np.arange(64))
    assert plain.kernels["block_sums"] == ["*cf4", "*f4", "i8"]


def test_an_array_given_twice_is_one(plain: Emulator) -> None:
    values = np.arange(128, dtype=np.int32)
    plain.launch("tickets", 1, 8, 0, values[:8], values[:8])
    assert values[:8].tolist() != list(range(8))
    with pytest.raises(ValueError, match="argument 1: overlaps"):
        plain.launch("tickets", 1, 8, 0, values[:8], values[4:12])


def test_launches_that_a_device_refuses(plain: Emulator) -> None:
    values = np.zeros(64, np.int32)
    for grid, block, shared in ((0, 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, 227 * 1024 + 1)):
        with pytest.raises(ValueError, match="reverse: expected at "):
            plain.launch("reverse", grid, block, shared, values)
    with pytest.raises(ValueError, match="no kernel 'revers'; there are "):
        plain.launch("revers", 1, 32, 0, values)
    with pytest.raises(TypeError, match="expected 1 arguments, got 0"):
        plain.launch("reverse", 1, 32, 0)
    for wrong in (values.astype(np.int64), values[::2], 3):
        with pytest.raises(TypeError, match="reverse, argument 0: expected a"):
            plain.launch("reverse", 1, 32, 128, wrong)


# Kernel, the builds that must catch it, blocks, threads, and words of the message. Every launch has one array of a
# value a thread, and as many bytes of dynamic shared memory.
WRONG: list[tuple[str, tuple[Build, ...], int, int, str]] = [
    ("missing_barrier", ("tsan",), 1, 256, "races with the"),
    ("missing_warp_barrier", ("tsan",), 1, 64, "races with the|no thread of the block has written"),
    ("barrier_of_other_warps", ("tsan",), 1, 256, "races with the"),
    ("barrier_of_half_a_warp", ("tsan",), 1, 32, "races with the"),
    ("second_barrier_missing", ("tsan",), 1, 64, "races with the"),
    ("static_overrun", ("asan",), 1, 64, "index 64 out of bounds"),
    ("static_overrun_by_pointer", ("asan",), 1, 64, "global-buffer-overflow"),
    ("overrun_in_template", ("asan",), 1, 64, "global-buffer-overflow"),
    ("dynamic_overrun", ("asan", "tsan"), 1, 64, "heap-buffer-overflow|outside all arrays"),
    ("global_overrun", ("asan", "tsan"), 1, 64, "heap-buffer-overflow|outside all arrays"),
    ("atomic_overrun", ("asan", "tsan"), 1, 64, "heap-buffer-overflow|outside all arrays"),
    ("divergent_barrier", BUILDS, 1, 64, "barrier that not all threads of the block reach"),
    ("barrier_after_return", BUILDS, 1, 64, "barrier that not all threads of the block reach"),
    ("barrier_and_shuffle", BUILDS, 1, 64, "deadlock"),
    ("not_in_own_mask", BUILDS, 1, 64, "not in its own mask"),
    ("different_masks", BUILDS, 1, 32, "lanes name each other"),
    ("lane_never_arrives", BUILDS, 1, 32, "deadlock"),
    ("shuffle_after_return", BUILDS, 1, 64, "lanes that have returned"),
    ("shuffle_from_outside", BUILDS, 1, 64, "reads lane 16, which mask 0xffff leaves out"),
    ("uninitialised", ("tsan",), 1, 64, "uninitialised::copy that no thread of the block has written before"),
    ("blocks_write_one_place", ("tsan",), 3, 64, "races with the write by thread 0 of another block"),
    ("block_reads_another", ("tsan",), 3, 64, "of another block"),
    ("atomic_and_plain", ("tsan",), 1, 64, "atomic operation"),
    ("failed_assertion", BUILDS, 1, 64, "Assertion"),
]
CAUGHT = [(kernel, build, *rest) for kernel, builds, *rest in WRONG for build in builds]


def _lines(kernel: str) -> set[tuple[str, int]]:
    text = (FIXTURES / "wrong.cu").read_text(encoding="utf-8")
    marked = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith(f"// fault: {kernel}")]
    assert marked
    return {("wrong.cu", number) for number in marked}


@pytest.mark.parametrize(("kernel", "build", "grid", "block", "words"), CAUGHT)
def test_faults_are_named(
    emulators: dict[Build, Emulator], kernel: str, build: Build, grid: int, block: int, words: str
) -> None:
    emulator = emulators[build]
    count = emulator.kernels[kernel].count("i4")
    arrays = [np.arange(block, dtype=np.int32) for _ in range(len(emulator.kernels[kernel]) - count)]
    for thread_order, block_order in ORDERS:
        with pytest.raises(KernelFault, match=words) as caught:
            emulator.launch(
                kernel,
                grid,
                block,
                4 * block,
                *arrays,
                *[20] * count,
                thread_order=thread_order,
                block_order=block_order,
            )
        assert caught.value.places[0] in _lines(kernel), caught.value.report
        assert f"wrong.cu:{caught.value.places[0][1]}" in str(caught.value)
        assert str(caught.value).startswith(f"{build} build: {kernel}")
    np.testing.assert_array_equal(arrays[0], np.arange(block), "a fault leaves arrays as they were")


def test_every_wrong_fixture_is_caught() -> None:
    text = (FIXTURES / "wrong.cu").read_text(encoding="utf-8")
    assert set(re.findall(r"// fault: (\w+)", text)) == {kernel for kernel, *_ in WRONG}


def test_shared_memory_is_poisoned_before_each_block(plain: Emulator) -> None:
    values = np.arange(64, dtype=np.int32)
    for _ in range(2):
        plain.launch("uninitialised", 2, 64, 0, values)
        assert values.tolist() == [*range(7), -1, *range(8, 64)]


def test_blocks_that_depend_on_each_other_differ_by_order(plain: Emulator) -> None:
    values = np.zeros(64, np.int32)
    for block_order, last in ((0, 2), (1, 0)):
        plain.launch("blocks_write_one_place", 3, 64, 0, values, block_order=block_order)
        assert values[0] == last


def test_endless_kernels_end() -> None:
    with emulator_for_tests("plain", [FIXTURES / "wrong.cu"]) as emulator:
        emulator.seconds = 1
        with pytest.raises(KernelFault, match="endless: did not end within 1 s"):
            emulator.launch("endless", 1, 32, 0, np.zeros(1, np.int32))


def test_sources_may_use_the_same_names(tmp_path: Path) -> None:
    template = """
        template <class T> __device__ int value() { __shared__ int x; x = %d; return x; }
        extern "C" __global__ void %s(int* out) { out[0] = value<int>(); }
    """
    sources = []
    for number, name in enumerate(["first", "second"]):
        sources.append(tmp_path / f"{name}.cu")
        sources[-1].write_text(template % (number, name), encoding="utf-8")
    out = np.full(1, -1, np.int32)
    with emulator_for_tests("plain", sources) as emulator:
        for number, name in enumerate(["first", "second"]):
            emulator.launch(name, 1, 1, 0, out)
            assert out == number


@pytest.mark.usefixtures("plain")
def test_sources_that_do_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('\nextern "C" __global__ void f(int* x) { x[0] = __activemask(); }\n', encoding="utf-8")
    with pytest.raises(CompileError, match=r"broken\.cu:2:.*deleted function"):
        Emulator("plain", [source], tmp_path)
    source.write_text("__global__ void f(int* x) { x[0] = 1; }\n", encoding="utf-8")
    with pytest.raises(CompileError, match=r'broken\.cu: no extern "C" __global__'):
        Emulator("plain", [source], tmp_path)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    building.compiler_version.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(EmulatorUnavailable, match=r"g\+\+ and nm and addr2line not found"):
            Emulator("plain", [])
        monkeypatch.delenv("ICAN_REQUIRE_EMULATOR", raising=False)
        with pytest.raises(pytest.skip.Exception, match="needs g"):
            emulator_for_tests("plain", [])
        monkeypatch.setenv("ICAN_REQUIRE_EMULATOR", "1")
        with pytest.raises(pytest.fail.Exception, match="ICAN_REQUIRE_EMULATOR is set, but the emulator needs g"):
            emulator_for_tests("plain", [])
    finally:
        building.compiler_version.cache_clear()


def test_planted_bugs_are_caught(tmp_path: Path) -> None:
    sources = plant(HERE / "planted" / "fixture_missing_barrier.patch", FIXTURES, tmp_path)
    assert [path.name for path in sources] == ["right.cu", "wrong.cu"]
    values, counts = np.arange(200, dtype=np.uint8)[::-1].copy(), np.zeros(256, np.uint32)
    with emulator_for_tests("tsan", sources) as emulator, pytest.raises(KernelFault, match="count_into<unsigned int>"):
        emulator.launch("histogram_u32", 1, 128, 0, values, counts, 200)


def test_bugs_that_cannot_be_planted_are_errors(tmp_path: Path) -> None:
    patch = tmp_path / "a.patch"
    for body, problem in (
        ("+++ b/right.cu\n@@\n-    no such line\n+    x\n", "expected once in right.cu, found 0 times"),
        ("+++ b/right.cu\n@@\n-    __syncthreads();\n", "found 4 times"),
        ("+++ b/gone.cu\n@@\n-x\n", "has no gone.cu"),
        ("+++ b/right.cu\n@@\n     __shared__ float warps[32];\n", "no hunk that changes anything"),
    ):
        patch.write_text(body, encoding="utf-8")
        with pytest.raises(ValueError, match=problem):
            plant(patch, FIXTURES, tmp_path / "copy")
