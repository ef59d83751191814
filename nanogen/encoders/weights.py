"""Foreign files of weights: found, read without unpickling, and loaded to the last tensor.

file = locate_file("facebook/PE-Core-B16-224", ("PE-Core-B16-224.pt",), path="")
fill(network, read_tensors(file), unused=("attn_pool.",), where=str(file))
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from nanogen import hub
from nanogen.errors import ConfigError, MissingExtra

WRAPPERS = ("state_dict", "weights")
"""keys under which a file may hold its tensors"""
PREFIXES = ("module.", "_orig_mod.")
"""what torch puts before the names of a parallel and of a compiled module"""


def locate_file(repository: str, names: Sequence[str], path: str, field: str = "path") -> Path:
    """A file of weights: `path` itself, or the first of `names` in the folder `path`; the first of
    `names` from the hub where `path` is empty.

    `field` names what sets `path`, for the message of the ConfigError where there is no such file.
    """
    if path:
        place = Path(path).expanduser()
        found = [f for f in [place, *(place / name for name in names)] if f.is_file()]
        if not found:
            raise ConfigError(
                f"{field}={path}: neither a file of weights nor a folder that holds "
                f"{' or '.join(names)}; give one, or leave it empty to ask the hub for {repository}"
            )
        return found[0]
    source = hub.locate(repository, "", names[0], field=field, what="file of these weights")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as problem:
        raise MissingExtra("huggingface_hub", "pip install 'nanogen[latents]'") from problem
    if Path(source.model).exists():
        # A folder of the same name as the repository stands in for it.
        return locate_file(repository, names, source.model, field)
    try:
        return Path(hf_hub_download(source.model, names[0], local_files_only=source.local))
    except Exception as problem:  # which errors a broken download has depends on the version
        raise ConfigError(hub.advice(repository, problem, field)) from problem


def read_tensors(file: Path, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt or .pth by torch's reader of plain weights.

    What wraps them is taken off: the first of `wrappers` that is there, and the prefixes of
    parallel and compiled modules. They may lie in the file still: copy before the file changes.
    ConfigError for a file that cannot be read so.
    """
    found = read_plain(file)
    while isinstance(found, Mapping) and (inner := [key for key in wrappers if key in found]):
        found = found[inner[0]]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ConfigError(f"{file} holds something else than tensors by name; give a state dict")
    return {bare_name(str(name)): tensor for name, tensor in found.items()}


def read_plain(file: Path) -> Any:
    """What a .safetensors, .pt or .pth file holds, by torch's reader of plain weights: nothing is
    unpickled that could run. Its tensors may lie in the file still. ConfigError where it cannot be
    read so.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        # Files from before torch 1.6 are no archives and cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as problem:  # a foreign file can be broken in any way
        told = file.suffix == ".safetensors" or isinstance(problem, OSError)
        # Torch tells of its own settings there.
        reason = hub.reason(problem) if told else "damaged, or more than plain tensors and numbers"
        raise ConfigError(
            f"{file} is not a readable file of weights: {reason}; get it anew, or give another"
        ) from problem


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], unused: Collection[str] = (), *, where: str
) -> None:
    """Give a module its weights as float32 copies; it may have been built on the meta device.

    Every parameter and buffer must be there in its shape, and everything there must be wanted or
    begin with one of `unused`: a ConfigError that names `where` lists what does not fit.
    """
    wanted = module.state_dict()
    given = {
        name: tensor
        for name, tensor in tensors.items()
        if name in wanted or not name.startswith(tuple(unused))
    }
    missing = sorted(set(wanted) - set(given))
    unexpected = sorted(set(given) - set(wanted))
    wrong = [
        f"{name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("it lacks", missing), ("it has unknown", unexpected), ("", wrong))
        if names
    ]
    if problems:
        raise ConfigError(
            f"{where} does not hold these weights: {'; '.join(problems).strip()}; "
            "give the file of this very model"
        )
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in given.items()}
    module.load_state_dict(copies, assign=True)


def bare_name(name: str) -> str:
    """A weight's name without the prefixes of parallel and compiled modules."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name
