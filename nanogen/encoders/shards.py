"""Checkpoints in several files, given to a module file by file: for models that fill the memory.

    with torch.device("meta"):
        network = Network(config)
    fill_from(network, shards_of(folder), own_name, torch.device("cuda"), torch.bfloat16)

Files are mapped, not read, so what is held is one copy of each weight, where it is to stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nanogen.encoders.weights import read_tensors
from nanogen.errors import ConfigError

STEMS = ("model.safetensors", "pytorch_model.bin")
"""what `transformers` calls a checkpoint of one file; one of several has an index beside it"""
SHOWN = 3
"""names in a message"""


def shards_of(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint. ConfigError where there is none, or one of them is missing."""
    for stem in STEMS:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / stem).is_file():
            return (folder / stem,)
    raise ConfigError(f"{folder} holds neither {' nor '.join(STEMS)}; give a folder that does")


def _indexed(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise ConfigError(f"{index} is no index of weights; get it anew") from problem
    files = tuple(index.parent / Path(name).name for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{index.parent} lacks {', '.join(missing[:SHOWN])}; get the rest too")
    return files


def fill_from(
    module: nn.Module,
    files: Sequence[Path],
    own_name: Callable[[str], str | None],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give a module, built on the meta device, its weights as copies of `dtype` on `device`.

    `own_name` turns a name in the files into the module's, or None for what is not wanted. Weights
    that the module shares between places need to be there once. ConfigError unless every parameter
    and buffer is there in its shape, and nothing else is.
    """
    wanted = module.state_dict()
    unknown: list[str] = []
    wrong: list[str] = []
    for file in files:
        given: dict[str, Tensor] = {}
        for name, tensor in read_tensors(file).items():
            own = own_name(name)
            if own is None:
                continue
            if own not in wanted:
                unknown.append(name)
            elif wanted[own].shape != tensor.shape:
                wrong.append(f"{name}: {list(tensor.shape)}, not {list(wanted[own].shape)}")
            else:
                given[own] = tensor.to(device, dtype, copy=True)
        module.load_state_dict(given, strict=False, assign=True)
    missing = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    problems = {"it lacks": missing, "it has unknown": unknown, "misshapen": wrong}
    _check(problems, files[0].parent)


def _check(problems: Mapping[str, Sequence[str]], folder: Path) -> None:
    found = [
        f"{what} {', '.join(sorted(names)[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for what, names in problems.items()
        if names
    ]
    if found:
        raise ConfigError(
            f"{folder} does not hold these weights: {'; '.join(found)}; give the files of this "
            "very model"
        )
