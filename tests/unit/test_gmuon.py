"""GMuon: Polar Express against the singular value decomposition, and its update by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanogen.errors import ConfigError
from nanogen.train.adamw import AdamWConfig
from nanogen.train.gmuon import GMuonConfig
from nanogen.train.orthogonal import JORDAN, POLAR_EXPRESS, orthogonalised


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The exact polar factor U V^T."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


# As published with the method: each polynomial divided by 1.05, 1.05^3, 1.05^5.
PUBLISHED = (
    (7.892583, -20.383014, 13.555306),
    (3.911485, -2.546464, 0.426899),
    (3.760658, -2.512819, 0.432365),
    (3.160400, -2.149650, 0.399637),
    (2.191097, -1.441662, 0.328146),
)


def test_coefficients() -> None:
    for found, expected in zip(POLAR_EXPRESS, PUBLISHED, strict=True):
        assert found == pytest.approx(expected, abs=6e-7)


def test_acceptance_for_a_gaussian_matrix() -> None:
    """Singular values in [0.84, 1.13], cosine to the polar factor above 0.996, update of root mean
    square 0.195 to 0.198 of the rate.
    """
    matrix = gaussian(64, 192)
    found = orthogonalised(matrix[None], POLAR_EXPRESS)[0]
    values = torch.linalg.svdvals(found)
    assert 0.84 <= values.min() and values.max() <= 1.13
    assert cosine(found, polar(matrix)) > 0.996
    assert 0.195 < (0.2 * 192**0.5 * found).square().mean().sqrt() < 0.198
    # Jordan's polynomial is further off.
    assert cosine(orthogonalised(matrix[None], JORDAN)[0], polar(matrix)) < 0.99


@pytest.mark.parametrize("half", [False, True])
def test_many_gaussian_matrices(half: bool) -> None:
    matrices = gaussian(100, 64, 192, seed=1)
    found = orthogonalised(matrices, POLAR_EXPRESS, half).float()
    values = torch.linalg.svdvals(found)
    assert 0.84 <= values.min() and values.max() <= 1.13
    similar = [cosine(one, polar(exact)) for one, exact in zip(found, matrices, strict=True)]
    assert sum(similar) / 100 > 0.996 and min(similar) > 0.995
    sizes = 0.2 * values.square().mean(1).sqrt()
    assert 0.195 < sizes.mean() < 0.198


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rows, columns", [(64, 192), (160, 160), (16, 17)])
def test_transposes(rows: int, columns: int, half: bool) -> None:
    matrices = gaussian(2, rows, columns)
    found = orthogonalised(matrices, POLAR_EXPRESS, half)
    assert found.dtype == (torch.float16 if half else torch.float32)
    other = orthogonalised(matrices.mT, POLAR_EXPRESS, half).mT
    torch.testing.assert_close(other, found, rtol=0, atol=3e-3 if half else 1e-5)


def test_half_precision_is_near_and_survives_any_scale() -> None:
    matrices = gaussian(3, 48, 96)
    exact = orthogonalised(matrices, POLAR_EXPRESS)
    for scale in (1e-6, 1.0, 1e6):
        found = orthogonalised(scale * matrices, POLAR_EXPRESS, half=True).float()
        assert (found - exact).norm() < 0.01 * exact.norm()
    assert not orthogonalised(torch.zeros(1, 4, 8), POLAR_EXPRESS, half=True).any()


def network() -> dict[str, nn.Parameter]:
    """A parameter of each kind, with gradients."""
    shapes = {
        "backbone.blocks.0.attn.weight": (24, 40),
        "backbone.blocks.0.attn.bias": (24,),
        "backbone.blocks.0.adaln_modulation.1.weight": (48, 24),
        "backbone.ctx_embedder.table.weight": (11, 24),
        "backbone.ctx_embedder.tokens": (8, 24),
        "backbone.final_layer.linear.weight": (12, 24),
        "backbone.x_embedder.weight": (24, 3, 2, 2),
    }
    found = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        found[name] = nn.Parameter(gaussian(*shape, seed=seed))
        found[name].grad = gaussian(*shape, seed=100 + seed)
    return found


@pytest.mark.parametrize("split, count", [("blocks", 1), ("matrices", 5)])
def test_who_is_orthogonalised(split: str, count: int) -> None:
    """`matrices` is the split of the released code: all that has two axes."""
    parameters = network()
    optimiser = GMuonConfig(split=split).build(parameters)
    names = {id(p): name for name, p in parameters.items()}
    mine = {names[id(p)] for p in optimiser.param_groups[0]["params"]}
    assert len(mine) == count and all(parameters[name].ndim == 2 for name in mine)
    rest = {names[id(p)] for group in optimiser.param_groups[1:] for p in group["params"]}
    assert mine.isdisjoint(rest) and mine | rest == set(parameters)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_three_steps_by_hand(precision: str) -> None:
    """M <- mu M + G; W <- W (1 - lr wd) - lr 0.2 sqrt(40) orthogonal(G + mu M), in the precision
    of the released code or in float32.
    """
    parameters = network()
    name = "backbone.blocks.0.attn.weight"
    p = parameters[name]
    optimiser = GMuonConfig(lr=0.1, weight_decay=0.5, precision=precision).build(parameters)
    weight, momentum = p.detach().clone(), torch.zeros(24, 40)
    for step in range(3):
        gradient = gaussian(24, 40, seed=10 + step)
        p.grad = gradient.clone()
        optimiser.step()
        momentum = 0.95 * momentum + gradient
        x = gradient + 0.95 * momentum
        x = x.bfloat16().float() if precision == "fp16" else x
        x = x / (x.square().sum().sqrt() + 1e-7)
        x = x.half() if precision == "fp16" else x
        for a, b, c in PUBLISHED:
            s = x @ x.T
            x = a * x + b * (s @ x) + c * (s @ (s @ x))
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 40**0.5 * x.float()
        tolerance = 2e-3 if precision == "fp16" else 2e-5
        torch.testing.assert_close(p.detach(), weight, rtol=0, atol=tolerance)


def test_the_rest_keeps_its_own_rate() -> None:
    """A schedule multiplies both rates; it does not put one in the place of the other."""
    optimiser = GMuonConfig(lr=3e-4, adamw=AdamWConfig(lr=7e-4)).build(network())
    assert [group["lr"] for group in optimiser.param_groups] == [3e-4, 7e-4]
    before = {name: p.detach().clone() for name, p in network().items()}
    parameters = network()
    GMuonConfig(lr=3e-4, adamw=AdamWConfig(lr=7e-4)).build(parameters).step()
    for name in ("backbone.blocks.0.attn.bias", "backbone.x_embedder.weight"):
        # The first step of AdamW is the sign of the gradient times the rate.
        moved = (parameters[name].detach() - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 7e-4), rtol=1e-3, atol=0)


def test_defaults_are_those_of_the_papers_adamw() -> None:
    config = GMuonConfig()
    assert (config.lr, config.momentum, config.weight_decay) == (2e-4, 0.95, 0.0)
    assert config.adamw == AdamWConfig()
    on_cpu = config.build(network())
    on_cpu.step()
    twin = network()
    GMuonConfig(precision="fp32").build(twin).step()
    group = on_cpu.param_groups[0]["params"]
    assert torch.equal(group[0], twin["backbone.blocks.0.attn.weight"])


@pytest.mark.parametrize(
    "fields", [{"split": "all"}, {"precision": "bf16"}, {"lr": -1.0}, {"momentum": 1.0}]
)
def test_refusals(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="optimiser"):
        GMuonConfig(**fields)
