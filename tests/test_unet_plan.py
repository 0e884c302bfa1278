"""Compiled networks against the networks themselves, in float64."""

import copy
import dataclasses
import itertools
import pickle
import threading

import pytest
import torch

from pyunetsep import PRESETS, UNet
from pyunetsep.benchmark import random_network
from pyunetsep.ops import kernels
from pyunetsep.unet_plan import UNetPlan
from tests.test_blocks import WINOGRAD

PAPER, SPLEETER = PRESETS["jansson2017"].unet, PRESETS["spleeter"].unet


def variant(config, **changes):
    return dataclasses.replace(config, **{"dropout_blocks": 1, **changes})


NETWORKS = {
    "paper": PAPER,
    "spleeter": SPLEETER,
    "tiny paper": variant(PAPER, channels=(3, 4)),
    "tiny spleeter": variant(SPLEETER, channels=(3, 4)),
    "one block": variant(PAPER, channels=(5,)),
    "one block, raw": variant(SPLEETER, channels=(16,)),
    "odd widths": variant(PAPER, channels=(17, 33, 20), input_channels=3),
    "raw skips, norm first": variant(SPLEETER, channels=(16, 20), decoder_order="norm-activation", input_channels=1),
    "activated skips, norm last": variant(PAPER, channels=(16, 20), decoder_order="activation-norm"),
    "dilated head on the paper's": variant(PAPER, channels=(16, 20), head="dilated", input_channels=2),
    "ten blocks": variant(PAPER, channels=(2, 3, 4, 5, 6, 7, 8, 9, 10, 11)),
    "many planes": variant(SPLEETER, channels=(16, 20), input_channels=9),
    "nearest": variant(PAPER, channels=(16, 17, 20), upsampling="nearest"),
    "nearest, tensorflow": variant(SPLEETER, channels=(16, 17, 20), upsampling="nearest"),
}


def check(network: UNet, magnitude: torch.Tensor, plan: UNetPlan) -> None:
    """At most WINOGRAD times as wrong as PyTorch, and the same bits again."""
    mask = plan(magnitude)
    assert mask.shape == magnitude.shape
    plain = network(magnitude)
    truth = network.double()(magnitude.double())
    network.float()
    bound = WINOGRAD * (plain - truth).abs().max() + 2**-22  # and the sigmoid's own rounding, 2 ulp of 1
    assert (mask - truth).abs().max() <= bound
    assert torch.equal(plan(magnitude), mask)
    masked = plan.estimate(magnitude, masked=True)
    torch.testing.assert_close(masked, mask * magnitude, rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_a_plan_is_its_network(config, level):
    network = random_network(config)
    stride = config.stride
    size = (128, 128) if stride == 64 else (stride, stride) if stride > 64 else (5 * stride, 3 * stride)
    plan = UNetPlan(network, bins=size[0], frames=size[1], batch=2)
    assert plan.simd_level == level
    check(network, torch.rand(2, config.input_channels, *size), plan)


@pytest.mark.parametrize("config", [PAPER, SPLEETER], ids=["paper", "spleeter"])
@pytest.mark.parametrize("size", [(1, 64, 64), (3, 64, 192), (1, 448, 64), (5, 128, 64)])
def test_a_plan_takes_other_sizes_than_it_was_made_for(config, size):
    network = random_network(config)
    for usual in ({"bins": 512, "frames": 128, "batch": 20}, {"bins": 64, "frames": 64}):
        plan = UNetPlan(network, **usual)
        batch, bins, frames = size
        check(network, torch.rand(batch, config.input_channels, bins, frames), plan)


def test_any_memory_layout_goes_in():
    network = random_network(NETWORKS["tiny spleeter"])
    plan = UNetPlan(network, bins=32, frames=16)
    magnitude = torch.rand(3, 2, 32, 16)
    expected = plan(magnitude)
    assert torch.equal(plan(magnitude.mT.contiguous().mT), expected)
    assert torch.equal(plan(magnitude.contiguous(memory_format=torch.channels_last)), expected)
    run = torch.rand(2, 16 + 2 * 8, 40)  # patches of a longer run of frames, as the separator cuts them
    patches = run[..., :32].unfold(-2, 16, 8).movedim(-3, 0)
    assert torch.equal(plan(patches), plan(patches.clone()))


def test_out_is_written_and_nothing_around_it():
    plan = UNetPlan(random_network(NETWORKS["tiny paper"]), bins=8, frames=12)
    magnitude = torch.rand(2, 1, 8, 12)
    frame = torch.full((4, 3, 14, 10), torch.nan)
    out = frame[1:3, 1:2, 1:13, 1:9].mT
    assert plan.estimate(magnitude, out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out, plan(magnitude))
    assert frame.isnan().sum() == frame.numel() - out.numel()


def test_empty_batches_come_back_empty():
    plan = UNetPlan(random_network(NETWORKS["tiny paper"]), bins=8, frames=8)
    assert plan(torch.rand(0, 1, 8, 8)).shape == (0, 1, 8, 8)
    assert plan(torch.rand(2, 1, 8, 0)).shape == (2, 1, 8, 0)


def test_same_bits_for_any_number_of_threads(level):
    network, magnitude = random_network(SPLEETER), torch.rand(1, 2, 128, 192)
    plan = UNetPlan(network, bins=128, frames=192)
    masks = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        masks.append(plan(magnitude))
    assert all(itertools.starmap(torch.equal, itertools.pairwise(masks)))


def test_threads_may_share_a_plan():
    network = random_network(NETWORKS["odd widths"])
    plan = UNetPlan(network, bins=40, frames=24)
    inputs = [torch.rand(1 + i % 3, 3, 40, 24) for i in range(8)]
    expected = [plan(magnitude) for magnitude in inputs]
    same = [False] * len(inputs)

    def work(i: int) -> None:
        same[i] = all(torch.equal(plan(inputs[i]), expected[i]) for _ in range(20))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(same)


def test_training_goes_on_unnoticed():
    network = random_network(NETWORKS["tiny paper"])
    plan, magnitude = UNetPlan(network, bins=8, frames=8), torch.rand(1, 1, 8, 8)
    before = plan(magnitude)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert torch.equal(plan(magnitude), before)


def test_nan_in_nan_out():
    plan = UNetPlan(random_network(PAPER), bins=64, frames=64)
    magnitude = torch.rand(2, 1, 64, 64)
    magnitude[0, 0, 5, 5] = torch.nan
    mask = plan(magnitude)
    assert mask[0].isnan().any()
    assert not mask[1].isnan().any()


def test_a_plan_names_its_layers_and_memory():
    plan = UNetPlan(random_network(PAPER), bins=128, frames=64)
    times = plan.profile(torch.rand(1, 1, 128, 64))
    assert list(times) == [f"encoder {i}" for i in range(1, 7)] + [f"decoder {i}" for i in range(1, 7)]
    assert all(seconds > 0 for seconds in times.values())
    assert plan.packed_bytes > 30e6


def test_networks_and_plans_estimate_alike():
    network = random_network(NETWORKS["tiny spleeter"])
    plan, magnitude = UNetPlan(network, bins=8, frames=8), torch.rand(2, 2, 8, 8)
    assert (plan.device, plan.dtype) == (network.device, network.dtype)
    for masked in (False, True):
        out = torch.empty(2, 2, 8, 8)
        assert network.estimate(magnitude, masked=masked, out=out) is out
        torch.testing.assert_close(plan.estimate(magnitude, masked=masked), out)


# ---- bad inputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 63}, "bins must be a positive multiple of 4, got 63"),
        ({"frames": 0}, "frames must be a positive multiple of 4, got 0"),
        ({"batch": 0}, "batch must be a positive multiple of 1, got 0"),
    ],
)
def test_a_plan_refuses_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        UNetPlan(random_network(NETWORKS["tiny paper"]), **{"bins": 8, "frames": 8, **options})


@pytest.mark.parametrize(
    ("magnitude", "error", "message"),
    [
        (torch.ones(1, 8, 8), ValueError, r"magnitude: got shape \[1, 8, 8\], wants \[batch, channels, bins, frames\]"),
        (
            torch.ones(1, 2, 8, 8),
            ValueError,
            r"magnitude: got shape \[1, 2, 8, 8\], wants \[batch, 1, .*multiples of 4",
        ),
        (torch.ones(1, 1, 8, 6), ValueError, "magnitude: got shape .* multiples of 4"),
        (torch.ones(1, 1, 8, 8).double(), TypeError, "magnitude: got dtype .*, wants float32"),
        (torch.ones(1, 1, 8, 8, device="meta"), ValueError, "magnitude: got device meta, wants cpu"),
    ],
)
def test_a_plan_refuses_magnitudes(magnitude, error, message):
    plan = UNetPlan(random_network(NETWORKS["tiny paper"]), bins=8, frames=8)
    with pytest.raises(error, match=message):
        plan(magnitude)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (torch.empty(1, 1, 8, 4).mT, ValueError, "out: got shape .* wants that of magnitude"),
        (torch.empty(1, 1, 8, 8), ValueError, "out: got shape .* with contiguous columns"),
        (torch.empty(1, 1, 8, 8).double().mT, TypeError, "out: got dtype .*, wants float32"),
    ],
)
def test_a_plan_refuses_out(out, error, message):
    plan = UNetPlan(random_network(NETWORKS["tiny paper"]), bins=8, frames=8)
    with pytest.raises(error, match=message):
        plan.estimate(torch.ones(1, 1, 8, 8), out=out)


def test_blocks_that_do_not_fit_are_refused():
    def block(out: int, into: int, taps: int = 5) -> kernels.Block:
        return kernels.Block(torch.zeros(out, into, taps, taps), torch.zeros(out))

    def relu(like: kernels.Block) -> kernels.Block:
        return kernels.Block(like.weight, like.bias, slope=0.0)

    def plan(encoder, decoder, head=None):
        description = kernels.UNetDescription(encoder, decoder, head, "pytorch", "nearest", False)
        return kernels.UNetPlan(description, (1, 8, 8))

    plan([block(3, 1), block(4, 3)], [block(3, 4), block(1, 6)])
    with pytest.raises(ValueError, match="encoder, decoder: got 2 and 1 blocks"):
        plan([block(3, 1), block(4, 3)], [block(1, 4)])
    with pytest.raises(ValueError, match=r"encoder 2: got weight .* of 3 channels in"):
        plan([block(3, 1), block(4, 2)], [block(3, 4), block(1, 6)])
    with pytest.raises(ValueError, match=r"decoder 2: got weight .* of 6 channels in"):
        plan([block(3, 1), block(4, 3)], [block(3, 4), block(1, 3)])
    with pytest.raises(ValueError, match="decoder: got 2 channels out, wants as many as go in, 1"):
        plan([block(3, 1)], [block(2, 3)])
    with pytest.raises(ValueError, match=r"head: got weight .*, wants weight \[out, in, 4, 4\]"):
        plan([block(3, 1)], [relu(block(1, 3))], block(1, 1))
    with pytest.raises(ValueError, match="decoder: got 2 channels out, wants 1, for the head"):
        plan([block(3, 1)], [relu(block(2, 3))], block(1, 1, 4))
    with pytest.raises(ValueError, match="decoder 1: got what follows another block, wants ReLU"):
        plan([block(3, 1)], [block(1, 3)], block(1, 1, 4))
    with pytest.raises(ValueError, match=r"decoder 1: got what follows another block, wants .* else nothing"):
        plan([block(3, 1)], [relu(block(1, 3))])
    with pytest.raises(ValueError, match="head: got an activation of its own"):
        plan([block(3, 1)], [relu(block(1, 3))], relu(block(1, 1, 4)))
    affine = torch.ones(3), torch.ones(3)
    with pytest.raises(ValueError, match="encoder 1: got a scale before the activation and one after"):
        plan([kernels.Block(torch.zeros(3, 1, 5, 5), torch.zeros(3), affine, affine)], [block(1, 3)])
    with pytest.raises(TypeError, match="encoder 1: got weight of Half, wants float32 or float64"):
        plan([kernels.Block(torch.zeros(3, 1, 5, 5).half(), torch.zeros(3))], [block(1, 3)])
    with pytest.raises(ValueError, match="alignment: got 'left', wants pytorch or tensorflow"):
        kernels.UNetDescription([block(3, 1)], [block(1, 3)], None, "left", "nearest", False)


def test_out_must_not_overlap_itself():
    plan = UNetPlan(random_network(NETWORKS["tiny paper"]), bins=8, frames=8)
    out = torch.empty(1, 1, 8, 8).expand(2, 1, 8, 8).mT
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor refers to a single memory"):
        plan.estimate(torch.ones(2, 1, 8, 8), out=out)


def test_plans_are_made_anew_rather_than_pickled():
    plan = UNetPlan(random_network(NETWORKS["tiny paper"]), bins=8, frames=8)
    with pytest.raises(
        TypeError, match="a UNetPlan is packed for this machine and cannot be pickled; pickle the networks"
    ):
        pickle.dumps(plan)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_share_what_is_packed(copied):
    plan = UNetPlan(random_network(NETWORKS["tiny paper"]), bins=8, frames=8)
    assert copied({"vocals": plan})["vocals"] is plan
