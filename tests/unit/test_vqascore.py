"""VQAScore and its Qwen-VL counterpart as metrics, over tiny models in the store."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import measured
from parts import StandIn
from tiny_vqascore import prepare_tiny
from torch import Tensor

from nanogen import store
from nanogen.bench.assets import needed
from nanogen.encoders.clip_flant5 import ClipFlanT5, Files
from nanogen.encoders.qwen_vl import QwenVl
from nanogen.errors import ConfigError
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Score
from nanogen.metrics.uncertainty import Judged, Outcomes
from nanogen.metrics.vqa_qwen import VqaScoreQwen
from nanogen.metrics.vqascore import VqaMetric, VqaScore, spread_of
from nanogen.types import Request

CPU = torch.device("cpu")
TEXTS = ("a red cow", "two blue dogs", "a red cow", "a barn and no cow at all", "a plate")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Everything prepared from tiny files, in a store of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = prepare_tiny(tmp_path_factory.mktemp("tiny"))
        wanted = {*needed("vqascore[model=clip-flant5-xl]"), *needed("vqascore-qwen")}
        for asset in {*wanted, *needed("vqascore"), *needed("vqascore-qwen[model=qwen2.5-vl-7b]")}:
            store.prepare(asset, found[asset.name])
        yield found


def context(precision: str = "fp32") -> Context:
    return Context(StandIn(32), CPU, precision="bf16" if precision == "bf16" else "fp32")


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 30, 44), dtype=torch.uint8, generator=generator)


def scored(name: str, cuts: Sequence[int] = (5,)) -> dict[str, Score]:
    """Scores of one metric for the five images, in batches up to each of `cuts`."""
    (metric,) = harness.choose([name], context())
    shown, request = images(5), Request(torch.arange(5), texts=TEXTS)
    starts = [0, *cuts[:-1]]
    batches = [(request.rows(a, b), shown[a:b]) for a, b in zip(starts, cuts, strict=True)]
    return {n: found.score for n, found in measured([metric], batches, context()).items()}


def flant5(paths: dict[str, Path], size: str) -> ClipFlanT5:
    files = Files(
        paths[f"clip-flant5-{size}"], paths["flan-t5-tokenizer"], paths["clip-vit-l-336-config"]
    )
    return ClipFlanT5(files, CPU, torch.float32)


def test_nothing_is_opened_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("vqascore", "vqascore-qwen", "genai-bench", "genai-bench-qwen"):
        (metric,) = harness.choose([name], context())
        with pytest.raises(ConfigError, match="run: nanogen prepare"):
            metric.check(5)


@pytest.mark.parametrize("size", ["xxl", "xl"])
def test_score_is_the_mean_of_geometric_means(paths: dict[str, Path], size: str) -> None:
    likely = flant5(paths, size)(images(5), TEXTS).double().exp().numpy()
    expected = np.sqrt(likely[:, 0] * likely[:, 1])
    name = "vqascore" if size == "xxl" else "vqascore[model=clip-flant5-xl]"
    (found,) = scored(name).values()
    assert list(scored(name)) == [name]
    assert found.n == 5 and found.higher_is_better
    assert found.value == pytest.approx(expected.mean(), rel=1e-5)
    assert found.outcomes is not None
    assert found.outcomes.values == pytest.approx(expected, rel=1e-5)
    assert found.outcomes.prompts == TEXTS
    facts = found.facts
    assert facts["p_yes"] == pytest.approx(likely[:, 0].mean(), rel=1e-5)
    assert facts["vqa_model"] == f"clip-flant5-{size}"
    assert facts["template"] == 'Does this figure show "{}"? Please answer yes or no.'
    assert facts["prompts"] == 4 and facts["precision"] == "fp32"
    hashes = {str(facts[f"{part}_hash"]) for part in ("vqa", "tokenizer", "vision")}
    assert len(hashes) == 3 and all(len(digest) == 64 for digest in hashes)
    # The two images of one prompt are one draw.
    prompts = [(expected[0] + expected[2]) / 2, *expected[[1, 3, 4]]]
    assert facts["std_over_prompts"] == pytest.approx(np.std(prompts, ddof=1), rel=1e-4)
    assert found.standard_error == pytest.approx(np.std(prompts, ddof=1) / 2, rel=0.5)


@pytest.mark.parametrize(
    "name", ["vqascore", "vqascore-qwen", "vqascore-qwen[model=qwen2.5-vl-7b]"]
)
def test_any_batches(paths: dict[str, Path], name: str) -> None:
    (whole,), (cut,) = (scored(name, cuts).values() for cuts in ((5,), (1, 4, 5)))
    assert cut.value == pytest.approx(whole.value, rel=1e-5)
    assert cut.standard_error == pytest.approx(whole.standard_error, rel=1e-3)


def test_the_whole_is_asked_in_parts(paths: dict[str, Path]) -> None:
    metric = VqaScore(context())
    shown = images(5).repeat(4, 1, 1, 1)
    found = metric.judge(shown, TEXTS * 4)
    assert found.shape == (20, 2) and found.dtype == torch.float64
    torch.testing.assert_close(found[:5], found[15:], rtol=1e-5, atol=0)


def networks() -> int:
    """How many models are in memory."""
    kinds = ("Network", "Qwen3VLForConditionalGeneration")
    return sum(type(thing).__name__ in kinds for thing in gc.get_objects())


@pytest.mark.parametrize("kind", [VqaScore, VqaScoreQwen])
def test_models_are_freed(paths: dict[str, Path], kind: type[VqaMetric]) -> None:
    gc.collect()
    before = networks()
    metric = kind(context())
    found = metric.judge(images(2), TEXTS[:2])
    assert networks() == before + 1
    metric.close()
    assert networks() == before
    metric.close()
    torch.testing.assert_close(metric.judge(images(2), TEXTS[:2]), found, rtol=0, atol=0)


def test_precision(paths: dict[str, Path]) -> None:
    whole, half = (VqaScore(context(p)).judge(images(5), TEXTS) for p in ("fp32", "bf16"))
    assert not torch.equal(whole, half)
    torch.testing.assert_close(half, whole, rtol=0.15, atol=0)
    assert VqaScore(context("bf16")).facts()["precision"] == "bf16"


@pytest.mark.parametrize("model", ["qwen3-vl-8b", "qwen2.5-vl-7b"])
def test_qwen_score_is_the_mean_probability(paths: dict[str, Path], model: str) -> None:
    asked = [f'Does this image show "{text}"?' for text in TEXTS]
    expected = QwenVl(paths[model], CPU, torch.float32)(images(5), asked)
    (found,) = scored(f"vqascore-qwen[model={model}]").values()
    assert found.value == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found.facts["vqa_model"] == model and "p_yes" not in found.facts
    assert found.facts["template"] == 'Does this image show "{}"?'


def test_needs_what_the_options_ask_for() -> None:
    shared = {"flan-t5-tokenizer", "clip-vit-l-336-config"}
    for size in ("xxl", "xl"):
        names = {asset.name for asset in needed(f"vqascore[model=clip-flant5-{size}]")}
        assert names == {f"clip-flant5-{size}", *shared}
    names = {asset.name for asset in needed("genai-bench[set=527]")}
    assert names == {"clip-flant5-xxl", "genai-bench-527", *shared}
    names = {asset.name for asset in needed("genai-bench-qwen")}
    assert names == {"qwen3-vl-8b", "genai-bench-1600"}


def test_spread_is_of_prompts_and_unknown_of_one() -> None:
    judged = Judged(Outcomes(("a", "b", "a"), ("",) * 3, (0.1, 0.5, 0.5)))
    found = spread_of(judged)
    assert found["prompts"] == 2
    assert found["std_over_prompts"] == pytest.approx(0.2 / np.sqrt(2))
    assert spread_of(Judged(Outcomes(("a",), ("",), (0.1,)))) == {"prompts": 1}
