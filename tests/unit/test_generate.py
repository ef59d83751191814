"""Drawing samples: the noise is the sample's own, whatever batch it is drawn in."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_run
from torch import Tensor

from nanogen.errors import ConfigError
from nanogen.objectives.path import shift_ratio
from nanogen.run import Parts, build
from nanogen.sampling.generate import Sampling
from nanogen.sampling.guidance import Guidance
from nanogen.sampling.schedule import stochastic_times
from nanogen.types import Condition, Request, TextCondition

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


@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
def test_same_samples_in_any_batch(parts: Parts, solver: str) -> None:
    request = parts.task.request(0, 16)
    whole = draw(parts, request, 16, solver=solver)
    assert whole.std() > 0.05
    for batch in (1, 7):
        assert (draw(parts, request, batch, solver=solver) - whole).abs().max() <= 1e-5


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


def test_noise_of_a_step_follows_from_seed_step_and_index(parts: Parts) -> None:
    sampler = parts.sampler(GUIDED)
    indices = torch.tensor([4, 0, 2**33])
    noise = sampler.step_noise(indices, 2)["image"]
    assert noise.shape == sampler.noise(indices)["image"].shape
    assert torch.equal(sampler.step_noise(torch.tensor([2**33]), 2)["image"][0], noise[2])
    others = [sampler.step_noise(indices, 3), sampler.noise(indices)]
    others.append(parts.sampler(Sampling(seed=1)).step_noise(indices, 2))
    for other in others:
        assert (other["image"] * noise).mean().abs() < 0.1


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


@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
@pytest.mark.parametrize("final", ["velocity", "data"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_counts_are_what_the_network_sees(
    parts: Parts, solver: str, final: str, scale: float
) -> None:
    calls: list[int] = []
    fields = {"solver": solver, "final": final, "steps": 4}
    fields["guidance"] = Guidance(scale=scale, low=0.3, high=0.9)
    hook = parts.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        draw(parts, parts.task.request(0, 1), 1, **fields)
    finally:
        hook.remove()
    counts = parts.sampler(Sampling(shift_base=None, **fields)).counts()
    assert counts.network_calls == len(calls)
    assert counts.evaluations == (7 if solver == "heun" else 4)
    # Steps start at 1, 3/4, 1/2 and 1/4; those of the SDE at 1, 0.68, 0.36 and 0.04.
    assert counts.guided_steps == (0 if scale == 1 else 2)
    assert counts.auto_calls == 0


@pytest.mark.parametrize(
    "ratio, null_calls",
    [(1, 45), (2**0.5, 43), (2, 40), (8**0.5, 38), (48**0.5, 28), (8, 26)],
)
def test_the_share_of_guided_steps_depends_on_the_shift(
    parts: Parts, ratio: float, null_calls: int
) -> None:
    """Fifty steps guided on [0, 0.9]: what a record says, so that scales can be compared."""
    base = parts.tokenizer.spec.dim / ratio**2
    assert shift_ratio(parts.tokenizer.spec.dim, round(base)) == pytest.approx(ratio, rel=1e-2)
    sampling = Sampling(shift_base=round(base), guidance=Guidance(scale=2.0, high=0.9))
    facts = parts.sampler(sampling).facts()
    assert (facts["evaluations"], facts["guided_steps"]) == (50, null_calls)
    assert facts["network_calls"] == 50 + null_calls


def test_the_null_branch_has_no_captions(parts: Parts) -> None:
    """Steps start at 1, which is not guided, 2/3 and 1/3. A null caption has no token at all."""
    seen: list[Condition] = []
    hook = parts.model.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    try:
        draw(parts, parts.task.request(0, 3), 3)
    finally:
        hook.remove()
    null = [
        one.features.shape[1] == 0
        if isinstance(one, TextCondition)
        else one.ids.eq(len(parts.task.source.classes)).all().item()
        for one in seen
    ]
    assert null == [False, False, True, False, True]


def test_sde_grid_and_last_step(parts: Parts) -> None:
    sampler = parts.sampler(Sampling(solver="sde", steps=5, shift_base=parts.tokenizer.spec.dim))
    assert sampler.times() == stochastic_times(5)
    request = parts.task.request(0, 2)
    ends = {
        (solver, final): parts.sampler(
            Sampling(solver=solver, final=final, steps=3, shift_base=None)
        ).latents(request)["image"]
        for solver in ("euler", "sde")
        for final in ("velocity", "data")
    }
    # Of an x-prediction too: 1/3 is above the floor of time, where its velocity is exact.
    assert torch.allclose(ends["euler", "velocity"], ends["euler", "data"], atol=1e-5)
    # The drift of the SDE leads elsewhere: beyond the predicted data.
    assert not torch.allclose(ends["sde", "velocity"], ends["sde", "data"], atol=1e-3)


def test_shift_changes_the_grid(parts: Parts) -> None:
    request = parts.task.request(0, 2)
    plain = draw(parts, request, 2)
    dim = parts.tokenizer.spec.dim
    assert torch.equal(draw(parts, request, 2, shift_base=dim), plain)
    assert not torch.equal(draw(parts, request, 2, shift_base=dim // 4), plain)


@pytest.mark.parametrize(
    "fields",
    [{"solver": "eulr"}, {"steps": 0}, {"batch": 0}, {"seed": -1}, {"final": "datum"}],
    ids=["solver", "steps", "batch", "seed", "final"],
)
def test_refusals(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{next(iter(fields))}"):
        Sampling(**fields)
