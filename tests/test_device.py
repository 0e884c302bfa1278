"""Which GPUs are used: those that the kernels were built for."""

import pytest
import torch

from pyunetsep import DeviceError, ops
from pyunetsep.device import _runs_on, choose_device, cuda_obstacle
from pyunetsep.ops import kernels

BUILT = "80-real 90-real 100-real 100-virtual"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), BUILT, True),
        ((8, 9), BUILT, True),  # machine code runs on later minors
        ((9, 0), BUILT, True),
        ((12, 0), BUILT, True),  # compiled by the driver
        ((7, 5), BUILT, False),
        ((9, 0), "80-real", False),
        ((8, 0), "86", False),
        ((9, 0), "80", True),
        ((9, 0), "90a-real", True),
        ((10, 0), "90a", False),  # specific code runs nowhere else
        ((8, 6), "native", True),
        ((8, 0), "", False),
    ],
)
def test_which_gpus_a_build_is_for(capability, architectures, runs):
    assert _runs_on(capability, architectures) == runs


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is one, of the capability that it is called with."""

    def pretend(*capability):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        info = {**ops.build_info(), "cuda": True, "cuda_architectures": BUILT}
        monkeypatch.setattr(kernels, "build_info", lambda: info)

    return pretend


def test_a_gpu_that_the_kernels_do_not_run_on(gpu, monkeypatch):
    gpu(7, 5)
    with pytest.raises(DeviceError, match=r"'cuda:0' cannot be used: the GPU has compute capability 7.5, .* need 8.0"):
        choose_device("cuda:0")
    with pytest.warns(RuntimeWarning, match="a GPU is there but is not used: the GPU has compute capability 7.5"):
        assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    assert cuda_obstacle() is None


def test_a_gpu_that_the_build_left_out(gpu, monkeypatch):
    gpu(9, 0)
    assert cuda_obstacle() is None
    info = {**kernels.build_info(), "cuda_architectures": "80-real"}
    monkeypatch.setattr(kernels, "build_info", lambda: info)
    assert "reinstall with PYUNETSEP_CUDA_ARCHS=90" in cuda_obstacle()
