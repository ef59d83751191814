"""What a task and a method of the table of presets are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]
"""fields of a run by dotted path; a part stands by its registered name, a term by "on\""""

EPOCH = 1251 * 1024
"""images of one epoch of ImageNet in steps of 1024"""


@dataclass(frozen=True)
class TaskRecipe:
    """What a task sets, over what all methods share at its size."""

    summary: str
    shared: Values
    own: Values
    pixel_patch: int
    """pixels a side of a token, for methods in pixel space"""
    published: bool = False
    """whether it is a task of the paper, with its fidelities"""
    area: int = 1
    """how many times as many tokens an image has as one of 256 px"""
    best_guidance: bool = False
    """whether each method has a best scale of guidance of its own (Table 2)"""


@dataclass(frozen=True)
class MethodRecipe:
    """What a method sets, on every task that it is for."""

    summary: str
    tasks: tuple[str, ...]
    values: Values
    guidance: float | None = None
    """scale of the paper's best ImageNet row (Table 2)"""
    released: Values = field(default_factory=dict)
    """what the released code does otherwise than the paper says"""
    released_on: Mapping[str, Values] = field(default_factory=dict)
    """what the released config of one task does otherwise than those of the others, by task"""
    upstream: Values = field(default_factory=dict)
    """what the method's own repository does otherwise; empty where none is known"""
    trained_as: str = ""
    """the method whose trained network this one samples otherwise; empty: one of its own"""
