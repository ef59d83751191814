"""AdamW and Muon: their updates, their groups, and their one state."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from nanogen.errors import ConfigError
from nanogen.train.adamw import AdamWConfig
from nanogen.train.gmuon import GMuonConfig
from nanogen.train.momentum import cost, shares
from nanogen.train.muon import MuonConfig
from nanogen.train.orthogonal import orthogonalised


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows, columns", [(64, 192), (192, 64), (16, 17), (160, 160)])
def test_orthogonalised(rows: int, columns: int) -> None:
    """All singular values near 1, and close to the exact polar factor U V^T."""
    matrices = gaussian(3, rows, columns)
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    # A square Gaussian has singular values near zero, which five steps do not reach.
    low = 0.65 if rows != columns and abs(rows - columns) > 1 else 0.0
    assert low < values.min() and values.max() < 1.25
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ v
    cosine = (found * exact).sum((1, 2)) / (found.norm(dim=(1, 2)) * exact.norm(dim=(1, 2)))
    assert cosine.min() > 0.97


def test_transposes_and_scales() -> None:
    matrices = gaussian(2, 24, 40)
    assert torch.allclose(orthogonalised(matrices.mT), orthogonalised(matrices).mT, atol=1e-6)
    assert torch.allclose(orthogonalised(1e4 * matrices), orthogonalised(matrices), atol=1e-4)
    assert torch.equal(orthogonalised(matrices)[1:], orthogonalised(matrices[1:]))
    assert not orthogonalised(torch.zeros(1, 4, 8)).any()


class Toy(nn.Module):
    """One parameter of each kind, named as in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        block = nn.Module()
        block.attn = nn.Linear(32, 64)
        block.mlp = nn.Linear(32, 64, bias=False)
        block.adaln_modulation = nn.Linear(32, 64)
        self.backbone.blocks = nn.ModuleList([block])
        self.backbone.embed = nn.Embedding(10, 32)
        self.backbone.final_layer = nn.Linear(32, 8)
        for number, p in enumerate(self.parameters()):
            p.data = gaussian(*p.shape, seed=number)
            p.grad = gaussian(*p.shape, seed=100 + number)


MATRICES = {"backbone.blocks.0.attn.weight", "backbone.blocks.0.mlp.weight"}


def test_who_gets_muon() -> None:
    """Only matrices of blocks: tables, heads, modulations, norms and biases have no such rows."""
    toy = Toy()
    optimiser = MuonConfig().build(dict(toy.named_parameters()))
    names = {id(p): name for name, p in toy.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimiser.param_groups]
    assert groups[0] == MATRICES
    assert set.union(*groups[1:]) == set(names.values()) - MATRICES
    assert [group["lr"] for group in optimiser.param_groups] == [0.015, 2e-3]


def test_update_of_a_matrix() -> None:
    """First step: (1 + momentum) G orthogonalised, with a root mean square near 0.2 lr."""
    toy = Toy()
    before = {name: p.detach().clone() for name, p in toy.named_parameters()}
    MuonConfig(lr=0.01).build(dict(toy.named_parameters())).step()
    for name in MATRICES:
        p = dict(toy.named_parameters())[name]
        step = before[name] - p.detach()
        expected = 0.01 * 0.2 * 64**0.5 * orthogonalised(p.grad[None])[0]
        assert torch.allclose(step, expected, atol=1e-6)
        assert 0.15 < step.square().mean().sqrt() / 0.01 < 0.24


def test_momentum_is_nesterov() -> None:
    p = nn.Parameter(gaussian(8, 16))
    optimiser = MuonConfig(lr=1.0, momentum=0.9).build(
        {"blocks.0.w": p, "b": nn.Parameter(p[0].clone())}
    )
    momentum = torch.zeros(8, 16)
    for step in range(3):
        p.grad = gaussian(8, 16, seed=10 + step)
        before, momentum = p.detach().clone(), 0.9 * momentum + p.grad
        optimiser.step()
        expected = 0.2 * 4 * orthogonalised((p.grad + 0.9 * momentum)[None])[0]
        assert torch.allclose(before - p.detach(), expected, atol=1e-5)


def test_the_rest_is_plain_adamw_with_its_own_rate() -> None:
    toy, twin = Toy(), Toy()
    muon = MuonConfig(adamw=AdamWConfig(lr=3e-3)).build(dict(toy.named_parameters()))
    rest = {name: p for name, p in twin.named_parameters() if name not in MATRICES}
    adamw = AdamWConfig(lr=3e-3).build(rest)
    for factor in (1.0, 0.5, 0.5):
        # What a schedule does: the same factor on every group's own rate.
        for optimiser, rates in ((muon, (0.015, 3e-3)), (adamw, (3e-3,))):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()
    ours = dict(toy.named_parameters())
    assert all(torch.equal(ours[name], p) for name, p in rest.items())


def test_one_state_holds_both() -> None:
    toy = Toy()
    parameters = dict(toy.named_parameters())
    optimiser = MuonConfig().build(parameters)
    optimiser.step()
    kinds = {name: set(optimiser.state[p]) for name, p in parameters.items()}
    for name, moments in kinds.items():
        expected = {"momentum"} if name in MATRICES else {"step", "exp_avg", "exp_avg_sq"}
        assert moments == expected
    optimiser.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in parameters.values())


def test_a_parameter_without_a_gradient_stays() -> None:
    toy = Toy()
    toy.backbone.blocks[0].attn.weight.grad = None
    before = toy.backbone.blocks[0].attn.weight.detach().clone()
    MuonConfig(weight_decay=0.5).build(dict(toy.named_parameters())).step()
    assert torch.equal(toy.backbone.blocks[0].attn.weight, before)


def test_weight_decay_shrinks_before_the_step() -> None:
    p = nn.Parameter(gaussian(8, 16))
    p.grad = torch.zeros(8, 16)
    before = p.detach().clone()
    config = MuonConfig(lr=0.1, weight_decay=0.5)
    config.build({"blocks.0.w": p, "b": nn.Parameter(p[0].clone())}).step()
    assert torch.allclose(p, before * 0.95)


def test_the_step_is_that_of_torch_to_rounding() -> None:
    """`torch.optim.Muon` iterates in bfloat16, and its momentum is smaller by a constant."""
    ours, theirs = nn.Parameter(gaussian(48, 160)), nn.Parameter(gaussian(48, 160))
    mine = MuonConfig(lr=0.02, weight_decay=0.1).build(
        {"blocks.0.w": ours, "b": nn.Parameter(torch.zeros(1))}
    )
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        ours.grad = gaussian(48, 160, seed=step)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    moved = ours.detach() - gaussian(48, 160)
    assert (ours - theirs).norm() < 0.01 * moved.norm()


def test_shares_balance_costs() -> None:
    """The longest-first rule: never above mean + largest, here within 2 % of the mean."""
    shapes = [(1152, 1152)] * 112 + [(3072, 1152)] * 56 + [(1152, 3072)] * 28
    shapes += [(2048, 2048)] * 8 + [(5461, 2048)] * 4 + [(2048, 5461)] * 2
    costs = [cost(shape) for shape in shapes]
    for count in (1, 2, 3, 8):
        loads = [0] * count
        for owner, one in zip(shares(costs, count), costs, strict=True):
            loads[owner] += one
        assert sum(loads) == sum(costs) and max(loads) < 1.02 * sum(costs) / count
    assert shares([5, 5, 1], 4) == [0, 1, 2]
    assert cost((3, 7)) == cost((7, 3)) == 9 * 17


def test_a_network_without_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose optimiser=adamw"):
        MuonConfig().build({"b": nn.Parameter(torch.zeros(3))})


def test_adamw_defaults_are_the_papers() -> None:
    group = AdamWConfig().build({"w": nn.Parameter(torch.zeros(2))}).param_groups[0]
    found = [group[name] for name in ("lr", "betas", "eps", "weight_decay")]
    assert found == [2e-4, (0.9, 0.95), 1e-8, 0.0]


@pytest.mark.parametrize(
    "config, fields",
    [(AdamWConfig, {"lr": -1.0}), (AdamWConfig, {"betas": (0.9, 1.0)}), (MuonConfig, {"lr": -1.0})]
    + [(MuonConfig, {"momentum": 1.0}), (AdamWConfig, {"weight_decay": -0.1})]
    + [(MuonConfig, {"lr": math.inf}), (GMuonConfig, {"weight_decay": math.inf})]
    + [(AdamWConfig, {"lr": math.inf}), (AdamWConfig, {"eps": math.inf})],
)
def test_refusals(config: type, fields: dict[str, object]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(ConfigError, match=re.escape(f"optimiser: {name}={value} must")):
        config(**fields)
