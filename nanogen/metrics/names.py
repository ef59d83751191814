"""Names of metrics as users write them: `fid`, `geneval[compat=reference]`, several with commas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nanogen.errors import ConfigError


@dataclass(frozen=True)
class Name:
    """A metric and the options that stand in brackets behind it."""

    plain: str
    options: Mapping[str, str]


def listed(text: str) -> tuple[str, ...]:
    """`"a,b[x=1,y=2]"` -> `("a", "b[x=1,y=2]")`; ConfigError where a name is empty."""
    names = tuple(name.strip() for name in re.split(r",(?![^\[]*\])", text))
    if not all(names):
        raise ConfigError(f"--metrics {text!r} has an empty name; write names with commas between")
    return names


def parse(name: str) -> Name:
    """The parts of a name; ConfigError where it has another form."""
    match = re.fullmatch(r"([\w.-]+)(?:\[([\w.-]+=[\w.-]+(?:,[\w.-]+=[\w.-]+)*)\])?", name)
    if not match:
        raise ConfigError(
            f"metric {name!r} is not a name; write one such as fid or fid[reference=data]"
        )
    options: dict[str, str] = {}
    for pair in filter(None, (match[2] or "").split(",")):
        option, _, value = pair.partition("=")
        if option in options:
            raise ConfigError(f"metric {name!r} has the option {option!r} twice; write it once")
        options[option] = value
    return Name(match[1], options)


def metric_of(score: str) -> str:
    """The title of the metric that a score is of: `geneval[compat=reference]/colors` without its
    part.
    """
    return score.partition("/")[0]
