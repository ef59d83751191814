"""Training from a cache: the same bits as encoding, also where writer or run are killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import (
    assert_same_run,
    checkpoints,
    final,
    forked,
    ranks,
    tiny,
    trained,
    unclocked,
    unlike,
)
from tiny_vae import write_vae

from nanogen import config, dist, files
from nanogen.cache import latents
from nanogen.cache.latents import open_latents
from nanogen.cache.write_latents import LatentJob, plan_latents, write_latents
from nanogen.data.animals import AnimalsSource
from nanogen.errors import DataError, RunFailed
from nanogen.run import Run, build
from nanogen.tokenizers.vae import Vae

CPU = torch.device("cpu")
EXCERPT = 44
"""training images of these tests, of which 64 are shown"""
SMALL = {"block_out_channels": [4] * 4, "norm_num_groups": 2}


@pytest.fixture(scope="module", autouse=True)
def excerpt() -> Iterator[None]:
    """Fewer animals: encoding all 7,216 twice takes longer than what is tested here."""
    count = AnimalsSource.count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AnimalsSource,
            "count",
            lambda self, split: min(count(self, split), EXCERPT),
        )
        yield


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"), "f8d4", **SMALL)


def latent_run(vae: Path, *more: str) -> Run:
    """Class-conditional training on mirrored animals in the latents of a tiny VAE."""
    fields = ["tokenizer=vae", f"tokenizer.model={vae}", "task.data.size=32", "tokenizer.patch=1"]
    run = tiny("animals/pixels-v", *fields, *more)
    assert run.task.data.flip
    return run


def cached(run: Run, folder: Path) -> Run:
    """The same run with a cache, which is written first."""
    write(run, folder / latents.FOLDER)
    return config.override(run, [f"machine.cache={folder}"])


def write(run: Run, folder: Path) -> None:
    parts = build(run)
    job = LatentJob(parts.tokenizer, parts.task.source, run.train.raw_precision, CPU)
    write_latents(job, plan_latents(job), folder)


KINDS = {
    "fp32": (),
    "fp16": ("train.raw_precision=fp16",),
    "bf16": ("train.raw_precision=bf16",),
    "sample": ("tokenizer.posterior=sample",),
    "micro-batches": ("machine.micro_batch=3",),
    "readers": ("machine.workers=1",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_as_online(vae, tmp_path, kind):
    run = latent_run(vae, "train.sample_every=64", *KINDS[kind])
    trained(run, tmp_path / "online")
    trained(cached(run, tmp_path / "cache"), tmp_path / "cached")
    assert_same_run(tmp_path / "online", tmp_path / "cached")
    assert len(unclocked(tmp_path / "online")) == 3


def test_precision_is_part_of_a_run(vae, tmp_path):
    one, other = latent_run(vae), latent_run(vae, "train.raw_precision=bf16")
    assert config.digest(one.identity()) != config.digest(other.identity())
    trained(one, tmp_path / "fp32")
    trained(other, tmp_path / "bf16")
    losses = [[line["loss"] for line in unclocked(tmp_path / kind)] for kind in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_nothing_is_encoded_or_read(vae, tmp_path, monkeypatch):
    run = cached(latent_run(vae), tmp_path / "cache")
    shown, encoded = [], []
    read, raw = AnimalsSource.read, Vae.raw

    def watched(self, split: str, index: int, draw: int):
        shown.append(index)
        return read(self, split, index, draw)

    monkeypatch.setattr(AnimalsSource, "read", watched)
    monkeypatch.setattr(Vae, "raw", lambda self, images: encoded.append(1) or raw(self, images))
    trained(run, tmp_path / "run")
    # One image is read to see that labels suit the model, and a group encoded to check the cache.
    assert (len(shown), len(encoded)) == (1, 1)


def test_a_run_goes_on_with_or_without_a_cache(vae, tmp_path):
    run = latent_run(vae, "train.sample_every=64")
    trained(run, tmp_path / "plain")
    with_cache = cached(run, tmp_path / "cache")
    for name, first, then in (
        ("both", with_cache, with_cache),
        ("before", with_cache, run),
        ("after", run, with_cache),
    ):
        trained(first, tmp_path / name, stop_at=24)
        assert 24 in checkpoints(tmp_path / name)
        trained(then, tmp_path / name)
        assert_same_run(tmp_path / "plain", tmp_path / name)


def test_a_trained_run_does_not_need_its_cache(vae, tmp_path):
    from nanogen.run_folder import open_run

    trained(cached(latent_run(vae), tmp_path / "cache"), tmp_path / "run")
    shutil.rmtree(tmp_path / "cache")
    opened = open_run(tmp_path / "run")
    assert opened.seen == 64
    with pytest.raises(DataError, match="machine.cache=.* holds nothing for this run"):
        trained(latent_run(vae, f"machine.cache={tmp_path / 'cache'}"), tmp_path / "other")


def test_a_cache_that_does_not_fit_is_refused_before_training(vae, tmp_path):
    run = cached(latent_run(vae), tmp_path / "cache")
    refused = {
        "train.raw_precision=fp16": "holds fp32, but train.raw_precision=fp16",
        "task.data.flip=false": "from other data",
        "tokenizer.posterior=sample": "another tokenizer",
    }
    for number, (change, message) in enumerate(refused.items()):
        with pytest.raises(DataError, match=message):
            trained(config.override(run, [change]), tmp_path / str(number))
        assert not (tmp_path / str(number) / "log.jsonl").exists()
    with pytest.raises(DataError, match="no network"):
        pixels = tiny("animals/pixels-v", f"machine.cache={tmp_path / 'cache'}")
        trained(pixels, tmp_path / "pixels")


@pytest.fixture(scope="module")
def whole(vae, tmp_path_factory) -> dict[str, bytes]:
    """The files of a cache whose writer was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write(latent_run(vae), folder)
    return listing(folder)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("moment", [1, 2, 3, 6, 11, 17, 18, 19])
def test_a_killed_writer_goes_on(vae, whole, tmp_path, moment):
    """SIGKILL before the n-th file, of plan, shards, marks and manifest, is flushed to the disk."""
    run, flush = latent_run(vae), files._flush
    count = 0

    def dies(path: Path) -> None:
        nonlocal count
        count += 1
        if count == moment * 2 - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    def work() -> None:
        files._flush = dies
        write(run, tmp_path / "cache")

    status = forked(work)
    # Plan, eight shards with their marks, manifest: 18 files, each flushed, and then its folder.
    assert status == (-signal.SIGKILL if moment <= 18 else 0)
    parts = build(run)
    if moment <= 18:
        with pytest.raises(DataError, match="is unfinished|holds no cache"):
            open_latents(tmp_path / "cache", parts.tokenizer, parts.task.source, "fp32", CPU)
    write(run, tmp_path / "cache")
    assert listing(tmp_path / "cache") == whole


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_shards(vae, whole, tmp_path, world):
    run = latent_run(vae)
    encoded = []

    def work() -> None:
        raw = Vae.raw
        Vae.raw = lambda self, images: encoded.append(1) or raw(self, images)  # type: ignore
        write(run, tmp_path / "cache")
        (tmp_path / f"encoded-{dist.rank()}").write_text(str(len(encoded)))

    assert ranks(world, tmp_path / "store", work) == [0] * world
    assert listing(tmp_path / "cache") == whole
    shares = [int((tmp_path / f"encoded-{rank}").read_text()) for rank in range(world)]
    assert max(shares) < 8 * 2


def test_what_ends_one_process_ends_all(vae, whole, tmp_path):
    """A full disk on one of them; and a damaged cache is refused by all."""
    run = latent_run(vae)

    def full() -> None:
        from nanogen.cache.folder import NewShard

        if dist.rank() == 1:

            def write_nothing(self, suffix, data):
                raise OSError(28, "No space left on device")

            NewShard.write = write_nothing  # type: ignore
        with pytest.raises(RunFailed, match="is full" if dist.rank() == 1 else "another process"):
            write(run, tmp_path / "cache")

    assert ranks(2, tmp_path / "store", full) == [0, 0]
    assert len(list((tmp_path / "cache").glob("*.raw"))) == 4
    write(run, tmp_path / "cache")
    assert listing(tmp_path / "cache") == whole

    data = bytearray((tmp_path / "cache" / "00005.raw").read_bytes())
    data[7] ^= 255
    (tmp_path / "cache" / "00005.raw").write_bytes(data)

    def damaged() -> None:
        parts = build(run)
        with pytest.raises(DataError, match="00005.raw is damaged"):
            open_latents(tmp_path / "cache", parts.tokenizer, parts.task.source, "fp32", CPU)

    assert ranks(2, tmp_path / "another store", damaged) == [0, 0]


def test_two_processes_train_from_a_cache(vae, tmp_path):
    run = latent_run(vae, "train.images=32")
    with_cache = cached(run, tmp_path / "cache")
    for name, one in (("online", run), ("cached", with_cache)):
        status = ranks(
            2, tmp_path / f"store-{name}", lambda one=one, n=name: trained(one, tmp_path / n)
        )
        assert status == [0, 0]
    assert unlike(final(tmp_path / "online"), final(tmp_path / "cached")) == []
    assert unclocked(tmp_path / "online") == unclocked(tmp_path / "cached")
