"""PickScore, as its authors show it: transformers' model, and the processor of its base."""

from __future__ import annotations

import pytest
import torch
from tiny_contrastive import made, pictures, seen, tiny_store

from nanogen.encoders.preprocess import CLIP_MEAN, CLIP_STD
from nanogen.metrics.pick_score import MODEL, TOKENIZER, PickScore
from nanogen.store import find

transformers = pytest.importorskip("transformers")

TEXTS = ("a red cow", "two blue dogs", "y" * 100)
IMAGES = pictures(3, 24, 24)


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    with tiny_store(tmp_path_factory.mktemp("pick"), MODEL, TOKENIZER) as files:
        yield files


def test_scores_are_those_of_the_published_example(files) -> None:
    model = transformers.CLIPModel.from_pretrained(files[MODEL.name]).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(files[TOKENIZER.name].parent)
    tokens = tokenizer(
        list(TEXTS), padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    mean, std = (torch.tensor(c)[:, None, None] for c in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        texts = model.get_text_features(**tokens).pooler_output
        images = model.get_image_features((IMAGES / 255 - mean) / std).pooler_output
        texts, images = (x / torch.norm(x, dim=-1, keepdim=True) for x in (texts, images))
        expected = (model.logit_scale.exp() * (texts @ images.T)).diagonal()
    metric = made(PickScore)
    assert metric.network.scale == pytest.approx(20.0855369)  # exp(3), in the stand-in
    found = metric.judge(IMAGES, TEXTS)
    assert expected.std() > 1
    torch.testing.assert_close(found[:, 0], expected.double(), atol=5e-5, rtol=0)
    assert found[:, 1].tolist() == [0, 0, 1]


def test_score_and_facts() -> None:
    metric = made(PickScore)
    score = seen(metric, IMAGES, TEXTS, batch=2)["pick-score"]
    expected = metric.judge(IMAGES, TEXTS)[:, 0].mean().item()
    assert score.value == pytest.approx(expected, abs=1e-4) and score.n == 3
    assert score.facts["model"] == "yuvalkirstain/PickScore_v1"
    assert score.facts["model_sha256"] == find(MODEL).sha256
    assert score.facts["clip-vit-h-14-tokenizer_sha256"] == find(TOKENIZER).sha256
    assert score.facts["prompts_cut"] == pytest.approx(1 / 3)


def test_a_score_says_which_prompts_it_is_of() -> None:
    def told(texts: tuple[str, ...], rows: list[int]) -> object:
        return seen(made(PickScore), IMAGES[rows], texts)["pick-score"].facts["captions_hash"]

    whole = told(TEXTS, [0, 1, 2])
    assert told(TEXTS[::-1], [2, 1, 0]) == whole
    assert told((*TEXTS, TEXTS[0]), [0, 1, 2, 0]) == whole
    assert told(("a red cow", "two blue dogs", "y"), [0, 1, 2]) != whole
    assert told(TEXTS[:2], [0, 1]) != whole
