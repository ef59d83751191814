"""ImageReward: BLIP of transformers, the network written out, and results of its package."""

from __future__ import annotations

import pytest
import torch
from tiny_contrastive import image_reward_tensors, made, pictures, seen, tiny_store
from torch import Tensor

from nanogen.encoders.fit_square import crop_square
from nanogen.encoders.image_reward_blip import MEAN, STD, open_image_reward
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.errors import ConfigError
from nanogen.metrics.image_reward import MODEL, TOKENIZER, ImageReward
from nanogen.store import find

TEXTS = ("a red cow", "two dogs", "x" * 90)
SEED = 6


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    with tiny_store(tmp_path_factory.mktemp("reward"), MODEL, TOKENIZER) as files:
        yield files


def fed(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(c)[:, None, None] for c in (CLIP_MEAN, CLIP_STD))
    return (crop_square(images, 24, torchvision=True) - mean) / std


def norm(x: Tensor, w: dict[str, Tensor], name: str, epsilon: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[L, D], [N, D], [N, D] -> [L, D], head after head."""
    heads = [
        (q @ k.T / 8).softmax(-1) @ v
        for q, k, v in zip(query.split(64, 1), key.split(64, 1), value.split(64, 1), strict=True)
    ]
    return torch.cat(heads, dim=1)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def written_out(image: Tensor, ids: list[int]) -> float:
    """One reward in float64, from the names in the file, of a text without any padding."""
    w = {name: tensor.double() for name, tensor in image_reward_tensors(SEED).items()}
    v, t = "blip.visual_encoder.", "blip.text_encoder."
    patches = image.double().unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).flatten(2)
    patches = patches.flatten(0, 1) @ w[f"{v}patch_embed.proj.weight"].flatten(1).T
    patches = patches + w[f"{v}patch_embed.proj.bias"]
    x = torch.cat([w[f"{v}cls_token"][0], patches]) + w[f"{v}pos_embed"][0]
    for number in range(2):
        b = f"{v}blocks.{number}."
        parts = linear(norm(x, w, f"{b}norm1", 1e-6), w, f"{b}attn.qkv").split(128, dim=1)
        x = x + linear(attend(*parts), w, f"{b}attn.proj")
        hidden = gelu(linear(norm(x, w, f"{b}norm2", 1e-6), w, f"{b}mlp.fc1"))
        x = x + linear(hidden, w, f"{b}mlp.fc2")
    looked = norm(x, w, f"{v}norm", 1e-6)
    x = w[f"{t}embeddings.word_embeddings.weight"][ids]
    x = x + w[f"{t}embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x, w, f"{t}embeddings.LayerNorm", 1e-12)
    for number in range(2):
        layer = f"{t}encoder.layer.{number}."
        for kind, source in (("attention", None), ("crossattention", looked)):
            a = f"{layer}{kind}."
            there = x if source is None else source
            key, value = (linear(there, w, f"{a}self.{n}") for n in ("key", "value"))
            found = attend(linear(x, w, f"{a}self.query"), key, value)
            x = norm(linear(found, w, f"{a}output.dense") + x, w, f"{a}output.LayerNorm", 1e-12)
        hidden = gelu(linear(x, w, f"{layer}intermediate.dense"))
        x = norm(
            linear(hidden, w, f"{layer}output.dense") + x, w, f"{layer}output.LayerNorm", 1e-12
        )
    judged = x[0]
    for place in (0, 2, 4, 6, 7):
        judged = linear(judged, w, f"mlp.layers.{place}")
    return (judged.item() - 0.16717362830052426) / 1.0333394966054072


def test_rewards_are_those_of_the_network_written_out() -> None:
    metric, images = made(ImageReward), pictures(3, 40, 53)
    tokens = metric.tokens(TEXTS)
    expected = [
        written_out(fed(images)[i], tokens.ids[i][tokens.real[i]].tolist()) for i in range(3)
    ]
    found = metric.judge(images, TEXTS)
    assert found.dtype == torch.float64 and torch.tensor(expected).std() > 0.05
    assert found[:, 0].tolist() == pytest.approx(expected, abs=5e-6)
    assert found[:, 1].tolist() == [0, 0, 1]


def test_rewards_are_those_recorded_of_the_package() -> None:
    """image-reward 1.5: its vit.py, med.py and MLP (timm 0.6.13, transformers 4.30.2) with these
    weights, on the same tokens and pixels.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 40, 40), generator=draw, dtype=torch.uint8)
    found = made(ImageReward).judge(images, TEXTS)[:, 0].tolist()
    recorded = [-1.1697641611099243, -0.24986808001995087, -0.4130176901817322]
    assert found == pytest.approx(recorded, abs=5e-6)


def test_states_are_those_of_blip_in_transformers(files) -> None:
    blip = pytest.importorskip("transformers.models.blip.modeling_blip")
    text = pytest.importorskip("transformers.models.blip.modeling_blip_text")
    configs = pytest.importorskip("transformers.models.blip.configuration_blip")
    network = open_image_reward(files[MODEL.name])
    weights = image_reward_tensors(SEED)
    vision = blip.BlipVisionModel(
        configs.BlipVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
            image_size=24, patch_size=8, layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    names = {
        "patch_embed.proj.": "embeddings.patch_embedding.",
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "blocks.": "encoder.layers.",
        "attn.qkv.": "self_attn.qkv.",
        "attn.proj.": "self_attn.projection.",
        "norm1.": "layer_norm1.",
        "norm2.": "layer_norm2.",
    }
    theirs = {}
    for name, tensor in weights.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            name = f"post_layernorm.{name[5:]}" if name.startswith("norm.") else name
            for old, new in names.items():
                name = name.replace(old, new)
            theirs[name] = tensor
    vision.load_state_dict(theirs)
    reader = text.BlipTextModel(
        configs.BlipTextConfig(
            vocab_size=len(weights["blip.text_encoder.embeddings.word_embeddings.weight"]),
            hidden_size=64, encoder_hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=1, max_position_embeddings=40, is_decoder=True,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    prefix = "blip.text_encoder."
    own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    reader.load_state_dict({n: t for n, t in own.items() if "position_ids" not in n})
    images = fed(pictures(3))
    tokens = made(ImageReward).tokens(TEXTS)
    with torch.no_grad():
        looked = vision(images).last_hidden_state
        read = reader(
            tokens.ids, tokens.real.long(), encoder_hidden_states=looked, is_decoder=False
        ).last_hidden_state
        ours = network.blip["visual_encoder"](images)
        torch.testing.assert_close(ours, looked, atol=2e-5, rtol=1e-5)
        found = network.blip["text_encoder"](tokens.ids, tokens.real, ours)
    torch.testing.assert_close(found[:, 0], read[:, 0], atol=2e-5, rtol=1e-5)


def test_what_judges_is_one_linear_map(files) -> None:
    judge = open_image_reward(files[MODEL.name]).mlp
    a, b, c = (judge(torch.full((1, 64), value)) for value in (0.0, 1.0, 2.0))
    torch.testing.assert_close(c - b, b - a)
    assert (MEAN, STD) == (0.16717362830052426, 1.0333394966054072)


def test_score_and_facts() -> None:
    metric, images = made(ImageReward), pictures(3)
    score = seen(metric, images, TEXTS, batch=1)["image-reward"]
    assert score.value == pytest.approx(metric.judge(images, TEXTS)[:, 0].mean().item(), abs=1e-5)
    assert score.facts["model"] == "THUDM/ImageReward"
    assert score.facts["model_sha256"] == find(MODEL).sha256
    assert score.facts["bert-base-uncased-tokenizer_sha256"] == find(TOKENIZER).sha256
    assert score.facts["prompts_cut"] == pytest.approx(1 / 3)
    metric.close()
    assert "network" not in vars(metric)


def test_half_precision_is_close() -> None:
    images = pictures(3)
    whole, half = made(ImageReward), made(ImageReward, precision="bf16")
    difference = half.judge(images, TEXTS) - whole.judge(images, TEXTS)
    assert 0 < difference.abs().max() < 0.05


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("blip.text_encoder.encoder.layer.1.crossattention.self.key.bias", "it lacks"),
        ("blip.visual_encoder.pos_embed", "not the file of ImageReward"),
        ("more", "unknown mlp.layers.9"),
        ("wider", r"mlp.layers.0.bias is \[1025\], not \[1024\]"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, damage: str, message: str) -> None:
    tensors = image_reward_tensors(SEED)
    if damage == "more":
        tensors["mlp.layers.9.weight"] = torch.zeros(1)
    elif damage == "wider":
        tensors["mlp.layers.0.bias"] = torch.zeros(1025)
    else:
        del tensors[damage]
    torch.save(tensors, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=message):
        open_image_reward(tmp_path / "other.pt")
