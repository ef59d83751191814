"""`nanogen convert`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

DIRECTIONS = ("ours", "diffusion-bench")


def main(
    what: Annotated[str, typer.Argument(help="rae-decoder or rae-statistics.")],
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
) -> None:
    """Files of diffusion-bench to ours, and back, key for key."""
    from nanogen.errors import ConfigError, suggest
    from nanogen.tokenizers import rae_convert

    if to not in DIRECTIONS:
        raise ConfigError(f"--to {to!r}: {suggest(to, DIRECTIONS)}")
    if target.exists():
        raise ConfigError(f"{target} is there already; give another name, or remove it")
    ours = to == "ours"
    if (what != "rae-decoder" or not ours) and (encoder or statistics or heads):
        raise ConfigError(
            "--encoder, --statistics and --heads describe a decoder.pt that is converted to ours; "
            "leave them out"
        )
    kinds: dict[str, Callable[[], object]] = {
        "rae-decoder": lambda: (
            rae_convert.import_decoder(
                source, target, rae_convert.Unsaid(encoder, statistics, heads)
            )
            if ours
            else rae_convert.export_decoder(source, target)
        ),
        "rae-statistics": lambda: rae_convert.convert_statistics(source, target, ours),
    }
    if what not in kinds:
        raise ConfigError(f"nothing is called {what!r}; {suggest(what, kinds)}")
    kinds[what]()
    print(f"written: {target}")
