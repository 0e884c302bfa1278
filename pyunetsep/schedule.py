"""How patches follow one another through a song, and how long a stream has to wait for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import ModelConfig, SeparatorConfig

# Where a low latency is asked for, patches are this far apart at least: closer ones cost more time than they are worth.
PACE_S = 0.4


@dataclass(frozen=True)
class Schedule:
    """The parts of a patch, in frames of each grid: context | step | fade | ahead.

    A network hears the whole patch. Its masks are used for `step + fade` frames; the first `fade` of these are faded
    over from the masks of the patch before, which starts `step` frames earlier.
    """

    context: int
    step: int
    fade: int
    ahead: int

    @property
    def used(self) -> int:
        return self.step + self.fade

    @property
    def wait(self) -> int:
        """Frames that must have come before the first of them has its mask."""
        return self.step + self.fade + self.ahead

    def frames(self, patches: int) -> int:
        """That so many patches hear."""
        return self.context + patches * self.step + self.fade + self.ahead

    def patches(self, frames: int) -> int:
        """That it takes for masks of so many frames."""
        return max(1, -(-(frames - self.fade) // self.step))


def whole_patches(model: ModelConfig, config: SeparatorConfig) -> Schedule:
    """All masks are used, and the overlap of patches is cross-faded."""
    # a multiple of the network's stride: its answer depends on where a patch lies on that grid; at least the share that
    # was asked for, where half a patch allows it
    stride = model.unet.stride
    wanted = math.ceil(config.overlap * model.patch_frames / stride - 1e-9)
    fade = min(wanted, model.patch_frames // 2 // stride) * stride
    return Schedule(context=0, step=model.patch_frames - fade, fade=fade, ahead=0)


def prompt_patches(model: ModelConfig, frames: int) -> Schedule:
    """Patches that are mostly context: no frame waits for more than `frames` frames, itself among them.

    Half of these come after the frames that a patch is used for, unless patches would be closer than `PACE_S`; see
    benchmarks/latency.py for what that is worth.
    """
    pace = math.ceil(PACE_S * model.spectrogram.sample_rate_hz / model.spectrogram.hop_length)
    used = min(frames, max(frames - frames // 2, pace))
    fade = 1 if used > 2 else 0  # one frame lies in many samples' windows, so the seam is smooth already
    return Schedule(context=model.patch_frames - frames, step=used - fade, fade=fade, ahead=frames - used)


def schedule_within(
    latency_s: float | None, model: ModelConfig, config: SeparatorConfig, *, grids: int, spent_s: float
) -> Schedule:
    """The schedule that hears most, of those whose stems come `latency_s` after the mixture or sooner.

    Args:
        latency_s: None is as long as whole patches take.
        grids: of frames, shifted.
        spent_s: what else takes time, resampling.
    Raises:
        ValueError: that is too soon.
    """
    whole = whole_patches(model, config)
    if latency_s is None:
        return whole

    def latency(frames: int) -> float:
        return spent_s + latency_of(frames, model, grids)

    if not latency_s >= latency(1):  # also catches NaN
        raise ValueError(
            f"latency_s must be at least {math.ceil(latency(1) * 1000) / 1000:.3f} s for this model and sample rate, "
            f"got {latency_s:g}"
        )
    if latency_s >= latency(whole.wait):
        return whole
    return prompt_patches(model, max(n for n in range(1, model.patch_frames) if latency(n) <= latency_s))


def latency_of(frames: int, model: ModelConfig, grids: int) -> float:
    """Seconds between a sample and its stems, at worst, if masks wait for `frames` frames of each grid."""
    spectrogram = model.spectrogram
    samples = (frames * grids - 1) * spectrogram.hop_length // grids + spectrogram.n_fft
    return samples / spectrogram.sample_rate_hz
