"""Frozen vision encoders: images to patch tokens. Shared by RAE, REPA, REG, perceptual losses and
feature metrics.

    encoder = open_encoder("dinov2-vit-b", image_size=256)
    features = encoder(images)          # float [B, 3, H, W] in [0, 1]
    features.patches, features.cls      # [B, N, D], [B, D]

A name is `family-architecture-size`, with options in brackets where the family has some:
`dinov2-vit-b[norm]`, `dinov3mls-vit-l16[layers=5.11.17.23]`. A family is one file in this folder: a
class registered as an encoder, with the rows that it can open.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self, cast

from torch import Tensor, nn

from nanogen import registry
from nanogen.errors import ConfigError, suggest


@dataclass(frozen=True)
class VisionFeatures:
    """What an encoder sees in a batch of images."""

    patches: Tensor
    """[B, N, D], row by row of the grid; no class or register token"""
    cls: Tensor | None = None
    """[B, D]: the class token, or what stands in for it; None where there is neither"""


class VisionEncoder(nn.Module, ABC):
    """A frozen encoder for square images of one size. It stays in eval mode, gives its parameters
    no gradient, and gives one to the images.
    """

    name: str
    width: int
    """D"""
    grid: int
    """tokens a side: N = grid * grid"""
    fingerprint: str
    """changes whenever any feature changes: weights, preprocessing, normalisation, image size"""

    @abstractmethod
    def forward(self, images: Tensor) -> VisionFeatures:
        """float [B, 3, H, W] in [0, 1] to features; resizing and normalising happen inside."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


@dataclass(frozen=True)
class EncoderRow:
    """One encoder that can be named, as `nanogen ls encoders` prints it."""

    name: str
    hub: str
    """name on the Hugging Face hub; empty for an encoder that comes with the package"""
    licence: str
    width: int
    patch: int
    side: int
    """pixels a side that the network is fed for an image of 256 px; 0 where it takes none of these
    """
    parameters: int
    """approximate where the family cannot be built on the meta device"""
    gated: bool = False
    unavailable: str = ""
    """why it cannot be opened; empty where it can"""


Options = Mapping[str, str]
"""what stands in the brackets: `{"norm": ""}` or `{"layers": "5.11.17.23"}`"""


class Family(Protocol):
    """What is registered as an encoder: a class with its rows and a way to open one."""

    rows: tuple[EncoderRow, ...]
    options: tuple[str, ...]
    """the options that its names may carry"""

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> VisionEncoder:
        """The encoder of a row; `path` is a folder or file in place of the hub, where not empty."""
        ...


def families() -> dict[str, Family]:
    """All families, by registered name."""
    return {entry.name: cast(Family, entry.target) for entry in registry.entries("encoder")}


def rows() -> list[EncoderRow]:
    """Every encoder that can be named."""
    return [row for family in families().values() for row in family.rows]


def open_encoder(name: str, image_size: int, path: str = "") -> VisionEncoder:
    """The encoder `name` for square images of `image_size` px, from the hub or from `path`.

    ConfigError where the name, an option or the size does not fit, or the weights cannot be had.
    """
    plain, options = parse(name)
    row = find(plain)
    family = next(one for one in families().values() if row in one.rows)
    for option in options:
        if option not in family.options:
            raise ConfigError(
                f"encoder {name!r}: {plain} has no option {option!r}; "
                f"{suggest(option, family.options)}"
            )
    if row.unavailable:
        raise ConfigError(f"encoder {plain!r} cannot be opened: {row.unavailable}")
    return family.open(row, options, image_size, path)


def find(plain: str) -> EncoderRow:
    """The row of a name without options; an unknown one is a ConfigError with the nearest ones."""
    for row in rows():
        if row.name == plain:
            return row
    raise ConfigError(f"unknown encoder {plain!r}; {suggest(plain, [row.name for row in rows()])}")


def parse(name: str) -> tuple[str, dict[str, str]]:
    """`"a-b-c[x,y=1.2]"` -> `("a-b-c", {"x": "", "y": "1.2"})`; ConfigError for no name."""
    match = re.fullmatch(r"([\w.-]+?)(?:\[([\w.,=]*)\])?", name)
    if not match:
        raise ConfigError(
            f"encoder {name!r} is not a name; write one such as dinov2-vit-b or dinov2-vit-b[norm]"
        )
    options = {}
    for part in filter(None, (match[2] or "").split(",")):
        key, _, value = part.partition("=")
        if key in options:
            raise ConfigError(f"encoder {name!r} has the option {key!r} twice; write it once")
        options[key] = value
    return match[1], options
