"""The one judge of what a network learns from a batch: by kernels, next to PyTorch, with float64 as the truth."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pyunetsep import unet_training
from pyunetsep.unet import UNet

SCALE = 2.0**12  # of the loss: halves hold no gradients as small as they would be


def relative(x: Tensor, true: Tensor) -> float:
    return float((x.detach() - true.detach()).norm() / true.detach().norm())


def learnt(network: UNet, magnitude: Tensor, element: torch.dtype, *, kernels: bool) -> dict[str, Tensor]:
    """The mask, the norms' statistics and the gradients, by a copy that trains in `element`."""
    copied = copy.deepcopy(network)
    with torch.autocast(magnitude.device.type, element, enabled=element not in (torch.float32, torch.float64)):
        assert unet_training.serves(copied, magnitude) == kernels
        mask = copied(magnitude)
    (SCALE * (mask.to(magnitude.dtype) * magnitude).square().mean()).backward()
    buffers = {name: buffer for name, buffer in copied.named_buffers() if buffer.is_floating_point()}
    return {"mask": mask.detach(), **buffers, **{name: p.grad for name, p in copied.named_parameters()}}


KINK = 5.0  # distance from it, about that many deviations


@torch.no_grad()
def off_the_kinks(network: UNet, magnitude: Tensor) -> UNet:
    """A copy in which each channel is on one side of its activation's kink: an element that rounding puts on the other
    side would change all gradients before it. Every fourth channel is on the lower one, where ReLU makes it 0.
    """
    network = copy.deepcopy(network)

    def sides(of: Tensor) -> Tensor:
        return torch.where(torch.arange(len(of), device=of.device) % 4 == 3, -KINK, KINK)

    def move(conv: nn.Module, _: object, output: Tensor) -> Tensor:
        moved = sides(conv.bias) * output.std()
        conv.bias += moved
        return output + moved[:, None, None]

    hooks = []
    for block in (*network.encoder_blocks, *network.decoder_blocks):
        if block.norm is not None and getattr(block, "norm_first", True):
            block.norm.bias.copy_(sides(block.norm.bias))
        elif block.norm is not None:
            hooks.append(block.conv.register_forward_hook(move))
    if hooks:
        network(magnitude)
    for hook in hooks:
        hook.remove()
    return network


def check_learning(
    network: UNet,
    magnitude: Tensor,
    element: torch.dtype,
    with_kernels: Callable[[bool], AbstractContextManager[None]],
) -> None:
    """What the kernels make of a batch is about as near to float64 as what PyTorch makes of it in the same types.

    No element lies at a kink. A single tensor may be near by luck, so what they have on average counts as well.
    `with_kernels`: whether the kernels run, in a context.
    """
    network = off_the_kinks(network, magnitude)
    with with_kernels(True):
        made = learnt(network, magnitude, element, kernels=True)
    with with_kernels(False):
        theirs = learnt(network, magnitude, element, kernels=False)
        true = learnt(copy.deepcopy(network).double(), magnitude.double(), torch.float64, kernels=False)
    usual = sorted(relative(theirs[name], x) for name, x in true.items())[len(true) // 2]
    for name, x in made.items():
        error, own_error = ((y - true[name]).norm() for y in (x, theirs[name]))
        # a bias before a norm has none but its noise, which is that of sums as large as the weight's gradient
        size = max(true[name].norm(), true[name.replace(".conv.bias", ".conv.weight")].norm() / 100)
        assert error <= 4 * own_error + 2 * usual * size, name
