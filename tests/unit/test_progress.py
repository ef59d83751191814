"""What is shown while a long command works."""

from __future__ import annotations

import pytest

from nanogen import progress
from nanogen.progress import Display


def test_plain_lines_say_speed_and_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = Display("run", 10_000, quiet=False, seen=1_000)
    display.show(1_100, "loss 0.5000")
    assert capsys.readouterr().err == ""
    now[0] += 10
    display.show(2_000, "loss 0.2500")
    assert capsys.readouterr().err == (
        "run: 2,000/10,000 images, loss 0.2500, 100 images/s, 1:20 left\n"
    )
    now[0] += 10
    display.show(3_000)
    assert capsys.readouterr().err == "run: 3,000/10,000 images, 100 images/s, 1:10 left\n"
    now[0] += 9
    display.show(2_500)
    display.close()
    quiet = Display("run", 10, quiet=True)
    now[0] += 60
    quiet.show(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3599, "59:59"), (7325, "2:02:05")]
)
def test_clock(seconds, text):
    assert progress._clock(seconds) == text
