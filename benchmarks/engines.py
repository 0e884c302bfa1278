"""The networks on other engines, each at its best: norms folded in, its favourite layout, no copies that it can avoid.

An engine takes one network and one shape of patches, and is then called with magnitudes of that shape.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyunetsep.export import folded as folded_in_float64
from pyunetsep.unet import UNet

Engine = Callable[[Tensor], Tensor]

# What else has to be installed (`pip install '.[rivals]'`).
NEEDED = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


def missing(name: str) -> list[str]:
    """The packages that an engine lacks here."""
    return [package for package in NEEDED.get(name, ()) if importlib.util.find_spec(package) is None]


def folded(network: UNet) -> UNet:
    """A copy whose batch norms are part of the convolutions, wherever one directly follows the other."""
    return folded_in_float64(network).float()


def transposed(network: UNet) -> UNet:
    """A copy that reads and writes [..., frames, bins], as spectra lie in memory: with its filters' axes swapped."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.weight = nn.Parameter(module.weight.detach().mT.contiguous(), requires_grad=False)
    return network


def export(network: UNet, shape: tuple[int, ...], path: Path) -> Path:
    """Writes the network, for patches of this shape, as ONNX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace cannot follow, our checks of shapes, and that it will go
        torch.onnx.export(
            network, (torch.rand(shape),), path, dynamo=False, input_names=["magnitude"], output_names=["mask"]
        )
    return path


class Torch:
    """PyTorch in its eager mode."""

    def __init__(self, network: UNet, *, channels_last: bool = False) -> None:
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = folded(network).to(memory_format=self.format)  # type: ignore[call-overload]

    def prepare(self, magnitude: Tensor) -> Tensor:
        """The same magnitudes as this engine likes them; not part of its time."""
        return magnitude.contiguous(memory_format=self.format)

    @torch.inference_mode()
    def __call__(self, magnitude: Tensor) -> Tensor:
        return self.network(magnitude)


class Compiled(Torch):
    """`torch.compile`, with the weights frozen, so that it may lay them out as it likes."""

    def __init__(self, network: UNet) -> None:
        super().__init__(network, channels_last=True)
        torch._dynamo.reset()
        self.compiled = torch.compile(self.network, dynamic=False)

    @torch.no_grad()
    def __call__(self, magnitude: Tensor) -> Tensor:
        with torch._inductor.config.patch(freezing=True):  # read when it compiles: at the first call
            return self.compiled(magnitude)


class Stems(nn.Module):
    """Networks of one input as one module, so that they are compiled as one."""

    def __init__(self, networks: list[UNet]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, magnitude: Tensor) -> tuple[Tensor, ...]:
        return tuple(network(magnitude) for network in self.networks)


class TorchStems:
    """All stems' networks in PyTorch on the device where they are: eager, or with options for `torch.compile`.

    In 16 bits it takes and gives 16 bits: the conversions are not part of its time.
    """

    def __init__(
        self, networks: Mapping[str, UNet], *, dtype: torch.dtype, channels_last: bool, compiled: Any = None
    ) -> None:
        self.dtype, self.format = dtype, torch.channels_last if channels_last else torch.contiguous_format
        stems = Stems([folded(network) for network in networks.values()])
        stems = stems.to(dtype=dtype, memory_format=self.format)  # type: ignore[call-overload]
        self.run = stems if compiled is None else torch.compile(stems, dynamic=False, **compiled)

    def prepare(self, magnitude: Tensor) -> Tensor:
        """The same magnitudes as this engine likes them; not part of its time."""
        return magnitude.to(self.dtype).contiguous(memory_format=self.format)

    @torch.no_grad()
    def __call__(self, magnitude: Tensor) -> tuple[Tensor, ...]:
        return self.run(magnitude)


class OnnxRuntime:
    """ONNX Runtime's CPU provider; results are written in place."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # threads wait busily within a run, but not after it: the other stem's network has threads of its own
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.mask: Tensor | None = None

    def __call__(self, magnitude: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.empty(magnitude.shape)
        binding = self.session.io_binding()
        shape = tuple(magnitude.shape)
        binding.bind_input("magnitude", "cpu", 0, "float32", shape, magnitude.data_ptr())
        binding.bind_output("mask", "cpu", 0, "float32", shape, self.mask.data_ptr())
        self.session.run_with_iobinding(binding)
        return self.mask


class OpenVino:
    """OpenVINO's CPU plugin in float32, tuned for latency; inputs and results are shared, not copied."""

    def __init__(self, model: Path, threads: int) -> None:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        self.request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()

    def __call__(self, magnitude: Tensor) -> Tensor:
        results = self.request.infer([magnitude.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(results[0])


EXPORTED = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def exported(name: str, network: UNet, shape: tuple[int, ...], threads: int) -> Engine:
    """One of the engines that read ONNX, made ready by way of a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        return EXPORTED[name](export(folded(network), shape, Path(folder) / "unet.onnx"), threads)
