"""From the name of a pipeline of diffusers to its files, before any weight is read.

    index = open_index("stabilityai/stable-diffusion-3.5-large", None)
    index.name, index.kind, index.revision       # StableDiffusion3Pipeline, text_to_image, ce0f...
    index.load(torch.bfloat16)                   # the pipeline itself, in main memory

No code that comes with a pipeline is run, and no weights but safetensors are read: others are
pickles.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanogen import hub
from nanogen.errors import ConfigError, MissingExtra
from nanogen.images.folder import Listed
from nanogen.images.settings import PipelineConfig
from nanogen.tokenizers.vae_files import quiet

FIELD = "--pipeline"
WHAT = "pipeline that diffusers can load"
INDEX = "model_index.json"
TEXTS, LABELS = "prompt", "class_labels"
KINDS = {TEXTS: "text_to_image", LABELS: "class_conditional"}
"""what a pipeline is called with -> the kind of task that it does"""
OTHER_INPUTS = re.compile(r"(image|control_image|mask_image|(num_)?frames|audio.*|video.*)")
"""what is given to those that change images, or draw films or sounds"""
CHECKER = "safety_checker"


@dataclass(frozen=True)
class Index:
    """What is known of a pipeline from its `model_index.json` and its class."""

    source: hub.Source
    name: str
    """the class of diffusers"""
    entries: Mapping[str, Any]
    """of model_index.json: component -> [library, class]"""
    revision: str
    """the commit on the hub; of a folder, a hash of names, sizes and times of its files"""

    @property
    def call(self) -> Mapping[str, inspect.Parameter]:
        """What the pipeline can be called with."""
        return _call(self.name)

    @property
    def given(self) -> str:
        """Under which name it takes what is to be drawn: TEXTS or LABELS."""
        return TEXTS if TEXTS in self.call else LABELS

    @property
    def kind(self) -> str:
        return KINDS[self.given]

    @property
    def has_checker(self) -> bool:
        """Whether it would paint some of its images black, of which a metric knows nothing."""
        return (self.entries.get(CHECKER) or [None])[0] is not None

    def class_of(self, component: str) -> str:
        """The class of a component; empty where there is none."""
        entry = self.entries.get(component)
        return str(entry[1]) if isinstance(entry, list) and entry[1] else ""

    def load(self, dtype: torch.dtype) -> Any:
        """The pipeline in main memory, without its safety checker. ConfigError where that fails."""
        import diffusers

        revision = None if Path(self.source.model).exists() else self.revision
        # What was saved as absent is missed by some classes unless it is said again.
        without = {n: None for n, e in self.entries.items() if isinstance(e, list) and not any(e)}
        if self.has_checker:
            without |= {CHECKER: None, "requires_safety_checker": False}
        try:
            with quiet():
                return getattr(diffusers, self.name).from_pretrained(
                    self.source.model,
                    revision=revision,
                    torch_dtype=dtype,
                    use_safetensors=True,
                    local_files_only=self.source.local,
                    **without,
                )
        except Exception as problem:  # files of strangers can break a constructor in any way
            raise ConfigError(hub.advice(self.source.model, problem, FIELD, WHAT)) from problem


class Weights:
    """The weights of a pipeline, once they are needed."""

    def __init__(self, index: Index, config: PipelineConfig, device: torch.device) -> None:
        self._index, self._config, self._device = index, config, device
        self._pipeline: Any = None

    def pipeline(self) -> Any:
        if self._pipeline is None:
            found = self._index.load(self._config.precision(self._device))
            found.set_progress_bar_config(disable=True)
            self._pipeline = self._placed(found)
        return self._pipeline

    def free(self) -> None:
        self._pipeline = None
        # Pipelines that are moved part by part hold themselves in a cycle.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _placed(self, pipeline: Any) -> Any:
        if self._config.offload == "none":
            return pipeline.to(self._device)
        try:
            if self._config.offload == "model":
                pipeline.enable_model_cpu_offload(device=self._device)
            else:
                pipeline.enable_sequential_cpu_offload(device=self._device)
        except ImportError as problem:
            raise MissingExtra("accelerate", "pip install accelerate") from problem
        return pipeline


def open_index(model: str, revision: str | None) -> Index:
    """Find a pipeline, on the hub or in a folder, and see what it is called with.

    ConfigError where there is none, or it draws from something else than captions or classes.
    """
    try:
        import diffusers
    except ImportError as problem:
        raise MissingExtra("diffusers", "pip install 'nanogen[latents]'") from problem
    source = hub.locate(model, "", INDEX, field=FIELD, what=WHAT)
    is_folder = Path(source.model).is_dir()
    if is_folder and revision is not None:
        raise ConfigError(
            f"pipeline.revision={revision} has no effect on {model}, which is a folder; leave it "
            "out"
        )
    if is_folder and not (Path(source.model) / INDEX).is_file():
        raise ConfigError(
            f"{model} holds no {WHAT}: there is no {INDEX}; name the folder that holds it"
        )
    try:
        with quiet():
            entries = diffusers.DiffusionPipeline.load_config(
                source.model, revision=revision, local_files_only=source.local
            )
    except Exception as problem:  # which errors a bad file makes depends on the version
        raise ConfigError(hub.advice(model, problem, FIELD, WHAT)) from problem
    if not isinstance(entries, dict):
        raise ConfigError(f"{model} holds no {WHAT}: {INDEX} is no list of parts; {hub.ANEW}")
    name = entries.get("_class_name")
    _check_class(model, name)
    found = _folder_digest(Path(source.model)) if is_folder else _commit(model, revision)
    return Index(source, str(name), entries, found)


def _check_class(model: str, name: object) -> None:
    """ConfigError for a class that diffusers does not have, or that cannot draw."""
    import diffusers
    from diffusers.pipelines import auto_pipeline

    known = isinstance(name, str) and name.endswith("Pipeline") and hasattr(diffusers, name)
    if not known:
        raise ConfigError(
            f"{model} is a pipeline of class {name!r}, which this version of diffusers "
            f"({diffusers.__version__}) does not have; update diffusers, or draw with the "
            "pipeline's own code and evaluate its images with --images"
        )
    call = _call(str(name))
    draws = {kind.__name__ for kind in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    needed = [n for n, p in call.items() if p.default is p.empty and n not in KINDS]
    others = [n for n in call if OTHER_INPUTS.fullmatch(n) and name not in draws]
    if not KINDS.keys() & call.keys() or "generator" not in call or needed or others:
        why = ", ".join([*needed, *others]) or "something else"
        raise ConfigError(
            f"{model} is a {name}, which does not draw images from captions or classes alone (it "
            f"takes {why}); name a text-to-image pipeline"
        )


def _call(name: str) -> Mapping[str, inspect.Parameter]:
    import diffusers

    found = inspect.signature(getattr(diffusers, name).__call__).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in found.items() if n != "self" and p.kind not in variadic}


def _folder_digest(folder: Path) -> str:
    stamps = sorted(Listed(folder).stamps.items())
    return hashlib.sha256(repr(stamps).encode(errors="surrogateescape")).hexdigest()[:16]


def _commit(model: str, revision: str | None) -> str:
    """The commit whose model_index.json has just been read."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(model, INDEX, revision=revision)
    # The cache keeps every commit in a folder of its name.
    return Path(found).parent.name if isinstance(found, str) else revision or "main"
