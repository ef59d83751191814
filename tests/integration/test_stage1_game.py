"""What a training of a tokenizer learns, and the rules that its game is played by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import chz
import pytest
import torch
from tiny import unlike
from torch import nn

from nanogen import config
from nanogen.data.base import Sample
from nanogen.data.loader import batches
from nanogen.encoders.vision import VisionEncoder, VisionFeatures
from nanogen.fingerprint import digest_of_module
from nanogen.stage1 import dino, recipes
from nanogen.stage1.discriminators import DinoDiscriminator
from nanogen.stage1.games import Game, PatchGame
from nanogen.stage1.rae import Rae
from nanogen.stage1.run import Reconstruction, TokenizerParts
from nanogen.stage1.trainer import TokenizerTrainer
from nanogen.tokenizers.rae_decoder import DecoderConfig, RaeDecoder
from nanogen.train.adamw import AdamWConfig


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


def test_an_export_that_fails_leaves_the_old_decoder(tmp_path, monkeypatch):
    parts, target = four(), tmp_path / "tokenizer"

    def export() -> None:
        parts.autoencoder.export(target, parts.task.source, 4, lambda: None)

    def files() -> dict[str, bytes]:
        assert list(tmp_path.iterdir()) == [target]
        return {path.name: path.read_bytes() for path in target.iterdir()}

    export()
    before = files()
    with torch.no_grad():
        parts.autoencoder.last.add_(1)
    with monkeypatch.context() as broken:

        def full(*_: object) -> None:
            raise OSError("no space left")

        broken.setattr("nanogen.tokenizers.rae_files.save_file", full)
        with pytest.raises(OSError, match="no space left"):
            export()
    assert files() == before
    export()
    after = files()
    assert after.keys() == before.keys() and after != before


def test_spectral_vectors_do_not_depend_on_how_a_batch_is_cut():
    """They take a step at each look at images: pieces of a batch count as one look."""
    found = []
    for micro in ("None", "1"):
        parts = four(None, f"machine.micro_batch={micro}")
        recipe = dino.DinoRecipe(width=24, heads=2, patch=8, depth=4, taps=(0, 1, 2, 3), side=32)
        torch.manual_seed(0)
        rules = chz.replace(GAME, learns_from=0, judges_from=0)
        rules = chz.replace(rules, optimiser=AdamWConfig(lr=0.0))
        module = DinoDiscriminator(dino.DinoTrunk(recipe))
        trainer = TokenizerTrainer(chz_free(parts, Game(rules, module)))
        steps(trainer, 2)
        found.append({name: buffer.clone() for name, buffer in module.named_buffers()})
    assert found[0].keys() and unlike(*found) == []
