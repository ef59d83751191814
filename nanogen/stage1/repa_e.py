"""REPA-E: a VAE and a diffusion transformer trained together (Leng et al. 2025, arXiv 2504.10483).

    images --VAE--> z --batch norm--> diffusion transformer --block 8--> projector ~ DINOv2

One step updates, in this order,

    1. the VAE, by reconstruction and by the alignment of the transformer's features, whose gradient
       passes through the transformer and through the batch norm's running statistics,
    2. the discriminator,
    3. the transformer with its projector, by the diffusion loss and the alignment, on detached z
       and with batch statistics, which move the running ones.

The diffusion loss never reaches the VAE: it would flatten the latents until they are easy to
predict. Here the transformer is the project's own (conditions in context) in place of SiT.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.objectives import path
from nanogen.stage1.adversarial import DISCRIMINATOR_LOSSES, generator_loss
from nanogen.stage1.augment import Augmentation, diff_augment
from nanogen.stage1.distances import Distance
from nanogen.stage1.latent_norm import LatentNorm
from nanogen.stage1.tuned_vae import TunedVae
from nanogen.types import Condition, Losses

NO_AUGMENTATION = Augmentation(probability=0.0)


@dataclass(frozen=True)
class Rules:
    """Weights of the losses, and how they are computed. Defaults are the published ones."""

    perceptual: float = 1.0
    kl: float = 1e-6
    adversarial: float = 0.1
    alignment_vae: float = 1.5
    """of the alignment in the update of the VAE"""
    alignment_diffusion: float = 0.5
    """of the alignment in the update of the transformer"""
    discriminator_loss: str = "hinge"
    augmentation: Augmentation = NO_AUGMENTATION
    """of what the discriminator sees"""
    doubled_range: bool = False
    """scale images to [-1, 1] once too often for the perceptual loss, as the authors' code does"""
    bfloat16: bool = False
    """autocast VAE and transformer; losses, their networks and the norm stay in float32"""


class AlignedDiffusion(nn.Module):
    """The batch norm of latents, the diffusion transformer, and the projector: what is updated
    together, and averaged together with the norm's statistics.
    """

    def __init__(
        self, norm: LatentNorm, backbone: nn.Module, projector: nn.Module, block: int
    ) -> None:
        """`block`: the encoder block whose features are aligned, counted from 1."""
        super().__init__()
        self.norm, self.backbone, self.projector = norm, backbone, projector
        self.feature = f"block{block}"

    def projected(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """[B, C, h, w] -> features at the projector's end [B, N, D]; blocks after it do not run."""
        features = self.backbone.features(  # ty: ignore[not-callable]
            {"image": noisy}, t, condition, (self.feature,)
        )
        return self.projector(features[self.feature])

    def forward(self, noisy: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Predicted velocity [B, C, h, w], and the same features as `projected`."""
        prediction = self.backbone({"image": noisy}, t, condition, want=(self.feature,))
        return prediction.state["image"], self.projector(prediction.features[self.feature])

    def averaged(self) -> dict[str, Tensor]:
        """What an average follows: weights, and the running statistics of the norm."""
        state = self.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


@dataclass(frozen=True)
class Subject:
    """One batch on its way through the three updates."""

    images: Tensor
    """float [B, 3, H, W] in [-1, 1]"""
    keys: Tensor
    """int64 [B]; all randomness of a sample follows from it"""
    target: Tensor
    """[B, N, D]: patch tokens of the frozen encoder"""
    condition: Condition
    dropped: Condition
    """after condition dropout"""


@dataclass(frozen=True)
class Drawn:
    """What the first update leaves to the others."""

    raw: Tensor
    """[B, C, h, w]: the drawn latents, detached"""
    reconstruction: Tensor
    """[B, 3, H, W], detached"""


@dataclass(frozen=True)
class RepaE:
    """The networks, and the losses of each update of a step."""

    vae: TunedVae
    diffusion: AlignedDiffusion
    discriminator: nn.Module | None
    distance: Distance | None
    """the perceptual loss, of images in [0, 1]"""
    rules: Rules
    seed: int

    def vae_losses(self, subject: Subject) -> tuple[Losses, Drawn]:
        """Update 1. Neither transformer nor discriminator receives a gradient; the norm uses its
        running statistics, and no condition is dropped.
        """
        with self._autocast(subject.images):
            mean, log_variance = self.vae.moments(subject.images)
        mean, log_variance = mean.float(), log_variance.float()
        noise = rng.normal(self.seed, "posterior", subject.keys, tuple(mean.shape[1:]))
        raw = mean + (log_variance / 2).exp() * noise
        with self._autocast(raw):
            reconstruction = self.vae.reconstruct(raw).float()
        parts = {
            "l1": (reconstruction - subject.images).abs().flatten(1).mean(1),
            "kl": (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2,
        }
        weights = {"l1": 1.0, "kl": self.rules.kl}
        if self.distance is not None:
            parts["perceptual"] = self._perceptual(subject.images, reconstruction)
            weights["perceptual"] = self.rules.perceptual
        if self.discriminator is not None:
            with held(self.discriminator):
                logits = self.discriminator(self._augmented(reconstruction, subject, "judged"))
            parts["adversarial"] = generator_loss(logits)
            weights["adversarial"] = self.rules.adversarial
        with held(self.diffusion), evaluated(self.diffusion):
            noisy, t, _ = self._noisy(raw, subject.keys)
            with self._autocast(raw):
                projected = self.diffusion.projected(noisy, t, subject.condition)
        parts["alignment"] = misalignment(projected, subject.target)
        weights["alignment"] = self.rules.alignment_vae
        return Losses(parts, weights), Drawn(raw.detach(), reconstruction.detach())

    def discriminator_losses(self, subject: Subject, drawn: Drawn) -> Losses:
        """Update 2, on the reconstructions of update 1."""
        assert self.discriminator is not None
        real = self.discriminator(self._augmented(subject.images, subject, "real"))
        fake = self.discriminator(self._augmented(drawn.reconstruction, subject, "fake"))
        loss = DISCRIMINATOR_LOSSES[self.rules.discriminator_loss](real, fake)
        return Losses({"discriminator": loss}, {"discriminator": 1.0})

    def diffusion_losses(self, subject: Subject, drawn: Drawn) -> Losses:
        """Update 3, on the latents, times and noise of update 1."""
        noisy, t, velocity = self._noisy(drawn.raw, subject.keys)
        with self._autocast(noisy):
            predicted, projected = self.diffusion(noisy, t, subject.dropped)
        parts = {
            "flow": (predicted.float() - velocity).square().flatten(1).mean(1),
            "alignment_diffusion": misalignment(projected, subject.target),
        }
        weights = {"flow": 1.0, "alignment_diffusion": self.rules.alignment_diffusion}
        return Losses(parts, weights)

    def _noisy(self, raw: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t of the normalised latents, t [B] uniform in (0, 1), and the velocity of the path: the
        same draws whenever the keys are.
        """
        clean = self.diffusion.norm(raw)
        t = rng.uniform(self.seed, "time", keys, 1)[:, 0]
        noise = rng.normal(self.seed, "noise/image", keys, tuple(clean.shape[1:]))
        return path.mix(clean, noise, t), t, path.velocity(clean, noise)

    def _perceptual(self, images: Tensor, others: Tensor) -> Tensor:
        assert self.distance is not None
        if not self.rules.doubled_range:
            images, others = (images + 1) / 2, (others + 1) / 2
        # Otherwise what lies in [-1, 1] already is taken for [0, 1]: the network sees [-3, 1].
        return self.distance(images, others).float()

    def _augmented(self, images: Tensor, subject: Subject, purpose: str) -> Tensor:
        augmentation = self.rules.augmentation
        return diff_augment(images, self.seed, f"augment/{purpose}", subject.keys, augmentation)

    def _autocast(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, torch.bfloat16, enabled=self.rules.bfloat16)


def misalignment(projected: Tensor, target: Tensor) -> Tensor:
    """[B]: minus the mean cosine similarity of tokens; both [B, N, D] (arXiv 2410.06940, eq. 8)."""
    if projected.shape != target.shape:
        raise ConfigError(
            f"features {list(projected.shape[1:])} cannot be aligned with those of the encoder, "
            f"{list(target.shape[1:])} (tokens, width); choose an encoder or a backbone.patch with "
            "as many tokens"
        )
    return -F.cosine_similarity(projected.float(), target.float(), dim=-1).mean(1)


@contextmanager
def held(module: nn.Module) -> Generator[None, None, None]:
    """What is computed within gives the module's parameters no gradient, but passes one on."""
    own = [p for p in module.parameters() if p.requires_grad]
    for p in own:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in own:
            p.requires_grad_(True)


@contextmanager
def evaluated(module: nn.Module) -> Generator[None, None, None]:
    """Eval mode within; afterwards each submodule is in its own mode again."""
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes.items():
            inner.training = mode
