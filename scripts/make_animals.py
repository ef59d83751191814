"""Make the embedded data `animals` from the package animal-mnist 0.4.

    pip install --no-deps animal-mnist==0.4
    python scripts/make_animals.py

Writes `nanogen/assets/animals/silhouettes.png` and `animals.json`. The package holds pickles, which
can run code when read: here their hashes are checked first, and the unpickler knows nothing but
numpy arrays.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from PIL import Image

from nanogen.data.base import SPLITS
from nanogen.data.silhouettes import ANIMALS, PER_ROW, SIDE

PACKAGE, VERSION = "animal-mnist", "0.4"
FOLDER = "animal_mnist/data/Animal_MNIST"
HASHES = {
    "animal_data_version_3.gz": "68a30346781a0984f839463a4615d2decb899d1ce65091bb92586311754a34ce",
    "animal_label_version_3.gz": "dec8dba7c469830989fbab46825021a08a38470753a512f27ada847eced97b57",
}
HELD_OUT, VALIDATION = 200, 50
"""silhouettes of each class that are kept from training"""
OUT = Path(__file__).parents[1] / "nanogen" / "assets" / "animals"


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and refuses everything else."""

    KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a numpy array")
        return self.KNOWN[module, name]


def read(name: str) -> np.ndarray:
    """One array of the installed package, after its hash was checked."""
    package = distribution(PACKAGE)
    if package.version != VERSION:
        raise SystemExit(f"{PACKAGE} {package.version} is installed, but {VERSION} is needed")
    data = Path(str(package.locate_file(f"{FOLDER}/{name}"))).read_bytes()
    if hashlib.sha256(data).hexdigest() != HASHES[name]:
        raise SystemExit(
            f"{name} of {PACKAGE} {VERSION} is not the file this script was written for"
        )
    return ArrayUnpickler(io.BytesIO(gzip.decompress(data))).load()


def unique(images: np.ndarray, labels: np.ndarray) -> dict[int, list[np.ndarray]]:
    """Label -> its images, in the order of their hashes.

    An image and its mirror image are the same. One that has two labels is left out.
    """
    found: dict[str, tuple[np.ndarray, set[int]]] = {}
    for image, label in zip(images, labels, strict=True):
        key = min(hashlib.sha256(side.tobytes()).hexdigest() for side in (image, image[:, ::-1]))
        found.setdefault(key, (image, set()))[1].add(int(label))
    contradicted = [key for key, (_, names) in found.items() if len(names) > 1]
    print(f"{len(images)} images, {len(found)} unique, {len(contradicted)} of them with two labels")
    by_label: dict[int, list[np.ndarray]] = {label: [] for label in range(len(ANIMALS))}
    for key in sorted(found.keys() - contradicted):
        image, names = found[key]
        by_label[names.pop()].append(image)
    return by_label


def split(by_label: dict[int, list[np.ndarray]]) -> dict[str, list[list[np.ndarray]]]:
    """Split -> images of each label. What falls where follows from the hashes of the pixels."""
    first, second = HELD_OUT, HELD_OUT + VALIDATION
    cuts = {
        "train": slice(second, None),
        "validation": slice(first, second),
        "held-out": slice(first),
    }
    return {name: [by_label[label][cut] for label in by_label] for name, cut in cuts.items()}


def sheet(images: list[np.ndarray]) -> Image.Image:
    """All images as tiles, PER_ROW in a row; the last row is filled with blank tiles."""
    blank = -len(images) % PER_ROW
    tiles = np.stack(images + [np.zeros((SIDE, SIDE), np.uint8)] * blank)
    rows = tiles.reshape(-1, PER_ROW, SIDE, SIDE).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(-1, PER_ROW * SIDE))


def main() -> None:
    splits = split(unique(*(read(name) for name in HASHES)))
    OUT.mkdir(parents=True, exist_ok=True)
    picture = OUT / "silhouettes.png"
    ordered = [image for name in SPLITS for group in splits[name] for image in group]
    sheet(ordered).save(picture, optimize=True)
    description = {
        "source": f"{PACKAGE} {VERSION}",
        "licence": "MIT",
        "source_sha256": HASHES,
        "classes": ANIMALS,
        "counts": {name: [len(group) for group in splits[name]] for name in SPLITS},
        "sha256": hashlib.sha256(picture.read_bytes()).hexdigest(),
    }
    (OUT / "animals.json").write_text(json.dumps(description, indent=2) + "\n")
    for name in SPLITS:
        print(f"{name}: {sum(description['counts'][name])} {description['counts'][name]}")
    print(f"{picture.name}: {picture.stat().st_size} bytes, sha256 {description['sha256']}")


if __name__ == "__main__":
    main()
