"""What every tokenizer promises."""

from __future__ import annotations

import pytest
import torch
from parts import UNTRAINED, built, entries, images, tokenizer_config

from nanogen.errors import ConfigError
from nanogen.registry import Entry
from nanogen.types import Tokenizer

SIZES = (64, 256)


def make(entry: Entry, size: int) -> Tokenizer:
    return built(entry, lambda: tokenizer_config(entry).build(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_shapes_are_those_of_the_spec(entry: Entry, size: int) -> None:
    tokenizer = make(entry, size)
    spec = tokenizer.spec
    latents = tokenizer.encode(images(2, size))
    assert latents.shape == (2, spec.channels, spec.height, spec.width)
    assert spec.height % spec.patch == spec.width % spec.patch == 0
    assert tokenizer.decode(latents).shape == (2, 3, size, size)


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_round_trip(entry: Entry) -> None:
    """Finite, of the same dtype, and closer to the image than a grey image is."""
    tokenizer, given = make(entry, 64), images(2, 64)
    # Smooth images: no lossy tokenizer keeps white noise.
    given = torch.nn.functional.avg_pool2d(given, 9, 1, 4)
    latents = tokenizer.encode(given)
    again = tokenizer.decode(latents)
    assert latents.dtype == again.dtype == given.dtype
    assert latents.isfinite().all() and again.isfinite().all()
    grey = (given - given.mean((2, 3), keepdim=True)).square().mean()
    assert entry.name in UNTRAINED or (again - given).square().mean() < grey


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_deterministic_row_by_row(entry: Entry) -> None:
    tokenizer, given = make(entry, 64), images(3, 64)
    latents = tokenizer.encode(given)
    torch.manual_seed(1)
    assert torch.equal(tokenizer.encode(given), latents)
    alone = tokenizer.encode(given[1:2])
    torch.testing.assert_close(alone[0], latents[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_decoding_can_be_differentiated(entry: Entry) -> None:
    """Losses on decoded images reach the latents."""
    tokenizer = make(entry, 64)
    latents = tokenizer.encode(images(1, 64)).detach().requires_grad_()
    tokenizer.decode(latents).square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_frozen(entry: Entry) -> None:
    tokenizer = make(entry, 64)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.train()
        assert not tokenizer.training
        assert not any(p.requires_grad for p in tokenizer.parameters())


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_fingerprint(entry: Entry) -> None:
    one, again, other = make(entry, 64), make(entry, 64), make(entry, 256)
    assert one.fingerprint == again.fingerprint and one.fingerprint
    assert "\n" not in one.fingerprint and other.fingerprint


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_a_size_that_does_not_fit_is_refused(entry: Entry) -> None:
    make(entry, 64)
    with pytest.raises(ConfigError, match="71"):
        tokenizer_config(entry).build(71)
