"""`nanogen convert checkpoint`: runs of checkpoints of diffusion-bench, and checkpoints of runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusion_bench import Shape, fused, padded, published
from numpy_ddt import NumpyDdt, Told
from tiny import invoke, overrides, tiny, trained
from torch import Tensor, nn

from nanogen.run_folder import open_run
from nanogen.types import LabelCondition

PRESET = "animals/pixels-v"
TINY = Shape(encoder=(1, 32, 2), decoder=(1, 32, 2), channels=3, patch=7, side=4)
"""what the tiny preset trains"""
VARIANTS: dict[str, tuple[Shape, list[str]]] = {
    "label": (TINY, []),
    "reg": (replace(TINY, cls=64), ["terms.reg=on", "terms.reg.encoder=animals-vit"]),
    "meanflow": (replace(TINY, meanflow=True), ["objective=meanflow", "sampling.guidance.scale=1"]),
    "internal": (
        replace(TINY, guidance=True),
        ["terms.internal=on", "terms.internal.block=1"],
    ),
    "repa": (
        replace(TINY, repa=64),
        ["terms.repa=on", "terms.repa.block=1", "terms.repa.encoder=animals-vit"]
        + ["terms.repa.resample=true"],
    ),
    "light": (
        replace(TINY, decoder=None),
        ["backbone=lightning-dit", "backbone.depth=1", "backbone.width=32", "backbone.heads=2"],
    ),
}
"""networks, and the fields that make the tiny preset train them"""


def arguments(*fields: str) -> list[str]:
    """Fields of the tiny preset; those of a backbone that is chosen anew replace its own."""
    plain = overrides(PRESET)
    if any(field.startswith("backbone=") for field in fields):
        plain = [field for field in plain if not field.startswith("backbone.")]
    return [*plain, *fields, "--preset", PRESET]


def training(shape: Shape, step: int = 7) -> dict[str, object]:
    """A whole checkpoint, of a parallel and compiled module."""
    model, ema = published(shape, seed=1), published(shape, seed=2)
    # What is not trained is the same in both.
    for name in ("t_embedder.W", "t_abs_embedder.W"):
        if name in model:
            ema[name] = model[name].clone()
    return {
        "step": step,
        "epoch": 1,
        "model": {f"module._orig_mod.{name}": tensor for name, tensor in model.items()},
        "ema": ema,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "scheduler": {"last_epoch": step},
    }


def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.rpartition("_orig_mod.")[2]: tensor for name, tensor in tensors.items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def assert_computes(backbone: nn.Module, tensors: dict[str, Tensor]) -> None:
    """A backbone does what these tensors do in an independent evaluation."""
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 3, 28, 28)).astype(np.float32), np.array([0.2, 0.8], np.float32)
    ids = np.array([3, 10])
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    wanted = NumpyDdt(arrays, TINY.patch, (1, 2), (1, 2))(x, Told(t, ids))["image"]
    with torch.no_grad():
        state, label = {"image": torch.from_numpy(x)}, LabelCondition(torch.from_numpy(ids))
        found = backbone(state, torch.from_numpy(t), label).state["image"]
    assert np.abs(found.numpy() - wanted).max() < 5e-6 * np.abs(wanted).max()


def convert(monkeypatch: pytest.MonkeyPatch, *rest: object) -> int:
    return invoke(monkeypatch, "convert", "checkpoint", *map(str, rest))


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(variant, tmp_path, monkeypatch, capsys):
    """Drawn from with either weights, and written back bit for bit."""
    shape, fields = VARIANTS[variant]
    theirs, ours, again = tmp_path / "ddt.pt", tmp_path / "run", tmp_path / "again.pt"
    stored = training(shape)
    torch.save(stored, theirs)
    assert convert(monkeypatch, theirs, ours, *arguments(*fields)) == 0
    printed = capsys.readouterr().out
    assert "note: optimizer is left: training cannot go on from it" in printed
    assert "56 images seen" in printed and f"written: {ours}" in printed
    (checkpoint,) = (ours / "checkpoints").iterdir()
    assert checkpoint.name == f"{7 * 8:012d}"
    assert set(json.loads((checkpoint / "hashes.json").read_text())) == {
        "model.safetensors",
        "ema.safetensors",
        "state.json",
    }
    out = tmp_path / "drawn"
    sample = ["sample", str(ours), "--classes", "1", "--seeds", "0-1", "--out", str(out)]
    assert invoke(monkeypatch, *sample) == 0 and len(list(out.glob("0*.png"))) == 2
    assert convert(monkeypatch, ours, again, "--to", "diffusion-bench") == 0
    found = torch.load(again, weights_only=True)
    assert found.keys() == {"step", "model", "ema"} and found["step"] == 7
    assert_same(found["model"], bare(stored["model"]))  # type: ignore[arg-type]
    assert_same(found["ema"], stored["ema"])  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_run_computes_what_the_checkpoint_does(weights, tmp_path, monkeypatch):
    stored = training(TINY)
    torch.save(stored, tmp_path / "ddt.pt")
    assert convert(monkeypatch, tmp_path / "ddt.pt", tmp_path / "run", *arguments()) == 0
    opened = open_run(tmp_path / "run", weights)
    assert opened.seen == 56
    tensors = stored["ema"] if weights == "ema" else bare(stored["model"])  # type: ignore[arg-type]
    assert_computes(opened.parts.model.backbone, tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["pt", "safetensors", "wrapped", "fused"])
def test_weights_alone(kind, tmp_path, monkeypatch, capsys):
    """They stand for their averages; how long they were trained can be said."""
    tensors = published(TINY)
    file = tmp_path / f"ddt.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, file)
    else:
        held = {"fused": fused(padded(tensors, 16)), "wrapped": {"state_dict": tensors}}
        torch.save(held.get(kind, tensors), file)
    assert convert(monkeypatch, file, tmp_path / "run", *arguments("--step", "1000")) == 0
    assert "they stand for their averages too" in capsys.readouterr().out
    assert open_run(tmp_path / "run").seen == 8000
    again = tmp_path / "again.pt"
    assert convert(monkeypatch, tmp_path / "run", again, "--to", "diffusion-bench") == 0
    found = torch.load(again, weights_only=True)
    for name in ("model", "ema"):
        assert_same(found[name], tensors)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_one_of_the_weights(weights, tmp_path, monkeypatch):
    """Where processes began with other weights, what is not trained differs: one must be chosen."""
    stored = training(TINY)
    ema: dict[str, Tensor] = stored["ema"]  # type: ignore[assignment]
    ema["t_embedder.W"] += 1
    torch.save(stored, tmp_path / "ddt.pt")
    run = tmp_path / "run"
    fields = arguments("--weights", weights)
    assert convert(monkeypatch, tmp_path / "ddt.pt", run, *fields) == 0
    wanted = ema if weights == "ema" else bare(stored["model"])  # type: ignore[arg-type]
    for which in ("ema", "raw"):
        found = open_run(run, which).parts.model.backbone.state_dict()
        assert torch.equal(found["blocks.0.attn.q.weight"], wanted["blocks.0.attn.q.weight"])
        assert torch.equal(found["t_embedder.W"], wanted["t_embedder.W"])


def test_captions(tmp_path, monkeypatch):
    from nanogen.conditioners.minilm import TOKENS, WIDTH

    shape = replace(TINY, patch=10, text=(WIDTH, TOKENS))
    torch.save(training(shape), tmp_path / "ddt.pt")
    fields = [*overrides("scenes/pixels-v"), "--preset", "scenes/pixels-v"]
    run, again = tmp_path / "run", tmp_path / "again.pt"
    assert convert(monkeypatch, tmp_path / "ddt.pt", run, *fields) == 0
    assert convert(monkeypatch, run, again, "--to", "diffusion-bench") == 0
    found = torch.load(again, weights_only=True)["ema"]
    assert found["enc_rope.freqs_cos"].shape == (16 + 4 + TOKENS, 16)
    assert_same(found, training(shape)["ema"])  # type: ignore[arg-type]


def test_eval(tmp_path, monkeypatch, capsys):
    torch.save(training(TINY), tmp_path / "ddt.pt")
    assert convert(monkeypatch, tmp_path / "ddt.pt", tmp_path / "run", *arguments()) == 0
    measure = ["--metrics", "accuracy-animals", "evaluation.samples=50"]
    assert invoke(monkeypatch, "eval", str(tmp_path / "run"), *measure) == 0
    assert len(list((tmp_path / "run" / "records").glob("*.json"))) == 1


def test_a_run_of_ours(tmp_path, monkeypatch):
    """Trained here, it is a checkpoint that the reference computes alike with."""
    parts = trained(tiny(PRESET), tmp_path / "run")
    assert convert(monkeypatch, tmp_path / "run", tmp_path / "o.pt", "--to", "diffusion-bench") == 0
    found = torch.load(tmp_path / "o.pt", weights_only=True)
    assert found["step"] == 8
    assert_computes(parts.model.backbone, found["model"])
    again = tmp_path / "again"
    assert convert(monkeypatch, tmp_path / "o.pt", again, *arguments()) == 0
    one, two = (open_run(path).parts.model.state_dict() for path in (tmp_path / "run", again))
    assert_same(two, one)


def test_what_only_trains_is_left_out(tmp_path, monkeypatch, capsys):
    _, fields = VARIANTS["repa"]
    run = tiny(PRESET, *fields, "terms.repa.projector=conv3", "train.images=8")
    trained(run, tmp_path / "run")
    capsys.readouterr()
    assert convert(monkeypatch, tmp_path / "run", tmp_path / "o.pt", "--to", "diffusion-bench") == 0
    assert "note: objective.terms.repa.projector.conv is left out" in capsys.readouterr().out
    found = torch.load(tmp_path / "o.pt", weights_only=True)["ema"]
    assert found.keys() == published(TINY).keys()


def test_dropped_projector(tmp_path, monkeypatch, capsys):
    torch.save(published(replace(TINY, repa=64)), tmp_path / "ddt.pt")
    fields = arguments("--drop-projector")
    assert convert(monkeypatch, tmp_path / "ddt.pt", tmp_path / "run", *fields) == 0
    assert "note: its REPA projector is left out" in capsys.readouterr().out
    open_run(tmp_path / "run")


def test_training_does_not_go_on_from_it(tmp_path, monkeypatch, capsys):
    torch.save(training(TINY, step=1), tmp_path / "ddt.pt")
    run = tmp_path / "run"
    assert convert(monkeypatch, tmp_path / "ddt.pt", run, *arguments()) == 0
    capsys.readouterr()
    assert invoke(monkeypatch, "train", PRESET, *overrides(PRESET), "--out", str(run)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"train.start={run}" in error
    start = [*overrides(PRESET), f"train.start={run}", "--out", str(tmp_path / "next")]
    assert invoke(monkeypatch, "train", PRESET, *start) == 0


def refusals() -> dict[str, tuple[object, list[str], str]]:
    """What a file holds, the arguments, and what is said."""
    broken = training(TINY)
    del broken["ema"]["blocks.0.norm1.weight"]  # type: ignore[attr-defined]
    other = training(TINY)
    other["ema"]["t_embedder.W"] += 1  # type: ignore[index]
    return {
        "no preset": (training(TINY), overrides(PRESET), "add --preset, such as"),
        "reg": (training(VARIANTS["reg"][0]), arguments(), f"REG of width 64, {PRESET} has none"),
        "repa": (training(VARIANTS["repa"][0]), arguments(), "a REPA projector of width 64"),
        "no repa": (training(TINY), arguments(*VARIANTS["repa"][1]), "no REPA projector"),
        "mlp3": (
            training(TINY),
            arguments(*VARIANTS["repa"][1], "terms.repa.projector=mlp3"),
            "trains objective.terms.repa.projector.0.bias and 5 more, which",
        ),
        "broken": (
            broken,
            arguments(),
            "(ema) does not hold these weights to the last tensor; 1",
        ),
        "frozen": (other, arguments(), "t_embedder.W, which is not trained, is not the same"),
        "step": (training(TINY), arguments("--step", "8"), "contradicts"),
        "weights": (published(TINY), arguments("--weights", "ema"), "--weights ema has no effect"),
        "choice": (training(TINY), arguments("--weights", "best"), "--weights 'best'"),
        "drop": (training(TINY), arguments("--drop-projector"), "has no effect"),
        "other": ({"epoch": 3, "loss": torch.zeros(3)}, arguments(), "epoch is no tensor"),
        "list": ([1, 2], arguments(), "holds no weights by name"),
        "code": ({"model": Shape()}, arguments(), "is not a readable file of weights"),
        "negative": ({**training(TINY), "step": -3}, arguments(), "says step=-3"),
        "export": (training(TINY), [*arguments(), "--to", "diffusion-bench"], "leave them out"),
    }


@pytest.mark.parametrize("case", refusals())
def test_refusals(case, tmp_path, monkeypatch, capsys):
    held, rest, message = refusals()[case]
    torch.save(held, tmp_path / "ddt.pt")
    assert convert(monkeypatch, tmp_path / "ddt.pt", tmp_path / "run", *rest) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir()] == ["ddt.pt"]


@pytest.mark.parametrize(
    "fields, message",
    [
        (["backbone=jit"], "backbone=jit, which diffusion-bench does not have"),
        (["absent"], "is not a run folder"),
    ],
)
def test_export_refusals(fields, message, tmp_path, monkeypatch, capsys):
    if fields != ["absent"]:
        sizes = ["backbone.depth=1", "backbone.width=32", "backbone.heads=2"]
        plain = [f for f in overrides(PRESET, "train.images=8") if not f.startswith("backbone.")]
        start = [*plain, *fields, *sizes, "--out", str(tmp_path / "run")]
        assert invoke(monkeypatch, "train", PRESET, *start) == 0
    capsys.readouterr()
    assert convert(monkeypatch, tmp_path / "run", tmp_path / "o.pt", "--to", "diffusion-bench") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o.pt").exists()
