"""The Hugging Face hub, in one line where something goes wrong.

    source = locate("stabilityai/sd-vae-ft-mse", "", "config.json", field="tokenizer.model")
    Network.from_pretrained(source.model, subfolder=source.subfolder, local_files_only=source.local)

Every name on the hub can be replaced by a folder. The hub is asked once before a library is: it
answers in a moment, and libraries try for half a minute and then blame the wrong thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanogen.errors import ConfigError, MissingExtra

PATIENCE = 10.0
"""seconds in which the hub must answer"""
LONGEST = 160
"""characters of a foreign reason that are shown"""
ANEW = "give another folder, or get the files anew"
"""what to do about broken files"""


@dataclass(frozen=True)
class Source:
    """Where a model is: what a library's `from_pretrained` is called with."""

    model: str
    """a folder, or a name on the hub"""
    subfolder: str
    local: bool
    """nothing is to be fetched: it is a folder, or in the cache of a machine without the hub"""


def locate(
    model: str,
    subfolder: str,
    file: str,
    *,
    field: str,
    what: str = "model that can be loaded",
    gated: bool = False,
) -> Source:
    """Where the model is that holds `file`, once it is certain that it can be had.

    `field` is the config field that names the model; `gated` says that its terms must be accepted
    first. ConfigError with what to do where there is no such folder or no `subfolder` in it, or the
    hub does not give the file.
    """
    folder = Path(model).expanduser()
    if folder.exists():
        inner = folder / subfolder
        if subfolder and not inner.is_dir():
            raise ConfigError(
                f"{field}={model} holds no folder {subfolder!r}; correct it, or leave it out"
            )
        return Source(str(inner), "", True)
    if _is_path(model):
        raise ConfigError(f"{field}={model}: there is no such folder; give one that exists")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as problem:
        raise MissingExtra("huggingface_hub", "pip install 'nanogen[latents]'") from problem
    try:
        url = huggingface_hub.hf_hub_url(model, file, subfolder=subfolder or None)
        huggingface_hub.get_hf_file_metadata(url, timeout=PATIENCE)
    except (HfHubHTTPError, HFValidationError) as problem:
        raise ConfigError(advice(model, problem, field, what, gated=gated)) from problem
    except Exception as problem:  # which errors a missing network is depends on the version
        path = f"{subfolder}/{file}" if subfolder else file
        if not isinstance(huggingface_hub.try_to_load_from_cache(model, path), str):
            silence = ConnectionError(f"huggingface.co does not answer ({reason(problem)})")
            raise ConfigError(advice(model, silence, field, what, gated=gated)) from problem
        return Source(model, subfolder, True)
    return Source(model, subfolder, False)


def advice(
    model: str,
    problem: Exception,
    field: str,
    what: str = "model that can be loaded",
    *,
    gated: bool = False,
) -> str:
    """One line: why a model of the hub could not be loaded, and what to do.

    `field` is the config field that names it, `what` is what should have been there, `gated` says
    that its terms must be accepted, whatever the problem is.
    """
    page = f"https://huggingface.co/{model}"
    terms = f"accept its terms at {page} and log in with: hf auth login"
    folder = f"set {field} to a folder that holds it"
    kinds = {kind.__name__ for cause in _causes(problem) for kind in type(cause).__mro__}
    why = reason(problem)
    if Path(model).expanduser().exists():
        return f"{model} holds no {what}: {why}; {ANEW}"
    if "GatedRepoError" in kinds or "gated" in str(problem).lower():
        return f"{model} is gated: {terms}; or {folder}"
    if gated:
        return f"cannot load {model!r}: {why}; it is gated: {terms}; or {folder}"
    if "RepositoryNotFoundError" in kinds or "HFValidationError" in kinds:
        return f"the hub has no {model!r} that you may read; check the name ({page}), or {folder}"
    return f"cannot load {model!r}: {why}; see {page}, or {folder}"


def reason(problem: Exception) -> str:
    """The first line of a foreign error, short enough to stand within one of ours."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:LONGEST].rstrip(".:")


def _is_path(model: str) -> bool:
    """Whether a name can only be meant as a folder: names on the hub are `name` or `owner/name`."""
    return model.startswith(("/", ".", "~")) or model.count("/") != 1 or "\\" in model


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: libraries wrap the one that says what happened."""
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__
