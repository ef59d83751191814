"""Counting what a network does and keeps, on tensors without data.

    found = cost(recipes.preset("imagenet/flux2"))
    found.parameters        611_892_884
    found.forward           332.5e9 FLOPs of one image: 2 for each multiply and add of matrices

FLOPs are counted by the operations themselves (torch's FlopCounterMode on the meta device). Bytes
are those of every tensor that autograd keeps of one image more, in the precision of training.
"""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass
from typing import Any

import chz
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nanogen.model import parameter_count
from nanogen.plan.shapes import objective_on_meta, surroundings
from nanogen.registry import entry_of
from nanogen.run import Run
from nanogen.types import (
    Condition,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    TextCondition,
    Wiring,
)

MOMENTS = {"adamw": 2}
"""float32 values that an optimiser keeps of each weight; 1 for others"""
REPEATING = ("ddt", "lightning-dit")
"""backbones whose encoder blocks are all alike, and of which embeddings and heads alone depend on
how many numbers a patch has
"""


@dataclass(frozen=True)
class Cost:
    """Of one run, whatever hardware it runs on."""

    parameters: int
    """of the transformer"""
    trained: int
    """of all that is trained"""
    forward: float
    """FLOPs of one image in one forward pass, all text tokens kept"""
    passes: float
    """forward passes that training an image costs; a backward pass counts as two"""
    saved: float
    """bytes kept for the backward pass of one image"""
    recomputed: float
    """the same where each block is computed again in the backward pass"""
    state: float
    """bytes of weights, gradients, moments and averages, and of weights in half precision"""
    latent: LatentSpec
    image_size: int
    assumed: tuple[str, ...]
    """what was taken for granted, since it is not here"""

    @property
    def training(self) -> float:
        """FLOPs of training on one image."""
        return self.passes * self.forward


def cost(run: Run) -> Cost:
    """ConfigError where a part is of unknown shape."""
    around = surroundings(run)
    objective = objective_on_meta(run, around)
    subject = Subject(run.backbone, around.latent, around.condition, objective.wiring)
    counts = _counts(subject)
    half = run.train.precision == "bf16"
    saved, largest = _saved(subject.on_channels(1) if subject.repeats else subject, half)
    trained = counts.trained + sum(p.numel() for p in objective.parameters() if p.requires_grad)
    kept = run.objective.kept
    # Of the blocks, in float32.
    inputs = 4.0 * subject.sequence * run.backbone.width * run.backbone.depth
    moments = MOMENTS.get(entry_of(type(run.optimiser)).name, 1)
    return Cost(
        parameters=counts.parameters,
        trained=trained,
        forward=counts.flops,
        passes=run.objective.passes + (kept if run.machine.recompute else 0),
        saved=kept * saved,
        recomputed=kept * inputs + largest,
        state=trained * (4.0 * (3 + moments) + 2.0 * half),
        latent=around.latent,
        image_size=around.image_size,
        assumed=around.assumed,
    )


@dataclass(frozen=True)
class Subject:
    """A network by what it is built of."""

    config: Any
    latent: LatentSpec
    condition: ConditionSpec
    wiring: Wiring

    def __hash__(self) -> int:
        return hash((self.config, self.latent, self.condition, str(self.wiring)))

    @property
    def sequence(self) -> int:
        """About how many tokens the encoder reads."""
        return self.latent.tokens + len(self.wiring.leaves) + 12 + self.condition.tokens

    @property
    def repeats(self) -> bool:
        """Whether costs are affine in depth and channels, so that small networks tell them all."""
        return entry_of(type(self.config)).name in REPEATING and self.config.depth > 2

    def build(self) -> nn.Module:
        return self.config.build(self.latent, self.condition, self.wiring)

    @property
    def channels(self) -> int:
        """Numbers of a patch."""
        return self.latent.channels * self.latent.patch**2

    def on_channels(self, channels: int) -> Subject:
        """On as many tokens, with another number of channels each."""
        latent = self.latent
        grid = latent.height // latent.patch, latent.width // latent.patch
        return Subject(self.config, LatentSpec(channels, *grid, 1), self.condition, self.wiring)

    def of_depth(self, depth: int) -> Subject:
        heads = {name: min(block, depth) for name, block in self.wiring.heads.items()}
        wiring = Wiring(self.wiring.leaves, self.wiring.interval, self.wiring.scalars, heads)
        config = chz.replace(self.config, depth=depth)
        return Subject(config, self.latent, self.condition, wiring)

    def run(self, network: nn.Module, batch: int, device: str) -> dict[str, Tensor]:
        """One forward pass of `batch` images without data; returns the prediction."""
        empty = functools.partial(torch.empty, device=device)
        latent = self.latent
        state = {"image": empty(batch, latent.channels, latent.height, latent.width)}
        state |= {leaf: empty(batch, width) for leaf, width in self.wiring.leaves.items()}
        found = network(
            state,
            empty(batch),
            self._condition(batch, device),
            interval=empty(batch) if self.wiring.interval else None,
            scalars={name: empty(batch) for name in self.wiring.scalars} or None,
            want=tuple(self.wiring.heads),
        )
        return found.state | found.heads

    def _condition(self, batch: int, device: str) -> Condition:
        if self.condition.classes is not None:
            return LabelCondition(torch.empty(batch, dtype=torch.int64, device=device))
        width = self.condition.width or 0
        features = torch.empty(batch, self.condition.tokens, width, device=device)
        mask = torch.empty(features.shape[:2], dtype=torch.bool, device=device)
        return TextCondition(features, mask, whole=True)


@dataclass(frozen=True)
class Counts:
    """Of one network."""

    parameters: int
    trained: int
    flops: int
    """of one image in one forward pass"""

    def plus(self, times: int, more: Counts, less: Counts) -> Counts:
        """With what `more` has beyond `less`, so many times."""
        rows = zip(astuple(self), astuple(more), astuple(less), strict=True)
        return Counts(*(own + times * (a - b) for own, a, b in rows))


def _counts(subject: Subject) -> Counts:
    if not subject.repeats:
        return _counted(subject)
    small = subject.of_depth(1).on_channels(1)
    base, deeper, wider = map(
        _counted, (small, subject.of_depth(2).on_channels(1), small.on_channels(2))
    )
    depth, channels = subject.config.depth, subject.channels
    return base.plus(depth - 1, deeper, base).plus(channels - 1, wider, base)


@functools.cache
def _counted(subject: Subject) -> Counts:
    """By the operations of the network itself."""
    with torch.device("meta"):
        network = subject.build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.run(network, 1, "meta")
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Counts(parameter_count(network), trained, counter.get_total_flops())


@functools.cache
def _saved(subject: Subject, half: bool) -> tuple[float, float]:
    """Bytes kept for the backward pass of an image, and those of the largest part that is computed
    again at once (a block, or all of a network whose blocks differ).
    """
    config = subject.config
    if not subject.repeats:
        kept = _kept(subject, half)
        return kept, kept / config.depth
    less, more = (_kept(subject.of_depth(depth), half) for depth in (1, 2))
    block = more - less
    return less + (config.depth - 1) * block, max(block, less - block)


def _kept(subject: Subject, half: bool) -> float:
    """Bytes that autograd keeps of one image, weights and their copies in half precision aside."""
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not _of_weights(tensor):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage, storage.nbytes()
        return tensor

    with FakeTensorMode(static_shapes=True):
        network = subject.build().train()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            subject.run(network, 1, "cpu")
    return float(sum(size for _, size in kept.values()))


def _of_weights(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, or follows from a single one: the batch is not in it."""
    node = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return isinstance(tensor, nn.Parameter) or type(node).__name__ == "AccumulateGrad"
