"""The cache of latents: what it holds, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import built, entries, images, open_data, tokenizer_config
from tiny_vae import write_vae
from torch import Tensor, nn

from nanogen.cache import folder as cache_folder
from nanogen.cache import manifest, records
from nanogen.cache.latents import LatentCache, open_latents
from nanogen.cache.write_latents import LatentJob, plan_latents, write_latents
from nanogen.data.base import Description, Sample
from nanogen.errors import DataError, RunFailed
from nanogen.model import frozen
from nanogen.registry import Entry
from nanogen.tasks.base import Stored
from nanogen.tasks.class_conditional import ClassConditional
from nanogen.tokenizers.base import Autoencoder
from nanogen.tokenizers.pixels import PixelsConfig
from nanogen.tokenizers.raw import has_network, raw_latents
from nanogen.tokenizers.vae import VaeConfig
from nanogen.types import LatentSpec, Tokenizer, to_float

CPU = torch.device("cpu")


class Convolution(Autoencoder):
    """A random network of stride 4, as small as one can be."""

    def __init__(self, size: int = 16, seed: int = 0) -> None:
        super().__init__(LatentSpec(2, size // 4, size // 4, 1), f"convolution-{seed}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Conv2d(3, 2, 4, 4)
        self.calls: list[int] = []
        frozen(self)

    def raw(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.network(images) * 3 + 1

    def from_raw(self, raw: Tensor) -> Tensor:
        return raw.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :1].expand(-1, 3, -1, -1)


@dataclass
class Pictures:
    """A source of random images with their mirror images."""

    total: int = 40
    size: int = 16
    variants: int = 2
    fingerprint: str = "pictures"
    seed: int = 0
    classes: tuple[str, ...] = ("a", "b", "c")
    captioned: bool = False
    reads: int = 0

    def __post_init__(self) -> None:
        found = images(self.total, self.size, self.seed)
        self.pictures = (found * 255).round().to(torch.uint8)

    def count(self, split: str) -> int:
        return self.total if split == "train" else 0

    def read(self, split: str, index: int, draw: int) -> Sample:
        self.reads += 1
        return Sample(self.views(index)[self.variant(index, draw)], index % 3)

    def variant(self, index: int, draw: int) -> int:
        return (index + draw) % self.variants

    def views(self, index: int) -> tuple[Tensor, ...]:
        return (self.pictures[index], self.pictures[index].flip(-1))[: self.variants]

    def describe(self, index: int) -> Description:
        return Description(index % 3)

    def prompts(self) -> tuple[str, ...]:
        return ()


def made(
    folder: Path, tokenizer: Tokenizer, source: Pictures, precision="fp32", **more
) -> LatentCache:
    """A cache, written and opened."""
    job = LatentJob(tokenizer, source, precision, CPU, **more)
    write_latents(job, plan_latents(job), folder)
    return open_latents(folder, tokenizer, source, precision, CPU)


def everything(cache: LatentCache) -> Tensor:
    """All records, in the order of their numbers."""
    plan = cache.plan
    numbers = np.arange(plan.items * plan.variants)
    return cache.raw(numbers // plan.variants, numbers % plan.variants)


def online(tokenizer: Tokenizer, source: Pictures) -> Tensor:
    """What the network makes of all variants, at once and without the groups of training."""
    views = torch.stack([view for i in range(source.total) for view in source.views(i)])
    with torch.no_grad():
        return tokenizer.raw(to_float(views))


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, Convolution, Pictures]:
    """A complete cache, which its tests may damage."""
    tokenizer, source = Convolution(), Pictures()
    made(tmp_path / "cache", tokenizer, source)
    return tmp_path / "cache", tokenizer, source


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opened(folder: Path, tokenizer: Tokenizer, source: Pictures, precision="fp32") -> LatentCache:
    return open_latents(folder, tokenizer, source, precision, CPU)


SMALL = 28
"""pixels of the images that the embedded tokenizers are for"""


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_cached_is_online_for_every_tokenizer(entry: Entry, tmp_path: Path) -> None:
    size = SMALL if entry.name.startswith("animals-") else 64
    tokenizer = built(entry, lambda: tokenizer_config(entry).build(size))
    source = Pictures(3, size)
    if not has_network(tokenizer):
        with pytest.raises(DataError, match="has no network, so encoding costs nothing"):
            made(tmp_path / "cache", tokenizer, source)
        return
    truth = online(tokenizer, source)
    exact = made(tmp_path / "fp32", tokenizer, source)
    views = torch.stack([view for i in range(3) for view in source.views(i)])
    # The bits of an image are its own: alone, with one other, and in another order.
    alone = torch.cat([raw_latents(tokenizer, to_float(view[None])) for view in views])
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    turned = raw_latents(tokenizer, to_float(views[order]))
    # Later sums follow the order of numbers in memory, and round by it.
    assert turned.stride() == everything(exact).stride()
    assert torch.equal(everything(exact), alone)
    assert torch.equal(everything(exact)[order], turned)
    torch.testing.assert_close(everything(exact), truth, atol=1e-5, rtol=1e-4)
    half = everything(made(tmp_path / "fp16", tokenizer, source, "fp16"))
    assert half.dtype == torch.float16 and torch.equal(half, everything(exact).half())
    assert (half.float() - truth).abs().max() < 1e-3 * truth.abs().max()


def test_mirror_images_are_encoded_themselves(tmp_path: Path) -> None:
    write_vae(tmp_path / "vae", "f8d4")
    tokenizer, source = VaeConfig(model=str(tmp_path / "vae")).build(32), Pictures(4, 32)
    found = everything(made(tmp_path / "cache", tokenizer, source)).unflatten(0, (4, 2))
    images = to_float(source.pictures)
    assert torch.equal(found[:, 0], raw_latents(tokenizer, images))
    assert torch.equal(found[:, 1], raw_latents(tokenizer, images.flip(-1)))
    assert not torch.allclose(found[:, 1], found[:, 0].flip(-1), atol=1e-2)


def test_moments_draw_as_online(tmp_path: Path) -> None:
    write_vae(tmp_path / "vae", "f8d4")
    config = VaeConfig(model=str(tmp_path / "vae"), posterior="sample")
    tokenizer, source = config.build(32), Pictures(5, 32)
    cache = made(tmp_path / "cache", tokenizer, source)
    assert cache.plan.content == "moments" and cache.plan.shape == (8, 4, 4)
    keys = torch.tensor([3, 1 << 40, 0, 7, 2])
    raw = cache.raw(np.arange(5), np.zeros(5, np.int64))
    images = torch.cat([to_float(source.pictures), torch.zeros(3, 3, 32, 32)])
    seen = tokenizer.latents(tokenizer.raw(images)[:5], keys)
    assert torch.equal(tokenizer.latents(raw, keys), seen)
    assert not torch.equal(tokenizer.latents(raw, keys + 1), seen)


def test_format(plain) -> None:
    """Records and nothing else, in their order; the manifest says the rest."""
    folder, tokenizer, source = plain
    tree = json.loads((folder / "manifest.json").read_text())
    names = [shard["files"][0]["name"] for shard in tree["shards"]]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", *names, "manifest.json"]
    record = 2 * 4 * 4 * 4
    assert [(folder / name).stat().st_size for name in names] == [10 * record] * 8
    flat = np.concatenate([np.fromfile(folder / name, "<f4") for name in names])
    truth = online(tokenizer, source)
    assert np.allclose(flat.reshape(80, 2, 4, 4), truth, atol=1e-6)
    plan = tree["plan"]
    assert (plan["encoder"], plan["data"]) == (tokenizer.raw_fingerprint, source.fingerprint)
    assert (plan["content"], plan["precision"], plan["split"]) == ("mode", "fp32", "train")
    assert (plan["items"], plan["variants"], plan["resolution"]) == (40, 2, 16)
    assert tree["normalised"] is False and tree["versions"]["torch"] == torch.__version__
    std, mean = torch.std_mean(truth.double(), (0, 2, 3), correction=0)
    assert tree["channels"]["mean"] == pytest.approx(mean.tolist())
    assert tree["channels"]["std"] == pytest.approx(std.tolist())


@pytest.mark.parametrize(
    ("items", "item_bytes", "shards"),
    [(1, 8, 1), (5, 8, 5), (7216, 128, 8), (1_281_167, 16384, 313), (1_281_167, 262144, 512)],
)
def test_sizes_of_shards(items: int, item_bytes: int, shards: int) -> None:
    size = cache_folder.items_of_a_shard(items, item_bytes)
    assert -(-items // size) == shards


def test_reading(plain, monkeypatch) -> None:
    """Any order, from other processes, and with fewer files open than there are."""
    folder, tokenizer, source = plain
    truth = everything(opened(folder, tokenizer, source)).unflatten(0, (40, 2))
    monkeypatch.setattr(records, "MOST_OPEN", 2)
    cache = opened(folder, tokenizer, source)
    indices, variants = np.array([39, 0, 17, 39, 5]), np.array([0, 1, 1, 1, 0])
    assert torch.equal(cache.raw(indices, variants), truth[indices, variants])
    assert len(cache.records._maps) == 2
    message = pickle.dumps(cache)
    assert len(message) < 10_000, "records were copied"
    assert torch.equal(pickle.loads(message).raw(indices, variants), truth[indices, variants])


def test_the_stream_of_a_task(plain) -> None:
    folder, tokenizer, source = plain
    task = ClassConditional(source, seed=3)
    cached = replace(task, stored=Stored(opened(folder, tokenizer, source), images=False))
    positions = np.arange(70, 110)
    plain_batch = task.batch(positions)
    source.reads = 0
    batch = cached.batch(positions)
    assert source.reads == 0 and batch.pixels is None
    assert torch.equal(batch.labels, plain_batch.labels)
    assert torch.equal(batch.keys, plain_batch.keys)
    assert torch.equal(batch.raw, raw_latents(tokenizer, plain_batch.images))
    with pytest.raises(RuntimeError, match="needs_images = True"):
        _ = batch.images
    both = replace(cached, stored=replace(cached.stored, images=True)).batch(positions)
    assert torch.equal(both.images, plain_batch.images) and torch.equal(both.raw, batch.raw)


class Interrupted(Exception):
    """Whatever ends a writer."""


@pytest.mark.parametrize("calls", [2, 5, 9, 15])
def test_goes_on_where_it_ended(plain, tmp_path: Path, monkeypatch, calls: int) -> None:
    folder, tokenizer, source = plain
    job = LatentJob(tokenizer, source, "fp32", CPU, batch=4)
    raw = Convolution.raw

    def interrupted(self: Convolution, images: Tensor) -> Tensor:
        if len(self.calls) == calls:
            raise Interrupted
        return raw(self, images)

    plan = plan_latents(job)
    tokenizer.calls.clear()
    with monkeypatch.context() as broken:
        broken.setattr(Convolution, "raw", interrupted)
        with pytest.raises(Interrupted):
            write_latents(job, plan, tmp_path / "again")
    # Five items a shard: two groups of eight of their ten views.
    done = calls // 2
    with pytest.raises(DataError, match=rf"is unfinished \({done} of 8 shards\).*goes on"):
        opened(tmp_path / "again", tokenizer, source)
    tokenizer.calls.clear()
    write_latents(job, plan, tmp_path / "again")
    assert len(tokenizer.calls) == 2 * (8 - done)
    assert listing(tmp_path / "again") == listing(folder)
    tokenizer.calls.clear()
    write_latents(job, plan, tmp_path / "again")
    assert tokenizer.calls == [] and listing(tmp_path / "again") == listing(folder)


def test_readers_change_nothing(plain, tmp_path: Path) -> None:
    folder, tokenizer, source = plain
    made(tmp_path / "again", tokenizer, source, workers=2, batch=3)
    assert listing(tmp_path / "again") == listing(folder)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "one bit": (lambda f: flip_a_bit(f / "00003.raw"), r"00003.raw is damaged.*delete that file"),
    "cut off": (
        lambda f: os.truncate(f / "00003.raw", 1000),
        r"00003.raw has 1,000 bytes, not the ",
    ),
    "longer": (
        lambda f: os.truncate(f / "00003.raw", 10**6),
        r"00003.raw has 1,000,000 bytes, not",
    ),
    "missing": (lambda f: (f / "00007.raw").unlink(), r"cannot read .*00007.raw: No such file"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "holds no cache; write one"),
    "half a manifest": (
        lambda f: os.truncate(f / "manifest.json", 300),
        "manifest.json is no description of a cache .*write the cache again",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(plain, kind: str) -> None:
    """In one line with the fix, before any value is used, and nothing is deleted."""
    folder, tokenizer, source = plain
    damage, message = DAMAGE[kind]
    damage(folder)
    before = listing(folder)
    with pytest.raises(DataError, match=message) as refused:
        opened(folder, tokenizer, source)
    assert "\n" not in str(refused.value)
    assert listing(folder) == before


def test_a_damaged_shard_is_written_again(plain) -> None:
    """The fix that the message names."""
    folder, tokenizer, source = plain
    before = listing(folder)
    flip_a_bit(folder / "00003.raw")
    (folder / "00003.raw").unlink()
    tokenizer.calls.clear()
    made(folder, tokenizer, source)
    # One group to plan, two for the shard, one to compare.
    assert len(tokenizer.calls) == 4
    assert listing(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"precision": "fp8"},
        {"shape": None},
        {"shard_items": 0},
        {"unknown": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_foreign_manifest_is_refused(plain, change: dict) -> None:
    folder, tokenizer, source = plain
    tree = json.loads((folder / "manifest.json").read_text())
    tree["plan"] |= change
    (folder / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="is no description of a cache"):
        opened(folder, tokenizer, source)


def test_a_manifest_cannot_lead_elsewhere(plain) -> None:
    folder, tokenizer, source = plain
    tree = json.loads((folder / "manifest.json").read_text())
    tree["shards"][0]["files"][0]["name"] = "../secret"
    (folder / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="leads outside"):
        opened(folder, tokenizer, source)


def test_other_tokenizers_data_and_precisions_are_refused(plain) -> None:
    folder, tokenizer, source = plain
    before = listing(folder)
    with pytest.raises(DataError, match="another tokenizer .*convolution-0 there, convolution-1"):
        opened(folder, Convolution(seed=1), source)
    with pytest.raises(DataError, match="other data .pictures there, others here"):
        opened(folder, tokenizer, Pictures(fingerprint="others"))
    with pytest.raises(DataError, match="40 images in 2 variants, but the data have 40 in 1"):
        opened(folder, tokenizer, Pictures(variants=1))
    with pytest.raises(DataError, match="holds fp32, but train.raw_precision=fp16; set .*=fp32"):
        opened(folder, tokenizer, source, "fp16")
    with pytest.raises(DataError, match="without machine.cache"):
        opened(folder, tokenizer, Pictures(variants=0))
    # Fingerprints that do not see a change: the images themselves are compared.
    with pytest.raises(DataError, match="does not hold what the tokenizer makes of these images"):
        opened(folder, tokenizer, Pictures(seed=5))
    assert listing(folder) == before


def test_another_cache_in_the_folder_is_refused(plain) -> None:
    folder, tokenizer, source = plain
    before = listing(folder)
    for other in (
        LatentJob(tokenizer, source, "fp16", CPU),
        LatentJob(Convolution(seed=1), source, "fp32", CPU),
        LatentJob(tokenizer, Pictures(fingerprint="others"), "fp32", CPU),
    ):
        with pytest.raises(DataError, match="holds another cache .* there, .* here.*--out"):
            write_latents(other, plan_latents(other), folder)
    assert listing(folder) == before


def test_two_commands_at_once_are_refused(plain) -> None:
    folder, tokenizer, source = plain
    job = LatentJob(tokenizer, source, "fp32", CPU)
    plan = plan_latents(job)
    with cache_folder.writing(folder, plan, 1):
        with pytest.raises(DataError, match="is being written by another process"):
            write_latents(job, plan, folder)
    write_latents(job, plan, folder)


@pytest.mark.parametrize("full_at", [0, 700, 5000])
def test_a_full_disk(plain, tmp_path: Path, monkeypatch, full_at: int) -> None:
    """What is finished is kept, and the same command goes on."""
    folder, tokenizer, source = plain
    job, written = LatentJob(tokenizer, source, "fp32", CPU), 0
    plan, write = plan_latents(job), cache_folder.NewShard.write

    def full(self: cache_folder.NewShard, suffix: str, data: Tensor) -> None:
        nonlocal written
        write(self, suffix, data)
        written += data.nbytes
        if written > full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    done = full_at // (10 * 128)
    with monkeypatch.context() as broken:
        broken.setattr(cache_folder.NewShard, "write", full)
        with pytest.raises(RunFailed, match=f"is full after {done} of 8 shards, which are kept"):
            write_latents(job, plan, tmp_path / "full")
    assert len(list((tmp_path / "full").glob("*.raw"))) == done
    assert not list((tmp_path / "full").glob(".*.part"))
    write_latents(job, plan, tmp_path / "full")
    assert listing(tmp_path / "full") == listing(folder)


def test_a_disk_that_is_too_small_is_refused_before(tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(DataError, match=r"needs about 10.2 kB more, but its disk has 10.0 kB free"):
        made(tmp_path / "cache", Convolution(), Pictures())
    assert made(tmp_path / "half", Convolution(), Pictures(), "fp16").plan.record_bytes == 64


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    class Huge(Convolution):
        def raw(self, images: Tensor) -> Tensor:
            return super().raw(images) + 1e5 * (images[:, :1, :4, :4] > 0.999)

    source = Pictures()
    found = (source.pictures[:, :1, :4, :4] > 0.999 * 255).flatten(1).any(1)
    first = int(found.nonzero()[0])
    with pytest.raises(DataError, match=rf"image {first} are not finite in fp16; use .* bf16"):
        made(tmp_path / "fp16", Huge(), source, "fp16")
    assert everything(made(tmp_path / "bf16", Huge(), source, "bf16")).dtype == torch.bfloat16


def test_endless_data_and_pixels_are_refused(tmp_path: Path) -> None:
    scenes = open_data("scenes", tmp_path)
    with pytest.raises(DataError, match="makes every training image anew.*without machine.cache"):
        plan_latents(LatentJob(Convolution(40), scenes, "fp32", CPU))
    with pytest.raises(DataError, match="no network"):
        plan_latents(LatentJob(PixelsConfig(patch=4).build(16), Pictures(), "fp32", CPU))


def test_a_plan_comes_back(tmp_path: Path) -> None:
    job = LatentJob(Convolution(), Pictures(), "bf16", CPU, described={"type": "convolution"})
    plan = plan_latents(job)
    manifest.write_plan(tmp_path, plan)
    assert manifest.read_plan(tmp_path) == plan
    assert manifest.read_plan(tmp_path).described == {"type": "convolution"}
