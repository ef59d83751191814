"""The benchmarks: their gates hold here, and the runner says so by its exit status."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import base, run
from benchmarks.base import Arms, Count, Disagreement, Options, compare

CPU = Options(torch.device("cpu"), pairs=5)


@pytest.mark.parametrize("name", run.names())
def test_gates_hold(name, tmp_path, capsys):
    pytest.importorskip("diffusers", reason="builds an autoencoder of it")
    assert run.main([name, "--counted", "--json", str(tmp_path / "rows.json")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert rows and all(row["benchmark"] == name and row["holds"] for row in rows)
    assert all(row["versions"]["torch"] == torch.__version__ for row in rows)
    assert capsys.readouterr().out.count("(ok)") == len(rows)


def fake(monkeypatch, **functions) -> None:
    module = SimpleNamespace(__name__="benchmarks.fake", timed=lambda options: [], **functions)
    monkeypatch.setattr(run, "_module", lambda name: module)


def test_exit_status(monkeypatch, capsys):
    assert run.main(["latent_cach"]) == 2
    assert "did you mean latent_cache?" in capsys.readouterr().err
    fake(monkeypatch, counted=lambda options: [Count("calls", 3, 3), Count("bytes", 5, 4)])
    assert run.main(["fake"]) == 1
    assert "bytes: 5 (FAILED, must be 4)" in capsys.readouterr().out

    def disagree(options: Options) -> list[Count]:
        raise Disagreement("1 here, 2 there")

    fake(monkeypatch, counted=disagree)
    assert run.main(["fake"]) == 1
    assert capsys.readouterr().err == "fake: FAILED: 1 here, 2 there\n"


def test_arms_take_turns_and_ratios_are_paired(monkeypatch):
    """A machine that slows down by half meanwhile changes no ratio."""
    order, now = [], [0.0]

    def arm(name: str, seconds: float):
        def work() -> None:
            order.append(name)
            now[0] += seconds * (1 if len(order) < 9 else 2)

        return work

    monkeypatch.setattr(base, "_clock", lambda device: ("fake", lambda: now[0]))
    arms = Arms(arm("a", 6.0), arm("b", 2.0), units=4)
    found = compare("work", "units", arms, CPU, "the same")
    assert "".join(order) == "abab" + "abbaabbaab"
    assert found.ratio == 3 and found.spread == 0 and not found.noisy
    assert found.plain == pytest.approx(4 / 12) and found.shipped == pytest.approx(4 / 4)
