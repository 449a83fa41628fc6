"""What a person sees of a run while it is trained."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

__all__ = ["Progress", "say"]

MINUTE = 60.0  # seconds


class Progress:
    """What a person sees of a run, on stderr: a bar in a terminal or a notebook, plain lines in a file or a pipe.

    A line is written at the first report and at the last one, and in between at most once per minute. If the terminal
    or the pipe is gone, nothing is shown: the run goes on.

    Args:
        step: generator updates that are done.
        steps: generator updates in total.
        visible: False shows nothing. It is for all ranks but the first.
    """

    def __init__(self, step: int, steps: int, visible: bool = True) -> None:
        bar = sys.stderr.isatty() or issubclass(tqdm, tqdm_notebook)
        self.bar = tqdm(initial=step, total=steps, unit="update", dynamic_ncols=True, disable=not (visible and bar))
        self.lines = visible and not bar
        self.start, self.steps = step, steps
        self.start_time, self.line_time = time.monotonic(), -math.inf

    def update(self) -> None:
        """Count one generator update."""
        with _survive(sys.stderr):
            self.bar.update()

    def report(self, step: int, values: dict[str, float]) -> None:
        """Show the most important numbers of a line of the log."""
        numbers = _summarize(values)
        with _survive(sys.stderr):
            self.bar.set_postfix(numbers)
        now = time.monotonic()
        if not self.lines or (step < self.steps and now < self.line_time + MINUTE):
            return
        self.line_time = now
        left = ""
        if self.start < step < self.steps:
            seconds = (now - self.start_time) / (step - self.start) * (self.steps - step)
            left = f", {tqdm.format_interval(seconds)} left"
        line = ", ".join(f"{name} {number}" for name, number in numbers.items())
        say(f"update {step:,} of {self.steps:,}{left}: {line}", sys.stderr)

    def close(self) -> None:
        with _survive(sys.stderr):
            self.bar.close()


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line to stdout, or to another stream. If the terminal or the pipe is gone, nothing is printed."""
    stream = stream or sys.stdout
    with _survive(stream):
        print(text, file=stream, flush=True)


@contextmanager
def _survive(stream: TextIO) -> Iterator[None]:
    """After an error of a stream, whose terminal or pipe is gone, let it write to nowhere."""
    try:
        yield
    except OSError:
        with suppress(OSError, ValueError):  # a stream without a file, as in a notebook
            own = stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, own)
            os.close(nowhere)


def _summarize(values: dict[str, float]) -> dict[str, str]:
    """Return the most important numbers of a line of the log, with names for a person."""
    names = ["wasserstein" if "wasserstein" in values else "critic_loss", "penalty", "slope_interpolates_mean"]
    names.append(next((name for name in ("modes", "js4") if name in values), "generator_loss"))
    labels = {"slope_interpolates_mean": "slope"}
    return {labels.get(n, n.replace("_", " ")): f"{values[n]:.4g}" for n in names if n in values}
