"""What is measured besides a run of ours: images that are there already.

images = Folder(Path("samples"), size=256)
for request, pixels in images.read(0, images.count()):    # uint8 [B, 3, 256, 256]
    ...
images.skipped                                            # {"broken.png": "why"}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor

from nanogen.bench.record import Plain
from nanogen.types import Request


class Images(Protocol):
    """Images that are there already, or can be made: what an evaluation measures besides a run of
    ours.
    """

    name: str
    """for records: the name of the folder or file"""
    origin: str
    """path as given"""
    fingerprint: str
    """changes whenever an image or a caption changes; cheap to make: names, sizes and times"""

    @property
    def facts(self) -> Mapping[str, Plain]:
        """What a record must say: layout, sizes, and how many images are converted in which way.

        Of all images, whoever reads which of them; from the heads of the files on first use.
        """
        ...

    @property
    def unknown_class(self) -> str:
        """Why no image has a class, in a few words; "" where that is not known."""
        ...

    @property
    def skipped(self) -> Mapping[str, str]:
        """File name -> reason, of what `read` left out so far, on this process."""
        ...

    def count(self) -> int:
        """Images that are there, broken ones included."""
        ...

    def request(self, start: int, stop: int) -> Request:
        """Indices start .. stop, clipped to the count, with labels or texts where known."""
        ...

    def read(self, start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        """Images start .. stop in order, uint8 [B, 3, H, W] in batches of equal size, on the CPU.

        Broken ones are left out and put into `skipped`; DataError once all of them are.
        """
        ...


def rows_of(request: Request, rows: list[int]) -> Request:
    """The request of some of its samples."""
    texts = request.texts
    return Request(
        request.indices[rows],
        None if request.labels is None else request.labels[rows],
        None if texts is None else tuple(texts[row] for row in rows),
    )
