"""The models of VQAScore and of its Qwen-VL counterpart, tiny and random, in their real formats.

paths = prepare_tiny(tmp_path)          # asset name -> file or folder, as `nanogen prepare` takes

write_clip_flant5(folder, seed=1, side=336, kind="safetensors", shards=2)
write_qwen(folder, "qwen2_5_vl")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from nanogen.metrics.vqa_qwen import MODELS as QWEN
from nanogen.metrics.vqascore import MODELS, TOKENIZER, VISION
from nanogen.prompts.genai import ADVANCED, ALL, BASIC, PROMPTS, SKILLS, SOME

VOCABULARY = 160
"""rows of the tables of the tiny T5: more than its tokenizer has tokens, as published"""
T5 = {
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "vocab_size": VOCABULARY,
}
TOWER = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare_tiny(folder: Path) -> dict[str, Path]:
    """A file or folder for every asset of the four metrics and of their prompts."""
    tokenizer = write_t5_tokenizer(folder / "t5")
    vision = write_vision_config(folder / "clip", side=56)
    paths = {TOKENIZER.name: tokenizer, VISION.name: vision}
    for seed, name in enumerate(MODELS):
        paths[name] = write_clip_flant5(folder / name, seed=seed)
    for name in QWEN:
        kind = "qwen2_5_vl" if name.startswith("qwen2.5") else "qwen3_vl"
        paths[name] = write_qwen(folder / name, kind)
    paths[ALL.name] = write_prompts(folder / ALL.name, range(1600))
    paths[SOME.name] = write_prompts(folder / SOME.name, range(1, 528))
    return paths


def write_prompts(folder: Path, numbers: Sequence[int]) -> Path:
    """genai_image.json and genai_skills.json: a third of the prompts is advanced, and every
    hundredth has no skill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {f"{n:05}": {"id": f"{n:05}", "prompt": f"{n} apples, none red"} for n in numbers}
    (folder / PROMPTS).write_text(json.dumps(entries))
    tagged = [n for n in numbers if n % 100]
    group = {BASIC: [n for n in tagged if n % 3], ADVANCED: [n for n in tagged if not n % 3]}
    skills = {
        tag: places if tag == tags[-1] else places[at :: len(tags) - 1]
        for tags, places in group.items()
        for at, tag in enumerate(tags)
    }
    (folder / SKILLS).write_text(json.dumps(skills))
    return folder


def write_t5_tokenizer(folder: Path, words: Sequence[str] = ("▁Yes", "▁show")) -> Path:
    """tokenizer.json like that of FLAN-T5: pieces with a mark where a word begins, and an end after
    every text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(word, -1.0) for word in words] + [(letter, -3.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<pad>", "</s>", "<unk>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_vision_config(folder: Path, side: int) -> Path:
    """config.json of a whole CLIP, of which only the tower of images is read."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = {**TOWER, "image_size": side, "model_type": "clip_vision_model"}
    config = {"model_type": "clip", "text_config": {"hidden_size": 8}, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def clip_flant5_tensors(seed: int, side: int) -> dict[str, Tensor]:
    """Random weights under the names of the published checkpoint."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = T5Config(**T5, tie_word_embeddings=False)
        t5 = T5ForConditionalGeneration(config).state_dict()
        tower = CLIPVisionModel(CLIPVisionConfig(**TOWER, image_size=side)).state_dict()
        width, seen = T5["d_model"], TOWER["hidden_size"]
        tensors = {name: _drawn(name, tensor) for name, tensor in t5.items()}
        for name, tensor in tower.items():
            inner = name.removeprefix("vision_model.")
            tensors[f"vision_tower.vision_tower.vision_model.{inner}"] = _drawn(name, tensor)
        tensors |= {
            "mm_projector.0.weight": torch.randn(width, seen),
            "mm_projector.0.bias": torch.randn(width),
            "mm_projector.2.weight": torch.randn(width, width),
            "mm_projector.2.bias": torch.randn(width),
        }
    # One table, saved under three names.
    for stack in ("encoder", "decoder"):
        tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"]
    return tensors


def _drawn(name: str, like: Tensor) -> Tensor:
    """Large enough that what is said depends on what is seen and asked, and no larger: rounding
    would decide it in half precision.
    """
    return torch.randn(like.shape) * 0.3 + (1.0 if "norm" in name and "weight" in name else 0.0)


def write_clip_flant5(
    folder: Path, seed: int = 0, side: int = 56, kind: str = "bin", shards: int = 1
) -> Path:
    """A folder like zhiqiulin/clip-flant5-xxl: config.json, and weights in one file or several."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["CLIPT5ForConditionalGeneration"],
        "model_type": "clip_t5",
        "mm_hidden_size": TOWER["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **T5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, clip_flant5_tensors(seed, side), kind, shards)
    return folder


def write_weights(folder: Path, tensors: dict[str, Tensor], kind: str, shards: int) -> None:
    """Weights as transformers saves them, `kind` "bin" or "safetensors"."""
    stem, ending = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    names = sorted(tensors)
    if kind != "bin":  # of tensors that share memory it keeps one
        names = [name for name in names if not name.endswith("coder.embed_tokens.weight")]
    parts = [names[start::shards] for start in range(shards)]
    files = [f"{stem}-{n + 1:05}-of-{shards:05}.{ending}" for n in range(shards)]
    if shards == 1:
        files = [f"{stem}.{ending}"]
    else:
        where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    for file, part in zip(files, parts, strict=True):
        chosen = {name: tensors[name] for name in part}
        if kind == "bin":
            torch.save(chosen, folder / file)
        else:
            safetensors.torch.save_file(chosen, folder / file)


def write_qwen(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder like Qwen/Qwen3-VL-8B-Instruct; `kind` is "qwen2_5_vl" or "qwen3_vl"."""
    folder.mkdir(parents=True, exist_ok=True)
    count = _write_qwen_tokenizer(folder)
    model = _qwen(kind, count, seed)
    model.save_pretrained(folder)
    bounds: dict[str, Any] = (
        {"min_pixels": 2 * 28 * 28, "max_pixels": 12 * 28 * 28}
        if kind == "qwen2_5_vl"
        else {"size": {"shortest_edge": 2 * 32 * 32, "longest_edge": 12 * 32 * 32}}
    )
    constants = (
        ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        if kind == "qwen2_5_vl"
        else ([0.5] * 3, [0.5] * 3)
    )
    config = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": 14 if kind == "qwen2_5_vl" else 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": constants[0],
        "image_std": constants[1],
        **bounds,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    return folder


def _write_qwen_tokenizer(folder: Path) -> int:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: place for place, symbol in enumerate(alphabet)}
    merges = [("e", "s"), ("Y", "es")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL[1:]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size(with_added_tokens=True)


def _qwen(kind: str, count: int, seed: int) -> Any:
    import transformers

    first = count - len(SPECIAL)
    ids = {
        "vision_start_token_id": first + SPECIAL.index("<|vision_start|>"),
        "vision_end_token_id": first + SPECIAL.index("<|vision_end|>"),
        "image_token_id": first + SPECIAL.index("<|image_pad|>"),
        "video_token_id": first + SPECIAL.index("<|video_pad|>"),
    }
    text: dict[str, Any] = {
        "vocab_size": count,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
    if kind == "qwen2_5_vl":
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [1, 1, 2],
        }
        vision = {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        }
        make = transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration
    else:
        text["head_dim"] = 8
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        }
        vision = {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        }
        make = transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make[1](make[0](text_config=text, vision_config=vision, **ids))
        for name, parameter in model.named_parameters():
            parameter.data = _drawn(name, parameter)
    return model
