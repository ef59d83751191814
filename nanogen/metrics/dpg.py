"""DPG-Bench: how many questions about a long prompt an image answers with yes.

    nanogen eval RUN --metrics dpg                     # mPLUG as the judge, as published
    nanogen eval RUN --metrics dpg-blip                # another judge, another metric

Hu et al. 2024, "ELLA" (arXiv 2403.05135). The score of an image is the share of its prompt's
questions that are answered with yes, where a no to a question also voids those that depend on it;
`dpg` is the mean over images, in [0, 1]. The parts `dpg/<category>` are shares of yes among the
questions of a category, before any are voided; a category without images is left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from nanogen.encoders import blip_vqa, mplug
from nanogen.encoders.blip_vqa import BlipVqa
from nanogen.encoders.mplug import Mplug
from nanogen.metrics.base import Option, Score
from nanogen.metrics.dpg_graph import Item, read_items
from nanogen.metrics.prompted import PromptedMetric
from nanogen.metrics.uncertainty import RESAMPLES, SEED, Judged, spread
from nanogen.prompts.dpg import QUESTIONS
from nanogen.registry import register
from nanogen.store import Asset, find

MPLUG = Asset(
    name="mplug-vqa-large",
    what="mPLUG-large for questions about images, the judge of DPG-Bench",
    licence="Apache-2.0",
    hub="diffusion-bench/mplug_visual-question-answering_coco_large_en",
    files=mplug.FILES,
)
BLIP = Asset(
    name="blip-vqa-capfilt-large",
    what="BLIP for questions about images",
    licence="BSD-3-Clause",
    hub="Salesforce/blip-vqa-capfilt-large",
    files=blip_vqa.FILES,
    size="1.5 GB",
)
SKIP = Option(
    "leave out the first row of the questions, as the published scripts do", "yes", ("yes", "no")
)
TILES = Option(
    "whose answers count in categories: all images of a prompt, or its last one as in ELLA",
    "mean",
    ("mean", "last"),
)
TOKENS = Option(
    "tokens that a question is cut off at: 35 as in DiffusionBench, 25 as in ELLA",
    "35",
    ("35", "25"),
)


class Judge(Protocol):
    """A network that answers questions about images."""

    def says_yes(self, image: Tensor, questions: Sequence[str]) -> list[bool]:
        """Whether it says yes to each question about an image uint8 [3, H, W]."""
        ...


class QuestionMetric(PromptedMetric):
    """Subclass with a judge: `open_judge` and the asset `judge_asset`."""

    version = 1
    takes_precision = True
    prompts = "dpg"
    options: ClassVar[Mapping[str, Option]] = {"skip_first_row": SKIP, "tiles": TILES}
    judge_asset: ClassVar[Asset]

    @abstractmethod
    def open_judge(self) -> Judge:
        """The judge, from the store, on the device of the context."""

    @cached_property
    def judge_opened(self) -> Judge:
        return self.open_judge()

    def close(self) -> None:
        self.__dict__.pop("judge_opened", None)

    @cached_property
    def items(self) -> dict[str, Item]:
        """By prompt."""
        skip = self.chosen["skip_first_row"] == "yes"
        items = read_items(find(QUESTIONS).path, skip_first_row=skip)
        return {item.prompt: item for item in items}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Categories of the second level, in the order of the file: the columns of yeses."""
        asked = (q.detailed for item in self.items.values() for q in item.questions)
        return tuple(dict.fromkeys(asked))

    def judge(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """[B, 1 + kinds]: the score of each image, then its yeses of each category, not voided."""
        return torch.tensor(
            [
                self._judged(image, self.items[text])
                for image, text in zip(images, texts, strict=True)
            ],
            dtype=torch.float64,
        )

    def _judged(self, image: Tensor, item: Item) -> list[float]:
        answers = self.judge_opened.says_yes(image, [q.text for q in item.questions])
        yeses = Counter(q.detailed for q, yes in zip(item.questions, answers, strict=True) if yes)
        return [item.score(answers), *(float(yeses[kind]) for kind in self.kinds)]

    def scores(self, judged: Judged, extra: Tensor) -> dict[str, Score]:
        """The metric, and its categories of both levels; `extra` [n, kinds] are the yeses."""
        texts = judged.outcomes.prompts
        facts = self.facts() | {
            "prompts": len(set(texts)),
            "prompts_in_set": len(self.items),
            "questions": sum(len(self.items[t].questions) for t in texts),
        }
        shown = list(range(len(texts)))
        if self.chosen["tiles"] == "last":
            shown = sorted({text: place for place, text in enumerate(texts)}.values())
        table = Answers(
            prompts=[texts[place] for place in shown],
            yes=extra[shown].numpy(),
            asked=np.array([self._asked(texts[place]) for place in shown]),
        )
        found = {self.name: judged.score_of_images(facts)}
        for part, columns in self._parts().items():
            if (score := table.share(columns, facts)) is not None:
                found[f"{self.name}/{part}"] = score
        return found

    def _asked(self, text: str) -> list[int]:
        """Questions of each kind about a prompt."""
        counts = Counter(question.detailed for question in self.items[text].questions)
        return [counts[kind] for kind in self.kinds]

    def _parts(self) -> dict[str, list[int]]:
        """Columns of each category, first and second level; one that is both is there once."""
        questions = [q for item in self.items.values() for q in item.questions]
        parts: dict[str, set[int]] = {question.broad: set() for question in questions}
        parts |= {kind: set() for kind in self.kinds}
        for question in questions:
            column = self.kinds.index(question.detailed)
            parts[question.broad].add(column)
            parts[question.detailed].add(column)
        return {part: sorted(columns) for part, columns in parts.items()}

    def facts(self) -> dict[str, str | int | float]:
        skip = self.chosen["skip_first_row"] == "yes"
        return {
            "vqa_model": self.judge_asset.hub,
            "vqa_hash": find(self.judge_asset).sha256,
            "questions_hash": find(QUESTIONS).sha256,
            "skipped_row": "first" if skip else "none",
            "category_images": self.chosen["tiles"],
            "precision": self.context.precision,
        }


class Answers:
    """Yeses and questions of each category, image by image."""

    def __init__(self, prompts: Sequence[str], yes: np.ndarray, asked: np.ndarray) -> None:
        """`yes` and `asked` [n, kinds]; images of one prompt are resampled together."""
        self._yes, self._asked = yes, asked
        _, self._places = np.unique(np.array(prompts), return_inverse=True)

    def share(self, columns: Sequence[int], facts: Mapping[str, str | int | float]) -> Score | None:
        """The share of yes over the columns, with the error of a bootstrap over the prompts that
        ask for them; None where none does.
        """
        yes, asked = self._yes[:, columns].sum(1), self._asked[:, columns].sum(1)
        images = int((asked > 0).sum())
        if not images:
            return None
        total, count = np.bincount(self._places, yes), np.bincount(self._places, asked)
        total, count = total[count > 0], count[count > 0]
        error = None
        if len(count) > 1:
            rng = np.random.default_rng([SEED, *columns])
            even = np.full(len(count), 1 / len(count))
            drawn = rng.multinomial(len(count), even, size=RESAMPLES)
            error = spread((drawn @ total) / (drawn @ count))
        kept = dict(facts) | {"questions": int(asked.sum())}
        return Score(float(yes.sum() / asked.sum()), error, images, True, kept)


@register(
    "metric",
    "dpg",
    summary="questions about long prompts, answered by mPLUG (DPG-Bench)",
    needs="nanogen prepare dpg-bench mplug-vqa-large",
)
class Dpg(QuestionMetric):
    """With the judge that is published; only its scores can be compared with published ones."""

    name = "dpg"
    options: ClassVar[Mapping[str, Option]] = {**QuestionMetric.options, "tokens": TOKENS}
    assets = (QUESTIONS, MPLUG)
    judge_asset = MPLUG

    def open_judge(self) -> Judge:
        context, limit = self.context, int(self.chosen["tokens"])
        return Mplug(find(MPLUG).path, context.device, context.precision, limit)

    def facts(self) -> dict[str, str | int | float]:
        return super().facts() | {"question_tokens": int(self.chosen["tokens"])}


@register(
    "metric",
    "dpg-blip",
    summary="the questions of DPG-Bench, answered by BLIP (not DPG-Bench)",
    needs="nanogen prepare dpg-bench blip-vqa-capfilt-large, pip install 'nanogen[t2i]'",
)
class DpgBlip(QuestionMetric):
    """With BLIP, which says yes where that is likelier than no: for machines without mPLUG. Its
    scores cannot be compared with those of `dpg`.
    """

    name = "dpg-blip"
    transformers = True
    assets = (QUESTIONS, BLIP)
    judge_asset = BLIP

    def open_judge(self) -> Judge:
        return BlipVqa(find(BLIP).path, self.context.device, self.context.precision)
