"""GenAI-Bench: prompts with several skills each, in all and by skill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import measured
from parts import StandIn
from tiny_vqascore import prepare_tiny

from nanogen import registry, store
from nanogen.bench.assets import needed
from nanogen.errors import MetricError
from nanogen.metrics import harness
from nanogen.metrics.base import Context, Outcomes
from nanogen.metrics.genai_bench import SET, BySkill, by_skill
from nanogen.metrics.prompted import PromptedMetric
from nanogen.metrics.uncertainty import Judged
from nanogen.metrics.vqascore import Asked, Facts
from nanogen.types import Request

CONTEXT = Context(StandIn(32), torch.device("cpu"))
VALUES = {"a": 0.9, "b": 0.8, "c": 0.2, "d": 0.4, "e": 0.6}


@dataclass(frozen=True)
class Prompts:
    """Five prompts: three basic, two advanced of which one is basic too, one without a skill."""

    texts: tuple[str, ...] = tuple("abcde")
    skills: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "spatial relation": (0, 1),
            "basic": (0, 1, 2),
            "counting": (2,),
            "advanced": (2, 3),
            "negation": (),
        }
    )
    fingerprint: str = "five"


def judged(prompts: str) -> Judged:
    values = tuple(VALUES[p] for p in prompts)
    places = tuple("abcde".index(p) for p in prompts)
    return Judged(Outcomes(tuple(prompts), ("",) * len(prompts), values), places)


def test_tags_overlap() -> None:
    found = by_skill(judged("abcde"), Prompts())
    assert {tag: (round(score.value, 12), score.n) for tag, score in found.items()} == {
        "all": (round((0.9 + 0.8 + 0.2 + 0.4) / 4, 12), 4),
        "spatial-relation": (0.85, 2),
        "basic": (round(1.9 / 3, 12), 3),
        "counting": (0.2, 1),
        "advanced": (0.3, 2),
    }
    groups = (found["basic"].value + found["advanced"].value) / 2
    assert groups != pytest.approx(found["all"].value)
    assert groups != pytest.approx(np.mean(list(VALUES.values())))


def test_errors_and_spread_are_of_the_part() -> None:
    found = by_skill(judged("abcdeabcde"), Prompts())
    assert found["basic"].standard_error == judged("abcabc").score_of_images({}).standard_error
    assert found["basic"].facts == {
        "prompts": 3,
        "std_over_prompts": pytest.approx(np.std([0.9, 0.8, 0.2], ddof=1)),
    }
    assert found["counting"].standard_error is None
    assert found["counting"].facts == {"prompts": 1}
    assert all(score.outcomes is None for score in found.values())


def test_absent_skills_have_no_score() -> None:
    assert list(by_skill(judged("de"), Prompts())) == ["all", "advanced"]
    assert by_skill(judged("e"), Prompts()) == {}


class Grey(BySkill):
    """In place of a model: how bright an image is."""

    name, version = "grey", 1
    options = SET
    models = {}
    template = "{}"

    def __init__(self, context: Context, prompts: Prompts) -> None:
        PromptedMetric.__init__(self, context, {"set": "1600"})
        self.prompt_set = prompts  # ty: ignore[invalid-assignment]

    def opened(self) -> Asked:
        return lambda images, texts: images.double().mean((1, 2, 3)) / 255

    def facts(self) -> Facts:
        return {}


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_prompts_of_one_text_keep_their_own_skills(batch: int) -> None:
    """Prompts 0 and 2 say the same; only the second of them is tagged as counting."""
    skills = {"basic": (0, 1), "counting": (2, 3), "advanced": (3,)}
    prompts = Prompts(("a", "b", "a", "c"), skills)
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 2, 2)
    shown = [
        (Request(rows, texts=tuple(prompts.texts[i % 4] for i in rows.tolist())), images[rows])
        for rows in torch.arange(8).flip(0).split(batch)
    ]
    found = measured([Grey(CONTEXT, prompts)], shown, CONTEXT)
    assert {name: one.score.value * 255 for name, one in found.items()} == {
        "grey": pytest.approx(3.5),
        "grey/all": pytest.approx(3.5),
        "grey/basic": pytest.approx(np.mean([0, 1, 4, 5])),
        "grey/counting": pytest.approx(np.mean([2, 3, 6, 7])),
        "grey/advanced": pytest.approx(np.mean([3, 7])),
    }


def test_images_in_an_order_of_their_own_are_known_by_their_text() -> None:
    metric = Grey(CONTEXT, Prompts(("a", "b", "a", "c")))
    assert [metric.place_of(i, text) for i, text in enumerate("abacabac")] == [0, 1, 2, 3] * 2
    assert [metric.place_of(i, text) for i, text in enumerate("cab")] == [3, 0, 1]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = prepare_tiny(tmp_path_factory.mktemp("tiny"))
        for name in ("genai-bench", "genai-bench[set=527]", "genai-bench-qwen"):
            for asset in needed(name):
                store.prepare(asset, found[asset.name])
        yield found


PROMPTS_OF = {
    "genai-bench": "genai",
    "genai-bench[set=527]": "genai-527",
    "genai-bench-qwen": "genai",
}


@pytest.mark.parametrize("name", PROMPTS_OF)
def test_metrics(stored: dict[str, Path], name: str) -> None:
    (metric,) = harness.choose([name], CONTEXT)
    assert metric.prompts == PROMPTS_OF[name]
    of = registry.get("prompts", metric.prompts)()
    metric.check(len(of.texts))
    with pytest.raises(MetricError, match=f"each of its {len(of.texts)} prompts .*, not 6"):
        metric.check(6)
    texts = of.texts[98:104]
    shown = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    request = Request(torch.arange(98, 104), texts=texts)
    found = {n: m.score for n, m in measured([metric], [(request, shown)], CONTEXT).items()}
    whole = found[name]
    assert whole.n == 6 and whole.facts["prompts"] == 6
    assert whole.facts["prompts_in_set"] == len(of.texts)
    assert whole.facts["prompts_hash"] == of.fingerprint
    assert whole.outcomes is not None
    values = dict(zip(whole.outcomes.prompts, whole.outcomes.values, strict=True))
    for tag in ("basic", "advanced", "part relation"):
        among = [values[of.texts[place]] for place in of.skills[tag] if of.texts[place] in values]
        part = found.get(f"{name}/{tag.replace(' ', '-')}")
        assert (part is None) == (not among)
        if part is not None:
            assert part.value == pytest.approx(np.mean(among)) and part.n == len(among)
    # One of the six has no skill.
    assert found[f"{name}/all"].n == 5


def test_other_prompts_are_refused(stored: dict[str, Path]) -> None:
    (metric,) = harness.choose(["genai-bench"], CONTEXT)
    request = Request(torch.arange(1), texts=("a cow",))
    shown = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(MetricError, match="not one of its 1600 prompts"):
        measured([metric], [(request, shown)], CONTEXT)
