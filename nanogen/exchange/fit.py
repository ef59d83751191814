"""Whether a network of diffusion-bench is that of a run, and what differs where it is not.

    check(run, surroundings_of(run), weights.architecture, "ddt.pt")
        ConfigError: ddt.pt has REG of width 768, imagenet/flux2 has none; use imagenet/flux2-reg

Nothing is opened for it: data, tokenizers and encoders may be elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_type_hints

import torch
from torch import nn

from nanogen import recipes
from nanogen.errors import ConfigError
from nanogen.exchange.architecture import DDT, HEAD, LEAF, LIGHTNING, Architecture, Tower
from nanogen.plan.shapes import Surroundings, objective_on_meta, surroundings
from nanogen.registry import entry_of
from nanogen.run import Run

BACKBONE = "backbone."
"""what stands before the names of a backbone's weights in a checkpoint of a run"""
PROJECTOR = "objective.terms.repa.projector."
"""what stands before those of REPA's projector; a linear one is `repa_projector` elsewhere"""


def check(run: Run, around: Surroundings, found: Architecture, where: str) -> None:
    """ConfigError, saying what differs and which preset suits, unless a network is that of a
    run.
    """
    wanted, name = expected(run, around), run.name
    rows = [f"{theirs}, {name} has {ours}" for theirs, ours in _differences(found, wanted)]
    if rows:
        suiting = _suiting(run, around, found)
        fix = (
            f"use {' or '.join(suiting)}"
            if suiting
            else "name the preset that it was trained by, or set its fields as it has them"
        )
        raise ConfigError(f"{where} has {'; and '.join(rows)}; {fix}")


def surroundings_of(run: Run) -> Surroundings:
    """What the network of a run is built between; ConfigError where the conditioner learns along,
    which none of diffusion-bench does.
    """
    if get_type_hints(type(run.conditioner).build)["return"].trainable:
        name = entry_of(type(run.conditioner)).name
        raise ConfigError(
            f"conditioner={name} is trained along with the network, and a checkpoint of "
            "diffusion-bench has no place for it; only runs with a frozen one are converted"
        )
    return surroundings(run)


def expected(run: Run, around: Surroundings) -> Architecture:
    """The architecture of a run's network; ConfigError for one that diffusion-bench cannot have."""
    kind, backbone = entry_of(type(run.backbone)).name, run.backbone
    if kind not in (DDT, LIGHTNING):
        raise ConfigError(
            f"{run.name} has backbone={kind}, which diffusion-bench does not have; "
            f"it has {DDT} and {LIGHTNING}"
        )
    objective = objective_on_meta(run, around)
    wiring, latent = objective.wiring, around.latent
    others = [*(wiring.leaves.keys() - {LEAF}), *(wiring.heads.keys() - {HEAD}), *wiring.scalars]
    if others:
        raise ConfigError(
            f"the network of {run.name} is wired for {others[0]!r}, which no network of "
            "diffusion-bench is; only those that it has can be converted"
        )
    if latent.height != latent.width:
        raise ConfigError(
            f"{run.name} has a latent grid of {latent.height}x{latent.width}, and diffusion-bench "
            "has square ones only"
        )
    weight = dict(objective.state_dict()).get(PROJECTOR.removeprefix("objective.") + "weight")
    return Architecture(
        kind=kind,
        encoder=Tower(backbone.depth, backbone.width, backbone.heads),
        decoder=Tower(backbone.decoder_depth, backbone.decoder_width, backbone.decoder_heads)
        if kind == DDT
        else None,
        mlp_ratio=backbone.mlp_ratio,
        latent=latent,
        condition=around.condition,
        leaf=wiring.leaves.get(LEAF),
        interval=wiring.interval,
        base=HEAD in wiring.heads,
        projector=None if weight is None or weight.ndim != 2 else len(weight),
    )


def trained_on_meta(run: Run, around: Surroundings) -> nn.ModuleDict:
    """The backbone and the objective of a run, by the names that a checkpoint has them under."""
    objective = objective_on_meta(run, around)
    with torch.device("meta"):
        backbone = run.backbone.build(around.latent, around.condition, objective.wiring)
    return nn.ModuleDict({"backbone": backbone, "objective": objective})


def _differences(found: Architecture, wanted: Architecture) -> list[tuple[str, str]]:
    """(what is found, what is wanted) of every trait that differs."""
    theirs, ours = _traits(found), _traits(wanted)
    return [
        (theirs[name] or f"no {name}", ours[name] or "none")
        for name in theirs
        if theirs[name] != ours[name]
    ]


def _traits(architecture: Architecture) -> dict[str, str]:
    """What a network has, in words, by what it is called; empty where it has none."""

    def blocks(tower: Tower | None, of: str) -> str:
        if tower is None:
            return ""
        return f"{tower.depth} {of} blocks of width {tower.width} with {tower.heads} heads"

    latent, condition = architecture.latent, architecture.condition
    leaf, projector = architecture.leaf, architecture.projector
    shape = f"{latent.channels}x{latent.height}x{latent.width}"
    return {
        "backbone": f"backbone {architecture.kind}",
        "encoder": blocks(architecture.encoder, "encoder"),
        "decoder": blocks(architecture.decoder, "decoder"),
        "hidden units": f"mlp_ratio {architecture.mlp_ratio:g}",
        "latents": f"latents of {shape} in patches of {latent.patch}",
        "condition": f"{condition.classes} classes"
        if condition.classes is not None
        else f"captions of at most {condition.tokens} tokens of width {condition.width}",
        "REG": f"REG of width {leaf}" if leaf else "",
        "second time": "a second time (MeanFlow)" if architecture.interval else "",
        "head of internal guidance": "a head of internal guidance" if architecture.base else "",
        "REPA projector": f"a REPA projector of width {projector}" if projector else "",
    }


def _suiting(run: Run, around: Surroundings, found: Architecture) -> list[str]:
    """Presets of the same task and tokenizer that a network fits."""
    task, suiting = run.name.partition("/")[0], []
    if task not in recipes.TASKS:
        return []
    for method in recipes.methods_of(task):
        other = recipes.preset(f"{task}/{method}")
        if type(other.tokenizer) is not type(run.tokenizer):
            continue
        try:
            wanted = expected(other, replace(around, assumed=()))
        except ConfigError:
            continue  # of a kind that diffusion-bench does not have
        if not _differences(found, wanted):
            suiting.append(other.name)
    return suiting
