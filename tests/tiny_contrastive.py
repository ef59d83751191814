"""Scoring models of images and prompts, tiny and random, in the files that they are published in.

files = prepare_tiny(tmp_path)            # asset name -> file or folder
store.prepare(asset, files[asset.name])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from nanogen import store
from nanogen.data.base import Source
from nanogen.metrics.base import Context, Observation, Score
from nanogen.store import Asset
from nanogen.types import Request

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'\"()-!?/"
ENDS = ("<|startoftext|>", "<|endoftext|>")
PLACES = 77
HEAD = 64


def makers(folder: Path) -> dict[str, Callable[[], Path]]:
    """By name of an asset, what writes its tiny stand-in and returns its file or folder."""
    return {
        "clip-vit-large-patch14": lambda: clip_folder(folder / "clip-l", seed=1, ends_at=2),
        "clip-vit-base-patch32": lambda: clip_folder(folder / "clip-b", seed=9, pickled=True),
        "pick-score": lambda: clip_folder(folder / "pick", seed=3),
        "clip-vit-h-14-tokenizer": lambda: clip_tokenizer(folder / "clip-tokenizer"),
        "hps-v2": lambda: open_clip_file(folder / "HPS_v2_compressed.pt", seed=4),
        "hps-v2.1": lambda: open_clip_file(folder / "HPS_v2.1_compressed.pt", seed=5),
        "image-reward": lambda: image_reward_file(folder / "ImageReward.pt", seed=6),
        "bert-base-uncased-tokenizer": lambda: bert_tokenizer(folder / "bert-tokenizer"),
    }


def prepare_tiny(folder: Path) -> dict[str, Path]:
    """Tiny stand-ins for everything that `clip-score`, `pick-score`, `hps-v2`, `hps-v2.1` and
    `image-reward` need, by name of the asset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {name: make() for name, make in makers(folder).items()}


@contextlib.contextmanager
def tiny_store(folder: Path, *assets: Asset) -> Generator[dict[str, Path]]:
    """A store in `folder` that holds tiny stand-ins for the assets; where they were made."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {asset.name: makers(folder)[asset.name]() for asset in assets}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for asset in assets:
            store.prepare(asset, files[asset.name])
        yield files


def made(kind: type, chosen: dict[str, str] | None = None, **more: Any) -> Any:
    """A metric on the CPU, of data that lists no prompts."""
    source = SimpleNamespace(prompts=tuple)
    return kind(Context(cast(Source, source), torch.device("cpu"), **more), chosen)


def seen(metric: Any, images: Tensor, texts: Sequence[str], batch: int = 100) -> dict[str, Score]:
    """The scores of images and their prompts, shown to a metric in batches."""
    metric.sums, metric.rows = {}, {}
    for rows in torch.arange(len(images)).split(batch):
        request = Request(rows, texts=tuple(texts[i] for i in rows))
        metric.update(Observation(images[rows], request, no_network))
    return metric.compute({}, {name: torch.cat(parts) for name, parts in metric.rows.items()})


def no_network(name: str) -> Any:
    raise AssertionError(f"these metrics ask for no network of features, such as {name}")


def pictures(count: int, height: int = 40, width: int = 40, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width], each with its own coarse pattern, not only noise."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    fine = torch.rand(count, 3, height, width, generator=draw)
    return ((0.8 * smooth + 0.2 * fine).clamp(0, 1) * 255).to(torch.uint8)


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of the vocabulary of CLIP."""
    return sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)


def clip_vocabulary() -> dict[str, int]:
    """514 entries: each byte within a word, each byte at its end, and the two marks."""
    symbols = byte_symbols()
    return {s: i for i, s in enumerate([*symbols, *(f"{s}</w>" for s in symbols), *ENDS])}


def clip_tokenizer(folder: Path) -> Path:
    """tokenizer.json of a CLIP that knows no word longer than a byte; the file's path."""
    from transformers import CLIPTokenizer

    CLIPTokenizer(vocab=clip_vocabulary(), merges=[]).save_pretrained(folder)
    return folder / "tokenizer.json"


def bert_tokenizer(folder: Path) -> Path:
    """tokenizer.json of a BERT in lower case that knows letters and a few words; its path."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cow", "two", "dogs", "a"]
    letters = [c for c in LETTERS if c not in words]
    vocabulary = [*words, *letters, *(f"##{c}" for c in LETTERS)]
    ids = {word: number for number, word in enumerate(vocabulary)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, ids[mark]) for mark in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=marks)
    made.enable_truncation(512)  # what a file says of lengths must not matter
    made.enable_padding()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def clip_config(ends_at: int | None = None):
    """A `transformers.CLIPConfig`; `ends_at` is 2 in the old files of OpenAI, and means nothing."""
    from transformers import CLIPConfig

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    words = len(clip_vocabulary())
    text = {
        **tower,
        "num_attention_heads": 2,
        "vocab_size": words,
        "max_position_embeddings": PLACES,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1 if ends_at is None else ends_at,
    }
    vision = {**tower, "num_attention_heads": 4, "image_size": 24, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def clip_model(seed: int, ends_at: int | None = None):
    """A random `transformers.CLIPModel` whose weights are large enough to tell inputs apart."""
    from transformers import CLIPModel

    model = CLIPModel(clip_config(ends_at)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(noise(weight.shape, draw, is_norm=_is_norm(name)))
        model.logit_scale.fill_(3.0)
    return model


def clip_folder(folder: Path, seed: int, ends_at: int | None = None, pickled: bool = False) -> Path:
    """A folder as transformers saves it, with the tokenizer beside; `pickled` as in old days."""
    model = clip_model(seed, ends_at)
    model.save_pretrained(folder)
    if pickled:
        (folder / "model.safetensors").unlink()
        tensors = model.state_dict()
        tensors["text_model.embeddings.position_ids"] = torch.arange(PLACES)[None]
        tensors["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
        torch.save(tensors, folder / "pytorch_model.bin")
    clip_tokenizer(folder)
    return folder


def open_clip_sizes() -> dict[str, int]:
    """Two heads in each tower, of the widths of ViT-H/14."""
    return {"image": 160, "text": 128, "shared": 16, "side": 24, "patch": 8, "depth": 2}


def open_clip_tensors(seed: int) -> dict[str, Tensor]:
    """Weights by the names of OpenCLIP's ViT."""
    sizes, draw = open_clip_sizes(), torch.Generator().manual_seed(seed)
    image, text, shared = sizes["image"], sizes["text"], sizes["shared"]
    patch, words = sizes["patch"], len(clip_vocabulary())
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (PLACES, text),
        "text_projection": (text, shared),
        "visual.class_embedding": (image,),
        "visual.positional_embedding": ((sizes["side"] // patch) ** 2 + 1, image),
        "visual.proj": (image, shared),
        "visual.conv1.weight": (image, 3, patch, patch),
        "token_embedding.weight": (words, text),
    }
    for norm, width in (("visual.ln_pre", image), ("visual.ln_post", image), ("ln_final", text)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for tower, width in (("visual.transformer", image), ("transformer", text)):
        for number in range(sizes["depth"]):
            block = f"{tower}.resblocks.{number}."
            shapes |= {
                f"{block}ln_1.weight": (width,),
                f"{block}ln_1.bias": (width,),
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                f"{block}ln_2.weight": (width,),
                f"{block}ln_2.bias": (width,),
                f"{block}mlp.c_fc.weight": (4 * width, width),
                f"{block}mlp.c_fc.bias": (4 * width,),
                f"{block}mlp.c_proj.weight": (width, 4 * width),
                f"{block}mlp.c_proj.bias": (width,),
            }
    tensors = {n: noise(s, draw, is_norm=_is_norm(n)) for n, s in shapes.items()}
    return tensors | {"logit_scale": torch.tensor(4.0)}


def open_clip_file(file: Path, seed: int) -> Path:
    """A checkpoint of HPS: weights in half precision beside numbers of its training."""
    halves = {name: tensor.half() for name, tensor in open_clip_tensors(seed).items()}
    torch.save({"epoch": 1, "name": "tiny", "state_dict": halves}, file)
    return file


def image_reward_tensors(seed: int) -> dict[str, Tensor]:
    """Weights by the names of ImageReward.pt, with those that its score does not use."""
    draw = torch.Generator().manual_seed(seed)
    image, text, patch, patches = 2 * HEAD, HEAD, 8, 9
    words, places = 5 + 2 * len(LETTERS) + 8, 40
    vision, read = "blip.visual_encoder.", "blip.text_encoder."
    linear: dict[str, tuple[int, int]] = {}
    norms: dict[str, int] = {f"{vision}norm": image, f"{read}embeddings.LayerNorm": text}
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}cls_token": (1, 1, image),
        f"{vision}pos_embed": (1, patches + 1, image),
        f"{vision}patch_embed.proj.weight": (image, 3, patch, patch),
        f"{vision}patch_embed.proj.bias": (image,),
        f"{read}embeddings.word_embeddings.weight": (words, text),
        f"{read}embeddings.position_embeddings.weight": (places, text),
    }
    for number in range(2):
        block = f"{vision}blocks.{number}."
        norms |= {f"{block}norm1": image, f"{block}norm2": image}
        linear |= {
            f"{block}attn.qkv": (3 * image, image),
            f"{block}attn.proj": (image, image),
            f"{block}mlp.fc1": (4 * image, image),
            f"{block}mlp.fc2": (image, 4 * image),
        }
        layer = f"{read}encoder.layer.{number}."
        for kind, source in (("attention", text), ("crossattention", image)):
            linear |= {
                f"{layer}{kind}.self.query": (text, text),
                f"{layer}{kind}.self.key": (text, source),
                f"{layer}{kind}.self.value": (text, source),
                f"{layer}{kind}.output.dense": (text, text),
            }
            norms[f"{layer}{kind}.output.LayerNorm"] = text
        linear |= {
            f"{layer}intermediate.dense": (4 * text, text),
            f"{layer}output.dense": (text, 4 * text),
        }
        norms[f"{layer}output.LayerNorm"] = text
    widths = (text, 1024, 128, 64, 16, 1)
    for place, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        linear[f"mlp.layers.{place}"] = (after, before)
    linear |= {"blip.vision_proj": (8, image), "blip.text_proj": (8, text)}
    for name, (after, before) in linear.items():
        shapes |= {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    tensors = {n: noise(s, draw, is_norm=_is_norm(n)) for n, s in shapes.items()}
    return tensors | {f"{read}embeddings.position_ids": torch.arange(places)[None]}


def image_reward_file(file: Path, seed: int) -> Path:
    torch.save(image_reward_tensors(seed), file)
    return file


def noise(shape, draw: torch.Generator, *, is_norm: bool = False) -> Tensor:
    """Random weights that keep the size of what goes through them, about one for norms."""
    values = torch.randn(tuple(shape), generator=draw)
    if is_norm:
        return 1 + 0.1 * values
    fan = values[0].numel() if values.dim() > 1 else 16
    return values / fan**0.5


def _is_norm(name: str) -> bool:
    owner = name.rsplit(".", 2)[-2] if "." in name else ""
    return name.endswith("weight") and any(part in owner.lower() for part in ("norm", "ln_"))
