"""`nanogen convert`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from nanogen.cli.options import Overrides

if TYPE_CHECKING:
    from nanogen.exchange.run import Choice
    from nanogen.tokenizers.rae_convert import Unsaid

KINDS = ("checkpoint", "rae-decoder", "rae-statistics")
DIRECTIONS = ("ours", "diffusion-bench")
SUFFIXES = {"ours": ".safetensors", "diffusion-bench": ".pt"}
"""of the files that each of them reads"""


def main(
    what: Annotated[str, typer.Argument(help="checkpoint, rae-decoder or rae-statistics.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="The file or folder to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="What to write.")],
    to: Annotated[str, typer.Option(help="ours, or diffusion-bench.")] = "ours",
    encoder: Annotated[
        str, typer.Option(help="Of a decoder.pt: the encoder that it decodes, dinov2-vit-b ...")
    ] = "",
    statistics: Annotated[
        Path | None, typer.Option(help="Of a decoder.pt: its stats.pt, to lie in the folder too.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Of a decoder.pt of unusual width: its attention heads.")
    ] = None,
    output_space: Annotated[
        str,
        typer.Option(
            help="Of a decoder.pt: unit, if left out, for pixels in [0, 1]; encoder for pixels as "
            "its encoder is fed them, which decoders of the first RAE code give."
        ),
    ] = "",
    overrides: Overrides = None,
    preset: Annotated[
        str, typer.Option(help="Of a checkpoint: what it was trained as, such as imagenet/flux2.")
    ] = "",
    weights: Annotated[
        str, typer.Option(help="Of a checkpoint: ema or raw, to take one of them for both.")
    ] = "",
    step: Annotated[
        int | None, typer.Option(help="Of a checkpoint that does not say: its optimiser steps.")
    ] = None,
    drop_projector: Annotated[
        bool, typer.Option("--drop-projector", help="Of a checkpoint: leave REPA's projector out.")
    ] = False,
) -> None:
    """Files of diffusion-bench to ours, and back, key for key."""
    from nanogen.errors import ConfigError, suggest
    from nanogen.exchange.run import Choice, WeightsOf
    from nanogen.files import writable_folder
    from nanogen.tokenizers import rae_convert

    if what not in KINDS:
        raise ConfigError(f"nothing is called {what!r}; {suggest(what, KINDS)}")
    if to not in DIRECTIONS:
        raise ConfigError(f"--to {to!r}: {suggest(to, DIRECTIONS)}")
    if target.exists():
        raise ConfigError(f"{target} is there already; give another name, or remove it")
    ours = to == "ours"
    if (what != "rae-decoder" or not ours) and (encoder or statistics or heads or output_space):
        raise ConfigError(
            "--encoder, --statistics, --heads and --output-space describe a decoder.pt that is "
            "converted to ours; leave them out"
        )
    described = preset or overrides or weights or step is not None or drop_projector
    if (what != "checkpoint" or not ours) and described:
        raise ConfigError(
            "--preset, fields of it, --weights, --step and --drop-projector describe a checkpoint "
            "that is converted to ours; leave them out"
        )
    unsaid = _unsaid(encoder, statistics, heads, output_space)
    suffix = "" if what != "rae-statistics" and ours else SUFFIXES[to]
    if suffix and target.suffix != suffix:
        raise ConfigError(
            f"OUT {target}: this is written for --to {to}; let the name end in {suffix}"
        )
    writable_folder(target.parent, "choose another OUT")
    choice = Choice(cast(WeightsOf, weights or "both"), step, not drop_projector)
    writers: dict[tuple[str, bool], Callable[[], object]] = {
        ("checkpoint", True): lambda: _import(source, target, preset, overrides, choice),
        ("checkpoint", False): lambda: _export(source, target),
        ("rae-decoder", True): lambda: rae_convert.import_decoder(source, target, unsaid),
        ("rae-decoder", False): lambda: rae_convert.export_decoder(source, target),
        ("rae-statistics", True): lambda: rae_convert.convert_statistics(source, target, True),
        ("rae-statistics", False): lambda: rae_convert.convert_statistics(source, target, False),
    }
    writers[what, ours]()
    print(f"written: {target}")


def _unsaid(encoder: str, statistics: Path | None, heads: int | None, output_space: str) -> Unsaid:
    from nanogen.errors import ConfigError, suggest
    from nanogen.tokenizers.rae_convert import Unsaid
    from nanogen.tokenizers.rae_files import OutputSpace

    space = output_space or "unit"
    if space not in get_args(OutputSpace):
        raise ConfigError(f"--output-space {space!r}: {suggest(space, get_args(OutputSpace))}")
    return Unsaid(encoder, statistics, heads, cast(OutputSpace, space))


def _import(
    source: Path, target: Path, preset: str, overrides: list[str] | None, choice: Choice
) -> None:
    from nanogen.cli.choose import chosen_run
    from nanogen.errors import ConfigError
    from nanogen.exchange.run import import_run

    if not preset:
        raise ConfigError(
            "a checkpoint does not say what it was trained as; add --preset, such as --preset "
            "imagenet/flux2 (see nanogen ls presets)"
        )
    written = import_run(source, target, chosen_run(preset, None, overrides), choice)
    for note in written.notes:
        print(f"note: {note}")
    print(f"{written.seen:,} images seen; draw from it with: nanogen sample {target}")


def _export(source: Path, target: Path) -> None:
    from nanogen.exchange.run import export_run

    for note in export_run(source, target).notes:
        print(f"note: {note}")
