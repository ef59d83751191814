"""Training a tokenizer: it resumes, it may be cut into pieces, and it ends in an export."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_same_run, checkpoints, final, ranks, unclocked
from tiny_stage1 import exported, tiny, trained
from torch import nn

from nanogen import config, dist, run_folder
from nanogen.bench import record
from nanogen.data.loader import batches
from nanogen.errors import CheckpointError, ConfigError
from nanogen.stage1 import hooks, kinds
from nanogen.stage1 import trainer as stage1_trainer
from nanogen.stage1.discriminators import PatchDiscriminator, across_processes
from nanogen.stage1.run import TokenizerRun, build
from nanogen.stage1.trainer import TokenizerTrainer
from nanogen.train import checkpoint
from nanogen.train.gradients import trained as trained_parameters
from nanogen.types import to_float

pytest.importorskip("diffusers")


# How it goes on: bit for bit after a stop, and the same in any number of pieces and processes.


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of each kind that was never stopped."""
    folders = {}
    for preset in ("animals/vae", "animals/rae"):
        folders[preset] = tmp_path_factory.mktemp("plain")
        trained(tiny(preset), folders[preset])
    return folders


@pytest.mark.parametrize(
    ("preset", "stop_at"),
    [("animals/vae", 8), ("animals/vae", 40), ("animals/rae", 24), ("animals/rae", 48)],
    ids=str,
)
def test_resume_is_bit_equal(plain, tmp_path, preset, stop_at):
    run = tiny(preset)
    trained(run, tmp_path, stop_at)
    assert checkpoints(tmp_path)[-1] == stop_at
    trained(run, tmp_path)
    assert_same_run(plain[preset], tmp_path)
    names = {name.partition("/")[0] for name in final(tmp_path)}
    assert names == {"model", "ema", "optimiser", "discriminator", "discriminator_optimiser"}
    assert exported(tmp_path) == exported(plain[preset])


def first_gradients(run: TokenizerRun) -> dict[str, torch.Tensor]:
    """Both gradients of the first step, and what it logs."""
    trainer, found = TokenizerTrainer(build(run)), {}
    for side, optimiser in (("decoder", trainer.optimiser), ("discriminator", trainer.opponent)):

        def keep(*_: object, side: str = side) -> None:
            module = trainer.autoencoder if side == "decoder" else trainer.game.discriminator
            for name, p in trained_parameters(module).items():
                found[f"{side}/{name}"] = p.grad.clone()

        optimiser.register_step_pre_hook(keep)
    train_run = trainer.run.train
    micro = run.machine.micro_batch or train_run.batch
    values = trainer.step(batches(trainer.task, 0, train_run.batch, micro, 0))
    return found | {f"value/{name}": torch.tensor(value) for name, value in values.items()}


CUTS = [(1, 3), (2, None), (2, 3), (3, 2)]
"""1 x 8 as 1 x (3 + 3 + 2), 2 x 4, 2 x (3 + 1), and 2 + (2 + 1) + (2 + 1)"""
BOTH_PLAY = (
    "discriminator.norm=sample",
    "discriminator.learns_from=0",
    "discriminator.judges_from=0",
)


@pytest.mark.parametrize("preset", ["animals/vae", "animals/rae"])
@pytest.mark.parametrize("world, micro", CUTS, ids=str)
def test_gradients_do_not_depend_on_how_a_batch_is_cut(tmp_path, monkeypatch, preset, world, micro):
    run = tiny(preset, *BOTH_PLAY, "optimiser.lr=0")
    # Rounding in the last digit can put a pixel into the next of 256 levels: here there are none.
    for name in ("to_uint8", "to_float"):
        monkeypatch.setattr(stage1_trainer, name, lambda images: images)
    whole = first_gradients(run)
    cut = config.override(run, [f"machine.micro_batch={micro}"])

    def work() -> None:
        save_file(first_gradients(cut), tmp_path / f"{dist.rank()}.safetensors")

    assert ranks(world, tmp_path / "store", work) == [0] * world
    for rank in range(world):
        parts = load_file(tmp_path / f"{rank}.safetensors")
        assert parts.keys() == whole.keys() and "value/adversarial_weight" in parts
        for name, value in whole.items():
            size = float(value.abs().max())
            torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=2e-5 * size + 1e-9)


@pytest.mark.parametrize("world, micro", [(1, 3), (2, None)], ids=str)
def test_losses_of_a_run_are_the_same_but_for_rounding(tmp_path, world, micro):
    run = tiny("animals/vae", *BOTH_PLAY, "train.log_every=8", "train.images=48")
    trained(run, tmp_path / "one")
    cut = config.override(run, [f"machine.micro_batch={micro}"])
    work = functools.partial(trained, cut, tmp_path / "more")
    assert ranks(world, tmp_path / "store", work) == [0] * world
    for name in ("l1", "kl", "discriminator"):
        a, b = ([line[name] for line in unclocked(tmp_path / f)] for f in ("one", "more"))
        assert len(a) == 6 and b == pytest.approx(a, rel=1e-3)
    assert exported(tmp_path / "one").keys() == exported(tmp_path / "more").keys()


def test_a_batch_that_is_normalised_at_once_is_not_cut():
    """The default norm of a patch discriminator: pieces would have statistics of their own."""
    for micro in (1, 7):
        message = f"machine.micro_batch={micro} .* discriminator.norm=batch"
        with pytest.raises(ConfigError, match=message):
            build(tiny("animals/vae", f"machine.micro_batch={micro}"))
    build(tiny("animals/vae", "machine.micro_batch=8"))
    build(tiny("animals/vae", "machine.micro_batch=3", "discriminator.norm=sample"))


def test_nor_is_it_spread_over_processes_on_cpus(tmp_path):
    def work() -> None:
        with pytest.raises(ConfigError, match=r"discriminator.norm=batch.*on CPUs"):
            build(tiny("animals/vae"))
        build(tiny("animals/vae", "discriminator.norm=sample"))

    assert ranks(2, tmp_path / "store", work) == [0, 0]


def test_graphics_cards_share_the_statistics(monkeypatch):
    monkeypatch.setattr(dist, "world", lambda: 2)
    module = PatchDiscriminator(channels=4, layers=2)
    kept = across_processes(module, torch.device("cuda"))
    kinds_of = {type(one) for one in kept.modules()}
    assert nn.SyncBatchNorm in kinds_of and nn.BatchNorm2d not in kinds_of
    assert kept is module, "the trainer of a game holds the module itself"


def test_another_run_in_the_folder_is_refused(plain):
    with pytest.raises(CheckpointError, match="autoencoder.kl: 1e-06 there, 0.1 here"):
        run_folder.prepare(
            tiny("animals/vae", "autoencoder.kl=0.1"), plain["animals/vae"], fresh=False
        )


# What it ends in.


@pytest.mark.parametrize("preset", ["animals/vae", "animals/rae"])
def test_the_exported_tokenizer_is_the_averaged_weights(plain, preset):
    folder = plain[preset]
    origin = json.loads((folder / "tokenizer" / hooks.ORIGIN).read_text())
    assert origin["seen"] == 64 and origin["weights"] == "ema"
    parts = build(tiny(preset))
    trainer = TokenizerTrainer(parts)
    newest = max((folder / "checkpoints").glob("[0-9]*"))
    checkpoint.load(newest, trainer.restore)
    tokenizer = hooks.opened(parts, folder / "tokenizer")
    source = parts.task.source
    images = to_float(torch.stack([source.read("held-out", i, i).image for i in range(4)]))
    with trainer.averaged(), torch.no_grad():
        raw = parts.autoencoder.raw(images)
        torch.testing.assert_close(tokenizer.raw(images), raw, rtol=1e-4, atol=1e-5)
        wanted = parts.autoencoder.from_raw(raw).clamp(0, 1)
    found = tokenizer.decode(tokenizer.encode(images)).clamp(0, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    # Statistics are those of 16 train images, evenly spaced.
    numbers = [i * source.count("train") // 16 for i in range(16)]
    images = to_float(torch.stack([source.read("train", n, n).image for n in numbers]))
    latents = tokenizer.encode(images)
    over = (0, 2, 3) if preset.endswith("vae") else 0
    assert latents.mean(over).abs().max() < 1e-3
    spread = latents.var(over, correction=0).sqrt()
    moving = spread[spread > 0.5]  # features of what is white in every image do not vary
    assert len(moving) and (moving - 1).abs().max() < 0.02


@pytest.mark.parametrize("preset", ["animals/vae", "animals/rae"])
def test_its_records_name_the_exported_tokenizer(plain, preset):
    folder = plain[preset]
    parts = build(tiny(preset))
    tokenizer = hooks.opened(parts, folder / "tokenizer")
    records = record.read(folder / "records")
    assert {r.metric for r in records} == {"psnr", "ssim"}
    for one in records:
        assert one.facts["tokenizer"] == tokenizer.fingerprint
        assert (one.n, one.seen, one.weights, one.task) == (20, 64, "ema", "reconstruction")


def test_a_finished_run_is_left_alone(plain, monkeypatch):
    folder = plain["animals/vae"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    before.pop(folder / "run.yaml"), before.pop(folder / "log.jsonl")
    trained(tiny("animals/vae"), folder)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in before}.items()


def test_evaluation_during_training(tmp_path):
    run = tiny("animals/rae", "evaluation.every=32", "evaluation.metrics=psnr")
    trained(run, tmp_path)
    assert [r.seen for r in record.read(tmp_path / "records")] == [32, 64]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["discriminator.judges_from=64"], "discriminator.judges_from=64 has no effect in a run"),
        (["machine.compile=true"], "machine.compile has no effect"),
        (["evaluation.every=8", "evaluation.metrics="], "evaluation.every has no effect"),
        (["discriminator.layers=4"], "needs images of at least 48 px"),
        (["perceptual=features", "perceptual.encoder=animals-vet"], "animals-vit"),
        (["data.size=30"], "must be a multiple of 4 px"),
    ],
    ids=str,
)
def test_runs_that_cannot_be_built(given, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny("animals/vae", *given))


@pytest.mark.parametrize("name", kinds.summaries())
def test_every_preset_has_a_line_and_survives_its_dump(name, tmp_path):
    run = kinds.preset(name)
    assert kinds.summaries()[name]
    config.write(run, tmp_path / "run.yaml")
    assert kinds.read(tmp_path / "run.yaml") == run


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean .*animals/vae"):
        kinds.preset("animal/vae")
