"""The CUDA kernels without a GPU: csrc/cuda/*.cu, as they are, compiled for the host by csrc/emulation/device.cuh.

Shows indexing, bounds and arithmetic; not speed, and no races between blocks.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyunetsep.ops import reference
from tests.judge import judge

ROOT = Path(__file__).parents[2]
COMPILER = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++") or ""]
GUARD = 64  # elements before and after each array
EPSILON = 1e-10

pytestmark = [
    pytest.mark.skipif(os.name == "nt" or not COMPILER[0], reason="needs g++ or clang++"),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree"),
]


def compile_library(target: Path, *sources: str | Path) -> ctypes.CDLL:
    """The sources and exports.cpp as a shared library."""
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    if sys.platform == "linux":
        flags.append("-Wl,-z,defs")  # all that kernels.h declares must be there; elsewhere linkers insist anyway
    exports = ROOT / "tests" / "emulated" / "exports.cpp"
    subprocess.run([*COMPILER, *flags, *sources, "-x", "c++", exports, "-o", target], check=True)
    library = ctypes.CDLL(str(target))
    for dtype in ("float32", "float64"):
        for name in ("ratio_mask", "overlap_add"):
            getattr(library, f"{name}_{dtype}").restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    kernels = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    target = tmp_path_factory.mktemp("emulated") / "kernels.so"
    return compile_library(target, "-DPYUNETSEP_EMULATION", "-x", "c++", *kernels)


def run(
    library: ctypes.CDLL, name: str, inputs: list[Tensor | None], shape: tuple[int, ...], *numbers: float
) -> Tensor:
    """Launch with blocks and threads in both orders; the result, whose bits and surroundings have been checked.

    Inputs lie between NaNs, so that a read outside shows in the result; the output starts as NaN between zeros that
    must still be there.
    """
    dtype = next(x.dtype for x in inputs if x is not None)
    guards = (GUARD, GUARD)
    between = [x if x is None else torch.nn.functional.pad(x.flatten(), guards, value=torch.nan) for x in inputs]
    size = torch.Size(shape).numel()
    results = []
    for backwards in (0, 1):
        padded = torch.nn.functional.pad(torch.full((size,), torch.nan, dtype=dtype), guards)
        library.set_reversed(backwards)
        message = getattr(library, f"{name}_{str(dtype).removeprefix('torch.')}")(
            *(x if x is None else ctypes.c_void_p(x.data_ptr() + GUARD * x.element_size()) for x in [*between, padded]),
            *(ctypes.c_int64(x) if isinstance(x, int) else ctypes.c_double(x) for x in numbers),
        )
        if message is not None:
            raise RuntimeError(message.decode())
        assert not padded[:GUARD].any(), "wrote before the output"
        assert not padded[GUARD + size :].any(), "wrote past the output"
        results.append(padded[GUARD : GUARD + size].reshape(shape))
    assert torch.equal(*results), "depends on the order of threads, or left output unwritten"
    return results[0]


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("mixture", [False, True], ids=["stems", "mixture"])
@pytest.mark.parametrize(("stems", "points"), [(1, 1), (3, 255), (2, 256), (5, 1031), (2, 4097)])
def test_ratio_mask(stems, points, mixture, power, dtype, library):
    magnitudes = torch.rand(stems, points, dtype=dtype)
    whole = magnitudes.sum(0) * (0.5 + torch.rand(points, dtype=dtype)) if mixture else None
    masks = run(library, "ratio_mask", [magnitudes, whole], (stems, points), stems, points, power, EPSILON)
    judge(masks, reference.ratio_mask, magnitudes, whole, power, EPSILON)


def test_ratio_mask_of_more_points_than_threads(library):
    """The grid is capped at 4096 blocks of 256 threads: the grid-stride loop takes the rest."""
    magnitudes = torch.rand(1, 4096 * 256 + 77)
    masks = run(library, "ratio_mask", [magnitudes, None], magnitudes.shape, *magnitudes.shape, 2.0, 1.0)
    torch.testing.assert_close(masks, torch.ones_like(masks))


@pytest.mark.parametrize(
    ("rows", "frames", "n_fft", "hop_length"),
    [
        (1, 1, 1, 1),
        (1, 1, 5, 2),
        (3, 5, 7, 3),
        (2, 13, 31, 7),
        (1, 40, 12, 1),
        (2, 6, 10, 10),
        (1, 2, 4096, 1),
        (1, 6, 1024, 768),
        (2, 9, 4096, 1024),
        (65_537, 1, 2, 1),  # more rows than a grid is high
    ],
)
def test_overlap_add(rows, frames, n_fft, hop_length, dtype, library):
    x, window = torch.randn(rows, frames, n_fft, dtype=dtype), torch.randn(n_fft, dtype=dtype)
    shape = (rows, (frames - 1) * hop_length + n_fft)
    wave = run(library, "overlap_add", [x, window], shape, rows, frames, n_fft, hop_length, shape[1])
    judge(wave, reference.overlap_add, x, window, hop_length)


def test_a_build_without_cuda_says_how_to_get_it(tmp_path):
    library = compile_library(tmp_path / "unavailable.so", ROOT / "csrc" / "cuda" / "unavailable.cpp")
    for name, numbers in (("ratio_mask", (1, 1, 2.0, 1.0)), ("overlap_add", (1, 1, 1, 1, 1))):
        with pytest.raises(RuntimeError, match=r"built without its CUDA kernels: .* `PYUNETSEP_CUDA=ON pip install "):
            run(library, name, [torch.ones(1), torch.ones(1)], (1,), *numbers)
