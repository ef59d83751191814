"""Hidden units of feed-forward layers: how many there are, and how many are padding.

A SwiGLU of width D has int(2/3 D r) of them. Of 5461 (D = 2048, r = 4) some forks make 5504, which
a GPU multiplies faster: the rest are zero rows of w1 and w2 and zero columns of w3, so that they
add exactly nothing, and can be cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from nanogen.errors import DataError
from nanogen.exchange.architecture import Architecture, Tower, hidden_width, ratio_of

USUAL = 4.0
"""the ratio of every released network"""

Blocks = tuple[Tower, Sequence[int]]
"""a stack of blocks, and their numbers"""


def mlp_ratio(
    tensors: Mapping[str, Tensor], stacks: Sequence[Blocks], where: str, given: float | None
) -> float:
    """The ratio that all feed-forward layers follow from. `given` is tried first, then the usual
    one, then the roundest for which there is no padding.

    DataError where there is none, or where what would be padding is not zero.
    """
    widths = {tower.width: _hidden(tensors, blocks, where) for tower, blocks in stacks}
    stored = ratio_of(widths)
    tried = [ratio for ratio in (given, USUAL, stored) if ratio is not None]
    for ratio in tried:
        if all(_fits(tensors, tower, blocks, ratio) for tower, blocks in stacks):
            return ratio
    found = " and ".join(f"{hidden} at width {width}" for width, hidden in widths.items())
    wanted = " and ".join(str(hidden_width(width, tried[0])) for width in widths)
    raise DataError(
        f"{where} has {found} hidden units; at mlp_ratio={tried[0]} it would be {wanted}, but "
        "those beyond are not zero, so they are no padding; give mlp_ratio if another one is meant"
    )


def unpadded(tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """The same without zero padding of hidden units."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] != "blocks" or "mlp" not in parts or not tensor.ndim:
            continue
        tower = _tower(architecture, int(parts[1]))
        hidden = hidden_width(tower.width, architecture.mlp_ratio)
        if parts[3] in ("w1", "w2") and len(tensor) > hidden:
            found[name] = tensor[:hidden].clone()
        elif parts[3:] == ["w3", "weight"] and tensor.shape[-1] > hidden:
            found[name] = tensor[..., :hidden].clone()
    return found


def _tower(architecture: Architecture, block: int) -> Tower:
    decodes = architecture.decoder is not None and block >= architecture.encoder.depth
    return architecture.decoder if decodes and architecture.decoder else architecture.encoder


def _hidden(tensors: Mapping[str, Tensor], blocks: Sequence[int], where: str) -> int:
    """Hidden units of the first of some blocks, padding included."""
    name = f"blocks.{blocks[0]}.mlp.w1.weight"
    if name not in tensors or not tensors[name].ndim:
        raise DataError(f"{where} lacks {name}; give the checkpoint as diffusion-bench saved it")
    return len(tensors[name])


def _fits(tensors: Mapping[str, Tensor], tower: Tower, blocks: Sequence[int], ratio: float) -> bool:
    """Whether all blocks of a stack have the hidden units of a ratio, and only zeros beyond."""
    hidden = hidden_width(tower.width, ratio)
    for block in blocks:
        for layer in ("w1.weight", "w1.bias", "w2.weight", "w2.bias", "w3.weight"):
            tensor = tensors.get(f"blocks.{block}.mlp.{layer}")
            if tensor is None or not tensor.ndim:
                continue  # reported with all else that is missing
            rows = tensor.transpose(0, -1) if layer.startswith("w3") else tensor
            if len(rows) < hidden or rows[hidden:].any():
                return False
    return True
