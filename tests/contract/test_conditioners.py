"""What every conditioner promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parts import built, entries
from torch import nn

from nanogen.data.scenes import Scenes
from nanogen.registry import Entry
from nanogen.types import Batch, LabelCondition, Request, TextCondition

# A source with both classes and captions.
SOURCE = Scenes().build()
TEXTS = (SOURCE.prompts()[0], "", SOURCE.prompts()[-1], "an unheard-of thing")
LABELS = torch.tensor([0, 3, 9, 3])


def make(entry: Entry) -> Any:
    torch.manual_seed(0)
    return built(entry, lambda: entry.target().build(SOURCE))


def request(rows: slice = slice(None)) -> Request:
    indices = torch.arange(4)[rows]
    return Request(indices, labels=LABELS[rows], texts=TEXTS[rows])


@pytest.mark.parametrize("entry", entries("conditioner"))
def test_encode(entry: Entry) -> None:
    conditioner = make(entry)
    found = conditioner.encode(request())
    assert len(found) == 4
    if isinstance(found, LabelCondition):
        assert found.ids.dtype == torch.int64
        assert 0 <= found.ids.min() and found.ids.max() < conditioner.spec.classes
    else:
        width, tokens = conditioner.spec.width, conditioner.spec.tokens
        assert found.features.shape == (*found.mask.shape, width)
        assert 0 < found.mask.shape[1] <= tokens
        assert found.features.isfinite().all() and not found.features[~found.mask].any()
        # Real tokens come first, and an empty caption has none.
        assert torch.equal(found.mask, found.mask.sort(1, descending=True).values)
        assert found.mask.any(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("entry", entries("conditioner"))
def test_a_batch_is_encoded_like_a_request(entry: Entry) -> None:
    conditioner = make(entry)
    batch = Batch(torch.zeros(4, 3, 8, 8), torch.arange(4), labels=LABELS, texts=TEXTS)
    one, other = conditioner.encode(batch), conditioner.encode(request())
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("entry", entries("conditioner"))
def test_rows_depend_on_themselves_only(entry: Entry) -> None:
    conditioner = make(entry)
    together = conditioner.encode(request())
    for row in range(4):
        alone = conditioner.encode(request(slice(row, row + 1)))
        if isinstance(together, LabelCondition):
            assert alone.ids[0] == together.ids[row]
        else:
            mine = together.features[row][together.mask[row]]
            torch.testing.assert_close(alone.features[0][alone.mask[0]], mine, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("entry", entries("conditioner"))
def test_null(entry: Entry) -> None:
    conditioner = make(entry)
    found, null = conditioner.encode(request()), conditioner.null(4)
    assert type(null) is type(found) and len(null) == 4
    if isinstance(null, TextCondition):
        assert not null.mask.any()
    else:
        assert set(null.ids.tolist()) == {conditioner.spec.classes}
    mixed = found.where(torch.tensor([True, True, False, False]), null)
    assert len(mixed) == 4


@pytest.mark.parametrize("entry", entries("conditioner"))
def test_trained_or_frozen(entry: Entry) -> None:
    conditioner = make(entry)
    if conditioner.trainable:
        assert isinstance(conditioner, nn.Module)
        conditioner.encode(request()).features.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in conditioner.parameters())
    elif isinstance(conditioner, nn.Module):
        conditioner.train()
        assert not any(module.training for module in conditioner.modules())
        assert not any(p.requires_grad for p in conditioner.parameters())


@pytest.mark.parametrize("entry", entries("conditioner"))
def test_same_again(entry: Entry) -> None:
    one, again = make(entry), make(entry)
    assert one.fingerprint == again.fingerprint and one.spec == again.spec
    values = zip(
        vars(one.encode(request())).values(), vars(again.encode(request())).values(), strict=True
    )
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in values)
