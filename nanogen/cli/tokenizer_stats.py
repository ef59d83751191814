"""`nanogen tokenizer stats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogen.cli.options import Json, Overrides

if TYPE_CHECKING:
    from nanogen.bench.table import Table
    from nanogen.tokenizers.statistics import Channels, Statistics

SHOWN = 128
"""channels of the table: all of a VAE's"""


def main(
    name: Annotated[
        str,
        typer.Argument(
            help="A tokenizer, a preset or a vision encoder (nanogen ls), or the folder of a "
            "tokenizer or of its training."
        ),
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
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file")
    place = pick_device(device)
    with dist.processes(place):
        if out is not None:
            writable_folder(out.parent)
        source, raw = raw_latents(name, overrides or [], data, path, size)
        images = statistics.Images(split, samples, batch)
        found = statistics.measure(raw.to(place), source, images, place)
        if dist.rank() == 0:
            if out is not None:
                statistics.save(found, out)
            about = f"Measured: {raw.about}."
            show([table(name, found, raw.normalised(found), about)], as_json)


def table(name: str, found: Statistics, normalised: Statistics | None, about: str) -> Table:
    """Mean and deviation of each channel over images and positions; `normalised` are those of the
    latents that a tokenizer makes of them, None for an encoder. `about` is the first note.
    """
    from nanogen.bench.table import Cell, Column, Table

    raw, latents = found.channels(), normalised.channels() if normalised else None
    columns = [Column("mean", "raw", digits=4), Column("std", "raw", digits=4)]
    values = [raw.mean, raw.std]
    notes = [about, _norm_note(found)]
    if latents:
        columns += [Column("mean", "normalised", digits=4), Column("std", "normalised", digits=4)]
        values += [latents.mean, latents.std]
        notes.append(_white_note(latents))
    shown = min(SHOWN, len(raw.mean))
    if shown < len(raw.mean):
        notes.append(f"{len(raw.mean) - shown} more channels are left out.")
    rows = tuple(
        (Cell(channel), *(Cell(value[channel].item()) for value in values))
        for channel in range(shown)
    )
    title = f"{name}: raw latents {' x '.join(map(str, found.mean.shape))}"
    return Table(title, (Column("channel"), *columns), rows, tuple(notes))


def _norm_note(found: Statistics) -> str:
    least, most = found.powers.min().item(), found.powers.max().item()
    return (
        f"Mean square of a value {found.power:.4f}, {least:.4f} to {most:.4f} over positions; it "
        "is 1 everywhere after a LayerNorm without affine."
    )


def _white_note(latents: Channels) -> str:
    mean, std = latents.mean.abs().max().item(), latents.std
    return (
        f"Normalised channels {'are' if latents.whitened else 'are not'} about 0 and 1: means "
        f"within ±{mean:.3f}, deviations {std.min().item():.3f} to {std.max().item():.3f}."
    )
