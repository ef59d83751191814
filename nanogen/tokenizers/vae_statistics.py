"""How the raw latents of an autoencoder are normalised: latents = (raw - shift) * scale.

Shift and scale are decided separately. The first of these that is there counts:

1. what the user gives,
2. `latents_mean` and `latents_std` of config.json, channel by channel,
3. what the preset knows,
4. `shift_factor` and `scaling_factor` of config.json.

Without any the scale is an error: a default would be the statistics of another model. FLUX.2 has
none of them: its packed latents are whitened by the batch statistics among its weights.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogen.errors import ConfigError
from nanogen.tokenizers.vae_files import Files

EPSILON = 1e-5
"""added to FLUX.2's variances, as the published diffusion models were trained with; the pipeline of
diffusers adds the 1e-4 of its config
"""
SCALARS = {"latents_mean": "shift_factor", "latents_std": "scaling_factor"}
"""fields of config.json: those for each channel -> those for all of them"""


@dataclass(frozen=True)
class Known:
    """What a preset knows of an autoencoder before its files are read."""

    network: str = ""
    """class of diffusers; empty: any"""
    shift: float | None = None
    scale: float | None = None
    tuned: bool = False
    """trained on from another model, so that what is true of that one is not of it: its own
    config.json must say how it is normalised
    """


@dataclass(frozen=True)
class Given:
    """What the user gives; None: not given."""

    shift: float | None = None
    scale: float | None = None
    epsilon: float | None = None
    """FLUX.2 only"""


@dataclass(frozen=True)
class Statistic:
    """A shift or a scale: a number or [C], and where it comes from."""

    value: Tensor | float
    origin: str


@dataclass(frozen=True)
class Statistics:
    shift: Statistic
    scale: Statistic


def statistics(files: Files, network: nn.Module, known: Known, given: Given) -> Statistics:
    """Shift and scale of an autoencoder; ConfigError where its files do not say them, or where what
    is given has no effect.
    """
    _check_effect(files, given)
    if files.kind.packed:
        return _whitening(files, network, EPSILON if given.epsilon is None else given.epsilon)
    mean, deviation = _vector(files, "latents_mean"), _vector(files, "latents_std")
    if known.tuned:
        _check_tuned(files)
    shifts = (
        _given(given.shift, "tokenizer.shift"),
        _given(mean, "latents_mean"),
        _given(known.shift, "the preset"),
        _given(_number(files, "shift_factor"), "shift_factor"),
        # Older configs have no such field, newer ones may say null: their latents are not shifted.
        # The video classes never had it: without a vector nothing is known of them.
        None if files.kind.video else Statistic(0.0, "no shift_factor"),
    )
    scales = (
        _given(given.scale, "tokenizer.scale"),
        None if deviation is None else Statistic(1 / deviation, "latents_std"),
        _given(known.scale, "the preset"),
        _given(_number(files, "scaling_factor"), "scaling_factor"),
    )
    return Statistics(_first(shifts, files, "mean"), _first(scales, files, "std"))


def _whitening(files: Files, network: nn.Module, epsilon: float) -> Statistics:
    """FLUX.2: the batch statistics of packed latents, [4 C]."""
    mean, variance = (network.get_buffer(f"bn.running_{name}") for name in ("mean", "var"))
    if len(mean) != files.channels:
        raise ConfigError(
            f"{files.source.model} has batch statistics of {len(mean)} channels, but "
            f"{files.channels} packed latents; only patch_size [2, 2] is supported"
        )
    return Statistics(
        Statistic(mean.clone(), "bn.running_mean"),
        Statistic((variance + epsilon).rsqrt(), f"bn.running_var + {epsilon:g}"),
    )


def _check_effect(files: Files, given: Given) -> None:
    numbers = {"shift": given.shift, "scale": given.scale}
    for name, value in (numbers if files.kind.packed else {"eps": given.epsilon}).items():
        if value is not None:
            raise ConfigError(
                f"tokenizer.{name}={value} has no effect on {files.name}; leave it out"
            )


def _check_tuned(files: Files) -> None:
    """Scalars of a tuned autoencoder may be left over from the one it was tuned from."""
    model = files.source.model
    missing = {
        vector: number for vector, number in SCALARS.items() if _vector(files, vector) is None
    }
    for vector, number in missing.items():
        if _number(files, number) is None:
            raise ConfigError(
                f"config.json of {model} has neither {vector} nor {number}; this autoencoder needs "
                "its own: add them, or use tokenizer=vae with tokenizer.shift and tokenizer.scale"
            )
    if missing:
        warnings.warn(
            f"config.json of {model} has no {' and '.join(missing)}: its "
            f"{' and '.join(missing.values())} {'is' if len(missing) == 1 else 'are'} used, which "
            "may be left over from another autoencoder; check with nanogen tokenizer probe",
            stacklevel=2,
        )


def _given(value: Tensor | float | None, origin: str) -> Statistic | None:
    return None if value is None else Statistic(value, origin)


def _first(candidates: Sequence[Statistic | None], files: Files, vector: str) -> Statistic:
    found = next((one for one in candidates if one is not None), None)
    if found is not None:
        return found
    raise ConfigError(
        f"config.json of {files.source.model} has no latents_{vector}"
        f"{'' if files.kind.video else ' and no scaling_factor'}, and the default of {files.name} "
        "would be that of another model; add it, or use tokenizer=vae with tokenizer.shift and "
        "tokenizer.scale (nanogen tokenizer probe measures them)"
    )


def _vector(files: Files, field: str) -> Tensor | None:
    """[C] of config.json; None where the field is absent or null."""
    value = files.config.get(field)
    if value is None:
        return None
    numbers = value if isinstance(value, list) else []
    fine = all(_is_number(x) and (field == "latents_mean" or x > 0) for x in numbers)
    if len(numbers) != files.channels or not fine:
        raise ConfigError(
            f"{field} in config.json of {files.source.model} is not a list of {files.channels} "
            f"{'numbers' if field == 'latents_mean' else 'numbers above 0'}; correct it"
        )
    return torch.tensor(numbers, dtype=torch.float32)


def _number(files: Files, field: str) -> float | None:
    """A number of config.json; None where the field is absent or null."""
    value = files.config.get(field)
    if value is None:
        return None
    if not _is_number(value) or (field == "scaling_factor" and value <= 0):
        raise ConfigError(
            f"config.json of {files.source.model} says {field}={value!r}; correct it: it must be a "
            f"{'finite number' if field == 'shift_factor' else 'number above 0'}"
        )
    return float(value)


def _is_number(value: object) -> bool:
    """Whether what JSON gave is a finite number; true and false are none, though Python's are."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
