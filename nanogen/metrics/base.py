"""What a metric is: sums over samples, and a function of the sums.

The harness shows every metric each batch of samples once, adds `sums` over processes, and asks for
the scores. Images are never gathered. The few metrics that need every sample (precision and
recall, the splits of an inception score) keep `rows` of features, which the harness gathers in the
order of the sample indices. So no score depends on batch size, order, or the number of processes.

A metric is registered as a class with a `Metric` interface; its constructor takes a `Context`, and
the options that stand in brackets behind its name: `geneval[compat=reference]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from nanogen import registry
from nanogen.data.base import Source
from nanogen.errors import ConfigError, MetricError
from nanogen.prompts.base import PromptSet
from nanogen.store import Asset, find, present
from nanogen.types import Request

Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What a metric may need to build its references: the real data, and where to compute."""

    source: Source
    device: torch.device
    batch: int = 256
    """images that go through a feature network at once; changes speed and memory only"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of scoring models that are published for use in half precision"""
    captions: tuple[str, ...] = ()
    """of the images, where they are known and not those of the data; the same on every process"""


class Observation:
    """One batch of samples, with the features of each network computed once however many metrics
    ask.
    """

    def __init__(
        self,
        images: Tensor,
        request: Request,
        networks: Callable[[str], Callable[[Tensor], Features]],
    ):
        """`images` uint8 [B, 3, H, W]; `networks(name)` is an encoder that maps such images to
        features.
        """
        self.images = images
        self.request = request
        self._networks = networks
        self._features: dict[str, Features] = {}

    def features(self, network: str) -> Features:
        """Features of a registered encoder: name -> [B, ...]."""
        if network not in self._features:
            self._features[network] = self._networks(network)(self.images)
        return self._features[network]


@dataclass(frozen=True)
class Outcomes:
    """What a metric says of each image, so that two evaluations can be compared prompt by prompt.

    Three columns of the same length, in the order of the sample indices.
    """

    prompts: tuple[str, ...]
    tags: tuple[str, ...]
    """kinds of prompt over which the score is averaged; "" where it is over all images alike"""
    values: tuple[float, ...]


@dataclass(frozen=True)
class Option:
    """One choice that a metric offers in brackets behind its name."""

    what: str
    default: str
    choices: tuple[str, ...] = ()
    """empty: any word of letters, digits, `.`, `_`, `-`"""


@dataclass(frozen=True)
class Score:
    """One number of a metric. `standard_error` is None where no honest one exists (one seed of a
    distance).
    """

    value: float
    standard_error: float | None
    n: int
    """samples behind the value"""
    higher_is_better: bool
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    """what a reader must know beside the value: reference, its hash, the checker's own accuracy
    ...
    """
    outcomes: Outcomes | None = None
    """of metrics that judge one image at a time"""


class Unfit(MetricError):
    """Samples that a metric cannot be computed from, whose remedy depends on where they are from.

    `wanted`: how many would do; None where it is not their number, but that their classes are not
    known.
    """

    def __init__(self, problem: str, wanted: int | None = None) -> None:
        super().__init__(problem)
        self.wanted = wanted


class Metric(ABC):
    """Subclass, register with `@register("metric", name, summary=...)`, and implement three
    methods.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """raised whenever the same images would get another value"""
    task: ClassVar[str]
    """"class_conditional", "text_to_image" or "any\""""
    minimum: ClassVar[int] = 1
    """fewest samples for which the value means anything; fewer are refused"""
    options: ClassVar[Mapping[str, Option]] = {}
    prompts: str = ""
    """the registered set of prompts that samples are drawn for, which options may change; empty:
    those of the run's own data
    """
    assets: tuple[Asset, ...] = ()
    """what must be in the store: of a class, for all options; of an instance, for its own"""
    findings: ClassVar[tuple[str, ...]] = ()
    """facts that follow from the samples; comparisons take all others for conditions"""
    takes_precision: ClassVar[bool] = False
    """whether its models compute in the precision of the context; others have one of their own"""

    def __init__(self, context: Context, chosen: Mapping[str, str] | None = None) -> None:
        """`chosen` are values of some options; the others have their defaults. Opens no model and
        reads no file: a metric that cannot be computed says so in `check`.
        """
        self.context = context
        self.chosen = {name: option.default for name, option in self.options.items()}
        self.chosen |= chosen or {}
        self.sums: dict[str, Tensor] = {}
        """float64 tensors, added over processes"""
        self.rows: dict[str, list[Tensor]] = {}
        """per-sample tensors [B, ...], gathered over processes and ordered by sample index"""

    @property
    def of_data(self) -> bool:
        """Whether samples are compared with the real images of the context's data."""
        return False

    @property
    def title(self) -> str:
        """The name with all options that are not the default: what its score is called."""
        changed = [
            f"{name}={self.chosen[name]}"
            for name, option in self.options.items()
            if self.chosen[name] != option.default
        ]
        return f"{self.name}[{','.join(changed)}]" if changed else self.name

    @property
    def precision(self) -> str:
        """In which its models compute; empty where there is no choice."""
        return self.context.precision if self.takes_precision else ""

    def refuse_unknown(self) -> None:  # noqa: B027  (most options are choices)
        """Raise a UserError for an option that names what is not there. Reads no data, and comes
        before all that the user would have to fetch or to add.
        """

    def check(self, samples: int) -> None:
        """Raise a UserError where the metric cannot be computed from so many samples, or lacks an
        asset; called before anything is drawn.
        """
        self.refuse_unknown()
        if samples < self.minimum:
            raise Unfit(
                f"metric {self.title} needs at least {self.minimum} samples, not {samples}",
                self.minimum,
            )
        needed = self.needed()
        absent = [asset for asset in needed if not present(asset)]
        if len(absent) > 1:
            listed = ", ".join(asset.labelled for asset in absent)
            raise ConfigError(
                f"metric {self.title} needs {listed}, which are not in the store; run: "
                f"nanogen prepare '{self.title}' (or, where you have them, each with --from PATH)"
            )
        for asset in needed:
            find(asset)

    def check_request(self, request: Request) -> None:  # noqa: B027  (many need no more)
        """Raise a UserError where it cannot be computed from what all samples were asked for: their
        classes or captions. Called before anything is drawn, after `check`.
        """

    def needed(self) -> tuple[Asset, ...]:
        """What must be in the store: for its prompts, and for itself."""
        drawn_for: tuple[Asset, ...] = ()
        if self.prompts:
            drawn_for = cast(type[PromptSet], registry.get("prompts", self.prompts)).assets
        return tuple(dict.fromkeys((*drawn_for, *self.assets)))

    @cached_property
    def reference(self) -> Any:
        """What samples are compared with; built on first use."""
        return None

    @abstractmethod
    def update(self, seen: Observation) -> None:
        """Add one batch to `sums` and `rows`."""

    @abstractmethod
    def compute(self, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Score]:
        """Scores by name from the totals over all processes: the metric's own name, and any parts
        `name/part`. `self.name` is without options; whoever measures adds them.
        """

    def close(self) -> None:  # noqa: B027  (most metrics have nothing to free)
        """Free the models that only this metric uses. It may be asked to `update` again later."""

    def add(self, name: str, amount: Tensor) -> None:
        """Add a float64 amount to a sum."""
        amount = amount.detach().to("cpu", torch.float64)
        self.sums[name] = self.sums[name] + amount if name in self.sums else amount
