"""Labels as a condition."""

from types import SimpleNamespace

import pytest
import torch

from nanogen import registry
from nanogen.errors import ConfigError
from nanogen.types import Request


def labels(classes=3):
    names = tuple("abcdefgh"[:classes])
    return registry.get("conditioner", "labels")().build(SimpleNamespace(classes=names))


def test_labels_pass_and_null_is_one_past_the_last():
    conditioner = labels(3)
    ids = torch.tensor([2, 0, 1, 2])
    condition = conditioner.encode(Request(torch.arange(4), labels=ids))
    assert condition.ids.tolist() == [2, 0, 1, 2]
    null = conditioner.null(4)
    assert null.ids.tolist() == [3, 3, 3, 3] and null.ids.dtype == torch.int64
    kept = torch.tensor([True, False, True, False])
    assert condition.where(kept, null).ids.tolist() == [2, 3, 1, 3]
    assert conditioner.spec.classes == 3 and conditioner.spec.width is None
    assert not conditioner.trainable


def test_wrong_tasks_are_refused():
    with pytest.raises(ConfigError, match="needs labels, but the task gives texts"):
        labels().encode(Request(torch.arange(1), texts=("a cow",)))
    with pytest.raises(ConfigError, match="needs a data set with classes"):
        labels(0)


def test_fingerprint_follows_the_number_of_classes():
    assert labels(3).fingerprint == labels(3).fingerprint != labels(4).fingerprint
