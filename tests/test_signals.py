import os
import signal
import threading
import time

import pytest

from wgangp.signals import STOP_SIGNALS, Interrupted, catch_stop_signals, interruptible


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_first_signal_is_received_and_does_nothing_else(number, heard):
    received = []
    with catch_stop_signals(received):
        os.kill(os.getpid(), number)
    assert received == [number]
    assert heard == []
    os.kill(os.getpid(), number)
    assert heard == [number]  # the handler from before is back


def test_signal_that_is_sent_twice_at_once_is_one(heard):
    received = []
    with catch_stop_signals(received):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGTERM]
    assert heard == []


def test_second_signal_after_a_second_does_what_it_did_before(heard, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    received = []
    with catch_stop_signals(received):
        signal.raise_signal(signal.SIGTERM)
        now += 1.5
        signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGTERM]
    assert heard == [signal.SIGINT]


def test_ignored_signal_stays_ignored(heard):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    received = []
    with catch_stop_signals(received):
        signal.raise_signal(signal.SIGHUP)
    assert received == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_thread_catches_nothing_and_does_not_fail():
    entered = []

    def work():
        with catch_stop_signals([]):
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]


def test_interruptible_work_ends_at_the_signal(heard):
    received, steps = [], []
    with catch_stop_signals(received):
        with pytest.raises(Interrupted), interruptible(received):
            try:
                signal.raise_signal(signal.SIGTERM)
                steps.append("after the signal")
            except Exception:  # as in code that goes on after errors
                steps.append("went on")
        with pytest.raises(Interrupted), interruptible(received):
            steps.append("after an earlier signal")
        signal.raise_signal(signal.SIGTERM)  # outside of interruptible work it raises nothing
    assert steps == []
