import os

import pytest

from tests.emulated.library import COMPILER, CSRC, Emulated, emulated_library


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips where CUDA sources cannot be compiled for the host."""
    if os.name == "nt" or not COMPILER[0]:
        pytest.skip("needs g++ or clang++")
    if not CSRC.is_dir():
        pytest.skip("needs the source tree")


@pytest.fixture(scope="session")
def emulated(compiler: None) -> Emulated:
    """The CUDA kernels, compiled for the host."""
    return Emulated(emulated_library())
