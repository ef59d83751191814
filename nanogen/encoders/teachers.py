"""Frozen networks that the terms of an objective learn from, each opened once.

    teachers = Teachers(image_size=256)
    dino = teachers.encoder("dinov2-vit-b[norm]")      # nothing is read yet
    dino.width                                         # 768
    dino(images).patches                               # now it is; the same images again are free

A term asks for its teachers when it is built, `build` of a run opens them, so that what is missing
is said before training. On the meta device, where parameters are only counted, none is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from nanogen.encoders.vision import VisionEncoder, VisionFeatures, find, open_encoder, parse
from nanogen.frozen import frozen

M = TypeVar("M", bound=nn.Module)


class Teacher(Generic[M]):
    """A frozen network that is opened when it is first needed. Not a module: it is not trained, not
    saved and not wrapped with what is.
    """

    def __init__(self, opener: Callable[[], M]) -> None:
        self._opener = opener
        self._network: M | None = None
        self._device = torch.device("cpu")

    @property
    def network(self) -> M:
        if self._network is None:
            self._network = self._opener().to(self._device)
            frozen(self._network)
        return self._network

    def open(self, device: torch.device) -> None:
        """Load the weights, on a device. A UserError says what is missing."""
        self._device = device
        self.network.to(device)


class EncoderTeacher(Teacher[VisionEncoder]):
    """A vision encoder. Where no gradient is wanted it sees the same images only once."""

    def __init__(self, name: str, image_size: int, path: str) -> None:
        super().__init__(lambda: open_encoder(name, image_size, path))
        self.name = name
        self.width = find(parse(name)[0]).width
        self._last: tuple[Tensor, VisionFeatures] | None = None

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.network.grid

    def __call__(self, images: Tensor) -> VisionFeatures:
        """float [B, 3, H, W] in [0, 1] -> features, with a gradient where the images have one.

        In float32, whatever precision surrounds it.
        """
        with torch.autocast(images.device.type, enabled=False):
            if images.requires_grad:
                return self.network(images.float())
            if self._last is None or self._last[0] is not images:
                with torch.no_grad():
                    self._last = images, self.network(images.float())
            return self._last[1]


class Teachers:
    """All teachers of a run."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._encoders: dict[tuple[str, str], EncoderTeacher] = {}
        self._others: list[Teacher[nn.Module]] = []

    def encoder(self, name: str, path: str = "") -> EncoderTeacher:
        """The vision encoder `name`, one for all terms that name it; ConfigError for an unknown
        name. `path` stands in for the hub.
        """
        if (name, path) not in self._encoders:
            self._encoders[name, path] = EncoderTeacher(name, self.image_size, path)
        return self._encoders[name, path]

    def module(self, opener: Callable[[], nn.Module]) -> Teacher[nn.Module]:
        """Any other frozen network."""
        self._others.append(Teacher(opener))
        return self._others[-1]

    def open(self, device: torch.device) -> None:
        """Open all that were asked for."""
        for teacher in [*self._encoders.values(), *self._others]:
            teacher.open(device)
