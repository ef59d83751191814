"""What can be evaluated: a trained run, images that are there, a pipeline of somebody else.

Each gives images for the prompts that a metric asks for, and fills in what a record says of their
origin. The rest of the evaluation does not know which one it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, cast

import chz
import torch
from torch import Tensor

from nanogen import config, registry
from nanogen.bench.record import Plain, Record
from nanogen.conditioners.encoded import EncodedPrompts
from nanogen.errors import ConfigError
from nanogen.evaluation.settings import Evaluation
from nanogen.images.base import Images
from nanogen.metrics.base import Unfit
from nanogen.model import parameter_count
from nanogen.prompts.base import PromptSet
from nanogen.run_folder import Opened
from nanogen.sampling.generate import Sampler
from nanogen.types import Conditioner, Request


class Subject(Protocol):
    """Images for every set of prompts that is asked for."""

    @property
    def kind(self) -> str:
        """Of its task: which metrics apply; "any" where that is not known."""
        ...

    @property
    def batch(self) -> int:
        """How many are drawn or read at once."""
        ...

    @property
    def rereads(self) -> bool:
        """Whether images can be read once more for next to nothing."""
        ...

    @property
    def identity(self) -> Mapping[str, Plain]:
        """Everything that decides an image."""
        ...

    def samples(self, prompts: str) -> int:
        """How many there are for a registered set of prompts; "" are the subject's own."""
        ...

    def request(self, prompts: str, start: int, stop: int) -> Request:
        """What is known of those from start to stop. UserError where nothing can be drawn."""
        ...

    def read(self, prompts: str, start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        """Those from start to stop, uint8 [B, 3, H, W]."""
        ...

    def remedy(self, problem: Unfit) -> str:
        """What to do where a metric cannot be computed from them."""
        ...

    def rest(self) -> None:
        """Free the device of whatever draws. More can be drawn all the same."""
        ...

    def again(self, repeat: int) -> Self:
        """The same with other noise; ConfigError where there is none to change."""
        ...

    def record(self, values: Mapping[str, object]) -> Record:
        """A record of one score, filled up with the origin of the images."""
        ...


def prompted(name: str, start: int, stop: int) -> Request:
    """Samples start .. stop of a registered set of prompts: sample i shows prompt i % P."""
    texts = prompt_set(name).texts
    indices = torch.arange(start, stop)
    return Request(indices, texts=tuple(texts[int(i) % len(texts)] for i in indices))


def prompt_set(name: str) -> PromptSet:
    return cast(PromptSet, registry.get("prompts", name)())


def samples_of(name: str, settings: Evaluation) -> int:
    """Images that are drawn for a set of prompts."""
    prompts = prompt_set(name)
    return len(prompts.texts) * (settings.images_per_prompt or prompts.images)


def drawn_otherwise(problem: Unfit) -> str:
    """The remedy where samples are drawn."""
    return f"set evaluation.samples={problem.wanted}" if problem.wanted else "leave it out"


@dataclass(frozen=True)
class DrawnByRun:
    """What a trained run draws."""

    opened: Opened
    repeat: int = 0
    stay: bool = False
    """whether its networks stay on the device, since they are being trained: also the text encoder
    once the prompts are encoded
    """
    rereads: bool = False
    encoded: dict[str, Conditioner] = field(default_factory=dict)
    """what stands in for the text encoder, by set of prompts"""

    @property
    def kind(self) -> str:
        return self.opened.parts.task.kind

    @property
    def batch(self) -> int:
        return self.opened.parts.run.sampling.batch

    @property
    def sampler(self) -> Sampler:
        run = self.opened.parts.run
        seed = run.sampling.seed + self.repeat
        return self.opened.parts.sampler(chz.replace(run.sampling, seed=seed))

    @property
    def identity(self) -> Mapping[str, Plain]:
        run, opened = self.opened.parts.run, self.opened
        return {
            "run": config.digest(run.identity()),
            "sampling": config.digest(run.sampling),
            **{"repeat": self.repeat, "weights": opened.weights, "seen": opened.seen},
            "device": opened.parts.device.type,
        }

    def samples(self, prompts: str) -> int:
        settings = self.opened.parts.run.evaluation
        return samples_of(prompts, settings) if prompts else settings.samples

    def request(self, prompts: str, start: int, stop: int) -> Request:
        task = self.opened.parts.task
        return prompted(prompts, start, stop) if prompts else task.request(start, stop)

    def read(self, prompts: str, start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        request = self.request(prompts, start, stop)
        sampler = replace(self.sampler, conditioner=self.conditioner(prompts))
        if not self.stay:
            sampler.move(self.opened.parts.device)
        return sampler.stream(request, self.opened.parts.run.evaluation.quantise)

    def remedy(self, problem: Unfit) -> str:
        return drawn_otherwise(problem)

    def conditioner(self, prompts: str) -> Conditioner:
        """The conditioner of the run, with all prompts encoded if it is a frozen text encoder."""
        if prompts not in self.encoded:
            parts = self.opened.parts
            texts = prompt_set(prompts).texts if prompts else parts.task.source.prompts()
            if isinstance(parts.conditioner, torch.nn.Module) and not self.stay:
                parts.conditioner.to(parts.device)
            found = EncodedPrompts.of(parts.conditioner, texts)
            if isinstance(found, EncodedPrompts) and not self.stay:
                found.free()
            self.encoded[prompts] = found
        return self.encoded[prompts]

    def rest(self) -> None:
        if not self.stay:
            self.sampler.move(torch.device("cpu"))
        if self.opened.parts.device.type == "cuda":
            torch.cuda.empty_cache()

    def again(self, repeat: int) -> DrawnByRun:
        return replace(self, repeat=repeat)

    def record(self, values: Mapping[str, object]) -> Record:
        parts, run = self.opened.parts, self.opened.parts.run
        return Record(
            run=run.name,
            task=parts.task.kind,
            method=run.name.rpartition("/")[2],
            budget=run.budget,
            weights=self.opened.weights,
            seen=self.opened.seen,
            sampler=self.sampler.facts(),
            training_seed=run.seed,
            config_hash=config.digest(run.identity()),
            parameters=parameter_count(parts.model),
            device=parts.device.type,
            quantisation=run.evaluation.quantise,
            **values,  # ty: ignore[invalid-argument-type]
        )


@dataclass(frozen=True)
class Given:
    """Images that are there."""

    images: Images
    kind: str = "any"
    batch: int = 100
    rereads: bool = True
    device: str = "cpu"
    """where scores are computed"""

    @property
    def identity(self) -> Mapping[str, Plain]:
        return {"origin": self.images.origin, "images": self.images.fingerprint}

    def samples(self, prompts: str) -> int:
        return self.images.count()

    def request(self, prompts: str, start: int, stop: int) -> Request:
        return self.images.request(start, stop)

    def read(self, prompts: str, start: int, stop: int) -> Iterator[tuple[Request, Tensor]]:
        return self.images.read(start, stop)

    def remedy(self, problem: Unfit) -> str:
        there, where = self.images.count(), self.images.origin
        if problem.wanted is None:
            return self.images.unknown_class or "leave it out"
        more = problem.wanted - there
        return f"{where} holds {there}: " + (
            f"{more} more images are needed" if more > 0 else f"take {problem.wanted} of them"
        )

    def rest(self) -> None:
        """Nothing draws."""

    def again(self, repeat: int) -> Given:
        raise ConfigError("evaluation.repeats has no effect on images that are there; leave it out")

    def record(self, values: Mapping[str, object]) -> Record:
        facts = cast(Mapping[str, Plain], values["facts"])
        return Record(
            run=self.images.origin,
            task="images",
            method=self.images.name,
            device=self.device,
            **{**values, "facts": {**facts, **self.images.facts}},  # ty: ignore[invalid-argument-type]
        )
