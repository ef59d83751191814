"""DPG-Bench: 1,065 dense prompts of 37 to 130 words, four images of each.

    prompts = registry.get("prompts", "dpg")()
    prompts.items["partiprompts301"]      # "a potted plant with delicate small flowers ..."

Hu et al. 2024, "ELLA: Equip diffusion models with LLM for enhanced semantic alignment", arXiv
2403.05135. The prompts stand in its table of questions, once for each question; they are the texts
of its prompt files to the character, outer white space included.
"""

from __future__ import annotations

import csv
import io
from typing import ClassVar

from nanogen.errors import DataError
from nanogen.prompts.base import PromptSet
from nanogen.registry import register
from nanogen.store import Asset, find

QUESTIONS = Asset(
    "dpg-bench",
    "prompts and questions of DPG-Bench",
    "Apache-2.0",
    url="https://raw.githubusercontent.com/TencentQQGYLab/ELLA/main/dpg_bench/dpg_bench.csv",
    size="7.4 MB",
)
COLUMNS = (
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
)


@register("prompts", "dpg", summary="DPG-Bench: 1,065 dense prompts", licence="Apache-2.0")
class DpgPrompts(PromptSet):
    """Reads the store; DataError where its file has another form."""

    name = "dpg"
    images = 4
    assets = (QUESTIONS,)
    count: ClassVar[int] = 1065

    def __init__(self) -> None:
        prepared = find(QUESTIONS)
        self.fingerprint = prepared.sha256
        with prepared.path.open(encoding="utf-8", newline="") as table:
            self.items = parse(table.read(), str(prepared.path))
        """item_id -> prompt, in the order of the file"""
        unique = len(set(self.items.values()))
        if not unique == len(self.items) == self.count:
            raise DataError(
                f"{prepared.path} holds {unique} unique prompts of {len(self.items)} "
                f"items, not {self.count}; {_anew()}"
            )

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self.items.values())


def parse(table: str, where: str) -> dict[str, str]:
    """item_id -> text of a table with `COLUMNS`, as it stands between the quotes; DataError, with
    `where` and the line, where it has another form or an item has two texts.
    """
    reader = csv.DictReader(io.StringIO(table, newline=""), strict=True)
    items: dict[str, str] = {}
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(
                f"{where} has the columns {', '.join(reader.fieldnames or ('none',))}; {_anew()}"
            )
        for row in reader:
            item, text = row["item_id"], row["text"]
            # What is drawn is the first text to the character; white space makes no other prompt.
            if not item or not text or items.setdefault(item, text).strip() != text.strip():
                problem = "no text" if not text else "no item_id" if not item else "another text"
                raise DataError(
                    f"{where}, line {reader.line_num}: item {item!r} has {problem}; {_anew()}"
                )
    except csv.Error as problem:
        raise DataError(f"{where}, after line {reader.line_num}: {problem}; {_anew()}") from None
    return items


def _anew() -> str:
    return f"run: nanogen prepare {QUESTIONS.name} --from FILE with dpg_bench.csv of ELLA"
