"""The drift field: its symmetries, an example by hand, the published algorithm written with loops,
and its rest where two laws are equal.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanogen.objectives.drift_field import Pull, distances, drift, feature_scale, field

TEMPERATURES = (0.02, 0.05, 0.2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everyone(queries: int) -> Tensor:
    return torch.ones(queries, queries, dtype=torch.bool)


def random_pull(queries: int, targets: int, seed: int = 1) -> Pull:
    """Weights of all sizes, a third of them 0; the queries have two conditions in turn."""
    weights = normal(2, queries, targets, seed=seed).clamp(min=-0.4) + 0.4
    condition = torch.arange(queries) % 2
    return Pull(weights[0], weights[1], condition[:, None] == condition)


def value(x: Tensor, targets: Tensor, pull: Pull, temperature: float) -> Tensor:
    return field(distances(x, targets), targets, pull, temperature)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_swapping_attraction_and_repulsion_turns_the_field_around(temperature: float) -> None:
    x, targets, pull = normal(3, 8, 5), normal(3, 11, 5, seed=2), random_pull(8, 11)
    swapped = Pull(pull.repel, pull.attract, pull.peers)
    there = value(x, targets, pull, temperature)
    assert there.abs().max() > 1e-3
    torch.testing.assert_close(
        value(x, targets, swapped, temperature), -there, atol=1e-6, rtol=1e-6
    )


def test_no_field_where_the_same_points_attract_and_repel() -> None:
    x, points = normal(2, 6, 4), normal(2, 9, 4, seed=1)
    both = torch.ones(6, 9)
    assert value(x, points, Pull(both, both, everyone(6)), 0.5).abs().max() < 1e-6
    # As separate targets too, in another order; what is left is not blown up to unit size.
    halves = torch.cat([both, 0 * both], 1), torch.cat([0 * both, both], 1)
    targets = torch.cat([points, points.flip(1)], 1)
    assert drift(x, targets, Pull(*halves, everyone(6)), TEMPERATURES).field.abs().max() < 0.02


def test_two_points_by_hand() -> None:
    """A query at 0, a positive at 1, a negative at -2: softmax over one query is 1, over targets
    p and 1 - p, so V = sqrt(p (1 - p)) (1 - -2).
    """
    x, targets = torch.zeros(1, 1, 1), torch.tensor([[[1.0], [-2.0]]])
    pull = Pull(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), everyone(1))
    for temperature in (0.3, 1.0, 4.0):
        p = 1 / (1 + math.exp(-1 / temperature))
        found = value(x, targets, pull, temperature)
        assert found.item() == pytest.approx(3 * math.sqrt(p * (1 - p)), rel=1e-5)


def published(x: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The field of one condition, point by point in float64 (arXiv 2602.04770, Algorithm 2), for
    queries [Q, D] that are the first of the negatives: each is left out of its own.
    """
    x, targets = x.double(), torch.cat([negatives, positives]).double()
    kernel = torch.zeros(len(x), len(targets), dtype=torch.float64)
    for i, one in enumerate(x):
        for j, other in enumerate(targets):
            if i != j:
                kernel[i, j] = math.exp(-float((one - other).square().sum().sqrt()) / temperature)
    v = torch.zeros_like(x)
    for i in range(len(x)):
        a = [
            math.sqrt(float(kernel[i, j] ** 2 / kernel[i].sum() / kernel[:, j].sum()))
            for j in range(len(targets))
        ]
        split = len(negatives)
        for j, other in enumerate(targets):
            sign, mass = (1, sum(a[:split])) if j >= split else (-1, sum(a[split:]))
            v[i] += sign * mass * a[j] * other
    return v


def test_each_condition_is_the_published_algorithm() -> None:
    """Two conditions in one call, of 4 and 3 queries with 5 and 2 positives."""
    sizes, x, real = ((4, 5), (3, 2)), normal(7, 3), normal(7, 3, seed=5)
    conditions = torch.tensor([0] * 4 + [1] * 3), torch.tensor([0] * 5 + [1] * 2)
    peers = conditions[0][:, None] == conditions[0]
    attract = torch.cat([torch.zeros(7, 7), (conditions[0][:, None] == conditions[1]).float()], 1)
    repel = torch.cat([(peers & ~torch.eye(7, dtype=torch.bool)).float(), torch.zeros(7, 7)], 1)
    found = value(x[None], torch.cat([x, real])[None], Pull(attract, repel, peers), 0.8)[0]
    expected, first, start = [], 0, 0
    for queries, positives in sizes:
        own = x[first : first + queries]
        expected.append(published(own, real[start : start + positives], own, 0.8))
        first, start = first + queries, start + positives
    torch.testing.assert_close(found.double(), torch.cat(expected), atol=1e-6, rtol=1e-5)


def test_a_weight_counts_equal_targets() -> None:
    x, targets = normal(1, 4, 3), normal(1, 5, 3, seed=1)
    attract = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0]).expand(4, 5)
    repel = torch.tensor([0.0, 0.0, 1.0, 1.0, 3.0]).expand(4, 5)
    once = [0, 1, 1, 2, 3, 4, 4, 4]
    ones = torch.ones(4, 8)
    copies = Pull(ones * (torch.arange(8) < 3), ones * (torch.arange(8) >= 3), everyone(4))
    torch.testing.assert_close(
        value(x, targets, Pull(attract, repel, everyone(4)), 0.7),
        value(x, targets[:, once], copies, 0.7),
    )


def test_at_rest_where_both_kinds_are_of_one_law() -> None:
    """In the mean over many draws, with 3 positives to 9 negatives; not where the laws differ."""
    repeats = 20_000
    x, targets = normal(1, 2, 2), normal(repeats, 12, 2, seed=1)
    attract = (torch.arange(12) < 3).float().expand(2, 12)
    pull = Pull(attract, 1 - attract, everyone(2))
    found = value(x.expand(repeats, -1, -1), targets, pull, 0.5)
    noise = found.std(0) / math.sqrt(repeats)
    assert (found.mean(0).abs() < 4 * noise).all()
    targets[:, :3, 0] += 0.5
    moved = value(x.expand(repeats, -1, -1), targets, pull, 0.5).mean(0)
    assert (moved[..., 0] > 10 * noise[..., 0]).all()


def test_a_query_without_positives_or_negatives_has_no_field() -> None:
    x, targets = normal(1, 3, 2), normal(1, 4, 2, seed=1)
    attract, repel = torch.ones(3, 4), torch.ones(3, 4)
    attract[:, 2:], repel[:, :2] = 0, 0
    attract[0], repel[1] = 0, 0
    repel[2], attract[2] = 0, 0
    found = drift(x, targets, Pull(attract, repel, everyone(3)), TEMPERATURES)
    assert found.field.isfinite().all() and not found.field.any()


def test_far_points_lose_nothing() -> None:
    """At a distance of hundreds of temperatures each softmax underflows, the field does not: the
    two nearest of each kind decide, equally.
    """
    x = torch.tensor([[[0.0], [0.5]]])
    targets = torch.tensor([[[300.0], [-300.0]]])
    pull = Pull(torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2), everyone(2))
    found = value(x, targets, pull, 1.0)
    # Of the first query both are 300 away: a = 1/2 over targets, and over queries sigmoid(-+0.5).
    over = [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.5))]
    assert found[0, 0, 0].item() == pytest.approx(
        600 * 0.5 * math.sqrt(over[0] * over[1]), rel=1e-4
    )


class TestNormalisation:
    x, targets = normal(4, 6, 16), normal(4, 10, 16, seed=3) + 1
    pull = random_pull(6, 10)

    def found(self, x: Tensor, targets: Tensor, temperatures=TEMPERATURES):
        return drift(x, targets, self.pull, temperatures)

    def test_mean_distance_is_the_root_of_the_width(self) -> None:
        scale = self.found(self.x, self.targets).scale
        total, weight = 0.0, 0.0
        for place in range(4):
            for i in range(6):
                for j in range(10):
                    w = float(self.pull.attract[i, j] + self.pull.repel[i, j])
                    apart = (self.x[place, i] - self.targets[place, j]).norm() / scale
                    total, weight = total + w * float(apart), weight + w
        assert total / weight == pytest.approx(4.0, rel=1e-5)

    def test_each_temperature_has_unit_size(self) -> None:
        alone = [self.found(self.x, self.targets, (t,)).field for t in TEMPERATURES]
        assert [float(v.square().mean()) for v in alone] == pytest.approx([1.0] * 3, rel=1e-5)
        together = self.found(self.x, self.targets).field
        torch.testing.assert_close(together, sum(alone), atol=1e-5, rtol=1e-5)

    def test_temperatures_are_shares_of_the_mean_distance(self) -> None:
        apart = distances(self.x, self.targets)
        mean = feature_scale(apart, self.pull, 16) * 4
        plain = field(apart, self.targets, self.pull, 0.2 * float(mean))
        torch.testing.assert_close(
            self.found(self.x, self.targets, (0.2,)).field,
            plain / plain.square().mean().sqrt(),
            atol=1e-4,
            rtol=1e-4,
        )

    def test_size_and_origin_of_features_do_not_matter(self) -> None:
        plain = self.found(self.x, self.targets)
        other = self.found(50 * self.x + 100, 50 * self.targets + 100)
        torch.testing.assert_close(other.field, plain.field, atol=5e-3, rtol=5e-3)
        assert float(other.scale / plain.scale) == pytest.approx(50, rel=1e-4)
