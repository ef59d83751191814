"""Frozen networks that the terms of an objective learn from, each opened once.

    teachers = Teachers(image_size=256)
    dino = teachers.encoder("dinov2-vit-b")            # nothing is read yet
    dino.width                                         # 768
    dino(images).patches                               # now it is; the same images again are free

A term asks for its teachers when it is built, `build` of a run opens them, so that what is missing
is said before training. On the meta device, where parameters are only counted, none is opened.

Where the tokenizer of a run encodes by the very network of a teacher, both look once (`share`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from nanogen.encoders.vision import VisionEncoder, VisionFeatures, find, open_encoder, parse
from nanogen.errors import ConfigError
from nanogen.frozen import frozen
from nanogen.tokenizers.raw import groups_of, joined

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
            self._network = self._opened()
        return self._network

    def open(self, device: torch.device) -> None:
        """Load the weights, on a device. A UserError says what is missing."""
        self._device = device
        self.network.to(device)

    def _opened(self) -> M:
        network = self._opener().to(self._device)
        frozen(network)
        return network


class EncoderTeacher(Teacher[VisionEncoder]):
    """A vision encoder. Where no gradient is wanted it sees the same images only once."""

    def __init__(self, name: str, image_size: int, path: str) -> None:
        """ConfigError for an unknown name."""
        super().__init__(lambda: open_encoder(name, image_size, path))
        self.name = name
        self.width = find(parse(name)[0]).width
        self.owners: list[str] = []
        """the terms that asked for it, for messages"""
        self.sees_all = False
        """whether a term reads the features of every image of a batch"""
        self._size = image_size
        self._path = path
        self._checks: list[Check] = []
        self._last: tuple[Tensor, VisionFeatures] | None = None
        self._shared = False

    def share(self, encoder: VisionEncoder) -> bool:
        """Look through `encoder` from now on if it is the same network on the same pixels, and say
        so. Images then go through it as they do where latents are made (`raw_latents`): the same
        bits whoever looks first, and where latents are stored.
        """
        self._shared = self.network.fingerprint == encoder.fingerprint
        if self._shared:
            self._network = encoder
        return self._shared

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.network.grid

    def require(self, check: Check) -> None:
        """Have `check` see this teacher once it is open, and raise a ConfigError where it does not
        suit.
        """
        self._checks.append(check)
        if self._network is not None:
            check(self)

    def require_class_token(self, owner: str) -> None:
        """Have it refused, once it is open, where it has no class token nor what stands in for
        one; `owner` is the term that needs it.
        """

        def check(teacher: EncoderTeacher) -> None:
            blank = torch.zeros(1, 3, self._size, self._size, device=self._device)
            with torch.no_grad():
                cls = self._features(blank).cls
            if cls is None:
                raise ConfigError(
                    f"{owner}.encoder={self.name} has no class token; choose one that has, such as "
                    "dinov2-vit-b"
                )

        self.require(check)

    def __call__(self, images: Tensor) -> VisionFeatures:
        """float [B, 3, H, W] in [0, 1] -> features, with a gradient where the images have one.

        In float32, whatever precision surrounds it.
        """
        if torch.is_grad_enabled() and images.requires_grad:
            return self._features(images)
        return self._seen(images) or self._look(images)

    def rows(self, images: Tensor, rows: Tensor) -> VisionFeatures:
        """Features, without a gradient, of the images whose numbers are `rows`, int64 [K].

        Where a term reads all of the batch, or latents were made of it, they come from that pass;
        elsewhere no other image is looked at.
        """
        seen = self(images) if self.sees_all else self._seen(images)
        if seen is not None:
            return VisionFeatures(seen.patches[rows], None if seen.cls is None else seen.cls[rows])
        return self._frozen(images[rows])

    def _seen(self, images: Tensor) -> VisionFeatures | None:
        """Of the images that were looked at last."""
        return self._last[1] if self._last is not None and self._last[0] is images else None

    def _look(self, images: Tensor) -> VisionFeatures:
        found = self._frozen(images)
        self._last = images, found
        return found

    @torch.no_grad()
    def _frozen(self, images: Tensor) -> VisionFeatures:
        if not self._shared:
            return self._features(images)
        seen = [self._features(group) for group in groups_of(images)]
        cls = [one.cls for one in seen if one.cls is not None]
        return VisionFeatures(
            joined([one.patches for one in seen], len(images)),
            joined(cls, len(images)) if cls else None,
        )

    def _features(self, images: Tensor) -> VisionFeatures:
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images.float())

    def _opened(self) -> VisionEncoder:
        try:
            self._network = super()._opened()
        except ConfigError as problem:
            raise ConfigError(f"{' and '.join(self.owners)}: {problem}") from problem
        found = self._network.width
        if found != self.width:
            raise ConfigError(
                f"{' and '.join(self.owners)}: {self._path} holds an encoder of width {found}, but "
                f"{self.name} has {self.width}; give the files of {self.name}, or name the encoder "
                "that they are of"
            )
        for check in self._checks:
            check(self)
        return self._network


Check: TypeAlias = Callable[[EncoderTeacher], None]


class Teachers:
    """All teachers of a run."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._encoders: dict[tuple[str, str], EncoderTeacher] = {}
        self._others: list[Teacher[nn.Module]] = []

    def encoder(
        self, name: str, path: str = "", *, owner: str = "terms", sees_all: bool = True
    ) -> EncoderTeacher:
        """The vision encoder `name`, one for all terms that name it; ConfigError for an unknown
        name.

        `path` stands in for the hub. `owner` is the term that asks, such as `terms.repa`;
        `sees_all` whether it reads the features of every image of a batch.
        """
        if (name, path) not in self._encoders:
            try:
                self._encoders[name, path] = EncoderTeacher(name, self.image_size, path)
            except ConfigError as problem:
                raise ConfigError(f"{owner}: {problem}") from problem
        teacher = self._encoders[name, path]
        teacher.owners.append(owner)
        teacher.sees_all |= sees_all
        return teacher

    def module(self, opener: Callable[[], M]) -> Teacher[M]:
        """Any other frozen network."""
        teacher = Teacher(opener)
        self._others.append(teacher)  # ty: ignore[invalid-argument-type]
        return teacher

    def open(self, device: torch.device) -> None:
        """Open all that were asked for."""
        for teacher in [*self._encoders.values(), *self._others]:
            teacher.open(device)

    def share(self, encoder: VisionEncoder) -> EncoderTeacher | None:
        """The teacher, once open, that is the same network as `encoder`, which takes its place;
        None where there is none.
        """
        return next((one for one in self._encoders.values() if one.share(encoder)), None)
