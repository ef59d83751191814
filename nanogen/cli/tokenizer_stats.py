"""`nanogen tokenizer stats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogen.cli.options import Json, Overrides

if TYPE_CHECKING:
    from nanogen.bench.table import Table
    from nanogen.tokenizers.statistics import Statistics

SHOWN = 32
"""channels of the table"""


def main(
    name: Annotated[
        str, typer.Argument(help="A tokenizer, a preset, or a vision encoder (nanogen ls).")
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(help="animals, scenes, folder ...; animals, or the preset's, if left out."),
    ] = None,
    path: Annotated[Path | None, typer.Option(help="Where the images of the data are.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side of the images.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or held-out.")] = "train",
    samples: Annotated[
        int | None, typer.Option(min=2, help="Images, evenly spaced; all if left out.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = (
        "auto"
    ),
    out: Annotated[
        Path | None, typer.Option(help="File to write, .safetensors: mean and var, [C, h, w].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Mean and variance of raw latents, per channel and position, over a stream of images."""
    from nanogen import dist
    from nanogen.cli.choose_tokenizer import raw_latents
    from nanogen.cli.output import show
    from nanogen.errors import ConfigError
    from nanogen.files import writable_folder
    from nanogen.run import pick_device
    from nanogen.tokenizers import statistics

    if out is not None and out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: statistics are safetensors; let the name end so")
    place = pick_device(device)
    with dist.processes(place):
        source, raw = raw_latents(name, overrides or [], data, path, size)
        if out is not None:
            writable_folder(out.parent)
        images = statistics.Images(split, samples, batch)
        found = statistics.measure(raw.to(place), source, images, place)
        if dist.rank() == 0:
            if out is not None:
                statistics.save(found, out)
            show([table(name, found)], as_json)


def table(name: str, found: Statistics) -> Table:
    """Mean and deviation of each channel, over images and positions."""
    from nanogen.bench.table import Cell, Column, Table

    mean = found.mean.double().mean((1, 2))
    power = (found.variance.double() + found.mean.double().square()).mean((1, 2))
    deviation = (power - mean.square()).clamp(min=0).sqrt()
    rows = [
        (Cell(channel), Cell(mean[channel].item()), Cell(deviation[channel].item()))
        for channel in range(min(SHOWN, len(mean)))
    ]
    more = len(mean) - len(rows)
    return Table(
        f"{name}: raw latents {' x '.join(map(str, found.mean.shape))}",
        (Column("channel"), Column("mean", digits=4), Column("std", digits=4)),
        tuple(rows),
        notes=(
            *([f"{more} more channels are left out."] if more else []),
            f"Mean square of a value {found.power:.4f}; it is 1 after a LayerNorm without affine.",
        ),
    )
