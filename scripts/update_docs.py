"""Write the results of a benchmark folder into README.md and docs/metrics.md.

    python scripts/update_docs.py runs/bench-animals-quick

Tables go between `<!-- begin NAME -->` and `<!-- end NAME -->`, pictures to docs/images. Nothing is
measured here: everything is read from the records and samples of the folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nanogen import config
from nanogen.bench import page
from nanogen.bench.leaderboard import leaderboard
from nanogen.run import Run
from nanogen.run_folder import CONFIG
from nanogen.sampling import draw
from nanogen.sampling.grid import grid

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (
    "fd-animals",
    "accuracy-animals",
    "pr-animals/precision",
    "pr-animals/recall",
    "scene-eval",
    "scene-eval/single_object",
    "scene-eval/colors",
)
"""the scores of the README's tables; the report has all"""
PICTURED = ("full-animals-pixels-v", "full-scenes-pixels-v")
"""the runs whose samples the README shows"""
GAP = 14
"""pixels between two pictures of a montage"""
DEFAULT = "quick"
"""the budget whose tables of known images and of latent spaces stand in the docs"""


def main() -> None:
    folder = Path(sys.argv[1])
    found = page.result(folder)
    (budget,) = {config.read(Run, path / CONFIG).budget for path in page.run_folders(folder)}
    table = leaderboard(page.own_records(folder), SHOWN)
    fill(ROOT / "README.md", f"leaderboard-{budget}", table.to_markdown())
    if budget == DEFAULT:
        for name, one in zip(("sanity-animals", "sanity-scenes"), found.sanity, strict=True):
            fill(ROOT / "docs/metrics.md", name, one.to_markdown())
        spaces = "\n".join(one.to_markdown() for one in found.spaces)
        fill(ROOT / "docs/tokenizers.md", "spaces", spaces)
        for task, one in zip(("animals", "scenes"), found.reconstructions, strict=True):
            target = ROOT / f"docs/images/reconstructions-{task}.png"
            montage([picture.image for picture in one.pictures]).save(target, optimize=True)
    for path in page.run_folders(folder):
        if (name := f"{budget}-{path.name}") in PICTURED:
            save_samples(path, ROOT / f"docs/images/{name}.png")


def save_samples(folder: Path, target: Path) -> None:
    """The first samples of a run's evaluation as one picture."""
    samples = max((folder / "samples").glob("*/samples.json")).parent
    rows = draw.rows(samples)[:20]
    images = [np.asarray(Image.open(samples / row["file"]).convert("RGB")) for row in rows]
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    target.parent.mkdir(exist_ok=True)
    grid(stacked, [row["caption"] for row in rows]).save(target, optimize=True)


def montage(pictures: Sequence[Image.Image], columns: int = 4, zoom: int = 2) -> Image.Image:
    """Pictures of one size in rows, enlarged with hard edges."""
    width, height = (zoom * side + GAP for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for number, one in enumerate(pictures):
        row, column = divmod(number, columns)
        large = one.resize((zoom * one.width, zoom * one.height), Image.Resampling.NEAREST)
        page.paste(large, (GAP + column * width, GAP + row * height))
    return page


def fill(file: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks called `name`; both must be there."""
    marks = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    filled, count = marks.subn(lambda match: f"{match[1]}{text}{match[2]}", file.read_text())
    if count != 1:
        raise SystemExit(f"{file} has {count} places called {name}, not one")
    file.write_text(filled)


if __name__ == "__main__":
    main()
