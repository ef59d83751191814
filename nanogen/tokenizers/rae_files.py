"""The files of a representation autoencoder: ours, and those of diffusion-bench.

    folder/
        decoder.safetensors       weights of the decoder
        statistics.safetensors    mean and variance of the features, where they were measured
        config.json               shape of the decoder, its encoder, image size and output space

A published decoder is one file in the layout of `rae_layout`, with a file of statistics beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from safetensors.torch import save_file

from nanogen.encoders.weights import locate_file, read_tensors
from nanogen.errors import ConfigError
from nanogen.files import whole_folder, write_text
from nanogen.tokenizers import statistics as latent_statistics
from nanogen.tokenizers.rae_decoder import DecoderConfig, RaeDecoder
from nanogen.tokenizers.rae_layout import Weights, from_reference, read_reference
from nanogen.tokenizers.statistics import Statistics

WEIGHTS, STATISTICS, CONFIG = "decoder.safetensors", "statistics.safetensors", "config.json"
REPOSITORY = "diffusion-bench/diffusion-bench"
"""of the published decoders, on the hub"""

OutputSpace: TypeAlias = Literal["unit", "encoder"]
"""what a decoder gives: pixels in [0, 1], or (the first RAE code) as its encoder is fed them"""


@dataclass(frozen=True)
class About:
    """What a decoder was trained for."""

    encoder: str
    """name, such as dinov2-vit-b"""
    image_size: int
    output_space: OutputSpace = "unit"
    encoder_fingerprint: str = ""
    """of the weights, options and image size of the encoder; empty where it is not known"""


@dataclass(frozen=True)
class Files:
    """An opened decoder."""

    weights: Weights
    about: About | None
    """None for a published file, which does not say"""
    statistics: Path | None
    """beside the decoder"""


def save_rae(
    folder: Path, decoder: RaeDecoder, about: About, statistics: Statistics | None = None
) -> Path:
    """Write a decoder as a folder, whole or not at all."""
    described = {**asdict(about), "decoder": asdict(decoder.config)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as part:
        weights = {name: w.detach().cpu().contiguous() for name, w in decoder.state_dict().items()}
        save_file(weights, part / WEIGHTS)
        if statistics is not None:
            latent_statistics.save(statistics, part / STATISTICS)
        write_text(part / CONFIG, json.dumps(described, indent=1) + "\n")
    return folder


def open_rae(path: str, published: str = "", field: str = "tokenizer.decoder") -> Files:
    """The decoder at `path`: a folder of ours or a file of diffusion-bench; where `path` is empty,
    the one published for the encoder `published`.

    `field` names what sets the path in messages. ConfigError for what cannot be read.
    """
    folder = Path(path).expanduser()
    if path and (folder / CONFIG).is_file():
        return _ours(folder)
    if path and folder.is_dir() and not (folder / "decoder.pt").is_file():
        raise ConfigError(
            f"{field}={path}: the folder holds neither {CONFIG} nor decoder.pt; give one that "
            "nanogen tokenizer train exported, or a published decoder.pt"
        )
    if not path and not published:
        raise ConfigError(
            f"{field} is not set; give a folder that nanogen tokenizer train exported, or a "
            "decoder.pt of diffusion-bench"
        )
    name = f"pretrained_models/stage1/decoders/{published}/decoder.pt"
    file = locate_file(REPOSITORY, (name, "decoder.pt"), path, field)
    beside = file.parent / "stats.pt"
    return Files(
        from_reference(read_reference(file), str(file)), None, beside if beside.is_file() else None
    )


def published_statistics(encoder: str, field: str) -> Path:
    """The file of statistics that was published for an encoder."""
    return locate_file(
        REPOSITORY, (f"pretrained_models/stage1/stats/{encoder}/stats.pt",), "", field
    )


def _ours(folder: Path) -> Files:
    try:
        text = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = DecoderConfig(**text.pop("decoder"))
        about = About(**text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"{folder / CONFIG} does not describe a decoder ({problem}); export it anew with "
            "nanogen tokenizer train"
        ) from problem
    if about.output_space not in get_args(OutputSpace):
        raise ConfigError(
            f"{folder / CONFIG} says output_space={about.output_space!r}; it must be one of "
            f"{' and '.join(get_args(OutputSpace))}"
        )
    tensors = read_tensors(folder / WEIGHTS)
    statistics = folder / STATISTICS
    return Files(
        Weights(config, tensors, str(folder / WEIGHTS)),
        about,
        statistics if statistics.is_file() else None,
    )
