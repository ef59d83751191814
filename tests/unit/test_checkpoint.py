"""Saving and restoring, on a model of two layers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nanogen.errors import CheckpointError
from nanogen.train import checkpoint
from nanogen.train.adamw import AdamWConfig
from nanogen.train.checkpoint import Progress, broken, latest, load, load_weights, save
from nanogen.train.ema import Ema
from nanogen.train.muon import MuonConfig


class Small(nn.Module):
    """A block with a matrix, and a head; the buffer is stored, the frozen part only as a weight."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width)])
        self.head = nn.Linear(width, 2)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scale", torch.ones(()))

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


class Training:
    def __init__(self, optimiser: str, seed: int, width: int = 4) -> None:
        torch.manual_seed(seed)
        config = {"adamw": AdamWConfig, "muon": MuonConfig}[optimiser]()
        self.model, self.progress = Small(width), Progress()
        self.ema = Ema(self.model.trained(), 0.9)
        self.optimiser = config.build(self.model.trained())

    def step(self) -> None:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(self.progress.steps))
        self.model.head(self.model.blocks[0](x)).square().mean().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.seen += 5
        self.progress.steps += 1
        self.ema.update(self.progress.steps)

    def save(self, folder, keep=2):
        groups = {
            "model": self.model.state_dict(),
            "ema": self.ema.values,
            "optimiser": checkpoint.moments(self.optimiser, self.model.trained()),
        }
        return save(folder, self.progress, groups, keep)

    def load(self, path) -> None:
        self.progress = load(path, self.restore)

    def restore(self, read) -> None:
        self.model.load_state_dict(read("model"))
        checkpoint.restore_averages(self.ema, read("ema"))
        checkpoint.restore_moments(self.optimiser, self.model.trained(), read("optimiser"))

    def everything(self) -> dict[str, torch.Tensor]:
        moments = checkpoint.moments(self.optimiser, self.model.trained())
        return {
            **self.model.state_dict(),
            **{f"ema/{k}": v for k, v in self.ema.values.items()},
        } | {f"moment/{k}": v for k, v in moments.items()}


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_everything_comes_back_and_goes_on_bit_for_bit(tmp_path, optimiser):
    plain, stopped, resumed = (Training(optimiser, seed) for seed in (0, 0, 1))
    for _ in range(3):
        plain.step()
        stopped.step()
    stopped.progress.window = {"flow": 0.1 + 0.2}
    resumed.load(stopped.save(tmp_path))
    assert resumed.progress == stopped.progress
    for _ in range(3):
        plain.step()
        resumed.step()
    mine, theirs = plain.everything(), resumed.everything()
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("moment/") for name in mine)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype, name


def test_the_layout_is_what_the_docstring_says(tmp_path):
    training = Training("adamw", 0)
    training.step()
    path = training.save(tmp_path)
    assert path.name == "000000000005"
    assert sorted(file.name for file in path.iterdir()) == [
        "ema.safetensors",
        "hashes.json",
        "model.safetensors",
        "optimiser.safetensors",
        "state.json",
    ]
    assert "frozen" in load_file(path / "model.safetensors")
    assert "frozen" not in load_file(path / "ema.safetensors")
    assert set(load_file(path / "optimiser.safetensors")) >= {"head.weight/exp_avg"}
    assert json.loads((path / "state.json").read_text())["seen"] == 5


def test_saving_twice_at_one_moment_writes_once(tmp_path):
    training = Training("adamw", 0)
    times = {p: p.stat().st_mtime_ns for p in training.save(tmp_path).iterdir()}
    assert {p: p.stat().st_mtime_ns for p in training.save(tmp_path).iterdir()} == times


def test_a_broken_one_is_written_again(tmp_path):
    training = Training("adamw", 0)
    path = training.save(tmp_path)
    (path / "ema.safetensors").write_bytes(b"")
    assert broken(path) == "ema.safetensors is not what was written"
    assert broken(training.save(tmp_path)) is None


def test_latest_of_nothing(tmp_path):
    assert latest(tmp_path) is None and latest(tmp_path / "absent") is None
    (tmp_path / "notes").mkdir()
    (tmp_path / "7").touch()
    assert latest(tmp_path) is None


def test_names_sort_as_numbers(tmp_path):
    training = Training("adamw", 0)
    for seen in (99_999_999_999, 5, 100_000_000_000):
        training.progress.seen = seen
        training.save(tmp_path, keep=9)
    newest = latest(tmp_path)
    assert newest is not None and int(newest.name) == 100_000_000_000


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_weights_alone(tmp_path, weights):
    training, model = Training("adamw", 0), Small()
    for _ in range(3):
        training.step()
    path = training.save(tmp_path)
    assert load_weights(path, model, weights) == 15  # type: ignore[arg-type]
    for name, p in model.trained().items():
        wanted = training.ema.values if weights == "ema" else training.model.trained()
        assert torch.equal(p, wanted[name])


def test_another_model_is_refused_in_one_line(tmp_path):
    path = Training("adamw", 0).save(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this run") as refused:
        Training("adamw", 0, width=5).load(path)
    assert "\n" not in str(refused.value)


def test_moments_of_a_parameter_that_is_gone_are_refused(tmp_path):
    training, other = Training("adamw", 0), Training("adamw", 0)
    training.step()
    path = training.save(tmp_path)
    other.model.head.bias.requires_grad_(False)
    other.ema = Ema(training.model.trained(), 0.9)
    with pytest.raises(CheckpointError, match="does not fit this run: 'head.bias'"):
        other.load(path)
