"""CLIPScore: transformers' own pipeline, torchmetrics, formulas by hand, and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from tiny_contrastive import made, pictures, seen, tiny_store
from torch import Tensor

from nanogen.encoders.contrastive import open_contrastive
from nanogen.encoders.fit_square import crop_square
from nanogen.errors import ConfigError
from nanogen.metrics.clip_score import CLIP_B, CLIP_L, ClipScore
from nanogen.metrics.harness import choose
from nanogen.store import find

transformers = pytest.importorskip("transformers")

TEXTS = ("a red cow", "Two  blue dogs!", "x" * 90, "a red cow", "caf\u00e9, \u201cnoir\u201d", "")
IMAGES = pictures(len(TEXTS), 40, 57)
LONG = "zebra crossing a very wide river at dawn " * 4


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    with tiny_store(tmp_path_factory.mktemp("clip"), CLIP_L, CLIP_B) as files:
        yield files


def published(folder, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Cosines by the model, tokenizer and processor of transformers, as diffusion-bench does it."""
    model = transformers.CLIPModel.from_pretrained(folder, use_safetensors=None).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    fed = tokenizer(list(texts), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        found = model(**fed, pixel_values=processed(images))
    return found.logits_per_image.diagonal() / model.logit_scale.exp()


def processed(images: Tensor) -> Tensor:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    process = clip.CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    rows = [image.permute(1, 2, 0).numpy() for image in images]
    return process(rows, return_tensors="pt", input_data_format="channels_last")["pixel_values"]


def test_cosines_are_those_of_transformers(folders) -> None:
    metric = made(ClipScore)
    expected = published(folders[CLIP_L.name], IMAGES, TEXTS)
    found = metric.judge(IMAGES, TEXTS)
    assert found.dtype == torch.float64 and expected.std() > 0.05
    torch.testing.assert_close(found[:, 0], expected.double(), atol=2e-6, rtol=0)
    assert found[:, 1].tolist() == [0, 0, 1, 0, 0, 0]
    score = seen(metric, IMAGES, TEXTS)["clip-score"]
    assert score.value == pytest.approx(expected.mean().item(), abs=1e-6)
    assert score.n == 6 and score.higher_is_better and score.standard_error is not None
    assert score.outcomes is not None and score.outcomes.prompts == TEXTS


def test_negative_cosines_stay_negative(folders) -> None:
    metric = made(ClipScore)
    texts = tuple(letter * 3 for letter in "abcdefghijklmnopqrst")
    images = pictures(len(texts))
    values = metric.judge(images, texts)[:, 0]
    rows = values.argsort()[:2]
    assert values[rows].max() < 0, "the stand-in shows one case only"
    score = seen(metric, images[rows], [texts[i] for i in rows])["clip-score"]
    assert score.value == pytest.approx(values[rows].mean().item(), abs=1e-6)


def test_hessel_by_hand(folders) -> None:
    metric = made(ClipScore, {"variant": "hessel"})
    prefixed = [
        "A photo depicts " + text.replace("\u201c", '"').replace("\u201d", '"') for text in TEXTS
    ]
    images = pictures(len(TEXTS))
    expected = 2.5 * published(folders[CLIP_B.name], images, prefixed).clamp(min=0)
    assert (expected == 0).any() and (expected > 0).any()
    found = metric.judge(images, TEXTS)
    torch.testing.assert_close(found[:, 0], expected.double(), atol=5e-6, rtol=0)
    facts = seen(metric, images, TEXTS)["clip-score"].facts
    assert facts["prefix"] == "A photo depicts " and facts["model"] == CLIP_B.hub


def test_torchmetrics_itself(folders) -> None:
    """Also where it loses the end of long prompts."""
    functional = pytest.importorskip("torchmetrics.functional.multimodal.clip_score")
    model = transformers.CLIPModel.from_pretrained(folders[CLIP_L.name]).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folders[CLIP_L.name])

    def process(text=None, images=None, **kept):
        if text is not None:
            return tokenizer(text, return_tensors="pt", padding=True)
        return {"pixel_values": processed(torch.stack(images))}

    # It was written for transformers 4, whose methods return tensors.
    old = SimpleNamespace(
        config=model.config,
        get_image_features=lambda fed: model.get_image_features(fed).pooler_output.detach(),
        get_text_features=lambda ids, mask: model.get_text_features(
            ids, mask
        ).pooler_output.detach(),
    )
    old.to = lambda device: old
    texts = ("a red cow", LONG, "two dogs")
    images = pictures(3, 40, 57)
    with pytest.warns(UserWarning, match="Encountered caption longer"):
        expected, _ = functional._clip_score_update(list(images), list(texts), old, process)
    found = made(ClipScore, {"variant": "torchmetrics"}).judge(images, texts)
    torch.testing.assert_close(found[:, 0], expected.double(), atol=2e-4, rtol=0)
    ended = 100 * made(ClipScore).judge(images, texts)[:, 0]
    assert (ended - found[:, 0]).abs().gt(1e-3).tolist() == [False, True, False]


def test_torchmetrics_lifts_a_negative_mean_only() -> None:
    metric = made(ClipScore, {"variant": "torchmetrics"})
    texts = tuple(letter * 3 for letter in "abcdefghijklmnopqrst")
    images = pictures(len(texts))
    values = metric.judge(images, texts)[:, 0]
    order = values.argsort()
    for rows in (order[:2], order):
        expected = values[rows].mean().item()
        score = seen(metric, images[rows], [texts[i] for i in rows])["clip-score"]
        assert score.value == pytest.approx(max(expected, 0.0), abs=1e-4)
        assert score.outcomes is not None
        assert score.outcomes.values == pytest.approx(values[rows].tolist(), abs=1e-4)
    assert values[order[:2]].mean() < 0 < values.mean(), "the stand-in shows one case only"


@pytest.mark.parametrize("variant", ["cosine", "hessel", "torchmetrics"])
def test_neither_batches_nor_neighbours_matter(variant: str) -> None:
    metric = made(ClipScore, {"variant": variant})
    whole = metric.judge(IMAGES, TEXTS)
    for parts in ([1, 5], [1] * 6):
        pieces = zip(IMAGES.split(parts), torch.arange(6).split(parts), strict=True)
        found = torch.cat([metric.judge(i, [TEXTS[r] for r in rows]) for i, rows in pieces])
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-5)
    few = made(ClipScore, {"variant": variant}, batch=2)
    torch.testing.assert_close(few.judge(IMAGES, TEXTS), whole, atol=1e-4, rtol=1e-5)


def test_facts_and_the_share_of_prompts_that_are_cut() -> None:
    metric = made(ClipScore)
    facts = seen(metric, IMAGES, TEXTS, batch=4)["clip-score"].facts
    assert facts == {
        "model": "openai/clip-vit-large-patch14",
        "model_sha256": find(CLIP_L).sha256,
        "precision": "fp32",
        "resize": ClipScore.resize,
        "variant": "cosine",
        "prompts": 5,
        "prompts_cut": 0.2,
        "captions_hash": facts["captions_hash"],
    }


def test_half_precision_is_close_and_said() -> None:
    whole, half = made(ClipScore), made(ClipScore, precision="bf16")
    difference = half.judge(IMAGES, TEXTS) - whole.judge(IMAGES, TEXTS)
    assert 0 < difference.abs().max() < 0.05
    assert half.facts()["precision"] == "bf16"


def test_models_are_opened_late_and_freed() -> None:
    metric = made(ClipScore)
    assert "network" not in vars(metric)
    before = metric.judge(IMAGES, TEXTS)
    assert not any(p.requires_grad for p in metric.network.network.parameters())
    metric.close()
    assert "network" not in vars(metric)
    assert torch.equal(metric.judge(IMAGES, TEXTS), before)


def test_each_variant_asks_for_its_own_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variant, asset in (("cosine", CLIP_L), ("hessel", CLIP_B), ("torchmetrics", CLIP_L)):
        metric = made(ClipScore, {"variant": variant})
        assert metric.assets == (asset,)
        with pytest.raises(ConfigError, match=f"nanogen prepare {asset.name}"):
            metric.check(10)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="variant=mine"):
        choose(("clip-score[variant=mine]",), made(ClipScore).context)


@pytest.mark.parametrize("damage", ["lacks", "unknown", "config", "nothing"])
def test_a_folder_of_something_else_is_refused(folders, tmp_path, damage: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(folders[CLIP_L.name], folder)
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    if damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "nothing":
        file.unlink()
    else:
        if damage == "lacks":
            del tensors["visual_projection.weight"]
        else:
            tensors["head.weight"] = torch.zeros(1)
        safetensors.torch.save_file(tensors, file)
    words = {"lacks": "it lacks visual", "unknown": "unknown head", "nothing": "holds neither"}
    with pytest.raises(ConfigError, match=words.get(damage, "no readable config.json")):
        open_contrastive(folder, folder / "tokenizer.json", crop_square, torch.device("cpu"))
