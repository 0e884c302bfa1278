"""ratio_mask.cu and overlap_add.cu on the host."""

import pytest
import torch

from pyunetsep.ops import reference
from tests.emulated.library import CSRC, EXPORTS, Emulated, compile_library
from tests.judge import judge

EPSILON = 1e-10


def named(name: str, dtype: torch.dtype) -> str:
    return f"{name}_{str(dtype).removeprefix('torch.')}"


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("mixture", [False, True], ids=["stems", "mixture"])
@pytest.mark.parametrize(("stems", "points"), [(1, 1), (3, 255), (2, 256), (5, 1031), (2, 4097)])
def test_ratio_mask(stems, points, mixture, power, dtype, emulated):
    magnitudes = torch.rand(stems, points, dtype=dtype)
    whole = magnitudes.sum(0) * (0.5 + torch.rand(points, dtype=dtype)) if mixture else None
    outputs = [((stems, points), dtype)]
    (masks,) = emulated.run(named("ratio_mask", dtype), [magnitudes, whole], outputs, stems, points, power, EPSILON)
    judge(masks, reference.ratio_mask, magnitudes, whole, power, EPSILON)


def test_ratio_mask_of_more_points_than_threads(emulated):
    """The grid is capped at 4096 blocks of 256 threads: the grid-stride loop takes the rest."""
    magnitudes = torch.rand(1, 4096 * 256 + 77)
    outputs = [(tuple(magnitudes.shape), torch.float32)]
    (masks,) = emulated.run("ratio_mask_float32", [magnitudes, None], outputs, *magnitudes.shape, 2.0, 1.0)
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
def test_overlap_add(rows, frames, n_fft, hop_length, dtype, emulated):
    x, window = torch.randn(rows, frames, n_fft, dtype=dtype), torch.randn(n_fft, dtype=dtype)
    length = (frames - 1) * hop_length + n_fft
    sizes = (rows, frames, n_fft, hop_length, length)
    (wave,) = emulated.run(named("overlap_add", dtype), [x, window], [((rows, length), dtype)], *sizes)
    judge(wave, reference.overlap_add, x, window, hop_length)


def test_a_build_without_cuda_says_how_to_get_it():
    sources = [*sorted((CSRC / "cuda").glob("*.cpp")), *sorted(EXPORTS.glob("exports*.cpp"))]
    library = Emulated(compile_library(sources))
    ones = torch.ones(1)
    for name, numbers in (("ratio_mask_float32", (1, 1, 2.0, 1.0)), ("overlap_add_float32", (1, 1, 1, 1, 1))):
        with pytest.raises(RuntimeError, match=r"built without its CUDA kernels: .* `PYUNETSEP_CUDA=ON pip install "):
            library.call(name, ones, ones, ones, *numbers)
