"""`nanogen tokenizer probe`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogen.cli.options import Json

if TYPE_CHECKING:
    from nanogen.bench.table import Table
    from nanogen.tokenizers.probe import Probe

FIELDS = ("latents_mean", "latents_std", "shift_factor", "scaling_factor")


def main(
    model: Annotated[str, typer.Argument(help="A folder, a name on the hub, or a known VAE.")],
    subfolder: Annotated[
        str, typer.Option(help="Folder of the autoencoder within the model; found if left out.")
    ] = "",
    size: Annotated[int, typer.Option(min=32, max=2048, help="Pixels a side of the images.")] = 256,
    count: Annotated[int, typer.Option(min=1, max=1024, help="Images to measure on.")] = 8,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images; scenes of the package if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What an unknown autoencoder is, how its latents are distributed, and how to use it."""
    from nanogen.cli.output import show
    from nanogen.tokenizers.probe import embedded_images, folder_images, probe

    given = folder_images(images, count, size) if images else embedded_images(count, size)
    show(tables(probe(model, given, subfolder)), as_json)


def tables(found: Probe) -> list[Table]:
    """What was found, and the moments of each channel."""
    from nanogen.bench.table import Cell, Column, Table

    facts = tuple((Cell(name), Cell(value)) for name, value in _facts(found))
    columns = (
        Column("channel"),
        Column("mean", "raw", digits=4),
        Column("std", "raw", digits=4),
        Column("mean", "normalised", digits=4),
        Column("std", "normalised", digits=4),
    )
    raw, latents = found.raw, found.latents
    rows = tuple(
        (
            Cell(channel),
            Cell(raw.mean[channel].item()),
            Cell(raw.std[channel].item()),
            Cell(latents.mean[channel].item() if latents else None),
            Cell(latents.std[channel].item() if latents else None),
        )
        for channel in range(found.files.channels)
    )
    title = f"Latents of {found.images} images of {found.size} px"
    return [
        Table(title, columns, rows),
        Table("nanogen tokenizer probe", (Column("what"), Column("found")), facts),
    ]


def _facts(found: Probe) -> Iterator[tuple[str, str]]:
    files, side = found.files, found.size // found.files.factor
    chosen = found.statistics
    yield "model", files.source.model
    yield "class", files.name
    yield f"latent of {found.size} px", f"{files.channels} x {side} x {side}"
    yield "pixels a latent (f)", str(files.factor)
    yield "channels (C)", str(files.channels)
    yield "tensors", "5-D, with a time axis of 1" if files.kind.video else "4-D"
    if files.kind.packed:
        yield "packing", "2 x 2 latents become channels, whitened by batch statistics"
    for field in FIELDS:
        yield f"{field} in config.json", _shown(files.config, field)
    yield "shift from", chosen.shift.origin if chosen else "nothing: not normalised"
    yield "scale from", chosen.scale.origin if chosen else "nothing: not normalised"
    yield "round trip", f"{found.psnr:.2f} dB PSNR"
    for warning in found.warnings:
        yield "warning", warning
    yield "use it with", found.line


def _shown(config: Mapping[str, object], field: str) -> str:
    value = config.get(field, "absent")
    if value is None:
        return "null"
    return f"{len(value)} numbers" if isinstance(value, list) else str(value)
