"""`nanogen prepare`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogen.cli.options import Json

if TYPE_CHECKING:
    from torch import Tensor

    from nanogen.bench.table import Table

STATS = "stats"


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Assets, or metrics, prompt sets and networks for all that they need. Or: stats, "
            "and a folder of images or a data set, for reference statistics of your own."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take the asset from this file or folder; fetch nothing."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show every asset there is.")] = False,
    network: Annotated[
        str | None, typer.Option(help="With stats: the network whose features are meant.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="With stats: what to call them.")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="With stats of a folder: crop to so many pixels a side; else as it is."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="With stats: images at once.")] = 64,
    device: Annotated[
        str, typer.Option(help="With stats: cpu, cuda, or auto: cuda where there is one.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Fetch the weights and prompts of others that metrics need, or take them from --from PATH;
    each is checked by its hash. Or make reference statistics.
    """
    from nanogen.bench import assets
    from nanogen.cli.output import show
    from nanogen.errors import ConfigError

    words = names or []
    if listed:
        if words or source:
            raise ConfigError("--list shows every asset; leave the names and --from out")
        show([assets.table()], as_json)
    elif not words:
        raise ConfigError("name what to prepare; nanogen prepare --list shows what there is")
    elif words[0] == STATS:
        if source:
            raise ConfigError("stats are made of images; leave --from out")
        if len(words) != 2 or not network or not name:
            raise ConfigError("write: nanogen prepare stats FOLDER --network NETWORK --name NAME")
        show([_stats(words[1], network, name, _Reading(size, batch, device))], as_json)
    else:
        if network or name or size:
            raise ConfigError("--network, --name, --size go with: nanogen prepare stats FOLDER")
        show([_prepared(words, source)], as_json)


def _prepared(names: list[str], source: Path | None) -> Table:
    from nanogen import store
    from nanogen.bench import assets
    from nanogen.errors import ConfigError

    if source is None:
        wanted = list(dict.fromkeys(asset for name in names for asset in assets.needed(name)))
    elif len(names) > 1:
        raise ConfigError("--from goes with one name; prepare them one by one")
    else:
        wanted = list(assets.needed(names[0]))
        # A metric may be called as the first of its assets.
        wanted = [asset for asset in wanted if asset.name == names[0]] or wanted
        if len(wanted) > 1:
            raise ConfigError(
                f"--from goes with one asset, but {names[0]} needs "
                f"{', '.join(asset.name for asset in wanted)}; prepare them one by one"
            )
    for asset in wanted:
        store.prepare(asset, source)
    return assets.table(wanted)


@dataclass(frozen=True)
class _Reading:
    """How images are read, and where their features are computed."""

    size: int | None
    batch: int
    device: str


def _stats(subject: str, network: str, name: str, reading: _Reading) -> Table:
    from nanogen import registry
    from nanogen.bench.table import Cell, Column, Table
    from nanogen.errors import ConfigError
    from nanogen.metrics.frechet import distances_on
    from nanogen.metrics.statistics_file import statistics_of
    from nanogen.run import pick_device

    registry.get("network", network)  # before any image is read
    users = distances_on(network)
    if not users:
        known = [entry.name for entry in registry.entries("network") if distances_on(entry.name)]
        raise ConfigError(
            f"--network {network}: no metric takes statistics of it; choose {' or '.join(known)}"
        )
    file = _file_of(name)
    images, skipped = _images_of(subject, reading)
    found = statistics_of(images, network, pick_device(reading.device))
    found.save(file)
    columns = ("statistics", "network", "images", "for", "file")
    titles = ", ".join(f"{user}[reference={name}]" for user in users)
    cells = (name, network, found.n, titles, str(file))
    notes = (f"{len(skipped)} broken images are left out: {', '.join(skipped)}",) if skipped else ()
    return Table("made", tuple(map(Column, columns)), (tuple(map(Cell, cells)),), notes)


def _file_of(name: str) -> Path:
    """Where statistics of this name lie; ConfigError for a name that is none, or taken."""
    from nanogen.errors import ConfigError
    from nanogen.metrics.statistics_file import place

    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise ConfigError(f"--name {name}: write lower case letters, digits, hyphens and dots")
    file = place(name)
    if file.exists():
        raise ConfigError(f"--name {name}: {file} is there; choose another name, or remove it")
    return file


def _images_of(subject: str, reading: _Reading) -> tuple[Iterator[Tensor], Mapping[str, str]]:
    """Images uint8 [B, 3, H, W], and those that cannot be read so far with the reason: of a data
    set, its training images without augmentation; of a folder, a tar or an npz, all of them.
    """
    import torch

    from nanogen import registry
    from nanogen.data.base import as_stored
    from nanogen.errors import ConfigError
    from nanogen.images.open import open_images

    data = {entry.name: entry.target for entry in registry.entries("data")}
    if subject not in data or Path(subject).exists():
        opened = open_images(Path(subject), reading.size, batch=reading.batch)
        return (pixels for _, pixels in opened.read(0, opened.count())), opened.skipped
    if reading.size:
        raise ConfigError(f"--size has no effect on {subject}: its images have one; leave it out")
    source = data[subject]().build()

    def stored() -> Iterator[Tensor]:
        for start in range(0, source.count("train"), reading.batch):
            stop = min(start + reading.batch, source.count("train"))
            yield torch.stack([as_stored(source, "train", i) for i in range(start, stop)])

    return stored(), {}
