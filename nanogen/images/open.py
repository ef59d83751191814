"""From a path to its images: a folder, a tar or zip, or an npz.

images = open_images(Path("samples.tar"), size=256)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogen.errors import DataError
from nanogen.images.archive import Archive
from nanogen.images.arrays import Arrays
from nanogen.images.base import Images
from nanogen.images.folder import Folder

KINDS = {".npz": Arrays, ".npy": Arrays, ".tar": Archive, ".zip": Archive}
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
"""what a compressed tar is called: refused there, with the remedy"""


def open_images(
    path: Path, size: int | None = None, classes: Sequence[str] = (), batch: int = 100
) -> Images:
    """The images at a path, `size` x `size` each (None: as they are); `classes` are the names of
    those of the data that they are compared with. DataError where there are none.
    """
    if path.expanduser().is_dir():
        return Folder(path, size, classes, batch)
    if not path.expanduser().exists():
        raise DataError(
            f"{path} does not exist; name a folder of images, or a {' or '.join(KINDS)}"
        )
    kind = KINDS.get(path.suffix.lower())
    if kind is None and path.suffix.lower() not in PACKED:
        raise DataError(f"{path} is no folder and no {', '.join(KINDS)} file of images; name one")
    return (kind or Archive)(path, size, classes, batch)
