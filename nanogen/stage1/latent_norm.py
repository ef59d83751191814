"""Normalisation of latents that are still being learned: batch statistics without a gain or offset.

norm = LatentNorm(4)
norm.start(shift=0.0, scale=0.18215)      # as the tokenizer normalises so far
norm.train()(z)                           # by the statistics of this batch, over all processes
norm.eval()(z)                            # by the running ones
norm.shift, norm.deviation                # what a tokenizer is exported with
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanogen import dist


class LatentNorm(nn.Module):
    """`BatchNorm2d(channels, affine=False)`, buffers by the same names, [B, C, h, w] -> the same.

    Statistics of a batch are taken over all processes and without a gradient: in train mode the
    input must not need one (REPA-E never lets the diffusion loss into the tokenizer).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-4, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    @torch.no_grad()
    def start(self, shift: Tensor | float, scale: Tensor | float) -> None:
        """Running statistics of a tokenizer that normalises by (raw - shift) * scale; numbers, [C]
        or [C, 1, 1].
        """
        for buffer, value in ((self.running_mean, shift), (self.running_var, scale)):
            value = torch.as_tensor(value, dtype=buffer.dtype, device=buffer.device)
            buffer.copy_(value.flatten() if value.ndim else value)
        self.running_var.pow_(-2)

    @property
    def shift(self) -> Tensor:
        """[C]: the running mean."""
        return self.running_mean

    @property
    def deviation(self) -> Tensor:
        """[C]: root of the running variance, without `eps`."""
        return self.running_var.sqrt()

    def forward(self, z: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            if z.requires_grad:
                raise ValueError("batch statistics carry no gradient: detach the latents first")
            mean, variance = self._observe(z)
        scale = torch.rsqrt(variance + self.eps)
        return (z - mean[:, None, None]) * scale[:, None, None]

    @torch.no_grad()
    def _observe(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance [C] of this batch; the running ones move towards them, the
        variance towards the unbiased one.
        """
        wide = z.float()
        ours = torch.tensor(float(z[:, 0].numel()), device=z.device)
        sums = dist.sum_across({"count": ours, "total": wide.sum((0, 2, 3))})
        count, mean = sums["count"], sums["total"] / sums["count"]
        # A second pass over the values: differences of large squares would lose digits.
        squares = (wide - mean[:, None, None]).square().sum((0, 2, 3))
        variance = dist.sum_across({"squares": squares})["squares"] / count
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        self.num_batches_tracked += 1
        return mean, variance
