"""Representation autoencoders with tiny decoders: in our folders, or as the hub holds them.

    folder = write_rae(tmp_path / "rae", "animals-vit", open_encoder("animals-vit", 64), 64)
    decoder = write_published(tmp_path, "dinov2-vit-b", encoder)    # a stand-in for the hub

Nothing is left at its initial value: a table of positions that is made anew would not be seen.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch

from nanogen.encoders.vision import VisionEncoder, open_encoder
from nanogen.tokenizers.rae_decoder import DecoderConfig, RaeDecoder
from nanogen.tokenizers.rae_files import REPOSITORY, About, save_rae
from nanogen.tokenizers.rae_layout import to_reference
from nanogen.tokenizers.statistics import Statistics

PUBLISHED_WIDTH, PUBLISHED_HEADS = 768, 12
"""of a tiny published decoder: the file says no heads, so the width must be a known one"""


def tiny_decoder(encoder: VisionEncoder, image_size: int, width: int, heads: int) -> RaeDecoder:
    """One block with random weights, for the features of an encoder."""
    shape = DecoderConfig(
        channels=encoder.width,
        grid=encoder.grid,
        patch=image_size // encoder.grid,
        width=width,
        depth=1,
        heads=heads,
        hidden=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = RaeDecoder(shape)
        for parameter in decoder.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return decoder.eval()


def made_up(channels: int, grid: int) -> Statistics:
    """Statistics [C, h, w] whose mean square is 1 at every position, as those of a norm are."""
    generator = torch.Generator().manual_seed(1)
    mean, variance = torch.rand(2, channels, grid, grid, generator=generator)
    power = (mean.square() + variance).mean(0)
    return Statistics(mean / power.sqrt(), variance / power)


def write_rae(folder: Path, name: str, encoder: VisionEncoder, image_size: int) -> Path:
    """A folder of ours."""
    decoder = tiny_decoder(encoder, image_size, width=16, heads=2)
    about = About(name, image_size, encoder_fingerprint=encoder.fingerprint)
    return save_rae(folder, decoder, about, made_up(encoder.width, encoder.grid))


def write_published(root: Path, name: str, encoder: VisionEncoder) -> RaeDecoder:
    """The files of an encoder as the repository of diffusion-bench holds them, for 256 px, in a
    folder of its name below `root`; returns the decoder.
    """
    stage1 = root / REPOSITORY / "pretrained_models" / "stage1"
    decoder = tiny_decoder(encoder, 256, PUBLISHED_WIDTH, PUBLISHED_HEADS)
    found = made_up(encoder.width, encoder.grid)
    for place, tensors in (
        (stage1 / "decoders" / name / "decoder.pt", to_reference(decoder)),
        (stage1 / "stats" / name / "stats.pt", {"mean": found.mean, "var": found.variance}),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, place)
    return decoder


@cache
def tiny_folder(image_size: int) -> Path:
    """A folder of ours for the embedded encoder; gone at exit."""
    encoder = open_encoder("animals-vit", image_size)
    return write_rae(Path(_scratch().name) / str(image_size), "animals-vit", encoder, image_size)


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-rae-")
