"""What a run costs, before it is started: against published counts and independent ones."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from nanogen import config, recipes
from nanogen.backbones.ddt import DdtConfig
from nanogen.cli.app import app
from nanogen.errors import ConfigError
from nanogen.model import parameter_count
from nanogen.plan import shapes
from nanogen.plan.cost import Subject, _kept, cost
from nanogen.plan.table import Hardware, Plan, table
from nanogen.run import build
from nanogen.types import ConditionSpec, LatentSpec, Wiring

SMALL = DdtConfig(
    depth=4, width=32, heads=2, decoder_depth=2, decoder_width=48, decoder_heads=2, mlp_ratio=4.0
)
LATENT, LABELS = LatentSpec(4, 8, 8, 2), ConditionSpec(classes=10)


@pytest.mark.parametrize(
    "name, parameters, flops",
    [
        ("imagenet/flux2", 611_892_884, 332.5),
        ("imagenet/sdvae-mse", 611_304_996, 332.2),
        ("imagenet/rae-pe-vit-l", 616_595_988, 334.9),
        ("imagenet/flux2-reg", 615_930_516, 333.8),
        ("imagenet/meanflow-sdvae-mse", 613_229_092, 336.1),
        ("t2i/flux2", 611_912_340, 579.4),
        ("t2i/jit", 615_271_700, 581.1),
        ("t2i-512/flux2", 1_011_986_388, 2809),
        ("imagenet/table1-jit", 87_994_624, 48.8),
        ("imagenet/table1-pixelgen", 457_558_480, 254.2),
    ],
)
def test_published_sizes(name: str, parameters: int, flops: float) -> None:
    found = cost(recipes.preset(name))
    assert found.parameters == parameters
    assert found.forward / 1e9 == pytest.approx(flops, rel=2e-3)


def test_a_table_of_words_is_counted_with_those_of_the_data() -> None:
    run = config.override(recipes.preset("scenes/pixels-v"), ["conditioner=words"])
    model, found = build(run).model, cost(run)
    assert found.parameters == parameter_count(model.backbone)


@pytest.mark.parametrize("method", ["jit", "pixnerd", "pixelgen"])
def test_own_architectures_have_a_plan(method: str) -> None:
    found = cost(recipes.preset(f"imagenet/{method}@upstream"))
    assert 0 < found.recomputed < found.saved < 1e10 and found.forward > 0


@pytest.mark.parametrize("heads", [{}, {"base": 3}])
def test_blocks_are_extrapolated_exactly(heads: dict[str, int]) -> None:
    """Against the network of full depth, counted as it is."""
    wiring = Wiring({"cls": 6}, interval=True, heads=heads)
    with torch.device("meta"):
        whole = SMALL.build(LATENT, LABELS, wiring)
    run = config.override(
        recipes.preset("animals/vae-reg"), ["backbone.depth=7", "terms.internal.block=3"]
    )
    assert cost(run).parameters == parameter_count(_built(run))
    from nanogen.plan.cost import _counts

    assert _counts(Subject(SMALL, LATENT, LABELS, wiring)).parameters == parameter_count(whole)


def _built(run) -> nn.Module:
    from nanogen.run import build

    return build(run).model.backbone


def test_what_is_kept_is_what_a_linear_layer_keeps() -> None:
    """Counted by hand: input and output of each layer once, weights not at all."""

    class Plain:
        leaves: dict[str, int] = {}

        def build(self, *given: object) -> nn.Module:
            return Network()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(256, 100), nn.Linear(100, 3)

        def forward(self, state, t, condition, **told):
            hidden = self.first(state["image"].flatten(1)).sigmoid()
            found = type("Found", (), {})()
            found.state, found.heads = {"image": self.second(hidden)}, {}
            return found

    subject = Subject(Plain(), LATENT, LABELS, Wiring())
    # 256 inputs and 100 outputs of the sigmoid, 4 bytes each.
    assert _kept(subject, half=False) == 4 * (256 + 100)


def test_recomputing_keeps_less_and_takes_a_forward_pass_more() -> None:
    plain = recipes.preset("t2i/flux2")
    again = config.override(plain, ["machine.recompute=True"])
    assert cost(again).recomputed < 0.2 * cost(plain).saved
    plans = [Plan(run, cost(run), Hardware(gpus=32)) for run in (plain, again)]
    assert plans[1].memory < plans[0].memory
    assert plans[1].hours == pytest.approx(4 / 3 * plans[0].hours)


@pytest.mark.parametrize(
    "name, hardware",
    [
        (f"{task}/{method}@{variant}", Hardware(count, gpu))
        for task, method in (("imagenet", "rae-dinov2-vit-b-reg"), ("t2i", "flux2"))
        for variant, count, gpu in (
            ("1x24gb", 1, "rtx4090"),
            ("1x80gb", 1, "h100"),
            ("8x80gb", 8, "h100"),
        )
    ]
    + [("t2i-512/flux2@8x80gb", Hardware(8, "h100"))]
    + [("imagenet/table1-rae@1x24gb", Hardware(1, "rtx4090"))]
    + [("t2i-512/flux2@b,1x24gb", Hardware(1, "rtx4090"))],
)
def test_hardware_variants_fit(name: str, hardware: Hardware) -> None:
    plan = Plan(recipes.preset(name), cost(recipes.preset(name)), hardware)
    assert plan.at_once <= plan.most_at_once


@pytest.mark.parametrize("name", ["animals/vae", "scenes/vae", "animals/rae", "scenes/pixels-v"])
def test_spaces_are_those_of_the_built_tokenizers(name: str) -> None:
    run = recipes.preset(name)
    size = run.task.data.build().size
    assert shapes.surroundings(run).latent == run.tokenizer.build(size).spec


def test_hours_follow_from_the_work() -> None:
    """80 epochs of 334.2 GFLOPs, three times: 102.8 EFLOPs."""
    found = table([recipes.preset("imagenet/jit")], Hardware(8, "h100", 0.4))
    row = dict(zip((c.title for c in found.columns), found.rows[0], strict=True))
    assert row["EFLOPs"].value == pytest.approx(102.8, rel=2e-3)
    assert row["hours"].value == pytest.approx(102.8e18 / (8 * 989e12 * 0.4) / 3600, rel=2e-3)


def test_a_network_too_large_for_a_gpu() -> None:
    """No way of cutting a batch helps where weights and moments alone are too many."""
    run = recipes.preset("t2i-512/flux2@1x24gb")
    notes = " ".join(table([run], Hardware(1, "rtx4090")).notes)
    assert "too large at any batch: t2i-512/flux2@1x24gb; " in notes and "@b" in notes
    assert "does not fit" not in notes


def test_unknown_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config.override(recipes.preset("t2i/flux2"), ["conditioner.model=no/such-model"])
    with pytest.raises(ConfigError, match="conditioner.model=no/such-model"):
        shapes.surroundings(run)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["imagenet/flux2", "--gpu", "h1000"], "h100"),
        (["imagenet/flux2", "--gpus", "0"], "--gpus"),
        (["imagenet/flux2", "--utilisation", "1.5"], "--utilisation"),
        (["imagenet/flux2", "--all"], "--all"),
        ([], "preset"),
    ],
)
def test_refusals(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        app(["plan", *arguments], standalone_mode=False)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    app(["plan", "imagenet/jit", "--json"], standalone_mode=False)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["rows"][0][1]["value"] == 615_252_244
