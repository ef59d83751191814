"""The cache of text features: the bits of encoding each caption alone."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parts import open_data
from torch import Tensor

from nanogen.cache import texts
from nanogen.cache.texts import CAPTION, TextCache, open_texts
from nanogen.cache.write_texts import TextJob, plan_texts, write_texts
from nanogen.conditioners.features import FeatureCache, TextEncoder, stacked
from nanogen.conditioners.labels import Labels
from nanogen.conditioners.text import HfTextConfig
from nanogen.conditioners.words import WordsConfig
from nanogen.data.base import Description
from nanogen.errors import DataError
from nanogen.types import ConditionSpec, Request, TextCondition

CPU = torch.device("cpu")
CAPTIONS = ("a red cow", "", "two blue dogs", "a red cow", "ein Käfer", "a blue dog, left of a cow")


class Letters:
    """A text encoder: a random vector for each letter, and for the number of letters."""

    trainable = False
    spec = ConditionSpec(width=6, tokens=40)

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> None:
        self.fingerprint = f"letters-{seed}"
        self.kept: FeatureCache | None = FeatureCache(100)
        self.encoded: list[str] = []
        self.table = torch.randn(400, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def rows(self, captions: list[str]) -> list[Tensor]:
        self.encoded += captions
        return [self.table[[ord(c) % 400 for c in one]] + self.table[len(one)] for one in captions]

    def encode(self, given: Request) -> TextCondition:
        assert self.kept is not None and given.texts is not None
        return stacked([row.float() for row in self.kept.rows(given.texts, self.rows)])


class Captions:
    """A source of captions, without images."""

    size, variants, captioned, classes = 8, 1, True, ()

    def __init__(self, captions: tuple[str, ...], fingerprint: str = "captions") -> None:
        self.captions, self.fingerprint = captions, fingerprint

    def count(self, split: str) -> int:
        return len(self.captions) if split == "train" else 0

    def describe(self, index: int) -> Description:
        return Description(text=self.captions[index])


def made(folder: Path, encoder, source) -> TextCache:
    job = TextJob(encoder, source, CPU)
    write_texts(job, plan_texts(job), folder)
    return open_texts(folder, encoder, source)


def many(count: int) -> tuple[str, ...]:
    words = np.random.default_rng(0).integers(0, 10**6, count)
    return tuple(f"caption {word} {'x' * (word % 17)}" for word in words)


def request(*captions: str) -> Request:
    return Request(torch.arange(len(captions)), texts=captions)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bits_of_encoding(tmp_path, dtype) -> None:
    encoder = Letters(dtype=dtype)
    cache = made(tmp_path / "text", encoder, Captions(CAPTIONS))
    assert len(cache) == 5, "a caption that comes twice is stored once"
    truth = Letters(dtype=dtype).rows(list(CAPTIONS))
    for caption, row in zip(CAPTIONS, truth, strict=True):
        found = cache.find(caption)
        assert found.dtype == dtype and found.shape == (len(caption), 6)
        assert torch.equal(found, row)
    assert cache.find("a green cow") is None
    assert torch.equal(pickle.loads(pickle.dumps(cache)).find("a red cow"), truth[0])


def test_a_conditioner_reads_and_encodes_only_what_is_not_stored(tmp_path) -> None:
    encoder, other = Letters(), Letters()
    cache = made(tmp_path / "text", encoder, Captions(CAPTIONS))
    plain = other.encode(request(*CAPTIONS, "a prompt"))
    encoder.kept.store = cache
    encoder.encoded.clear()
    found = encoder.encode(request(*CAPTIONS, "a prompt"))
    assert encoder.encoded == ["a prompt"]
    assert torch.equal(found.features, plain.features) and torch.equal(found.mask, plain.mask)


def test_format(tmp_path) -> None:
    """Real tokens only, one record each; captions by hash, with their number of tokens."""
    captions = many(60)
    cache = made(tmp_path, Letters(), Captions(captions))
    tree = json.loads((tmp_path / "manifest.json").read_text())
    assert (tree["plan"]["content"], tree["plan"]["precision"]) == ("text", "bf16")
    assert len(tree["shards"]) == cache.plan.shards == 8
    distinct = list(dict.fromkeys(captions))
    for number, shard in enumerate(tree["shards"]):
        mine = [distinct[i] for i in cache.plan.items_of(number)]
        table = np.fromfile(tmp_path / f"{number:05d}.captions", CAPTION)
        assert table["tokens"].tolist() == [len(one) for one in mine]
        assert (tmp_path / f"{number:05d}.raw").stat().st_size == sum(map(len, mine)) * 6 * 2
        assert shard["records"] == sum(map(len, mine))
    for one, row in zip(captions, Letters().rows(list(captions)), strict=True):
        assert torch.equal(cache.find(one), row)


def test_captions_that_share_half_of_a_hash(tmp_path, monkeypatch) -> None:
    plain = texts.digest
    monkeypatch.setattr(texts, "digest", lambda caption: (2**64 - 1, plain(caption)[1]))
    monkeypatch.setattr("nanogen.cache.write_texts.digest", texts.digest)
    cache = made(tmp_path, Letters(), Captions(CAPTIONS))
    for one, row in zip(CAPTIONS, Letters().rows(list(CAPTIONS)), strict=True):
        assert torch.equal(cache.find(one), row)
    assert cache.find("a green cow") is None


def test_goes_on_where_it_ended(tmp_path, monkeypatch) -> None:
    encoder, source = Letters(), Captions(many(60))
    made(tmp_path / "whole", encoder, source)
    job = TextJob(encoder, source, CPU)
    work, rows = plan_texts(job), Letters.rows

    def ends(self: Letters, captions: list[str]) -> list[Tensor]:
        if len(self.encoded) > 30:
            raise KeyboardInterrupt
        return rows(self, captions)

    encoder.encoded.clear()
    with monkeypatch.context() as broken:
        broken.setattr(Letters, "rows", ends)
        with pytest.raises(KeyboardInterrupt):
            write_texts(job, work, tmp_path / "text")
    with pytest.raises(DataError, match=r"is unfinished \(4 of 8 shards\)"):
        open_texts(tmp_path / "text", encoder, source)
    encoder.encoded.clear()
    write_texts(job, work, tmp_path / "text")
    assert len(encoder.encoded) == 60 - 32
    assert listing(tmp_path / "text") == listing(tmp_path / "whole")


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    encoder, source = Letters(), Captions(CAPTIONS)
    made(tmp_path, encoder, source)
    before = listing(tmp_path)
    with pytest.raises(DataError, match="another text encoder .letters-0 there, letters-1 here"):
        open_texts(tmp_path, Letters(1), source)
    with pytest.raises(DataError, match="from other data .captions there, others here"):
        open_texts(tmp_path, encoder, Captions(CAPTIONS, "others"))
    with pytest.raises(DataError, match="does not hold what the text encoder makes of 'new'"):
        open_texts(tmp_path, encoder, Captions(("new", *CAPTIONS)))
    changed = Letters(1)
    changed.fingerprint = encoder.fingerprint
    with pytest.raises(DataError, match="does not hold what the text encoder makes of 'a red cow'"):
        open_texts(tmp_path, changed, source)
    together = Letters()
    together.kept = None
    with pytest.raises(DataError, match="conditioner.cache=0 encodes .* together.*cache=1000"):
        open_texts(tmp_path, together, source)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["00002.raw", "00002.captions"])
def test_damage_is_refused(tmp_path, name) -> None:
    encoder, source = Letters(), Captions(CAPTIONS)
    made(tmp_path, encoder, source)
    data = bytearray((tmp_path / name).read_bytes())
    data[3] ^= 16
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} is damaged: .*delete that file"):
        open_texts(tmp_path, encoder, source)
    os.truncate(tmp_path / name, 8)
    with pytest.raises(DataError, match=f"{name} has 8 bytes, not the "):
        open_texts(tmp_path, encoder, source)


def test_endless_captions_and_other_conditioners_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="text features cannot be stored"):
        plan_texts(TextJob(Letters(), open_data("scenes", tmp_path), CPU))
    words = WordsConfig().build(SimpleNamespace(prompts=lambda: ("a cow",)))
    assert not isinstance(words, TextEncoder) and not isinstance(Labels(3), TextEncoder)
    assert isinstance(Letters(), TextEncoder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The folder of a tiny causal language model with random weights."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", *"a red blue cow dog two dogs left of ,".split()]
    split = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=split).save_pretrained(folder)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.Qwen3Config(**sizes, **heads, intermediate_size=32)
        transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_the_hub(model, tmp_path, dtype) -> None:
    config = HfTextConfig(model=str(model), dtype=dtype, cache=50)
    online, encoder = config.build(None), config.build(None)
    encoder.kept.store = made(tmp_path, encoder, Captions(CAPTIONS))
    encoder.encoder = None  # whatever is read from now on cannot be encoded
    for batch in (CAPTIONS, CAPTIONS[::-1], CAPTIONS[2:3]):
        truth = online.encode(request(*batch))
        rows = encoder.kept.rows(batch, encoder.rows)
        found = stacked([row.float() for row in rows])
        assert torch.equal(found.features, truth.features)
        assert torch.equal(found.mask, truth.mask)
    with pytest.raises(DataError, match="set conditioner.cache"):
        unkept = HfTextConfig(model=str(model), dtype=dtype).build(None)
        plan_texts(TextJob(unkept, Captions(CAPTIONS), CPU))
