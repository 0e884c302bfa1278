"""The compiled kernels as differentiable torch ops; the only importer of the extension `pyunetsep._C`.

The extension registers `torch.ops.pyunetsep.*`, and holds the plans of whole networks. This module adds what is better
said in Python: the shapes for `torch.compile` and the gradients, both in plain PyTorch.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import reference

if TYPE_CHECKING:
    from .._C import BuildInfo

_REINSTALL = "`pip install --force-reinstall --no-deps --no-cache-dir pyunetsep` (in a source tree: `pip install .`)"

if importlib.util.find_spec("pyunetsep._C") is None:
    raise ImportError(
        "pyunetsep's compiled extension is missing: run `pip install .` in the source tree and then leave it (its "
        "folder pyunetsep/ hides the installed package), or `python setup.py build_ext --inplace` to work in it"
    )
try:
    from .. import _C
except ImportError as error:
    raise ImportError(
        f"pyunetsep's compiled extension does not load next to torch {torch.__version__}, and was probably built "
        f"against another: reinstall with {_REINSTALL}"
    ) from error


def _release(version: str) -> list[str]:
    return version.split(".")[:2]


if _release(_C.build_info()["torch"]) != _release(torch.__version__):
    raise ImportError(
        f"pyunetsep was built against torch {_C.build_info()['torch']}, this is {torch.__version__}: "
        f"reinstall with {_REINSTALL}"
    )

try:
    _C.set_simd_level(os.environ.get("PYUNETSEP_SIMD", "auto"))
except ValueError as error:
    raise ValueError(f"PYUNETSEP_SIMD: {error}") from None


def build_info() -> "BuildInfo":
    """What the extension was built with: versions of torch, compiler and CUDA toolkit, CUDA architectures."""
    return _C.build_info()


def simd_level() -> str:
    """The instruction set that the CPU kernels use: the widest that runs here, or what `PYUNETSEP_SIMD` says."""
    return _C.simd_level()


def simd_levels() -> list[str]:
    """The instruction sets that CPU kernels were built for and that run here, from the plainest to the widest."""
    return _C.simd_levels()


def has_matrix_products() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 in hardware (AMX), at the instruction set that is used."""
    return _C.has_matrix_products()


def kernels_enabled() -> bool:
    """Whether the kernels may run: yes, unless the environment says `PYUNETSEP_KERNELS=0`.

    Read at each call.
    """
    value = os.environ.get("PYUNETSEP_KERNELS", "1")
    if value not in ("0", "1"):
        raise ValueError(f"PYUNETSEP_KERNELS: got {value!r}, wants 0 or 1")
    return value == "1"


def covers(tensor: Tensor) -> bool:
    """Whether there is a kernel for the tensor's dtype and kind of device."""
    return tensor.dtype in (torch.float32, torch.float64) and tensor.device.type in ("cpu", "cuda")


def transforms(window: Tensor) -> bool:
    """Whether there is a kernel for the Fourier transform of frames that are weighted with `window`."""
    n_fft = window.shape[0]
    lengths = 32 <= n_fft <= 8192 and n_fft & (n_fft - 1) == 0
    return lengths and window.dtype == torch.float32 and window.device.type in ("cpu", "cuda")


def blocks(x: Tensor) -> bool:
    """Whether there are kernels for a network's blocks on maps like `x`."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


Block = _C.Block
UNetDescription = _C.UNetDescription
UNetPlan = _C.UNetPlan
CudaPlan = _C.CudaPlan
multiply_adds = _C.multiply_adds
ratio_mask = torch.ops.pyunetsep.ratio_mask.default
overlap_add = torch.ops.pyunetsep.overlap_add.default
stft = torch.ops.pyunetsep.stft.default
magnitudes = torch.ops.pyunetsep.magnitudes.default
masked_istft = torch.ops.pyunetsep.masked_istft.default
mask_wave = torch.ops.pyunetsep.mask_wave.default
encoder_block = torch.ops.pyunetsep.encoder_block.default
decoder_block = torch.ops.pyunetsep.decoder_block.default
mask_block = torch.ops.pyunetsep.mask_block.default
dilated_head = torch.ops.pyunetsep.dilated_head.default


@torch.library.register_fake("pyunetsep::ratio_mask")
def _(magnitudes: Tensor, mixture: Tensor | None, power: float, epsilon: float) -> Tensor:
    return magnitudes.new_empty(magnitudes.shape)


@torch.library.register_fake("pyunetsep::overlap_add")
def _(frames: Tensor, window: Tensor, hop_length: int) -> Tensor:
    *rows, frame_count, n_fft = frames.shape
    return frames.new_empty((*rows, (frame_count - 1) * hop_length + n_fft if frame_count else 0))


@torch.library.register_fake("pyunetsep::magnitudes")
def _empty_magnitudes(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> Tensor:
    *rows, samples = wave.shape
    n_fft = window.shape[0]
    frame_count = (samples - n_fft) // hop_length + 1 if samples >= n_fft else 0
    return wave.new_empty((*rows, frame_count, bins))


@torch.library.register_fake("pyunetsep::stft")
def _(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> tuple[Tensor, Tensor]:
    magnitude = _empty_magnitudes(wave, window, hop_length, first_bin, bins)
    spectrum_shape = (*magnitude.shape[:-1], window.shape[0] // 2 + 1)
    return wave.new_empty(spectrum_shape, dtype=wave.dtype.to_complex()), magnitude


@torch.library.register_fake("pyunetsep::masked_istft")
def _empty_waves(
    spectrum: Tensor, mask: Tensor, gain: Tensor, window: Tensor, hop_length: int, first_bin: int
) -> Tensor:
    *rows, frame_count, _ = mask.shape
    return mask.new_empty((*rows, (frame_count - 1) * hop_length + window.shape[0] if frame_count else 0))


@torch.library.register_fake("pyunetsep::mask_wave")
def _(
    wave: Tensor,
    mask: Tensor,
    gain: Tensor,
    window: Tensor,
    synthesis_window: Tensor,
    hop_length: int,
    first_bin: int,
) -> Tensor:
    return _empty_waves(wave, mask, gain, synthesis_window, hop_length, first_bin)


@torch.library.register_fake("pyunetsep::encoder_block")
def _(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, slope: float, alignment: str
) -> tuple[Tensor, Tensor]:
    extra = 1 if alignment == "pytorch" else 0  # of an odd size
    shape = (x.shape[0], weight.shape[0], (x.shape[2] + extra) // 2, (x.shape[3] + extra) // 2)
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.register_fake("pyunetsep::decoder_block")
def _(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    norm_first: bool,
    alignment: str,
    upsampling: str,
) -> Tensor:
    return x.new_empty((x.shape[0], bias.shape[0], 2 * x.shape[2], 2 * x.shape[3]))


@torch.library.register_fake("pyunetsep::mask_block")
def _(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor, alignment: str, upsampling: str) -> Tensor:
    return x.new_empty((x.shape[0], bias.shape[0], 2 * x.shape[2], 2 * x.shape[3]))


@torch.library.register_fake("pyunetsep::dilated_head")
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], bias.shape[0], x.shape[2], x.shape[3]))


def _ratio_mask_setup(ctx: Any, inputs: tuple[Tensor, Tensor | None, float, float], output: Tensor) -> None:
    magnitudes, mixture, ctx.power, ctx.epsilon = inputs
    ctx.save_for_backward(magnitudes, mixture, output)


def _ratio_mask_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Of mask_s = (a_s + epsilon / S') / A with a_s = e_s^p, rest r and A = sum a_s + r^p + epsilon:

    d mask_s / d a_j = ([s = j] - mask_s) / A, and d mask_s / d r^p = -mask_s / A.
    """
    magnitudes, mixture, masks = ctx.saved_tensors
    power = ctx.power

    def slope(x: Tensor) -> Tensor:
        return power * x ** (power - 1)

    total = (magnitudes**power).sum(0) + ctx.epsilon
    rest = None
    if mixture is not None:
        rest = torch.relu(mixture - magnitudes.sum(0))
        total = total + rest**power
    common = (gradient * masks).sum(0)
    of_magnitudes = (gradient - common) / total * slope(magnitudes)
    if rest is None:
        return of_magnitudes, None, None, None
    of_mixture = torch.where(rest > 0, -common / total * slope(rest), 0.0)
    return of_magnitudes - of_mixture, of_mixture, None, None


torch.library.register_autograd("pyunetsep::ratio_mask", _ratio_mask_backward, setup_context=_ratio_mask_setup)


def _overlap_add_setup(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    frames, window, ctx.hop_length = inputs
    ctx.save_for_backward(frames, window)


def _overlap_add_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The transpose of adding frames up: cut the wave's gradient into frames again."""
    frames, window = ctx.saved_tensors
    if frames.shape[-2] == 0:
        return torch.zeros_like(frames), torch.zeros_like(window), None
    pieces = gradient.unfold(-1, frames.shape[-1], ctx.hop_length)
    of_frames = pieces * window if ctx.needs_input_grad[0] else None
    of_window = (pieces * frames).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
    return of_frames, of_window, None


torch.library.register_autograd("pyunetsep::overlap_add", _overlap_add_backward, setup_context=_overlap_add_setup)


def _gradients(
    ctx: Any, function: Callable[..., Tensor | tuple[Tensor, ...]], gradients: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of an op's saved tensors, from a second run of it in plain PyTorch."""
    create_graph = torch.is_grad_enabled()  # for the gradients' own gradients
    with torch.enable_grad():
        # views, because one input may have been made of another, and that way is not the op's
        tensors = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        outputs = function(*tensors, *ctx.numbers)
    needed_tensors = zip(tensors, ctx.needs_input_grad, strict=False)
    wanted = [tensor for tensor, needed in needed_tensors if needed and tensor is not None]
    found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=create_graph, materialize_grads=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _differentiate_by_reference(name: str, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
    """Registers the gradient of an op whose tensors come before its other arguments."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.numbers = inputs[len(tensors) :]

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, function, gradients)

    torch.library.register_autograd(f"pyunetsep::{name}", backward, setup_context=setup)


for _function in (
    reference.stft,
    reference.magnitudes,
    reference.masked_istft,
    reference.mask_wave,
    reference.encoder_block,
    reference.decoder_block,
    reference.mask_block,
    reference.dilated_head,
):
    _differentiate_by_reference(_function.__name__, _function)
