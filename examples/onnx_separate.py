"""Separates a song with networks that `pyunetsep export` wrote, without pyunetsep and PyTorch.

    pyunetsep export jansson2017 --onnx networks
    python examples/onnx_separate.py song.wav networks

It does what pyunetsep does with `exact=True`: the pipeline of the model's authors. It needs NumPy, soundfile and
onnxruntime, and a song that has the model's sample rate. All numbers come from the files' metadata.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soundfile


class Network:
    """One stem's network, and what its file says of the pipeline around it."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path)
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        self.stem = self.metadata["stem"]

    def number(self, key: str) -> Any:
        return json.loads(self.metadata[key])

    def mask(self, magnitude: np.ndarray) -> np.ndarray:
        """[patches, channels, bins, frames], as are masks."""
        return self.session.run(["mask"], {"magnitude": magnitude})[0]


def separate(song: np.ndarray, networks: list[Network]) -> dict[str, np.ndarray]:
    """[channels, samples] at the model's rate -> a stem of that shape for each network.

    The channels must be a multiple of the networks' `input_channels`.
    """
    model = networks[0]
    n_fft, hop, frames_a_patch = (model.number(key) for key in ("n_fft", "hop_length", "patch_frames"))
    band = slice(model.number("first_bin"), model.number("first_bin") + model.number("bins"))

    # frame k begins n_fft samples before sample k * hop; zeros fill the last patch
    patches = -(-(song.shape[1] + n_fft) // (hop * frames_a_patch))
    frames = patches * frames_a_patch
    padded = np.zeros((song.shape[0], (frames - 1) * hop + n_fft))
    padded[:, n_fft : n_fft + song.shape[1]] = song
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[:, ::hop] * window)
    magnitude = np.abs(spectrum[..., band]).astype(np.float32)  # [channels, frames, bins]

    # [patches, groups, channels, bins, frames]: a group is what the network hears together
    shape = (-1, model.number("input_channels"), patches, frames_a_patch, magnitude.shape[-1])
    inputs = magnitude.reshape(shape).transpose(2, 0, 1, 4, 3)
    if model.metadata["normalisation"] != "none":
        over = (2, 3, 4) if model.metadata["normalisation"] == "patch" else (0, 2, 3, 4)
        inputs = inputs / np.maximum(inputs.max(over, keepdims=True), np.finfo(np.float32).tiny)
    masks = np.stack([network.mask(inputs.reshape(-1, *inputs.shape[2:])) for network in networks])
    masks = masks.reshape(len(networks), *inputs.shape)
    if model.metadata["masks"] == "ratio":
        estimates = (masks * inputs).astype(np.float64) ** model.number("mask_power")
        epsilon = model.number("mask_epsilon")
        masks = (estimates + epsilon / len(networks)) / (estimates.sum(0) + epsilon)

    # back to [stems, channels, frames, bins]; bins below the band take its first mask, a lone one above it the last
    masks = masks.transpose(0, 2, 3, 1, 5, 4).reshape(len(networks), *magnitude.shape)
    above = spectrum.shape[-1] - band.stop
    full = np.zeros((len(networks), *spectrum.shape))
    full[..., : band.start] = masks[..., :1]
    full[..., band] = masks
    if above == 1:
        full[..., -1] = masks[..., -1]

    # overlapping frames, each weighted with the window again, and divided by the sum of its squares
    waves = np.fft.irfft(spectrum * full) * window
    squares, mixed = np.zeros(padded.shape[1]), np.zeros((len(networks), *padded.shape))
    for k in range(frames):
        squares[k * hop : k * hop + n_fft] += window**2
        mixed[..., k * hop : k * hop + n_fft] += waves[..., k, :]
    inside = slice(n_fft, n_fft + song.shape[1])
    return {network.stem: stem[:, inside] / squares[inside] for network, stem in zip(networks, mixed, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Separates a song with networks that pyunetsep exported.")
    parser.add_argument("song", type=Path, help="audio file")
    parser.add_argument("networks", type=Path, help="folder of a model's .onnx files, all its stems")
    parser.add_argument("-o", "--output", type=Path, default=Path("stems"), help="folder for the stems")
    args = parser.parse_args()

    networks = [Network(path) for path in sorted(args.networks.glob("*.onnx"))]
    if sorted(network.stem for network in networks) != sorted(networks[0].number("stems") if networks else ["?"]):
        parser.error(f"{args.networks} must hold all stems of one model")
    wave, rate = soundfile.read(args.song, always_2d=True)
    if rate != networks[0].number("sample_rate_hz"):
        parser.error(f"{args.song} has {rate} Hz, the model wants {networks[0].number('sample_rate_hz')}")
    if wave.shape[1] % networks[0].number("input_channels"):
        parser.error(
            f"{args.song} has {wave.shape[1]} channels, the model wants {networks[0].number('input_channels')}"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    for stem, samples in separate(wave.T, networks).items():
        soundfile.write(args.output / f"{stem}.wav", samples.T, rate, subtype="FLOAT")


if __name__ == "__main__":
    main()
