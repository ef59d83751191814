"""Post-processing of Mask2Former as GenEval's evaluators do it, written out pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Literal:
    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray


def literal_instances(
    classes: np.ndarray,
    masks: np.ndarray,
    network: tuple[int, int],
    image: tuple[int, int],
    official: bool,
) -> list[Literal]:
    """The detections of one image, most probable class first. `classes` [Q, K + 1] and `masks` [Q,
    h, w] are logits."""
    found = []
    for share, query, label in most_probable(classes)[:100]:
        if share < 0.3:  # its score is smaller still, and these loops are slow
            continue
        logits = bilinear(masks[query], network)
        if official:
            logits = bilinear(logits, image)
        mask = logits > 0
        inside = [place for place in np.ndindex(*logits.shape) if mask[place]]
        certainty = sum(1 / (1 + math.exp(-logits[place])) for place in inside)
        score = share * certainty / (len(inside) + 1e-6)
        if not official:
            mask = nearest(mask, image)
        if score < 0.3 or not mask.any():
            continue
        ys, xs = np.nonzero(mask)
        end = 1 if official else 0
        box = (xs.min(), ys.min(), xs.max() + end, ys.max() + end)
        found.append(Literal(label, score if official else round(score, 6), box, mask))
    return found


def most_probable(classes: np.ndarray) -> list[tuple[float, int, int]]:
    """Pairs of query and class with their probability, the largest first."""
    picks = []
    for query, row in enumerate(classes):
        total = sum(math.exp(value) for value in row)
        for label in range(len(row) - 1):
            picks.append((math.exp(row[label]) / total, query, label))
    return sorted(picks, key=lambda pick: -pick[0])


def bilinear(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Between the middles of the old pixels, the border repeated."""
    rows, columns = (_weights(old, new) for old, new in zip(plane.shape, size, strict=True))
    return rows @ plane.astype(float) @ columns.T


def _weights(old: int, new: int) -> np.ndarray:
    """[new, old]: how much of each old place is in each new one."""
    weights = np.zeros((new, old))
    for place in range(new):
        at = max((place + 0.5) * old / new - 0.5, 0)
        low = min(int(at), old - 1)
        weights[place, low] += 1 - (at - low)
        weights[place, min(low + 1, old - 1)] += at - low
    return weights


def nearest(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The old pixel that the new one's corner lies in."""
    out = np.zeros(size, plane.dtype)
    for y, x in np.ndindex(*size):
        out[y, x] = plane[y * plane.shape[0] // size[0], x * plane.shape[1] // size[1]]
    return out
