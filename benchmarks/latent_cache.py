"""Training in the latents of a VAE: encoded at every step, or read from a cache.

The diffusion model is that of the preset animals/pixels-v, the VAE has the layers of Stable
Diffusion's with random weights, the images are 64 animals of 32 px with their mirror images.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chz
import torch

from benchmarks.base import Arms, Count, Disagreement, Options, Timing, compare
from nanogen import config, recipes
from nanogen.cache import latents
from nanogen.cache.records import Records
from nanogen.cache.write_latents import LatentJob, plan_latents, write_latents
from nanogen.data.animals import AnimalsSource
from nanogen.data.base import Sample
from nanogen.data.loader import batches
from nanogen.errors import MissingExtra
from nanogen.model import to_device
from nanogen.run import Run, build
from nanogen.tokenizers.raw import GROUP, PRECISIONS
from nanogen.tokenizers.vae import Vae, VaeConfig
from nanogen.train.diffusion import DiffusionTrainer
from nanogen.types import Batch

SIZE, IMAGES, BATCH = 32, 64, 32
STEPS = 2
"""steps after which both arms must have the same losses"""
FULL = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
"""Stable Diffusion's: 83.65 million parameters"""
TINY = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def counted(options: Options) -> list[Count]:
    """What a step of training does; with a tiny VAE, as these numbers do not depend on its size."""
    with _arms(TINY, options) as (plain, shipped):
        _agree(plain, shipped)
        with _counting() as online:
            plain.step()
        with _counting() as cached:
            shipped.step()
        record = shipped.trainer.parts.tokenizer.spec.dim * PRECISIONS["fp32"].itemsize
        return [
            Count("encoder calls of a step online", online.encoded, BATCH // GROUP),
            Count("encoder calls of a step from the cache", cached.encoded, 0),
            Count("images decoded for a step online", online.decoded, BATCH),
            Count("images decoded for a step from the cache", cached.decoded, 0),
            Count("bytes read a sample", cached.bytes / BATCH, record),
            Count("bytes on disk a record", _disk(shipped) / (2 * IMAGES), record),
        ]


def timed(options: Options) -> list[Timing]:
    with _arms(FULL, options) as (plain, shipped):
        _agree(plain, shipped)
        agreement = f"the same losses, bit for bit, for {STEPS} steps"
        arms = Arms(plain.step, shipped.step)
        step = compare("training step, online -> cached", "steps", arms, options, agreement)
        arms = Arms(plain.encode, shipped.encode, units=BATCH)
        read = compare("latents, encoded -> read", "images", arms, options, agreement)
        return [step, read]


@chz.chz
class Few:
    """The first animals of each split, at most `IMAGES`."""

    size: int = SIZE

    def build(self) -> FewSource:
        return FewSource(self.size, flip=True)


class FewSource(AnimalsSource):
    def count(self, split: str) -> int:
        return min(IMAGES, super().count(split))


@dataclass
class Arm:
    """A trainer with its stream."""

    trainer: DiffusionTrainer
    stream: Iterator[Batch]

    def step(self) -> dict[str, float]:
        return self.trainer.step(self.stream)

    def encode(self) -> torch.Tensor:
        """Latents of the next images."""
        batch = to_device(next(self.stream), self.trainer.device)
        return self.trainer.parts.latents(batch)


@contextlib.contextmanager
def _arms(network: dict[str, Any], options: Options) -> Generator[tuple[Arm, Arm], None, None]:
    """Online and cached, from the same weights at the same image."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_vae(folder / "vae", network)
        run = _run(folder / "vae", options)
        parts = build(run)
        job = LatentJob(parts.tokenizer, parts.task.source, "fp32", options.device)
        write_latents(job, plan_latents(job), folder / "cache" / latents.FOLDER)
        machine = chz.replace(run.machine, cache=str(folder / "cache"))
        yield _arm(run), _arm(chz.replace(run, machine=machine))


def _arm(run: Run) -> Arm:
    trainer = DiffusionTrainer(build(run))
    return Arm(trainer, batches(trainer.task, 0, BATCH, BATCH, workers=0))


def _run(vae: Path, options: Options) -> Run:
    base = config.override(
        recipes.preset("animals/pixels-v"),
        [f"train.batch={BATCH}", f"machine.device={options.device.type}"],
    )
    task = chz.replace(base.task, data=Few())
    return chz.replace(base, task=task, tokenizer=VaeConfig(model=str(vae), patch=1))


def _write_vae(folder: Path, network: dict[str, Any]) -> None:
    try:
        from diffusers import AutoencoderKL
    except ImportError as problem:
        raise MissingExtra("diffusers", "pip install 'nanogen[latents]'") from problem
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            **network,
        )
    made.save_pretrained(folder)


def _agree(plain: Arm, shipped: Arm) -> None:
    for number in range(STEPS):
        one, other = plain.step(), shipped.step()
        if one != other:
            raise Disagreement(f"step {number + 1} gives {one} online and {other} from the cache")


@dataclass
class Counts:
    encoded: int = 0
    decoded: int = 0
    bytes: int = 0


@contextlib.contextmanager
def _counting() -> Generator[Counts, None, None]:
    """Counts what is called within the block."""
    counts, raw, read, rows = Counts(), Vae.raw, FewSource.read, Records.rows

    def encode(self: Vae, images: torch.Tensor) -> torch.Tensor:
        counts.encoded += 1
        return raw(self, images)

    def decode(self: AnimalsSource, split: str, index: int, draw: int) -> Sample:
        counts.decoded += 1
        return read(self, split, index, draw)

    def load(self: Records, numbers: Any) -> Any:
        found = rows(self, numbers)
        counts.bytes += found.nbytes
        return found

    Vae.raw, FewSource.read, Records.rows = encode, decode, load
    try:
        yield counts
    finally:
        Vae.raw, FewSource.read, Records.rows = raw, read, rows


def _disk(arm: Arm) -> int:
    folder = Path(arm.trainer.parts.run.machine.cache) / latents.FOLDER
    return sum(path.stat().st_size for path in folder.glob("*.raw"))
