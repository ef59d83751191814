"""Any text-to-image pipeline of diffusers, and class-conditional DiT, as a maker of images.

    pipeline = Pipeline("Tongyi-MAI/Z-Image-Turbo", PipelineConfig(steps=9), torch.device("cuda"))
    for request, images in pipeline.draw(Request(torch.arange(2), texts=("a cat", "a dog"))):
        ...                                           # uint8 [B, 3, H, W], on the CPU

The noise of a sample follows from (seed, index of the sample) alone, so it is the same picture in
any batch and on any number of processes, but for the rounding of sums. It is drawn on the CPU, so
that every device starts from the same noise.

    torch.Generator().manual_seed(noise_seed(seed, index))     # draws sample `index` elsewhere

What PipelineConfig leaves out is at the pipeline's own default. Its safety checker alone is left
out, as `facts` say: a metric would take the images that it paints black for the model's.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import chz
import numpy as np
import torch
from torch import Tensor

from nanogen import hub
from nanogen.bench.record import Plain
from nanogen.errors import ConfigError
from nanogen.images.pipeline_files import TEXTS, Weights, open_index
from nanogen.images.settings import PipelineConfig
from nanogen.metrics.similarity import Quantise, quantised
from nanogen.types import Request

WORDS = 2**32
OPTIONS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "true_guidance": "true_cfg_scale",
    "negative": "negative_prompt",
    "height": "height",
    "width": "width",
}
"""field of PipelineConfig -> what pipelines call it"""
SILENT = ("output_type", "return_dict", "num_images_per_prompt")
"""settings of a call that change nothing of what is drawn here"""


def noise_seed(seed: int, index: int) -> int:
    """The seed of the generator of a sample.

    PyTorch's CPU generator knows 32 bits of its seed: counting on from a hash, no two samples of an
    evaluation share theirs.
    """
    digest = hashlib.sha256(f"{seed}/pipeline".encode()).digest()
    return (int.from_bytes(digest[:4], "little") + index) % WORDS


class Pipeline:
    """A pipeline that draws what is asked for. Its weights are read when the first is drawn."""

    def __init__(self, model: str, config: PipelineConfig, device: torch.device) -> None:
        """`model`: an id on the hub, or a folder. ConfigError where it cannot be had, is no
        pipeline that draws from captions or classes, or takes no such setting.
        """
        folder = Path(model).expanduser()
        self.name = folder.resolve().name if folder.exists() else model
        self.origin = model
        self.config, self.device = config, device
        self.index = open_index(model, config.revision)
        self.kind = self.index.kind
        """text_to_image or class_conditional"""
        self._check()
        self._held = Weights(self.index, config, device)
        self._size: tuple[int, int] | None = None
        self._global_noise = False

    @property
    def settings(self) -> Mapping[str, Plain]:
        """What the pipeline is called with beside the prompts, defaults included."""
        defaults = {
            name: parameter.default
            for name, parameter in self.index.call.items()
            if isinstance(parameter.default, int | float | str) and name not in SILENT
        }
        return {**defaults, **self._given()}

    @property
    def facts(self) -> Mapping[str, Plain]:
        """What a record must say of how its images were drawn."""
        import diffusers

        settings = dict(self.settings)
        named = {field: settings.pop(name, None) for field, name in OPTIONS.items()}
        if self._size is not None:
            named["height"], named["width"] = self._size
        found = {name: value for name, value in named.items() if value is not None}
        if self.index.has_checker:
            found["safety_checker"] = "off"
        if self._global_noise:
            found["noise_by_batch"] = True
        return {
            "pipeline": self.index.name,
            "revision": self.index.revision,
            "scheduler": self.index.class_of("scheduler"),
            "dtype": str(self.config.precision(self.device)).removeprefix("torch."),
            "seed": self.config.seed,
            **found,
            "defaults": [f"{name}={value}" for name, value in sorted(settings.items())],
            "diffusers": diffusers.__version__,
        }

    @property
    def fingerprint(self) -> str:
        """Changes with the files, the settings and the precision."""
        said = {**self.settings, "dtype": str(self.config.precision(self.device))}
        said |= {"seed": self.config.seed, "revision": self.index.revision}
        text = json.dumps([self.index.name, sorted(said.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def reseeded(self, seed: int) -> Pipeline:
        """The same pipeline with other noise; its weights are shared."""
        other = copy.copy(self)
        other.config = chz.replace(self.config, seed=seed)
        return other

    def close(self) -> None:
        """Free the weights; they are read again when more is drawn."""
        self._held.free()

    def look(self) -> None:
        """Draw one image if none was drawn here: `facts` say its size, whichever process drew."""
        if self._size is None:
            one = torch.zeros(1, dtype=torch.int64)
            texts = self.index.given == TEXTS
            self._images(Request(one, texts=("",)) if texts else Request(one, labels=one))

    def draw(
        self, request: Request, quantise: Quantise = "round"
    ) -> Iterator[tuple[Request, Tensor]]:
        """Batches of requests with their images, uint8 [B, 3, H, W], on the CPU.

        ConfigError where the request holds no captions (or classes), the pipeline refuses its
        settings, a batch does not fit the memory, or what is drawn is no finite image.
        """
        self._wanted(request)
        for start in range(0, len(request), self.config.batch):
            rows = request.rows(start, start + self.config.batch)
            yield rows, quantised(self._images(rows), quantise)

    def _images(self, request: Request) -> Tensor:
        """float [B, 3, H, W] in [0, 1], of one batch."""
        pipeline, batch = self._held.pipeline(), self.config.batch
        generators = [
            torch.Generator().manual_seed(noise_seed(self.config.seed, index))
            for index in request.indices.tolist()
        ]
        given = self._given()
        if "negative_prompt" in given:
            given["negative_prompt"] = [given["negative_prompt"]] * len(request)
        given[self.index.given] = self._wanted(request)
        try:
            with self._own_noise(generators[0].initial_seed()):
                found = pipeline(generator=generators, output_type="np", **given).images
        except torch.OutOfMemoryError as problem:
            raise ConfigError(
                f"pipeline.batch={batch} of {self.name} does not fit the memory of {self.device}; "
                "lower it, or set pipeline.offload=model"
            ) from problem
        except (TypeError, ValueError, AttributeError, IndexError) as problem:
            raise ConfigError(
                f"{self.name} cannot draw with these settings: {hub.reason(problem)}; change the "
                "overrides that begin with pipeline."
            ) from problem
        return self._checked(found, len(request))

    def _checked(self, found: object, count: int) -> Tensor:
        """What a pipeline returned, numpy [B, H, W, 3] in [0, 1], as [B, 3, H, W]."""
        array = np.asarray(found)
        if array.ndim != 4 or len(array) != count or array.shape[3] != 3 or array.dtype.kind != "f":
            raise ConfigError(
                f"{self.name} returns {array.dtype} {array.shape} for {count} samples, not images; "
                "name a text-to-image pipeline"
            )
        if not np.isfinite(array).all():
            raise ConfigError(
                f"{self.name} draws values that are not finite; set pipeline.dtype=float32 or "
                "bfloat16"
            )
        self._size = (array.shape[1], array.shape[2])
        return torch.from_numpy(array).permute(0, 3, 1, 2).float()

    @contextlib.contextmanager
    def _own_noise(self, seed: int) -> Generator[None, None, None]:
        """Keep a pipeline that draws beside its generators from disturbing anybody, and note it:
        its images depend on who is in their batch.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            before = _states(self.device)
            yield
            after = _states(self.device)
        if not all(map(torch.equal, before, after)):
            self._global_noise = True

    def _given(self) -> dict[str, Any]:
        """The settings that are not left to the pipeline, by the names that it has for them."""
        fields = {field: getattr(self.config, field) for field in OPTIONS}
        return {OPTIONS[field]: value for field, value in fields.items() if value is not None}

    def _wanted(self, request: Request) -> list[str] | list[int]:
        """Captions or classes."""
        if self.index.given == TEXTS:
            if request.texts is None:
                raise ConfigError(
                    f"{self.name} draws captions, and there are none; choose metrics that bring "
                    "their prompts, or data with captions"
                )
            return list(request.texts)
        if request.labels is None:
            raise ConfigError(f"{self.name} draws classes, not captions; choose data with classes")
        return request.labels.tolist()

    def _check(self) -> None:
        for field, name in OPTIONS.items():
            value = getattr(self.config, field)
            if value is not None and name not in self.index.call:
                raise ConfigError(
                    f"pipeline.{field}={value} has no effect on a {self.index.name}, which takes "
                    f"no {name}; leave it out"
                )
        if self.config.offload != "none" and self.device.type == "cpu":
            raise ConfigError(
                f"pipeline.offload={self.config.offload} has no effect without a GPU; leave it out"
            )


def _states(device: torch.device) -> list[Tensor]:
    """Of the global generators that a computation on a device may draw from."""
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
