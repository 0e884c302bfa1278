"""How fast is what surrounds the networks on a GPU: Fourier transforms, with and without a stored spectrum, and masks?

    python benchmarks/transforms_cuda.py [--models jansson2017 spleeter] [--song 240]

On one song of random samples, in float32, against plain PyTorch (`torch.stft`, cuFFT's inverse and an overlap-add of
slices) with cold caches; all prove first that they agree with PyTorch in float64. The floor is the time of the bytes
that an op must read and write. "there and back" is both transforms: with the spectrum stored, and made twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gpu
import torch
from harness import save
from torch import Tensor

from pyunetsep import ops
from pyunetsep.config import ModelConfig, SeparatorConfig
from pyunetsep.ops import reference
from pyunetsep.unmixer import make_spectrogram

OURS, PLAIN = "kernels", "plain PyTorch"
STEMS = 2
TOLERANCE = 1e-4  # of an error, next to the largest value


def plain_stft(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> tuple[Tensor, Tensor]:
    n_fft = len(window)
    spectrum = torch.stft(wave, n_fft, hop_length, window=window, center=False, return_complex=True).mT
    return spectrum, spectrum[..., first_bin : first_bin + bins].abs()


class Case:
    """One model's transforms on one song."""

    def __init__(self, model: ModelConfig, samples: int, device: torch.device) -> None:
        grid = make_spectrogram(model, SeparatorConfig(), device)
        generator = torch.Generator(device).manual_seed(0)
        wave = torch.randn(model.unet.input_channels, samples, generator=generator, device=device)
        self.band = grid.first_bin, grid.bins
        self.windows, self.hop_length = (grid.window, grid.synthesis_window), grid.hop_length
        spectrum, magnitude = ops.stft(wave, grid.window, grid.hop_length, *self.band)
        shape = (STEMS, *magnitude.shape)
        mask = torch.rand(shape, generator=generator, device=device)
        gain = torch.rand(shape[:-1], generator=generator, device=device)
        estimates = torch.rand(shape, generator=generator, device=device)
        frames = torch.randn(*spectrum.shape[:-1], grid.n_fft, generator=generator, device=device)
        self.inputs = {
            "stft": (wave,),
            "magnitudes": (wave,),
            "masked_istft": (spectrum, mask, gain),
            "mask_wave": (wave, mask, gain),
            "there and back, stored": (wave, mask, gain),
            "there and back, made twice": (wave, mask, gain),
            "ratio_mask": (estimates,),
            "overlap_add": (frames,),
        }
        wave_bytes, spectrum_bytes = wave.numel() * 4, spectrum.numel() * 8
        back = (mask.numel() + gain.numel() + STEMS * wave.numel()) * 4
        magnitude_bytes = magnitude.numel() * 4
        self.bytes = {
            "stft": wave_bytes + spectrum_bytes + magnitude_bytes,
            "magnitudes": wave_bytes + magnitude_bytes,
            "masked_istft": spectrum_bytes + back,
            "mask_wave": wave_bytes + back,
            "there and back, stored": wave_bytes + 2 * spectrum_bytes + magnitude_bytes + back,
            "there and back, made twice": 2 * wave_bytes + magnitude_bytes + back,
            "ratio_mask": 2 * estimates.numel() * 4,
            "overlap_add": frames.numel() * 4 + wave_bytes,
        }

    def of(self, name: str, plain: bool, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One op's results, as a tuple."""
        window, synthesis = (window.to(inputs[0].real.dtype) for window in self.windows)
        stft, istft = (plain_stft, reference.masked_istft) if plain else (ops.stft, ops.masked_istft)
        forward, hop_length, first_bin = (window, self.hop_length, *self.band), self.hop_length, self.band[0]
        if name == "stft":
            return stft(*inputs, *forward)
        if name == "masked_istft":
            return (istft(*inputs, synthesis, hop_length, first_bin),)
        if name == "ratio_mask":
            if plain:
                return (reference.ratio_mask(inputs[0], None, 2.0, 1e-10),)
            return (ops.ratio_mask(inputs[0]),)
        if name == "overlap_add":
            return ((reference if plain else ops).overlap_add(inputs[0], synthesis, hop_length),)
        if name == "there and back, stored" or plain:
            wave, *masks = inputs
            spectrum, magnitude = stft(wave, *forward)
            if name == "magnitudes":
                return (magnitude,)
            made = istft(spectrum, *masks, synthesis, hop_length, first_bin)
            return (made,) if name == "mask_wave" else (magnitude, made)
        made = []
        if name != "mask_wave":
            made.append(ops.magnitudes(inputs[0], *forward))
        if name != "magnitudes":
            made.append(ops.mask_wave(*inputs, window, synthesis, hop_length, first_bin))
        return tuple(made)

    def error(self, name: str, made: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> float:
        """Next to the largest value, against float64."""
        doubles = tuple(x.to(torch.complex128 if x.is_complex() else torch.float64) for x in inputs)
        truth = self.of(name, True, doubles)
        return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(made, truth, strict=True))


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    model = gpu.model_of(name, args)
    case = Case(model, round(args.song * model.spectrogram.sample_rate_hz), args.device)
    clock, rows = gpu.Clock(args.device), []
    for op, inputs in case.inputs.items():
        runs: dict[str, Callable[[], object]] = {}
        failed: dict[str, str] = {}
        for rival in (OURS, PLAIN):
            try:
                run = lambda op=op, plain=rival == PLAIN, inputs=inputs: case.of(op, plain, inputs)  # noqa: E731
                error = case.error(op, run(), inputs)
                if not error <= TOLERANCE:
                    raise ValueError(f"is {error:.1e} of the largest value off, more than {TOLERANCE:.0e}")
                runs[rival] = run
            except Exception as problem:  # the others go on without it
                failed[rival] = gpu.left_out(f"{op}, {rival}", problem)
        timings: dict[str, Any] = gpu.alternate(runs, clock, args)
        floor = case.bytes[op] / gpu.BANDWIDTH
        for rival, each in timings.items():
            each["share_of_roofline"] = floor / each["median_s"]
            gpu.show(f"{op}, {rival}", each, f"{each['share_of_roofline']:6.0%} of the roofline")
        rows.append({
            "model": name, "op": op, "bytes": case.bytes[op], "floor_s": floor, "rivals": timings, "failed": failed,
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    options = gpu.parser(__doc__, seconds=1.0, rounds=30)
    options.add_argument("--song", type=float, default=240.0, metavar="S", help="seconds of music")
    args = gpu.parse(options, arguments)
    if args.dry_run:
        args.song = min(args.song, 0.25)
    best, rows = gpu.ceilings(args), []
    with torch.inference_mode():
        for name in args.models:
            print(f" {name}, a song of {args.song:g} s, {STEMS} stems")
            rows += measure(name, args)
            if args.device.type == "cuda":
                torch.cuda.empty_cache()
    constants = {"bandwidth": gpu.BANDWIDTH, "measured": best, "tolerance": TOLERANCE}
    print(save("transforms_cuda", {"dry_run": args.dry_run, "song_s": args.song, **constants, "ops": rows}))
    return int(any(OURS in row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
