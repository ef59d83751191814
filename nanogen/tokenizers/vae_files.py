"""From the files of an autoencoder of diffusers to its network, with nothing guessed on the way.

    files = open_files(Place("stabilityai/sd-vae-ft-mse"))
    files.name, files.config, files.factor      # AutoencoderKL, what config.json says, 8
    network = files.network()                   # float32; every weight comes from the file

`config` is what stands in config.json, not `network.config`: there a field that the file lacks has
the default of its class, which for AutoencoderKLQwenImage are the statistics of another model.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanogen import hub
from nanogen.errors import ConfigError, MissingExtra

WHAT = "autoencoder that diffusers can load"
MODEL, CONFIG = "tokenizer.model", "config.json"
WITHOUT_EFFECT = {"bn.num_batches_tracked"}
"""a counter that some files leave out; nothing reads it"""


class NoClass(ConfigError):
    """config.json does not say of which class of diffusers it is."""


@dataclass(frozen=True)
class Kind:
    """How images and latents go through the networks of a class."""

    video: bool = False
    """tensors have a time axis, [B, C, 1, H, W] for images"""
    packed: bool = False
    """each 2 x 2 block of latents is folded into channels, and whitened by batch statistics"""

    @property
    def pack(self) -> int:
        return 2 if self.packed else 1


KINDS: dict[str, Kind] = {
    "AutoencoderKL": Kind(),
    "AutoencoderKLQwenImage": Kind(video=True),
    "AutoencoderKLWan": Kind(video=True),
    "AutoencoderKLFlux2": Kind(packed=True),
}
"""the classes of diffusers that can be used, in the order in which they are tried"""

UNFIT = {
    "AsymmetricAutoencoderKL": "its decoder paints into a masked image",
    "AutoencoderDC": "it has no posterior and no normalisation, and each latent spans 32 px",
    "AutoencoderKLTemporalDecoder": "its decoder makes films; use the autoencoder it was made from",
    "AutoencoderOobleck": "it is for sound",
    "AutoencoderRAE": "its encoder is a vision encoder; use tokenizer=rae",
    "AutoencoderTiny": "it only imitates the autoencoder it was distilled from; use that one",
    "ConsistencyDecoderVAE": "its decoder draws, and gives losses no gradient",
    "VQModel": "its latents are entries of a codebook",
}
"""classes of diffusers that cannot be used, and why"""


@dataclass(frozen=True)
class Place:
    """Where files are meant to be."""

    model: str
    subfolder: str = ""
    network: str = ""
    """the class that they must be of, and are where config.json names none; empty: any of KINDS"""
    gated: bool = False
    usual: bool = False
    """the subfolder is where a preset has its files, and the model may be that folder itself"""


@dataclass(frozen=True)
class Files:
    """The opened files of an autoencoder; its weights are not read yet."""

    source: hub.Source
    name: str
    """the class of diffusers"""
    config: Mapping[str, Any]
    """config.json, field by field"""

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def channels(self) -> int:
        """Channels of what is diffused: after packing."""
        field = "z_dim" if self.kind.video else "latent_channels"
        return self._whole(field) * self.kind.pack**2

    @property
    def factor(self) -> int:
        """Pixels a side of one latent: after packing."""
        if self.name == "AutoencoderKLWan" and self.config.get("scale_factor_spatial"):
            return self._whole("scale_factor_spatial")
        field = "dim_mult" if self.kind.video else "block_out_channels"
        levels = self.config.get(field)
        if not isinstance(levels, list) or not levels:
            raise ConfigError(f"config.json of {self.source.model} has no list {field!r}")
        return 2 ** (len(levels) - 1) * self.kind.pack

    def network(self) -> nn.Module:
        """The network in float32. ConfigError where a weight is missing, left over or misshapen."""
        import diffusers

        model = self.source.model
        try:
            with quiet():
                network, found = getattr(diffusers, self.name).from_pretrained(
                    model,
                    subfolder=self.source.subfolder or None,
                    local_files_only=self.source.local,
                    torch_dtype=torch.float32,
                    use_safetensors=True,
                    low_cpu_mem_usage=False,
                    output_loading_info=True,
                )
        except Exception as problem:  # a config of strangers can break a constructor in any way
            raise ConfigError(hub.advice(model, problem, MODEL, WHAT)) from problem
        for trouble in ("missing", "unexpected", "mismatched"):
            keys = sorted(map(str, set(found[f"{trouble}_keys"]) - WITHOUT_EFFECT))
            if keys:
                raise ConfigError(
                    f"weights of {model} do not fit {self.name}: {len(keys)} {trouble}, such as "
                    f"{keys[0]}; get the files anew, or check that config.json belongs to them"
                )
        return network

    def _whole(self, field: str) -> int:
        value = self.config.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(
                f"config.json of {self.source.model} says {field}={value!r}; {self.name} needs a "
                "whole number there"
            )
        return value


def open_files(place: Place) -> Files:
    """Find config.json and the class that it names, on the hub or in a folder.

    ConfigError where it cannot be had or read, or is of a class that cannot be used.
    """
    try:
        import diffusers
    except ImportError as problem:
        raise MissingExtra("diffusers", "pip install 'nanogen[latents]'") from problem
    # Who names the folder of a preset's files may mean that of the model, or the one within it.
    folder = Path(place.model).expanduser()
    bare = place.usual and folder.exists() and not (folder / place.subfolder / CONFIG).is_file()
    subfolder = "" if bare else place.subfolder
    source = hub.locate(place.model, subfolder, CONFIG, field=MODEL, what=WHAT, gated=place.gated)
    try:
        with quiet():
            config = diffusers.AutoencoderKL.load_config(
                source.model,
                subfolder=source.subfolder or None,
                local_files_only=source.local,
            )
    except (OSError, ValueError) as problem:
        raise ConfigError(
            hub.advice(source.model, problem, MODEL, WHAT, gated=place.gated)
        ) from problem
    if not isinstance(config, dict):
        raise ConfigError(
            f"{source.model} holds no {WHAT}: config.json is no list of fields; {hub.ANEW}"
        )
    name = config.get("_class_name") or place.network
    if not name:
        raise NoClass(_no_class(source.model, config))
    if name not in KINDS:
        raise ConfigError(
            f"{source.model} is of class {name}, which is not supported"
            f"{': ' if name in UNFIT else ''}{UNFIT.get(name, '')}; supported: {', '.join(KINDS)}"
        )
    if place.network and name != place.network:
        raise ConfigError(
            f"{MODEL}={place.model} is an {name}, not an {place.network}; use tokenizer=vae for it"
        )
    return Files(source, name, config)


def _no_class(model: str, config: Mapping[str, Any]) -> str:
    if "model_type" in config:
        return f"{model} holds a model of transformers, no {WHAT}; set {MODEL} to another"
    return (
        f"{model} holds no {WHAT}: its config.json names no class; add _class_name to it, one of "
        f"{', '.join(KINDS)}"
    )


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """diffusers logs what it also raises, and warns of its own calls; one message is enough."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
