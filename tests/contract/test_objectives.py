"""What every objective, term and optimiser promises."""

from __future__ import annotations

import itertools

import pytest
import torch
from parts import entries, images, small, term_config
from torch import Tensor, nn

from nanogen.backbones.ddt import DdtConfig
from nanogen.conditioners.labels import Labels
from nanogen.encoders.teachers import Teachers
from nanogen.model import Model
from nanogen.objectives.base import Facts, Objective, Term
from nanogen.objectives.flow import FlowConfig
from nanogen.registry import Entry
from nanogen.tokenizers.pixels import PixelsConfig
from nanogen.types import Batch, LabelCondition

SIZE, CLASSES, COUNT = 32, 4, 6
TOKENIZER = PixelsConfig(patch=8).build(SIZE)
FACTS = Facts(
    seed=3,
    latent=TOKENIZER.spec,
    image_size=SIZE,
    feature_width=32,
    decode=TOKENIZER.decode,
    blocks=2,
    batch=COUNT,
    teachers=Teachers(SIZE),
)


def model_with(objective: Objective) -> Model:
    """A small model whose output is not zero."""
    labels = Labels(CLASSES)
    backbone = small(DdtConfig).build(TOKENIZER.spec, labels.spec, objective.wiring)
    model = Model(backbone, objective, labels, dropout=0.3)
    for p in model.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn(p.shape)
    return model


def of_objective(entry: Entry) -> Model:
    torch.manual_seed(0)
    return model_with(small(entry.target, group=2).build(FACTS, {}))


def of_term(entry: Entry) -> Model:
    """With flow matching, of data where the term reads predicted data."""
    torch.manual_seed(0)
    term: Term = term_config(entry).build(FACTS)
    flow = FlowConfig(prediction="x" if term.needs_data else "v")
    return model_with(flow.build(FACTS, {entry.name: term}))


MODELS = [
    pytest.param(make, p.values[0], marks=p.marks, id=p.id)
    for make, kind in ((of_objective, "objective"), (of_term, "term"))
    for p in entries(kind)
]
models = pytest.mark.parametrize("make, entry", MODELS)


def batch(rows: slice = slice(None)) -> Batch:
    keys = torch.arange(100, 100 + COUNT)
    return Batch(images(COUNT, SIZE)[rows], keys[rows], labels=(keys % CLASSES)[rows])


def losses(model: Model, given: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
    return model(given, TOKENIZER.encode(given.images), LabelCondition(given.labels))


def total(model: Model, given: Batch) -> Tensor:
    parts, weights = losses(model, given)
    return sum(weights[name] * part.sum() for name, part in parts.items()) / COUNT


def uncut(sizes: tuple[int, ...], coupled: int) -> list[int]:
    """Sizes with every cut moved on to the end of its group of samples that share a loss."""
    ends = sorted({-(-end // coupled) * coupled for end in itertools.accumulate(sizes)})
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@models
def test_one_finite_loss_for_each_sample(make, entry: Entry) -> None:
    parts, weights = losses(make(entry), batch())
    assert parts.keys() == weights.keys() and parts
    for name, part in parts.items():
        assert part.shape == (COUNT,) and part.isfinite().all(), name
        assert (weights[name] > 0) == part.requires_grad, f"{name}: to be learned, or only logged?"
    assert any(weights.values())


@models
def test_gradient_reaches_the_backbone_and_all_heads(make, entry: Entry) -> None:
    model = make(entry)
    total(model, batch()).backward()
    for name, p in model.trained().items():
        assert p.grad is not None and p.grad.isfinite().all(), name
    silent = [name for name, p in model.trained().items() if not p.grad.any()]
    assert not silent


@models
@pytest.mark.parametrize("sizes", [(1, 5), (2, 2, 2), (1,) * 6], ids=str)
def test_the_split_into_micro_batches_changes_nothing(
    make, entry: Entry, sizes: tuple[int, ...]
) -> None:
    whole, split = make(entry), make(entry)
    total(whole, batch()).backward()
    value, start = 0.0, 0
    for size in uncut(sizes, whole.objective.coupled):
        share = total(split, batch(slice(start, start + size)))
        share.backward()
        value, start = value + share.item(), start + size
    assert value == pytest.approx(total(whole, batch()).item(), rel=1e-5)
    for (name, p), q in zip(whole.trained().items(), split.trained().values(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-5, rtol=1e-3, msg=name)


@models
def test_the_same_step_again_is_the_same(make, entry: Entry) -> None:
    model = make(entry)
    first, _ = losses(model, batch())
    torch.manual_seed(99)
    again, _ = losses(model, batch())
    assert all(torch.equal(first[name], again[name]) for name in first)


@models
def test_velocity_has_the_leaves_of_the_state(make, entry: Entry) -> None:
    model = make(entry)
    objective, extra = model.objective, dict(model.objective.leaves)
    noisy = {"image": torch.randn(2, 3, SIZE, SIZE)}
    noisy |= {leaf: torch.randn(2, width) for leaf, width in extra.items()}
    guess = {leaf: torch.randn_like(x).bfloat16() for leaf, x in noisy.items()}
    found = objective.velocity(guess, noisy, torch.tensor([0.2, 1.0]))
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in noisy.items()}
    assert all(x.dtype == torch.float32 for x in found.values())


@pytest.mark.parametrize("entry", entries("term"))
def test_teachers_are_frozen_and_not_saved(entry: Entry) -> None:
    term = term_config(entry).build(FACTS)
    size = sum(p.numel() for p in term.parameters())
    assert all(p.requires_grad for p in term.parameters())
    assert size < 20e6, "a teacher is no part of the term: keep it out of the module tree"


@pytest.mark.parametrize("entry", entries("optimiser"))
class TestOptimisers:
    def problem(self, entry: Entry) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Fit a linear map; the names are those of a model."""
        torch.manual_seed(0)
        model = nn.Module()
        model.blocks = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 4)])
        return model, entry.target().build(dict(model.named_parameters()))

    def loss(self, model: nn.Module) -> Tensor:
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
        target = x[:, :4] * 2 - x[:, 4:]
        return (model.blocks[1](model.blocks[0](x)) - target).square().mean()

    def test_descends(self, entry: Entry) -> None:
        model, optimiser = self.problem(entry)
        start = self.loss(model).item()
        # At the default rate, which may be as small as large networks need.
        for _ in range(600):
            optimiser.zero_grad()
            self.loss(model).backward()
            optimiser.step()
        assert self.loss(model).item() < 0.9 * start

    def test_a_rate_of_zero_stands_still(self, entry: Entry) -> None:
        model, optimiser = self.problem(entry)
        before = [p.detach().clone() for p in model.parameters()]
        for group in optimiser.param_groups:
            group["lr"] = 0.0
        self.loss(model).backward()
        optimiser.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))

    def test_all_state_is_named_tensors(self, entry: Entry) -> None:
        """What a checkpoint stores: tensors by parameter, nothing beside them."""
        model, optimiser = self.problem(entry)
        self.loss(model).backward()
        optimiser.step()
        assert {id(p) for p in optimiser.state} == {id(p) for p in model.parameters()}
        assert all(
            isinstance(value, Tensor)
            for state in optimiser.state.values()
            for value in state.values()
        )

    def test_continues_from_its_state(self, entry: Entry) -> None:
        """Weights and state are all there is: a copy takes the same next step."""
        model, optimiser = self.problem(entry)
        copy, resumed = self.problem(entry)
        for number in range(4):
            if number == 2:
                copy.load_state_dict(model.state_dict())
                for p, q in zip(model.parameters(), copy.parameters(), strict=True):
                    resumed.state[q].update({k: v.clone() for k, v in optimiser.state[p].items()})
            for one, steps in ((model, optimiser), (copy, resumed)):
                if one is model or number >= 2:
                    steps.zero_grad()
                    self.loss(one).backward()
                    steps.step()
        pairs = zip(model.parameters(), copy.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
