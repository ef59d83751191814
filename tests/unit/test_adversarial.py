"""Losses of the discriminator and of the decoder, against closed forms."""

import math

import pytest
import torch

from nanogen.stage1.adversarial import (
    DISCRIMINATOR_LOSSES,
    adaptive_weight,
    generator_loss,
    hinge_loss,
    vanilla_loss,
)

REAL = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
FAKE = torch.tensor([[-2.0, 0.0], [3.0, -0.5]])


def test_hinge_by_hand():
    # relu(1 - D): (0, 1/2), (2, 0). relu(1 + D): (0, 1), (4, 1/2). Halved means of each row.
    assert torch.equal(hinge_loss(REAL, FAKE), torch.tensor([0.375, 1.625]))


def test_vanilla_is_the_cross_entropy_of_telling_real_from_fake():
    def of(logit, real):
        probability = 1 / (1 + math.exp(-logit))
        return -math.log(probability if real else 1 - probability)

    wanted = [
        0.5 * (sum(of(x, True) for x in real) + sum(of(x, False) for x in fake)) / 2
        for real, fake in zip(REAL.tolist(), FAKE.tolist(), strict=True)
    ]
    torch.testing.assert_close(vanilla_loss(REAL, FAKE), torch.tensor(wanted))


def test_vanilla_stays_finite_where_a_logarithm_of_a_sigmoid_would_not():
    loss = vanilla_loss(torch.tensor([[-500.0]]), torch.tensor([[500.0]]))
    assert loss.item() == 500


def test_the_decoder_wants_high_logits():
    assert torch.equal(generator_loss(FAKE), torch.tensor([1.0, -1.25]))


@pytest.mark.parametrize("loss", DISCRIMINATOR_LOSSES.values(), ids=DISCRIMINATOR_LOSSES)
def test_losses_of_pieces_are_the_losses_of_the_batch(loss):
    pieces = [loss(REAL[row : row + 1], FAKE[row : row + 1]) for row in range(2)]
    assert torch.equal(torch.cat(pieces), loss(REAL, FAKE))


def test_adaptive_weight_on_two_parameters():
    """R = 3 a + 4 b and G = 5 a - 12 b: gradients of norm 5 and 13 at every point."""
    w = torch.tensor([0.3, -0.7], requires_grad=True)
    r, g = (torch.autograd.grad(w @ torch.tensor(v), w)[0] for v in ([3.0, 4.0], [5.0, -12.0]))
    weight = adaptive_weight(r, g)
    assert weight.item() == pytest.approx(5 / (13 + 1e-6), rel=1e-6)
    assert not weight.requires_grad
    total = r + weight * g
    torch.testing.assert_close((total - r).norm(), r.norm())


def test_adaptive_weight_has_bounds():
    one, none = torch.ones(4), torch.zeros(4)
    assert adaptive_weight(one, none) == 1e4  # 2 / 1e-6, clamped
    assert adaptive_weight(one, none, most=7.0) == 7
    assert adaptive_weight(none, one) == 0
    assert adaptive_weight(1e-3 * one, none).item() == pytest.approx(2e-3 / 1e-6)


def test_adaptive_weight_is_taken_in_single_precision():
    """The square of a small gradient underflows in half precision."""
    r, g = (torch.full((8,), v, dtype=torch.float16) for v in (4e-4, 2e-4))
    assert adaptive_weight(r, g).item() == pytest.approx(2, rel=5e-3)


def test_adaptive_weight_holds_the_gradients_still():
    r = torch.ones(2, requires_grad=True)
    assert not adaptive_weight(r, r).requires_grad
