"""What the timing is made of; not how long anything takes."""

import dataclasses
import os

import pytest
import torch

from pyunetsep import _C, benchmark
from pyunetsep.config import PRESETS
from pyunetsep.unet_plan import UNetPlan
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE


def test_rivals_take_turns_and_warm_up_untimed():
    calls = []
    timings = benchmark.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert timings["a"]["rounds"] == timings["b"]["rounds"] == 3


def test_time_runs_out_but_not_before_the_least_rounds():
    timings = benchmark.alternate({"a": lambda: None}, seconds=0.0, least=2)
    assert timings["a"]["rounds"] == 2


def test_a_rival_may_time_itself():
    seconds = iter([9.0, 1.0, 5.0, 2.0])  # the first is the warm-up
    assert benchmark.alternate({"a": lambda: next(seconds)}, rounds=3)["a"] == {
        "median_s": 2.0, "quartile_1_s": 1.5, "quartile_3_s": 3.5, "min_s": 1.0, "max_s": 5.0, "rounds": 3,
    }  # fmt: skip


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("preset", PRESETS)
def test_flop_are_those_of_the_layers(preset, upsampling):
    """Counted anew from the modules: two for each weight and each position that it meets."""
    unet = dataclasses.replace(PRESETS[preset].unet, channels=(3, 4), upsampling=upsampling, dropout_blocks=1)
    network, counted = benchmark.random_network(unet), {}

    def count(name):
        def hook(module, inputs, output):
            meets = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
            counted[name] = 2 * module.weight.numel() * meets.shape[2:].numel()

        return hook

    for kind, blocks in (("encoder", network.encoder), ("decoder", network.decoder)):
        for i, block in enumerate(blocks, start=1):
            block.conv.register_forward_hook(count(f"{kind} {i}"))
    if unet.head == "dilated":
        network.head.register_forward_hook(count("head 1"))
    network(torch.rand(1, unet.input_channels, 32, 64))
    assert benchmark.layer_flop(unet, 32, 64) == counted


def test_the_published_networks_take_what_is_said_of_them():
    flop = {
        name: sum(benchmark.layer_flop(model.unet, model.spectrogram.bins, model.patch_frames).values())
        for name, model in PRESETS.items()
    }
    assert flop == pytest.approx({"jansson2017": 1.507e9, "spleeter": 12.197e9}, rel=1e-3)


@pytest.mark.parametrize("model", [JANSSON_LIKE, SPLEETER_LIKE])
def test_flop_are_named_as_the_profile_names_the_layers(model):
    bins, frames = model.spectrogram.bins, model.patch_frames
    plan = UNetPlan(benchmark.random_network(model.unet), bins=bins, frames=frames)
    profile = plan.profile(torch.rand(1, model.unet.input_channels, bins, frames))
    assert list(profile) == list(benchmark.layer_flop(model.unet, bins, frames))


def test_multiply_adds_are_counted(level):
    one = _C.multiply_adds(1, 10)
    assert one > 0 and one % 10 == 0
    assert _C.multiply_adds(3, 10) == 3 * one
    assert benchmark.fma_peak(0.0) > 0


def test_networks_are_the_same_each_time_and_leave_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = (benchmark.random_network(JANSSON_LIKE.unet) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("before", [None, "1"])
def test_the_environment_is_as_it_was(monkeypatch, before):
    monkeypatch.delenv("PYUNETSEP_KERNELS", raising=False)
    if before is not None:
        monkeypatch.setenv("PYUNETSEP_KERNELS", before)
    with benchmark.use_kernels(False):
        assert os.environ["PYUNETSEP_KERNELS"] == "0"
    assert os.environ.get("PYUNETSEP_KERNELS") == before
    threads = torch.get_num_threads()
    with benchmark.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
