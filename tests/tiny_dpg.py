"""What DPG-Bench needs, tiny and random, in the published layouts.

    paths = prepare_tiny(tmp_path)         # asset name -> file or folder
    folder = write_mplug(tmp_path / "mplug", stride=2)
    folder = write_blip(tmp_path / "blip")
    file = write_questions(tmp_path / "dpg_bench.csv", ROWS)

The tiny mPLUG answers "yes" or "no", by what it sees and is asked, since the bias of its logits
favours those words, and the end behind them.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

COLUMNS = (
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
)
PROMPTS = 1065
"""as many as are published"""
ASKED = (
    ("0", "entity - whole (thing)", "is there a thing?"),
    ("1", "attribute - color (thing, red)", "is the thing red?"),
    ("1", "relation - spatial (thing, box, on)", "is the thing on the box?"),
    ("0", "global - (painting)", "is this a painting?"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ("yes", "no", "is", "the", "there", "this", "thing", "red", "box", "on", "painting")
VOCABULARY = (
    "[PAD]",
    *(f"[unused{i}]" for i in range(99)),
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *"?.,-'",
    *(f"##{letter}" for letter in LETTERS),
    *WORDS,
)
"""`[CLS]` and `[SEP]` have the numbers that they have in BERT, 101 and 102"""

CONFIG: dict[str, Any] = {
    "task": "visual-question-answering",
    "bert_config": "config_bert.json",
    "image_res": 28,
    "vision_width": 64,
    "clip_name": "ViT-L-14",
    "clip_vision_layers": 2,
    "clip_vision_width": 64,
    "clip_vision_patch_size": 14,
    "min_length": 1,
    "max_length": 10,
    "beam_size": 5,
}
BERT: dict[str, Any] = {
    "architectures": ["BertForMaskedLM"],
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY),
    "encoder_width": 32,
    "text_encoder_layers": 2,
    "fusion_layers": 3,
    "text_decode_layers": 2,
    "stride_layer": 2,
}


def prepare_tiny(folder: Path) -> dict[str, Path]:
    """Everything that `dpg` and `dpg-blip` need: asset name -> file or folder."""
    return {
        "dpg-bench": write_questions(folder / "dpg_bench.csv", tiny_rows()),
        "mplug-vqa-large": write_mplug(folder / "mplug"),
        "blip-vqa-capfilt-large": write_blip(folder / "blip"),
    }


Row = tuple[str, str, int, str, str, str]
"""item, text, number, dependency, tuple, question"""


def tiny_rows() -> list[Row]:
    """One to four questions about each of 1,065 prompts, four about the first."""
    return [
        (f"tiny{i}", f"thing number {i} on a box", number, *asked)
        for i in range(PROMPTS)
        for number, asked in enumerate(ASKED[: 4 - i % 4], 1)
    ]


def write_questions(file: Path, rows: Iterable[Row]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for item, text, number, dependency, kind, question in rows:
            broad, _, detailed = kind.partition("(")[0].partition("-")
            about = (broad.strip(), detailed.strip())
            writer.writerow((item, text, "", number, dependency, *about, kind, question))
    return file


def write_vocabulary(folder: Path, words: Sequence[str] = VOCABULARY) -> None:
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def write_mplug(
    folder: Path, stride: int = 2, seed: int = 1, config: dict[str, Any] | None = None
) -> Path:
    """A folder as mPLUG is published, with all that its file holds beside the weights in use."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {})), encoding="utf-8")
    bert = BERT | {"stride_layer": stride}
    (folder / "config_bert.json").write_text(json.dumps(bert), encoding="utf-8")
    write_vocabulary(folder)
    torch.save({"model": mplug_weights(seed)}, folder / "pytorch_model.bin")
    return folder


def mplug_weights(seed: int = 1) -> dict[str, Tensor]:
    """The state dict of a tiny mPLUG, name by name as the published definition makes them."""
    width, inner, words = BERT["hidden_size"], BERT["intermediate_size"], BERT["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= _tower("visual_encoder.visual.")
    shapes |= {
        "visual_encoder.positional_embedding": (77, 16),
        "visual_encoder.text_projection": (16, 16),
        "visual_encoder.logit_scale": (),
        "visual_encoder.token_embedding.weight": (20, 16),
        **_norm("visual_encoder.ln_final.", 16),
        "visual_encoder.transformer.resblocks.0.attn.in_proj_weight": (48, 16),
        **_linear("visn_fc.", 64, width),
        **_norm("visn_layer_norm.", width),
        **_bert("text_encoder.", BERT["text_encoder_layers"], across=False),
        **_layers("fusion_encoder.encoder.layer.", BERT["num_hidden_layers"], across=True),
        **_bert("text_decoder.bert.", BERT["text_decode_layers"], across=True),
    }
    head = "text_decoder.cls.predictions."
    shapes |= _linear(f"{head}transform.dense.", width, width)
    shapes |= _norm(f"{head}transform.LayerNorm.", width)
    shapes |= {f"{head}decoder.weight": (words, width), f"{head}bias": (words,)}
    assert inner != width
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"model.{name}": torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }
    for name, weight in weights.items():
        if re.search(r"(LayerNorm|layer_norm|ln_\w+)\.weight$", name):
            weight += 1
    bias = weights[f"model.{head}bias"]
    bias.zero_()
    for word, favour in (("yes", 30.0), ("no", 30.0), ("[SEP]", 60.0)):
        bias[VOCABULARY.index(word)] = favour
    weights[f"model.{head}decoder.bias"] = bias
    places = torch.arange(BERT["max_position_embeddings"])[None]
    for owner in ("text_encoder.", "text_decoder.bert."):
        weights[f"model.{owner}embeddings.position_ids"] = places
    averaged = {
        name.replace(owner, f"{owner}_m", 1): tensor.clone()
        for name, tensor in weights.items()
        for owner in OWNERS
        if name.startswith(f"model.{owner}.")
    }
    return weights | averaged


OWNERS = (
    "visual_encoder",
    "text_encoder",
    "fusion_encoder",
    "text_decoder",
    "visn_fc",
    "visn_layer_norm",
)
Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}weight": (width,), f"{name}bias": (width,)}


def _tower(name: str) -> Shapes:
    width, patch = CONFIG["clip_vision_width"], CONFIG["clip_vision_patch_size"]
    tokens = (CONFIG["image_res"] // patch) ** 2 + 1
    shapes: Shapes = {
        f"{name}class_embedding": (width,),
        f"{name}positional_embedding": (tokens, width),
        f"{name}proj": (width, 16),
        f"{name}conv1.weight": (width, 3, patch, patch),
        **_norm(f"{name}ln_pre.", width),
        **_norm(f"{name}ln_post.", width),
    }
    for i in range(CONFIG["clip_vision_layers"]):
        block = f"{name}transformer.resblocks.{i}."
        shapes |= {
            f"{block}attn.in_proj_weight": (3 * width, width),
            f"{block}attn.in_proj_bias": (3 * width,),
            **_linear(f"{block}attn.out_proj.", width, width),
            **_norm(f"{block}ln_1.", width),
            **_linear(f"{block}mlp.c_fc.", width, 4 * width),
            **_linear(f"{block}mlp.c_proj.", 4 * width, width),
            **_norm(f"{block}ln_2.", width),
        }
    return shapes


def _bert(name: str, depth: int, *, across: bool) -> Shapes:
    width = BERT["hidden_size"]
    return {
        f"{name}embeddings.word_embeddings.weight": (BERT["vocab_size"], width),
        f"{name}embeddings.position_embeddings.weight": (BERT["max_position_embeddings"], width),
        f"{name}embeddings.token_type_embeddings.weight": (BERT["type_vocab_size"], width),
        **_norm(f"{name}embeddings.LayerNorm.", width),
        **_layers(f"{name}encoder.layer.", depth, across=across),
    }


def _layers(name: str, depth: int, *, across: bool) -> Shapes:
    width, inner = BERT["hidden_size"], BERT["intermediate_size"]
    shapes: Shapes = {}
    for i in range(depth):
        for attention in ("attention", *(["crossattention"] if across else [])):
            for part in ("query", "key", "value"):
                shapes |= _linear(f"{name}{i}.{attention}.self.{part}.", width, width)
            shapes |= _linear(f"{name}{i}.{attention}.output.dense.", width, width)
            shapes |= _norm(f"{name}{i}.{attention}.output.LayerNorm.", width)
        shapes |= _linear(f"{name}{i}.intermediate.dense.", width, inner)
        shapes |= _linear(f"{name}{i}.output.dense.", inner, width)
        shapes |= _norm(f"{name}{i}.output.LayerNorm.", width)
    return shapes


def write_blip(folder: Path, seed: int = 0) -> Path:
    """A BLIP for questions as transformers saves it, without a tokenizer of its own."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    words = len(VOCABULARY)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48}
    # The two more are those that start an answer and a question.
    text = sizes | {"vocab_size": words + 2, "encoder_hidden_size": 32, "projection_dim": 16}
    text |= {"bos_token_id": words, "sep_token_id": 102, "pad_token_id": 0, "is_decoder": True}
    text |= {"max_position_embeddings": 64}
    vision = sizes | {"image_size": 32, "patch_size": 16, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = BlipForQuestionAnswering(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    network.save_pretrained(folder)
    rules = {"size": {"height": 32, "width": 32}, "image_mean": [0.48, 0.46, 0.41]}
    rules |= {"image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(rules), encoding="utf-8")
    write_vocabulary(folder)
    return folder
