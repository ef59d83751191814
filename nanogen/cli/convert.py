"""`nanogen convert`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

DIRECTIONS = ("ours", "diffusion-bench")
SUFFIXES = {"ours": ".safetensors", "diffusion-bench": ".pt"}
"""of the files that each of them reads"""


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
    output_space: Annotated[
        str,
        typer.Option(
            help="Of a decoder.pt: unit, if left out, for pixels in [0, 1]; encoder for pixels as "
            "its encoder is fed them, which decoders of the first RAE code give."
        ),
    ] = "",
) -> None:
    """Files of diffusion-bench to ours, and back, key for key."""
    from nanogen.errors import ConfigError, suggest
    from nanogen.files import writable_folder
    from nanogen.tokenizers import rae_convert
    from nanogen.tokenizers.rae_files import OutputSpace

    if to not in DIRECTIONS:
        raise ConfigError(f"--to {to!r}: {suggest(to, DIRECTIONS)}")
    if target.exists():
        raise ConfigError(f"{target} is there already; give another name, or remove it")
    ours = to == "ours"
    described = encoder or statistics or heads or output_space
    if (what != "rae-decoder" or not ours) and described:
        raise ConfigError(
            "--encoder, --statistics, --heads and --output-space describe a decoder.pt that is "
            "converted to ours; leave them out"
        )
    space = output_space or "unit"
    if space not in get_args(OutputSpace):
        raise ConfigError(f"--output-space {space!r}: {suggest(space, get_args(OutputSpace))}")
    unsaid = rae_convert.Unsaid(encoder, statistics, heads, cast(OutputSpace, space))
    kinds: dict[str, Callable[[], object]] = {
        "rae-decoder": lambda: (
            rae_convert.import_decoder(source, target, unsaid)
            if ours
            else rae_convert.export_decoder(source, target)
        ),
        "rae-statistics": lambda: rae_convert.convert_statistics(source, target, ours),
    }
    if what not in kinds:
        raise ConfigError(f"nothing is called {what!r}; {suggest(what, kinds)}")
    suffix = "" if what == "rae-decoder" and ours else SUFFIXES[to]
    if suffix and target.suffix != suffix:
        raise ConfigError(
            f"OUT {target}: this is written for --to {to}; let the name end in {suffix}"
        )
    writable_folder(target.parent, "choose another OUT")
    kinds[what]()
    print(f"written: {target}")
