"""Whole U-Nets on the emulated CUDA kernels."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pyunetsep import UNet
from pyunetsep.ops import kernels
from pyunetsep.unet_plan import described
from tests.emulated.library import Emulated

ELEMENTS = [torch.float16, torch.bfloat16, torch.float32]


class EmulatedPlan:
    """What `pyunetsep.cuda_plan.CudaPlan` is, with the kernels on the host: the same packing, layout and launches."""

    device, dtype, largest_magnitude = torch.device("cpu"), torch.float32, None

    def __init__(
        self,
        emulated: Emulated,
        networks: Mapping[str, UNet],
        precision: torch.dtype = torch.float16,
        *,
        multiprocessors: int = 132,
        orders: Iterable[tuple[int, int]] = ((0, 0),),
    ) -> None:
        self.emulated, self.precision, self.stems = emulated, precision, tuple(networks)
        self.multiprocessors, self.orders = multiprocessors, list(orders)
        config = next(iter(networks.values())).config
        descriptions = [described(network) for network in networks.values()]
        layers = list(zip(*map(_layers, descriptions), strict=True))  # [layer][network]
        depth = len(config.channels)
        by_input = [config.upsampling == "transposed" and depth <= i < 2 * depth for i in range(len(layers))]
        parameters = [x for layer, flag in zip(layers, by_input, strict=True) for x in _parameters(layer, flag)]
        self.parameters = torch.cat([x.double().flatten() for x in parameters])
        self.sizes = torch.tensor([_size(layer[0], flag) for layer, flag in zip(layers, by_input, strict=True)])
        self.has_scale = torch.tensor([int(_affine(layer[0]) is not None) for layer in layers])
        self.slopes = torch.tensor([layer[0].slope for layer in layers], dtype=torch.float64)
        self.numbers = (
            ELEMENTS.index(precision),
            len(networks),
            depth,
            int(config.head == "dilated"),
            int(config.alignment == "tensorflow"),
            int(config.upsampling == "nearest"),
            int(config.skips == "raw"),
        )

    def estimate(
        self, magnitude: Tensor, stems: Sequence[str] | None = None, *, masked: bool = False, out: Tensor | None = None
    ) -> Tensor:
        names = self.stems if stems is None else tuple(stems)
        planes = magnitude.mT.contiguous()
        batch, _, rows, columns = planes.shape
        first = self.stems.index(names[0])
        inputs = [self.parameters, self.sizes, self.has_scale, self.slopes, planes]
        outputs = [((len(names), *planes.shape), torch.float32)]
        numbers = (first, len(names), batch, rows, columns, int(masked), self.multiprocessors)
        (result,) = self.emulated.run("unet", inputs, outputs, *self.numbers, *numbers, orders=self.orders)
        return result.mT if out is None else out.copy_(result.mT)


def _layers(description: kernels.UNetDescription) -> list[kernels.Block]:
    head = [] if description.head is None else [description.head]
    return [*description.encoder, *description.decoder, *head]


def _affine(block: kernels.Block) -> tuple[Tensor, Tensor] | None:
    return block.before or block.after


def _parameters(blocks: Sequence[kernels.Block], by_input: bool) -> list[Tensor]:
    """Weight, bias and perhaps scale and shift of one layer, each of all networks."""
    weights = [block.weight.transpose(0, 1) if by_input else block.weight for block in blocks]
    affines = [affine for block in blocks if (affine := _affine(block)) is not None]
    return [torch.stack(x) for x in (weights, [block.bias for block in blocks], *map(list, zip(*affines, strict=True)))]


def _size(block: kernels.Block, by_input: bool) -> list[int]:
    """Channels in and out."""
    out, into = block.weight.shape[:2]
    return [out, into] if by_input else [into, out]
