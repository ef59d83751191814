"""What evaluations compute of real images, kept on disk: no second evaluation computes it again.

    stored("gaussian", {"network": "inception-2015/6726825d", "data": "..."}, build)

The name of a file is a hash of everything that decides what is in it, so nothing ever goes stale.
Whoever deletes the folder loses time, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nanogen import dist, store
from nanogen.errors import UserError
from nanogen.files import whole_file, writable_folder

FORMAT = 1
"""part of every key: raised when what is stored under the same key changes"""


def folder() -> Path:
    """Where the files lie: beside the store."""
    return store.root().parent / "computed"


def stored(
    kind: str, key: Mapping[str, str | int], build: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `build` returns, from disk where an earlier evaluation stored it; CPU tensors.

    Every process calls it, and if the file is missing for one of them then all build: what `build`
    does may be collective. A file that cannot be read is made anew, one that cannot be written
    is a warning: the evaluation that needs it is worth more.
    """
    text = json.dumps({"kind": kind, "format": FORMAT, **key}, sort_keys=True)
    file = folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    found = _read(file)
    if dist.any_flag(found is None, torch.device("cpu")):
        found = build()
        if dist.rank() == 0:
            _write(file, found, text)
    assert found is not None
    return found


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError):
        return None


def _write(file: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    try:
        writable_folder(file.parent)
        with whole_file(file) as part:
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            safetensors.torch.save_file(whole, part, metadata={"key": key})
    except (OSError, UserError) as problem:
        warnings.warn(f"{file} is not kept and will be computed again: {problem}", stacklevel=3)
