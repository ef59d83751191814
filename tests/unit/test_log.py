"""The log of a run."""

from __future__ import annotations

import json

from nanogen.train.log import Log, read


def test_lines_are_appended_and_read(tmp_path):
    writer = Log(tmp_path / "log.jsonl", 0)
    writer.write({"seen": 8, "flow": 0.1})
    writer.write({"seen": 16, "flow": 1 / 3})
    assert read(tmp_path / "log.jsonl") == [{"seen": 8, "flow": 0.1}, {"seen": 16, "flow": 1 / 3}]
    assert read(tmp_path / "absent") == []


def test_a_resume_drops_what_lies_beyond_the_checkpoint(tmp_path):
    file = tmp_path / "log.jsonl"
    lines = [{"seen": seen} for seen in (8, 16, 24)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"seen": 32, "fl')
    assert read(file) == lines
    Log(file, 16).write({"seen": 24, "again": 1})
    assert read(file) == [*lines[:2], {"seen": 24, "again": 1}]
