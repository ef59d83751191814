"""REPA-E: which loss reaches which weights, in which mode, and what is exported."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from tiny_ddt import LABELS, LATENT, SMALL, awake
from tiny_vae import write_vae
from torch import nn
from torch.testing import assert_close

from nanogen import rng
from nanogen.errors import ConfigError
from nanogen.fingerprint import digest_of_module
from nanogen.objectives.repa import Projector
from nanogen.stage1.augment import Augmentation
from nanogen.stage1.discriminators import PatchDiscriminator
from nanogen.stage1.latent_norm import LatentNorm
from nanogen.stage1.repa_e import (
    AlignedDiffusion,
    RepaE,
    Rules,
    Subject,
    misalignment,
)
from nanogen.stage1.repa_e_step import RepaEStep
from nanogen.stage1.tuned_vae import DiffusersVae, export
from nanogen.tokenizers.vae import VaeConfig
from nanogen.train.adamw import AdamWConfig
from nanogen.types import LabelCondition, Wiring

pytest.importorskip("diffusers")

KEYS = torch.tensor([3, 4, 5])
WIDTH = 12
"""of the encoder that is aligned with"""
SEED = 7


def distance(images, others):
    """A perceptual loss: none is needed to see where its gradient goes."""
    return (images - others).square().flatten(1).mean(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vae(tmp_path_factory.mktemp("vae") / "tiny", "f8d4", scaling_factor=0.5)


@pytest.fixture
def model(folder):
    """All networks, tiny: a VAE of diffusers from a folder, 64 px -> 4 x 8 x 8 latents."""
    files = VaeConfig(model=str(folder)).files()
    torch.manual_seed(1)
    norm = LatentNorm(4)
    norm.start(shift=0.1, scale=0.5)
    backbone = awake(SMALL.build(LATENT, LABELS, Wiring()))
    diffusion = AlignedDiffusion(norm, backbone, Projector(32, 16, WIDTH), block=1)
    return RepaE(
        DiffusersVae(files.network(), files.kind),
        diffusion.train(),
        PatchDiscriminator(channels=4, layers=2),
        distance,
        Rules(),
        SEED,
    )


@pytest.fixture
def subject():
    generator = torch.Generator().manual_seed(2)
    return Subject(
        2 * torch.rand(3, 3, 64, 64, generator=generator) - 1,
        KEYS,
        torch.randn(3, 16, WIDTH, generator=generator),
        LabelCondition(torch.tensor([1, 2, 3])),
        LabelCondition(torch.tensor([1, 10, 3])),
    )


def reached(module):
    """Names of parameters that received a gradient other than 0."""
    return {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def ruled(model, **rules):
    """The same networks by other rules."""
    return dataclasses.replace(model, rules=Rules(**rules))


def test_alignment_reaches_the_vae_through_a_transformer_that_is_left_alone(model, subject):
    before = digest_of_module(model.diffusion)
    losses, _ = model.vae_losses(subject)
    losses.parts["alignment"].sum().backward()
    found = reached(model.vae)
    assert any(name.startswith("network.encoder.conv_in") for name in found)
    assert not any(name.startswith("network.decoder") for name in found)
    assert not any(p.grad is not None for p in model.diffusion.parameters())
    assert not any(p.grad is not None for p in model.discriminator.parameters())
    assert digest_of_module(model.diffusion) == before, "running statistics have moved"
    assert all(module.training for module in model.diffusion.modules())
    assert all(
        p.requires_grad
        for n, p in model.diffusion.named_parameters()
        if n != "backbone.t_embedder.W"
    )


def test_the_whole_loss_of_the_vae_reaches_the_vae_alone(model, subject):
    losses, _ = model.vae_losses(subject)
    losses.total().sum().backward()
    assert reached(model.vae) == {n for n, _ in model.vae.named_parameters()}
    assert not reached(model.diffusion) and not reached(model.discriminator)


def test_the_diffusion_loss_never_reaches_the_vae(model, subject):
    _, drawn = model.vae_losses(subject)
    before = model.diffusion.norm.running_mean.clone()
    losses = model.diffusion_losses(subject, drawn)
    losses.total().sum().backward()
    assert not any(p.grad is not None for p in model.vae.parameters())
    assert not any(p.grad is not None for p in model.discriminator.parameters())
    trained = {n for n, p in model.diffusion.named_parameters() if p.requires_grad}
    missed = trained - reached(model.diffusion)
    assert not missed, missed
    assert not torch.equal(model.diffusion.norm.running_mean, before)


def test_the_discriminator_sees_detached_images(model, subject):
    _, drawn = model.vae_losses(subject)
    model.discriminator_losses(subject, drawn).total().sum().backward()
    assert reached(model.discriminator)
    assert not reached(model.vae) and not reached(model.diffusion)


class Spy(nn.Module):
    """A backbone that writes down what it is given, and predicts nought."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.gain = nn.Parameter(torch.ones(()))

    def features(self, state, t, condition, want):
        self.calls.append(("features", state["image"], t, condition.ids, self.training))
        return {"block1": state["image"].flatten(2).mT * self.gain}

    def forward(self, state, t, condition, *, want):
        from nanogen.types import Prediction

        self.calls.append(("forward", state["image"], t, condition.ids, self.training))
        image = state["image"]
        return Prediction({"image": 0 * image}, {"block1": image.flatten(2).mT * self.gain})


def test_both_passes_share_times_and_noise_but_not_statistics(model, subject):
    spy = Spy()
    model.diffusion.backbone, model.diffusion.projector = spy, nn.Identity()
    norm = model.diffusion.norm
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    wide = Subject(subject.images, KEYS, torch.randn(3, 64, 4), subject.condition, subject.dropped)
    _, drawn = model.vae_losses(wide)
    losses = model.diffusion_losses(wide, drawn)
    (kind1, x1, t1, ids1, training1), (kind2, x2, t2, ids2, training2) = spy.calls
    assert (kind1, training1, kind2, training2) == ("features", False, "forward", True)
    assert ids1.tolist() == [1, 2, 3] and ids2.tolist() == [1, 10, 3], (
        "dropout only where it trains"
    )
    t = rng.uniform(SEED, "time", KEYS, 1)[:, 0]
    assert torch.equal(t1, t) and torch.equal(t2, t)
    noise = rng.normal(SEED, "noise/image", KEYS, (4, 8, 8))
    z, t = drawn.raw, t[:, None, None, None]
    running = (z - mean[:, None, None]) / (variance[:, None, None] + 1e-4).sqrt()
    assert_close(x1.detach(), (1 - t) * running + t * noise)
    own = z.transpose(0, 1).flatten(1)
    batch = (z - own.mean(1)[:, None, None]) / (
        own.var(1, correction=0)[:, None, None] + 1e-4
    ).sqrt()
    assert_close(x2, (1 - t) * batch + t * noise)
    # The prediction is nought: the loss is the mean square of the velocity.
    assert_close(losses.parts["flow"], (noise - batch).square().flatten(1).mean(1))


def test_blocks_after_the_aligned_one_do_not_run_for_the_vae(model, subject):
    ran = []
    for number, block in enumerate(model.diffusion.backbone.blocks):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    model.vae_losses(subject)
    assert ran == [0]


def test_features_alone_are_those_of_the_whole_pass(model):
    state, t = {"image": torch.randn(3, 4, 8, 8)}, torch.rand(3)
    condition = LabelCondition(torch.tensor([1, 2, 3]))
    backbone = model.diffusion.backbone
    whole = backbone(state, t, condition, want=("block1", "block2")).features
    alone = backbone.features(state, t, condition, ("block1", "block2"))
    assert alone.keys() == whole.keys()
    assert all(torch.equal(alone[name], whole[name]) for name in alone)
    with pytest.raises(ConfigError, match="block1 to block2"):
        backbone.features(state, t, condition, ("block3",))


def test_losses_of_the_vae_by_hand(model, subject):
    losses, drawn = model.vae_losses(subject)
    network = model.vae.network
    with torch.no_grad():
        mean, log_variance = network.quant_conv(network.encoder(subject.images)).chunk(2, 1)
        noise = rng.normal(SEED, "posterior", KEYS, (4, 8, 8))
        raw = mean + log_variance.exp().sqrt() * noise
        out = network.decoder(network.post_quant_conv(raw))
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, (log_variance / 2).exp()),
            torch.distributions.Normal(0, 1),
        )
    assert_close(drawn.raw, raw)
    assert not drawn.raw.requires_grad and not drawn.reconstruction.requires_grad
    assert_close(losses.parts["l1"], (out - subject.images).abs().mean((1, 2, 3)))
    assert_close(losses.parts["kl"], kl.sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
    assert_close(losses.parts["perceptual"], ((out - subject.images) / 2).square().mean((1, 2, 3)))
    assert losses.weights == {
        "l1": 1.0,
        "kl": 1e-6,
        "perceptual": 1.0,
        "adversarial": 0.1,
        "alignment": 1.5,
    }


def test_the_authors_perceptual_range_is_a_choice(model, subject):
    """Scaled to [-1, 1] twice, a difference is twice as large."""
    plain, _ = model.vae_losses(subject)
    doubled, _ = ruled(model, doubled_range=True).vae_losses(subject)
    assert_close(doubled.parts["perceptual"], 4 * plain.parts["perceptual"])


def test_other_games(model, subject):
    """The loss is the one named, on images augmented by draws of their own."""
    _, drawn = model.vae_losses(subject)
    hinge = model.discriminator_losses(subject, drawn).parts["discriminator"]
    other = ruled(model, discriminator_loss="vanilla")
    vanilla = other.discriminator_losses(subject, drawn).parts["discriminator"]
    # At logits near 0 the hinge is 1 and the cross-entropy ln 2.
    assert (vanilla - hinge * math.log(2)).abs().max() < 0.1 and vanilla.max() < hinge.min()
    moved = ruled(model, augmentation=Augmentation())
    assert not torch.equal(moved.discriminator_losses(subject, drawn).parts["discriminator"], hinge)


def test_bfloat16_lowers_the_networks_and_not_the_losses(model, subject):
    exact, _ = model.vae_losses(subject)
    low = ruled(model, bfloat16=True)
    losses, drawn = low.vae_losses(subject)
    losses.total().sum().backward()
    assert {part.dtype for part in losses.parts.values()} == {torch.float32}
    assert drawn.raw.dtype == drawn.reconstruction.dtype == torch.float32
    gap = (losses.parts["l1"] - exact.parts["l1"]).abs().max()
    assert 0 < gap < 0.05
    assert low.diffusion_losses(subject, drawn).total().dtype == torch.float32


def test_misalignment_is_minus_the_mean_cosine():
    a = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    b = torch.tensor([[[6.0, 8.0], [1.0, 1.0]]])
    assert misalignment(a, b).item() == pytest.approx(-(1 + 0.5**0.5) / 2)
    with pytest.raises(ConfigError, match=r"\[2, 2\] cannot be aligned with .*\[3, 2\]"):
        misalignment(a, torch.zeros(1, 3, 2))


def stepper(model):
    adamw = AdamWConfig(lr=1e-3, betas=(0.9, 0.999))
    return RepaEStep(model, dict.fromkeys(("vae", "discriminator", "diffusion"), adamw), clip=1.0)


def finite(values):
    return all(map(math.isfinite, values.values()))


def test_a_step_updates_all(model, subject):
    step = stepper(model)
    digests = {name: digest_of_module(module) for name, module in step.modules.items()}
    values = step(subject, 3, finite)
    assert list(step.modules) == ["vae", "discriminator", "diffusion"]
    assert all(digest_of_module(m) != digests[name] for name, m in step.modules.items())
    weights = {"l1": 1, "kl": 1e-6, "perceptual": 1, "adversarial": 0.1, "alignment": 1.5}
    weights |= {"discriminator": 1, "flow": 1, "alignment_diffusion": 0.5}
    assert values["loss"] == pytest.approx(sum(w * values[n] for n, w in weights.items()), rel=1e-5)


def test_averages_follow_weights_and_the_statistics_of_the_norm(model):
    names = set(model.diffusion.averaged())
    assert {"norm.running_mean", "norm.running_var"} <= names
    assert {n for n, p in model.diffusion.named_parameters() if p.requires_grad} <= names
    assert not any("num_batches_tracked" in name for name in names)


def test_order_of_the_updates(model, subject):
    """The VAE learns from the networks before their updates, the rest from its old latents."""
    untouched = copy.deepcopy(model)
    values = stepper(model)(subject, 3, finite)
    losses, drawn = untouched.vae_losses(subject)
    assert values["alignment"] == pytest.approx(losses.parts["alignment"].mean().item(), rel=1e-5)
    later = untouched.diffusion_losses(subject, drawn)
    assert values["flow"] == pytest.approx(later.parts["flow"].mean().item(), rel=1e-5)


def test_each_update_is_clipped_alone(model, subject):
    step, given = stepper(model), {}

    def watch(name):
        def hook(optimiser, *_):
            grads = [p.grad for g in optimiser.param_groups for p in g["params"]]
            given[name] = torch.stack([g.norm() for g in grads if g is not None]).norm().item()

        return hook

    for name, optimiser in step.optimisers.items():
        optimiser.register_step_pre_hook(watch(name))
    step.clip = 1e-3
    values = step(subject, 3, finite)
    for name in ("vae", "discriminator", "diffusion"):
        assert values[f"gradient_norm_{name}"] > 1e-3
        assert given[name] == pytest.approx(1e-3, rel=1e-3)


def test_a_step_that_is_not_finite_changes_nothing(model, subject):
    step = stepper(model)
    step(subject, 3, finite)
    digests = {name: digest_of_module(module) for name, module in step.modules.items()}
    broken = copy.copy(subject.images)
    broken[0, 0, 0, 0] = float("nan")
    values = step(dataclasses.replace(subject, images=broken), 3, finite)
    assert values["l1"] != values["l1"]
    assert "flow" not in values
    changed = {name for name, m in step.modules.items() if digest_of_module(m) != digests[name]}
    # The discriminator looks before the loss is known; its running statistics are never used.
    assert changed <= {"discriminator"}


def test_training_aligns_the_latents(model, subject):
    """With the transformer fixed, latents alone can raise the similarity."""
    optimiser = torch.optim.Adam(model.vae.parameters(), lr=3e-3)
    found = []
    for _ in range(15):
        losses, _ = model.vae_losses(subject)
        loss = losses.parts["alignment"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert found[-1] < found[0] - 0.05


def test_the_export_is_a_tokenizer_that_normalises_as_the_norm_does(model, subject, tmp_path):
    step = stepper(model)
    for _ in range(2):
        step(subject, 3, finite)
    averaged = model.diffusion.norm.eval()
    mean, variance = averaged.running_mean, averaged.running_var
    for _ in range(2):
        export(model.vae, tmp_path / "tuned", averaged.shift, averaged.deviation)
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["latents_mean"] == mean.tolist()
    assert config["latents_std"] == variance.sqrt().tolist()
    tokenizer = VaeConfig(model=str(tmp_path / "tuned")).build(64)
    images = (subject.images + 1) / 2
    with torch.no_grad():
        raw, _ = model.vae.moments(subject.images)
        wanted = averaged(raw)
    # Without eps, exactly; with it, to a relative eps / 2 var.
    deviation = variance.sqrt()[:, None, None]
    assert_close(tokenizer.encode(images), (raw - mean[:, None, None]) / deviation)
    relative = (1e-4 / 2 / variance).max().item()
    assert_close(tokenizer.encode(images), wanted, rtol=1.1 * relative + 1e-5, atol=1e-5)
    decoded = model.vae.reconstruct(raw)
    assert_close(tokenizer.decode(tokenizer.encode(images)), ((decoded + 1) / 2).clamp(0, 1))
    assert list((tmp_path).iterdir()) == [tmp_path / "tuned"]
