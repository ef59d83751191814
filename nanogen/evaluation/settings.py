"""What is measured of a run, on how much, and how: the `evaluation` of a run."""

from __future__ import annotations

from typing import Literal

import chz

from nanogen.errors import ConfigError

PRECISIONS = ("fp32", "bf16")
QUANTISATIONS = ("round", "truncate")


@chz.chz
class Evaluation:
    metrics: tuple[str, ...] = ()
    samples: int = chz.field(default=50_000, doc="drawn for metrics that bring no prompts")
    images_per_prompt: int = chz.field(
        default=0, doc="drawn for metrics that bring their prompts; 0: as many as published"
    )
    repeats: int = chz.field(
        default=1, doc="times that all is drawn anew, with other noise, and averaged"
    )
    every: int = chz.field(
        default=0, doc="images between evaluations during training; 0: only at the end"
    )
    quantise: Literal["round", "truncate"] = chz.field(
        default="round", doc="how grey levels are made whole; truncate: as the reference code does"
    )
    precision: Literal["fp32", "bf16"] = chz.field(
        default="fp32", doc="of scoring models that are published for half precision"
    )

    @chz.validate
    def _ranges(self) -> None:
        for name, least in (("samples", 1), ("images_per_prompt", 0), ("repeats", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"evaluation.{name}={getattr(self, name)}: must be at least {least}"
                )
        for name, known in (("quantise", QUANTISATIONS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"evaluation.{name}={getattr(self, name)!r}: choose {' or '.join(known)}"
                )
