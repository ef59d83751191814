"""Put trained tokenizers of the embedded data into the package, their weights as halves.

    for name in animals/vae scenes/vae animals/rae scenes/rae; do
        nanogen tokenizer train $name
    done
    python scripts/ship_tokenizers.py runs/tokenizers

Reads `<folder>/<data>/<kind>/tokenizer` of each, writes `nanogen/assets/tokenizers/<data>-<kind>`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ASSETS = Path(__file__).resolve().parents[1] / "nanogen" / "assets" / "tokenizers"
WHOLE = "statistics.safetensors"
"""kept in single precision"""


def main() -> None:
    trained = Path(sys.argv[1])
    for kind in ("vae", "rae"):
        for data in ("animals", "scenes"):
            target = ASSETS / f"{data}-{kind}"
            ship(trained / data / kind / "tokenizer", target)
            size = sum(file.stat().st_size for file in target.iterdir())
            print(f"{target.name}: {size:,} bytes")


def ship(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors" or file.name == WHOLE:
            shutil.copy(file, target / file.name)
            continue
        tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(file).items()}
        save_file(tensors, target / file.name, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
