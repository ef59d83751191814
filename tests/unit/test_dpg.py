"""DPG-Bench as a metric: its score, its categories, its two judges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_dpg import ASKED, PROMPTS, prepare_tiny, tiny_rows, write_blip
from torch import Tensor

from nanogen import registry, store
from nanogen.data.base import Source
from nanogen.encoders.blip_vqa import UNUSED, BlipVqa
from nanogen.errors import ConfigError, MetricError
from nanogen.metrics.base import Context, Observation, Score
from nanogen.metrics.dpg import BLIP, MPLUG, Dpg, DpgBlip, QuestionMetric
from nanogen.metrics.dpg_graph import Item, Question
from nanogen.prompts.dpg import QUESTIONS
from nanogen.types import Request

CPU = torch.device("cpu")
TEXTS = tuple(dict.fromkeys(text for _, text, *_ in tiny_rows()))
KINDS = ("entity-whole", "attribute-color", "relation-spatial", "global")
ASSETS = (QUESTIONS, MPLUG, BLIP)


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Path]]:
    """A store with tiny files of all that is needed."""
    paths = prepare_tiny(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for asset in ASSETS:
            store.prepare(asset, paths[asset.name])
        yield paths


class Says:
    """A judge whose answer to each question is fixed, or a function of the image's first pixel."""

    def __init__(self, **no: int) -> None:
        """Says no to the questions that `no` names, on images whose first pixel is below that."""
        self.no = no

    def says_yes(self, image: Tensor, questions: Sequence[str]) -> list[bool]:
        first = int(image[0, 0, 0])
        return [
            not any(word in question and first < below for word, below in self.no.items())
            for question in questions
        ]


class Asked(QuestionMetric):
    """With the judge that a test gives."""

    name = "asked"
    judge_asset = MPLUG
    said: Says

    def open_judge(self) -> Says:
        return self.said


def context() -> Context:
    return Context(cast(Source, None), CPU)


def asked(judge: Says, **chosen: str) -> Asked:
    metric = Asked(context(), chosen)
    metric.said = judge
    return metric


def images(count: int) -> Tensor:
    """uint8 [count, 3, 20, 24], the first pixel of which is its number."""
    found = torch.randint(0, 256, (count, 3, 20, 24), generator=torch.manual_seed(0))
    found = found.to(torch.uint8) // torch.arange(1, count + 1)[:, None, None, None].clamp(max=4)
    found = found.to(torch.uint8)
    found[:, 0, 0, 0] = torch.arange(count)
    return found


def measured(
    metric: QuestionMetric, texts: Sequence[str], batch: int = 100
) -> tuple[dict[str, Score], dict[str, Tensor]]:
    for part in torch.arange(len(texts)).split(batch):
        request = Request(part, texts=tuple(texts[i] for i in part))
        metric.update(Observation(images(len(texts))[part], request, lambda name: None))
    rows = {name: torch.cat(parts) for name, parts in metric.rows.items()}
    return metric.compute({}, rows), rows


def values(scores: Mapping[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def test_all_yes() -> None:
    found, _ = measured(asked(Says()), TEXTS[:12])
    assert set(found) == {"asked"} | {
        f"asked/{part}" for part in (*KINDS, "entity", "attribute", "relation")
    }
    assert set(values(found).values()) == {1.0}
    assert all(score.standard_error is None for score in found.values())
    assert found["asked"].n == 12 and found["asked"].higher_is_better


def test_no_to_roots() -> None:
    """What depends on a no is void in the score; categories show the answers themselves."""
    found, _ = measured(asked(Says(there=255, painting=255), skip_first_row="no"), TEXTS[:12])
    assert found["asked"].value == 0
    assert found["asked/entity"].value == 0 and found["asked/global"].value == 0
    assert found["asked/attribute-color"].value == found["asked/relation-spatial"].value == 1


def literal(texts: Sequence[str], said: Says, skip: bool) -> tuple[list[float], dict]:
    """Scores of images, and raw answers by category, one question after another."""
    scores, raw = [], defaultdict(list)
    for image, text in zip(images(len(texts)), texts, strict=True):
        rows = [row for row in tiny_rows()[1 if skip else 0 :] if row[1] == text]
        answers = {}
        for _, _, number, parent, kind, question in rows:
            (yes,) = said.says_yes(image, [question])
            category = kind.split("(")[0].strip()
            names = {category.split("-")[0].strip(), category.removesuffix("-").strip()}
            for name in names:
                raw[name.replace(" - ", "-")].append(float(yes))
            answers[number] = (yes, int(parent))
        held = {number: yes for number, (yes, _) in answers.items()}
        for number, (_, parent) in answers.items():
            if parent and not held.get(parent, True):
                held[number] = False
        scores.append(sum(held.values()) / len(held))
    return scores, raw


@pytest.mark.parametrize("skip", [True, False])
def test_against_slow_loops(skip: bool) -> None:
    texts = [*TEXTS[1:9], *TEXTS[1:9], *TEXTS[1:9], *TEXTS[1:9]]
    said = Says(there=9, red=22, painting=5)
    found, _ = measured(asked(said, skip_first_row="yes" if skip else "no"), texts)
    scores, raw = literal(texts, said, skip)
    assert found["asked"].value == pytest.approx(np.mean(scores))
    assert found["asked"].outcomes is not None
    assert found["asked"].outcomes.values == pytest.approx(scores)
    for part, answers in raw.items():
        assert found[f"asked/{part}"].value == pytest.approx(np.mean(answers)), part
    assert found["asked"].facts["questions"] == sum(len(raw[kind]) for kind in KINDS)


def test_first_row() -> None:
    """The first prompt has four questions; without the first, three, with no parent any more."""
    kept, short = asked(Says(there=9), skip_first_row="no"), asked(Says(there=9))
    assert len(kept.items) == len(short.items) == PROMPTS
    assert measured(kept, TEXTS[:1])[0]["asked"].value == 0.25
    assert measured(short, TEXTS[:1])[0]["asked"].value == 1
    assert kept.facts()["skipped_row"] == "none" and short.facts()["skipped_row"] == "first"
    assert short.title == "asked"
    assert kept.title == "asked[skip_first_row=no]"


def test_prompts_are_counted() -> None:
    """A few of the prompts are not the benchmark: the facts tell."""
    found, _ = measured(asked(Says()), [*TEXTS[:3], *TEXTS[:2]])
    facts = found["asked"].facts
    assert facts["prompts"] == 3 and facts["prompts_in_set"] == PROMPTS


def test_broad_category_is_of_all_its_kinds() -> None:
    """Two kinds of attribute: one is answered with yes, two of the other with no."""
    kinds = ("attribute - color", "attribute - texture", "attribute - texture")
    questions = tuple(Question(n, (), kind, f"q{n}") for n, kind in enumerate(kinds))
    metric = asked(Says(q1=255, q2=255))
    metric.__dict__["items"] = {TEXTS[0]: Item("a", TEXTS[0], questions)}
    found, _ = measured(metric, TEXTS[:1])
    assert found["asked/attribute"].value == pytest.approx(1 / 3)
    assert found["asked/attribute-color"].value == 1
    assert found["asked/attribute-texture"].value == 0


def test_a_category_is_a_share_of_questions_not_of_images() -> None:
    """One of one and none of three are a quarter."""
    first = (Question(1, (), "attribute - color", "q1"),)
    second = tuple(Question(n, (), "attribute - color", f"r{n}") for n in (1, 2, 3))
    metric = asked(Says(r1=255, r2=255, r3=255))
    items = {TEXTS[0]: Item("a", TEXTS[0], first), TEXTS[1]: Item("b", TEXTS[1], second)}
    metric.__dict__["items"] = items
    found, _ = measured(metric, TEXTS[:2])
    assert found["asked/attribute-color"].value == 0.25
    assert found["asked"].value == 0.5


def test_four_images_of_a_prompt() -> None:
    """The mean over images; its spread is over prompts, which come whole."""
    texts = [*TEXTS[4:8]] * 4
    said = Says(there=6)
    found, _ = measured(asked(said), texts)
    scores, _ = literal(texts, said, skip=True)
    by_prompt = np.reshape(scores, (4, 4)).mean(axis=0)
    assert found["asked"].value == pytest.approx(by_prompt.mean())
    assert found["asked"].n == 16
    assert found["asked"].facts["questions"] == 4 * (1 + 2 + 3 + 4)
    # Images 0 to 5 of 16 are said no to: every prompt once, two of them twice.
    assert found["asked/entity"].value == pytest.approx(10 / 16)
    assert found["asked/entity"].n == 16 and found["asked/global"].n == 4


def test_last_tile() -> None:
    """Categories from the last image of each prompt; the score stays that of all."""
    texts = [*TEXTS[4:8]] * 4
    said = Says(there=13)
    every, _ = measured(asked(said), texts)
    last, _ = measured(asked(said, tiles="last"), texts)
    assert last["asked"] == every["asked"] or last["asked"].value == every["asked"].value
    assert every["asked/entity"].value == pytest.approx(3 / 16)
    assert last["asked/entity"].value == pytest.approx(3 / 4)
    assert last["asked/entity"].n == 4
    assert last["asked/entity"].facts["category_images"] == "last"


def test_spread_of_a_category() -> None:
    """Against the standard error of a ratio by the delta method, over many prompts."""
    texts = [*TEXTS[1:201]]
    said = Says(there=0, red=80)
    found, _ = measured(asked(said), texts)
    score = found["asked/attribute-color"]
    _, raw = literal(texts, said, skip=True)
    share, count = np.mean(raw["attribute-color"]), len(raw["attribute-color"])
    assert score.value == pytest.approx(share) and score.n == count
    expected = np.sqrt(share * (1 - share) / count)
    assert score.standard_error == pytest.approx(expected, rel=0.1)


def test_rows_are_small_and_any_batches_do() -> None:
    texts = [*TEXTS[1:14]]
    expected, rows = measured(asked(Says(red=7)), texts)
    assert rows["values"].shape == (13, 1 + len(KINDS))
    for batch in (1, 5):
        found, other = measured(asked(Says(red=7)), texts, batch)
        assert torch.equal(other["values"], rows["values"])
        assert found == expected


def test_category_that_is_not_asked_for() -> None:
    found, _ = measured(asked(Says()), [TEXTS[3]])
    assert set(found) == {"asked", "asked/entity", "asked/entity-whole"}


def test_foreign_prompt_is_refused() -> None:
    with pytest.raises(MetricError, match="not one of its 1065 prompts"):
        measured(asked(Says()), ["a prompt of somebody else"])


@pytest.mark.parametrize("name", ["dpg", "dpg-blip"])
def test_judges(name: str) -> None:
    """From the store to the score, batch by batch or at once."""
    target = registry.get("metric", name)
    texts = [*TEXTS[2:8]]
    metric = target(context())
    metric.check(1065)
    with pytest.raises(
        MetricError, match=r"each of its 1065 prompts \(published: 4 of each, 4260\), not 6 samples"
    ):
        metric.check(len(texts))
    assert "judge_opened" not in vars(metric)
    found, rows = measured(metric, texts)
    metric.close()
    assert "judge_opened" not in vars(metric)
    again, other = measured(target(context()), texts, batch=4)
    assert torch.equal(rows["values"], other["values"]) and values(again) == values(found)
    assert 0 <= found[name].value <= 1
    facts = found[name].facts
    judged_by = MPLUG if name == "dpg" else BLIP
    assert facts["vqa_model"] == judged_by.hub
    assert facts["vqa_hash"] == store.find(judged_by).sha256
    assert facts["questions_hash"] == store.find(QUESTIONS).sha256
    assert (facts.get("question_tokens") == 35) == (name == "dpg")


def test_tiny_mplug_says_both() -> None:
    """Or the tests above would show less than they seem to."""
    judge = Dpg(context()).open_judge()
    said = {judge.says_yes(image, [ASKED[0][2]])[0] for image in images(12)}
    assert said == {True, False}


def test_tokens_are_cut_off() -> None:
    metric = Dpg(context(), {"tokens": "25"})
    assert metric.title == "dpg[tokens=25]" and metric.open_judge().limit == 25
    assert metric.facts()["question_tokens"] == 25


def test_other_judge_is_another_metric() -> None:
    assert DpgBlip.name != Dpg.name and "tokens" not in DpgBlip.options
    assert set(DpgBlip.assets) & set(Dpg.assets) == {QUESTIONS}


def test_missing_assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="needs dpg-bench .* nanogen prepare"):
        Dpg(context()).check(8)


@torch.no_grad()
def test_blip_compares_likelihoods(tiny: Mapping[str, Path]) -> None:
    """Against a forward pass for each word of each answer to each question."""
    judge = BlipVqa(tiny[BLIP.name], CPU)
    questions = ["is it red?", "is the thing on the box, or is it a painting?"]
    image = images(1)[0]
    network = judge.network
    seen = network.vision_model(pixel_values=judge.prepared(image[None])).last_hidden_state
    expected = []
    for question in questions:
        ids = judge.words.encode([question], 64).ids
        read = network.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        found = []
        for answer in ("yes", "no"):
            before, total = [network.decoder_start_token_id], 0.0
            for word in [*judge.words.pieces(answer), judge.words.end]:
                given = torch.tensor([before])
                logits = network.text_decoder(input_ids=given, encoder_hidden_states=read).logits
                total += float(logits[0, -1].softmax(-1)[word].log())
                before.append(word)
            found.append(total)
        expected.append(found[0] - found[1])
    margins = judge.margins(image, questions)
    assert margins.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert judge.says_yes(image, questions) == [margin > 0 for margin in expected]
    alone = BlipVqa(tiny[BLIP.name], CPU, chunk=1).margins(image, questions)
    torch.testing.assert_close(alone, margins, rtol=1e-4, atol=1e-4)


BIAS = "text_encoder.encoder.layer.0.output.dense.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({BIAS: None}, f"1 missing, such as {BIAS}"),
        ({"text_encoder.pooler.dense.bias": torch.zeros(32)}, "1 unknown, such as text_encoder.po"),
        ({BIAS: torch.zeros(33)}, f"1 misshapen, such as {BIAS}"),
    ],
)
def test_weights_of_another_blip(
    tmp_path: Path, change: Mapping[str, torch.Tensor | None], message: str
) -> None:
    folder = write_blip(tmp_path / "blip")
    file = folder / "model.safetensors"
    tensors = {**safetensors.torch.load_file(file), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=message) as found:
        BlipVqa(folder, CPU)
    assert "\n" not in str(found.value)


def test_positions_that_older_versions_wrote_down_are_not_needed(tmp_path: Path) -> None:
    folder = write_blip(tmp_path / "blip")
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file) | {n: torch.arange(64)[None] for n in UNUSED}
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    BlipVqa(folder, CPU)


@pytest.mark.parametrize("name", ["vocab.txt", "preprocessor_config.json", "model.safetensors"])
def test_broken_blip(tmp_path: Path, name: str) -> None:
    folder = write_blip(tmp_path / "blip")
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"lacks {name}"):
        BlipVqa(folder, CPU)
