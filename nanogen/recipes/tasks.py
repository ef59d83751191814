"""The tasks of the presets: two for a CPU, and the paper's, of which one is at 512 px too."""

from __future__ import annotations

from nanogen.recipes.base import EPOCH, TaskRecipe, Values

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
    "task.data.flip": False,
    "task.data.validation": 0.0,
    "task.data.held_out": 5e-4,
}
"""the paper's size and optimiser: the defaults of every config class; images as they are, since
its code mirrors none and a caption may say what is on the left, and next to all of them: some
captions are kept to draw
"""

TEXT_TO_IMAGE: Values = {
    "task": "text_to_image",
    "task.data": "shards",
    "task.data.path": "data/blip3o",
    "conditioner": "hf-text",
    "train.images": 102_400_000,
    "evaluation.metrics": ("geneval", "dpg", "genai-bench"),
    "sampling.guidance.scale": 6.0,
    "sampling.guidance.high": 1.0,
}

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
        "ImageNet-256 by class",
        PAPER,
        {
            "task": "class_conditional",
            "task.data": "folder",
            "task.data.path": "data/imagenet/train",
            "conditioner": "labels",
            "train.images": 80 * EPOCH,
            "evaluation.metrics": ("fid50k", "is"),
            "sampling.guidance.high": 0.9,
        },
        pixel_patch=16,
        published=True,
        best_guidance=True,
    ),
    "t2i": TaskRecipe(
        "BLIP-3o captions at 256 px",
        PAPER,
        TEXT_TO_IMAGE,
        pixel_patch=16,
        published=True,
    ),
    "t2i-512": TaskRecipe(
        "BLIP-3o captions at 512 px, 1 B parameters",
        PAPER | {"backbone.width": 1584, "backbone.heads": 22},
        TEXT_TO_IMAGE | {"task.data.size": 512},
        pixel_patch=16,
        published=True,
        area=4,
    ),
}
