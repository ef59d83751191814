"""REPA and iREPA against numpy, on the tokens of the embedded encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_run
from term_steps import SIZE, TOKENS, WIDTH, encoder, facts, silhouettes, step
from tiny_encoders import write_encoder
from torch import Tensor, nn

from nanogen import config
from nanogen.encoders.teachers import Teachers
from nanogen.errors import ConfigError
from nanogen.model import parameter_count
from nanogen.objectives.base import Facts
from nanogen.objectives.flow import FlowConfig
from nanogen.objectives.reg import RegConfig
from nanogen.objectives.repa import Repa, RepaConfig, resampled, spatially_normalised
from nanogen.run import build
from nanogen.types import LatentSpec

ALL_T = torch.linspace(0.1, 0.9, 6)


def repa(given: Facts | None = None, **fields: object) -> Repa:
    torch.manual_seed(0)
    known = {"encoder": "animals-vit", "block": 2} | fields
    return RepaConfig(**known).build(given or facts())


def features(count: int = TOKENS, width: int = WIDTH) -> Tensor:
    return torch.randn(6, count, width, generator=torch.Generator().manual_seed(5))


def loss_of(term: Repa, tokens: Tensor, **leaves: Tensor) -> Tensor:
    return term.loss(step(ALL_T, silhouettes() * 2 - 1, tokens, **leaves))


@torch.no_grad()
def seen() -> np.ndarray:
    return encoder()(silhouettes()).patches.double().numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def test_mean_square_of_a_linear_map() -> None:
    """As released: the mean over tokens and channels."""
    term = repa()
    told = linear(term.projector, features().double().numpy())
    expected = ((told - seen()) ** 2).mean((1, 2))
    assert loss_of(term, features()).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_cosine_of_three_layers() -> None:
    """As published, but for the constant: minus the mean cosine there, one minus it here."""
    term = repa(loss="cosine", projector="mlp3", hidden=20)
    x = features().double().numpy()
    for index in (0, 2, 4):
        x = linear(term.projector[index], x)
        x = x / (1 + np.exp(-x)) if index < 4 else x
    expected = 1 - cosines(x, seen()).mean(1)
    assert loss_of(term, features()).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_improved() -> None:
    """iREPA: a convolution on the grid, and tokens standardised over the image."""
    term = repa(loss="cosine", projector="conv3", spatial_norm=True)
    weight = term.projector.conv.weight.detach().double().numpy()
    padded = np.pad(
        features().double().numpy().reshape(6, 7, 7, WIDTH), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    told = term.projector.conv.bias.detach().double().numpy() + sum(
        padded[:, r : r + 7, c : c + 7] @ weight[:, :, r, c].T for r in range(3) for c in range(3)
    )
    z = seen()
    z = (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-6)
    expected = 1 - cosines(told.reshape(6, TOKENS, -1), z).mean(1)
    assert loss_of(term, features()).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_spatial_norm(gamma: float) -> None:
    tokens = features() * 3 + 2
    found = spatially_normalised(tokens, gamma)
    z = tokens.double().numpy()
    expected = (z - gamma * z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-6)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    if gamma == 1:
        assert found.mean(1).abs().max() < 1e-5
        assert torch.allclose(found.std(1), torch.ones(6, WIDTH), atol=1e-4)


def test_the_gradient_of_the_cosine_is_that_of_the_published_loss() -> None:
    """Nothing but a constant was added; and the least loss is 0."""
    tokens = features().requires_grad_()
    term = repa(loss="cosine")
    (found,) = torch.autograd.grad(loss_of(term, tokens).sum(), tokens)
    wanted = encoder()(silhouettes()).patches
    told = term.projector(tokens)
    cosine = (told * wanted).sum(-1) / (told.norm(dim=-1) * wanted.norm(dim=-1))
    (expected,) = torch.autograd.grad(-cosine.mean(1).sum(), tokens)
    assert found.any() and torch.allclose(found, expected, atol=1e-7)
    term.projector = nn.Identity()
    assert loss_of(term, 3 * wanted).abs().max() < 1e-6
    assert torch.allclose(loss_of(term, -wanted), torch.full((6,), 2.0))


def test_an_exact_projection_has_no_mean_square() -> None:
    term = repa()
    term.projector = nn.Identity()
    assert not loss_of(term, encoder()(silhouettes()).patches).any()


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_the_class_token_is_aligned_where_reg_adds_it(kind: str) -> None:
    """First on both sides, wherever the leaf stands among others."""
    term = repa(class_token=True, loss=kind)
    tokens = features(TOKENS + 2)
    with torch.no_grad():
        cls = encoder()(silhouettes()).cls
    found = loss_of(term, tokens, other=torch.zeros(6, 3), cls=cls)
    both = torch.cat([tokens[:, 1:2], tokens[:, 2:]], dim=1).double().numpy()
    told = linear(term.projector, both)
    wanted = np.concatenate([cls.double().numpy()[:, None], seen()], axis=1)
    square, angle = ((told - wanted) ** 2).mean((1, 2)), 1 - cosines(told, wanted).mean(1)
    expected = square if kind == "mse" else angle
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    # Without the option the leaves' tokens are left out.
    plain = loss_of(repa(loss=kind), tokens, other=torch.zeros(6, 3), cls=cls)
    assert torch.equal(plain, loss_of(repa(loss=kind), tokens[:, 2:]))


def test_the_class_token_needs_reg() -> None:
    known = facts()
    alone = {"repa": repa(known, class_token=True)}
    with pytest.raises(ConfigError, match=r"terms\.repa reads the token of the leaf 'cls'"):
        FlowConfig().build(known, alone)
    FlowConfig().build(known, alone | {"reg": RegConfig(encoder="animals-vit").build(known)})


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, 1152 * 768 + 768),
        ({"projector": "mlp3"}, 1152 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 768 + 768),
        ({"projector": "conv3"}, 9 * 1152 * 768 + 768),
    ],
)
def test_size_at_the_papers(fields: dict[str, str], expected: int) -> None:
    """On the meta device, where no encoder is opened."""
    given = Facts(0, LatentSpec(4, 32, 32, 2), 256, 1152, lambda x: x, 28, 1024, Teachers(256))
    with torch.device("meta"):
        term = RepaConfig(**fields).build(given)
    assert parameter_count(term) == expected and term.want == ("block8",)


def test_other_grids_are_refused_or_resampled() -> None:
    known = facts(latent=LatentSpec(3, 28, 28, 7), teachers=Teachers(SIZE))
    repa(known)
    message = r"animals-vit gives 7 x 7 tokens and the backbone has 4 x 4.*resample=true"
    with pytest.raises(ConfigError, match=message):
        known.known_teachers().open(torch.device("cpu"))
    again = replace(known, teachers=Teachers(SIZE))
    term = repa(again, resample=True)
    again.known_teachers().open(torch.device("cpu"))
    assert loss_of(term, features(16)).shape == (6,)


def test_resampling() -> None:
    """A triangle as wide as the shrinking: 1, 3, 3, 1 for halves."""
    tokens = torch.randn(2, 64, 3, dtype=torch.float64)
    grid = tokens.numpy().reshape(2, 8, 8, 3)
    weights = np.zeros((4, 8))
    for row in range(4):
        for place, weight in zip(range(2 * row - 1, 2 * row + 3), (1, 3, 3, 1), strict=True):
            if 0 <= place < 8:
                weights[row, place] = weight
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("ia,jb,nabd->nijd", weights, weights, grid).reshape(2, 16, 3)
    assert np.allclose(resampled(tokens, 4, 4).numpy(), expected)
    assert resampled(tokens, 8, 8) is tokens
    assert torch.allclose(resampled(torch.ones(1, 49, 2), 5, 10), torch.ones(1, 50, 2))


def test_twice_the_resolution_has_tokens_for_all(tmp_path) -> None:
    """At 512 px the encoder sees 448 px: 32 x 32 tokens, as many as a latent of stride 16 has."""
    folder = write_encoder(tmp_path / "dino", "dinov2-vit-s", hidden_size=384, num_hidden_layers=1)
    latent = LatentSpec(128, 32, 32, 1)
    known = Facts(0, latent, 512, 8, lambda x: x, blocks=2, teachers=Teachers(512))
    fields = {"encoder": "dinov2-vit-s", "path": str(folder), "block": 1}
    term = RepaConfig(**fields).build(known)
    known.known_teachers().open(torch.device("cpu"))
    assert term.teacher.grid == 32
    tokens = term.teacher(torch.rand(1, 3, 512, 512)).patches
    assert tokens.shape == (1, 1024, 384)
    # A final norm without affine: every token has a square of D.
    assert torch.allclose(tokens.square().sum(-1), torch.full((1, 1024), 384.0), rtol=1e-3)


def test_losses_are_float32_under_autocast() -> None:
    term = repa(loss="cosine")
    exact = loss_of(term, features())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss_of(repa(loss="cosine"), features())
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, atol=0.02) and not torch.equal(rounded, exact)


REFUSED = [
    (["weight=0"], r"weight=0\.0: must be above 0; terms\.repa=off"),
    (["weight=-1"], "must be above 0"),
    (["loss=l1"], "terms.repa.loss"),
    (["projector=mlp"], "terms.repa.projector"),
    (["hidden=64"], "hidden=64 has no effect with terms.repa.projector=linear"),
    (["hidden=0", "projector=mlp3"], "hidden=0: must be at least 1"),
    (["gamma=0.5"], "gamma=0.5 has no effect without spatial_norm"),
    (["gamma=2", "spatial_norm=true"], "gamma=2.0: must lie between 0 and 1"),
    (["class_token=true", "projector=conv3"], "contradicts"),
]


@pytest.mark.parametrize("fields, message", REFUSED, ids=lambda value: str(value)[:30])
def test_refusals(fields: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run("animals/pixels-v", *[f"terms.repa.{field}" for field in fields])


def test_blocks_that_do_not_exist() -> None:
    for number in (0, 5):
        with pytest.raises(ConfigError, match=rf"terms\.repa\.block={number}: .* blocks 1 to 4"):
            repa(block=number)


def test_from_the_command_line() -> None:
    run = tiny_run("animals/pixels-v", "terms.repa.weight=0.25")
    assert run.terms.repa.weight == 0.25 and run.terms.repa.encoder == "dinov2-vit-b"
    run = tiny_run(
        "animals/pixels-v", "terms.repa=on", "terms.repa.block=1", "terms.repa.encoder=animals-vit"
    )
    assert run.terms.repa.weight == 0.5
    assert config.from_tree(type(run), config.dump(run)) == run
    parts = build(run)
    given = parts.task.batch(np.arange(4))
    found, weights = parts.model(given, parts.latents(given), parts.conditioner.encode(given))
    assert found["repa"].shape == (4,) and weights["repa"] == 0.5
    (weights["repa"] * found["repa"].mean()).backward()
    reached = {name for name, p in parts.model.trained().items() if p.grad is not None}
    assert {"objective.terms.repa.projector.weight", "backbone.blocks.0.attn.q.weight"} <= reached
    # What comes after the block learns nothing from it.
    assert not any(name.startswith(("backbone.blocks.1", "backbone.final")) for name in reached)
