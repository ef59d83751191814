"""Qwen2.5-VL and Qwen3-VL, asked a question about an image.

    model = QwenVl(folder, torch.device("cuda"), torch.bfloat16)
    model(images, ['Does this image show "a cat"?'])        # uint8 [B, 3, H, W] -> float32 [B]

What is returned is the probability that the answer begins with the first token of "Yes". The
networks are those of transformers. Their processor needs torchvision, for videos: so images are cut
into patches here, and the places of tokens are counted here, as it would do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from nanogen import hub
from nanogen.encoders.pillow_resize import BICUBIC, resize
from nanogen.errors import ConfigError, MissingExtra
from nanogen.frozen import frozen

ANSWER = "Yes"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""where a folder may hold how a chat is written; else its tokenizer knows"""
IMAGE = -1
"""stands for a token of the image"""


@dataclass(frozen=True)
class Sight:
    """How images become patches: a folder's preprocessor_config.json."""

    patch: int
    """pixels a side"""
    merge: int
    """patches a side of one token"""
    frames: int
    """a patch is of so many frames of a video; a still image is repeated"""
    fewest: int
    most: int
    """pixels of an image, once it is resized"""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, file: Path) -> Self:
        """ConfigError where the file does not say it all."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            size = found.get("size", {})
            return cls(
                patch=found["patch_size"],
                merge=found["merge_size"],
                frames=found["temporal_patch_size"],
                fewest=found["min_pixels"] if "min_pixels" in found else size["shortest_edge"],
                most=found["max_pixels"] if "max_pixels" in found else size["longest_edge"],
                mean=tuple(found["image_mean"]),
                std=tuple(found["image_std"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            why = hub.reason(problem)
            raise ConfigError(f"{file} does not say how images are cut ({why}); get it anew") from (
                problem
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size in whole tokens, made smaller or larger where it has too many pixels or
        too few.
        """
        unit = self.patch * self.merge
        near = round(height / unit) * unit, round(width / unit) * unit
        if math.prod(near) > self.most:
            shrink = math.sqrt((height * width) / self.most)
            return (
                max(1, math.floor(height / shrink / unit)) * unit,
                max(1, math.floor(width / shrink / unit)) * unit,
            )
        if math.prod(near) < self.fewest:
            grow = math.sqrt(self.fewest / (height * width))
            return math.ceil(height * grow / unit) * unit, math.ceil(width * grow / unit) * unit
        return near

    def patches(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, rows, columns, merge, merge, 3, frames, patch, patch],
        with the tokens in `rows` and `columns`.
        """
        height, width = self.size(*images.shape[-2:])
        pixels = resize(images, (height, width), BICUBIC).float() / 255
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        cut = ((pixels - mean) / std).unflatten(3, (-1, self.merge, self.patch))
        cut = cut.unflatten(2, (-1, self.merge, self.patch))  # [B, 3, rows, m, p, columns, m, p]
        ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        return ordered.expand(*(-1,) * 6, self.frames, -1, -1)


class QwenVl:
    """A published model, frozen."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Reads everything. ConfigError for files that do not fit; MissingExtra."""
        self.sight = Sight.read(folder / "preprocessor_config.json")
        self.tokenizer, self.network = _load(folder, dtype)
        self.network.to(device)
        self.device = device
        self.template = _template(folder)
        self.image: str = self.tokenizer.convert_ids_to_tokens(self.network.config.image_token_id)
        self.yes: int = self._ids(ANSWER)[0]

    @torch.no_grad()
    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """float32 [B]: the probability of "Yes" as the first word of the answer to each question.

        `images` uint8 [B, 3, H, W] of any size.
        """
        patches = self.sight.patches(images.to(self.device))
        rows, columns = patches.shape[1:3]
        grid = torch.tensor([[1, rows * self.sight.merge, columns * self.sight.merge]])
        written = [self._written(question) for question in questions]
        ids, mask, places = _padded(
            [laid_out(before, after, rows, columns) for before, after in written]
        )
        ids = ids.masked_fill(ids == IMAGE, self.network.config.image_token_id)
        logits = self.network(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=places.to(self.device),
            pixel_values=patches.reshape(-1, patches[0, 0, 0, 0, 0].numel()).to(self.network.dtype),
            image_grid_thw=grid.expand(len(images), 3).to(self.device),
            use_cache=False,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].float().softmax(dim=-1)[:, self.yes]

    def _written(self, question: str) -> tuple[list[int], list[int]]:
        """The tokens before and after the image, where a user shows one and asks."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
        )
        before, found, after = chat.partition(self.image)
        if not found:
            raise ConfigError(
                f"the chat template of {self.tokenizer.name_or_path} has no place for an image; "
                "get its files anew"
            )
        # Special tokens on both sides part the text, so the parts are the same alone.
        return self._ids(before), self._ids(after)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class Laid:
    """The tokens of a question with its image, and where they stand."""

    ids: Tensor
    """int64 [L]; IMAGE where the image is"""
    places: Tensor
    """int64 [3, L]: time, row and column"""


def laid_out(before: Sequence[int], after: Sequence[int], rows: int, columns: int) -> Laid:
    """Text counts alike in time, row and column. The tokens of an image, one moment, count on in
    rows and columns, and what follows goes on after the longer of the two.
    """
    image = torch.full((rows * columns,), IMAGE)
    ids = torch.cat([torch.tensor(before), image, torch.tensor(after)])
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    seen = len(before) + torch.stack([torch.zeros_like(row), row, column])
    start = len(before) + max(rows, columns)
    lead = torch.arange(len(before)).expand(3, -1)
    rest = torch.arange(start, start + len(after)).expand(3, -1)
    return Laid(ids, torch.cat([lead, seen, rest], dim=1))


def _padded(rows: Sequence[Laid]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, L], mask [B, L] and places [3, B, L], padded on the left: the answer comes last."""
    longest = max(len(row.ids) for row in rows)
    pads = [longest - len(row.ids) for row in rows]
    pad = torch.nn.functional.pad
    ids = torch.stack([pad(row.ids, (n, 0)) for row, n in zip(rows, pads, strict=True)])
    places = torch.stack([pad(row.places, (n, 0)) for row, n in zip(rows, pads, strict=True)], 1)
    mask = torch.arange(longest) >= torch.tensor(pads)[:, None]
    return ids, mask.long(), places


def _template(folder: Path) -> str | None:
    """How a chat is written, where the folder says it in a file of its own."""
    for name in TEMPLATES:
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8")
            return json.loads(text)["chat_template"] if name.endswith(".json") else text
    return None


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and network. No code of a folder is run; no weights but safetensors are read."""
    try:
        from transformers import AutoModelForImageTextToText, AutoTokenizer
    except ImportError as problem:
        raise MissingExtra("transformers", "pip install 'nanogen[t2i]'") from problem
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            local_files_only=True,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as problem:  # a foreign folder can break a constructor in any way
        raise ConfigError(f"{folder} cannot be loaded: {hub.reason(problem)}; get it anew") from (
            problem
        )
    network, found = loaded
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise ConfigError(
            f"weights in {folder} do not fit its config: {len(wrong)}, such as {wrong[0]}; get "
            "them anew"
        )
    return tokenizer, frozen(network)
