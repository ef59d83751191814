"""Being asked to stop."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from nanogen.train.signals import SIGNALS, StopFlag, Stopped

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_sets_the_flag_and_handlers_are_restored(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopFlag() as stop:
        stop.check(CPU)
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.reason == number.name
        with pytest.raises(Stopped, match=number.name):
            stop.check(CPU)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopFlag():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_time_limit(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopFlag(max_minutes=2) as stop:
        now[0] = 119
        assert not stop
        now[0] = 121
        assert stop and stop.reason == "the time limit"


def test_a_second_interrupt_ends_at_once_but_other_signals_do_not():
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
