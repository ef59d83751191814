"""Processes: who am I, sums across processes, one decision for all. With one process every call is
free.

Launched by torchrun, `start` joins the group; nothing else in the package reads the launcher's
variables.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as td
from torch import Tensor


@contextmanager
def processes(device: torch.device) -> Generator[None, None, None]:
    """Join the group that torchrun made, if there is one, and leave it at the end."""
    joined = (
        "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not td.is_initialized()
    )
    if joined:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Sums of metrics are float64 on the CPU wherever the model is.
        td.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        if joined:
            # Nobody leaves while another still talks to it.
            td.barrier()
    finally:
        if joined:
            # A parallel wrapper that outlives its group can abort the process at its end.
            gc.collect()
            td.destroy_process_group()


def rank() -> int:
    return td.get_rank() if td.is_initialized() else 0


def world() -> int:
    return td.get_world_size() if td.is_initialized() else 1


def local_rank() -> int:
    """Index of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """Number of processes of this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def sum_across(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each named tensor over all processes, in one reduction per tensor, names in
    sorted order.
    """
    total = {name: tensors[name].clone() for name in sorted(tensors)}
    if world() > 1:
        for tensor in total.values():
            td.all_reduce(tensor)
    return total


def any_flag(flag: bool, device: torch.device) -> bool:
    """True on every process if it is true on any."""
    if world() == 1:
        return flag
    shared = torch.tensor([float(flag)], device=device)
    td.all_reduce(shared, op=td.ReduceOp.MAX)
    return bool(shared.item())


def broadcast(tensor: Tensor, source: int) -> None:
    """Fill `tensor` on every process with that of process `source`."""
    if world() > 1:
        td.broadcast(tensor, src=source)


def broadcast_named(tensors: Mapping[str, Tensor], source: int) -> dict[str, Tensor]:
    """On every process, the named CPU tensors of process `source`; the others need know nothing of
    them.
    """
    if world() == 1:
        return dict(tensors)
    mine = rank() == source
    shapes = {n: [str(t.dtype).removeprefix("torch."), *t.shape] for n, t in tensors.items()}
    header = torch.frombuffer(
        bytearray(json.dumps(shapes if mine else {}).encode()), dtype=torch.uint8
    )
    length = torch.tensor([len(header)])
    td.broadcast(length, src=source)
    header = header if mine else torch.empty(int(length), dtype=torch.uint8)
    td.broadcast(header, src=source)
    found = {}
    for name, (kind, *shape) in json.loads(bytes(header.tolist())).items():
        tensor = (
            tensors[name].contiguous() if mine else torch.empty(shape, dtype=getattr(torch, kind))
        )
        td.broadcast(tensor, src=source)
        found[name] = tensor
    return found


def barrier() -> None:
    if world() > 1:
        td.barrier()
