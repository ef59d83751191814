"""Mean velocities obey their identity, and MeanFlow's gradient is that of the paper."""

from __future__ import annotations

import mean_fields as fields
import pytest
import torch
from mean_fields import (
    Gaussian,
    Tiny,
    Told,
    as_it_is,
    batch,
    ddt,
    doubles,
    inputs,
    meanflow,
    of_path,
    query,
)
from torch import Tensor, nn

from nanogen import rng
from nanogen.conditioners.labels import Labels
from nanogen.objectives import path
from nanogen.objectives.mean_velocity import Query, derivative
from nanogen.sampling.generate import Sampler
from nanogen.sampling.settings import Sampling
from nanogen.tokenizers.pixels import Pixels
from nanogen.types import (
    Batch,
    LabelCondition,
    Prediction,
    Request,
    Wiring,
)

NOBODY = LabelCondition(torch.zeros(50, dtype=torch.int64))


class TestIdentity:
    """u + (t - r) du/dt = v, in float64 to its last digits."""

    t = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    interval = t * torch.linspace(0.02, 1, 50, dtype=torch.float64).flip(0)

    def check(self, network: nn.Module, z: Tensor, v: Tensor) -> None:
        asked = Query({"image": z}, self.t, self.interval, NOBODY)
        u = asked.ask(network).state["image"]
        slope = derivative(network, asked, {"image": v}, as_it_is)["image"]
        assert (u + path.along(self.interval, u) * slope - v).abs().max() < 1e-12

    def test_gaussian_flow(self) -> None:
        network, z = Gaussian(), 2 * doubles(50, 3)
        self.check(network, z, network.velocity(z, self.t[:, None]))

    def test_linear_field(self) -> None:
        """v = A z, u = (1 - exp(-(t - r) A)) z / (t - r)."""
        matrix, z = doubles(4, 4, seed=1), doubles(50, 4)

        class Linear(nn.Module):
            def forward(self, state, t, condition, *, interval, **_) -> Prediction:
                back = torch.linalg.matrix_exp(-interval[:, None, None] * matrix)
                z = state["image"]
                moved = (back @ z[..., None])[..., 0]
                return Prediction({"image": (z - moved) / interval[:, None]})

        self.check(Linear(), z, z @ matrix.T)

    def test_one_step_is_the_exact_map(self) -> None:
        network, z = Gaussian(), doubles(50, 3)
        one = torch.ones(50, dtype=torch.float64)
        u = Query({"image": z}, one, one, NOBODY).ask(network).state["image"]
        assert (z - u - (0.7 + 0.5 * z)).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [1, 2])
def test_samples_of_one_and_two_steps(steps: int) -> None:
    """The sampler asks for the mean velocity over each of its steps."""
    sampler = Sampler(
        Gaussian(),
        meanflow(),
        Labels(fields.CLASSES),
        Pixels(4, 8),
        {"cls": 5},
        Sampling(steps=steps, shift_base=None),
        torch.device("cpu"),
    )
    noise = sampler.noise(torch.arange(6))
    found = sampler.latents(Request(torch.arange(6), labels=torch.arange(6) % 4))
    for leaf in ("image", "cls"):
        assert (found[leaf] - (0.7 + 0.5 * noise[leaf])).abs().max() < 1e-5


def test_one_image_has_no_loss() -> None:
    """From any point the way to a single image is straight: u = (z - x) / t."""
    given = batch(40)
    network = Told(
        lambda asked: {
            "image": (asked["state"]["image"] - fields.latents(given)[: len(asked["t"])])
            / path.along(asked["t"], asked["state"]["image"])
        }
    )
    loss = meanflow(instantaneous=0.0, power=0.0)(network, inputs(given)).parts["meanflow"]
    assert loss.max() < 1e-6


class TestGradient:
    def by_hand(self, network: Tiny, given: Batch) -> Tensor:
        """The loss [B] of MeanFlow with a derivative that autograd tracks, from the paper."""
        ends = torch.sigmoid(rng.normal(5, "time", given.keys, (2,)) - 0.4)
        moving = rng.uniform(5, "instantaneous", given.keys, 1)[:, 0] >= 0.75
        t = torch.where(moving, ends.amax(1), ends[:, 0])
        r = torch.where(moving, ends.amin(1), t)
        mixed, v = path.mix(fields.latents(given), fields.noise(given), t), of_path(given)

        def u(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return network({"image": z}, t, LabelCondition(given.labels), interval=t - r).state[
                "image"
            ]

        one = torch.ones_like(t)
        u_now, slope = torch.func.jvp(u, (mixed, t, r), (v, one, 0 * one))
        compound = u_now + (t - r)[:, None, None, None] * slope.detach()
        total = (compound - v).square().sum((1, 2, 3))
        return total / (total.detach() + 0.01)

    def test_is_that_of_a_derivative_with_a_graph(self) -> None:
        given, ours, theirs = batch(64), Tiny(), Tiny()
        found = meanflow()(ours, inputs(given)).parts["meanflow"]
        expected = self.by_hand(theirs, given)
        found.mean().backward()
        expected.mean().backward()
        assert torch.allclose(found, expected, rtol=1e-6)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (p.grad - q.grad).norm() < 1e-5 * q.grad.norm()

    @pytest.mark.parametrize("network", ["tiny", "ddt"])
    def test_derivative_against_central_differences(self, network: str) -> None:
        """Their error falls with the square of the step."""
        model = (Tiny() if network == "tiny" else ddt(Wiring(interval=True))).double()
        z, v = doubles(6, 3, 4, 4), doubles(6, 3, 4, 4, seed=1)
        t = torch.linspace(0.3, 0.9, 6, dtype=torch.float64)
        found = derivative(model, query(z, t, t / 2), {"image": v}, as_it_is)["image"]

        def error(step: float) -> float:
            with torch.no_grad():
                after, before = (
                    query(z + d * v, t + d, t / 2 + d).ask(model).state["image"]
                    for d in (step, -step)
                )
            return ((after - before) / (2 * step) - found).norm().item() / found.norm().item()

        coarse, fine = error(1e-3), error(1e-4)
        assert fine < 1e-3
        assert coarse / fine == pytest.approx(100, rel=0.1)

    def test_adaptive_weight(self) -> None:
        """The loss is S / (S + 0.01), its gradient that of S over S + 0.01."""
        total = torch.tensor([1e-4, 0.01, 3.0], requires_grad=True)
        loss = meanflow().weighed(total)
        assert torch.allclose(loss, total / (total + 0.01))
        loss.sum().backward()
        assert torch.allclose(total.grad, 1 / (total.detach() + 0.01))
        root = meanflow(power=0.5, epsilon=0.1).weighed(total)
        assert torch.allclose(root, total / (total + 0.1) ** 0.5)
        assert torch.equal(meanflow(power=0.0).weighed(total), total)
