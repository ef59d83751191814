"""Class labels as they are; the null label is one past the last class."""

from __future__ import annotations

import chz
import torch

from nanogen.data.base import Source
from nanogen.errors import ConfigError
from nanogen.registry import register
from nanogen.types import Batch, ConditionSpec, LabelCondition, Request


@register("conditioner", "labels", summary="class ids")
@chz.chz
class LabelsConfig:
    """Nothing to choose: the data says how many classes there are."""

    def build(self, source: Source) -> Labels:
        """ConfigError where the data has no classes."""
        if not source.classes:
            raise ConfigError("conditioner=labels needs a data set with classes; this one has none")
        return Labels(len(source.classes))


class Labels:
    """Labels in [0, classes) to ids; `classes` itself is the null id."""

    trainable = False

    def __init__(self, classes: int) -> None:
        self.spec = ConditionSpec(classes=classes)
        self.fingerprint = f"labels-{classes}"

    def encode(self, given: Batch | Request) -> LabelCondition:
        """Ids [B] on the device of the labels; ConfigError where the task gives texts."""
        if given.labels is None:
            raise ConfigError("conditioner=labels needs labels, but the task gives texts")
        return LabelCondition(given.labels)

    def null(self, count: int) -> LabelCondition:
        """`count` null ids, on the CPU."""
        assert self.spec.classes is not None
        return LabelCondition(torch.full((count,), self.spec.classes))
