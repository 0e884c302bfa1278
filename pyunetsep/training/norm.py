"""Batch norm over the batches of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..unet import UNet
from ..unet_training import TogetherNorm


class GlobalBatchNorm(TogetherNorm):
    """`BatchNorm2d` whose statistics, in training, are those of the batches of all processes.

    Unlike torch's SyncBatchNorm it runs on CPUs too, and the kernels can train what has it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        y, mean, var, count = _GlobalNorm.apply(x, self.weight, self.bias, self)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return y

    def joined(self, mean: Tensor, variance: Tensor, values: int) -> tuple[Tensor, Tensor, Tensor]:
        # each process's moments, joined as Chan et al. do: no difference of large sums
        moments = torch.stack((mean, variance, torch.full_like(mean, values)))
        gathered = [torch.empty_like(moments) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, moments)
        means, variances, counts = torch.stack(gathered).unbind(1)
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(0) / total
        return mean, variance, total[0]

    def added(self, sums: Tensor) -> Tensor:
        total = sums.clone()
        dist.all_reduce(total)
        return total


class _GlobalNorm(torch.autograd.Function):
    """In plain PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: GlobalBatchNorm) -> tuple[Tensor, ...]:
        values = x.float()
        var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        mean, var, count = norm.joined(mean, var, x.numel() // x.shape[1])
        inverse = (var + norm.eps).rsqrt()
        normal = (values - mean[:, None, None]) * inverse[:, None, None]
        ctx.save_for_backward(normal, weight, inverse, count)
        ctx.dtype, ctx.norm = x.dtype, norm
        y = (normal * weight[:, None, None] + bias[:, None, None]).to(x.dtype)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, weight, inverse, count = ctx.saved_tensors
        gradient = gradients[0].float()
        # the parameters' gradients are averaged over processes later, as all others
        own = torch.stack((gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))))
        means = ctx.norm.added(own) / count
        back = gradient - means[0][:, None, None] - normal * means[1][:, None, None]
        back = back * (weight * inverse)[:, None, None]
        return back.to(ctx.dtype), own[1], own[0], None


def synchronise_norms(network: UNet) -> None:
    """Puts global batch norms in the place of the network's own, which keep their parameters and statistics."""
    for block in [*network.encoder_blocks, *network.decoder_blocks]:
        if block.norm is not None:
            block.norm.__class__ = GlobalBatchNorm
