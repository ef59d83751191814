"""Short hashes of weights and files, for saying that two things are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

DIGITS = 16


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits of names, types, shapes and every value; the same on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # numpy has no bfloat16; the bytes are all that is wanted.
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def digest_of_module(module: nn.Module) -> str:
    """Sixteen hex digits of every parameter and buffer that a checkpoint would hold."""
    return digest_of(module.state_dict())


def digest_of_file(file: Path) -> str:
    """All 64 hex digits of the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
