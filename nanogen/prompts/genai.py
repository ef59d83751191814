"""GenAI-Bench: 1,600 prompts of designers, tagged with the skills that they need, one image of
each; and the 527 of them that the paper of VQAScore used.

    prompts = registry.get("prompts", "genai")()
    prompts.skills["counting"]            # places among prompts.texts
    prompts.skills_of(0)                  # ("basic", "attribute", "scene", ...)

Li et al. 2024, arXiv 2406.13743; Lin et al. 2024, arXiv 2404.01291. Every prompt is drawn; some of
the 1,600 are said to have no skill, so a mean over skills is over fewer.

The form of the files follows from the published code that reads them: `genai_image.json` maps
five digits to an object with a "prompt", `genai_skills.json` a skill to a list of the numbers that
these digits are, from 0 for the 1,600 and from 1 for the 527. That the hub's files of today have it
is not verified; another form is a DataError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from nanogen.errors import DataError
from nanogen.prompts.base import PromptSet
from nanogen.registry import register
from nanogen.store import Asset, find

PROMPTS, SKILLS = "genai_image.json", "genai_skills.json"
ALL = Asset(
    "genai-bench-1600",
    "the 1,600 prompts of GenAI-Bench with their skills",
    "Apache-2.0",
    hub="BaiqiL/GenAI-Bench-1600",
    dataset=True,
    files=(PROMPTS, SKILLS),
    size="1.4 MB",
)
SOME = Asset(
    "genai-bench-527",
    "the 527 prompts of GenAI-Bench in VQAScore's paper, with their skills",
    "Apache-2.0",
    hub="zhiqiulin/GenAI-Bench-527",
    dataset=True,
    files=(PROMPTS, SKILLS),
    size="0.5 MB",
)
BASIC = ("attribute", "scene", "spatial relation", "action relation", "part relation", "basic")
ADVANCED = ("counting", "comparison", "differentiation", "negation", "universal", "advanced")
"""the published tables show the skills in these two groups; the last of each is their union"""


class _GenAiBench(PromptSet):
    """Reads the store; DataError where its files have another form."""

    images = 1
    count: ClassVar[int]

    def __init__(self) -> None:
        (asset,) = self.assets
        prepared = find(asset)
        self.fingerprint = prepared.sha256
        try:
            self._numbers = _prompts(_read(prepared.path / PROMPTS))
            self.skills = _skills(_read(prepared.path / SKILLS), tuple(self._numbers))
            """skill -> places of its prompts among `texts`, rising"""
            if len(self._numbers) != self.count:
                raise ValueError(f"{PROMPTS} holds {len(self._numbers)} prompts, not {self.count}")
        except ValueError as problem:
            raise DataError(
                f"{prepared.path} is not {asset.what}: {problem}; run: nanogen prepare "
                f"{asset.name} --from FOLDER with those of {asset.hub}"
            ) from None

    @property
    def texts(self) -> tuple[str, ...]:
        """In the order of the file; a prompt that is published twice is drawn twice."""
        return tuple(self._numbers.values())

    def skills_of(self, place: int) -> tuple[str, ...]:
        """The skills of the prompt at a place among `texts`, in the order of the file."""
        return tuple(skill for skill, places in self.skills.items() if place in places)


@register("prompts", "genai", summary="GenAI-Bench: 1,600 prompts by skill", licence="Apache-2.0")
class GenAiPrompts(_GenAiBench):
    name = "genai"
    assets = (ALL,)
    count = 1600


@register("prompts", "genai-527", summary="527 prompts of GenAI-Bench", licence="Apache-2.0")
class GenAi527Prompts(_GenAiBench):
    name = "genai-527"
    assets = (SOME,)
    count = 527


def _read(file: Path) -> Mapping[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is not a JSON object")
    return found


def _prompts(found: Mapping[str, Any]) -> dict[int, str]:
    """Number -> prompt; ValueError where it has another form."""
    prompts = {}
    for key, entry in found.items():
        text = entry.get("prompt") if isinstance(entry, dict) else None
        if not key.isdecimal() or not isinstance(text, str) or not text:
            raise ValueError(f'{PROMPTS} has no number with a "prompt" at {key!r}')
        prompts[int(key)] = text
    return prompts


def _skills(found: Mapping[str, Any], numbers: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Skill -> places among the numbers of the prompts; ValueError where it has another form."""
    places = {number: place for place, number in enumerate(numbers)}
    skills = {}
    for skill, members in found.items():
        if not isinstance(members, list) or not members:
            raise ValueError(f"{SKILLS} has no list of prompts at {skill!r}")
        unknown = [member for member in members if type(member) is not int or member not in places]
        if unknown:
            raise ValueError(f"{SKILLS} has a prompt {unknown[0]!r} at {skill!r} that is not there")
        skills[skill] = tuple(sorted({places[member] for member in members}))
    missing = sorted({*BASIC, *ADVANCED} - set(skills))
    if missing:
        raise ValueError(f"{SKILLS} lacks the skills {', '.join(missing)}")
    return skills
