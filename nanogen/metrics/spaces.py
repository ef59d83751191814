"""The six spaces of features in which FDr and MIND compare images.

    SPACES["dinov2_cls"].network        # "dinov2-l", a registered network
    SPACES["dinov2_cls"].constant       # 14.19

Keys, statistics and constants are those of Jiawei Yang's FD-loss, which DiffusionBench (arXiv
2606.24888) took over. The statistics are of the ImageNet train split, cropped to 256 px, in these
spaces; the file for Inception is ADM's, not the one that the FID column of the same tables uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nanogen.encoders import distance_networks
from nanogen.encoders.inception import WEIGHTS as INCEPTION
from nanogen.store import Asset

FEATURE = "pool"
"""the output of each network that is compared"""


@dataclass(frozen=True)
class Space:
    """One network's features, and what published numbers in them refer to."""

    key: str
    """in published tables and in names of metrics"""
    network: str
    weights: Asset
    features: int
    """d"""
    constant: float
    """Fréchet distance of the 50,000 ImageNet validation images to the statistics, as published:
    rounded, so that ratios of different networks are on slightly different scales
    """
    statistics: Asset
    """mean and covariance of the ImageNet train split"""


def _space(key: str, weights: Asset, features: int, constant: float, statistics: str) -> Space:
    asset = Asset(
        name=f"fdr-{key.removesuffix('_cls')}-statistics",
        what=f"reference statistics of fdr-{key} (ImageNet-256, train)",
        licence="unknown",
        hub="nanovisionx/nanogen-evals-stats",
        dataset=True,
        files=(f"{statistics}.npz",),
    )
    return Space(key, weights.name, weights, features, constant, asset)


SPACES: Mapping[str, Space] = {
    space.key: space
    for space in (
        _space("inception", INCEPTION, 2048, 1.68, "guided_diffusion_stats"),
        _space("convnext", distance_networks.CONVNEXT, 1024, 56.87, "convnext_in256_t224_stats"),
        _space(
            "dinov2_cls",
            distance_networks.DINOV2,
            1024,
            14.19,
            "vit_large_patch14_dinov2_lvd142m_in256_t256_stats",
        ),
        _space(
            "mae_cls",
            distance_networks.MAE,
            1024,
            0.04,
            "vit_large_patch16_224_mae_in256_t224_stats",
        ),
        _space(
            "siglip_cls",
            distance_networks.SIGLIP,
            1152,
            0.60,
            "vit_so400m_patch16_siglip_256_v2_webli_in256_t224_stats",
        ),
        _space(
            "clip_cls",
            distance_networks.CLIP,
            1024,
            5.60,
            "vit_large_patch14_clip_224_openai_in256_t256_stats",
        ),
    )
}
"""by key, in the order of the published tables"""
