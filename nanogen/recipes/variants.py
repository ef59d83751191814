"""Variants of a preset: what may stand behind its @, in the order in which they are applied.

    imagenet/jit@upstream        fidelity: what is followed where code, text and origin differ
    t2i/flux2@200k               length of training
    imagenet/flux2@b             size of the network
    t2i/flux2@sft,1x24gb         fine-tuning, for one GPU of 24 GB

Hardware changes how a batch is cut and what is recomputed, never what is computed: the batch of a
step stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nanogen.recipes.base import MethodRecipe, TaskRecipe, Values

DEFAULT = "released"

Change = Callable[[TaskRecipe, MethodRecipe, Values], Values]
"""(task, method, values so far) -> values that change"""


def _published(task: str, recipe: TaskRecipe, method: MethodRecipe) -> bool:
    return recipe.published


@dataclass(frozen=True)
class Variant:
    kind: str
    """of two variants of one kind a preset has at most one"""
    summary: str
    values: Change
    suits: Callable[[str, TaskRecipe, MethodRecipe], bool] = _published


def released_schedule(images: int) -> Values:
    """No warm-up, and a decay that ends long after the run."""
    return {
        "schedule.decay_start": images // 2,
        "schedule.decay_end": 10 * images,
        "schedule.final": 0.1,
    }


def paper_schedule(images: int) -> Values:
    """A linear warm-up, then a linear decay to a tenth. The text gives no length of the warm-up; it
    is taken from the released configs, half of the run.
    """
    return {"schedule.warmup": images // 2, "schedule.final": 0.1}


def _released(task: TaskRecipe, method: MethodRecipe, values: Values) -> Values:
    of_task = method.released_on.get(values["name"].partition("/")[0], {})
    return released_schedule(values["train.images"]) | method.released | of_task


def _paper(task: TaskRecipe, method: MethodRecipe, values: Values) -> Values:
    return paper_schedule(values["train.images"])


def _upstream(task: TaskRecipe, method: MethodRecipe, values: Values) -> Values:
    """The length and guidance of a method's own ImageNet run say nothing of another task."""
    found = dict(method.upstream)
    if not task.best_guidance:
        found = {
            path: value
            for path, value in found.items()
            if path != "train.images" and not path.startswith("sampling.guidance.")
        }
    return found


def _longer(task: TaskRecipe, method: MethodRecipe, values: Values) -> Values:
    """Twice as long; the learning rate is stretched with the run."""
    stretched = {
        path: 2 * value
        for path, value in values.items()
        if path in ("schedule.warmup", "schedule.decay_start", "schedule.decay_end") and value
    }
    return {"train.images": 2 * values["train.images"]} | stretched


def _sft(task: TaskRecipe, method: MethodRecipe, values: Values) -> Values:
    """The trained run's weights, few and good images, a constant rate a tenth as high."""
    plain, _, variants = values["name"].partition("@")
    network = [name for name in variants.split(",") if VARIANTS[name].kind in ("fidelity", "size")]
    return {
        "train.start": f"runs/{'@'.join(filter(None, (plain, ','.join(network))))}",
        "task.data.path": "data/blip3o-60k",
        "train.images": 5_120_000,
        "optimiser.lr": 2e-5,
        "schedule.warmup": 102_400,
        "schedule.decay_start": None,
        "schedule.decay_end": None,
        "schedule.final": 1.0,
    }


def _size(depth: int, width: int, heads: int) -> Change:
    """Sizes of DiT (arXiv 2212.09748) for the encoder; the decoder keeps the paper's."""
    return lambda task, method, values: {
        "backbone.depth": depth,
        "backbone.width": width,
        "backbone.heads": heads,
    }


def _hardware(micro_batch: int, recompute: bool = False) -> Change:
    return lambda task, method, values: {
        "machine.micro_batch": micro_batch // task.area,
        "machine.recompute": recompute,
    }


def _has_upstream(task: str, recipe: TaskRecipe, method: MethodRecipe) -> bool:
    return recipe.published and bool(method.upstream)


def _on_ddt(task: str, recipe: TaskRecipe, method: MethodRecipe) -> bool:
    return recipe.published and "backbone" not in method.values


def _of_captions(task: str, recipe: TaskRecipe, method: MethodRecipe) -> bool:
    return recipe.published and not recipe.best_guidance


VARIANTS: dict[str, Variant] = {
    "released": Variant("fidelity", "as the released configs and code", _released),
    "paper": Variant("fidelity", "as the paper's text", _paper),
    "upstream": Variant("fidelity", "as the method's own authors", _upstream, _has_upstream),
    "s": Variant("size", "encoder 12 x 384", _size(12, 384, 6), _on_ddt),
    "b": Variant("size", "encoder 12 x 768", _size(12, 768, 12), _on_ddt),
    "l": Variant("size", "encoder 24 x 1024", _size(24, 1024, 16), _on_ddt),
    "xl": Variant("size", "encoder 28 x 1152", _size(28, 1152, 16), _on_ddt),
    "200k": Variant("length", "200K steps", _longer, _of_captions),
    "sft": Variant("length", "fine-tuned on BLIP3o-60K", _sft, _of_captions),
    "1x24gb": Variant("hardware", "one GPU of 24 GB", _hardware(8, recompute=True)),
    "1x80gb": Variant("hardware", "one GPU of 80 GB", _hardware(32)),
    "8x80gb": Variant("hardware", "8 GPUs of 80 GB", _hardware(32)),
}
