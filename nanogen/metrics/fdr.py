"""FDr: how much further from ImageNet's train split samples are than its validation split is.

    nanogen eval RUN --metrics fdr-dinov2_cls           one space; also fdr-dinov2_cls/distance
    nanogen eval RUN --metrics fdr6                     the mean of six spaces, and each of them
    nanogen eval RUN --metrics fd-dinov2_cls            the plain distance to the run's own data
    nanogen eval RUN --metrics fd-dinov2_cls[reference=my-photos]    made by nanogen prepare stats

`FDr = FD(samples, train statistics) / FD(validation images, train statistics)` (Jiawei Yang's
FD-loss; DiffusionBench, arXiv 2606.24888), so that real images score 1. The divisors are published,
rounded constants: without a published one there is no FDr, only a Fréchet distance. Values are for
50,000 samples; fewer score higher. The tables of DiffusionBench print five spaces, without CLIP, so
the mean of six cannot be computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from nanogen.errors import MetricError
from nanogen.metrics.base import Context, Metric, Observation, Score
from nanogen.metrics.frechet import FrechetDistance, frechet_distance
from nanogen.metrics.gaussian import Gaussian, accumulate
from nanogen.metrics.reference import load_encoder, with_spectrum
from nanogen.metrics.spaces import FEATURE, SPACES, Space
from nanogen.metrics.statistics_file import load_statistics
from nanogen.registry import register
from nanogen.store import find


def needed(features: int) -> int:
    """Fewest samples: with as many as features a covariance is singular, and up to about twice
    that the upward bias of a Fréchet distance is as large as the differences it should show.
    """
    return 2 * features


class FrechetRatio(Metric):
    """Subclass with the spaces; their ratios and distances are parts of the score."""

    version = 1
    task = "class_conditional"
    spaces: ClassVar[tuple[Space, ...]]

    def check(self, samples: int) -> None:
        """Besides: MetricError where statistics are of other features than the network's."""
        super().check(samples)
        for space in self.spaces:
            found = len(self.statistics[space.key].mean)
            if found != space.features:
                raise MetricError(
                    f"{self.title}: {space.statistics.name} has {found} features, {space.network} "
                    f"has {space.features}; run: nanogen prepare {space.statistics.name}"
                )

    @cached_property
    def statistics(self) -> Mapping[str, Gaussian]:
        """Published moments of the train split, by the key of the space."""
        return {s.key: load_statistics(find(s.statistics).path) for s in self.spaces}

    def update(self, seen: Observation) -> None:
        for space in self.spaces:
            features = seen.features(space.network)[FEATURE]
            accumulate(self.sums, features, prefix=f"{space.key}/")

    def distances(self, sums: Mapping[str, Tensor]) -> dict[str, Score]:
        """The Fréchet distance in each space, by its key."""
        found = {}
        for space in self.spaces:
            generated = Gaussian.of_sums(sums, prefix=f"{space.key}/")
            reference = with_spectrum(self.statistics[space.key])
            value = frechet_distance(generated, reference)
            facts = facts_of(space, self.context)
            found[space.key] = Score(value, None, generated.n, higher_is_better=False, facts=facts)
        return found


def facts_of(space: Space, context: Context) -> dict[str, str | int | float]:
    """What decides whether two values can be compared."""
    return {
        "network": space.network,
        "network_hash": load_encoder(space.network, context.device).fingerprint,
        "reference": space.statistics.file,
        "reference_hash": find(space.statistics).sha256,
        "distance_of_validation_images": space.constant,
    }


def ratio_of(distance: Score, space: Space) -> Score:
    """The distance as a multiple of what 50,000 validation images have."""
    return Score(
        distance.value / space.constant,
        None,
        distance.n,
        higher_is_better=False,
        facts=distance.facts,
    )


def fdr6(ratios: Mapping[str, float]) -> float:
    """The arithmetic mean of the ratios of the six spaces, by key; MetricError where one lacks."""
    missing = [key for key in SPACES if key not in ratios]
    if missing:
        raise MetricError(
            f"fdr6 is the mean of {len(SPACES)} spaces and {', '.join(missing)} is missing; "
            "name the spaces that there are, such as fdr-inception, one by one"
        )
    return sum(ratios[key] for key in SPACES) / len(SPACES)


@register(
    "metric",
    "fdr6",
    summary="mean of FDr in six spaces, 1 for real images",
    licence="CC-BY-NC-4.0 (two of the networks)",
    needs="six networks and six files of statistics",
)
class Fdr6(FrechetRatio):
    """All six networks see each batch, so all of them are in memory: 1.5 billion parameters."""

    name = "fdr6"
    spaces = tuple(SPACES.values())
    minimum = needed(max(space.features for space in SPACES.values()))
    assets = tuple(asset for space in spaces for asset in (space.weights, space.statistics))

    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        distances = self.distances(sums)
        ratios = {space.key: ratio_of(distances[space.key], space) for space in self.spaces}
        mean = fdr6({key: score.value for key, score in ratios.items()})
        n = min(score.n for score in ratios.values())
        facts = {
            f"{fact}/{key}": score.facts[fact]
            for key, score in ratios.items()
            for fact in ("network_hash", "reference_hash")
        }
        scores = {self.name: Score(mean, None, n, higher_is_better=False, facts=facts)}
        return scores | {f"{self.name}/{key}": score for key, score in ratios.items()}


def _ratio(space: Space) -> type[FrechetRatio]:
    class Ratio(FrechetRatio):
        name = f"fdr-{space.key}"
        spaces = (space,)
        minimum = needed(space.features)
        assets = (space.weights, space.statistics)

        def compute(
            self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
        ) -> dict[str, Score]:
            (shown,) = self.spaces
            distance = self.distances(sums)[shown.key]
            return {self.name: ratio_of(distance, shown), f"{self.name}/distance": distance}

    return register(
        "metric",
        Ratio.name,
        summary=f"Fréchet distance on {space.network} over {space.constant:.2f}: 1 for real images",
        licence=space.weights.licence,
        needs=f"{space.weights.name}, {space.statistics.name}",
    )(Ratio)


def _distance(space: Space) -> type[FrechetDistance]:
    class Distance(FrechetDistance):
        name = f"fd-{space.key}"
        version = 1
        task = "any"
        minimum = needed(space.features)
        assets = (space.weights,)
        network = space.network
        feature = FEATURE
        features = space.features

    return register(
        "metric",
        Distance.name,
        summary=f"Fréchet distance on {space.network} to data of one's own (not FID, not FDr)",
        licence=space.weights.licence,
        needs=space.weights.name,
    )(Distance)


RATIOS = {key: _ratio(space) for key, space in SPACES.items()}
"""`fdr-<key>`, by key"""
DISTANCES = {key: _distance(space) for key, space in SPACES.items() if key != "inception"}
"""`fd-<key>`, by key; on Inception it is called FID"""
