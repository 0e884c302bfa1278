import os

import pytest

from tests.emulated.library import COMPILER, CSRC, Emulated, emulated_library


@pytest.fixture(scope="session")
def emulated() -> Emulated:
    """The CUDA kernels, compiled for the host."""
    if os.name == "nt" or not COMPILER[0]:
        pytest.skip("needs g++ or clang++")
    if not CSRC.is_dir():
        pytest.skip("needs the source tree")
    return Emulated(emulated_library())
