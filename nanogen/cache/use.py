"""Training from a cache: `machine.cache=FOLDER`, with `latents/` or `text/` or both in it.

task = training_task(parts)          # its stream holds raw latents where they are stored
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanogen import dist
from nanogen.cache import latents, texts
from nanogen.cache.latents import open_latents
from nanogen.cache.texts import open_texts
from nanogen.conditioners.features import TextEncoder
from nanogen.errors import DataError
from nanogen.run import Parts
from nanogen.tasks.base import Stored, Task


def training_task(parts: Parts) -> Task:
    """The task whose stream a run is trained on. Opens the cache of the run, if it names one, and
    lets its conditioner read from it.

    DataError where the folder has nothing for this run, or what it has does not fit. A collective
    call.
    """
    if not parts.run.machine.cache:
        return parts.task
    folder, task, used = Path(parts.run.machine.cache), parts.task, []
    if (folder / latents.FOLDER).is_dir():
        cache = open_latents(
            folder / latents.FOLDER,
            parts.tokenizer,
            task.source,
            parts.run.train.raw_precision,
            parts.device,
        )
        needed = any(term.needs_images for term in parts.model.objective.added.values())
        task = replace(task, stored=Stored(cache, images=needed))
        used.append(f"latents of {len(cache.records):,} images" + " (and the images)" * needed)
    if (folder / texts.FOLDER).is_dir() and isinstance(parts.conditioner, TextEncoder):
        store = open_texts(folder / texts.FOLDER, parts.conditioner, task.source)
        assert parts.conditioner.kept is not None
        parts.conditioner.kept.store = store
        used.append(f"features of {len(store):,} captions")
    if not used:
        raise DataError(
            f"machine.cache={folder} holds nothing for this run; write it with: "
            f"nanogen cache RUN --out {folder}"
        )
    if dist.rank() == 0:
        print(f"{parts.run.name}: reads {' and '.join(used)} from {folder}", flush=True)
    return task
