"""Files of representation autoencoders between diffusion-bench and us."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nanogen.encoders.vision import find, parse
from nanogen.encoders.weights import read_tensors
from nanogen.errors import ConfigError
from nanogen.files import whole_file
from nanogen.tokenizers import statistics as latent_statistics
from nanogen.tokenizers.rae_files import CONFIG, About, OutputSpace, open_rae, save_rae
from nanogen.tokenizers.rae_layout import from_reference, read_reference, to_reference


@dataclass(frozen=True)
class Unsaid:
    """What a decoder.pt does not say of itself."""

    encoder: str = ""
    statistics: Path | None = None
    heads: int | None = None
    output_space: OutputSpace = "unit"


def import_decoder(source: Path, target: Path, unsaid: Unsaid) -> None:
    """A decoder.pt, or a whole checkpoint of its training, as a folder of ours."""
    if not unsaid.encoder:
        raise ConfigError(
            "a decoder.pt does not say which encoder it decodes; add --encoder, such as "
            "--encoder dinov2-vit-b (see nanogen ls encoders)"
        )
    row = find(parse(unsaid.encoder)[0])
    weights = from_reference(read_reference(_file(source)), str(source), unsaid.heads)
    config = weights.config
    if config.channels != row.width:
        raise ConfigError(
            f"{source} decodes {config.channels} channels, but {row.name} has {row.width}; name "
            "the encoder that it was trained on"
        )
    found = None
    if unsaid.statistics is not None:
        shape = (config.channels, config.grid, config.grid)
        found = latent_statistics.load(_file(unsaid.statistics), shape)
    about = About(unsaid.encoder, config.image_size, unsaid.output_space)
    save_rae(target, weights.module(), about, found)


def export_decoder(source: Path, target: Path) -> None:
    """A folder of ours as a decoder.pt that diffusion-bench loads strictly."""
    if not (source / CONFIG).is_file():
        raise ConfigError(f"{source} is no folder of ours with a {CONFIG}; give one")
    files = open_rae(str(source), field="IN")
    assert files.about is not None
    if files.about.output_space != "unit":
        raise ConfigError(
            f"the decoder in {source} gives pixels as its encoder is fed them, and those of "
            "diffusion-bench give [0, 1]: it would draw washed-out images there; it stays here"
        )
    _save(to_reference(files.weights.module()), target)


def convert_statistics(source: Path, target: Path, ours: bool) -> None:
    """A stats.pt as our safetensors, or back; both hold mean and variance, [C, h, w]."""
    tensors = read_tensors(_file(source))
    mean = tensors.get("mean")
    if mean is None or mean.ndim != 3:
        raise ConfigError(f"{source} holds no mean of [C, h, w]; give a file of latent statistics")
    channels, height, width = mean.shape
    found = latent_statistics.load(source, (channels, height, width))
    if ours:
        target.parent.mkdir(parents=True, exist_ok=True)
        latent_statistics.save(found, target)
    else:
        _save({"mean": found.mean, "var": found.variance}, target)


def _save(tensors: dict[str, torch.Tensor], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as part:
        torch.save(tensors, part)


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; give one")
    return path
