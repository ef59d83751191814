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
from nanogen.metrics.genai_bench import by_skill
from nanogen.metrics.uncertainty import Judged
from nanogen.types import Request

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
    return Judged(Outcomes(tuple(prompts), ("",) * len(prompts), tuple(VALUES[p] for p in prompts)))


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


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = prepare_tiny(tmp_path_factory.mktemp("tiny"))
        for name in ("genai-bench", "genai-bench[set=527]", "genai-bench-qwen"):
            for asset in needed(name):
                store.prepare(asset, found[asset.name])
        yield found


CONTEXT = Context(StandIn(32), torch.device("cpu"))


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
