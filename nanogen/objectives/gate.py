"""Terms that look at the predicted image, where little noise was added: what is predicted from much
noise is a mean of images and looks like none (PixelGen, arXiv 2602.02493).

    loss_i = 1[t_i < threshold] distance(x_hat_i, image_i)

The network of the distance sees the samples below the threshold alone. Images are compared as the
tokenizer decodes them, not clamped, with those of the data: in a latent space the term thus also
makes up for what the tokenizer loses, where a comparison with decoded clean latents would not.

The loss of a batch is the mean over all of its samples (`normalise_by=batch`), or over those below
the threshold (`gated`). The latter are counted over the whole optimiser step: which samples it has
and what their times are follows from their keys, so neither micro-batches nor processes matter.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, get_args

import chz
import torch
from torch import Tensor

from nanogen.errors import ConfigError
from nanogen.objectives.base import Facts, Step, Term
from nanogen.objectives.refusals import check_choice, check_weight

Mean = Literal["batch", "gated"]


@chz.chz
class GateFields:
    """What such terms have; each is a subclass with its own weight."""

    term: ClassVar[str]
    """its registered name"""

    weight: float
    threshold: float = chz.field(default=0.7, doc="samples with t below it are compared")
    normalise_by: Mean = chz.field(
        default="batch", doc="mean over all samples, or over those below the threshold"
    )

    @chz.validate
    def _gate(self) -> None:
        check_weight(self.term, self.weight)
        check_choice(f"terms.{self.term}.normalise_by", self.normalise_by, get_args(Mean))
        if not 0 < self.threshold <= 1:
            raise ConfigError(
                f"terms.{self.term}.threshold={self.threshold}: must be above 0 and at most 1, at "
                "which all samples are compared"
            )
        if self.threshold == 1 and self.normalise_by == "gated":
            raise ConfigError(
                f"terms.{self.term}.normalise_by=gated has no effect with threshold=1, which all "
                "samples pass; leave it out, or lower the threshold"
            )


class GatedTerm(Term):
    """Subclasses say what the distance of two images is."""

    needs_images = True
    needs_data = True

    def __init__(self, config: GateFields, facts: Facts) -> None:
        super().__init__()
        self.name = config.term
        self.weight = config.weight
        self.threshold = config.threshold
        self.by_gated = config.normalise_by == "gated"
        self.batch = facts.batch
        self.decode = facts.decode

    @abstractmethod
    def distance(self, found: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        """[K]: of the predicted images [K, 3, H, W] from those of `images` [B, 3, H, W] whose
        numbers are `rows`, int64 [K]; K is at least 1. Autocast is off.
        """

    def loss(self, step: Step) -> Tensor:
        """[B]; exactly 0, and without a gradient, for a sample that is not compared."""
        assert step.data is not None
        rows = (step.t < self.threshold).nonzero()[:, 0]
        x_hat = step.data["image"][rows].float()
        # With nothing to compare an empty sum keeps the loss in the graph.
        distances = x_hat.flatten(1).sum(1)
        if len(rows):
            with torch.autocast(x_hat.device.type, enabled=False):
                distances = self.distance(self.decode(x_hat), step.batch.images, rows).float()
        loss = distances.new_zeros(len(step.t)).index_copy(0, rows, distances)
        return loss * self._scale(step) if self.by_gated else loss

    def _scale(self, step: Step) -> Tensor:
        """[B]: samples of the optimiser step of each sample, over those that are compared."""
        if step.times is None:
            raise ConfigError(
                f"terms.{self.name}.normalise_by=gated counts the samples below the threshold, but "
                "the times of this objective are not known ahead; choose batch"
            )
        steps, which = (step.batch.keys // self.batch).unique(return_inverse=True)
        within = torch.arange(self.batch, device=steps.device)
        times = step.times((steps[:, None] * self.batch + within).flatten())
        compared = (times.view(-1, self.batch) < self.threshold).sum(1)
        # Where there are none the loss is 0 whatever its scale.
        return (self.batch / compared.clamp(min=1))[which]
