"""Which device the networks run on, and why."""

from __future__ import annotations

import warnings

import torch

from .errors import DeviceError
from .ops import kernels

MINIMUM_CAPABILITY = (8, 0)  # asynchronous copies, and tensor cores for bfloat16


def cuda_obstacle(index: int = 0) -> str | None:
    """Why CUDA cannot be used here, on the GPU of that index, in one sentence; None where it can."""
    if torch.version.cuda is None:
        return "the installed torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if kernels.kernels_enabled() and not kernels.build_info()["cuda"]:
        return "pyunetsep was built without its CUDA kernels (no nvcc at install time); reinstall where nvcc is found"
    if kernels.kernels_enabled() and index < torch.cuda.device_count():
        capability, built_for = torch.cuda.get_device_capability(index), kernels.build_info()["cuda_architectures"]
        name = f"compute capability {capability[0]}.{capability[1]}"
        if capability < MINIMUM_CAPABILITY:
            return f"the GPU has {name}, pyunetsep's CUDA kernels need 8.0; PYUNETSEP_KERNELS=0 uses PyTorch's instead"
        if not _runs_on(capability, built_for):
            return (
                f"the GPU has {name}, pyunetsep's CUDA kernels were built for {built_for}; reinstall with "
                f"PYUNETSEP_CUDA_ARCHS={capability[0]}{capability[1]}"
            )
    return None


def _runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Whether one of CMake's architectures is machine code for the GPU's generation, or code that a driver compiles."""
    for architecture in architectures.split():
        number, _, kind = architecture.partition("-")
        if not number.rstrip("af").isdigit():  # "native", "all": its builder knew
            return True
        built = divmod(int(number.rstrip("af")), 10)
        if (kind != "virtual" and built[0] == capability[0] and built <= capability) or (
            kind != "real" and number.isdigit() and built <= capability
        ):
            return True
    return False


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Takes "auto", "cpu", "cuda" or "cuda:N"; auto is the first CUDA GPU where one can be used, else the CPU.

    Raises:
        DeviceError: the device cannot be used; the message says why. ValueError: not a device's name.
    """
    if name == "auto":
        obstacle = cuda_obstacle()
        if obstacle and torch.cuda.is_available():  # or nobody would know why the GPU stays idle
            warnings.warn(f"a GPU is there but is not used: {obstacle}", RuntimeWarning, stacklevel=3)
        return torch.device("cpu" if obstacle else "cuda:0")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {str(name)!r}")
    if device.type == "cuda":
        obstacle = cuda_obstacle(device.index or 0)
        if obstacle:
            raise DeviceError(f"device {str(name)!r} cannot be used: {obstacle}")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(f"device {str(name)!r} cannot be used: torch sees {torch.cuda.device_count()} GPU(s)")
        if device.index is None:  # as tensors name where they are
            return torch.device("cuda", torch.cuda.current_device())
    return device
