"""What every tokenizer promises."""

from __future__ import annotations

import pytest
import torch
from parts import IMAGE_SIZES, UNTRAINED, built, entries, images, tokenizer_config

from nanogen.data.animals import Animals
from nanogen.errors import ConfigError
from nanogen.registry import Entry
from nanogen.types import Tokenizer, to_float


def sizes(entry: Entry) -> tuple[int, int]:
    """A small and a larger image, in pixels a side."""
    return IMAGE_SIZES.get(entry.name, (64, 256))


def make(entry: Entry, size: int) -> Tokenizer:
    return built(entry, lambda: tokenizer_config(entry).build(size))


def small(entry: Entry) -> Tokenizer:
    return make(entry, sizes(entry)[0])


@pytest.mark.parametrize("which", [0, 1], ids=["small", "larger"])
@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_shapes_are_those_of_the_spec(entry: Entry, which: int) -> None:
    size = sizes(entry)[which]
    tokenizer = make(entry, size)
    spec = tokenizer.spec
    latents = tokenizer.encode(images(2, size))
    assert latents.shape == (2, spec.channels, spec.height, spec.width)
    assert spec.height % spec.patch == spec.width % spec.patch == 0
    assert tokenizer.decode(latents).shape == (2, 3, size, size)


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_round_trip(entry: Entry) -> None:
    """Finite, of the same dtype, and closer to the image than a grey image is."""
    # Real images: no lossy tokenizer keeps white noise.
    tokenizer, source = small(entry), Animals(size=sizes(entry)[0]).build()
    given = to_float(torch.stack([source.read("held-out", n, 0).image for n in (0, 900)]))
    latents = tokenizer.encode(given)
    again = tokenizer.decode(latents)
    assert latents.dtype == again.dtype == given.dtype
    assert latents.isfinite().all() and again.isfinite().all()
    grey = (given - given.mean((2, 3), keepdim=True)).square().mean()
    assert entry.name in UNTRAINED or (again - given).square().mean() < grey


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_deterministic_row_by_row(entry: Entry) -> None:
    tokenizer, given = small(entry), images(3, sizes(entry)[0])
    latents = tokenizer.encode(given)
    torch.manual_seed(1)
    assert torch.equal(tokenizer.encode(given), latents)
    alone = tokenizer.encode(given[1:2])
    torch.testing.assert_close(alone[0], latents[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_decoding_can_be_differentiated(entry: Entry) -> None:
    """Losses on decoded images reach the latents."""
    tokenizer = small(entry)
    latents = tokenizer.encode(images(1, sizes(entry)[0])).detach().requires_grad_()
    tokenizer.decode(latents).square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_frozen(entry: Entry) -> None:
    tokenizer = small(entry)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.train()
        assert not tokenizer.training
        assert not any(p.requires_grad for p in tokenizer.parameters())


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_fingerprint(entry: Entry) -> None:
    one, again, other = small(entry), small(entry), make(entry, sizes(entry)[1])
    assert one.fingerprint == again.fingerprint and one.fingerprint
    assert "\n" not in one.fingerprint and other.fingerprint


@pytest.mark.parametrize("entry", entries("tokenizer"))
def test_a_size_that_does_not_fit_is_refused(entry: Entry) -> None:
    small(entry)
    with pytest.raises(ConfigError, match="71"):
        tokenizer_config(entry).build(71)
