"""The field that drifting follows: generated points are drawn to real ones and pushed from each
other (Deng et al., "Generative Modeling via Drifting", arXiv 2602.04770).

    V(x_i) = sum_j  a_ij A_ij (sum_k r_ik A_ik) y_j  -  sum_k  r_ik A_ik (sum_j a_ij A_ij) y_k
    A_ij   = sqrt(softmax over targets * softmax over queries)  of  -|x_i - y_j| / temperature

Each target y attracts query i with weight a_i and repels it with weight r_i; a weight of w counts
as w equal targets. Because each sum is multiplied by the mass of the other,

* swapping attraction and repulsion turns V around, exactly;
* V does not depend on the origin, and it is 0 where the same points attract and repel;
* its expectation is 0 where both kinds of target are drawn from one law, whatever their numbers.

Shapes: L places in an image that are compared each with itself (1 where an image is one vector), Q
queries, T targets, D dimensions. Nothing here has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 1e-4
"""a field smaller than this, in elements of scaled features, is rounding and is not blown up"""


@dataclass(frozen=True)
class Pull:
    """How much each target attracts and repels each query."""

    attract: Tensor
    """[Q, T], not negative"""
    repel: Tensor
    """[Q, T], not negative"""
    peers: Tensor
    """bool [Q, Q]: the queries with which each shares its targets, itself among them. It is an
    equivalence: each class of it is a problem of its own.
    """


@dataclass(frozen=True)
class Drift:
    """Where scaled features are to go: `x / scale` to `x / scale + field`."""

    scale: Tensor
    """what features are divided by, a number"""
    field: Tensor
    """[L, Q, D]"""


@torch.no_grad()
def drift(x: Tensor, targets: Tensor, pull: Pull, temperatures: Sequence[float]) -> Drift:
    """Scale and field of queries x [L, Q, D] among targets [L, T, D], in float32.

    Features are divided by the `scale` that makes the mean distance of a query to its targets
    sqrt(D), a difference of about 1 in each element; so `temperatures` are shares of that mean
    distance, the same for features of any size and width. The fields of the temperatures are each
    divided by their root mean square over all L Q D elements, and added up.
    """
    scale = feature_scale(distances(x, targets), pull, x.shape[-1])
    targets = targets / scale
    apart = distances(x / scale, targets)
    total = torch.zeros_like(x)
    for temperature in temperatures:
        found = field(apart, targets, pull, temperature * math.sqrt(x.shape[-1]))
        total += found / found.square().mean().sqrt().clamp(min=LEAST)
    return Drift(scale, total)


@torch.no_grad()
def field(distance: Tensor, targets: Tensor, pull: Pull, temperature: float) -> Tensor:
    """V at the queries, [L, Q, D], from their distances [L, Q, T] to targets [L, T, D].

    `temperature` has the unit of the distances. A query that nothing attracts, or nothing repels,
    has no field.
    """
    affinity = _affinity(distance, pull, temperature)
    attracts, repels = pull.attract * affinity, pull.repel * affinity
    weights = attracts * repels.sum(-1, keepdim=True) - repels * attracts.sum(-1, keepdim=True)
    # Weights add up to 0 for each query, so any origin will do; the nearest loses the fewest bits.
    return weights @ (targets - targets.mean(1, keepdim=True))


def feature_scale(distance: Tensor, pull: Pull, dim: int) -> Tensor:
    """Mean distance [L, Q, T] of queries to their targets, by weight, over sqrt(dim); a number."""
    weight = pull.attract + pull.repel
    mean = (distance * weight).sum() / (weight.sum() * len(distance)).clamp(min=1e-12)
    return (mean / math.sqrt(dim)).clamp(min=1e-6)


def distances(x: Tensor, targets: Tensor) -> Tensor:
    """Euclidean distances [L, Q, T]. From differences: a product of matrices would lose those of
    near neighbours, which count the most.
    """
    return torch.cdist(x, targets, compute_mode="donot_use_mm_for_euclid_dist")


def _affinity(distance: Tensor, pull: Pull, temperature: float) -> Tensor:
    """A [L, Q, T]: geometric mean of the softmax over targets and of that over peers.

    In logarithms, so that no row is lost for lying far from all of its targets.
    """
    weight = pull.attract + pull.repel
    counts = weight > 0
    logits = (-distance / temperature).masked_fill(~counts, -math.inf)
    over_targets = torch.logsumexp(logits + weight.log(), -1, keepdim=True)
    largest = logits.amax(1, keepdim=True).nan_to_num(neginf=0)
    shares = pull.peers.to(logits.dtype) @ (logits - largest).exp()
    over_peers = shares.clamp(min=torch.finfo(shares.dtype).tiny).log() + largest
    return (logits - (over_targets + over_peers) / 2).exp().masked_fill(~counts, 0)
