"""What a backbone refuses: sizes that do not fit together, heads where there is no block, and being
told other numbers than it was wired for.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nanogen.errors import ConfigError
from nanogen.types import LatentSpec, Wiring


def check_positive(config: object, fields: tuple[str, ...]) -> None:
    """ConfigError where one of these fields of a backbone's config is below 1."""
    for name in fields:
        if getattr(config, name) < 1:
            raise ConfigError(f"backbone.{name}={getattr(config, name)}: must be at least 1")


def check_hidden(width: int, mlp_ratio: float) -> None:
    """ConfigError where a SwiGLU of this width would have no hidden unit."""
    if int((2 / 3) * width * mlp_ratio) < 1:
        raise ConfigError(f"backbone.mlp_ratio={mlp_ratio}: leaves no hidden unit; raise it")


def check_head_width(field: str, width: int, heads: int) -> None:
    """ConfigError, naming `field`, where heads of attention cannot turn by row and column."""
    if width % heads or (width // heads) % 4:
        raise ConfigError(
            f"{field}={heads}: width {width} / heads must be a multiple of 4 (2-D rotary positions)"
        )


def check_patch(latent: LatentSpec) -> None:
    """ConfigError where patches do not tile the latent grid."""
    if latent.height % latent.patch or latent.width % latent.patch:
        raise ConfigError(
            f"patch {latent.patch} does not divide the latent grid {latent.height}x{latent.width}; "
            "choose a patch or an image size that fits"
        )


def check_heads(heads: Mapping[str, int], depth: int) -> None:
    """ConfigError where a further head reads a block that is not there."""
    for name, block in heads.items():
        if not 1 <= block <= depth:
            raise ConfigError(
                f"the head {name!r}, which terms or the objective ask for, reads block {block}, "
                f"but this backbone has blocks 1 to {depth}; choose one of them there, or another "
                "backbone.depth"
            )


def check_told(
    wiring: Wiring, interval: Tensor | None, scalars: Mapping[str, Tensor] | None
) -> None:
    """TypeError where a network is told more or less than it was wired for: a defect of the
    caller.
    """
    if wiring.interval != (interval is not None):
        raise TypeError(
            "this backbone is wired for an interval; give interval=t - r"
            if wiring.interval
            else "interval is given, but this backbone was built without Wiring(interval=True)"
        )
    names = set(scalars or {})
    if names != set(wiring.scalars):
        raise TypeError(
            f"scalars {sorted(names)} are given, but this backbone was built with "
            f"Wiring(scalars={tuple(wiring.scalars)!r})"
        )
