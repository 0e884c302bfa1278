"""Whole U-Nets on the emulated CUDA kernels, against the networks in float64."""

import copy
import itertools

import pytest
import torch

from pyunetsep.benchmark import random_network
from tests.emulated.network import ELEMENTS, EmulatedPlan
from tests.test_unet_plan import NETWORKS

EVERY_ORDER = list(itertools.product((0, 1), repeat=2))
SMALL = {name: config for name, config in NETWORKS.items() if config.stride < 64}


def check(plan: EmulatedPlan, networks, magnitude: torch.Tensor, stems=None) -> None:
    """At most twice as wrong as PyTorch in the plan's precision."""
    masks = plan.estimate(magnitude, stems)
    for stem, mask in zip(stems or networks, masks, strict=True):
        network = copy.deepcopy(networks[stem])
        own = network.to(plan.precision)(magnitude.to(plan.precision)).double()
        truth = networks[stem].double()(magnitude.double())
        networks[stem].float()
        bound = 2 * (own - truth).abs().max() + torch.finfo(plan.precision).eps
        error = (mask - truth).abs().max()
        assert error <= bound, f"{stem}: largest error {error:.3g}, bound {bound:.3g}"


@pytest.mark.parametrize("precision", ELEMENTS, ids=["half", "bfloat16", "single"])
@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
@torch.no_grad()
def test_a_small_network(config, precision, emulated):
    networks = {"one": random_network(config), "other": random_network(config, seed=1)}
    magnitude = torch.rand(2, config.input_channels, 3 * config.stride, 2 * config.stride).to(precision).float()
    check(EmulatedPlan(emulated, networks, precision, orders=EVERY_ORDER), networks, magnitude)


@pytest.mark.parametrize(("name", "multiprocessors"), [("paper", 1), ("spleeter", 132)])
@torch.no_grad()
def test_a_whole_network(name, multiprocessors, emulated):
    """Without and with split sums."""
    config = NETWORKS[name]
    networks = {"one": random_network(config), "other": random_network(config, seed=1)}
    magnitude = torch.rand(1, config.input_channels, 64, 64).half().float()
    check(EmulatedPlan(emulated, networks, multiprocessors=multiprocessors), networks, magnitude)


@torch.no_grad()
def test_some_stems_and_masked(emulated):
    config = NETWORKS["tiny spleeter"]
    networks = {stem: random_network(config) for stem in ("vocals", "drums", "bass")}
    magnitude = torch.rand(1, config.input_channels, 16, 8)
    plan = EmulatedPlan(emulated, networks, torch.float32)
    every = plan.estimate(magnitude)
    for stems in (["vocals"], ["drums", "bass"], ["bass"]):
        first = list(networks).index(stems[0])
        assert torch.equal(plan.estimate(magnitude, stems), every[first : first + len(stems)])
    masked = plan.estimate(magnitude, masked=True)
    torch.testing.assert_close(masked, every * magnitude, rtol=1e-6, atol=0)
