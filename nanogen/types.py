"""The nouns that cross every seam of the package. Read this file first.

Shape legend, used in every module:

    B batch   C latent channels   h w latent grid   H W pixels
    N image tokens   L text tokens   D width

Images are float in [0, 1], `[B, 3, H, W]`, everywhere inside. They become uint8 `[B, 3, H, W]`
only at the door of a metric or of a file, through `to_uint8`.

Time t is in [0, 1]: t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = dict[str, Tensor]
"""What is diffused: `{"image": [B, C, h, w]}`, and one more leaf for each term that adds one.

Paths, guidance, solvers and losses work leaf by leaf, so none of them knows what the leaves are.
"""


@dataclass(frozen=True)
class Batch:
    """Samples of a task. `labels` or `texts` is None where the task has none."""

    pixels: Tensor | None
    """float [B, 3, H, W] in [0, 1]; None where latents are stored and nothing else reads images"""
    keys: Tensor
    """int64 [B]: the position of each sample in the stream; all randomness of a sample follows
    from it
    """
    labels: Tensor | None = None
    """int64 [B]"""
    texts: tuple[str, ...] | None = None
    raw: Tensor | None = None
    """[B, R, h, w]: what the tokenizer's `raw` gives of the images, where it is stored, in the
    precision in which it is
    """

    @property
    def images(self) -> Tensor:
        """float [B, 3, H, W] in [0, 1]; RuntimeError where they were not read."""
        if self.pixels is None:
            raise RuntimeError(
                "images are not read where latents come from a cache; a term that reads them must "
                "set needs_images = True"
            )
        return self.pixels

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Request:
    """What to draw: labels or texts, and the noise index of each sample."""

    indices: Tensor
    """int64 [B]: the noise of a sample is a function of (sampling seed, index) alone"""
    labels: Tensor | None = None
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, start: int, stop: int) -> Request:
        return Request(
            self.indices[start:stop],
            None if self.labels is None else self.labels[start:stop],
            None if self.texts is None else self.texts[start:stop],
        )


@dataclass(frozen=True)
class LabelCondition:
    """Class ids. The id `classes` (one past the last class) is the null label."""

    ids: Tensor
    """int64 [B]"""

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, keep: Tensor, other: LabelCondition) -> LabelCondition:
        """Rows of self where `keep` (bool [B]) holds, of `other` elsewhere."""
        return LabelCondition(torch.where(keep, self.ids, other.ids))

    def at(self, rows: Tensor) -> LabelCondition:
        """The condition of some of the samples; `rows` int64 indices."""
        return LabelCondition(self.ids[rows])

    def to(self, device: torch.device) -> LabelCondition:
        return LabelCondition(self.ids.to(device))


@dataclass(frozen=True)
class TextCondition:
    """Token features of captions. A null caption has no real token: its mask is all False, L may
    be 0.
    """

    features: Tensor
    """float [B, L, D]; zero where the mask is False"""
    mask: Tensor
    """bool [B, L]; real tokens come first"""
    whole: bool = False
    """whether every token is known to be real, so that nobody need look at the mask"""

    def __len__(self) -> int:
        return len(self.features)

    def where(self, keep: Tensor, other: TextCondition) -> TextCondition:
        """Rows of self where `keep` (bool [B]) holds, of `other` elsewhere: tokens and mask
        together.
        """
        length = max(self.features.shape[1], other.features.shape[1])
        mine, theirs = self._padded(length), other._padded(length)
        return TextCondition(
            torch.where(keep[:, None, None], mine.features, theirs.features),
            torch.where(keep[:, None], mine.mask, theirs.mask),
        ).trimmed()

    def at(self, rows: Tensor) -> TextCondition:
        """The condition of some of the samples; `rows` int64 indices."""
        found = TextCondition(self.features[rows], self.mask[rows], self.whole)
        return found if self.whole else found.trimmed()

    def trimmed(self) -> TextCondition:
        """The same condition without the columns in which no row has a real token."""
        length = int(self.mask.sum(dim=1).max()) if self.mask.numel() else 0
        return TextCondition(self.features[:, :length], self.mask[:, :length])

    def to(self, device: torch.device) -> TextCondition:
        return TextCondition(self.features.to(device), self.mask.to(device), self.whole)

    def _padded(self, length: int) -> TextCondition:
        missing = length - self.features.shape[1]
        return TextCondition(
            torch.nn.functional.pad(self.features, (0, 0, 0, missing)),
            torch.nn.functional.pad(self.mask, (0, missing)),
        )


Condition: TypeAlias = LabelCondition | TextCondition


@dataclass(frozen=True)
class ConditionSpec:
    """What a backbone must know of its condition: `classes` for labels, or `width` for text
    features.
    """

    classes: int | None = None
    width: int | None = None
    tokens: int = 0
    """most text tokens of a caption"""


@dataclass(frozen=True)
class LatentSpec:
    """The space that is diffused: C channels on an h x w grid, cut into patches of `patch` x
    `patch`.
    """

    channels: int
    height: int
    width: int
    patch: int

    @property
    def dim(self) -> int:
        """C h w, which decides the shift of the noise schedule."""
        return self.channels * self.height * self.width

    @property
    def tokens(self) -> int:
        return (self.height // self.patch) * (self.width // self.patch)


@dataclass(frozen=True)
class Wiring:
    """What the objective and the terms of a run ask of its backbone, when it is built."""

    leaves: Mapping[str, int] = field(default_factory=dict)
    """width of each extra leaf of the state, by name (REG's `cls` is one)"""
    interval: bool = False
    """whether the network is told the length t - r of the step that it predicts (MeanFlow)"""
    scalars: tuple[str, ...] = ()
    """names of further numbers that condition the network, such as a scale of guidance"""
    heads: Mapping[str, int] = field(default_factory=dict)
    """further predictions of the image: the encoder block, from 1, that each head reads, by name"""


@dataclass(frozen=True)
class Prediction:
    """What a backbone returns: a state with the leaves of its input, and what else was asked
    for.
    """

    state: State
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """`"block<i>"` -> [B, leaves + N, D]: tokens of the leaves and of the image after encoder block
    i, counted from 1
    """
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> [B, C, h, w]: what each further head that was asked for predicts of the image"""


@dataclass(frozen=True)
class Losses:
    """Named losses of one batch, `[B]` each and unweighted, with the weight of each in the
    total.
    """

    parts: Mapping[str, Tensor]
    weights: Mapping[str, float]
    logged: Mapping[str, Tensor] = field(default_factory=dict)
    """what is logged beside them, `[B]` each, without a gradient: an error in its own unit, where
    the loss is divided by itself, say
    """

    def total(self) -> Tensor:
        """[B]: the weighted sum."""
        return torch.stack([self.weights[name] * part for name, part in self.parts.items()]).sum(0)


class Tokenizer(Protocol):
    """Images to the space that is diffused, and back. Normalisation lives inside."""

    spec: LatentSpec
    raw_fingerprint: str
    """changes whenever `raw` changes"""

    @property
    def fingerprint(self) -> str:
        """Changes whenever encode or decode changes."""
        ...

    def raw(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, R, h, w]: what a cache stores, not normalised."""
        ...

    def latents(self, raw: Tensor, keys: Tensor | None = None) -> Tensor:
        """What `raw` returned -> [B, C, h, w]; `keys` int64 [B] name the samples where it draws."""
        ...

    def encode(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, C, h, w], about zero mean and unit variance."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W]; values may leave [0, 1] slightly."""
        ...


class Conditioner(Protocol):
    """Labels or captions to what the backbone reads."""

    spec: ConditionSpec
    fingerprint: str

    def encode(self, given: Batch | Request) -> Condition: ...

    def null(self, count: int) -> Condition:
        """The condition of `count` samples without a condition."""
        ...


class Backbone(Protocol):
    def __call__(
        self,
        state: State,
        t: Tensor,
        condition: Condition,
        *,
        interval: Tensor | None = None,
        scalars: Mapping[str, Tensor] | None = None,
        want: Iterable[str] = (),
    ) -> Prediction:
        """Noisy state and time `[B]` to a prediction of the same leaves.

        `interval` [B], t - r >= 0, and `scalars`, each [B], are given exactly where the backbone
        was wired for them. `want` names features (`block3`) and heads.
        """
        ...


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] floats to 8-bit grey levels, rounded to the nearest (`round(255 x)`, clamped)."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """8-bit grey levels to floats in [0, 1]."""
    return images.float().div(255)
