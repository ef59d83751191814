"""Losses of a game between a decoder and a discriminator, `[B]` each, from logits `[B, M]`.

    loss = DISCRIMINATOR_LOSSES["hinge"](discriminator(real), discriminator(fake.detach()))
    loss = generator_loss(discriminator(fake)) * adaptive_weight(gradient_of_rest, gradient_of_this)

Real and fake logits belong to the same samples, so a batch may be cut into pieces at will.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-6
"""added to the norm that `adaptive_weight` divides by"""


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """[B]: 1/2 (relu(1 - D(real)) + relu(1 + D(fake))), logits [B, M] (arXiv 1705.02894)."""
    return (F.relu(1 - real).mean(1) + F.relu(1 + fake).mean(1)) / 2


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    """[B]: 1/2 (-ln sigmoid(D(real)) - ln sigmoid(-D(fake))), logits [B, M] (arXiv 1406.2661)."""
    return (F.softplus(-real).mean(1) + F.softplus(fake).mean(1)) / 2


DISCRIMINATOR_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": hinge_loss,
    "vanilla": vanilla_loss,
}


def generator_loss(fake: Tensor) -> Tensor:
    """[B]: -D(fake), logits [B, M]; the decoder's side of either game."""
    return -fake.mean(1)


def adaptive_weight(
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, most: float = 1e4
) -> Tensor:
    """The weight at which both losses pull equally hard on one layer (arXiv 2012.09841, eq. 7).

    `clamp(|R| / (|G| + 1e-6), 0, most)` in float32, without gradient, from the gradients R and G
    of the losses with respect to the weight of that layer, the last of the decoder.
    """
    reconstruction = reconstruction_gradient.detach().float().norm()
    adversarial = adversarial_gradient.detach().float().norm()
    return torch.clamp(reconstruction / (adversarial + SMALLEST), 0, most)
