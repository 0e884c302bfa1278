"""Batch norm over the batches of all processes: torch's SyncBatchNorm runs on GPUs alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..unet import UNet


class GlobalBatchNorm(nn.BatchNorm2d):
    """`BatchNorm2d` whose statistics, in training, are those of the batches of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        y, mean, var, count = _GlobalNorm.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return y


class _GlobalNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.float()
        var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        # each process's moments, joined as Chan et al. do: no difference of large sums
        moments = torch.stack((mean, var, count.expand_as(mean)))
        gathered = [torch.empty_like(moments) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, moments)
        means, variances, counts = torch.stack(gathered).unbind(1)
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        var = ((variances + (means - mean).square()) * counts).sum(0) / total
        inverse = (var + eps).rsqrt()
        normal = (values - mean[:, None, None]) * inverse[:, None, None]
        ctx.save_for_backward(normal, weight, inverse, total)
        ctx.dtype = x.dtype
        y = (normal * weight[:, None, None] + bias[:, None, None]).to(x.dtype)
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, weight, inverse, total = ctx.saved_tensors
        gradient = gradients[0].float()
        sums = torch.stack((gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))))
        own = sums.clone()  # the parameters' gradients are averaged over processes later, as all others
        dist.all_reduce(sums)
        means = sums / total
        back = gradient - means[0][:, None, None] - normal * means[1][:, None, None]
        back = back * (weight * inverse)[:, None, None]
        return back.to(ctx.dtype), own[1], own[0], None


def synchronise_norms(network: UNet) -> None:
    """Puts global batch norms in the place of the network's own, which keep their parameters and statistics."""
    for block in [*network.encoder_blocks, *network.decoder_blocks]:
        if block.norm is not None:
            block.norm.__class__ = GlobalBatchNorm
