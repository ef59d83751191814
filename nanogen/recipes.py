"""Named runs. A preset is `<task>/<method>`: a table of tasks, one of methods, and what both share.

    animals/pixels-v    class-conditional on 9,716 silhouettes: a laptop's ImageNet
    scenes/pixels-v     the same as captioned, coloured scenes: a laptop's text-to-image
    imagenet/jit        ImageNet-256 in pixel space, at the paper's size
    t2i/jit             BLIP-3o at 256 px, at the paper's size

A task sets data, conditioner, metrics and guidance, and a method sets everything else; so a method
moves from one task to the other unchanged, and `nanogen diff` of the two presets shows at most
twelve lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanogen import config, registry
from nanogen.errors import ConfigError, suggest
from nanogen.run import Run

Values = dict[str, Any]
"""fields of a run by dotted path; a part stands by its registered name"""

ANIMALS: Values = {
    "optimiser": "muon",
    "optimiser.lr": 0.02,
    "optimiser.adamw.lr": 2e-3,
    "backbone": "ddt",
    "backbone.depth": 4,
    "backbone.width": 128,
    "backbone.heads": 4,
    "backbone.decoder_depth": 1,
    "backbone.decoder_width": 160,
    "backbone.decoder_heads": 4,
    "schedule.final": 0.0,
    "schedule.warmup": 1_600,
    "train.images": 64_000,
    "train.batch": 32,
    "train.ema": 0.998,
    "train.ema_warmup": True,
    "train.log_every": 1_600,
    "train.save_every": 16_000,
    "train.sample_every": 16_000,
    "sampling.steps": 20,
    "sampling.shift_base": None,
}
"""what trains on two CPU cores; chosen by the sweep in docs/sweep.md"""

PAPER: Values = {
    "optimiser": "adamw",
    "backbone": "ddt",
    "train.precision": "bf16",
}
"""the paper's size and optimiser: the defaults of every config class"""

EPOCH = 1251 * 1024
"""images of one epoch of ImageNet in steps of 1024"""


@dataclass(frozen=True)
class TaskRecipe:
    """What a task sets, over what all methods share at its size."""

    summary: str
    shared: Values
    own: Values
    pixel_patch: int
    """pixels a side of a token, for methods in pixel space"""


TASKS: dict[str, TaskRecipe] = {
    "animals": TaskRecipe(
        "ten classes of animal silhouettes, 28 px; minutes on a CPU",
        ANIMALS,
        {
            "task": "class_conditional",
            "task.data": "animals",
            "conditioner": "labels",
            "evaluation.metrics": ("fd-animals", "is-animals", "pr-animals", "accuracy-animals"),
            "evaluation.samples": 1_000,
            "sampling.guidance.scale": 3.0,
            "sampling.guidance.high": 0.9,
        },
        pixel_patch=4,
    ),
    "scenes": TaskRecipe(
        "coloured, captioned scenes of the same silhouettes, 40 px; minutes on a CPU",
        ANIMALS,
        {
            "task": "text_to_image",
            "task.data": "scenes",
            "conditioner": "minilm",
            "evaluation.metrics": ("scene-eval",),
            "evaluation.samples": 360,
            "sampling.guidance.scale": 3.0,
            "sampling.guidance.high": 1.0,
        },
        pixel_patch=5,
    ),
    "imagenet": TaskRecipe(
        "ImageNet-256 by class, 80 epochs; 8 GPUs of 80 GB",
        PAPER,
        {
            "task": "class_conditional",
            "task.data": "folder",
            "task.data.path": "data/imagenet/train",
            "conditioner": "labels",
            "train.images": 80 * EPOCH,
            "sampling.guidance.high": 0.9,
        },
        pixel_patch=16,
    ),
    "t2i": TaskRecipe(
        "BLIP-3o captions at 256 px, 100K steps; 8 GPUs of 80 GB",
        PAPER,
        {
            "task": "text_to_image",
            "task.data": "shards",
            "task.data.path": "data/blip3o",
            "conditioner": "hf-text",
            "train.images": 102_400_000,
            "sampling.guidance.scale": 6.0,
            "sampling.guidance.high": 1.0,
        },
        pixel_patch=16,
    ),
}

SCHEDULES: dict[str, Callable[[int], Values]] = {
    "released": lambda images: {
        "schedule.decay_start": images // 2,
        "schedule.decay_end": 10 * images,
        "schedule.final": 0.1,
    },
    "paper": lambda images: {"schedule.warmup": images // 2, "schedule.final": 0.1},
}
"""The learning rate of a run of so many images at the paper's size, in two fidelities.

`released` is what the released configs do: no warm-up, and a decay that ends long after the run.
`paper` is what the paper's text says: a linear warm-up, then a linear decay to a tenth. The text
gives no length of the warm-up; it is taken from the same configs, half of the run.
`imagenet/jit` is the released one, `imagenet/jit@paper` the other.
"""

PIXELS: Values = {"tokenizer": "pixels", "objective": "flow"}

SMALL: Values = {"objective.time_mean": 0.8, "objective.shift_base": None}
"""times of the CPU presets: noisier, since a silhouette shows through much noise (docs/sweep.md)"""


@dataclass(frozen=True)
class MethodRecipe:
    """What a method sets, on every task that it is for."""

    summary: str
    tasks: tuple[str, ...]
    values: Values
    guidance: float | None = None
    """scale of the paper's best ImageNet row (Table 2)"""


def _latent(tokenizer: str, space: str, guidance: float) -> MethodRecipe:
    """Flow matching in a latent space, at the paper's size: the space decides the times."""
    values = {"tokenizer": tokenizer, "objective": "flow", "objective.prediction": "v"}
    return MethodRecipe(f"latents of {space}", ("imagenet", "t2i"), values, guidance)


METHODS: dict[str, MethodRecipe] = {
    "pixels-v": MethodRecipe(
        "pixel space, the network predicts the velocity",
        ("animals", "scenes"),
        PIXELS | SMALL | {"objective.prediction": "v"},
    ),
    "pixels-x": MethodRecipe(
        "pixel space, the network predicts the image",
        ("animals", "scenes"),
        PIXELS | SMALL | {"objective.prediction": "x"},
    ),
    "vae": MethodRecipe(
        "latents of the small VAE of the package",
        ("animals", "scenes"),
        {"tokenizer": "animals-vae", "objective": "flow"} | SMALL,
    ),
    "rae": MethodRecipe(
        "tokens of the small vision transformer of the package (RAE)",
        ("animals", "scenes"),
        {"tokenizer": "animals-rae", "objective": "flow"} | SMALL,
    ),
    "jit": MethodRecipe(
        "JiT's objective on DDT: pixels, image prediction, noisier times (arXiv 2511.13720)",
        ("imagenet", "t2i"),
        # 0.836 is JiT's mean of -0.8 in data time, after the paper's shift.
        PIXELS
        | {
            "objective.prediction": "x",
            "objective.time_mean": 0.8356,
            "objective.time_std": 0.8,
            "objective.shift_base": None,
            "sampling.shift_base": None,
        },
        guidance=2.6,
    ),
    "pixnerd": MethodRecipe(
        "PixNerd's objective on DDT: pixels, velocity prediction (arXiv 2507.23268)",
        ("imagenet", "t2i"),
        # The paper's shift cancels the mean of PixNerd's times almost exactly.
        PIXELS
        | {
            "objective.prediction": "v",
            "objective.time_mean": -0.0044,
            "objective.shift_base": None,
            "sampling.shift_base": None,
        },
        guidance=2.4,
    ),
    "sdvae-ema": _latent("sdvae-ema", "SD-VAE, EMA weights", 1.6),
    "sdvae-mse": _latent("sdvae-mse", "SD-VAE, MSE weights", 1.6),
    "sdxl-vae": _latent("sdxl-vae", "SDXL-VAE", 1.6),
    "sd3.5": _latent("sd3.5", "SD3.5-VAE", 1.8),
    "flux": _latent("flux", "FLUX.1-VAE", 2.0),
    "flux2": _latent("flux2", "FLUX.2-VAE", 2.0),
    "qwen-vae": _latent("qwen-vae", "Qwen-Image-VAE", 1.6),
    "e2e-vavae": _latent("e2e-vavae", "E2E-VAVAE", 1.8),
    "e2e-flux": _latent("e2e-flux", "E2E-FLUX.1-VAE", 1.8),
    "e2e-sd3.5": _latent("e2e-sd3.5", "E2E-SD3.5-VAE", 1.8),
    "e2e-qwen-vae": _latent("e2e-qwen-vae", "E2E-Qwen-Image-VAE", 1.8),
    "rae-dinov2-vit-b": _latent("rae-dinov2-vit-b", "RAE on DINOv2-B", 4.8),
    "rae-dinov3-vit-b16": _latent("rae-dinov3-vit-b16", "RAE on DINOv3-B", 7.0),
    "rae-siglip2-vit-b": _latent("rae-siglip2-vit-b", "RAE on SigLIP2-B", 7.0),
    "rae-pe-vit-l": _latent("rae-pe-vit-l", "RAE on PE-L", 5.0),
    "rae-langpe-vit-l": _latent("rae-langpe-vit-l", "RAE on LangPE-L", 5.0),
    "rae-spatialpe-vit-l": _latent("rae-spatialpe-vit-l", "RAE on SpatialPE-L", 9.0),
}


def names() -> list[str]:
    """All presets."""
    plain = [f"{task}/{method}" for method, recipe in METHODS.items() for task in recipe.tasks]
    return plain + [f"{name}@paper" for name in plain if TASKS[_split(name)[0]].shared is PAPER]


def describe(name: str) -> str:
    """One line on a preset."""
    task, method, fidelity = _split(name)
    schedule = f"; schedule of the {fidelity}" if fidelity else ""
    return f"{METHODS[method].summary}; {TASKS[task].summary}{schedule}"


def methods_of(task: str) -> list[str]:
    return [method for method, recipe in METHODS.items() if task in recipe.tasks]


def preset(name: str) -> Run:
    """The run of a preset; an unknown name is a ConfigError with the nearest ones."""
    if name not in names():
        raise ConfigError(f"unknown preset {name!r}; {suggest(name, names())}")
    task, method, fidelity = _split(name)
    recipe = TASKS[task]
    chosen = METHODS[method]
    values: Values = {"name": name} | recipe.shared | recipe.own | chosen.values
    if values["tokenizer"] == "pixels":
        values["tokenizer.patch"] = recipe.pixel_patch
    if task == "imagenet" and chosen.guidance is not None:
        values["sampling.guidance.scale"] = chosen.guidance
    if recipe.shared is PAPER:
        values |= SCHEDULES[fidelity or "released"](values["train.images"])
    return config.make(Run, resolved(values))


def _split(name: str) -> tuple[str, str, str]:
    """`task/method@fidelity`, the last part empty where it is not given."""
    plain, _, fidelity = name.partition("@")
    task, _, method = plain.partition("/")
    return task, method, fidelity


def resolved(values: Values) -> Values:
    """Values with the names of parts replaced by the parts."""
    kinds = {
        "task": "task",
        "task.data": "data",
        "tokenizer": "tokenizer",
        "conditioner": "conditioner",
    }
    kinds |= {"backbone": "backbone", "objective": "objective", "optimiser": "optimiser"}
    return {
        path: registry.get(kinds[path], value) if path in kinds else value
        for path, value in values.items()
    }
