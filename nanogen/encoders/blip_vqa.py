"""BLIP, fine-tuned to answer questions about images, asked for yes or no only.

    judge = BlipVqa(folder, torch.device("cuda"))
    judge.margins(image, ["is there a cat?"])       # log p(yes) - log p(no) of each question

Li et al. 2022 (arXiv 2201.12086), through `transformers`. Free answers would often be words other
than yes and no; which of the two is likelier is always defined, and needs no search.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nanogen import hub
from nanogen.encoders.huggingface import check_weights, quiet
from nanogen.encoders.pillow_resize import BICUBIC, resize
from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.encoders.wordpiece import WordPiece
from nanogen.errors import ConfigError, MissingExtra
from nanogen.frozen import frozen

CONFIG, PREPROCESSOR, VOCABULARY = "config.json", "preprocessor_config.json", "vocab.txt"
FILES = (CONFIG, PREPROCESSOR, VOCABULARY, "model.safetensors")
ANSWERS = ("yes", "no")
UNUSED = (
    # Numbers 0, 1, 2, ..., which older versions of transformers wrote down.
    "text_encoder.embeddings.position_ids",
    "text_decoder.bert.embeddings.position_ids",
)


class BlipVqa:
    """The network with its preprocessing and its tokenizer, frozen."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        precision: Literal["fp32", "bf16"] = "fp32",
        chunk: int = 32,
    ) -> None:
        """`folder` holds `FILES`; `chunk` questions are answered at once. ConfigError where the
        folder does not hold such a model.
        """
        self.device, self.precision, self.chunk = device, precision, chunk
        self.network = _load(folder).to(device)
        self.words = WordPiece(folder / VOCABULARY)
        self.limit = self.network.config.text_config.max_position_embeddings
        rules = _read(folder / PREPROCESSOR)
        self.side = self.network.config.vision_config.image_size
        self.mean, self.std = (
            torch.tensor(rules.get(name, usual), device=device)[:, None, None]
            for name, usual in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
        )

    @torch.no_grad()
    def margins(self, image: Tensor, questions: Sequence[str]) -> Tensor:
        """float64 [Q] on the CPU: log p(yes) - log p(no), for an image uint8 [3, H, W]."""
        found = torch.empty(len(questions), dtype=torch.float64)
        tokens = self.words.encode(questions, self.limit)
        lengths = tokens.mask.sum(dim=1)
        on = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on):
            seen = self.network.vision_model(pixel_values=self.prepared(image[None]))
            # Only questions of one length share a batch: the cross-attention of transformers 5 does
            # not hide the padding of shorter ones, and answers would depend on their neighbours.
            for length in lengths.unique().tolist():
                for rows in (lengths == length).nonzero()[:, 0].split(self.chunk):
                    ids = tokens.ids[rows, :length].to(self.device)
                    found[rows] = self._margins(seen.last_hidden_state, ids).double().cpu()
        return found

    def says_yes(self, image: Tensor, questions: Sequence[str]) -> list[bool]:
        """Whether yes is likelier than no, for each question about an image uint8 [3, H, W]."""
        return (self.margins(image, questions) > 0).tolist()

    def prepared(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, 3, side, side] on the device: squashed, not cropped."""
        small = resize(images.to(self.device), (self.side, self.side), BICUBIC).float() / 255
        return (small - self.mean) / self.std

    def _margins(self, seen: Tensor, ids: Tensor) -> Tensor:
        """[Q] for an image [1, N, D] and questions without padding [Q, L]."""
        read = self.network.text_encoder(
            input_ids=ids, encoder_hidden_states=seen.expand(len(ids), -1, -1)
        ).last_hidden_state
        yes, no = (self._likelihood(answer, read) for answer in ANSWERS)
        return yes - no

    def _likelihood(self, answer: str, read: Tensor) -> Tensor:
        """[Q]: log p(answer and its end | question, image), of questions as read, [Q, L, D]."""
        words = [*self.words.pieces(answer), self.words.end]
        start = self.network.decoder_start_token_id
        given = torch.tensor([start, *words[:-1]], device=self.device).expand(len(read), -1)
        logits = self.network.text_decoder(
            input_ids=given, encoder_hidden_states=read, use_cache=False
        ).logits
        wanted = torch.tensor(words, device=self.device).expand(len(read), -1)[..., None]
        return logits.float().log_softmax(-1).gather(2, wanted).sum(dim=(1, 2))


def _load(folder: Path) -> Any:
    """`BlipForQuestionAnswering` in float32; ConfigError where the folder does not hold one."""
    try:
        import transformers

        model: Any = transformers.BlipForQuestionAnswering
    except ImportError as problem:
        raise MissingExtra("transformers", "pip install 'nanogen[t2i]'") from problem
    for name in FILES:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} lacks {name}; give the folder of a BLIP for questions")
    try:
        with quiet():
            network, found = model.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                # Not to ignore them, but to hear which they are.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as problem:  # a foreign file can break a constructor in any way
        raise ConfigError(
            f"{folder} holds no BLIP for questions: {hub.reason(problem)}; {hub.ANEW}"
        ) from problem
    check_weights(found, "a BLIP for questions", str(folder), UNUSED)
    frozen(network)
    return network


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ConfigError(f"{file} is not readable: {problem}; get the file anew") from problem
