"""Signals that ask a run to stop: it saves a checkpoint first."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["STOP_SIGNALS", "Interrupted", "catch_stop_signals", "interruptible"]

STOP_SIGNALS = (
    signal.SIGINT,  # Ctrl-C
    signal.SIGTERM,  # kill, timeout, Slurm at the time limit
    signal.SIGUSR1,  # Slurm, as in sbatch --signal=USR1@120
    signal.SIGHUP,  # a terminal or an ssh session that is closed
)
SAME_S = 1.0  # timeout and Slurm send a signal twice, to the process and to its group: within this time it is one


class Interrupted(BaseException):
    """A stop signal came inside of `interruptible`. It is no Exception, so that work that goes on after errors ends."""


class _State(threading.local):
    may_raise = False


_state = _State()


@contextmanager
def catch_stop_signals(stop_signals: list[int]) -> Iterator[None]:
    """Append the number of a stop signal to a list, in place of what the signal does otherwise.

    A second signal, a second or more later, does what it does without this function: it ends the process at once.
    Signals that are ignored, as SIGHUP is under nohup, stay ignored. In a thread other than the main one, where Python
    does not handle signals, nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handlers = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    first_time = 0.0

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def receive(number: int, frame: Any) -> None:
        nonlocal first_time
        if not stop_signals:
            stop_signals.append(number)
            first_time = time.monotonic()
            if _state.may_raise:
                raise Interrupted
        elif time.monotonic() > first_time + SAME_S:
            restore()
            signal.raise_signal(number)

    for number in handlers:
        signal.signal(number, receive)
    try:
        yield
    finally:
        restore()


@contextmanager
def interruptible(stop_signals: list[int]) -> Iterator[None]:
    """Raise `Interrupted` inside of the with block at a stop signal: for work that takes long and can be left out.

    Args:
        stop_signals: as in `catch_stop_signals`. If a signal came before, the error is raised at once.
    """
    _state.may_raise = True
    try:
        if stop_signals:
            raise Interrupted
        yield
    finally:
        _state.may_raise = False
