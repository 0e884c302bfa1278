"""The networks in one form or another, and the batch that a device can hold."""

import pytest
import torch

from pyunetsep import DeviceError
from pyunetsep.config import JANSSON2017, SPLEETER, SeparatorConfig
from pyunetsep.engine import Engine, Networks, batch_patches
from pyunetsep.unet_plan import UNetPlan
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, checkpoint


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_networks_are_run_one_after_the_other(planned, masked):
    bins, frames = SPLEETER_LIKE.spectrogram.bins, SPLEETER_LIKE.patch_frames
    networks = checkpoint(SPLEETER_LIKE).networks
    if planned:
        networks = {stem: UNetPlan(network, bins=bins, frames=frames) for stem, network in networks.items()}
    magnitude = torch.rand(3, 2, frames, bins).mT
    names = ["accompaniment", "vocals"]
    expected = torch.stack([networks[name].estimate(magnitude, masked=masked) for name in names])
    estimator = Networks(networks)
    assert torch.equal(estimator.estimate(magnitude, names, masked=masked), expected)
    spread = torch.zeros(2, 5, 2, frames, bins)  # stems may lie apart
    out = spread[:, 1:4].mT
    assert estimator.estimate(magnitude, names, masked=masked, out=out) is out
    assert torch.equal(out, expected)
    assert not spread[:, 0].any() and not spread[:, 4].any()


def test_a_batch_is_as_large_as_the_device_likes():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    default = SeparatorConfig()
    assert batch_patches(SPLEETER, default, cpu) == 1
    assert batch_patches(JANSSON2017, default, cpu) == 4
    assert batch_patches(SPLEETER, default, gpu) == 16
    assert batch_patches(JANSSON2017, default, gpu) == 128
    assert batch_patches(SPLEETER, SeparatorConfig(batch_patches=7), gpu) == 7


def test_a_batch_is_halved_down_to_one_patch():
    engine = Engine(Networks(checkpoint(JANSSON_LIKE).networks), 12)
    for tried, left in ((12, 6), (9, 4), (12, 4), (3, 1)):  # other songs' batches do not make it larger again
        engine.halve(tried)
        assert engine.batch == left
    with pytest.raises(DeviceError, match="cpu is out of memory, with batch_patches down to 1"):
        engine.halve(1)
