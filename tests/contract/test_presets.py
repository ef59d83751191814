"""Every preset assembles: on the meta device, with stand-ins for what is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parts import StandIn, StandInText, StandInTokenizer, with_tiny_files

from nanogen import recipes, registry
from nanogen.data.base import Source
from nanogen.encoders.teachers import Teachers
from nanogen.model import Model, parameter_count
from nanogen.run import Run, assemble, check
from nanogen.tokenizers.rae import RaeFields
from nanogen.types import ConditionSpec, LatentSpec, Tokenizer

every = pytest.mark.parametrize("name", recipes.names())

ABSENT_DATA = {"folder", "shards"}
ABSENT_MODELS = {"hf-text": StandInText(ConditionSpec(width=1024, tokens=256))}
"""what a test cannot have: the images of ImageNet and BLIP-3o, and a text encoder from a hub"""


def name_of(part: object) -> str:
    return registry.entry_of(type(part)).name


def source_of(run: Run) -> Source:
    data = run.task.data
    return StandIn(data.size) if name_of(data) in ABSENT_DATA else data.build()


def tokenizer_of(run: Run, size: int) -> Tokenizer:
    """On tiny files; a stand-in of the published shape where tiny ones have another."""
    facts = getattr(run.tokenizer, "facts", None)
    if isinstance(run.tokenizer, RaeFields) and run.tokenizer.published:
        return StandInTokenizer(LatentSpec(*facts.latent, patch=1))
    return with_tiny_files(run.tokenizer).build(size)


def assembled(run: Run) -> Model:
    source = source_of(run)
    tokenizer = tokenizer_of(run, source.size)
    absent = ABSENT_MODELS.get(name_of(run.conditioner))
    conditioner = absent or run.conditioner.build(source)
    with torch.device("meta"):
        return assemble(run, Teachers(source.size), tokenizer, conditioner)


@every
def test_assembles(name: str) -> None:
    run = recipes.preset(name)
    check(run)
    model = assembled(run)
    assert parameter_count(model) > 100_000 and model.trained()
    assert all(p.is_meta for p in model.backbone.parameters())
    optimiser = run.optimiser.build(model.trained())
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.trained().values()}


@every
def test_is_described_in_a_line(name: str) -> None:
    assert recipes.preset(name).name == name
    assert "\n" not in recipes.describe(name) and len(recipes.describe(name)) < 200


@every
def test_metrics_exist_and_fit(name: str) -> None:
    run = recipes.preset(name)
    kind = name_of(run.task)
    for metric in run.evaluation.metrics:
        target = registry.get("metric", metric)
        assert target.task in (kind, "any") and run.evaluation.samples >= target.minimum


PIXELS, F8D4, F8D16, F16D32 = 615_252_244, 611_304_996, 611_556_948, 611_388_980
FLUX2, WIDE, WIDER = 611_892_884, 615_252_244, 616_595_988
MEANFLOW, TWICE = 613_229_092, "meanflow-sdvae-mse"
SIZES = {
    **dict.fromkeys(("jit", "pixnerd", "pixelgen"), PIXELS),
    **dict.fromkeys(("sdvae-ema", "sdvae-mse", "sdxl-vae"), F8D4),
    **dict.fromkeys(("sd3.5", "flux", "qwen-vae", "e2e-flux", "e2e-sd3.5", "e2e-qwen-vae"), F8D16),
    "e2e-vavae": F16D32,
    "flux2": FLUX2,
    **dict.fromkeys(
        (f"rae-{n}" for n in ("dinov2-vit-b", "dinov3-vit-b16", "siglip2-vit-b")), WIDE
    ),
    **dict.fromkeys((f"rae-{n}" for n in ("pe-vit-l", "langpe-vit-l", "spatialpe-vit-l")), WIDER),
    "sdvae-ema-reg": 615_342_628,
    "flux2-reg": 615_930_516,
    **dict.fromkeys((f"rae-{n}-reg" for n in ("dinov2-vit-b", "dinov3-vit-b16")), 619_289_876),
    **dict.fromkeys((f"{TWICE}{n}" for n in ("", "-2", "-unguided", "-unguided-2")), MEANFLOW),
    "table1-rae": 838_406_644,
    **dict.fromkeys(("table1-e2e-vavae", "table1-e2e-vavae-repa"), 680_081_568),
    "table1-pixnerd": 446_161_768,
    "table1-jit": 87_994_624,
    "table1-pixelgen": 457_558_480,
}
"""parameters of each method's backbone with class labels"""
LARGE = {"flux2": 1_011_986_388, "qwen-vae": 1_011_622_804, "e2e-qwen-vae": 1_011_622_804}
"""at 512 px, with captions"""
TEXT = 615_271_700 - 615_252_244
"""what captions add"""
OWN_ARCHITECTURE = ("jit@upstream", "pixnerd@upstream", "pixelgen@upstream")
PAPER = [n for n in recipes.names() if n.startswith(("imagenet", "t2i"))]


@pytest.mark.parametrize("name", [n for n in PAPER if not n.endswith(OWN_ARCHITECTURE)])
def test_paper_sizes(name: str) -> None:
    task, method = name.partition("@")[0].split("/")
    expected = {
        "imagenet": lambda: SIZES[method],
        "t2i": lambda: SIZES[method] + TEXT,
        "t2i-512": lambda: LARGE[method],
    }[task]()
    assert parameter_count(assembled(recipes.preset(name)).backbone) == expected


@every
def test_paths_are_relative(name: str) -> None:
    path = getattr(recipes.preset(name).task.data, "path", "data")
    assert path == "data" or not Path(path).is_absolute()
