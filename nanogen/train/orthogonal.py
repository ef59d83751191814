"""The nearest orthogonal matrix, roughly, by Newton-Schulz iterations: matrix products alone.

    X <- X / |X|,  then  X <- a X + (b A + c A A) X  with  A = X X^T

is an odd polynomial of the singular values s <- a s + b s^3 + c s^5, which drives them towards 1
and leaves the singular vectors as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Quintic(NamedTuple):
    """The polynomial s -> a s + b s^3 + c s^5 of one iteration."""

    a: float
    b: float
    c: float


JORDAN = 5 * (Quintic(3.4445, -4.7750, 2.0315),)
"""One steep polynomial five times (github.com/KellerJordan/Muon): singular values end in about
[0.7, 1.2].
"""

_GREEDY = (
    Quintic(8.28721201814563, -23.595886519098837, 17.300387312530933),
    Quintic(4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    Quintic(3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    Quintic(3.3184196573706015, -2.488488024314874, 0.51004894012372),
    Quintic(2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Polar Express (arXiv 2505.16932): each is the best for where the one before leaves the values."""

SAFETY = 1.05
"""values are taken for so much larger than they should be: rounding must not push one past 1"""

POLAR_EXPRESS = tuple(Quintic(q.a / SAFETY, q.b / SAFETY**3, q.c / SAFETY**5) for q in _GREEDY)
"""Polar Express with the safety factor in all five steps: values end in about [0.84, 1.13]."""


def orthogonalised(
    matrices: Tensor,
    steps: Sequence[Quintic] = JORDAN,
    half: bool = False,
) -> Tensor:
    """[n, rows, columns] -> the nearest (semi-)orthogonal matrices, roughly; zero stays zero.

    `half` rounds the input to bfloat16, normalises it in float32 and iterates in float16, which is
    what comes back; without it everything is done in the precision of `matrices`.
    """
    x = matrices.bfloat16().float() if half else matrices
    tall = matrices.shape[1] > matrices.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.half() if half else x
    for a, b, c in steps:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
