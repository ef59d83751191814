"""The methods of the paper: 26 rows on ImageNet, 25 on text-to-image, 3 at 512 px, and Table 1.

All rows of Tables 2 to 4 share one backbone and one optimiser; a method is its space, its
objective and its terms. So `jit`, `pixnerd` and `pixelgen` are the objectives of these methods on
DDT; their own architectures come with the variant `upstream`. Table 1 compares with the methods'
own papers.
"""

from __future__ import annotations

from dataclasses import replace

from nanogen.recipes.base import EPOCH, MethodRecipe, Values

BOTH = ("imagenet", "t2i")

CLAMPED: Values = {"objective.target": "clamped"}
"""the released code clamps the target of v-prediction too, and so learns to leave some noise"""

TEACHER = "dinov2-vit-b"
"""DINOv2-B with registers, its final LayerNorm without affine: of REG, REPA and P-DINO"""

REG: Values = {"terms.reg": "on", "terms.reg.weight": 0.03, "terms.reg.encoder": TEACHER}

REPA_UPSTREAM: Values = {
    "terms.repa": "on",
    "terms.repa.weight": 0.5,
    "terms.repa.block": 8,
    "terms.repa.encoder": TEACHER,
    "terms.repa.loss": "cosine",
    "terms.repa.projector": "mlp3",
}
"""REPA as its authors train it (arXiv 2410.06940)"""

OWN_PROJECTOR: Values = {"terms.repa.hidden": 1152}
"""PixNerd and PixelGen project through the width of their XL networks"""

SIT_TRAINING: Values = {
    "optimiser.lr": 1e-4,
    "train.batch": 256,
    "train.ema": 0.9999,
    "schedule.warmup": 0,
    "schedule.final": 1.0,
}
"""how SiT trains, and all that was built on it: a constant rate, a quarter of the paper's batch"""

JIT_TIMES: Values = {
    "objective.time_mean": 0.8356,
    "objective.time_std": 0.8,
    "objective.shift_base": None,
    "sampling.shift_base": None,
}
"""JiT's mean of -0.8 in data time, after the paper's shift"""

PIXELS: Values = {"tokenizer": "pixels", "objective": "flow"}


def _latent(tokenizer: str, space: str, guidance: float, tasks: tuple[str, ...] = BOTH):
    """Flow matching in a latent space: the space decides the times."""
    values = {"tokenizer": tokenizer, "objective": "flow", "objective.prediction": "v"}
    return MethodRecipe(f"latents of {space}", tasks, values, guidance, released=CLAMPED)


def _reg(plain: MethodRecipe, guidance: float) -> MethodRecipe:
    """The same with REG: the class token of DINOv2 is diffused along (arXiv 2507.01467).

    Its authors train REPA too, and guide the token by a scale of its own.
    """
    return replace(
        plain,
        summary=f"{plain.summary}, with REG",
        tasks=BOTH,
        values=plain.values | REG,
        guidance=guidance,
        upstream=SIT_TRAINING
        | REPA_UPSTREAM
        | {"sampling.solver": "sde", "sampling.steps": 250, "sampling.guidance.leaves": 1.5},
    )


LATENT: dict[str, MethodRecipe] = {
    "sdvae-ema": _latent("sdvae-ema", "SD-VAE, EMA weights", 1.6),
    "sdvae-mse": _latent("sdvae-mse", "SD-VAE, MSE weights", 1.6),
    "sdxl-vae": _latent("sdxl-vae", "SDXL-VAE", 1.6),
    "sd3.5": _latent("sd3.5", "SD3.5-VAE", 1.8),
    "flux": _latent("flux", "FLUX.1-VAE", 2.0),
    "flux2": _latent("flux2", "FLUX.2-VAE", 2.0, (*BOTH, "t2i-512")),
    "qwen-vae": _latent("qwen-vae", "Qwen-Image-VAE", 1.6, (*BOTH, "t2i-512")),
    "e2e-vavae": _latent("e2e-vavae", "E2E-VAVAE", 1.8),
    "e2e-flux": _latent("e2e-flux", "E2E-FLUX.1-VAE", 1.8),
    "e2e-sd3.5": _latent("e2e-sd3.5", "E2E-SD3.5-VAE", 1.8),
    "e2e-qwen-vae": _latent("e2e-qwen-vae", "E2E-Qwen-Image-VAE", 1.8, (*BOTH, "t2i-512")),
    "rae-dinov2-vit-b": _latent("rae-dinov2-vit-b", "RAE on DINOv2-B", 4.8),
    "rae-dinov3-vit-b16": _latent("rae-dinov3-vit-b16", "RAE on DINOv3-B", 7.0),
    "rae-siglip2-vit-b": _latent("rae-siglip2-vit-b", "RAE on SigLIP2-B", 7.0),
    "rae-pe-vit-l": _latent("rae-pe-vit-l", "RAE on PE-L", 5.0),
    "rae-langpe-vit-l": _latent("rae-langpe-vit-l", "RAE on LangPE-L", 5.0),
    "rae-spatialpe-vit-l": _latent("rae-spatialpe-vit-l", "RAE on SpatialPE-L", 9.0),
}
LATENT |= {
    "sdvae-ema-reg": _reg(LATENT["sdvae-ema"], 2.2),
    "flux2-reg": _reg(LATENT["flux2"], 3.2),
    "rae-dinov2-vit-b-reg": _reg(LATENT["rae-dinov2-vit-b"], 6.2),
    "rae-dinov3-vit-b16-reg": _reg(LATENT["rae-dinov3-vit-b16"], 7.8),
}

PIXEL: dict[str, MethodRecipe] = {
    "jit": MethodRecipe(
        "JiT's objective: pixels, image prediction, noisier times (arXiv 2511.13720)",
        BOTH,
        PIXELS | JIT_TIMES | {"objective.prediction": "x"},
        guidance=2.6,
        upstream={
            "backbone": "jit",
            "objective.time_mean": 0.8,
            "sampling.solver": "heun",
            "sampling.guidance.scale": 2.9,
            "train.images": 200 * EPOCH,
            "train.ema": 0.9999,
            "schedule.warmup": 5 * EPOCH,
            "schedule.final": 1.0,
        },
    ),
    "pixnerd": MethodRecipe(
        "PixNerd's objective: pixels, velocity prediction (arXiv 2507.23268)",
        BOTH,
        # The paper's shift cancels the mean of PixNerd's times almost exactly.
        PIXELS
        | {
            "objective.prediction": "v",
            "objective.time_mean": -0.0044,
            "objective.shift_base": None,
            "sampling.shift_base": None,
        },
        guidance=2.4,
        released=CLAMPED,
        # The config leaves out that the grid is even, which that of ImageNet says.
        released_on={"t2i": {"sampling.shift_base": 4096}},
        upstream={"backbone": "pixnerd", "objective.time_mean": 0.0}
        | SIT_TRAINING
        | REPA_UPSTREAM
        | OWN_PROJECTOR
        | {"sampling.steps": 100, "sampling.guidance.scale": 3.5, "train.images": 160 * EPOCH},
    ),
    "pixelgen": MethodRecipe(
        "PixelGen's objective: JiT's with perceptual losses (arXiv 2602.02493)",
        BOTH,
        PIXELS
        | JIT_TIMES
        | {
            "objective.prediction": "x",
            "terms.lpips": "on",
            "terms.lpips.weight": 0.1,
            "terms.lpips.threshold": 0.7,
            "terms.pdino": "on",
            "terms.pdino.weight": 0.01,
            "terms.pdino.threshold": 0.7,
            "terms.pdino.encoder": TEACHER,
        },
        guidance=2.0,
        # PixelGen-XL, the one that its authors guide by 2.25, after 160 epochs.
        # Their mean over the gated is one over all samples for P-DINO, by a slip of broadcasting.
        upstream={
            "backbone": "jit",
            "backbone.depth": 28,
            "backbone.width": 1152,
            "backbone.heads": 16,
            "train.images": 160 * EPOCH,
            "objective.time_mean": 0.8,
            "terms.lpips.normalise_by": "gated",
            "terms.pdino.loss": "cosine",
            "terms.pdino.threshold": 1.0,
            "sampling.solver": "heun",
            # A shift of 2.
            "sampling.shift_base": 3 * 256**2 // 4,
            "sampling.guidance.scale": 2.25,
            "sampling.guidance.low": 0.1,
        }
        | SIT_TRAINING
        | REPA_UPSTREAM
        | OWN_PROJECTOR,
    ),
}


def _meanflow(summary: str, tasks: tuple[str, ...], kappa: float, steps: int, trained_as: str = ""):
    values = {
        "tokenizer": "sdvae-mse",
        "objective": "meanflow",
        "objective.kappa": kappa,
        "sampling.steps": steps,
        # Guidance is learned: none is left to the sampler.
        "sampling.guidance.scale": 1.0,
        "sampling.guidance.high": 1.0,
    }
    return MethodRecipe(
        f"MeanFlow in latents of SD-VAE, {summary}",
        tasks,
        values,
        released=CLAMPED | {"objective.mixing": "step"},
        upstream=SIT_TRAINING | {"objective.instants": "later"},
        trained_as=trained_as,
    )


MEANFLOW: dict[str, MethodRecipe] = {
    "meanflow-sdvae-mse": _meanflow("guidance learned (scale 2), 1 step", BOTH, 0.5, 1),
    "meanflow-sdvae-mse-2": _meanflow(
        "guidance learned (scale 2), 2 steps", BOTH, 0.5, 2, "meanflow-sdvae-mse"
    ),
    "meanflow-sdvae-mse-unguided": _meanflow("no guidance, 1 step", ("imagenet",), 0.0, 1),
    "meanflow-sdvae-mse-unguided-2": _meanflow(
        "no guidance, 2 steps", ("imagenet",), 0.0, 2, "meanflow-sdvae-mse-unguided"
    ),
}


def _lightning(depth: int, width: int, heads: int) -> Values:
    return {
        "backbone": "lightning-dit",
        "backbone.depth": depth,
        "backbone.width": width,
        "backbone.heads": heads,
    }


def _table1(name: str, plain: MethodRecipe, values: Values, published: str) -> MethodRecipe:
    """A row of Table 1: the protocol of a method's own paper. No config of these was released."""
    return replace(
        plain,
        summary=f"Table 1: {name}, {published} parameters printed",
        tasks=("imagenet",),
        values=plain.values | values,
        guidance=None,
        upstream={},
    )


UNGUIDED: Values = {"sampling.guidance.scale": 1.0}

TABLE_1: dict[str, MethodRecipe] = {
    # 847M, 680M and 446M follow from no released config: these are the nearest regular sizes.
    "table1-rae": _table1(
        "RAE (DINOv2-B)",
        LATENT["rae-dinov2-vit-b"],
        UNGUIDED | {"backbone.depth": 42},
        "847M",
    ),
    "table1-e2e-vavae": _table1(
        "E2E-VAVAE",
        LATENT["e2e-vavae"],
        UNGUIDED
        | {"backbone.width": 1344, "backbone.heads": 21, "sampling.steps": 250}
        | {"backbone.decoder_width": 1344, "backbone.decoder_heads": 21},
        "680M",
    ),
    "table1-e2e-vavae-repa": _table1(
        "E2E-VAVAE + REPA",
        LATENT["e2e-vavae"],
        UNGUIDED
        | {"backbone.width": 1344, "backbone.heads": 21, "sampling.steps": 250}
        | {"backbone.decoder_width": 1344, "backbone.decoder_heads": 21}
        | REPA_UPSTREAM
        | {"terms.repa.loss": "mse", "terms.repa.projector": "linear"},
        "681M",
    ),
    "table1-pixnerd": _table1(
        "PixNerd",
        PIXEL["pixnerd"],
        _lightning(16, 1512, 21)
        | {"sampling.guidance.scale": 3.5, "sampling.steps": 100, "train.images": 160 * EPOCH},
        "446M",
    ),
    "table1-jit": _table1(
        "JiT",
        PIXEL["jit"],
        _lightning(12, 768, 12) | {"sampling.guidance.scale": 2.9, "train.images": 200 * EPOCH},
        "88M",
    ),
    "table1-pixelgen": _table1(
        "PixelGen",
        PIXEL["pixelgen"],
        _lightning(36, 1024, 16) | UNGUIDED | {"train.images": 40 * EPOCH},
        "458M",
    ),
}

PUBLISHED: dict[str, MethodRecipe] = LATENT | PIXEL | MEANFLOW | TABLE_1
