"""The networks of FDr and MIND besides Inception: what they are, and what images they are fed.

    network = DinoV2Large()                    # its weights must be in the store
    network(images)["pool"]                    # uint8 [B, 3, H, W] -> float32 [B, 1024]

Published Fréchet distances and their reference statistics hold for exactly these checkpoints of
timm, these sides and these features (Jiawei Yang's FD-loss; DiffusionBench, arXiv 2606.24888). Two
of them may surprise: CLIP runs with GELU, as timm has it, although OpenAI trained it with
QuickGELU; and SigLIP 2, trained at 256 px, is fed 224.

On CUDA the blocks of the transformers run in bfloat16, as in the published evaluation; on a CPU all
is float32. The fingerprint says which it was.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from nanogen.encoders import timm_convnext, timm_vit
from nanogen.encoders.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Colour,
    Preprocess,
)
from nanogen.encoders.timm_convnext import TimmConvNext
from nanogen.encoders.timm_vit import TimmViT
from nanogen.encoders.weights import fill, read_tensors
from nanogen.fingerprint import DIGITS
from nanogen.registry import register
from nanogen.store import Asset, find

Body = TimmViT | TimmConvNext

AT_ONCE = 64
"""images that go through a network at once: bounds the memory"""


class DistanceNetwork(nn.Module):
    """A published network with its preprocessing, frozen; subclass with what it is.

    ConfigError, when it is made, where its weights are not in the store or are of another model.
    """

    weights: ClassVar[Asset]
    shape: ClassVar[timm_vit.Shape | timm_convnext.Shape]
    side: ClassVar[int]
    """pixels that images are resized to, in both directions; no crop"""
    mean: ClassVar[Colour]
    std: ClassVar[Colour]
    unused: ClassVar[tuple[str, ...]] = ()
    """beginnings of the names of tensors that no feature needs"""
    bf16: ClassVar[bool] = True
    """whether published evaluations run the blocks in bfloat16"""
    classes: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        prepared = find(self.weights)
        self.source = f"{self.weights.name}/{prepared.sha256[:DIGITS]}"
        # Without memory of its own: what is drawn would only be overwritten.
        with torch.device("meta"):
            self.body = self._body()
        fill(self.body, read_tensors(prepared.path), self.unused, where=str(prepared.path))
        self.preprocess = Preprocess(
            self.side, self.mean, self.std, "bicubic", antialias=True, resize_first=True
        )
        self.requires_grad_(False)
        self.train(False)

    def _body(self) -> Body:
        if isinstance(self.shape, timm_convnext.Shape):
            return TimmConvNext(self.shape)
        return TimmViT(self.shape)

    @property
    def fingerprint(self) -> str:
        """The file of weights, what images are fed, and the arithmetic."""
        arithmetic = "bf16" if self._halved else "fp32"
        return f"{self.source}/{self.preprocess.fingerprint}/{arithmetic}"

    @property
    def _halved(self) -> bool:
        # No choice of the user: rounding adds to a distance unless both sides have it, and the
        # published side was measured on CUDA so.
        return self.bf16 and next(self.body.parameters()).device.type == "cuda"

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] of any size -> "pool" float32 [B, D].

        TypeError for other types: a float in [0, 1] would be taken for black.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"{self.weights.name} takes uint8 images, not {images.dtype}")
        return {"pool": torch.cat([self._features(part) for part in images.split(AT_ONCE)])}

    def _features(self, images: Tensor) -> Tensor:
        fed = self.preprocess(images.float() / 255)
        # Whoever calls may have autocast on: only what was published in half is computed so. The
        # ten bits of mantissa that cuDNN keeps by default would show in a distance.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            with torch.autocast(fed.device.type, torch.bfloat16, enabled=self._halved):
                found = self.body(fed)
            with torch.autocast(fed.device.type, torch.bfloat16, enabled=False):
                return self.body.pooled(found.float())


def _asset(name: str, model: str, what: str, licence: str, size: str) -> Asset:
    return Asset(
        name=name,
        what=f"{what}, for FDr and MIND",
        licence=licence,
        hub=f"timm/{model}",
        files=("model.safetensors",),
        size=size,
    )


CONVNEXT = _asset(
    "convnextv2-b",
    "convnextv2_base.fcmae_ft_in22k_in1k",
    "ConvNeXt V2-B on ImageNet",
    "CC-BY-NC-4.0",
    "355 MB",
)
DINOV2 = _asset(
    "dinov2-l", "vit_large_patch14_dinov2.lvd142m", "DINOv2 ViT-L/14", "Apache-2.0", "1.2 GB"
)
MAE = _asset("mae-l", "vit_large_patch16_224.mae", "MAE ViT-L/16", "CC-BY-NC-4.0", "1.2 GB")
SIGLIP = _asset(
    "siglip2-so400m",
    "vit_so400m_patch16_siglip_256.v2_webli",
    "SigLIP 2 So400m/16",
    "Apache-2.0",
    "1.7 GB",
)
CLIP = _asset(
    "clip-l", "vit_large_patch14_clip_224.openai", "OpenAI CLIP ViT-L/14", "Apache-2.0", "1.2 GB"
)


@register(
    "network",
    "convnextv2-b",
    summary="ConvNeXt V2-B, mean over places before the last norm, 88M parameters",
    licence=CONVNEXT.licence,
    needs="nanogen prepare convnextv2-b",
)
class ConvNextV2Base(DistanceNetwork):
    """1024 features of 224 px: before the norm that its classifier has, unlike timm's own pool."""

    weights = CONVNEXT
    shape = timm_convnext.Shape(widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3))
    side = 224
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    unused = ("head.",)
    bf16 = False


@register(
    "network",
    "dinov2-l",
    summary="DINOv2 ViT-L/14, class token at 256 px, 304M parameters",
    licence=DINOV2.licence,
    needs="nanogen prepare dinov2-l",
)
class DinoV2Large(DistanceNetwork):
    """1024 features of 256 px: 19 x 19 patches of 14, the last ones filled up with zeros."""

    weights = DINOV2
    shape = timm_vit.Shape(
        width=1024, depth=24, heads=16, hidden=4096, patch=14, grid=37, layer_scale=True
    )
    side = 256
    mean, std = IMAGENET_MEAN, IMAGENET_STD


@register(
    "network",
    "mae-l",
    summary="MAE ViT-L/16, class token, 303M parameters",
    licence=MAE.licence,
    needs="nanogen prepare mae-l",
)
class MaeLarge(DistanceNetwork):
    """1024 features of 224 px."""

    weights = MAE
    shape = timm_vit.Shape(width=1024, depth=24, heads=16, hidden=4096, patch=16, grid=14)
    side = 224
    mean, std = IMAGENET_MEAN, IMAGENET_STD


@register(
    "network",
    "siglip2-so400m",
    summary="SigLIP 2 So400m/16, attention pool at 224 px, 428M parameters",
    licence=SIGLIP.licence,
    needs="nanogen prepare siglip2-so400m",
)
class SigLip2So400m(DistanceNetwork):
    """1152 features of 224 px, with the positions of 256 px resampled; the pool is in float32."""

    weights = SIGLIP
    shape = timm_vit.Shape(
        width=1152,
        depth=27,
        heads=16,
        hidden=4304,
        patch=16,
        grid=16,
        class_token=False,
        activation="tanh",
    )
    side = 224
    mean, std = HALF, HALF


@register(
    "network",
    "clip-l",
    summary="OpenAI CLIP ViT-L/14 with GELU, class token before the projection at 256 px, 303M",
    licence=CLIP.licence,
    needs="nanogen prepare clip-l",
)
class ClipLarge(DistanceNetwork):
    """1024 features of 256 px: 19 x 19 patches of 14, the last ones filled up with zeros."""

    weights = CLIP
    shape = timm_vit.Shape(
        width=1024,
        depth=24,
        heads=16,
        hidden=4096,
        patch=14,
        grid=16,
        norm_first=True,
        epsilon=1e-5,
    )
    side = 256
    mean, std = CLIP_MEAN, CLIP_STD
    unused = ("head.",)
