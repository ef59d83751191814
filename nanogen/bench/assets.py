"""Everything of others that can be prepared: what it is for, and whether it is there.

    needed("geneval")     # the assets of the metric and of its prompts, and any of that name
    table()               # what `nanogen prepare --list` prints

Assets are found by themselves: in the attribute `assets`, and in any other that is an asset, of
registered metrics, prompts and networks. An instance of a metric may need others than its class, as
its options want it; all that some choice of one option needs are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from nanogen import registry, store
from nanogen.bench.table import Cell, Column, Table
from nanogen.data.base import Source
from nanogen.errors import ConfigError, DataError, suggest
from nanogen.metrics.base import Context, Metric
from nanogen.metrics.harness import choose
from nanogen.metrics.names import parse
from nanogen.prompts.base import PromptSet
from nanogen.store import Asset, Prepared

KINDS = ("metric", "prompts", "network")


def known() -> dict[str, Asset]:
    """All assets by name, sorted. ValueError where two different ones have the same name."""
    found: dict[str, Asset] = {}
    for assets in owners().values():
        for asset in assets:
            if found.setdefault(asset.name, asset) != asset:
                raise ValueError(f"two assets are called {asset.name!r}")
    return dict(sorted(found.items()))


def owners() -> dict[str, tuple[Asset, ...]]:
    """Names of metrics, prompt sets and networks -> the assets that they need, whatever is chosen.
    What needs none is left out.
    """
    found: dict[str, tuple[Asset, ...]] = {}
    for kind in KINDS:
        for entry in registry.entries(kind):
            assets = _declared(entry.target)
            if kind == "metric":
                names = _choices(entry.name, cast(type[Metric], entry.target))
                assets += tuple(asset for name in names for asset in _of_metric(name))
            if assets:
                # A metric and its prompts may share a name.
                found[entry.name] = tuple(dict.fromkeys(found.get(entry.name, ()) + assets))
    return found


def needed(name: str) -> tuple[Asset, ...]:
    """The assets that a name stands for: the asset itself, all that a prompt set or a network
    needs, and what a metric needs with the options that stand in brackets. ConfigError for an
    unknown name, or one of something that needs nothing.
    """
    plain = parse(name).plain
    all_assets = known()
    assets = [all_assets[plain]] if plain in all_assets else []
    named = [(kind, e) for kind in KINDS for e in registry.entries(kind) if e.name == plain]
    for kind, entry in named:
        assets += _of_metric(name) if kind == "metric" else _declared(entry.target)
    if not assets and named:
        raise ConfigError(f"{plain} needs nothing that has to be prepared; just use it")
    if not assets:
        near = suggest(plain, {*owners(), *all_assets})
        raise ConfigError(
            f"nothing called {plain!r} can be prepared; {near} (all: nanogen prepare --list)"
        )
    return tuple(dict.fromkeys(assets))


def _declared(target: type) -> tuple[Asset, ...]:
    found = (getattr(target, name, None) for name in dir(target))
    return (*getattr(target, "assets", ()), *(one for one in found if isinstance(one, Asset)))


def _choices(name: str, target: type[Metric]) -> Iterator[str]:
    """A metric with its defaults, and with every choice of one option."""
    yield name
    for option, about in target.options.items():
        yield from (f"{name}[{option}={choice}]" for choice in about.choices)


def _of_metric(name: str) -> tuple[Asset, ...]:
    """What a metric with its options and its prompts need; ConfigError for an unknown option."""
    # No metric looks at its data before it measures.
    (metric,) = choose([name], Context(cast(Source, None), torch.device("cpu")))
    if not metric.prompts:
        return metric.assets
    prompts = cast(type[PromptSet], registry.get("prompts", metric.prompts))
    return (*metric.assets, *prompts.assets)


@dataclass(frozen=True)
class State:
    """Whether an asset can be used."""

    word: str
    """"yes", "no" or "broken\""""
    prepared: Prepared | None = None
    problem: str = ""
    """what is broken, and what to do"""


def state_of(asset: Asset) -> State:
    """Looks into the store; a file that has another time than before is hashed."""
    try:
        return State("yes", store.find(asset))
    except ConfigError:
        return State("no")
    except DataError as problem:
        return State("broken", problem=str(problem))


def table(assets: Sequence[Asset] | None = None) -> Table:
    """A row for each asset; all that are known if left out."""
    users: dict[str, list[str]] = {}
    for owner, needs in owners().items():
        for asset in needs:
            users.setdefault(asset.name, []).append(owner)
    titles = ("asset", "what", "for", "licence", "size", "prepared", "sha256")
    details = ("full sha256", "path", "source")
    columns = tuple(Column(t) for t in titles) + tuple(Column(t, detail=True) for t in details)
    rows, notes = [], []
    for asset in known().values() if assets is None else assets:
        state = state_of(asset)
        digits = state.prepared.sha256 if state.prepared else asset.sha256
        own = (asset.name, asset.what, ", ".join(users.get(asset.name, ())), asset.licence)
        here = (asset.size, state.word, digits[:12], digits)
        places = (str(state.prepared.path) if state.prepared else "", asset.url or asset.hub)
        rows.append(tuple(Cell(value or None) for value in (*own, *here, *places)))
        notes += [state.problem] * bool(state.problem)
    return Table(f"assets in {store.root()}", columns, tuple(rows), tuple(notes))


def summary() -> str:
    """How many assets are prepared."""
    words = [state_of(asset).word for asset in known().values()]
    broken = f", {words.count('broken')} broken" if "broken" in words else ""
    return f"{words.count('yes')} of {len(words)} prepared{broken}, in {store.root()}"
