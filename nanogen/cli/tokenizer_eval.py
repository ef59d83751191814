"""`nanogen tokenizer eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanogen.cli.options import Json, Overrides

if TYPE_CHECKING:
    from nanogen.bench.record import Record
    from nanogen.bench.table import Table


def main(
    name: Annotated[
        str,
        typer.Argument(
            help="A tokenizer (nanogen ls tokenizers), a preset, or the folder of a tokenizer or "
            "of its training."
        ),
    ],
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(help="animals, scenes, folder ...; animals, or the preset's, if left out."),
    ] = None,
    path: Annotated[Path | None, typer.Option(help="Where the images of the data are.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side of the images.")] = None,
    split: Annotated[str, typer.Option(help="train, validation, held-out or all.")] = "held-out",
    samples: Annotated[
        int | None, typer.Option(help="Images, evenly spaced over the split; all if left out.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Such as psnr,ssim,lpips. If left out, psnr,ssim, and rfd-animals on 256 animals "
            "or more."
        ),
    ] = None,
    lpips: Annotated[
        Path | None, typer.Option(help="VGG16 of LPIPS, a file or its folder; adds lpips.")
    ] = None,
    quantise: Annotated[
        str, typer.Option(help="round, or truncate: as published scores were measured.")
    ] = "round",
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = (
        "auto"
    ),
    out: Annotated[Path, typer.Option(help="Folder to write records to.")] = Path("records"),
    as_json: Json = False,
) -> None:
    """Measure what a tokenizer keeps of images, and write one record for each score."""
    import torch

    from nanogen import config, dist
    from nanogen.cli.choose_tokenizer import described, measured
    from nanogen.cli.output import show
    from nanogen.evaluation.measure import write
    from nanogen.files import writable_folder
    from nanogen.reconstruction import Options, Subject, measure
    from nanogen.run import pick_device

    choice = measured(name, overrides or [], data, path, size)
    names = default_metrics(choice.data, samples) if metrics is None else listed(metrics)
    names += ("lpips",) if lpips is not None else ()
    place = pick_device(device)
    options = Options(
        metrics=tuple(dict.fromkeys(names)),
        samples=samples,
        quantise=quantise,  # ty: ignore[invalid-argument-type]
        trunk=str(lpips or ""),
        trunk_field="--lpips",
        batch=batch,
        device=place,
    )
    with dist.processes(place):
        writable_folder(out)
        source = choice.data.build()
        tokenizer = choice.tokenizer.build(source.size)
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer.to(place)
        subject = Subject(name, config_hash=config.digest(choice))
        records = measure(tokenizer, source, split, options, subject)
        write(records, out)
        if dist.rank() == 0:
            show([table(records, described(choice.tokenizer))], as_json)


def listed(metrics: str) -> tuple[str, ...]:
    """Names between commas; ConfigError where one is empty."""
    from nanogen.errors import ConfigError

    names = tuple(name.strip() for name in metrics.split(","))
    if not all(names):
        raise ConfigError(f"--metrics {metrics!r} names none; give some, such as psnr,ssim")
    return names


def default_metrics(data: object, samples: int | None) -> tuple[str, ...]:
    """What is measured where nothing is named: the feature network knows nothing but animals."""
    from nanogen.data.animals import Animals
    from nanogen.metrics.pairs import RfdAnimals

    enough = samples is None or samples >= RfdAnimals.minimum
    return ("psnr", "ssim", *((RfdAnimals.name,) if enough and isinstance(data, Animals) else ()))


def table(records: Sequence[Record], tokenizer: str) -> Table:
    """A row for each score; `tokenizer` are the overrides that choose what was measured."""
    from nanogen.bench.table import Cell, Column, Table

    first = records[0]
    arrows = {True: "higher", False: "lower"}
    rows = tuple(
        (
            Cell(record.metric),
            Cell(record.value, record.standard_error),
            Cell(arrows[record.higher_is_better]),
        )
        for record in records
    )
    latent = " x ".join(map(str, first.facts["latent"]))  # ty: ignore[invalid-argument-type]
    return Table(
        f"{first.run}: {first.n:,} of {first.facts['split_images']:,} images, "
        f"split {first.facts['split']}",
        (Column("score"), Column("value", digits=4), Column("better")),
        rows,
        notes=(
            f"Measured: {tokenizer}, {first.facts['tokenizer']}.",
            f"Latent {latent}; reconstructions quantised by {first.quantisation}.",
            "± is one standard error over images; a number without it has none known.",
        ),
    )
