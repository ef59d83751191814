"""What a metric said of each image, beside the record of its score: for paired comparisons.

    scenes-vae-scene-eval-ema-6080-1a2b3c4d.record.json
    scenes-vae-scene-eval-ema-6080-1a2b3c4d.outcomes.json

Leaderboards never read them. Two evaluations on the same prompts are compared prompt by prompt,
which is far sharper than comparing their means.
"""

from __future__ import annotations

import json
from pathlib import Path

from nanogen.bench.record import SUFFIX as RECORD
from nanogen.bench.record import Record, file_name, writing
from nanogen.errors import DataError
from nanogen.files import write_text
from nanogen.metrics.base import Outcomes

SUFFIX = ".outcomes.json"


def write(folder: Path, record: Record, outcomes: Outcomes | None) -> None:
    """Write the outcomes behind a record beside it; remove those of an older evaluation where there
    are none. Raises DataError where the folder cannot be written.
    """
    target = folder / file_name(record).replace(RECORD, SUFFIX)
    with writing(target):
        if outcomes is None:
            target.unlink(missing_ok=True)
            return
        rows = zip(outcomes.prompts, outcomes.tags, outcomes.values, strict=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        write_text(target, f'{{"columns": ["prompt", "tag", "value"], "images": [\n{lines}\n]}}\n')


def read(folder: Path, record: Record) -> Outcomes | None:
    """The outcomes behind a record somewhere below `folder` (or beside that file); None where there
    are none. DataError for a broken file.
    """
    name = file_name(record).replace(RECORD, SUFFIX)
    place = folder.parent if folder.is_file() else folder
    for file in sorted(place.rglob(name)):
        try:
            images = json.loads(file.read_text(encoding="utf-8"))["images"]
            prompts, tags, values = zip(*images, strict=True)
            return Outcomes(prompts, tags, tuple(map(float, values)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is broken ({error}); evaluate again, or remove it") from None
    return None
