"""The log of a run, and what is shown while it trains."""

from __future__ import annotations

import json

import pytest

from nanogen.train import log
from nanogen.train.log import Display, Log, read


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


def test_plain_lines_say_speed_and_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    display = Display("run", total=10_000, seen=1_000, quiet=False)
    display.show(1_100, 0.5)
    assert capsys.readouterr().err == ""
    now[0] += 10
    display.show(2_000, 0.25)
    assert capsys.readouterr().err == (
        "run: 2,000/10,000 images, loss 0.2500, 100 images/s, 1:20 left\n"
    )
    now[0] += 9
    display.show(2_500, 0.25)
    display.close()
    quiet = Display("run", 10, 0, quiet=True)
    now[0] += 60
    quiet.show(5, 1.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3599, "59:59"), (7325, "2:02:05")]
)
def test_clock(seconds, text):
    assert log._clock(seconds) == text
