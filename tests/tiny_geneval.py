"""The models and prompts of GenEval, tiny and random, in the files that are published.

    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        put(patch, tmp_path)                # they stand in the store; images are fed at 64 px

Weights follow from seeds. The detector is sure of itself, so that much of what it sees counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from nanogen import store
from nanogen.metrics.clip_score import CLIP_L
from nanogen.metrics.mask2former import MASK2FORMER, RENAMED, Mask2Former
from nanogen.prompts import geneval
from nanogen.prompts.geneval import NAMES, GenEvalPrompts

SIDE = 64
"""pixels of a square image in the tiny detector; the smallest that its norms take"""
CLIP_SIDE = 28
SEEN = ("bench", "cow", "person")
"""what the tiny detector finds"""
OLD_NAMES = {new: old for old, new in RENAMED.items() if old != "hair dryer"}
SCENES: tuple[Mapping[str, Any], ...] = (
    {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    },
    {
        "tag": "two_object",
        "include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1}],
        "prompt": "a photo of a bench and a cow",
    },
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "a photo of two cows",
    },
    {
        "tag": "colors",
        "include": [{"class": "cow", "count": 1, "color": "green"}],
        "prompt": "a photo of a green cow",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cow", "count": 1},
            {"class": "bench", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a bench left of a cow",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "bench", "count": 1, "color": "blue"},
            {"class": "cow", "count": 1, "color": "green"},
        ],
        "prompt": "a photo of a blue bench and a green cow",
    },
)
PROMPTS = tuple(scene["prompt"] for scene in SCENES)


def put(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put them into the store, which the caller has placed somewhere of his own, and let the metric
    work at their size."""
    shrink(patch)
    files = prepare_tiny(folder)
    for asset in (geneval.METADATA, MASK2FORMER, CLIP_L):
        store.prepare(asset, files[asset.name])


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Feed the detector small images, and let six prompts be all there are."""
    patch.setattr(Mask2Former, "shortest", SIDE)
    patch.setattr(Mask2Former, "longest", 107)
    six = replace(geneval.METADATA, sha256="")
    patch.setattr(geneval, "METADATA", six)
    patch.setattr(GenEvalPrompts, "assets", (six,))
    patch.setattr(GenEvalPrompts, "count", len(SCENES))


def prepare_tiny(folder: Path) -> dict[str, Path]:
    """Files and folders by the name of their asset."""
    metadata = folder / "evaluation_metadata.jsonl"
    metadata.write_text("".join(f"{json.dumps(scene)}\n" for scene in SCENES), encoding="utf-8")
    return {
        geneval.METADATA.name: metadata,
        MASK2FORMER.name: detector(folder / "detector"),
        CLIP_L.name: clip(folder / "clip"),
    }


def detector(folder: Path) -> Path:
    """A Mask2Former of 0.12M parameters that finds benches and cows more than anything else."""
    swin = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        # No narrower: its norms are of 32 groups.
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=10,
        id2label={index: OLD_NAMES.get(name, name) for index, name in enumerate(NAMES)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.Mask2FormerForUniversalSegmentation(config)
    seen = [NAMES.index(name) for name in SEEN]
    with torch.no_grad():
        network.class_predictor.weight[[*seen, -1]] *= 60
        network.class_predictor.bias.fill_(-20)[[*seen, -1]] = 0
        masks = network.model.transformer_module.decoder.mask_predictor.mask_embedder
        list(masks.parameters())[-2].mul_(40)
    network.save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """A CLIP of two narrow towers, with a tokenizer of bytes."""
    folder.mkdir()
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"intermediate_size": 48}
    config = transformers.CLIPConfig(
        vision_config={**tower, "image_size": CLIP_SIDE, "patch_size": 14},
        text_config={**tower, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.CLIPModel(config)
    with torch.no_grad():
        # So that neither all images nor all captions look alike.
        network.vision_model.embeddings.patch_embedding.weight.mul_(40)
        network.text_model.embeddings.token_embedding.weight.mul_(40)
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> transformers.CLIPTokenizer:
    """Each byte is a token, and each that ends a word another; then the two that frame a text."""
    # As OpenAI's: printable bytes stand for themselves, others for letters from 256 on.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    symbols = [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(rest))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
