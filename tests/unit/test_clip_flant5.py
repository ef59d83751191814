"""CLIP-FlanT5 against the published algorithm, written out literally over the same weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vqascore import (
    T5,
    TOWER,
    VOCABULARY,
    clip_flant5_tensors,
    write_clip_flant5,
    write_t5_tokenizer,
    write_vision_config,
)
from tokenizers import Tokenizer
from torch import Tensor

from nanogen.encoders import clip_flant5
from nanogen.encoders.clip_flant5 import ClipFlanT5, Files, Words, prepared, squared
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.errors import ConfigError

CPU = torch.device("cpu")
SIDE = 56
TEXTS = ("a cat", "three dogs, but no cow, in front of a barn", 'a sign that says "{}"')


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("clip-flant5")
    return Files(
        write_clip_flant5(folder / "model", seed=3, side=SIDE),
        write_t5_tokenizer(folder / "t5"),
        write_vision_config(folder / "clip", side=SIDE),
    )


@pytest.fixture(scope="module")
def model(files: Files) -> ClipFlanT5:
    return ClipFlanT5(files, CPU, torch.float32)


def images(count: int, height: int = 40, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def by_pillow(image: Tensor, side: int) -> Tensor:
    """uint8 [3, H, W] -> float32 [3, side, side], as the published code prepares one image."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    width, height = picture.size
    longer = max(width, height)
    square = Image.new("RGB", (longer, longer), tuple(int(255 * value) for value in CLIP_MEAN))
    square.paste(picture, ((longer - width) // 2, (longer - height) // 2))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)) / 255
    return torch.tensor((pixels - CLIP_MEAN) / CLIP_STD, dtype=torch.float32).permute(2, 0, 1)


def literal(tensors: dict[str, Tensor], tokenizer: Path, image: Tensor, text: str) -> Tensor:
    """Log-probabilities [2] of the answer, for one image: whole modules, text split at it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    config = T5Config(**T5, tie_word_embeddings=False)
    config.tie_word_embeddings = config.scale_decoder_outputs = False
    config.decoder_start_token_id = config.pad_token_id = 0
    t5 = T5ForConditionalGeneration(config).eval()
    t5.load_state_dict({name: tensors[name] for name in t5.state_dict()})
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER, image_size=SIDE)).eval()
    prefix = "vision_tower.vision_tower.vision_model."
    inner = {name: name.removeprefix("vision_model.") for name in tower.state_dict()}
    tower.load_state_dict({name: tensors[prefix + short] for name, short in inner.items()})

    words = Tokenizer.from_file(str(tokenizer))
    question = f'Does this figure show "{text}"? Please answer yes or no.'
    chat = f"{clip_flant5.SYSTEM} USER: <image>\n{question} ASSISTANT: "
    before, after = (words.encode(piece).ids for piece in chat.split("<image>"))
    labels = torch.tensor([words.encode("Yes").ids])

    states = tower(by_pillow(image, SIDE)[None], output_hidden_states=True).hidden_states
    assert len(states) == TOWER["num_hidden_layers"] + 1
    seen = states[TOWER["num_hidden_layers"] - 1][0, 1:]
    first = seen @ tensors["mm_projector.0.weight"].T + tensors["mm_projector.0.bias"]
    gelu = first * 0.5 * (1 + torch.erf(first / math.sqrt(2)))
    seen = gelu @ tensors["mm_projector.2.weight"].T + tensors["mm_projector.2.bias"]
    table = tensors["shared.weight"]
    given = torch.cat([table[before], seen, table[after]])[None]
    logits = t5(inputs_embeds=given, labels=labels).logits[0, :, : words.get_vocab_size()]
    likely = logits - logits.exp().sum(dim=1, keepdim=True).log()
    return likely[[0, 1], labels[0]]


@torch.no_grad()
def test_score_is_that_of_the_literal_algorithm(files: Files, model: ClipFlanT5) -> None:
    shown = images(3)
    found = model(shown, TEXTS)
    tensors = clip_flant5_tensors(3, SIDE)
    for row, image, text in zip(found, shown, TEXTS, strict=True):
        expected = literal(tensors, files.tokenizer, image, text)
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=0)
        score = math.sqrt(math.exp(expected[0]) * math.exp(expected[1]))
        assert row.mean().exp().item() == pytest.approx(score, abs=1e-6)
        assert 0 < score < 1
    assert len({round(value, 4) for value in found[:, 0].tolist()}) == 3


def test_a_padded_batch_is_as_each_alone(model: ClipFlanT5) -> None:
    shown = images(3)
    together = model(shown, TEXTS)
    alone = torch.cat([model(shown[i : i + 1], TEXTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)
    torch.testing.assert_close(together.exp(), alone.exp(), rtol=0, atol=1e-6)


def test_system_text() -> None:
    digest = hashlib.sha256(clip_flant5.SYSTEM.encode()).hexdigest()
    assert digest == "1fa69e2371b762d1882b0bd98d284f312a36c27add732016e12e52586f98a9f5"
    assert len(clip_flant5.SYSTEM) == 154


def test_prompt_has_an_end_on_each_side_of_the_image(files: Files) -> None:
    words = Words(files.tokenizer)
    prompt = words.prompt("a cat")
    ends = [
        [at for at, token in enumerate(part) if token == 1]
        for part in (prompt.before, prompt.after)
    ]
    assert ends == [[len(prompt.before) - 1], [len(prompt.after) - 1]]
    spelt = [words.tokenizer.decode(list(part)) for part in (prompt.before, prompt.after)]
    assert spelt[0] == f"{clip_flant5.SYSTEM} USER:"
    assert spelt[1] == 'Does this figure show "a cat"? Please answer yes or no. ASSISTANT:'
    assert words.answer == (words.tokenizer.token_to_id("▁Yes"), 1)


def test_what_a_tokenizer_says_of_lengths_is_for_other_uses(files: Files, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(files.tokenizer))
    tokenizer.enable_truncation(40)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a cow " * 30
    assert Words(tmp_path / "tokenizer.json").prompt(text) == Words(files.tokenizer).prompt(text)


def test_prompt_is_cut_where_2048_tokens_end(files: Files) -> None:
    words = Words(files.tokenizer)
    long, longer = words.prompt("x" * 3000), words.prompt("x" * 4000)
    assert len(long.before) + 1 + len(long.after) == 2048
    assert long == longer
    assert 1 not in long.after


def test_lengths_with_the_published_tower(tmp_path: Path) -> None:
    """336 px in patches of 14 are 576 tokens, between the two parts of the text."""
    files = Files(
        write_clip_flant5(tmp_path / "model", side=336),
        write_t5_tokenizer(tmp_path),
        write_vision_config(tmp_path / "clip", side=336),
    )
    model = ClipFlanT5(files, CPU, torch.float32)
    given: list[Tensor] = []
    model.network.t5.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: given.extend(
            [kwargs["inputs_embeds"], kwargs["attention_mask"]]
        ),
        with_kwargs=True,
    )
    model(images(2, 30, 30), TEXTS[:2])
    embedded, mask = given
    prompts = [model.words.prompt(text) for text in TEXTS[:2]]
    lengths = [len(prompt.before) + 576 + len(prompt.after) for prompt in prompts]
    assert embedded.shape == (2, max(lengths), T5["d_model"])
    assert mask.sum(dim=1).tolist() == lengths
    table = model.network.t5.shared.weight
    for row, prompt, length in zip(embedded, prompts, lengths, strict=True):
        start = len(prompt.before)
        assert torch.equal(row[:start], table[list(prompt.before)])
        assert torch.equal(row[start + 576 : length], table[list(prompt.after)])
        assert not row[length:].any()
    assert bool(mask[0, : lengths[0]].all())


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (5, 5), (6, 7)])
def test_squares(height: int, width: int) -> None:
    shown = images(2, height, width)
    found = squared(shown)
    longer = max(height, width)
    assert found.shape == (2, 3, longer, longer)
    top, left = (longer - height) // 2, (longer - width) // 2
    assert torch.equal(found[..., top : top + height, left : left + width], shown)
    rest = torch.ones(longer, longer, dtype=torch.bool)
    rest[top : top + height, left : left + width] = False
    assert (found[..., rest] == torch.tensor([122, 116, 104])[:, None]).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 500), (401, 380), (336, 336)])
def test_images_are_prepared_as_pillow_does(height: int, width: int) -> None:
    shown = images(1, height, width)
    torch.testing.assert_close(prepared(shown, 336)[0], by_pillow(shown[0], 336), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "shards"), [("bin", 3), ("safetensors", 1), ("safetensors", 2)])
def test_any_layout_of_the_weights(
    files: Files, model: ClipFlanT5, tmp_path: Path, kind: str, shards: int
) -> None:
    folder = write_clip_flant5(tmp_path, seed=3, side=SIDE, kind=kind, shards=shards)
    other = ClipFlanT5(dataclasses.replace(files, checkpoint=folder), CPU, torch.float32)
    shown = images(1)
    assert torch.equal(other(shown, TEXTS[:1]), model(shown, TEXTS[:1]))


def test_the_head_is_its_own(model: ClipFlanT5) -> None:
    tensors = clip_flant5_tensors(3, SIDE)
    t5 = model.network.t5
    assert torch.equal(t5.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(t5.shared.weight, tensors["shared.weight"])
    assert not torch.equal(t5.lm_head.weight, t5.shared.weight)
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert t5.decoder.embed_tokens.weight is t5.shared.weight
    assert t5.config.tie_word_embeddings is False
    assert t5.lm_head.out_features == VOCABULARY > model.words.count
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not model.network.train().training


def test_bf16_is_near_fp32(files: Files, model: ClipFlanT5) -> None:
    half = ClipFlanT5(files, CPU, torch.bfloat16)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    shown = images(3)
    found = half(shown, TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model(shown, TEXTS), rtol=0, atol=0.1)


def test_files_of_another_model_are_refused(files: Files, tmp_path: Path) -> None:
    def opened(**changed: Path) -> None:
        ClipFlanT5(dataclasses.replace(files, **changed), CPU, torch.float32)

    tensors = clip_flant5_tensors(3, SIDE)
    folder = write_clip_flant5(tmp_path / "headless", seed=3, side=SIDE)
    del tensors["lm_head.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="lacks t5.lm_head.weight"):
        opened(checkpoint=folder)
    tensors["lm_head.weight"] = torch.zeros(3, 4)
    torch.save({**tensors, "mm_projector.4.weight": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"unknown mm_projector.4.weight.*lm_head.*\[3, 4\], not"):
        opened(checkpoint=folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match="holds neither"):
        opened(checkpoint=folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_select_layer": -1}))
    with pytest.raises(ConfigError, match="mm_vision_select_layer=-1"):
        opened(checkpoint=folder)
    with pytest.raises(ConfigError, match="no config"):
        opened(vision=tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="'Yes' is .* not one token and the end"):
        opened(tokenizer=write_t5_tokenizer(tmp_path / "no-yes", words=("▁show",)))
    with pytest.raises(ConfigError, match="no tokenizer"):
        opened(tokenizer=tmp_path / "nothing.json")


def test_a_missing_shard_is_named(files: Files, tmp_path: Path) -> None:
    folder = write_clip_flant5(tmp_path, seed=3, side=SIDE, shards=3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ConfigError, match="lacks pytorch_model-00002-of-00003.bin"):
        ClipFlanT5(dataclasses.replace(files, checkpoint=folder), CPU, torch.float32)
    (folder / "pytorch_model.bin.index.json").write_text("[]")
    with pytest.raises(ConfigError, match="no index of weights"):
        ClipFlanT5(dataclasses.replace(files, checkpoint=folder), CPU, torch.float32)
