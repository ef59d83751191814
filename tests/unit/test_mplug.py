"""mPLUG in its published layout, against BERT and CLIP of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dpg import BERT, CONFIG, VOCABULARY, mplug_weights, write_mplug, write_vocabulary
from torch import Tensor

from nanogen.encoders.mplug import Mplug
from nanogen.encoders.wordpiece import WordPiece
from nanogen.errors import ConfigError

CPU = torch.device("cpu")
SHORT, LONG = "is it red?", "is the thing on the box, or is this a painting of the box?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mplug(tmp_path_factory.mktemp("mplug"))


@pytest.fixture(scope="module")
def judge(folder: Path) -> Mplug:
    return Mplug(folder, CPU)


def noise(seed: int, height: int = 40, width: int = 52) -> Tensor:
    """An image, of one of four brightnesses."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return image // (1 + seed % 4)


def taken(name: str) -> dict[str, Tensor]:
    """The published weights under `name`, without it."""
    whole = f"model.{name}"
    found = mplug_weights()
    return {k.removeprefix(whole): v.clone() for k, v in found.items() if k.startswith(whole)}


def bert_config(depth: int, **more: object):
    transformers = pytest.importorskip("transformers")
    return transformers.BertConfig(
        vocab_size=BERT["vocab_size"],
        hidden_size=BERT["hidden_size"],
        num_hidden_layers=depth,
        num_attention_heads=BERT["num_attention_heads"],
        intermediate_size=BERT["intermediate_size"],
        max_position_embeddings=BERT["max_position_embeddings"],
        layer_norm_eps=BERT["layer_norm_eps"],
        attn_implementation="eager",
        **more,
    )


@torch.no_grad()
def test_tower_is_that_of_clip(judge: Mplug) -> None:
    transformers = pytest.importorskip("transformers")
    width = CONFIG["clip_vision_width"]
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=CONFIG["clip_vision_layers"],
        num_attention_heads=1,
        image_size=CONFIG["image_res"],
        patch_size=CONFIG["clip_vision_patch_size"],
        hidden_act="quick_gelu",
    )
    network = transformers.CLIPVisionModel(config).eval()
    found = taken("visual_encoder.visual.")
    named = {
        "embeddings.class_embedding": found["class_embedding"],
        "embeddings.patch_embedding.weight": found["conv1.weight"],
        "embeddings.position_embedding.weight": found["positional_embedding"],
        "pre_layrnorm.weight": found["ln_pre.weight"],
        "pre_layrnorm.bias": found["ln_pre.bias"],
        "post_layernorm.weight": found["ln_post.weight"],
        "post_layernorm.bias": found["ln_post.bias"],
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1"}
    parts |= {"mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}
    for i in range(CONFIG["clip_vision_layers"]):
        old, new = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for before, after in parts.items():
                named[f"{new}{after}.{kind}"] = found[f"{old}{before}.{kind}"]
            thirds = found[f"{old}attn.in_proj_{kind}"].chunk(3)
            for letter, third in zip("qkv", thirds, strict=True):
                named[f"{new}self_attn.{letter}_proj.{kind}"] = third
    tower = getattr(network, "vision_model", network)
    problems = tower.load_state_dict(named, strict=False)
    assert not problems.unexpected_keys
    assert all("position_ids" in key for key in problems.missing_keys)
    fed = judge.prepared(noise(0)[None])
    raw = network(pixel_values=fed).last_hidden_state
    expected = torch.nn.functional.layer_norm(
        raw, (width,), found["ln_post.weight"], found["ln_post.bias"], 1e-5
    )
    tower = judge.network.visual_encoder["visual"]
    torch.testing.assert_close(tower(fed), expected, rtol=1e-4, atol=1e-5)
    narrowed = torch.nn.functional.layer_norm(
        expected @ taken("visn_fc.")["weight"].T + taken("visn_fc.")["bias"],
        (BERT["hidden_size"],),
        *taken("visn_layer_norm.").values(),
        eps=1e-12,
    )
    torch.testing.assert_close(judge.network.see(fed), narrowed, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_questions_are_read_as_by_bert(judge: Mplug) -> None:
    transformers = pytest.importorskip("transformers")
    config = bert_config(BERT["text_encoder_layers"])
    network = transformers.BertModel(config, add_pooling_layer=False).eval()
    problems = network.load_state_dict(taken("text_encoder."), strict=False)
    assert not problems.missing_keys
    tokens = judge.words.encode([SHORT, LONG], 35)
    assert not tokens.mask.all()
    expected = network(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    found = judge.network.text_encoder(tokens)
    torch.testing.assert_close(found[tokens.mask], expected[tokens.mask], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_answers_are_written_as_by_bert(judge: Mplug) -> None:
    transformers = pytest.importorskip("transformers")
    config = bert_config(BERT["text_decode_layers"], is_decoder=True, add_cross_attention=True)
    network = transformers.BertLMHeadModel(config).eval()
    weights = taken("text_decoder.")
    # transformers ties the words of the two ends; these files need not.
    network.cls.predictions.decoder.weight = torch.nn.Parameter(torch.zeros(()))
    network.cls.predictions.decoder = torch.nn.Linear(32, BERT["vocab_size"])
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
    problems = network.load_state_dict(weights, strict=False)
    assert not problems.missing_keys
    seen = judge.network.see(judge.prepared(noise(1)[None]))
    tokens = judge.words.encode([SHORT, LONG], 35)
    words = judge.network.text_encoder(tokens)
    fused = judge.network.fusion_encoder(seen, words, tokens.mask)
    beams = torch.randint(1, BERT["vocab_size"], (2, 3, 4), generator=torch.manual_seed(0))
    found = judge.network.text_decoder(beams, judge.network.text_decoder.recall(fused))
    image = fused.image.expand(2, -1, -1)
    context = torch.cat([image, fused.words], dim=1)
    shown = torch.cat([torch.ones(image.shape[:2]), tokens.mask.float()], dim=1)
    expected = network(
        input_ids=beams.flatten(0, 1),
        encoder_hidden_states=context.repeat_interleave(3, 0),
        encoder_attention_mask=shown.repeat_interleave(3, 0),
    ).logits[:, -1]
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-3)


def literal_attention(weights: dict[str, Tensor], x: Tensor, context: Tensor, hidden: Tensor):
    """One question, one head after another; -10000 is added to what is hidden, as published."""

    def linear(name: str, states: Tensor) -> Tensor:
        return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    heads, width = BERT["num_attention_heads"], BERT["hidden_size"]
    size = width // heads
    query, key = linear("self.query", x), linear("self.key", context)
    value = linear("self.value", context)
    found = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size) + hidden * -10000.0
        found.append(scores.softmax(-1) @ value[:, part])
    return literal_norm(weights, "output", linear("output.dense", torch.cat(found, 1)) + x)


def literal_norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    scaled = (x - mean) / (variance + BERT["layer_norm_eps"]).sqrt()
    return scaled * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]


def literal_fusion(image: Tensor, words: Tensor, mask: Tensor, stride: int):
    """Fusion of one question [L, D] with one image [N, D], after the published description."""
    slots, used = BERT["num_hidden_layers"], BERT["fusion_layers"]
    nothing = torch.zeros(len(image))
    hidden = (~mask).float()
    for place, number in enumerate(range(slots - used, slots)):
        weights = taken(f"fusion_encoder.encoder.layer.{number}.")
        own = {k[len("attention.") :]: v for k, v in weights.items() if k.startswith("attention.")}
        if place and place % stride == 0:
            both = torch.cat([image, words])
            x = literal_attention(own, both, both, torch.cat([nothing, hidden]))
        else:
            across = {
                k[len("crossattention.") :]: v
                for k, v in weights.items()
                if k.startswith("crossattention.")
            }
            x = literal_attention(own, words, words, hidden)
            x = literal_attention(across, x, image, nothing)
        inner = x @ weights["intermediate.dense.weight"].T + weights["intermediate.dense.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        outer = inner @ weights["output.dense.weight"].T + weights["output.dense.bias"]
        x = literal_norm(weights, "output", outer + x)
        if len(x) > len(words):
            image, words = image + x[: len(image)], x[len(image) :]
        else:
            words = x
    return image, words


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 100])
def test_fusion_is_that_of_slow_loops(tmp_path: Path, stride: int) -> None:
    judge = Mplug(write_mplug(tmp_path, stride), CPU)
    seen = judge.network.see(judge.prepared(noise(2)[None]))
    tokens = judge.words.encode([SHORT, LONG], 35)
    words = judge.network.text_encoder(tokens)
    fused = judge.network.fusion_encoder(seen, words, tokens.mask)
    # One image serves all questions as long as no layer mixes them into it.
    assert len(fused.image) == (1 if stride == 100 else 2)
    for i in range(2):
        image, expected = literal_fusion(seen[0], words[i], tokens.mask[i], stride)
        shown = tokens.mask[i]
        torch.testing.assert_close(fused.words[i][shown], expected[shown], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused.image[i % len(fused.image)], image, rtol=1e-4, atol=1e-4)


def test_answers_are_yes_and_no(judge: Mplug) -> None:
    found = [judge.answers(noise(i), [SHORT, LONG]) for i in range(8)]
    assert {answer for pair in found for answer in pair} == {"yes", "no"}
    assert judge.says_yes(noise(0), [SHORT, LONG]) == [a == "yes" for a in found[0]]


@torch.no_grad()
def test_yes_is_yes_to_the_letter(judge: Mplug, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["yes", "yes.", "yes it is", "no", "yeses", ""]
    monkeypatch.setattr(judge, "answers", lambda image, questions: said)
    found = judge.says_yes(noise(0), [SHORT] * len(said))
    assert found == [True, False, False, False, False, False]


def test_padding_changes_nothing(judge: Mplug) -> None:
    """A question beside a longer one, and alone."""
    seen = judge.network.see(judge.prepared(noise(3)[None]))

    def logits(questions: list[str]) -> Tensor:
        recalled = judge.network.read(seen, judge.words.encode(questions, 35))
        starts = torch.full((len(questions), 1, 1), judge.words.start)
        return judge.network.text_decoder(starts, recalled)

    both = logits([SHORT, LONG])
    torch.testing.assert_close(both[:1], logits([SHORT]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(both[1:], logits([LONG]), rtol=1e-5, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.01, "the questions differ"


def test_chunks_change_nothing(folder: Path, judge: Mplug) -> None:
    questions = [SHORT, LONG, "is there a thing?", "no?", "yes?"]
    single = Mplug(folder, CPU, chunk=1)
    for i in range(4):
        expected = [judge.answers(noise(i), [question])[0] for question in questions]
        assert judge.answers(noise(i), questions) == expected
        assert single.answers(noise(i), questions) == expected


def test_half_precision(folder: Path, judge: Mplug) -> None:
    half = Mplug(folder, CPU, precision="bf16")
    with torch.no_grad(), half._autocast():
        found = half.network.see(half.prepared(noise(0)[None]))
    exact = judge.network.see(judge.prepared(noise(0)[None]))
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.1)
    assert set(half.answers(noise(0), [SHORT, LONG])) <= {"yes", "no"}


def test_images_are_squashed_by_pillow(judge: Mplug) -> None:
    image = noise(4, 30, 71)
    small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (28, 28), Image.Resampling.BICUBIC
    )
    values = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    torch.testing.assert_close(judge.prepared(image[None])[0], (values - mean) / std)


def test_words_are_those_of_bert(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_vocabulary(tmp_path)
    words = WordPiece(tmp_path / "vocab.txt")
    usual = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    texts = ["Is there a Thing?", "Ärger: 3,5 boxes", "", "no " * 60, "yes-no 中"]
    for limit in (35, 25, 512):
        expected = [usual(text, truncation=True, max_length=limit).input_ids for text in texts]
        tokens = words.encode(texts, limit)
        found = [row[m].tolist() for row, m in zip(tokens.ids, tokens.mask, strict=True)]
        assert found == expected
        assert all(len(row) <= limit and row[-1] == words.end for row in found)
    assert words.decode(usual("Yes. no").input_ids + [0, 0]) == "yes. no"
    assert words.pieces("yes") == [VOCABULARY.index("yes")]


@pytest.mark.parametrize("wrappers", [(), ("module",), ("model", "module")])
def test_wrapped_files(tmp_path: Path, judge: Mplug, wrappers: tuple[str, ...]) -> None:
    folder = write_mplug(tmp_path)
    content: dict = {k.removeprefix("model."): v for k, v in mplug_weights().items()}
    for wrapper in reversed(wrappers):
        content = {wrapper: content}
    torch.save(content, folder / "pytorch_model.bin")
    found = Mplug(folder, CPU).network.state_dict()
    for name, tensor in judge.network.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_defaults_are_the_published_ones(tmp_path: Path) -> None:
    folder = write_mplug(tmp_path)
    (folder / "config.yaml").write_text("task: visual-question-answering\n")
    with pytest.raises(ConfigError, match=r"\[1297, 1024\]|lacks visual_encoder"):
        Mplug(folder, CPU)


def spoiled(folder: Path, what: str) -> None:
    weights = mplug_weights()
    bert = json.loads((folder / "config_bert.json").read_text())
    if what == "weight":
        del weights["model.text_decoder.bert.encoder.layer.1.crossattention.self.key.bias"]
    elif what == "more":
        weights["model.text_encoder.pooler.dense.weight"] = torch.zeros(2)
    elif what == "activation":
        bert["hidden_act"] = "relu"
    elif what == "field":
        del bert["fusion_layers"]
    elif what == "words":
        write_vocabulary(folder, [*VOCABULARY, "more"])
    elif what == "config":
        (folder / "config.yaml").write_text("- no\n- fields\n")
    torch.save({"model": weights}, folder / "pytorch_model.bin")
    (folder / "config_bert.json").write_text(json.dumps(bert))
    if what == "vocabulary":
        (folder / "vocab.txt").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weight", "lacks text_decoder.bert.encoder.layer.1.crossattention.self.key.bias"),
        ("more", "unknown text_encoder.pooler"),
        ("activation", "only gelu"),
        ("field", "lacks the field 'fusion_layers'"),
        ("words", "entries, the network knows"),
        ("config", "holds no fields"),
        ("vocabulary", "no vocabulary of BERT"),
    ],
)
def test_broken_folders(tmp_path: Path, what: str, message: str) -> None:
    folder = write_mplug(tmp_path)
    spoiled(folder, what)
    with pytest.raises(ConfigError, match=message):
        Mplug(folder, CPU)
