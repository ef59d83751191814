"""The table of presets: what the published configs say, and how a task is switched."""

from __future__ import annotations

import pytest

from nanogen import recipes
from nanogen.backbones.ddt import DdtConfig
from nanogen.errors import ConfigError
from nanogen.objectives.path import shift_ratio
from nanogen.train.adamw import AdamWConfig


def test_names() -> None:
    names = recipes.names()
    assert len(set(names)) == len(names)
    for task in recipes.TASKS:
        assert recipes.methods_of(task), f"no method is for {task}"
        assert all(f"{task}/{method}" in names for method in recipes.methods_of(task))


@pytest.mark.parametrize(
    "name, hint",
    [("imagent/jit", "imagenet/jit"), ("animals/pixel-v", "animals/pixels-v")]
    + [("imagenet/jit@papr", "imagenet/jit@paper"), ("animals/pixels-v@paper", "animals/pixels-v")],
)
def test_unknown_presets(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown preset '{name}'; did you mean .*{hint}"):
        recipes.preset(name)


@pytest.mark.parametrize("name", ["imagenet/jit", "t2i/jit", "imagenet/pixnerd", "t2i/pixnerd"])
def test_papers_training(name: str) -> None:
    """arXiv 2606.24888: one backbone and one optimiser for every row."""
    run = recipes.preset(name)
    assert run.backbone == DdtConfig() and run.optimiser == AdamWConfig()
    train = run.train
    assert (train.batch, train.clip, train.ema) == (1024, 1.0, 0.9995)
    assert train.condition_dropout == 0.1 and train.precision == "bf16" and run.seed == 42
    assert (run.sampling.solver, run.sampling.steps) == ("euler", 50)


@pytest.mark.parametrize("name", ["imagenet/jit", "t2i/flux2", "t2i-512/flux2", "t2i/flux2@paper"])
def test_papers_images(name: str) -> None:
    """Next to all of them, none mirrored: a caption may say what is on the left."""
    data = recipes.preset(name).task.data
    assert (data.flip, data.validation, data.held_out) == (False, 0.0, 5e-4)


@pytest.mark.parametrize(
    "name, prediction, mean, std, scale, high",
    [
        ("imagenet/jit", "x", 0.8356, 0.8, 2.6, 0.9),
        ("imagenet/pixnerd", "v", -0.0044, 1.0, 2.4, 0.9),
        ("t2i/jit", "x", 0.8356, 0.8, 6.0, 1.0),
        ("t2i/pixnerd", "v", -0.0044, 1.0, 6.0, 1.0),
    ],
)
def test_methods(
    name: str, prediction: str, mean: float, std: float, scale: float, high: float
) -> None:
    """Effective law of the times, and the guidance of the best published row."""
    run = recipes.preset(name)
    spec = run.tokenizer.build(256).spec
    assert spec.tokens == 256
    assert run.objective.prediction == prediction
    assert run.objective.effective_mean(spec) == pytest.approx(mean, abs=5e-5)
    assert run.objective.time_std == std
    guidance = run.sampling.guidance
    assert (guidance.scale, guidance.low, guidance.high) == (scale, 0.0, high)


BEST = {
    **dict.fromkeys(("sdvae-ema", "sdvae-mse", "sdxl-vae", "qwen-vae"), 1.6),
    **dict.fromkeys(("sd3.5", "e2e-vavae", "e2e-flux", "e2e-sd3.5", "e2e-qwen-vae"), 1.8),
    **dict.fromkeys(("flux", "flux2", "pixelgen"), 2.0),
    **{"sdvae-ema-reg": 2.2, "flux2-reg": 3.2, "jit": 2.6, "pixnerd": 2.4},
    **{"rae-dinov2-vit-b": 4.8, "rae-dinov2-vit-b-reg": 6.2},
    **{"rae-dinov3-vit-b16": 7.0, "rae-dinov3-vit-b16-reg": 7.8, "rae-siglip2-vit-b": 7.0},
    **{"rae-pe-vit-l": 5.0, "rae-langpe-vit-l": 5.0, "rae-spatialpe-vit-l": 9.0},
    **dict.fromkeys(m for m in recipes.methods_of("imagenet") if m.startswith("meanflow")),
}
"""scale of guidance of each row of Table 2 at its best; None: none is left to the sampler"""


def test_guidance_of_table_2() -> None:
    rows = [m for m in recipes.methods_of("imagenet") if not m.startswith("table1-")]
    assert set(rows) == set(BEST)
    for method in rows:
        guidance = recipes.preset(f"imagenet/{method}").sampling.guidance
        expected = (BEST[method], 0.0, 0.9) if BEST[method] else (1.0, 0.0, 1.0)
        assert (guidance.scale, guidance.low, guidance.high) == expected, method


def test_terms_of_the_released_configs() -> None:
    """Weights of REG, LPIPS and P-DINO, no REPA; MeanFlow's mixture and its steps."""
    for task in ("imagenet", "t2i"):
        reg, pixelgen = (recipes.preset(f"{task}/{m}").terms for m in ("flux2-reg", "pixelgen"))
        assert (reg.reg.weight, reg.repa) == (0.03, None)
        assert (pixelgen.lpips.weight, pixelgen.lpips.threshold) == (0.1, 0.7)
        assert (pixelgen.pdino.weight, pixelgen.pdino.threshold) == (0.01, 0.7)
        for method, steps in (("meanflow-sdvae-mse", 1), ("meanflow-sdvae-mse-2", 2)):
            run = recipes.preset(f"{task}/{method}")
            law = run.objective
            assert (law.omega, law.kappa, law.mixing, law.instantaneous) == (1, 0.5, "step", 0.75)
            assert (law.time_mean, law.power, run.sampling.steps) == (-0.4, 1.0, steps)
    assert recipes.preset("imagenet/meanflow-sdvae-mse-unguided").objective.kappa == 0


def test_the_small_rows_share_their_times() -> None:
    """As docs/sweep.md says; and MeanFlow learns the guidance that it is not given."""
    for task in ("animals", "scenes"):
        for method in recipes.methods_of(task):
            run = recipes.preset(f"{task}/{method}")
            assert (run.objective.time_mean, run.objective.shift_base) == (0.8, None), method
            if method.startswith("meanflow"):
                assert (run.objective.kappa, run.sampling.guidance.scale) == (0.5, 1.0)


@pytest.mark.parametrize(
    "task, metrics",
    [
        ("animals", ("fd-animals", "is-animals", "pr-animals", "accuracy-animals")),
        ("scenes", ("scene-eval",)),
        ("imagenet", ("fid50k", "is")),
        ("t2i", ("geneval", "dpg", "genai-bench")),
        ("t2i-512", ("geneval", "dpg", "genai-bench")),
    ],
)
def test_metrics_of_a_task(task: str, metrics: tuple[str, ...]) -> None:
    for method in recipes.methods_of(task):
        assert recipes.preset(f"{task}/{method}").evaluation.metrics == metrics


@pytest.mark.parametrize(
    "name, base",
    [("imagenet/jit", None), ("imagenet/pixnerd", None), ("t2i/jit", None)]
    + [("t2i/pixnerd", 4096), ("t2i/pixnerd@paper", None), ("t2i/pixnerd@upstream", None)],
)
def test_time_grids_of_pixels(name: str, base: int | None) -> None:
    """Even, but where a released config leaves that out."""
    assert recipes.preset(name).sampling.shift_base == base


def test_a_method_moves_unchanged() -> None:
    """What a method sets is the same on each of its tasks."""
    for method, recipe in recipes.METHODS.items():
        runs = [recipes.preset(f"{task}/{method}") for task in recipe.tasks]
        for run in runs[1:]:
            assert run.objective == runs[0].objective
            # At 512 px the paper's network is a larger one.
            assert run.backbone == runs[0].backbone or run.name.startswith("t2i-512")
            assert run.optimiser == runs[0].optimiser


def test_every_row_of_the_paper() -> None:
    """26 models on ImageNet, of which two MeanFlows are sampled in two ways, 25 on text-to-image, 3
    at 512 px, and the six of Table 1.
    """
    own = {
        task: [m for m in recipes.methods_of(task) if not recipes.METHODS[m].trained_as]
        for task in ("imagenet", "t2i", "t2i-512")
    }
    first = [method for method in own["imagenet"] if method.startswith("table1-")]
    assert len(first) == 6 and len(own["imagenet"]) - len(first) == 26
    assert len(own["t2i"]) == 25 and len(own["t2i-512"]) == 3


def test_no_two_methods_share_a_name() -> None:
    assert not recipes.SMALL.keys() & recipes.PUBLISHED.keys()


@pytest.mark.parametrize("name", [m for m, r in recipes.METHODS.items() if r.trained_as])
def test_a_method_that_is_trained_as_another_differs_in_sampling_only(name: str) -> None:
    recipe = recipes.METHODS[name]
    for task in recipe.tasks:
        one, other = (recipes.preset(f"{task}/{m}") for m in (name, recipe.trained_as))
        paths = {path for path, _, _ in recipes.config.differences(one, other)}
        assert paths == {"name", "sampling.steps"}


class TestVariants:
    def test_hardware_changes_no_result(self) -> None:
        plain = recipes.preset("t2i/flux2")
        for hardware in ("1x24gb", "1x80gb", "8x80gb"):
            run = recipes.preset(f"t2i/flux2@{hardware}")
            rows = recipes.config.differences(run.identity(), plain.identity())
            assert [path for path, _, _ in rows] == ["name"]
            assert run.train.batch == 1024 and run.machine.micro_batch

    @pytest.mark.parametrize(
        "size, depth, width", [("s", 12, 384), ("b", 12, 768), ("l", 24, 1024), ("xl", 28, 1152)]
    )
    def test_sizes(self, size: str, depth: int, width: int) -> None:
        backbone = recipes.preset(f"imagenet/flux2@{size}").backbone
        assert (backbone.depth, backbone.width, backbone.decoder_width) == (depth, width, 2048)

    def test_longer(self) -> None:
        """The rate of a run twice as long is the same at half the clock."""
        short, long = recipes.preset("t2i/flux"), recipes.preset("t2i/flux@200k")
        assert long.train.images == 200_000 * 1024
        for share in (0.1, 0.6, 0.99):
            rates = [
                run.schedule.factor(int(share * run.train.images), 1024, run.train.images)
                for run in (short, long)
            ]
            assert rates[0] == pytest.approx(rates[1], rel=1e-4)

    def test_fine_tuning_starts_from_the_trained_run(self) -> None:
        run = recipes.preset("t2i/flux2@sft,1x80gb")
        assert run.train.start == "runs/t2i/flux2" and run.task.data.path == "data/blip3o-60k"
        assert run.schedule.factor(run.train.images - 1024, 1024, run.train.images) == 1

    @pytest.mark.parametrize(
        "name, start",
        [
            ("t2i/flux2@b,sft", "runs/t2i/flux2@b"),
            ("t2i/flux2@sft,paper,1x24gb,s", "runs/t2i/flux2@paper,s"),
            ("t2i/jit@upstream,sft", "runs/t2i/jit@upstream"),
        ],
    )
    def test_fine_tuning_starts_from_the_same_network(self, name: str, start: str) -> None:
        assert recipes.preset(name).train.start == start

    def test_fidelities_of_the_target(self) -> None:
        """The released code clamps the target of v-prediction; the text does not say so."""
        targets = [
            recipes.preset(f"imagenet/{name}").objective.target
            for name in ("flux2", "flux2@paper", "jit", "meanflow-sdvae-mse")
        ]
        assert targets == ["clamped", "exact", "exact", "clamped"]

    @pytest.mark.parametrize(
        "method", ["sdvae-ema-reg", "pixnerd", "pixelgen", "meanflow-sdvae-mse"]
    )
    def test_what_was_built_on_sit_trains_as_sit(self, method: str) -> None:
        run = recipes.preset(f"imagenet/{method}@upstream")
        assert (run.optimiser.lr, run.train.batch, run.train.ema) == (1e-4, 256, 0.9999)
        images = run.train.images
        rates = {run.schedule.factor(seen, 256, images) for seen in (0, images // 2, images - 256)}
        assert rates == {1.0}

    def test_meanflow_of_its_authors(self) -> None:
        """Where r = t, t is the later of two draws in their code; samples are mixed one by one."""
        law = recipes.preset("imagenet/meanflow-sdvae-mse@upstream").objective
        assert (law.mixing, law.instants, law.target) == ("sample", "later", "exact")
        released = recipes.preset("imagenet/meanflow-sdvae-mse").objective
        assert (released.mixing, released.instants) == ("step", "single")

    def test_pixelgen_of_its_authors(self) -> None:
        """LPIPS is a mean over the gated, and samplers shift by 2 and guide in (0.1, 0.9)."""
        run, text = (recipes.preset(f"{task}/pixelgen@upstream") for task in ("imagenet", "t2i"))
        terms, sampling = run.terms, run.sampling
        assert (terms.lpips.normalise_by, terms.lpips.threshold) == ("gated", 0.7)
        assert (terms.pdino.loss, terms.pdino.threshold) == ("cosine", 1.0)
        assert run.objective.effective_mean(run.tokenizer.build(256).spec) == 0.8
        assert shift_ratio(3 * 256**2, sampling.shift_base) == 2
        guidance = sampling.guidance
        assert (guidance.scale, guidance.low, guidance.high) == (2.25, 0.1, 0.9)
        # Guidance of ImageNet says nothing of captions.
        guidance = text.sampling.guidance
        assert (guidance.scale, guidance.low, guidance.high) == (6.0, 0.0, 1.0)

    @pytest.mark.parametrize("method", ["pixnerd", "pixelgen"])
    def test_xl_of_its_authors(self, method: str) -> None:
        """The network, length and projector that their scale of guidance belongs to."""
        run = recipes.preset(f"imagenet/{method}@upstream")
        assert (run.backbone.width, run.terms.repa.hidden) == (1152, 1152)
        assert run.train.images == 160 * 1251 * 1024
        if method == "pixelgen":
            assert (run.backbone.depth, run.backbone.heads) == (28, 16)

    @pytest.mark.parametrize("name", ["imagenet/table1-jit", "imagenet/jit@upstream"])
    def test_summaries_say_no_length_of_another(self, name: str) -> None:
        assert recipes.preset(name).train.images == 200 * 1251 * 1024
        assert "epochs" not in recipes.describe(name)

    @pytest.mark.parametrize(
        "name, hint",
        [
            ("imagenet/flux2@x", "@s"),
            ("imagenet/flux2@sft", "@"),
            ("imagenet/sd3.5@upstream", "@"),
            ("imagenet/flux2@s,b", "two variants of its size"),
            ("animals/rae@1x24gb", "no variants"),
            ("imagenet/flux2@", "an empty variant"),
            ("imagenet/flux2@s,,b", "an empty variant"),
            ("imagenet/table1-jit@s", "@"),
        ],
    )
    def test_refusals(self, name: str, hint: str) -> None:
        with pytest.raises(ConfigError, match=hint):
            recipes.preset(name)
