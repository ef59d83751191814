"""HPS: OpenCLIP's network written out, its files, and recorded results of OpenCLIP itself."""

from __future__ import annotations

import pytest
import torch
from tiny_contrastive import made, open_clip_tensors, pictures, seen, tiny_store
from torch import Tensor
from torch.nn import functional

from nanogen.encoders.fit_square import pad_square
from nanogen.encoders.open_clip_vit_h import config_of, renamed
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.errors import ConfigError
from nanogen.metrics.hps import V2, V21, HpsV2, HpsV21
from nanogen.metrics.pick_score import TOKENIZER
from nanogen.store import find, prepare

pytest.importorskip("transformers")

TEXTS = ("a red cow", "two dogs", "x" * 90)
KINDS = {HpsV2: (V2, 4), HpsV21: (V21, 5)}
"""assets of the metrics, and the seeds of their stand-ins"""


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    with tiny_store(tmp_path_factory.mktemp("hps"), V2, V21, TOKENIZER) as files:
        yield files


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def blocks(x: Tensor, weights: dict[str, Tensor], tower: str, causal: bool) -> Tensor:
    """[L, D] through the residual blocks of OpenCLIP, two heads, one image or text alone."""
    places, width = x.shape
    for number in range(2):
        w = {
            name.removeprefix(f"{tower}.resblocks.{number}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"{tower}.resblocks.{number}.")
        }
        stacked = norm(x, w, "ln_1") @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]
        query, key, value = stacked.reshape(places, 3, 2, width // 2).permute(1, 2, 0, 3)
        logits = query @ key.mT / (width // 2) ** 0.5
        if causal:
            logits = logits + torch.full((places, places), -torch.inf).triu(1)
        found = (logits.softmax(-1) @ value).transpose(0, 1).reshape(places, width)
        x = x + found @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
        hidden = norm(x, w, "ln_2") @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + hidden @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    return x


def written_out(weights: dict[str, Tensor], fed: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of one image [3, 24, 24] and one text [77], by OpenCLIP's own names."""
    w = {name: tensor.half().double() for name, tensor in weights.items()}
    kernel = w["visual.conv1.weight"]
    patches = functional.conv2d(fed.double()[None], kernel, stride=8)[0].flatten(1).T
    x = torch.cat([w["visual.class_embedding"][None], patches]) + w["visual.positional_embedding"]
    x = blocks(norm(x, w, "visual.ln_pre"), w, "visual.transformer", causal=False)
    image = norm(x[0], w, "visual.ln_post") @ w["visual.proj"]
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    x = norm(blocks(x, w, "transformer", causal=True), w, "ln_final")
    return image, x[ids.argmax()] @ w["text_projection"]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_network_written_out(kind: type) -> None:
    weights = open_clip_tensors(KINDS[kind][1])
    metric, images = made(kind), pictures(3, 40, 30)
    mean, std = (torch.tensor(c)[:, None, None] for c in (CLIP_MEAN, CLIP_STD))
    fed = (pad_square(images, 24) - mean) / std
    ids = metric.tokens(TEXTS).ids
    pairs = [written_out(weights, fed[i], ids[i]) for i in range(3)]
    expected = torch.stack([functional.cosine_similarity(i, t, dim=0) for i, t in pairs])
    found = metric.judge(images, TEXTS)
    torch.testing.assert_close(found[:, 0], expected, atol=2e-6, rtol=0)
    assert found[:, 1].tolist() == [0, 0, 1]


def test_scores_are_those_recorded_of_open_clip() -> None:
    """open_clip 3.3.0, CLIP(embed_dim=16, ...) with these weights, on the same tokens and pixels as
    prepared by hpsv2 1.2.0's transform under torchvision 0.28.0.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 40, 40), generator=draw, dtype=torch.uint8)
    found = made(HpsV21).judge(images, TEXTS)[:, 0]
    expected = torch.tensor(RECORDED, dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


RECORDED = [-0.45666012167930603, -0.49096113443374634, -0.20847688615322113]


def test_the_shape_is_that_of_vit_h() -> None:
    """On the meta device: sizes of ViT-H/14 (open_clip/model_configs/ViT-H-14.json)."""
    shapes = {
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.positional_embedding": (257, 1280),
        "token_embedding.weight": (49408, 1024),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "visual.transformer.resblocks.0.mlp.c_fc.bias": (5120,),
        "transformer.resblocks.0.mlp.c_fc.bias": (4096,),
    }
    shapes |= {f"visual.transformer.resblocks.{n}.ln_1.bias": (1280,) for n in range(32)}
    shapes |= {f"transformer.resblocks.{n}.ln_1.bias": (1024,) for n in range(24)}
    config = config_of({name: torch.empty(s, device="meta") for name, s in shapes.items()})
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size, vision.patch_size, config.projection_dim) == (224, 14, 1024)
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (32, 16)
    assert (text.num_hidden_layers, text.num_attention_heads) == (24, 16)
    assert (vision.intermediate_size, text.intermediate_size) == (5120, 4096)
    assert vision.hidden_act == text.hidden_act == "gelu" and text.eos_token_id == 49407


def test_versions_and_filters_differ_and_say_so() -> None:
    images = pictures(3, 96, 96)
    found = {
        metric.title: seen(metric, images, TEXTS)[metric.name]
        for metric in (made(HpsV2), made(HpsV21), made(HpsV21, {"antialias": "no"}))
    }
    assert list(found) == ["hps-v2", "hps-v2.1", "hps-v2.1[antialias=no]"]
    assert len({round(score.value, 4) for score in found.values()}) == 3
    for asset, name in ((V2, "hps-v2"), (V21, "hps-v2.1")):
        facts = found[name].facts
        assert facts["model_sha256"] == find(asset).sha256 and facts["antialias"] == "yes"
        assert facts["prompts_cut"] == pytest.approx(1 / 3)


def test_prompts_are_cleaned_as_by_open_clip() -> None:
    metric = made(HpsV2)
    ids = metric.tokens(["it\u2019s a cow &amp; a dog", "it's a cow & a dog"]).ids
    assert torch.equal(ids[0], ids[1])


def test_unknown_names_are_kept_to_be_reported() -> None:
    tensors = open_clip_tensors(4) | {"head.weight": torch.zeros(1)}
    assert "head.weight" in renamed(tensors) and len(renamed(tensors)) == len(tensors) + 16


@pytest.mark.parametrize("damage", ["visual.proj", "visual.conv1.weight", "more"])
def test_a_file_of_something_else_is_refused(tmp_path, monkeypatch, files, damage: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors = open_clip_tensors(4)
    if damage == "more":
        tensors["region_predictor.weight"] = torch.zeros(1)
    else:
        del tensors[damage]
    torch.save({"state_dict": tensors}, tmp_path / "other.pt")
    prepare(V2, tmp_path / "other.pt")
    prepare(TOKENIZER, files[TOKENIZER.name])
    words = {
        "visual.proj": "it lacks visual_projection",
        "visual.conv1.weight": "no weights of OpenCLIP's ViT-H/14",
        "more": "unknown region_predictor",
    }
    with pytest.raises(ConfigError, match=words[damage]):
        made(HpsV2).judge(pictures(3), TEXTS)
