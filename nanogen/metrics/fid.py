"""FID and sFID: Fréchet distances on the Inception of 2015, against a named reference.

    nanogen eval RUN --metrics fid                          against JiT's statistics of ImageNet 256
    nanogen eval RUN --metrics fid50k[reference=adm-in256]  of exactly 50,000 samples
    nanogen eval RUN --metrics fid[reference=data]          against the run's own training images
    nanogen eval RUN --metrics fid[reference=my-photos]     made by nanogen prepare stats

FID is Heusel et al. 2017 (arXiv 1706.08500), sFID Nash et al. 2021 (arXiv 2103.03841) with the
features that the evaluation of ADM reads. References of the same images differ by up to a fifth of
a good FID: which file it was stands in the facts of each score with its hash, and so does n.
"""

from __future__ import annotations

from collections.abc import Mapping

from nanogen.encoders.inception import NAME, WEIGHTS
from nanogen.metrics.base import Context, Unfit
from nanogen.metrics.frechet import FrechetDistance, reference_option
from nanogen.metrics.statistics_file import ADM_IN256, JIT_IN256, PUBLISHED
from nanogen.registry import register

PUBLISHED_SAMPLES = 50_000


class InceptionDistance(FrechetDistance):
    """Subclass with one of the network's outputs, and the default of the reference."""

    version = 1
    task = "any"
    network = NAME
    assets = (WEIGHTS, JIT_IN256, ADM_IN256)

    def __init__(self, context: Context, chosen: Mapping[str, str] | None = None) -> None:
        super().__init__(context, chosen)
        published = PUBLISHED.get(self.chosen["reference"])
        self.assets = (WEIGHTS, published) if published else (WEIGHTS,)


@register(
    "metric",
    "fid",
    summary="Fréchet Inception distance, of as many samples as there are",
    needs="inception-2015, and statistics such as jit-in256",
)
class Fid(InceptionDistance):
    """On the 2,048 pooled features; at least twice as many samples. Compare values of the same n
    only: `expected_of_real_images` in the facts says how much of it is due to n.
    """

    name = "fid"
    features = 2048
    minimum = 2 * features
    options = {"reference": reference_option(JIT_IN256.name, PUBLISHED)}


@register(
    "metric",
    "fid50k",
    summary="FID of exactly 50,000 samples, as it is published",
    needs="inception-2015, and statistics such as jit-in256",
)
class Fid50k(InceptionDistance):
    """The same on 50,000 samples, no more and no fewer: the number that tables of papers hold."""

    name = "fid50k"
    features = 2048
    minimum = PUBLISHED_SAMPLES
    options = {"reference": reference_option(JIT_IN256.name, PUBLISHED)}

    def check(self, samples: int) -> None:
        self.refuse_unknown()
        if samples > self.minimum:
            raise Unfit(
                f"metric {self.title} is of exactly {self.minimum} samples, not {samples} (fid "
                "takes any number, and says it)",
                self.minimum,
            )
        super().check(samples)


@register(
    "metric",
    "sfid",
    summary="Fréchet distance on spatial Inception features, as ADM has it",
    needs="inception-2015, adm-in256",
)
class SpatialFid(InceptionDistance):
    """On seven channels of 17 x 17 places (`mixed_6/conv`), 2,023 features. Of the published
    references only ADM's has their moments.
    """

    name = "sfid"
    feature = "spatial"
    features = 2023
    minimum = 2 * features
    options = {"reference": reference_option(ADM_IN256.name, PUBLISHED)}
