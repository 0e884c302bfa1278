"""A network in TensorFlow's layout, computed by loops in the test, against its import."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pyunetsep.checkpoint import build_networks
from pyunetsep.config import SPLEETER
from pyunetsep.errors import CheckpointError
from pyunetsep.spleeter import read_spleeter, tensor_names, to_states
from tests.test_tensorflow_bundle import write_bundle

Array = npt.NDArray[Any]

CHANNELS = (3, 4, 5)
BLOCKS = len(CHANNELS)
SMALL = dataclasses.replace(
    SPLEETER, unet=dataclasses.replace(SPLEETER.unet, channels=CHANNELS), patch_frames=16,
    spectrogram=dataclasses.replace(SPLEETER.spectrogram, bins=8),
)  # fmt: skip


def numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


def spleeter_tensors(seed: int = 0) -> dict[str, Array]:
    """Random tensors under the names that Spleeter's program gives them, made in its program's order."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {"global_step": np.array(0, np.int64)}
    counts = {"conv2d": 0, "conv2d_transpose": 0, "batch_normalization": 0}

    def layer(kind: str, **shapes: tuple[int, ...]) -> None:
        name = numbered(kind, counts[kind])
        counts[kind] += 1
        for part, shape in shapes.items():
            value = random.normal(size=shape) / np.prod(shape) ** 0.25
            tensors[f"{name}/{part}"] = (np.abs(value) + 0.5 if part == "moving_variance" else value).astype(np.float32)

    def norm(width: int) -> None:
        layer("batch_normalization", gamma=(width,), beta=(width,), moving_mean=(width,), moving_variance=(width,))

    for _ in SMALL.stems:
        previous = 2
        for width in CHANNELS:
            layer("conv2d", kernel=(5, 5, previous, width), bias=(width,))
            norm(width)
            previous = width
        for width, skip in zip((4, 3, 1), (4, 3, 0), strict=True):
            layer("conv2d_transpose", kernel=(5, 5, width, previous), bias=(width,))
            norm(width)
            previous = width + skip
        layer("conv2d", kernel=(4, 4, 1, 2), bias=(2,))
    return tensors


# Spleeter's arithmetic in float64, image = [time, frequency, channels], every tap written out


def conv(x: Array, kernel: Array, bias: Array, *, stride: int, before: int, dilation: int = 1) -> Array:
    """Output o reads inputs `stride * o - before + dilation * u` for the taps u; what lies outside is zero."""
    height, width = x.shape[0] // stride, x.shape[1] // stride
    y = np.zeros((height, width, kernel.shape[3])) + bias
    for t in range(height):
        for f in range(width):
            for u in range(kernel.shape[0]):
                for v in range(kernel.shape[1]):
                    i, j = stride * t - before + dilation * u, stride * f - before + dilation * v
                    if 0 <= i < x.shape[0] and 0 <= j < x.shape[1]:
                        y[t, f] += x[i, j] @ kernel[u, v]
    return y


def transposed_conv(x: Array, kernel: Array, bias: Array) -> Array:
    """Input i feeds output 2i - 1 + u with tap u; what falls outside 0 .. 2n - 1 is dropped."""
    y = np.zeros((2 * x.shape[0], 2 * x.shape[1], kernel.shape[2])) + bias
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            for u in range(5):
                for v in range(5):
                    i, j = 2 * t - 1 + u, 2 * f - 1 + v
                    if 0 <= i < y.shape[0] and 0 <= j < y.shape[1]:
                        y[i, j] += kernel[u, v] @ x[t, f]
    return y


def mask(tensors: dict[str, Array], stem: int, x: Array) -> Array:
    """[time, frequency, 2] magnitudes -> mask of the same shape."""

    def weights(kind: str, number: int) -> tuple[Array, Array]:
        name = numbered(kind, number)
        return tensors[f"{name}/kernel"].astype(np.float64), tensors[f"{name}/bias"].astype(np.float64)

    def norm(z: Array, number: int) -> Array:
        name = numbered("batch_normalization", 2 * BLOCKS * stem + number)
        gamma, beta, mean, variance = (
            tensors[f"{name}/{part}"].astype(np.float64) for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (z - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    raw = []
    for i in range(BLOCKS):
        z = conv(x, *weights("conv2d", (BLOCKS + 1) * stem + i), stride=2, before=1)
        raw.append(z)
        normed = norm(z, i)
        x = np.where(normed > 0, normed, 0.2 * normed)
    x = raw.pop()
    for j in range(BLOCKS):
        x = transposed_conv(x, *weights("conv2d_transpose", BLOCKS * stem + j))
        x = norm(np.maximum(x, 0), BLOCKS + j)
        if raw:
            x = np.concatenate((raw.pop(), x), axis=2)
    x = conv(x, *weights("conv2d", (BLOCKS + 1) * stem + BLOCKS), stride=1, before=3, dilation=2)
    return 1 / (1 + np.exp(-x))


def test_the_imported_network_computes_what_spleeter_does() -> None:
    tensors = spleeter_tensors()
    networks = build_networks(SMALL, to_states(tensors, SMALL))
    x = np.random.default_rng(1).random((16, 8, 2))  # not square: time and frequency are told apart
    for stem, name in enumerate(SMALL.stems):
        with torch.no_grad():
            found = networks[name].double()(torch.from_numpy(x.T[None].copy()))  # [1, channels, bins, frames]
        wanted = mask(tensors, stem, x)
        assert wanted.std() > 0.05
        np.testing.assert_allclose(found[0].numpy().T, wanted, rtol=0, atol=1e-12)


def test_reads_a_checkpoint_folder(tmp_path: Path) -> None:
    tensors = spleeter_tensors()
    write_bundle(tmp_path / "model", tensors)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model"')
    states, wanted = read_spleeter(tmp_path, SMALL), to_states(tensors, SMALL)
    assert list(states) == ["vocals", "accompaniment"]
    for stem in states:
        assert states[stem].keys() == wanted[stem].keys()
        assert all(torch.equal(states[stem][key], wanted[stem][key]) for key in wanted[stem])


def test_names_of_the_published_model() -> None:
    names = tensor_names(SPLEETER)
    assert len(set(names.values())) == len(names) == 148 - 2 * 4  # the last encoder norm is not used
    assert names["vocals.encoder.0.conv.weight"] == "conv2d/kernel"
    assert names["vocals.head.bias"] == "conv2d_6/bias"
    assert names["vocals.decoder.5.norm.running_var"] == "batch_normalization_11/moving_variance"
    assert names["accompaniment.encoder.0.conv.weight"] == "conv2d_7/kernel"
    assert names["accompaniment.encoder.4.norm.bias"] == "batch_normalization_16/beta"
    assert names["accompaniment.decoder.0.conv.bias"] == "conv2d_transpose_6/bias"
    assert names["accompaniment.decoder.0.norm.weight"] == "batch_normalization_18/gamma"
    assert names["accompaniment.head.weight"] == "conv2d_13/kernel"


def test_state_of_training_is_left_out() -> None:
    tensors = spleeter_tensors()
    more = dict.fromkeys(("conv2d/kernel/Adam", "conv2d/kernel/Adam_1", "beta1_power"), tensors["conv2d/kernel"])
    assert to_states({**tensors, **more}, SMALL).keys() == {"vocals", "accompaniment"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"conv2d_3/kernel": None}, "1 tensors are missing, among them 'conv2d_3/kernel'"),
        ({"conv2d_8/kernel": np.zeros(1, np.float32)}, "1 tensors are unknown, among them 'conv2d_8/kernel'"),
        ({"conv2d/kernel": np.zeros((5, 5, 3, 2), np.float32)}, r"must be float32 \[5, 5, 2, 3\], is float32 \[5"),
        ({"conv2d/bias": np.zeros(3)}, r"'conv2d/bias' must be float32 \[3\], is float64 \[3\]"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, change: dict[str, Array | None], problem: str) -> None:
    tensors = {name: tensor for name, tensor in {**spleeter_tensors(), **change}.items() if tensor is not None}
    write_bundle(tmp_path / "model", tensors)
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_spleeter(tmp_path, SMALL)
    assert str(caught.value).startswith(f"{tmp_path}: not a Spleeter checkpoint of 2 stems: ")
