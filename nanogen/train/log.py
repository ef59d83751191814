"""What a run says of its training: `log.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nanogen.files import write_text

CLOCKED = ("seconds", "images_per_second")
"""fields of a log line that say how fast it went; all others are a function of the run"""


class Log:
    """Appends one JSON object a line. After a resume, lines beyond the checkpoint are dropped and
    written again.
    """

    def __init__(self, file: Path, seen: int) -> None:
        self.file = file
        kept = [line for line in read(file) if line["seen"] <= seen]
        write_text(file, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: Mapping[str, float | int]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def read(file: Path) -> list[dict[str, float]]:
    """The lines of a log; a last line that was cut off by a kill is left out."""
    lines = []
    if file.exists():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines
