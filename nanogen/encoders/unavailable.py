"""Encoders of the papers that no maintained library loads: listed, with the reason, not opened."""

from __future__ import annotations

from nanogen.encoders.vision import EncoderRow, Options, VisionEncoder
from nanogen.errors import ConfigError
from nanogen.registry import register

CODE = (
    "its files load only with the code of their own repository or with timm, which needs "
    "torchvision; {} is the nearest that loads"
)


class _Unavailable:
    options: tuple[str, ...] = ()

    @staticmethod
    def open(row: EncoderRow, options: Options, image_size: int, path: str) -> VisionEncoder:
        """Always a ConfigError."""
        raise ConfigError(f"encoder {row.name!r} cannot be opened: {row.unavailable}")


def _eupe(name: str, model: str, width: int, parameters: int) -> EncoderRow:
    return EncoderRow(
        name=name,
        hub=f"facebook/{model}",
        licence="FAIR research",
        width=width,
        patch=16,
        side=256,
        parameters=parameters,
        unavailable=CODE.format("dinov3-vit-b16"),
    )


def _eupe_rows(family: str) -> tuple[EncoderRow, ...]:
    return (
        _eupe(f"{family}-vit-t16", "EUPE-ViT-T", 192, 5_500_000),
        _eupe(f"{family}-vit-s16", "EUPE-ViT-S", 384, 21_600_000),
        _eupe(f"{family}-vit-b16", "EUPE-ViT-B", 768, 85_700_000),
    )


@register("encoder", "eupe", summary="EUPE: distilled from several encoders", needs="its own code")
class Eupe(_Unavailable):
    rows = _eupe_rows("eupe")


@register("encoder", "eupemls", summary="EUPE: sum over several blocks", needs="its own code")
class EupeLayers(_Unavailable):
    rows = _eupe_rows("eupemls")


def _moco(size: str, width: int, parameters: int) -> EncoderRow:
    return EncoderRow(
        name=f"mocov3-vit-{size}",
        hub="",
        licence="CC-BY-NC-4.0",
        width=width,
        patch=16,
        side=256,
        parameters=parameters,
        unavailable=CODE.format("dinov2-vit-b"),
    )


@register("encoder", "mocov3", summary="MoCo v3: contrastive among images", needs="its own code")
class MocoV3(_Unavailable):
    rows = (
        _moco("s", 384, 21_700_000),
        _moco("b", 768, 85_700_000),
        _moco("l", 1024, 303_200_000),
    )
