"""Training a tokenizer: it learns, its game is played by the rules, it resumes, it is exported."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
from dataclasses import dataclass, field

import chz
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_same_run, checkpoints, final, ranks, unclocked, unlike
from torch import nn

from nanogen import config, dist, run_folder
from nanogen.bench import record
from nanogen.data.base import Sample
from nanogen.data.loader import batches
from nanogen.encoders.vision import VisionEncoder, VisionFeatures
from nanogen.errors import CheckpointError, ConfigError
from nanogen.fingerprint import digest_of_module
from nanogen.stage1 import hooks, kinds, recipes
from nanogen.stage1 import trainer as stage1_trainer
from nanogen.stage1.games import Game, PatchGame
from nanogen.stage1.rae import Rae
from nanogen.stage1.run import Reconstruction, TokenizerParts, TokenizerRun, build
from nanogen.stage1.trainer import TokenizerTrainer
from nanogen.tokenizers.rae_decoder import DecoderConfig, RaeDecoder
from nanogen.train import checkpoint
from nanogen.train.gradients import trained as trained_parameters
from nanogen.train.loop import train
from nanogen.train.optim import AdamWConfig
from nanogen.types import to_float

pytest.importorskip("diffusers")

TINY = (
    "train.images=64",
    "train.batch=8",
    "train.log_every=24",
    "train.save_every=16",
    "train.sample_every=32",
    "schedule.warmup=16",
    "statistics=16",
    "evaluation.samples=20",
    "machine.device=cpu",
)
VAE = (
    "autoencoder.widths=8,8,16",
    "autoencoder.groups=4",
    "discriminator=patch",
    "discriminator.channels=4",
    "discriminator.layers=2",
    "discriminator.learns_from=16",
    "discriminator.judges_from=32",
)
RAE = (
    "autoencoder.width=32",
    "autoencoder.depth=1",
    "autoencoder.heads=2",
    "autoencoder.hidden=32",
    "perceptual=features",
    "discriminator=patch",
    "discriminator.channels=4",
    "discriminator.layers=2",
    "discriminator.schedule_clock=updates",
    "discriminator.learns_from=24",
    "discriminator.judges_from=40",
)


def tiny(preset: str = "animals/vae", *more: str) -> TokenizerRun:
    own = VAE if preset.endswith("vae") else RAE
    return config.override(recipes.preset(preset), [*TINY, *own, *more])


def trained(run: TokenizerRun, folder, stop_at: int | None = None) -> TokenizerTrainer:
    """Train as the command does; `stop_at` is when SIGTERM would have come."""
    parts = build(run)
    due = hooks.hooks(parts, folder)
    run_folder.prepare(run, folder, fresh=False)
    trainer = TokenizerTrainer(parts)
    with stopped(trainer, stop_at):
        train(trainer, folder, due)
    return trainer


@contextlib.contextmanager
def stopped(trainer: TokenizerTrainer, at: int | None):
    update = trainer.update

    def watched(stream):
        values = update(stream)
        if trainer.progress.seen + trainer.run.train.batch == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    trainer.update = watched
    yield


# What it learns: four images, a frozen encoder of random weights, a decoder of two blocks.


class Random(VisionEncoder):
    """4 x 4 px to 24 channels by a random matrix: enough of an image to give it back."""

    name, width, grid, fingerprint = "random", 24, 8, "random"

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.embed = nn.Conv2d(3, self.width, 4, 4)
        self.requires_grad_(False)
        self.train(False)

    def forward(self, images):
        tokens = self.embed(images * 2 - 1).flatten(2).transpose(1, 2)
        return VisionFeatures(nn.functional.layer_norm(tokens, (self.width,)))


@dataclass
class Four:
    """Four images of 32 px: gradients, a disc, stripes and blocks."""

    size: int = 32
    classes: tuple[str, ...] = ()
    captioned: bool = False
    fingerprint: str = "four"
    images: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
        disc = ((x - 0.5).square() + (y - 0.5).square() < 0.1).float()
        stripes = (torch.sin(12 * x) + 1) / 2
        blocks = ((x > 0.5) ^ (y > 0.25)).float()
        pictures = [(x, y, x * y), (disc, 1 - disc, x), (stripes, y, y), (blocks, x, 1 - blocks)]
        self.images = torch.stack([torch.stack(one) for one in pictures]).mul(255).byte()

    def count(self, split):
        return 4 if split == "train" else 0

    def read(self, split, index, draw):
        return Sample(self.images[index])

    def prompts(self):
        return ()


def four(game: PatchGame | None = None, *more: str) -> TokenizerParts:
    overrides = [
        "train.batch=4",
        "train.images=900",
        "optimiser.lr=3e-3",
        "schedule.warmup=40",
        "schedule.final=0.01",
        "evaluation.metrics=",
    ]
    run = config.override(recipes.preset("animals/rae"), [*overrides, *more])
    if game is not None:
        run = chz.replace(run, discriminator=game)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = RaeDecoder(DecoderConfig(24, 8, 4, width=64, depth=2, heads=4, hidden=128))
        built = None if game is None else game.build()
    autoencoder = Rae(Random(), decoder, noise=0.1, seed=0)
    task = Reconstruction(Four(), seed=0)
    return TokenizerParts(run, task, autoencoder, None, built, torch.device("cpu"))


def steps(trainer: TokenizerTrainer, count: int) -> list[dict[str, float]]:
    run = trainer.run.train
    stream = batches(trainer.task, trainer.progress.seen, run.batch, run.batch, 0)
    return [trainer.step(stream) for _ in range(count)]


def test_a_decoder_learns_four_images_and_its_encoder_stays():
    parts = four()
    encoder = digest_of_module(parts.autoencoder.encoder)
    trainer = TokenizerTrainer(parts)
    values = steps(trainer, 200)
    assert values[0]["l1"] > 5 * values[-1]["l1"], (values[0], values[-1])
    assert digest_of_module(parts.autoencoder.encoder) == encoder
    assert not any("encoder" in name for name in trainer.groups()["model"])


GAME = PatchGame(
    channels=4, layers=2, learns_from=8, judges_from=20, optimiser=AdamWConfig(lr=1e-3)
)


def test_a_game_is_played_from_its_moments_on():
    parts = four(GAME)
    assert parts.game is not None
    trainer = TokenizerTrainer(parts)
    before = digest_of_module(parts.game.discriminator)
    first = steps(trainer, 2)
    assert digest_of_module(parts.game.discriminator) == before
    second = steps(trainer, 3)
    assert digest_of_module(parts.game.discriminator) != before
    third = steps(trainer, 5)
    assert all(math.isfinite(v) for values in first + second + third for v in values.values())
    named = [("discriminator" in v, "adversarial" in v) for v in first + second + third]
    assert named == [(False, False)] * 2 + [(True, False)] * 3 + [(True, True)] * 5
    for values in third:
        total = values["l1"] + values["adversarial_weight"] * values["adversarial"]
        assert values["loss"] == pytest.approx(total, rel=1e-6)


class Watched(nn.Module):
    """Keeps what it is shown, and in which mode; its logits are the mean of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.shown: list[tuple[bool, bool, torch.Tensor]] = []

    def forward(self, images):
        self.shown.append((self.training, self.weight.requires_grad, images.detach().clone()))
        return self.weight * images.flatten(1).mean(1, keepdim=True)


def test_what_a_discriminator_is_shown():
    """In eval mode and held while the decoder plays; then 256 levels of what the updated decoder
    makes without noise, then the images.
    """
    rules = chz.replace(
        GAME,
        learns_from=0,
        judges_from=0,
        augmentation=chz.replace(GAME.augmentation, probability=0.0),
    )
    parts = four(rules)
    watched = Watched()
    trainer = TokenizerTrainer(chz_free(parts, Game(rules, watched)))
    steps(trainer, 1)
    (played, held, first), (learns, own, fake), (_, _, real) = watched.shown
    assert (played, held, learns, own) == (False, False, True, True)
    images = trainer.task.batch(torch.arange(4).numpy()).images
    torch.testing.assert_close(real, images * 2 - 1)
    autoencoder = parts.autoencoder
    with torch.no_grad():
        again = autoencoder.from_raw(autoencoder.raw(images))
    levels = (again.clamp(0, 1) * 255).round()
    torch.testing.assert_close(fake, levels / 255 * 2 - 1)
    assert (first - fake).abs().max() > 1e-3
    assert len(watched.shown) == 3


def chz_free(parts: TokenizerParts, game: Game) -> TokenizerParts:
    return TokenizerParts(
        parts.run, parts.task, parts.autoencoder, parts.distance, game, parts.device
    )


@pytest.mark.parametrize("side", ["autoencoder", "discriminator"])
def test_a_step_that_is_not_finite_changes_nothing_of_that_side(side):
    parts = four(chz.replace(GAME, learns_from=0, judges_from=0))
    trainer = TokenizerTrainer(parts)
    steps(trainer, 2)
    before = {name: {k: v.clone() for k, v in g.items()} for name, g in trainer.groups().items()}
    whole = trainer._losses if side == "autoencoder" else trainer._opposing_losses

    def poisoned(*given):
        made = whole(*given)
        parts = made[0] if side == "autoencoder" else made
        parts |= {name: value * math.nan for name, value in parts.items()}
        return made

    setattr(trainer, "_losses" if side == "autoencoder" else "_opposing_losses", poisoned)
    values = steps(trainer, 1)[0]
    assert trainer.progress.skipped == 1 and trainer.bad_in_a_row == 1
    # Without a good step of the autoencoder there is none of the discriminator.
    assert ("discriminator" in values) == (side == "discriminator")
    after = trainer.groups()
    for name in ("discriminator", "discriminator_optimiser"):
        assert unlike(before[name], dict(after[name])) == []
    kept = unlike(before["model"], dict(after["model"])) == []
    assert kept == (side == "autoencoder")


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


def exported(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "tokenizer").iterdir()}


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


def test_statistics_of_batches_are_the_same_on_every_process(tmp_path):
    """Batch normalisation sees other images on each: the running ones are shared."""

    def work() -> None:
        trainer = trained(tiny("animals/vae", "train.images=40"), tmp_path / "run")
        state = {n: v.contiguous() for n, v in trainer.groups()["discriminator"].items()}
        save_file(state, tmp_path / f"{dist.rank()}.safetensors")

    assert ranks(2, tmp_path / "store", work) == [0, 0]
    first, second = (tmp_path / f"{rank}.safetensors" for rank in (0, 1))
    assert first.read_bytes() == second.read_bytes()


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
