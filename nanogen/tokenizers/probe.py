"""What an unknown autoencoder is, whether it can be used, and the config line that uses it.

    found = probe("some/folder", embedded_images(8, 256))
    found.line                           # tokenizer=vae tokenizer.model=some/folder
    found.warnings                       # what is wrong with its normalisation, if anything

Nothing is taken on trust: the network is loaded, images go through it, and the mean and deviation
of every latent channel are measured.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nanogen import hub, registry
from nanogen.data.captions import TAGS
from nanogen.data.folder import IMAGES
from nanogen.data.scenes import Scenes, ScenesSource
from nanogen.data.transforms import centre_crop, decode
from nanogen.errors import ConfigError, DataError
from nanogen.tokenizers.vae import TOKEN, Vae, VaeFields
from nanogen.tokenizers.vae_files import KINDS, Files, NoClass, Place, open_files
from nanogen.tokenizers.vae_statistics import Given, Known, Statistic, Statistics, statistics
from nanogen.types import LatentSpec, to_float

BATCH = 4
"""images that go through the network at once"""
MEAN, BETWEEN, WITHIN = 0.5, 1.0, (0.5, 2.0)
"""what raises no warning: the mean of all normalised latents, the deviation between the means of
channels, and the deviation within them. The noise of a diffusion model has 0, 0 and 1; the scalars
in use (SD-VAE: 0.2, 0.6 and 0.8) are near enough.
"""


@dataclass(frozen=True)
class Moments:
    """Of latents, over images and places."""

    mean: Tensor
    """float64 [C]"""
    std: Tensor
    """float64 [C]"""

    @classmethod
    def of(cls, latents: Tensor) -> Moments:
        """Of latents [B, C, h, w]."""
        values = latents.double()
        return cls(values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0))

    @property
    def overall(self) -> float:
        """Mean of all values."""
        return self.mean.mean().item()

    @property
    def between(self) -> float:
        """Deviation of the means of channels."""
        return self.mean.std(correction=0).item()

    @property
    def within(self) -> float:
        """Deviation from the mean of the own channel."""
        return self.std.square().mean().sqrt().item()


@dataclass(frozen=True)
class Probe:
    """What was found."""

    files: Files
    size: int
    """pixels a side of the images"""
    images: int
    statistics: Statistics | None
    """how it is normalised; None where its files do not say"""
    raw: Moments
    latents: Moments | None
    psnr: float
    """dB, of decoded images against their originals, the mean over images"""
    line: str
    """the overrides of a run that use it"""
    warnings: tuple[str, ...]


def probe(model: str, images: Tensor, subfolder: str = "") -> Probe:
    """Measure the autoencoder in a folder or on the hub, on float images [B, 3, H, H] in [0, 1].

    ConfigError, in one line, where there is none, where it is broken, or cannot be used.
    """
    model, subfolder = _named(model, subfolder)
    place, files, network = _open(model, subfolder)
    size = images.shape[-1]
    if size < files.factor or size % files.factor:
        raise ConfigError(
            f"images of {size} px do not fit {model}: their side must be a multiple of "
            f"{files.factor} px; choose one with --size"
        )
    preset = _preset(model, place)
    known = preset.known if preset else Known()
    chosen, warnings = None, []
    if not files.config.get("_class_name"):
        warnings.append(
            f"config.json names no class, but the weights are those of an {files.name}; add "
            f'"_class_name": "{files.name}" to it'
        )
    try:
        chosen = statistics(files, network, known, Given())
    except ConfigError as problem:
        warnings.append(str(problem))
    side = size // files.factor
    spec = LatentSpec(files.channels, side, side, max(1, TOKEN // files.factor))
    none = Statistics(Statistic(0.0, "nothing"), Statistic(1.0, "nothing"))
    vae = Vae(network, files.kind, spec, "mode", chosen or none)
    try:
        raw, latents, psnr = _measure(vae, images)
    except RuntimeError as problem:
        raise ConfigError(
            f"{model} loads, but no image goes through it: {hub.reason(problem)}; {hub.ANEW}"
        ) from problem
    if not raw.isfinite().all():
        raise ConfigError(f"latents of {model} are not finite: its weights are broken; {hub.ANEW}")
    judged = Moments.of(latents) if chosen else None
    warnings += _judged(judged) if judged else []
    line = _line(place, preset, None if chosen else Moments.of(raw))
    return Probe(
        files, size, len(images), chosen, Moments.of(raw), judged, psnr, line, tuple(warnings)
    )


def embedded_images(count: int, size: int) -> Tensor:
    """float [count, 3, size, size] in [0, 1]: scenes that come with the package."""
    scenes = Scenes()
    # The data set itself stops at 64 px; enlarged silhouettes are good enough to measure on.
    source = ScenesSource(size, tuple(float(getattr(scenes, tag)) for tag in TAGS))
    return to_float(torch.stack([source.read("train", 0, draw).image for draw in range(count)]))


def folder_images(folder: Path, count: int, size: int) -> Tensor:
    """float [<= count, 3, size, size] in [0, 1]: the first images of a folder, cut to squares.

    DataError where there is no such folder, it has none, or one cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: there is no such folder; give one that exists")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES)
    if not files:
        raise DataError(f"no images in {folder} (looked for {' '.join(IMAGES)}); give another")
    try:
        crops = [centre_crop(decode(f.read_bytes(), str(f)), size) for f in files[:count]]
    except OSError as problem:
        raise DataError(f"cannot read {problem.filename}: {problem.strerror}") from problem
    return to_float(torch.stack(crops))


def _named(model: str, subfolder: str) -> tuple[str, str]:
    """The files that a registered name stands for; a folder or a name on the hub as it is."""
    if not model:
        raise ConfigError("no model is named; give a folder, or a name on the hub")
    target = {entry.name: entry.target for entry in registry.entries("tokenizer")}.get(model)
    if target is None or Path(model).exists():
        return model, subfolder
    if not issubclass(target, VaeFields) or not target.facts.hub:
        raise ConfigError(
            f"{model!r} is a tokenizer of ours that stands for no files on the hub; give a folder, "
            "or a name on the hub"
        )
    return target.facts.hub, subfolder or target().subfolder


def _open(model: str, subfolder: str) -> tuple[Place, Files, nn.Module]:
    """The files and their network.

    Without a subfolder that of a pipeline is looked into too. Where config.json names no class, the
    classes are tried in turn: weights that are missing or left over tell which is wrong.
    """
    place = Place(model, subfolder)
    try:
        files = open_files(place)
        return place, files, files.network()
    except NoClass as problem:
        for name in KINDS:
            try:
                files = open_files(Place(model, subfolder, name))
                return place, files, files.network()
            except ConfigError:
                continue
        raise problem
    except ConfigError as problem:
        if subfolder:
            raise
        place = Place(model, "vae")
        try:
            files = open_files(place)
        except ConfigError:
            raise problem from None
        return place, files, files.network()


@torch.no_grad()
def _measure(vae: Vae, images: Tensor) -> tuple[Tensor, Tensor, float]:
    """Raw and normalised latents [B, C, h, w], and the mean PSNR of the round trip in dB."""
    raws, latents, ratios = [], [], []
    for batch in images.split(BATCH):
        raws.append(vae.raw(batch))
        latents.append(vae.latents(raws[-1]))
        error = (vae.decode(latents[-1]) - batch).square().mean((1, 2, 3))
        ratios.append(-10 * error.clamp(min=1e-10).log10())
    return torch.cat(raws), torch.cat(latents), torch.cat(ratios).mean().item()


def _judged(latents: Moments) -> list[str]:
    """A warning where latents are far from what a diffusion model is trained for."""
    overall, between, within = latents.overall, latents.between, latents.within
    if abs(overall) <= MEAN and between <= BETWEEN and WITHIN[0] <= within <= WITHIN[1]:
        return []
    return [
        f"normalised latents are not about 0 and 1: mean {overall:.3f}, deviation {within:.3f} "
        f"within channels and {between:.3f} between their means; this is not the normalisation of "
        "this autoencoder, or the images are unlike those it is for"
    ]


def _preset(model: str, place: Place) -> type[VaeFields] | None:
    """The preset of these very files; its subfolder may have been left out."""
    for entry in registry.entries("tokenizer"):
        target = entry.target
        if issubclass(target, VaeFields) and target.facts.hub == model:
            if getattr(target(), "subfolder", "") == place.subfolder:
                return target
    return None


def _line(place: Place, preset: type[VaeFields] | None, unknown: Moments | None) -> str:
    """The overrides that use it, with measured numbers where its files hold none."""
    if preset and not unknown:
        return f"tokenizer={registry.entry_of(preset).name}"
    parts = ["tokenizer=vae", f"tokenizer.model={place.model}"]
    if place.subfolder:
        parts.append(f"tokenizer.subfolder={place.subfolder}")
    if unknown:
        spread = math.hypot(unknown.within, unknown.between)
        parts.append(f"tokenizer.shift={unknown.overall:.4g}")
        parts.append(f"tokenizer.scale={1 / max(spread, 1e-8):.4g}")
    return shlex.join(parts)
