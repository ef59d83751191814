"""Images that are drawn once and seen by several scoring models, one model after the other.

    drawn = DrawnOnce(folder, draw)
    drawn.read(0, 100)        # draws, and keeps what is drawn when all of it is
    drawn.read(0, 100)        # the same batches, from the disk

A block is the unit, as of all that is kept: a kill costs no image of a block that was finished, and
main memory holds those of one block.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanogen.errors import UserError
from nanogen.files import whole_file
from nanogen.metrics.harness import Read
from nanogen.types import Request

log = logging.getLogger(__name__)

SUFFIX = ".images.safetensors"

Drawn = tuple[Request, Tensor]


@dataclass(frozen=True)
class DrawnOnce:
    """Samples of a folder, drawn where it does not hold them."""

    folder: Path
    """must exist; its name must say everything that decides an image"""
    draw: Read

    def read(self, start: int, stop: int) -> Iterator[Drawn]:
        """Samples start .. stop in the batches in which they were drawn, uint8 [B, 3, H, W].

        UserError where they cannot be kept.
        """
        file = self.folder / f"{start:09d}-{stop:09d}{SUFFIX}"
        if _whole(file):
            yield from _read(file)
            return
        batches: list[Drawn] = []
        for request, images in self.draw(start, stop):
            batches.append((request, images.cpu()))
            yield request, images
        _write(file, batches)


def _whole(file: Path) -> bool:
    """Whether a file is there; one that is broken is drawn again."""
    if not file.exists():
        return False
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError) as problem:
        log.warning("%s is broken (%s): drawn again", file, problem)
        return False


def _read(file: Path) -> Iterator[Drawn]:
    with safe_open(file, "pt") as held:
        texts = json.loads(held.metadata()["texts"])
        names = set(held.keys())
        for number, captions in enumerate(texts):
            indices, images, labels = (f"{number}/{n}" for n in ("indices", "images", "labels"))
            request = Request(
                held.get_tensor(indices),
                held.get_tensor(labels) if labels in names else None,
                None if captions is None else tuple(captions),
            )
            yield request, held.get_tensor(images)


def _write(file: Path, batches: Sequence[Drawn]) -> None:
    tensors: dict[str, Tensor] = {}
    for number, (request, images) in enumerate(batches):
        # Rows of one request share their memory, which a file of tensors refuses.
        tensors[f"{number}/indices"] = request.indices.cpu().clone()
        tensors[f"{number}/images"] = images.contiguous()
        if request.labels is not None:
            tensors[f"{number}/labels"] = request.labels.cpu().clone()
    texts = json.dumps([request.texts for request, _ in batches])
    try:
        with whole_file(file) as part:
            safetensors.torch.save_file(tensors, part, metadata={"texts": texts})
    except (OSError, SafetensorError) as problem:
        raise UserError(
            f"cannot keep what was drawn in {file.parent}: {problem}; make room there and give the "
            "same command again, which goes on from here, or choose another --out"
        ) from problem
