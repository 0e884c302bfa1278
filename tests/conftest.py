import os
import random

import numpy as np
import pytest
import torch

from pyunetsep import _C, ops


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device. No GPU skips, or fails with PYUNETSEP_REQUIRE_CUDA=1."""
    if request.param == "cuda" and not (torch.cuda.is_available() and ops.build_info()["cuda"]):
        reason = "needs a GPU, a CUDA build of torch and one of pyunetsep"
        if os.environ.get("PYUNETSEP_REQUIRE_CUDA") == "1":
            pytest.fail(f"PYUNETSEP_REQUIRE_CUDA=1: {reason}")
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that the kernels know."""
    return request.param


@pytest.fixture(params=_C.simd_levels())
def level(request):
    """Each SIMD level that runs here."""
    before = _C.simd_level()
    _C.set_simd_level(request.param)
    yield request.param
    _C.set_simd_level(before)


@pytest.fixture(autouse=True)
def fixed_random_state():
    """Each test starts from the same random state and leaves none behind; nor a number of threads."""
    states = random.getstate(), np.random.get_state(), torch.get_num_threads()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_num_threads(states[2])
