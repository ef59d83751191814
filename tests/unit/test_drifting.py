"""The drifting objective: its groups, its guidance, its loss, its one step, and toys that it
learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from nanogen import config, recipes, rng
from nanogen.backbones.ddt import DdtConfig
from nanogen.conditioners.labels import Labels
from nanogen.data.loader import check_uncut
from nanogen.encoders.teachers import Teachers
from nanogen.errors import ConfigError
from nanogen.objectives.base import Facts, Inputs, Term
from nanogen.objectives.drift_field import drift
from nanogen.objectives.drift_group import NO_CONDITION, kinds_of, pull
from nanogen.objectives.drifting import Drifting, DriftingConfig, patches
from nanogen.run import check
from nanogen.sampling.generate import Sampler
from nanogen.sampling.guidance import Guidance
from nanogen.sampling.settings import Sampling
from nanogen.tokenizers.pixels import Pixels
from nanogen.types import (
    Batch,
    ConditionSpec,
    LabelCondition,
    LatentSpec,
    Prediction,
    Request,
    TextCondition,
)

LATENT = LatentSpec(3, 4, 6, 2)
CLASSES = 3
ENCODER = "animals-vit"


def facts(latent: LatentSpec = LATENT, size: int = 6) -> Facts:
    return Facts(5, latent, size, 16, decode=lambda x: (x + 1) / 2, teachers=Teachers(size))


def drifting(latent: LatentSpec = LATENT, size: int = 6, **fields: object) -> Drifting:
    return DriftingConfig(**fields).build(facts(latent, size), {})


def inputs(count: int, latent: LatentSpec = LATENT, first: int = 0) -> Inputs:
    """Samples of three classes in turn, every fifth without a condition."""
    keys = torch.arange(first, first + count)
    data = rng.normal(0, "data", keys, (latent.channels, latent.height, latent.width))
    return given(keys, data, keys % CLASSES, keys % 5 != 4)


def given(keys: Tensor, latents: Tensor, labels: Tensor, kept: Tensor, classes: int = CLASSES):
    null = torch.full_like(labels, classes)
    condition = LabelCondition(torch.where(kept, labels, null))
    return Inputs(Batch(None, keys, labels=labels), latents, condition, kept, LabelCondition(null))


class Generator:
    """Not a network: the noise, scaled by class and by alpha. It remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, LabelCondition, dict | None]] = []

    def __call__(self, state, t, condition, *, interval=None, scalars=None, want=()) -> Prediction:
        self.calls.append((state["image"], t, condition, scalars))
        size = 1 + 0.1 * condition.ids.float() + (scalars["guidance"] if scalars else 0)
        return Prediction({"image": state["image"] * size[:, None, None, None]})


class TestGroups:
    def test_one_group_does_not_see_another(self) -> None:
        objective, one = drifting(group=4), Generator()
        together = objective(one, inputs(12)).parts["drift"]
        alone = [objective(one, inputs(4, first=n)).parts["drift"] for n in (0, 4, 8)]
        torch.testing.assert_close(torch.cat(alone), together, atol=1e-6, rtol=1e-5)

    def test_all_of_a_group_see_each_other(self) -> None:
        objective, changed = drifting(group=4), inputs(8)
        before = objective(Generator(), inputs(8)).parts["drift"]
        changed.latents[1] += 1
        after = objective(Generator(), changed).parts["drift"]
        assert torch.equal(after[4:], before[4:])
        assert (after[:4] != before[:4]).all()

    def test_a_cut_group_is_a_defect(self) -> None:
        with pytest.raises(RuntimeError, match="cut a group of 4"):
            drifting(group=4)(Generator(), inputs(6))

    def test_it_says_what_must_stay_together(self) -> None:
        assert drifting(group=4).coupled == 4

    @pytest.mark.parametrize(
        ("batch", "micro", "processes", "named"),
        [
            (30, None, 1, "train.batch=30"),
            (64, 24, 1, "machine.micro_batch=24"),
            (64, None, 3, "3 processes.*start a divisor of 4 of them"),
            (64, None, 8, "8 processes"),
            (128, 24, 2, "machine.micro_batch=24"),
        ],
    )
    def test_what_would_cut_them_is_refused(self, batch, micro, processes, named) -> None:
        with pytest.raises(ConfigError, match=named):
            check_uncut(16, batch, micro, processes)

    @pytest.mark.parametrize(
        ("batch", "micro", "processes"),
        [(64, None, 1), (64, 16, 4), (64, 32, 2), (64, 99, 1), (96, 16, 2), (96, 48, 2)],
    )
    def test_the_rest_is_not(self, batch: int, micro: int | None, processes: int) -> None:
        check_uncut(16, batch, micro, processes)

    def test_any_cut_suits_what_is_not_coupled(self) -> None:
        check_uncut(1, 30, 7, 4)


class TestKinds:
    def test_labels_are_known_where_the_condition_was_dropped(self) -> None:
        assert torch.equal(kinds_of(inputs(10)), torch.arange(10) % CLASSES)

    def test_captions_agree_to_the_letter(self) -> None:
        texts = ("a cow", "a dog", "a cow", "A cow", "a dog")
        batch = Batch(None, torch.arange(5), texts=texts)
        none = TextCondition(torch.zeros(5, 0, 2), torch.zeros(5, 0, dtype=torch.bool))
        found = kinds_of(Inputs(batch, torch.zeros(5), none, torch.ones(5) > 0, none))
        same = torch.tensor([[a == b for a in texts] for b in texts])
        assert torch.equal(found[:, None] == found, same)


class TestPull:
    asked = torch.tensor([0, 0, 1, NO_CONDITION])
    kinds = torch.tensor([0, 0, 1, 1])

    def found(self, scales: tuple[float, ...], draws: int = 3):
        return pull(self.asked, self.kinds, torch.tensor(scales), draws)

    def test_who_attracts_and_repels_whom(self) -> None:
        found = self.found((1.0, 1.0, 1.0, 1.0))
        assert found.attract.shape == found.repel.shape == (12, 16)
        for query in range(12):
            asked = self.asked[query % 4]
            for target in range(16):
                generated = target < 12
                own = self.asked[target % 4] == asked
                kind = asked in (self.kinds[target % 4], NO_CONDITION)
                assert found.attract[query, target] == float(kind and not generated)
                assert found.repel[query, target] == float(own and generated and query != target)
                if generated:
                    assert bool(found.peers[query, target]) == own

    def test_share_of_real_negatives_is_gamma(self) -> None:
        """alpha = 1 / (1 - gamma), whatever the number of generated ones."""
        scales = (2.0, 2.0, 3.5, 1.0)
        repel = self.found(scales).repel
        share = repel[:, 12:].sum(1) / repel.sum(1)
        assert (1 / (1 - share)).tolist() == pytest.approx(list(scales) * 3)

    def test_a_lone_condition_has_its_other_draws(self) -> None:
        assert self.found((1.0,) * 4, draws=2).repel.sum(1).tolist() == [3, 3, 1, 1] * 2


class TestGuidance:
    def scales(self, count: int, group: int, first: int = 0, **fields: object) -> Tensor:
        keys = torch.arange(first, first + count)
        asked = torch.where(keys % 5 == 4, NO_CONDITION, keys % CLASSES)
        return drifting(group=group, **fields).scales(asked, keys)

    def test_one_for_each_condition_of_a_group(self) -> None:
        scales = self.scales(48, 12).view(4, 12)
        keys = torch.arange(48).view(4, 12)
        for row, number in zip(scales, keys, strict=True):
            dropped = number % 5 == 4
            assert (row[dropped] == 1).all()
            for label in range(CLASSES):
                alike = row[(number % CLASSES == label) & ~dropped]
                assert len(alike) > 1 and (alike == alike[0]).all()
        assert len(scales.unique()) == 4 * CLASSES + 1

    def test_a_function_of_the_keys(self) -> None:
        parts = [self.scales(12, 12, first) for first in (0, 12, 24)]
        assert torch.equal(torch.cat(parts), self.scales(36, 12))

    @pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
    def test_law(self, power: float) -> None:
        keys, asked = torch.arange(8000), torch.arange(8000)
        found = drifting(group=2, guidance_most=4.0, guidance_power=power).scales(asked, keys)

        def mass(x):
            """Of x^-power up to x, by its integral."""
            return math.log(x) if power == 1 else (x ** (1 - power) - 1) / (1 - power)

        law = [mass(x) / mass(4.0) for x in found.sort().values.tolist()]
        assert stats.kstest(law, "uniform").pvalue > 0.01

    def test_the_network_is_told(self) -> None:
        network, objective = Generator(), drifting(group=4)
        objective(network, inputs(8))
        told = [call[3]["guidance"] for call in network.calls]
        assert objective.wiring.scalars == ("guidance",)
        asked = torch.where(inputs(8).kept, torch.arange(8) % CLASSES, NO_CONDITION)
        assert all(torch.equal(t, objective.scales(asked, torch.arange(8))) for t in told)
        assert objective.scalars_of(Guidance(scale=2.5)) == {"guidance": 2.5}

    def test_without_guidance_it_is_not(self) -> None:
        network, objective = Generator(), drifting(group=4, guidance_most=1.0)
        objective(network, inputs(8))
        assert [call[3] for call in network.calls] == [None, None]
        assert objective.wiring.scalars == () and objective.scalars_of(Guidance()) == {}


class TestLoss:
    def test_every_draw_has_noise_of_its_own_at_t_1(self) -> None:
        network = Generator()
        drifting(group=4, draws=3)(network, inputs(8))
        noises = [call[0] for call in network.calls]
        assert len(noises) == 3 and all((call[1] == 1).all() for call in network.calls)
        assert stats.kstest(torch.stack(noises).flatten().numpy(), "norm").pvalue > 0.01
        assert not torch.allclose(noises[0], noises[1])
        again = Generator()
        drifting(group=4, draws=3)(again, inputs(4, first=4))
        assert all(torch.equal(a[0], b[4:]) for a, b in zip(again.calls, noises, strict=True))

    def test_value_and_gradient_are_those_of_the_field(self) -> None:
        """loss = mean V^2, d loss / d phi = -2 V / (number of its elements), of each feature."""
        fields = {"group": 4, "draws": 2, "guidance_most": 1.0}
        asked, made = inputs(4), []

        def network(state, t, condition, **_: object) -> Prediction:
            made.append(state["image"].clone().requires_grad_())
            return Prediction({"image": made[-1]})

        found = drifting(**fields)(network, asked).parts["drift"]
        found.sum().backward()
        labels = torch.where(asked.kept, asked.batch.labels, NO_CONDITION)
        weights = pull(labels, asked.batch.labels, torch.ones(4), 2)
        both = torch.cat(made).detach()
        expected, gradient = torch.zeros(8), torch.zeros_like(both).flatten(1)
        for features in (lambda x: patches(x, 2), lambda x: x.flatten(1)[:, None]):
            x, real = features(both).transpose(0, 1), features(asked.latents).transpose(0, 1)
            moved = drift(x, torch.cat([x, real], 1), weights, (0.02, 0.05, 0.2))
            v = moved.field.transpose(0, 1)  # [Q, L, D]
            expected += v.square().mean((1, 2))
            slope = -2 * v / v[0].numel() / moved.scale / 2  # of the mean over 2 draws
            gradient += slope.flatten(1)[:, order(features)]
        torch.testing.assert_close(found.detach(), expected.view(2, 4).mean(0))
        grads = torch.cat([one.grad for one in made]).flatten(1)
        torch.testing.assert_close(grads, gradient, atol=1e-7, rtol=1e-4)

    def test_patches_are_cut_row_by_row(self) -> None:
        x = inputs(2).latents
        found = patches(x, 2)
        assert found.shape == (2, 6, 12)
        for row in range(2):
            for column in range(3):
                block = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(found[:, 3 * row + column], block.flatten(1))

    def test_half_precision_around_it_changes_nothing(self) -> None:
        objective = drifting(group=4)
        plain = objective(Generator(), inputs(8)).parts["drift"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(objective(Generator(), inputs(8)).parts["drift"], plain)


def order(features: Callable[[Tensor], Tensor]) -> Tensor:
    """Where each element of a latent is among its features, flattened."""
    numbers = torch.arange(72.0).view(1, 3, 4, 6)
    return features(numbers).flatten().argsort()


class TestEncoder:
    latent = LatentSpec(3, 32, 32, 8)

    def objective(self, **fields: object) -> Drifting:
        return drifting(self.latent, 32, encoder=ENCODER, group=2, **fields)

    def test_features(self) -> None:
        latents = inputs(4, self.latent).latents
        objective = self.objective(latents=False)
        found = list(objective._features(latents))
        seen = objective.teacher((latents + 1) / 2)
        tokens = seen.patches
        assert [one.shape[1] for one in found] == [tokens.shape[1], 1, 1, 1]
        assert torch.equal(found[0], tokens) and torch.equal(found[3][:, 0], seen.cls)
        torch.testing.assert_close(found[1][:, 0], tokens.mean(1))
        torch.testing.assert_close(
            found[2][:, 0], tokens.std(1, correction=0), atol=1e-3, rtol=1e-3
        )
        assert len(list(self.objective()._features(latents))) == 6

    def test_its_gradient_reaches_the_generated_images_alone(self) -> None:
        made: list[Tensor] = []

        def network(state, t, condition, **_: object) -> Prediction:
            made.append(state["image"].clone().requires_grad_())
            return Prediction({"image": made[-1]})

        asked, objective = inputs(4, self.latent), self.objective(latents=False)
        asked.latents.requires_grad_()
        loss = objective(network, asked).parts["drift"]
        assert loss.shape == (4,) and loss.isfinite().all()
        loss.sum().backward()
        assert all(one.grad is not None and one.grad.any() for one in made)
        assert asked.latents.grad is None
        assert not list(objective.parameters())
        assert all(p.grad is None for p in objective.teacher.network.parameters())


class TestSampling:
    def test_one_step_returns_what_the_network_makes(self) -> None:
        torch.manual_seed(0)
        tokenizer, objective = Pixels(4, 8), drifting(LatentSpec(3, 8, 8, 4), 8)
        small = DdtConfig(
            depth=1, width=16, heads=2, decoder_depth=1, decoder_width=16, decoder_heads=2
        )
        network = small.build(tokenizer.spec, ConditionSpec(classes=CLASSES), objective.wiring)
        for p in network.parameters():
            if not p.any():
                p.data = 0.1 * torch.randn(p.shape)
        sampling = Sampling(steps=1, guidance=Guidance(scale=2.0))
        labels = Labels(CLASSES)
        sampler = Sampler(network, objective, labels, tokenizer, {}, sampling, torch.device("cpu"))
        indices = torch.arange(3)
        found = sampler.latents(Request(indices, labels=indices))["image"]
        with torch.no_grad():
            expected = network(
                sampler.noise(indices),
                torch.ones(3),
                LabelCondition(indices),
                scalars={"guidance": torch.full((3,), 2.0)},
            ).state["image"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert sampler.counts().network_calls == 1

    @pytest.mark.parametrize(
        ("sampling", "named"),
        [
            ({"steps": 2}, "sampling.steps=2"),
            ({"solver": "heun"}, "sampling.solver=heun"),
            ({"guidance": Guidance(scale=5.0)}, "scale=5.0.*guidance_most=4.0"),
            ({"guidance": Guidance(scale=0.5)}, "scale=0.5"),
            ({"guidance": Guidance(high=0.9)}, "guidance.high=0.9 have no effect"),
        ],
    )
    def test_anything_else_is_refused(self, sampling: dict[str, object], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            DriftingConfig().check_sampling(Sampling(**{"steps": 1} | sampling))

    def test_a_run_is_checked(self) -> None:
        plain = ["objective=drifting", "sampling.guidance.high=1", "sampling.guidance.low=0"]
        preset = recipes.preset("animals/pixels-v")
        with pytest.raises(ConfigError, match=r"sampling\.steps=20"):
            check(config.override(preset, plain))
        # What it guides away from are real images: the null condition need not be trained.
        check(config.override(preset, [*plain, "sampling.steps=1", "train.condition_dropout=0"]))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"latents": False}, "objective.encoder"),
        ({"path": "somewhere"}, "objective.path"),
        ({"group": 1}, "objective.group=1"),
        ({"draws": 1}, "objective.draws=1"),
        ({"temperatures": ()}, "objective.temperatures"),
        ({"temperatures": (0.1, 0.0)}, "objective.temperatures"),
        ({"guidance_most": 0.5}, "objective.guidance_most=0.5"),
        ({"guidance_power": -1.0}, "objective.guidance_power=-1.0"),
        ({"guidance_most": 1.0, "guidance_power": 2.0}, "no effect"),
    ],
)
def test_refusals(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DriftingConfig(**fields)


def test_terms_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"terms\.repa=off"):
        DriftingConfig().build(facts(), {"repa": Term()})


def test_temperatures_are_set_from_the_command_line() -> None:
    run = config.override(
        recipes.preset("animals/pixels-v"),
        ["objective=drifting", "objective.temperatures=0.1,0.3"],
    )
    assert run.objective.temperatures == (0.1, 0.3)


class Mlp(nn.Module):
    """A generator of points in the plane."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.noise, self.label = nn.Linear(2, width), nn.Embedding(classes + 1, width)
        self.guidance = nn.Linear(1, width)
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(width, 2))

    def forward(self, state, t, condition, *, scalars=None, **_: object) -> Prediction:
        hidden = self.noise(state["image"].flatten(1)) + self.label(condition.ids)
        if scalars:
            hidden = hidden + self.guidance(scalars["guidance"][:, None].log())
        return Prediction({"image": self.last(self.rest(hidden))[:, :, None, None]})


class Toy:
    """Trains a generator on a mixture of Gaussians of one size in the plane."""

    latent, count = LatentSpec(2, 1, 1, 1), 48

    def __init__(self, centres: Tensor, size: float, labels: Tensor) -> None:
        self.centres, self.size, self.labels = centres, size, labels
        torch.manual_seed(0)
        self.classes = int(labels.max()) + 1
        self.network = Mlp(self.classes)

    def batch(self, step: int) -> Inputs:
        keys = torch.arange(step * self.count, (step + 1) * self.count)
        which = (rng.uniform(1, "mode", keys, 1)[:, 0] * len(self.centres)).long()
        points = self.centres[which] + self.size * rng.normal(1, "point", keys, (2,))
        kept = torch.ones(self.count, dtype=torch.bool)
        return given(keys, points[:, :, None, None], self.labels[which], kept, self.classes)

    def train(self, steps: int, **fields: object) -> None:
        objective = drifting(self.latent, 1, group=self.count, **fields)
        optimiser = torch.optim.Adam(self.network.parameters())
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * (1 - step / steps)
            optimiser.zero_grad()
            objective(self.network, self.batch(step)).parts["drift"].mean().backward()
            optimiser.step()

    def draw(self, label: int = 0, **scalars: float) -> Tensor:
        """[4000, 2] points."""
        noise = rng.normal(7, "noise", torch.arange(4000), (2, 1, 1))
        told = {name: torch.full((4000,), value) for name, value in scalars.items()}
        with torch.no_grad():
            condition = LabelCondition(torch.full((4000,), label))
            found = self.network({"image": noise}, torch.ones(4000), condition, scalars=told)
        return found.state["image"].flatten(1)


def test_toy_covers_all_modes() -> None:
    """Four modes on a ring, from a network that starts in the middle of them."""
    angles = torch.arange(4) * math.tau / 4
    toy = Toy(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.2, torch.zeros(4).long())
    assert toy.draw().norm(dim=1).max() < 0.7
    toy.train(400, guidance_most=1.0)
    apart = torch.cdist(toy.draw(), toy.centres)
    shares = torch.bincount(apart.argmin(1), minlength=4) / 4000
    assert ((shares - 1 / 4).abs() < 0.06).all()
    # Of the data themselves 0.956 are so near, of a uniform ring 0.32.
    assert (apart.min(1).values < 0.5).float().mean() > 0.6


def test_toy_learns_classes_and_guidance() -> None:
    """Two classes that overlap: alpha = 1 gives the data, more of it what sets a class apart."""
    centres, size = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0.7
    toy = Toy(centres, size, torch.arange(2))
    toy.train(400, guidance_power=1.0)
    for label, side in ((0, 1), (1, -1)):
        plain, more, most = (toy.draw(label, guidance=scale) for scale in (1.0, 2.0, 4.0))
        assert plain.mean(0).tolist() == pytest.approx([side, 0], abs=0.2)
        assert plain.std(0).tolist() == pytest.approx([size, size], abs=0.15)
        away = [side * float(points[:, 0].mean()) for points in (plain, more, most)]
        assert away[0] + 0.05 < away[1] < away[2] - 0.05
        wide = [float(points[:, 0].std()) for points in (plain, more, most)]
        assert wide[0] > wide[1] > wide[2] > 0.2
        # Nothing sets the classes apart along the other axis.
        assert most.std(0)[1].item() == pytest.approx(size, abs=0.15)
