"""REPA-E by its command: resumed bit for bit, and what it leaves is a tokenizer."""

import json

import chz
import pytest
import torch
from safetensors.torch import load_file
from tiny import checkpoints, command, final, pictures, unclocked, unlike
from tiny_vae import DOWN, UP, write_vae

from nanogen import config, dist, run_folder
from nanogen.bench import record
from nanogen.conditioners.labels import Labels
from nanogen.data.loader import batches
from nanogen.errors import ConfigError
from nanogen.stage1 import hooks, kinds
from nanogen.stage1 import run as alone
from nanogen.stage1.pretrained_vae import PretrainedVaeConfig
from nanogen.stage1.repa_e_run import RepaERun, build
from nanogen.tokenizers.embedded import folder_of
from nanogen.tokenizers.pixels import PixelsConfig
from nanogen.tokenizers.vae import VaeConfig
from nanogen.train.loop import train

pytest.importorskip("diffusers")

TINY = [
    "backbone.depth=2",
    "backbone.width=32",
    "backbone.heads=2",
    "backbone.decoder_width=32",
    "backbone.decoder_heads=2",
    "alignment.block=1",
    "alignment.hidden=16",
    "discriminator.channels=4",
    "train.images=32",
    "train.batch=8",
    "train.log_every=16",
    "train.save_every=16",
    "train.sample_every=32",
    "train.keep=10",
    "evaluation.samples=20",
    "machine.device=cpu",
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A random VAE of three levels: 28 px -> 4 x 7 x 7."""
    levels = {"down_block_types": [DOWN] * 3, "up_block_types": [UP] * 3}
    folder = tmp_path_factory.mktemp("start") / "vae"
    return write_vae(folder, "f8d4", **levels, block_out_channels=[8, 8, 8], scaling_factor=0.5)


def place(start) -> tuple[str, ...]:
    fields = (f"model={start}", "patch=1")
    return ("autoencoder.start=vae", *(f"autoencoder.start.{field}" for field in fields))


def tiny(start, *overrides) -> RepaERun:
    arguments = [*TINY, *place(start), *overrides]
    return config.override(kinds.preset("animals/vae-e2e"), arguments)


def trained(run, folder, stop_at=None):
    """Train as the command does, in this process; `stop_at` ends it as the time limit would."""
    parts = build(run)
    run_folder.prepare(run, folder, fresh=False)
    trainer = kinds.kind_of(run).trainer(parts)
    if stop_at is not None:
        whole = trainer.update

        def update(stream):
            values = whole(stream)
            if trainer.progress.seen + run.train.batch >= stop_at:
                raise KeyboardInterrupt
            return values

        trainer.update = update
    try:
        train(trainer, folder, hooks.hooks(parts, folder))
    except KeyboardInterrupt:
        pass
    return trainer


@pytest.fixture(scope="module")
def plain(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return trained(tiny(start), folder), folder


def test_resume_is_bit_equal(start, plain, tmp_path):
    """Killed in its third step of four, and continued from the checkpoint after the second."""
    trained(tiny(start), tmp_path, stop_at=24)
    assert checkpoints(tmp_path) == [16]
    trained(tiny(start), tmp_path)
    _, folder = plain
    assert checkpoints(tmp_path) == checkpoints(folder) == [16, 32]
    assert unlike(final(folder), final(tmp_path)) == []
    assert unclocked(folder) == unclocked(tmp_path)
    assert pictures(folder) == pictures(tmp_path)
    mine, theirs = (
        load_file(f / "tokenizer/diffusion_pytorch_model.safetensors") for f in (folder, tmp_path)
    )
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_everything_that_learns_has_moved(start, plain):
    trainer, folder = plain
    moved, first = final(folder), build(tiny(start)).model
    for name, module in {
        "vae": first.vae,
        "discriminator": first.discriminator,
        "diffusion": first.diffusion,
    }.items():
        # At logits within 1 the hinge pulls the last bias both ways alike.
        learn = {key: p for key, p in module.named_parameters() if key != "main.8.bias"}
        for key, p in learn.items():
            assert torch.equal(p, moved[f"{name}/{key}"]) != p.requires_grad, (name, key)
    assert moved["diffusion/norm.num_batches_tracked"] == 4
    assert {line["step"] for line in unclocked(folder)} == {2, 4}
    assert all(line["skipped"] == 0 for line in unclocked(folder))


def test_what_is_exported_is_normalised_by_the_averaged_statistics(plain):
    trainer, folder = plain
    mean, variance = (trainer.ema.values[f"norm.running_{name}"] for name in ("mean", "var"))
    assert not torch.equal(mean, trainer.parts.model.diffusion.norm.running_mean)
    tokenizer = VaeConfig(model=str(folder / "tokenizer"), patch=1).build(28)
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, _ = trainer.parts.model.vae.moments(2 * images - 1)
    deviation = variance.sqrt()[:, None, None]
    torch.testing.assert_close(tokenizer.encode(images), (raw - mean[:, None, None]) / deviation)
    origin = json.loads((folder / "tokenizer/training.json").read_text())
    assert (origin["seen"], origin["weights"]) == (32, "raw")
    records = record.read(folder / "records")
    assert {r.metric for r in records} == {"psnr", "ssim"} and {r.weights for r in records} == {
        "raw"
    }


def test_the_norm_starts_as_the_tokenizer_normalises(start):
    norm = build(tiny(start)).model.diffusion.norm
    assert torch.equal(norm.running_mean, torch.zeros(4))
    torch.testing.assert_close(norm.running_var, torch.full((4,), 1 / 0.5**2))


def test_processes_on_cpus_need_a_norm_of_samples(start, monkeypatch):
    build(tiny(start))
    monkeypatch.setattr(dist, "world", lambda: 2)
    with pytest.raises(ConfigError, match=r"discriminator.norm=batch.*discriminator.norm=sample"):
        build(tiny(start))
    build(tiny(start, "discriminator.norm=sample"))


def test_dropout_leaves_the_other_condition_alone(start):
    run = tiny(start, "train.condition_dropout=0.5", "train.images=256", "train.batch=256")
    trainer = kinds.kind_of(run).trainer(build(run))
    subject = trainer.subject(next(batches(trainer.task, 0, 256, 256, 0)))
    null = (subject.dropped.ids == 10).float().mean().item()
    assert 0.4 < null < 0.6 and not (subject.condition.ids == 10).any()
    kept = subject.dropped.ids != 10
    assert torch.equal(subject.dropped.ids[kept], subject.condition.ids[kept])
    assert subject.images.amin() == -1 and subject.images.amax() == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("machine.micro_batch=4", "statistics of whole batches"),
        ("machine.compile=True", "no effect"),
        ("discriminator.adaptive=True", "discriminator.adaptive=False"),
        ("discriminator.judges_from=8", "discriminator.judges_from=0"),
        ("perceptual_range=doubled", "perceptual=none"),
        ("perceptual_range=other", "unit"),
        ("alignment.block=3", "has 2 blocks"),
        ("alignment.vae=0", "above 0"),
        ("train.raw_precision=bf16", "train.raw_precision"),
        ("autoencoder.start.posterior=sample", "autoencoder.start.posterior=sample has no effect"),
    ],
)
def test_values_without_effect_are_refused(start, override, message):
    with pytest.raises(ConfigError, match=message):
        run = tiny(start, override)
        build(run)


@pytest.mark.parametrize(
    ("field", "value"), [("posterior", "sample"), ("shift", "0.5"), ("scale", "2.0")]
)
def test_a_vae_trained_alone_is_not_normalised(start, field, value):
    given = ["autoencoder=pretrained-vae", *place(start)]
    run = config.override(kinds.preset("animals/vae"), [*given, "machine.device=cpu"])
    alone.build(run)
    named = f"autoencoder.start.{field}={value} has no effect"
    with pytest.raises(ConfigError, match=named):
        alone.build(config.override(run, [f"autoencoder.start.{field}={value}"]))


def test_the_preset_starts_from_the_vae_in_the_package():
    run = config.override(kinds.preset("animals/vae-e2e"), [*TINY, "machine.device=cpu"])
    parts = build(run)
    embedded = VaeConfig(model=str(folder_of("vae", 28)), patch=1).build(28)
    weights = parts.model.vae.network.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in embedded.network.state_dict().items())
    norm = parts.model.diffusion.norm
    torch.testing.assert_close(norm.running_mean, embedded.shift.flatten().float())
    made = run.autoencoder.tokenizer(folder_of("vae", 28), 28).build(28)
    assert made.spec == parts.autoencoder.spec


def test_parts_that_do_not_fit_are_refused(start, monkeypatch):
    with pytest.raises(ConfigError, match=r"autoencoder.start: tokenizer.model=/nowhere"):
        build(tiny("/nowhere"))
    pixels = PretrainedVaeConfig(start=PixelsConfig(patch=4))
    with pytest.raises(ConfigError, match="no VAE of diffusers"):
        build(chz.replace(tiny(start), autoencoder=pixels))
    monkeypatch.setattr(Labels, "trainable", True)
    with pytest.raises(ConfigError, match="labels or hf-text"):
        build(tiny(start))


def test_encoders_of_another_grid_are_refused(start):
    with pytest.raises(ConfigError, match="49 tokens, but the latents are cut into 1;"):
        build(tiny(start, "autoencoder.start.patch=7"))


def test_presets_have_the_published_numbers():
    run = kinds.preset("repa-e/sdvae")
    assert run.alignment.encoder == "dinov2-vit-b[woreg,norm]"
    assert (run.alignment.block, run.alignment.hidden) == (8, 2048)
    assert (run.alignment.vae, run.alignment.diffusion) == (1.5, 0.5)
    assert (run.train.images, run.train.batch, run.train.ema) == (102_400_000, 256, 0.9999)
    assert (run.train.clip, run.train.condition_dropout) == (1.0, 0.1)
    assert (run.autoencoder.kl, run.perceptual.weight, run.discriminator.weight) == (1e-6, 1, 0.1)
    for optimiser in (run.optimiser, run.discriminator.optimiser):
        assert (optimiser.lr, optimiser.betas, optimiser.weight_decay) == (1e-4, (0.9, 0.999), 0)
    assert (run.discriminator.channels, run.discriminator.layers) == (64, 3)
    assert all(run.schedule.factor(seen, 256, 102_400_000) == 1 for seen in (0, 10**7, 10**8))


@pytest.mark.parametrize("name", ["animals/vae-e2e", "repa-e/sdvae", "repa-e/vavae"])
def test_a_run_is_read_back_as_it_was_written(tmp_path, name):
    run = kinds.preset(name)
    config.write(run, tmp_path / "run.yaml")
    assert kinds.read(tmp_path / "run.yaml") == run


@pytest.mark.slow
def test_the_command(start, tmp_path):
    arguments = ["tokenizer", "train", "animals/vae-e2e", *TINY]
    arguments += [*place(start), "--out", str(tmp_path / "run")]
    done = command(arguments)
    assert done.returncode == 0, done.stderr
    assert f"tokenizer.model={tmp_path / 'run' / 'tokenizer'}" in done.stdout
    again = command(arguments)
    assert again.returncode == 0, again.stderr
