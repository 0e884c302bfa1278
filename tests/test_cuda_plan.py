"""What a plan for a GPU refuses before it needs one; tests/test_gpu.py and tests/emulated have the rest."""

import copy
import dataclasses
import pickle

import pytest
import torch

from pyunetsep import PRESETS, CudaPlan, UNet
from pyunetsep.ops import kernels
from pyunetsep.unet_plan import described

TINY = dataclasses.replace(PRESETS["spleeter"].unet, channels=(3, 4), dropout_blocks=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": torch.device("cpu")}, "device must be a CUDA device, got cpu"),
        ({"precision": torch.float64}, "precision must be one of float16, bfloat16, float32, got torch.float64"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CudaPlan({"vocals": UNet(TINY)}, **{"device": torch.device("cuda", 0), **options})


def plan(*networks, precision="float16"):
    return kernels.CudaPlan([described(network) for network in networks], precision, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": (3, 5)},
        {"channels": (3,)},
        {"alignment": "pytorch"},
        {"skips": "activated"},
        {"head": "transposed"},
        {"upsampling": "nearest"},
        {"leaky_slope": 0.1},
    ],
    ids=str,
)
def test_networks_of_different_shapes_are_refused(changes):
    with pytest.raises(ValueError, match="got networks of different shapes, wants one"):
        plan(UNet(TINY), UNet(dataclasses.replace(TINY, **changes)))


def test_blocks_are_checked():
    with pytest.raises(ValueError, match="networks: got none"):
        plan()
    with pytest.raises(ValueError, match="precision: got 'float8', wants float16, bfloat16 or float32"):
        plan(UNet(TINY), precision="float8")
    whole = described(UNet(TINY))
    cut = kernels.UNetDescription(whole.encoder, whole.decoder[1:], whole.head, "tensorflow", "transposed", True)
    with pytest.raises(ValueError, match="encoder, decoder: got 2 and 1 blocks"):
        kernels.CudaPlan([cut], "float16", 0)
    flipped = kernels.UNetDescription(whole.encoder, whole.decoder, whole.head, "tensorflow", "transposed", False)
    with pytest.raises(ValueError, match="encoder 1: got a norm of its own, wants it folded into the convolution"):
        kernels.CudaPlan([flipped], "float16", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_says_so():
    with pytest.raises(RuntimeError, match=r"CUDA|built without its CUDA kernels"):
        plan(UNet(TINY))


def test_copies_share_what_is_packed_and_pickles_are_refused():
    made = CudaPlan.__new__(CudaPlan)  # as it takes a GPU to make one properly
    assert copy.deepcopy({"plan": made})["plan"] is made
    with pytest.raises(TypeError, match="a CudaPlan is packed for this machine and cannot be pickled"):
        pickle.dumps(made)
