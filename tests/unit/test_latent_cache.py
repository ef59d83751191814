"""The cache of latents: what it holds."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import built, entries, tokenizer_config
from tiny_cache import Convolution, Pictures, complete, everything, made, online, opened
from tiny_vae import write_vae

from nanogen.cache import folder as cache_folder
from nanogen.cache import records
from nanogen.errors import DataError
from nanogen.registry import Entry
from nanogen.tasks.base import Stored
from nanogen.tasks.class_conditional import ClassConditional
from nanogen.tokenizers.raw import has_network, raw_latents
from nanogen.tokenizers.vae import VaeConfig
from nanogen.types import to_float


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, Convolution, Pictures]:
    """A complete cache, which its tests may damage."""
    return complete(tmp_path)


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
