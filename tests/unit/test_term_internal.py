"""Internal guidance trains a second head on the objective's own loss."""

from __future__ import annotations

import pytest
import torch
from term_steps import TOKENIZER, batch, facts, inputs

from nanogen.backbones.ddt import DdtConfig
from nanogen.conditioners.labels import Labels
from nanogen.errors import ConfigError
from nanogen.objectives.flow import FlowConfig
from nanogen.objectives.internal_guidance import Internal, InternalConfig
from nanogen.types import LabelCondition, Prediction


@pytest.mark.parametrize("prediction", ["v", "x"])
def test_the_same_loss_on_the_same_target(prediction: str) -> None:
    """A head that predicts what the network does has its loss, and another has its own."""
    known, given = facts(), batch()
    flow = FlowConfig(prediction=prediction, shift_base=None)
    seen = {}

    def network(state, t, condition, *, want, head=None):
        seen["want"], image = want, torch.tanh(state["image"])
        return Prediction({"image": image}, heads={"base": image if head is None else head})

    def parts(head=None):
        objective = flow.build(known, {"internal": InternalConfig(block=2).build(known)})
        assert objective.wiring.heads == {"base": 2}
        return objective(lambda *a, **k: network(*a, **k, head=head), inputs(given))

    same = parts()
    assert seen["want"] == ["base"] and same.weights == {"flow": 1.0, "internal": 1.0}
    assert same.parts["flow"].any() and torch.equal(same.parts["flow"], same.parts["internal"])
    zero = torch.zeros_like(given.images)
    other = parts(zero).parts["internal"]
    alone = flow.build(known, {})(lambda *_, **__: Prediction({"image": zero}), inputs(given))
    assert torch.allclose(other, alone.parts["flow"])


def test_the_head_reads_its_block_only() -> None:
    torch.manual_seed(0)
    known, labels = facts(), Labels(3)
    objective = FlowConfig().build(known, {"internal": InternalConfig(block=2).build(known)})
    sizes = {"depth": 4, "width": 16, "heads": 2}
    sizes |= {"decoder_depth": 1, "decoder_width": 24, "decoder_heads": 2}
    backbone = DdtConfig(**sizes).build(TOKENIZER.spec, labels.spec, objective.wiring)
    for p in backbone.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn(p.shape)
    given = batch()
    noisy, t = {"image": given.images * 2 - 1}, torch.full((6,), 0.5)
    found = backbone(noisy, t, LabelCondition(given.labels), want=("base",))
    found.heads["base"].square().sum().backward()
    reached = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert "blocks.1.attn.q.weight" in reached
    assert not any(name.startswith(("blocks.2", "blocks.3", "blocks.4")) for name in reached)


def test_refusals() -> None:
    for number in (0, 5):
        with pytest.raises(ConfigError, match=rf"terms\.internal\.block={number}: "):
            InternalConfig(block=number).build(facts())
    with pytest.raises(ConfigError, match=r"terms\.internal\.weight=0"):
        InternalConfig(weight=0.0)


def test_two_terms_with_the_same_head() -> None:
    known = facts()
    terms = {name: InternalConfig(block=2).build(known) for name in ("internal", "other")}
    assert isinstance(terms["other"], Internal)
    with pytest.raises(ConfigError, match=r"internal and terms\.other both add the head 'base'"):
        FlowConfig().build(known, terms)
