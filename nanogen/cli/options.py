"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Fields to set, such as train.images=64000 seed=1.")
]
Weights = Annotated[
    str,
    typer.Option("--weights", help="ema (averaged), raw, or posthoc-0.07 as made by nanogen ema."),
]
