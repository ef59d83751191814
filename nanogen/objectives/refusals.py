"""Fields of terms, and terms beside each other, that cannot be: one ConfigError each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nanogen.errors import ConfigError

if TYPE_CHECKING:
    from nanogen.objectives.base import Term


def check_weight(term: str, weight: float) -> None:
    """Refuse a weight with which a term has no effect."""
    if not 0 < weight < math.inf:
        raise ConfigError(
            f"terms.{term}.weight={weight}: must be above 0; terms.{term}=off leaves the term out"
        )


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices of a field."""
    if value not in choices:
        raise ConfigError(f"{field}={value!r}: choose {' or '.join(choices)}")


def check_together(terms: Mapping[str, Term], own_heads: Mapping[str, int]) -> None:
    """Refuse two that add the same leaf or head, and a term that needs another that is off.

    `own_heads` are those of the objective.
    """
    owners = {"leaf 'image'": "the objective"}
    owners |= {f"head {head!r}": "the objective" for head in own_heads}
    for name, term in terms.items():
        leaves = [f"leaf {leaf!r}" for leaf in term.leaves]
        for one in [*leaves, *(f"head {head!r}" for head in term.heads)]:
            if one in owners:
                raise ConfigError(
                    f"{owners[one]} and terms.{name} both add the {one}; set terms.{name}=off"
                )
            owners[one] = f"terms.{name}"
    for name, term in terms.items():
        for leaf in term.needs_leaves:
            if f"leaf {leaf!r}" not in owners:
                raise ConfigError(
                    f"terms.{name} reads the token of the leaf {leaf!r}, which no term adds; turn "
                    f"on the term that does, or leave that token out of terms.{name}"
                )
