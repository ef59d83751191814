"""Drawing samples: the noise is the sample's own, whatever batch it is drawn in."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_run
from torch import Tensor

from nanogen.errors import ConfigError
from nanogen.run import Parts, build
from nanogen.sampling.generate import Sampling
from nanogen.sampling.guidance import Guidance
from nanogen.types import Request

GUIDED = Sampling(steps=3, shift_base=None, guidance=Guidance(scale=2.0, high=0.9), batch=16)


@pytest.fixture(scope="module", params=["animals/pixels-v", "scenes/pixels-x"])
def parts(request: pytest.FixtureRequest) -> Parts:
    """A tiny untrained model whose output is not zero."""
    words = ("conditioner=words",) if request.param.startswith("scenes") else ()
    built = build(tiny_run(request.param, *words))
    generator = torch.Generator().manual_seed(0)
    for p in built.model.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    built.model.eval()
    return built


def draw(parts: Parts, request: Request, batch: int, **fields: object) -> Tensor:
    sampling = Sampling(
        **{
            "steps": 3,
            "shift_base": None,
            "guidance": Guidance(scale=2.0, high=0.9),
            "batch": batch,
        }
        | fields
    )
    sampler = parts.sampler(sampling)
    return torch.cat(
        [sampler.draw(request.rows(i, i + batch)) for i in range(0, len(request), batch)]
    )


def test_same_samples_in_any_batch(parts: Parts) -> None:
    request = parts.task.request(0, 16)
    whole = draw(parts, request, 16)
    assert whole.std() > 0.05
    for batch in (1, 7):
        assert (draw(parts, request, batch) - whole).abs().max() <= 1e-5


def test_same_sample_at_any_place(parts: Parts) -> None:
    """Samples 9 and 3 alone are what they are among all."""
    request = parts.task.request(0, 16)
    whole = draw(parts, request, 16)
    for index in (9, 3):
        alone = draw(parts, request.rows(index, index + 1), 1)
        assert (alone[0] - whole[index]).abs().max() <= 1e-5


def test_noise_follows_from_seed_and_index(parts: Parts) -> None:
    sampler = parts.sampler(GUIDED)
    noise = sampler.noise(torch.tensor([4, 0, 2**33]))["image"]
    assert torch.equal(sampler.noise(torch.tensor([0]))["image"][0], noise[1])
    other = parts.sampler(Sampling(seed=1)).noise(torch.tensor([4]))["image"]
    assert not torch.equal(other[0], noise[0])


def test_drawing_leaves_the_global_generator_alone(parts: Parts) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draw(parts, parts.task.request(0, 2), 2)
    assert torch.equal(torch.rand(3), expected)


def test_stream_cuts_a_request_into_batches(parts: Parts) -> None:
    sampler = parts.sampler(Sampling(steps=1, batch=3, shift_base=None))
    found = list(sampler.stream(parts.task.request(5, 12)))
    assert [len(rows) for rows, _ in found] == [3, 3, 1]
    assert torch.cat([rows.indices for rows, _ in found]).tolist() == list(range(5, 12))
    size = parts.task.source.size
    for rows, images in found:
        assert images.dtype == torch.uint8 and images.shape == (len(rows), 3, size, size)


def test_images_are_in_range(parts: Parts) -> None:
    images = draw(parts, parts.task.request(0, 4), 4)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1


def test_scale_one_never_runs_the_null_branch(parts: Parts) -> None:
    sizes: list[int] = []
    hook = parts.model.backbone.register_forward_hook(lambda _, given, out: sizes.append(1))
    try:
        draw(parts, parts.task.request(0, 2), 2, guidance=Guidance(scale=1.0))
        assert len(sizes) == 3
        sizes.clear()
        # Steps at t = 1, 2/3, 1/3, of which the first lies outside [0, 0.9].
        draw(parts, parts.task.request(0, 2), 2)
        assert len(sizes) == 5
    finally:
        hook.remove()


def test_shift_changes_the_grid(parts: Parts) -> None:
    request = parts.task.request(0, 2)
    plain = draw(parts, request, 2)
    dim = parts.tokenizer.spec.dim
    assert torch.equal(draw(parts, request, 2, shift_base=dim), plain)
    assert not torch.equal(draw(parts, request, 2, shift_base=dim // 4), plain)


@pytest.mark.parametrize(
    "fields", [{"solver": "eulr"}, {"steps": 0}, {"batch": 0}], ids=["solver", "steps", "batch"]
)
def test_refusals(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{next(iter(fields))}"):
        Sampling(**fields)
