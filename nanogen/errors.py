"""Errors that a user can act on. The command line prints one line for each and exits with status 2.

A RunFailed ends in one line and status 1. Everything else that is raised is a defect of ours:
status 1, with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix. The message says what is wrong, where, and the fix, in one
    line.
    """


class ConfigError(UserError):
    """A value of a run that is unknown, of the wrong type, without effect, or contradicted."""


class DataError(UserError):
    """Data that is missing, broken, or unfit for the task."""


class CheckpointError(UserError):
    """A run folder or checkpoint that is missing, broken, or of another run."""


class MetricError(UserError):
    """A metric that cannot be computed from what it was given."""


class RunFailed(Exception):
    """A run that came to nothing for a reason that is no defect: one line, status 1."""


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} is not installed; install it with: {install}")


MOST_NAMED = 100
"""known names that a message lists"""


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown `name`: the nearest known names, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return f"known: {', '.join(known[:MOST_NAMED]) or 'none'}{more}"
