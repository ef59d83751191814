"""Prompts of a published benchmark: what is drawn for it, and how many images of each prompt.

One file in this folder for each set:

    @register("prompts", "geneval", summary="553 prompts in six tags", licence="MIT")
    class GenEvalPrompts(PromptSet):
        name, images, assets = "geneval", 4, (METADATA,)

        def load(self): ...

Sample i of an evaluation shows prompt i % P: a prefix of it holds every prompt alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from nanogen.store import Asset


class PromptSet(ABC):
    """Subclass, register as `prompts`; made without arguments, which reads the store."""

    name: ClassVar[str]
    images: ClassVar[int]
    """of each prompt, as published"""
    assets: ClassVar[tuple[Asset, ...]] = ()
    fingerprint: str
    """sha256 of what is read"""

    @property
    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """The prompts in their order, exactly as they are published: a text may come twice."""
