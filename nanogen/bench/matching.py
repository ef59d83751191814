"""Which results of two sides belong together.

A folder may hold several results of one score: with other guidance, of other weights, on more
samples. They are told apart by what differs among them, and each is compared with the one of the
other side that agrees in all of that. One result of each side is compared whatever differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanogen.bench.record import DISTINGUISHING, Record, file_name
from nanogen.errors import DataError
from nanogen.images.order import natural

Key = tuple[str, str]
"""task and metric"""

SETTINGS = ("version", "weights", "n", "quantisation", "precision", "device")
"""fields that make it another evaluation, beside its sampler and some facts"""
RUN = ("run", "config_hash")
"""what tells results apart that no setting does; a hash follows from the sampler too"""


@dataclass(frozen=True)
class Match:
    """A result of each side."""

    first: Record
    second: Record
    setting: str
    """what tells it from the other results of its score; "" where there are no others"""


@dataclass(frozen=True)
class Matched:
    """The results of one score."""

    pairs: Sequence[Match]
    left: tuple[Sequence[str], Sequence[str]]
    """of each side, the settings that the other one has not"""


def by_score(records: Sequence[Record], name: str) -> dict[Key, list[Record]]:
    """All results of each score on the most trained model. `name` is that of the side.

    DataError where there are none, they are of several methods, or two are of the same settings.
    """
    if not records:
        raise DataError(f"{name} has no records; evaluate it first")
    found: dict[Key, dict[str, Record]] = {}
    for one in records:
        known = found.setdefault((one.task, one.metric), {})
        other = known.setdefault(file_name(one), one)
        rows = sorted({f"{r.method} {r.budget} seed {r.training_seed}" for r in known.values()})
        if len(rows) > 1:
            raise DataError(
                f"{name} holds several results ({', '.join(rows)}); give one run folder, or one "
                "record"
            )
        if other.value != one.value:
            raise DataError(
                f"{name} holds {one.metric} twice with the same settings ({other.value:g} and "
                f"{one.value:g}); give one of their folders"
            )
    return {key: _most_trained(known.values()) for key, known in found.items()}


def matched(first: Sequence[Record], second: Sequence[Record]) -> Matched:
    """The results of one score, of which each side has at least one."""
    named = _named((first, second), ())
    if len(named[0]) < len(first) or len(named[1]) < len(second):
        named = _named((first, second), RUN)
    common = sorted(named[0].keys() & named[1].keys(), key=natural)
    left = [sorted(side.keys() - set(common), key=natural) for side in named]
    return Matched(
        [Match(named[0][setting], named[1][setting], setting) for setting in common],
        (left[0], left[1]),
    )


def _named(
    sides: tuple[Sequence[Record], Sequence[Record]], more: Sequence[str]
) -> list[dict[str, Record]]:
    """The records of each side by what differs among those of a side: what differs between the
    sides alone is what is compared.
    """
    settings = [[_settings(one, more) for one in side] for side in sides]
    paths = sorted({path for side in settings for one in side for path in one})
    apart = [p for p in paths if any(len({one.get(p) for one in side}) > 1 for side in settings)]
    return [
        {
            ", ".join(f"{p}={one.get(p, '–')}" for p in apart): r
            for one, r in zip(*both, strict=True)
        }
        for both in zip(settings, sides, strict=True)
    ]


def _most_trained(records: Iterable[Record]) -> list[Record]:
    found = list(records)
    seen = max(one.seen for one in found)
    return [one for one in found if one.seen == seen]


def _settings(record: Record, more: Sequence[str]) -> dict[str, str]:
    """What makes it another evaluation of the same model and score, by its path."""
    found = {name: getattr(record, name) for name in (*SETTINGS, *more)}
    found |= {f"sampler.{name}": value for name, value in record.sampler.items()}
    found |= {
        f"facts.{name}": record.facts[name] for name in DISTINGUISHING if name in record.facts
    }
    return {path: str(value) for path, value in found.items()}
