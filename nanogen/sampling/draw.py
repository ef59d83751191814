"""Drawing what a person asks for: classes or captions times seeds, to PNG files, a grid and a
JSON.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanogen import config
from nanogen.errors import ConfigError, DataError, suggest
from nanogen.files import whole_file, writable_folder, write_text
from nanogen.images.captions import SAMPLES
from nanogen.rng import SEEDS
from nanogen.run import Parts
from nanogen.sampling.grid import grid, picture
from nanogen.types import Request

MOST_SEEDS = 100_000
GRID, COLUMNS = 200, 16
"""most samples of a grid, and most beside each other"""


@dataclass(frozen=True)
class Wanted:
    """Classes, one prompt or a file of prompts (at most one of the three), and seeds."""

    classes: str | None
    prompt: str | None
    prompts: Path | None
    seeds: str

    def check(self) -> None:
        given = [
            name for name in ("classes", "prompt", "prompts") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ConfigError(
                f"--{given[0]} and --{given[1]} contradict each other; give one of them"
            )
        numbers(self.seeds, "--seeds")

    def request(self, parts: Parts) -> Request:
        """Every class or caption with every seed, in that order."""
        seeds = numbers(self.seeds, "--seeds")
        names = parts.task.source.classes
        if parts.task.kind == "class_conditional":
            if self.prompt is not None or self.prompts is not None:
                raise ConfigError("this run draws classes, not captions; use --classes")
            labels = class_numbers(self.classes, names)
            return Request(
                torch.tensor(seeds).repeat(len(labels)),
                labels=torch.tensor(labels).repeat_interleave(len(seeds)),
            )
        if self.classes is not None:
            raise ConfigError("this run draws captions, not classes; use --prompt or --prompts")
        texts = self._captions(parts)
        return Request(
            torch.tensor(seeds).repeat(len(texts)), texts=tuple(t for t in texts for _ in seeds)
        )

    def _captions(self, parts: Parts) -> list[str]:
        if self.prompt is not None:
            return [self.prompt]
        if self.prompts is not None:
            return read_prompts(self.prompts)
        offered = list(parts.task.source.prompts()[:6])
        if not offered:
            raise ConfigError("the data of this run offers no captions; use --prompt or --prompts")
        return offered


def draw(parts: Parts, wanted: Wanted, folder: Path, about: dict[str, str | int]) -> Path:
    """Draw what is wanted into `folder`: numbered PNG files, `samples.json` and `grid.png`."""
    request = wanted.request(parts)
    write(parts, request, folder, about)
    first = rows(folder)[:GRID]
    images = torch.stack([_read(folder / row["file"]) for row in first])
    columns = min(len(numbers(wanted.seeds, "--seeds")), COLUMNS)
    with whole_file(folder / "grid.png") as file:
        grid(images, [row["caption"] for row in first], columns).save(file, format="PNG")
    return folder


def write(parts: Parts, request: Request, folder: Path, about: dict[str, str | int]) -> None:
    """Draw a request into numbered PNG files, in place of those that were drawn there before.

    `samples.json`, written last, says what each one is.
    """
    _clear(writable_folder(folder))
    captions, found = parts.task.captions(request), []
    for part, batch in parts.sampler().stream(request):
        for seed, image in zip(part.indices.tolist(), batch.cpu(), strict=True):
            name = f"{len(found):06d}.png"
            with whole_file(folder / name) as file:
                picture(image).save(file, format="PNG")
            found.append({"file": name, "caption": captions[len(found)], "seed": seed})
    sampling = config.dump(parts.run.sampling)
    text = json.dumps(
        {"run": parts.run.name, **about, "sampling": sampling, "samples": found}, indent=1
    )
    write_text(folder / SAMPLES, text)


def _clear(folder: Path) -> None:
    """Remove an older drawing; images of other origin have no `samples.json` beside them."""
    if (folder / SAMPLES).exists():
        for file in folder.glob("[0-9]" * 6 + ".png"):
            file.unlink()
        (folder / SAMPLES).unlink()


def rows(folder: Path) -> list[dict[str, str]]:
    """File, caption and seed of each sample of a folder."""
    return json.loads((folder / SAMPLES).read_text(encoding="utf-8"))["samples"]


def _read(file: Path) -> Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def numbers(text: str, option: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise ConfigError(
                f"{option} {text!r}: write whole numbers and ranges, such as 0-15 or 1,5,9"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST_SEEDS:
            raise ConfigError(f"{option} {text!r}: the range {first}-{last} is empty or too long")
        if last >= SEEDS:
            raise ConfigError(f"{option} {text!r}: {last} is too large; stay below 2^63")
        found += range(first, last + 1)
    return found


def class_numbers(text: str | None, names: tuple[str, ...]) -> list[int]:
    """Numbers, ranges and names of classes -> numbers; None means the first ten."""
    if text is None:
        return list(range(min(10, len(names))))
    found: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        if part in names:
            found.append(names.index(part))
        elif re.fullmatch(r"[\d\s-]+", part):
            found += numbers(part, "--classes")
        else:
            raise ConfigError(f"--classes: unknown class {part!r}; {suggest(part, names)}")
    beyond = [number for number in found if number >= len(names)]
    if beyond:
        raise ConfigError(
            f"--classes: there is no class {beyond[0]}; this run has 0 to {len(names) - 1}"
        )
    return found


def read_prompts(file: Path) -> list[str]:
    """The captions of a text file, one a line; empty lines are left out."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise DataError(f"{file} holds no captions; write one a line")
    return captions
