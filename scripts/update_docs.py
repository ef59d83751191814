"""Write the results of a benchmark folder into README.md and docs/metrics.md.

    python scripts/update_docs.py runs/bench-animals-quick

Tables go between `<!-- begin NAME -->` and `<!-- end NAME -->`, pictures to docs/images. Nothing is
measured here: everything is read from the records and samples of the folder.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nanogen.bench import page
from nanogen.bench.leaderboard import leaderboard
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
"""the scores of the README's table; the report has all"""


def main() -> None:
    folder = Path(sys.argv[1])
    found = page.result(folder)
    table = leaderboard(page.own_records(folder), SHOWN)
    fill(ROOT / "README.md", "leaderboard", table.to_markdown())
    for name, one in zip(("sanity-animals", "sanity-scenes"), found.sanity, strict=True):
        fill(ROOT / "docs/metrics.md", name, one.to_markdown())
    for path in page.run_folders(folder):
        samples = max((path / "samples").glob("*/samples.json")).parent
        rows = draw.rows(samples)[:20]
        images = [np.asarray(Image.open(samples / row["file"]).convert("RGB")) for row in rows]
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        target = ROOT / "docs/images" / f"{path.name}.png"
        target.parent.mkdir(exist_ok=True)
        grid(stacked, [row["caption"] for row in rows]).save(target, optimize=True)


def fill(file: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks called `name`; both must be there."""
    marks = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    filled, count = marks.subn(lambda match: f"{match[1]}{text}{match[2]}", file.read_text())
    if count != 1:
        raise SystemExit(f"{file} has {count} places called {name}, not one")
    file.write_text(filled)


if __name__ == "__main__":
    main()
