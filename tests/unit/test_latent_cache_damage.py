"""The cache of latents: writers that are interrupted, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from parts import open_data
from tiny_cache import CPU, Convolution, Pictures, complete, everything, listing, made, opened
from torch import Tensor

from nanogen.cache import folder as cache_folder
from nanogen.cache import manifest
from nanogen.cache.write_latents import LatentJob, plan_latents, write_latents
from nanogen.errors import DataError, RunFailed
from nanogen.tokenizers.pixels import PixelsConfig


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, Convolution, Pictures]:
    """A complete cache, which its tests may damage."""
    return complete(tmp_path)


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
