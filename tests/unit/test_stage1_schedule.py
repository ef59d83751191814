"""The published schedule of a decoder and of its discriminator, number by number."""

from __future__ import annotations

import chz
import pytest
import torch

from nanogen import config
from nanogen.errors import ConfigError
from nanogen.model import parameter_count
from nanogen.stage1 import recipes
from nanogen.stage1.games import GameFields, PatchGame
from nanogen.tokenizers.rae_decoder import DecoderConfig, RaeDecoder

EPOCH = recipes.EPOCH


@pytest.fixture(scope="module")
def run():
    return recipes.preset("imagenet/rae-dinov2-vit-b")


def decoder_rate(run, epoch: float) -> float:
    factor = run.schedule.factor(round(epoch * EPOCH), run.train.batch, run.train.images)
    return run.optimiser.lr * factor


def discriminator_rate(run, epoch: float) -> float:
    game: GameFields = run.discriminator
    seen = round(epoch * EPOCH)
    return game.optimiser.lr * game.factor(run.schedule, seen, run.train.batch, run.train.images)


def test_length(run):
    assert run.train.images // run.train.batch == 40_032
    assert EPOCH // run.train.batch == 2_502 and EPOCH % run.train.batch == 0
    assert run.discriminator.learns_from == 6 * EPOCH
    assert run.discriminator.judges_from == 8 * EPOCH


@pytest.mark.parametrize(
    ("epoch", "rate"), [(1, 2e-4), (6, 1.55e-4), (8, 1.194e-4), (16, 2e-5)], ids=str
)
def test_rate_of_the_decoder(run, epoch, rate):
    assert decoder_rate(run, epoch) == pytest.approx(rate, rel=1e-3)


def test_warm_up_counts_from_one(run):
    """(k + 1) / W of the rate in step k."""
    assert decoder_rate(run, 0) == pytest.approx(2e-4 / 2_502)
    assert decoder_rate(run, 1 - 1 / 2_502) == pytest.approx(2e-4)


def test_the_discriminator_warms_up_late_and_ends_high(run):
    assert discriminator_rate(run, 6) == pytest.approx(2e-4 / 2_502)
    assert discriminator_rate(run, 7) == pytest.approx(2e-4)
    assert discriminator_rate(run, 16) == pytest.approx(8.22e-5, rel=1e-3)


def test_or_it_follows_the_run(run):
    game = chz.replace(run.discriminator, schedule_clock="run")
    other = chz.replace(run, discriminator=game)
    for epoch in (6, 8, 16):
        assert discriminator_rate(other, epoch) == pytest.approx(decoder_rate(run, epoch))


def test_updates_are_counted_from_the_first_whole_step(run):
    """A step that begins before `learns_from` does not learn: the clock starts at the next."""
    game = PatchGame(learns_from=100, judges_from=100, schedule_clock="updates")
    schedule = chz.replace(run.schedule, warmup=64)
    assert game.factor(schedule, 128, 32, run.train.images) == schedule.factor(0, 32, 10**9)
    game = PatchGame(learns_from=96, judges_from=96, schedule_clock="updates")
    assert game.factor(schedule, 96, 32, run.train.images) == schedule.factor(0, 32, 10**9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["discriminator.judges_from=10", "discriminator.learns_from=20"], "must not come before"),
        (["discriminator.weight=0"], "use discriminator=none"),
        (["discriminator.loss=wgan"], "discriminator.loss=wgan does not fit"),
        (
            ["discriminator.schedule_clock=epochs"],
            "discriminator.schedule_clock=epochs does not fit",
        ),
        (["discriminator.norm=layer"], "discriminator.norm=layer does not fit"),
        (["discriminator.layers=0"], "must be at least 1"),
    ],
    ids=str,
)
def test_games_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        config.override(recipes.preset("animals/vae"), ["discriminator=patch", *given])


def test_the_decoder_is_of_the_published_size(run):
    fields = {
        name: getattr(run.autoencoder, name) for name in ("width", "depth", "heads", "hidden")
    }
    with torch.device("meta"):
        decoder = RaeDecoder(DecoderConfig(channels=768, grid=16, patch=16, **fields))
    assert parameter_count(decoder) == 415_352_704
