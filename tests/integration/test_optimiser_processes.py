"""Several processes share the work of an optimiser, and end with the bits that one has alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import checkpoints, final, ranks, tiny, trained, unlike
from torch import nn

from nanogen import dist, registry
from nanogen.run import build
from nanogen.train import checkpoint, momentum

OPTIMISERS = ("muon", "gmuon")


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network() -> dict[str, nn.Parameter]:
    """Matrices of several shapes and numbers, and something for AdamW."""
    shapes = {"stem": (7,)}
    for block in range(3):
        for name in ("q", "k", "v", "proj"):
            shapes[f"blocks.{block}.attn.{name}"] = (32, 32)
        shapes[f"blocks.{block}.w1"] = (85, 32)
        shapes[f"blocks.{block}.w3"] = (32, 85)
    return {
        name: nn.Parameter(gaussian(*shape, seed=seed))
        for seed, (name, shape) in enumerate(shapes.items())
    }


def stepped(name: str, fields: dict[str, object]) -> dict[str, torch.Tensor]:
    """Weights and moments after four steps; one matrix has no gradient in the second."""
    parameters = network()
    optimiser = registry.get("optimiser", name)(**fields).build(parameters)
    for step in range(4):
        for seed, (key, p) in enumerate(parameters.items()):
            p.grad = gaussian(*p.shape, seed=1000 * (step + 1) + seed)
            if (step, key) == (1, "blocks.1.w1"):
                p.grad = None
        optimiser.step()
    moments = checkpoint.moments(optimiser, parameters)
    return {key: p.detach() for key, p in parameters.items()} | moments


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("name", "fields"),
    [("muon", {"weight_decay": 0.1}), ("gmuon", {}), ("gmuon", {"precision": "fp16"})],
    ids=["muon", "gmuon", "gmuon-fp16"],
)
def test_shared_is_bit_equal_to_alone_on_every_process(tmp_path, name, fields, world):
    alone, found = stepped(name, fields), tmp_path / "found"
    found.mkdir()

    def work() -> None:
        save_file(stepped(name, fields), found / f"{dist.rank()}.safetensors")

    assert ranks(world, tmp_path / "store", work) == [0] * world
    for rank in range(world):
        assert unlike(alone, load_file(found / f"{rank}.safetensors")) == []


@pytest.mark.parametrize("name", OPTIMISERS)
def test_each_process_does_its_share_only(tmp_path, name):
    """And sends it once: one message of each process in a step, all matrices together."""

    def work() -> None:
        done, sent = [], []
        orthogonalised, broadcast = momentum.orthogonalised, dist.broadcast

        def counted(matrices, steps, half):
            done.append(len(matrices) * momentum.cost(matrices.shape[1:]))
            return orthogonalised(matrices, steps, half)

        def measured(tensor, source):
            sent.append(tensor.numel())
            broadcast(tensor, source)

        momentum.orthogonalised, dist.broadcast = counted, measured
        parameters = network()
        optimiser = registry.get("optimiser", name)().build(parameters)
        for seed, p in enumerate(parameters.values()):
            p.grad = gaussian(*p.shape, seed=seed)
        optimiser.step()
        matrices = [p for p in parameters.values() if p.ndim == 2]
        total = sum(momentum.cost(p.shape) for p in matrices)
        assert abs(sum(done) - total / 2) < 0.1 * total
        assert len(sent) == 2 and sum(sent) == sum(p.numel() for p in matrices)

    assert ranks(2, tmp_path / "store", work) == [0, 0]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_run_resumes_with_any_number_of_processes(tmp_path, name):
    """1 -> 2 -> 1 processes against 1: the momentum of a checkpoint does not tell who made it."""
    run = tiny("animals/pixels-v", "train.images=48", f"optimiser={name}", "optimiser.lr=0.01")
    trained(run, tmp_path / "alone")
    folder = tmp_path / "run"
    trained(run, folder, stop_at=16)

    def work() -> None:
        trained(run, folder, stop_at=16)

    assert ranks(2, tmp_path / "store", work) == [0, 0]
    assert checkpoints(folder)[-1] == 32
    trained(run, folder)
    one, other = final(tmp_path / "alone"), final(folder)
    assert one.keys() == other.keys()
    assert sum(key.endswith("/momentum") for key in one) > 10
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5)


def test_checkpoints_of_one_and_two_processes_hold_the_same_momentum(tmp_path):
    """The same gradients, so the same bits: nothing is gathered, everything is on each process."""
    run = tiny("animals/pixels-v", "optimiser=gmuon")

    def moments() -> dict[str, torch.Tensor]:
        parameters = build(run).model.trained()
        optimiser = run.optimiser.build(parameters)
        for seed, p in enumerate(parameters.values()):
            p.grad = gaussian(*p.shape, seed=seed)
        optimiser.step()
        return checkpoint.moments(optimiser, parameters)

    alone = moments()
    assert ranks(
        2, tmp_path / "store", lambda: save_file(moments(), tmp_path / f"{dist.rank()}.safetensors")
    ) == [0, 0]
    for rank in range(2):
        assert unlike(alone, load_file(Path(tmp_path / f"{rank}.safetensors"))) == []
