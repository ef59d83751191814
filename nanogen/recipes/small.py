"""The methods that train on a CPU: one for each family of the paper, on `animals` and `scenes`."""

from __future__ import annotations

from nanogen.recipes.base import MethodRecipe, Values

BOTH = ("animals", "scenes")

NOISIER: Values = {"objective.time_mean": 0.8, "objective.shift_base": None}
"""times: noisier, since a silhouette shows through much noise (docs/sweep.md)"""

PIXELS: Values = {"tokenizer": "pixels", "objective": "flow"} | NOISIER
VAE: Values = {"tokenizer": "animals-vae", "objective": "flow"} | NOISIER
RAE: Values = {"tokenizer": "animals-rae", "objective": "flow"} | NOISIER
REG: Values = {"terms.reg": "on", "terms.reg.encoder": "animals-vit"}
MEANFLOW: Values = {
    "tokenizer": "animals-vae",
    "objective": "meanflow",
    **NOISIER,
    "objective.kappa": 0.5,
    # Guidance is learned: none is left to the sampler.
    "sampling.guidance.scale": 1.0,
    "sampling.guidance.high": 1.0,
}

SMALL: dict[str, MethodRecipe] = {
    "pixels-v": MethodRecipe(
        "pixel space, the network predicts the velocity",
        BOTH,
        PIXELS | {"objective.prediction": "v"},
    ),
    "pixels-x": MethodRecipe(
        "pixel space, the network predicts the image",
        BOTH,
        PIXELS | {"objective.prediction": "x"},
    ),
    "pixels-perceptual": MethodRecipe(
        "pixel space, image prediction, with a perceptual loss",
        BOTH,
        PIXELS
        | {
            "objective.prediction": "x",
            "terms.pdino": "on",
            "terms.pdino.encoder": "animals-vit",
            "terms.pdino.weight": 0.1,
        },
    ),
    "vae": MethodRecipe("latents of the small VAE of the package", BOTH, VAE),
    "vae-reg": MethodRecipe("latents of the small VAE, with REG", BOTH, VAE | REG),
    "rae": MethodRecipe("tokens of the small vision transformer of the package (RAE)", BOTH, RAE),
    "rae-reg": MethodRecipe("tokens of the small vision transformer, with REG", BOTH, RAE | REG),
    "meanflow": MethodRecipe(
        "MeanFlow in latents of the small VAE, 1 step", BOTH, MEANFLOW | {"sampling.steps": 1}
    ),
    "meanflow-2": MethodRecipe(
        "MeanFlow in latents of the small VAE, 2 steps",
        BOTH,
        MEANFLOW | {"sampling.steps": 2},
        trained_as="meanflow",
    ),
}
