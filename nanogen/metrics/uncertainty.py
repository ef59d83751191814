"""Standard errors of scores that judge one image at a time.

Images of one prompt are not independent: what is drawn anew is whole prompts. A bootstrap of images
would be too narrow, and a bootstrap of a Fréchet distance would be biased: neither is offered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanogen.metrics.base import Outcomes, Score

RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Judged:
    """The values of all images, ready to be averaged and resampled."""

    outcomes: Outcomes
    places: tuple[int, ...] = ()
    """of each image's prompt in the set that the metric brings: texts may come twice there"""

    def tags(self) -> tuple[str, ...]:
        """Those present, in the order of their first image."""
        return tuple(dict.fromkeys(self.outcomes.tags))

    def captions_hash(self) -> str:
        """Of the set of prompts, whatever their order and however often each is drawn."""
        said = repr(sorted(set(self.outcomes.prompts)))
        return hashlib.sha256(said.encode()).hexdigest()

    def mean_of_images(self, tag: str | None = None) -> float:
        """The mean over all images, or over those of a tag."""
        values, _ = self._of(tag)
        return float(values.mean())

    def mean_of_tags(self) -> float:
        """The mean of the means of the tags."""
        return float(np.mean([self.mean_of_images(tag) for tag in self.tags()]))

    def resampled(self, tag: str | None = None) -> np.ndarray:
        """[RESAMPLES]: the mean over images, each time over prompts drawn with replacement.

        Fewer than two prompts have no spread to show: nan.
        """
        values, prompts = self._of(tag)
        keys, places = np.unique(prompts, return_inverse=True)
        if len(keys) < 2:
            return np.full(RESAMPLES, np.nan)
        images, total = np.bincount(places), np.bincount(places, values)
        stratum = 0 if tag is None else 1 + self.tags().index(tag)
        rng = np.random.default_rng([SEED, stratum])
        drawn = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=RESAMPLES)
        return (drawn @ total) / (drawn @ images)

    def score_of_images(
        self, facts: Mapping[str, str | int | float], tag: str | None = None
    ) -> Score:
        """The mean over images, with the error of a bootstrap over prompts."""
        n = len(self._of(tag)[0])
        error = spread(self.resampled(tag))
        kept = self.outcomes if tag is None else None
        return Score(self.mean_of_images(tag), error, n, True, facts, kept)

    def score_of_tags(self, facts: Mapping[str, str | int | float]) -> Score:
        """The mean over tags; its error is of a bootstrap within each tag."""
        resampled = np.mean([self.resampled(tag) for tag in self.tags()], axis=0)
        n = len(self.outcomes.values)
        return Score(self.mean_of_tags(), spread(resampled), n, True, facts, self.outcomes)

    def _of(self, tag: str | None) -> tuple[np.ndarray, np.ndarray]:
        values, prompts = np.array(self.outcomes.values, float), np.array(self.outcomes.prompts)
        if tag is None:
            return values, prompts
        inside = np.array(self.outcomes.tags) == tag
        return values[inside], prompts[inside]


def spread(resampled: Sequence[float] | np.ndarray) -> float | None:
    """The standard deviation over resamples. None where there is none to see: prompts that all
    agree (and the nan of a single one) show no spread, which is not a spread of zero.
    """
    found = float(np.std(resampled, ddof=1))
    return found if found > 0 else None
