"""Named runs. A preset is `<task>/<method>`, with variants behind an @:

    animals/pixels-v          class-conditional on 9,716 silhouettes: a laptop's ImageNet
    scenes/pixels-v           the same as captioned, coloured scenes: a laptop's text-to-image
    imagenet/flux2            ImageNet-256 in the latents of the FLUX.2-VAE, at the paper's size
    t2i/flux2                 BLIP-3o at 256 px, the same method
    t2i/flux2@paper,b,1x24gb  by the paper's text, a smaller network, memory for one small GPU

A task (`tasks`) sets data, conditioner, metrics and guidance, and a method (`methods`, and `small`
for those that train on a CPU) sets everything else; so a method moves from one task to the other
unchanged, and `nanogen diff` of the two presets shows at most eleven lines (thirteen where images
and network are larger too, `t2i-512`). `variants` holds what may stand behind the @.
"""

from __future__ import annotations

from typing import Any

from nanogen import config, registry
from nanogen.errors import ConfigError, suggest
from nanogen.recipes.base import MethodRecipe, TaskRecipe, Values
from nanogen.recipes.methods import PUBLISHED
from nanogen.recipes.small import SMALL
from nanogen.recipes.tasks import TASKS
from nanogen.recipes.variants import DEFAULT, VARIANTS, Variant
from nanogen.run import Run

METHODS: dict[str, MethodRecipe] = SMALL | PUBLISHED
"""all methods, by name; no name is in both"""


def names() -> list[str]:
    """All presets, each in every fidelity that it has; see `VARIANTS` for what else may follow."""
    plain = [f"{task}/{method}" for method, recipe in METHODS.items() for task in recipe.tasks]
    fidelities = [name for name, variant in VARIANTS.items() if variant.kind == "fidelity"]
    return plain + [
        f"{name}@{fidelity}"
        for fidelity in fidelities
        for name in plain
        if fidelity != DEFAULT and _why_not(name, fidelity) is None
    ]


def describe(name: str) -> str:
    """One line on a preset."""
    task, method, chosen = _split(name)
    parts = [METHODS[method].summary, TASKS[task].summary]
    return "; ".join([*parts, *(VARIANTS[variant].summary for variant in chosen)])


def methods_of(task: str) -> list[str]:
    return [method for method, recipe in METHODS.items() if task in recipe.tasks]


def preset(name: str) -> Run:
    """The run of a preset; an unknown name or variant is a ConfigError with the nearest ones."""
    plain = name.partition("@")[0]
    known = [f"{task}/{method}" for method, recipe in METHODS.items() for task in recipe.tasks]
    if plain not in known:
        raise ConfigError(f"unknown preset {name!r}; {suggest(plain, known)}")
    task, method, chosen = _split(name)
    recipe, own = TASKS[task], METHODS[method]
    values: Values = {"name": name} | recipe.shared | recipe.own | own.values
    if values["tokenizer"] == "pixels":
        values["tokenizer.patch"] = recipe.pixel_patch
    if recipe.best_guidance and own.guidance is not None:
        values["sampling.guidance.scale"] = own.guidance
    for variant in _variants(name, recipe, chosen):
        values |= variant.values(recipe, own, values)
    return config.make(Run, resolved(values))


def resolved(values: Values) -> dict[str, Any]:
    """Values with the names of parts replaced by the parts."""
    kinds = {
        "task": "task",
        "task.data": "data",
        "tokenizer": "tokenizer",
        "conditioner": "conditioner",
        "backbone": "backbone",
        "objective": "objective",
        "optimiser": "optimiser",
    }
    made = {}
    for path, value in values.items():
        if path in kinds:
            value = registry.get(kinds[path], value)
        elif path.startswith("terms.") and value == "on":
            value = registry.get("term", path.removeprefix("terms."))
        made[path] = value
    return made


def _split(name: str) -> tuple[str, str, tuple[str, ...]]:
    """`task/method@variant,variant`."""
    plain, _, variants = name.partition("@")
    task, _, method = plain.partition("/")
    return task, method, tuple(filter(None, variants.split(",")))


def _variants(name: str, recipe: TaskRecipe, chosen: tuple[str, ...]) -> list[Variant]:
    """The variants to apply, in the order in which they build on each other; ConfigError where one
    is unknown, does not suit the preset, or contradicts another.
    """
    if "@" in name and "" in name.partition("@")[2].split(","):
        plain = name.partition("@")[0]
        raise ConfigError(f"preset {name!r} names an empty variant; {plain} is the preset without")
    for variant in chosen:
        reason = _why_not(name, variant)
        if reason is not None:
            raise ConfigError(f"unknown preset {name!r}; {reason}")
    kinds = [VARIANTS[variant].kind for variant in chosen]
    for variant, kind in zip(chosen, kinds, strict=True):
        if kinds.count(kind) > 1:
            raise ConfigError(f"preset {name!r} names two variants of its {kind}; keep {variant!r}")
    wanted = set(chosen)
    if recipe.published and "fidelity" not in kinds:
        wanted.add(DEFAULT)
    return [variant for key, variant in VARIANTS.items() if key in wanted]


def _why_not(name: str, variant: str) -> str | None:
    """Why a preset has no such variant, with what to write instead; None where it has."""
    task, method, _ = _split(name)
    possible = [
        key for key, one in VARIANTS.items() if one.suits(task, TASKS[task], METHODS[method])
    ]
    if variant in possible:
        return None
    plain = f"{task}/{method}"
    if not possible:
        return f"did you mean {plain}? It has no variants"
    nearest = [f"{plain}@{key}" for key in possible]
    return suggest(f"{plain}@{variant}", nearest)
