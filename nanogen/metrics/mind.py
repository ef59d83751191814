"""MIND, the Monge Inception Distance: how far sorted projections of two sets of features lie apart.

    mind(generated, real)                                        # [n, d] each, a number
    nanogen eval RUN --metrics mind,mind[network=dinov2_cls]     # mind/m1000-seed2020-n50000

arXiv 2605.06797, with the constants of its implementation in torch-fidelity. The value depends on
the number of directions, their seed and, most of all, on n: a finite sample has a floor, which
sinks with n. All three are therefore part of the name of a score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from nanogen.errors import ConfigError, MetricError
from nanogen.metrics.base import Context, Metric, Observation, Option, Score
from nanogen.metrics.image_array import ImageArray
from nanogen.metrics.reference import cached_features, load_encoder
from nanogen.metrics.spaces import FEATURE, SPACES, Space
from nanogen.registry import register
from nanogen.store import Asset, find

PROJECTIONS = 1000
SEED = 2020
AT_ONCE = 64
"""directions whose projections are held at once; changes memory only"""
ROWS = 8192
"""features that are projected at once; changes memory only"""
HELD_OUT = "held-out"
VALIDATION = Asset(
    name="imagenet-256-val",
    what="the 50,000 ImageNet validation images at 256 px, ADM layout (nobody publishes them)",
    licence="ImageNet terms of access",
    files=("imagenet-256-val.npz",),
    size="9.8 GB",
)


def mind(
    generated: Tensor,
    real: Tensor,
    projections: int = PROJECTIONS,
    seed: int = SEED,
    at_once: int = AT_ONCE,
) -> float:
    """`3 d mean_u mean_j (sort(X u)_j - sort(Y u)_j)^2` over random directions u (section 3 of the
    paper), of features X [n, d] and Y [m, d].

    Of the larger set as many as the smaller one has are drawn without replacement. The generator
    draws the permutations first and the directions then: unequal sets see other directions than
    equal ones. Projections are in float64, so that neither device nor chunks show. MetricError
    where sets are empty or of different widths.
    """
    if generated.shape[1] != real.shape[1] or not min(len(generated), len(real)):
        raise MetricError(
            f"MIND compares features of one width, not {tuple(generated.shape)} with "
            f"{tuple(real.shape)}; take both from the same network"
        )
    generator = torch.Generator().manual_seed(seed)
    n = min(len(generated), len(real))
    generated, real = (_fewer(features, n, generator) for features in (generated, real))
    width = generated.shape[1]
    drawn = torch.randn(projections, width, generator=generator)
    directions = (drawn.double() / drawn.double().norm(dim=1, keepdim=True)).to(generated.device)
    total = 0.0
    for part in directions.split(at_once):
        gaps = _sorted(generated, part) - _sorted(real, part)
        total += gaps.square().mean(0).sum().item()
    return 3 * width * total / projections


def _fewer(features: Tensor, n: int, generator: torch.Generator) -> Tensor:
    if len(features) == n:
        return features
    return features[torch.randperm(len(features), generator=generator)[:n].to(features.device)]


def _sorted(features: Tensor, directions: Tensor) -> Tensor:
    """[n, M] float64: projections of features [n, d] on directions [M, d], each sorted."""
    projected = torch.cat([rows.double() @ directions.T for rows in features.split(ROWS)])
    return projected.sort(dim=0).values


@register(
    "metric",
    "mind",
    summary="Monge Inception Distance to held-out images, also on five other networks",
    needs="the network, and imagenet-256-val unless reference=data",
)
class Mind(Metric):
    """Against raw features of real images that no model was trained on.

    From 1,000 samples, the fewest for which its paper shows values.
    """

    name = "mind"
    version = 1
    task = "class_conditional"
    minimum = 1000
    assets = (*(space.weights for space in SPACES.values()), VALIDATION)
    options = {
        "network": Option("space of features", "inception", tuple(SPACES)),
        "reference": Option(
            "real images: ImageNet's validation split, or the held-out split of the run's data",
            "imagenet",
            ("imagenet", "data"),
        ),
        "projections": Option("number of directions", str(PROJECTIONS)),
        "seed": Option("of the directions", str(SEED)),
    }

    def __init__(self, context: Context, chosen: Mapping[str, str] | None = None) -> None:
        super().__init__(context, chosen)
        self.projections = self._number("projections", least=1)
        self.seed = self._number("seed", least=0)
        self.assets = (self.space.weights, *([VALIDATION] if self.published else []))

    def _number(self, option: str, least: int) -> int:
        word = self.chosen[option]
        if not word.isdecimal() or int(word) < least:
            raise ConfigError(
                f"{self.title}: {option}={word}; write a whole number from {least} on"
            )
        return int(word)

    @property
    def space(self) -> Space:
        return SPACES[self.chosen["network"]]

    @property
    def published(self) -> bool:
        """Whether samples are compared with ImageNet's validation split."""
        return self.chosen["reference"] == "imagenet"

    @property
    def of_data(self) -> bool:
        return not self.published

    def check(self, samples: int) -> None:
        super().check(samples)
        if not self.published and not self.context.source.count(HELD_OUT):
            raise MetricError(
                f"{self.title}: the run's data set has no {HELD_OUT} split; "
                "leave reference=data out"
            )

    @cached_property
    def reference(self) -> Tensor:
        """[m, d] float32: features of all reference images."""
        context = self.context
        if self.published:
            prepared = find(VALIDATION)
            images = ImageArray(prepared.path, prepared.sha256, HELD_OUT)
            context = dataclasses.replace(context, source=images)
        return cached_features(context, self.space.network, FEATURE, HELD_OUT)

    def update(self, seen: Observation) -> None:
        features = seen.features(self.space.network)[FEATURE].float().cpu()
        self.rows.setdefault("features", []).append(features)

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        generated, real = rows["features"], self.reference
        device = self.context.device
        value = mind(generated.to(device), real.to(device), self.projections, self.seed)
        n = min(len(generated), len(real))
        facts = {
            "network": self.space.network,
            "network_hash": load_encoder(self.space.network, device).fingerprint,
            "reference": VALIDATION.file if self.published else f"{HELD_OUT} split",
            "reference_hash": (
                find(VALIDATION).sha256 if self.published else self.context.source.fingerprint
            ),
            "reference_images": len(real),
            "compared": n,
            "projections": self.projections,
            "seed": self.seed,
        }
        name = f"{self.name}/m{self.projections}-seed{self.seed}-n{n}"
        return {name: Score(value, None, len(generated), higher_is_better=False, facts=facts)}
