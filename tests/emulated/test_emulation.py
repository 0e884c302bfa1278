"""The emulation itself: it computes what the PTX ISA says, and it catches the mistakes that it is there for.

Kernels and planted bugs are in exports_emulation.cpp.
"""

import itertools

import pytest
import torch
from torch import Tensor

from tests.emulated.library import CSRC, EMULATION, EXPORTS, Emulated, compile_library

KINDS = pytest.mark.parametrize(("kind", "narrow"), [(0, torch.float16), (1, torch.bfloat16)], ids=["half", "bfloat16"])
WRONG = AssertionError, RuntimeError  # a wrong result in one of the orders, or an error


@pytest.fixture(scope="module", params=["", "-DPYUNETSEP_UCONTEXT"], ids=["own switch", "ucontext"])
def emulated(request, compiler):
    """The emulation and its tests alone, with each way to switch fibers."""
    sources = [CSRC / "emulation" / "emulation.cpp", EXPORTS / "exports_emulation.cpp"]
    return Emulated(compile_library(sources, *EMULATION, *filter(None, [request.param])))


def bits_of(x: Tensor) -> Tensor:
    return x.view(torch.int16)


# ---- Conversions of csrc/cuda/elements.h


@KINDS
def test_every_pattern_widens(kind, narrow, emulated):
    x = torch.arange(65536).to(torch.int16).view(narrow)
    values = torch.empty(65536)
    emulated.call("test_widen", x, values, 65536, kind)
    is_nan = x.isnan()
    assert torch.equal(values.view(torch.int32)[~is_nan], x.float().view(torch.int32)[~is_nan])
    assert values[is_nan].isnan().all()


@KINDS
def test_narrowing_rounds_to_the_nearest_and_ties_to_even(kind, narrow, emulated):
    every = torch.arange(65536).to(torch.int16).view(narrow).float()
    ordered = every[every.isfinite()].unique()
    ties = ((ordered[:-1].double() + ordered[1:].double()) / 2).float()
    largest = torch.finfo(narrow).max
    overflow = torch.tensor([largest, largest * (1 + torch.finfo(narrow).eps / 4)]).double().float()
    ties = torch.cat((ties, overflow, -overflow))  # half a step more than the largest is a tie with infinity
    beside = [torch.nextafter(ties, torch.full_like(ties, toward)) for toward in (torch.inf, -torch.inf)]
    random = torch.randint(-(2**31), 2**31, (1 << 20,)).to(torch.int32).view(torch.float32)
    x = torch.cat((every, ties, *beside, random))
    narrowed = torch.empty(len(x), dtype=narrow)
    emulated.call("test_narrow", x, narrowed, len(x), kind)
    is_nan = x.isnan()
    assert torch.equal(bits_of(narrowed)[~is_nan], bits_of(x.to(narrow))[~is_nan])
    assert narrowed[is_nan].isnan().all()
    assert is_nan.any() and narrowed.isinf().any() and (narrowed == 0).any()


@KINDS
def test_of_a_pair_the_first_is_in_the_lower_bits(kind, narrow, emulated):
    x = torch.randn(64, 2)
    pairs = torch.empty(64, dtype=torch.int32)
    emulated.call("test_narrow_pair", x, pairs, 64, kind)
    assert torch.equal(pairs.view(narrow).view(64, 2), x.to(narrow))


# ---- What is computed


def test_indices(emulated):
    grid, block = (3, 2, 2), (5, 3, 4)
    (rows,) = emulated.run("test_indices", [], [((12, 60, 8), torch.float32)], *grid, *block)
    for number, (z, y, x) in enumerate(itertools.product(range(2), range(2), range(3))):
        for thread, (tz, ty, tx) in enumerate(itertools.product(range(4), range(3), range(5))):
            assert rows[number, thread].tolist() == [tx, ty, tz, x, y, z, 3, thread % 32]


def test_load_matrices(emulated):
    x = torch.arange(4 * 64, dtype=torch.int16)
    pairs = torch.empty(32, 4, 2, dtype=torch.int16)
    emulated.call("test_load_matrices", x, pairs, 0)
    for lane, matrix in itertools.product(range(32), range(4)):
        first = matrix * 64 + lane // 4 * 8 + lane % 4 * 2
        assert pairs[lane, matrix].tolist() == [first, first + 1]
    emulated.call("test_load_matrices", x, pairs, 1)
    for lane, matrix in itertools.product(range(32), range(4)):
        first = matrix * 64 + lane % 4 * 16 + lane // 4
        assert pairs[lane, matrix].tolist() == [first, first + 8]


@KINDS
def test_multiply_add(kind, narrow, emulated):
    a, b, c = torch.randn(16, 16).to(narrow), torch.randn(16, 8).to(narrow), torch.randn(16, 8)
    (d,) = emulated.run("test_multiply_add", [a, b, c], [((16, 8), torch.float32)], kind)
    torch.testing.assert_close(d.double(), c.double() + a.double() @ b.double(), rtol=0, atol=1e-5)


def test_shuffles(emulated):
    x, lanes = torch.randn(64), torch.randint(0, 32, (64,))
    warps = torch.arange(64) // 32 * 32
    for mask in (1, 5, 16, 31):
        outputs = [((64,), torch.float32)] * 2
        by_lane, by_mask = emulated.run("test_shuffle", [x, lanes.float()], outputs, mask)
        assert torch.equal(by_lane, x[warps + lanes])
        assert torch.equal(by_mask, x[torch.arange(64) ^ mask])


def test_atomics(emulated):
    for reversed_ in (0, 1):
        emulated.library.set_order(reversed_, 0)
        before, after = torch.empty(192), torch.empty(2)
        emulated.call("test_atomics", before, after)
        assert before.sort().values.tolist() == list(range(192))
        assert before[0] == (191 if reversed_ else 0)
        assert after.tolist() == [192, 191]


def test_a_copy_outside_gives_zeros_and_reads_nothing(emulated):
    for inside in (1, 0):
        x = torch.arange(1.0, 5.0)
        (y,) = emulated.run("test_copy", [x], [((4,), torch.float32)], inside)
        assert torch.equal(y, x * inside)


# ---- Barriers


def test_a_missing_barrier_is_caught(emulated):
    x, outputs = torch.randn(128), [((128,), torch.float32)]
    (y,) = emulated.run("test_reverse", [x], outputs, 128, 1)
    assert torch.equal(y, x.flip(0))
    with pytest.raises(AssertionError, match="depends on the order"):
        emulated.run("test_reverse", [x], outputs, 128, 0)
    (y,) = emulated.run("test_reverse_warps", [x], outputs, 128, 1)
    assert torch.equal(y, x.view(4, 32).flip(1).flatten())
    with pytest.raises(AssertionError, match="depends on the order"):
        emulated.run("test_reverse_warps", [x], outputs, 128, 0)


NOTHING, BARRIER, WARP_BARRIER, SHUFFLE, LOAD_MATRICES, MULTIPLY_HALF, MULTIPLY_BFLOAT16, OTHER_BARRIER = range(8)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("threads", "first", "last", "step", "other_step", "message"),
    [
        (64, 0, 15, BARRIER, WARP_BARRIER, "threads wait for others that never come"),
        (64, 0, 15, BARRIER, OTHER_BARRIER, "threads wait for each other in lines"),
        (64, 0, 31, BARRIER, OTHER_BARRIER, "threads wait for each other in lines"),
        (64, 7, 7, NOTHING, WARP_BARRIER, "threads wait for others that never come"),
        (64, 39, 39, NOTHING, SHUFFLE, "threads wait for others that never come"),
        (64, 0, 15, NOTHING, LOAD_MATRICES, "threads wait for others that never come"),
        (64, 31, 31, NOTHING, MULTIPLY_HALF, "threads wait for others that never come"),
        (64, 31, 31, NOTHING, MULTIPLY_BFLOAT16, "threads wait for others that never come"),
        (64, 3, 4, BARRIER, SHUFFLE, "threads wait for others that never come"),
        (64, 3, 4, SHUFFLE, LOAD_MATRICES, "lanes of a warp do different things"),
        (64, 3, 4, MULTIPLY_HALF, MULTIPLY_BFLOAT16, "lanes of a warp do different things"),
        (48, 0, 48, WARP_BARRIER, NOTHING, "threads wait for others that never come"),  # half a warp
        (16, 0, 16, MULTIPLY_HALF, NOTHING, "threads wait for others that never come"),
    ],
)
def test_threads_that_miss_each_other_are_an_error(threads, first, last, step, other_step, message, order, emulated):
    emulated.library.set_order(order, 0)
    with pytest.raises(RuntimeError, match=message):
        emulated.call("test_divergent", threads, first, last, step, other_step)


@pytest.mark.parametrize("order", [0, 1])
def test_what_threads_may_do(order, emulated):
    emulated.library.set_order(order, 0)
    emulated.call("test_divergent", 48, 0, 47, BARRIER, NOTHING)  # not only whole warps
    emulated.call("test_divergent", 64, 0, 31, BARRIER, NOTHING)  # threads that have ended are not waited for
    emulated.call("test_divergent", 64, 0, 31, SHUFFLE, LOAD_MATRICES)  # each warp its own


def test_after_an_error_the_next_launch_is_as_ever(emulated):
    with pytest.raises(RuntimeError):
        emulated.call("test_divergent", 64, 7, 7, NOTHING, WARP_BARRIER)
    x = torch.randn(64)
    (y,) = emulated.run("test_reverse", [x], [((64,), torch.float32)], 64, 1)
    assert torch.equal(y, x.flip(0))


# ---- Asynchronous copies

NO_BUG, WEAK_WAIT, NO_WAIT, NO_COMMIT, NO_BARRIER, SHORT_RING = range(6)


@pytest.mark.parametrize("tiles", [1, 2, 3, 7])
def test_a_pipeline_of_copies(tiles, emulated):
    x = torch.randint(-8, 9, (tiles, 256)).float()
    (y,) = emulated.run("test_pipeline", [x], [((256,), torch.float32)], tiles, 64, NO_BUG)
    assert torch.equal(y, x.sum(0).flip(0))
    (y,) = emulated.run("test_one_stage", [x], [((256,), torch.float32)], tiles, 64, 1)
    assert torch.equal(y, x.sum(0).flip(0))


@pytest.mark.parametrize("bug", [WEAK_WAIT, NO_WAIT, NO_COMMIT, NO_BARRIER, SHORT_RING])
def test_a_wrong_pipeline_is_caught(bug, emulated):
    x = torch.randn(7, 256)
    with pytest.raises(WRONG):
        emulated.run("test_pipeline", [x], [((256,), torch.float32)], 7, 64, bug)


def test_a_tile_overwritten_while_others_read_it_is_caught(emulated):
    with pytest.raises(AssertionError, match="depends on the order"):
        emulated.run("test_one_stage", [torch.randn(7, 256)], [((256,), torch.float32)], 7, 64, 0)


def test_copies_still_in_flight_at_the_end_are_an_error(emulated):
    emulated.library.set_order(0, 0)
    with pytest.raises(RuntimeError, match="a thread ends while copies of its own are on their way"):
        emulated.call("test_copies_in_flight", torch.ones(4))


# ---- Memory


@pytest.mark.parametrize("offset", [-4, 1024, 1028, 1020 + 512])
def test_a_write_outside_shared_memory_is_caught(offset, emulated):
    emulated.call("test_write_shared", 1024, 0)
    emulated.call("test_write_shared", 1024, 1020)
    with pytest.raises(RuntimeError, match="wrote outside shared memory"):
        emulated.call("test_write_shared", 1024, offset)


@pytest.mark.parametrize("kind", range(4), ids=["float", "double", "half", "bfloat16"])
@pytest.mark.parametrize("offset", [-8, 0, 1016, 1024, 1032])
def test_what_nobody_wrote_is_nan(offset, kind, emulated):
    y = torch.zeros(1)
    emulated.call("test_read_shared", y, 1024, offset, kind)
    assert y.isnan().all()


@pytest.mark.parametrize("n", [1, 64, 1000, 1024, 5000])
def test_a_read_outside_an_input_is_caught(n, emulated):
    x, outputs = torch.rand(n), [((1,), torch.float32)]
    for index in (0, n - 1):
        (y,) = emulated.run("test_read_global", [x], outputs, index)
        assert y == 1
    with pytest.raises(AssertionError, match="depends on the order"):  # a NaN, which equals nothing
        emulated.run("test_read_global", [x], outputs, -1)
    for index in (n + 32, n + 1000):
        with pytest.raises(RuntimeError, match="accessed memory that is not there"):
            emulated.run("test_read_global", [x], outputs, index)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_an_array_is_an_error(index, emulated):
    y = torch.zeros(1)
    emulated.call("test_index", y, 3)
    assert y == 4
    with pytest.raises(RuntimeError, match=rf"index {index} is outside an array, .*exports_emulation.cpp:\d+"):
        emulated.call("test_index", y, index)


LOAD16, STORE16, LOAD8, STORE8, COPY_TO, COPY_FROM, MATRICES = range(7)


@pytest.mark.parametrize("early_copies", [0, 1])
@pytest.mark.parametrize(
    ("kind", "offset", "message"),
    [
        (LOAD16, 8, "load16 wants an address that is a multiple of 16"),
        (STORE16, 4, "store16 wants an address that is a multiple of 16"),
        (LOAD8, 4, "load8 wants an address that is a multiple of 8"),
        (STORE8, 2, "store8 wants an address that is a multiple of 8"),
        (COPY_TO, 8, "copy_async16 wants a target that is a multiple of 16"),
        (COPY_TO, 512, "copy_async16 wants a target in shared memory"),
        (COPY_TO, -16, "copy_async16 wants a target in shared memory"),
        (COPY_FROM, 8, "copy_async16 wants a source that is a multiple of 16"),
        (MATRICES, 8, "load_matrices wants rows at multiples of 16 bytes"),
        (MATRICES, 32, "load_matrices wants rows in shared memory"),
    ],
)
def test_a_wrong_address_is_an_error(kind, offset, message, early_copies, emulated):
    emulated.library.set_order(0, early_copies)
    x = torch.zeros(64)
    emulated.call("test_wide_access", x, 0, kind)
    with pytest.raises(RuntimeError, match=message):
        emulated.call("test_wide_access", x, offset, kind)


# ---- What a launch may ask

KIB = 1024


@pytest.fixture
def architecture(emulated):
    """Sets the one that is played."""
    yield emulated.library.set_architecture
    emulated.library.set_architecture(0)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0, 1, 1), (32, 1, 1), "a grid has at least one block"),
        ((1, 65_536, 1), (32, 1, 1), "a grid has at most"),
        ((1, 1, 65_536), (32, 1, 1), "a grid has at most"),
        ((2**31, 1, 1), (32, 1, 1), "a grid has at most"),
        ((1, 1, 1), (0, 1, 1), "a block has at least one thread"),
        ((1, 1, 1), (1025, 1, 1), "a block has at most 1024 threads"),
        ((1, 1, 1), (32, 33, 1), "a block has at most 1024 threads"),
        ((1, 1, 1), (1, 1, 65), "64 deep"),
    ],
)
def test_a_launch_beyond_every_device_is_an_error(grid, block, message, emulated):
    with pytest.raises(RuntimeError, match=message):
        emulated.call("test_launch", *grid, *block, 0)


@pytest.mark.parametrize(
    ("number", "kib"), [(0, 163), (80, 163), (90, 227), (100, 227)], ids=["all", "sm_80", "sm_90", "sm_100"]
)
def test_the_largest_launches(number, kib, architecture, emulated):
    architecture(number)
    emulated.call("test_launch", 1, 1, 1, 1024, 1, 1, kib * KIB)
    emulated.call("test_launch", 1, 65_535, 1, 1, 1, 1, 0)
    emulated.call("test_launch", 1, 1, 1, 4, 4, 64, 0)
    with pytest.raises(RuntimeError, match=f"a block has at most {kib} KiB of shared memory on sm_{number or 80}"):
        emulated.call("test_launch", 1, 1, 1, 32, 1, 1, kib * KIB + 1)


def test_an_unknown_architecture_is_an_error(architecture, emulated):
    architecture(70)
    with pytest.raises(RuntimeError, match="no such architecture"):
        emulated.call("test_launch", 1, 1, 1, 32, 1, 1, 0)


def test_the_architectures_are_those_that_the_kernels_are_built_for():
    from_header = (CSRC / "emulation" / "device.cuh").read_text().split("kArchitectures[] = {")[1].split(";")[0]
    for number in ("80", "90", "100"):
        assert f"{{{number}, " in from_header
        assert f"{number}-real" in (EXPORTS.parents[1] / "CMakeLists.txt").read_text()
