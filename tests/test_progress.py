"""What a person sees of a run while it is trained."""

import io
import os
import select
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY
from tqdm.notebook import tqdm_notebook

from wgangp.logs import read_lines
from wgangp.progress import Progress, say


class Screen(io.StringIO):
    """A stderr that is a terminal, or that is not."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """clock[0] is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


VALUES = {"wasserstein": 0.12345, "penalty": 0.5, "slope_interpolates_mean": 1.0, "generator_loss": -2.0}


def test_without_a_terminal_there_is_one_plain_line_per_report_and_at_most_one_per_minute(monkeypatch, clock):
    monkeypatch.setattr("sys.stderr", screen := Screen(terminal=False))
    progress = Progress(1000, 5000)
    for step in range(1000, 5001, 500):  # a report every 20 s
        progress.report(step, VALUES)
        for _ in range(500):
            progress.update()
        clock[0] += 20
    progress.close()
    numbers = "wasserstein 0.1235, penalty 0.5, slope 1, generator loss -2"
    assert screen.getvalue().splitlines() == [
        f"update 1,000 of 5,000: {numbers}",
        f"update 2,500 of 5,000, 01:40 left: {numbers}",
        f"update 4,000 of 5,000, 00:40 left: {numbers}",
        f"update 5,000 of 5,000: {numbers}",  # the last one is always written
    ]


def test_line_is_written_per_report_if_reports_are_rare(monkeypatch, clock):
    monkeypatch.setattr("sys.stderr", screen := Screen(terminal=False))
    progress = Progress(0, 3)
    for step in range(4):
        progress.report(step, {"critic_loss": 1.0, "modes": 8, "generator_loss": 2.0})  # a loss without a distance
        clock[0] += 24 * 3600
    assert screen.getvalue().splitlines()[2] == "update 2 of 3, 24:00:00 left: critic loss 1, modes 8"
    assert len(screen.getvalue().splitlines()) == 4


def test_terminal_has_a_bar_and_no_lines(monkeypatch):
    monkeypatch.setattr("sys.stderr", screen := Screen(terminal=True))
    progress = Progress(0, 2)
    progress.report(0, VALUES)
    progress.update()
    progress.close()
    assert "1/2" in screen.getvalue() and "slope=1" in screen.getvalue()
    assert "update 0 of 2" not in screen.getvalue()


def test_notebook_has_the_bar_of_tqdm_and_no_lines(monkeypatch):
    shown = []

    class NotebookBar(tqdm_notebook):  # what tqdm.auto is in a notebook; without its widgets
        def __init__(self, **options):
            shown.append(options["disable"])

        def set_postfix(self, numbers):
            shown.append(numbers["slope"])

        def close(self):
            pass

    monkeypatch.setattr("sys.stderr", screen := Screen(terminal=False))
    monkeypatch.setattr("wgangp.progress.tqdm", NotebookBar)
    Progress(0, 2).report(0, VALUES)
    assert shown == [False, "1"] and screen.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_other_ranks_show_nothing(monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr", screen := Screen(terminal))
    progress = Progress(0, 1, visible=False)
    progress.report(0, VALUES)
    progress.update()
    progress.close()
    assert screen.getvalue() == ""


class Gone(Screen):
    """A terminal or a pipe that was closed."""

    def write(self, text):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("terminal", [True, False])
def test_run_goes_on_if_nobody_can_see_it(monkeypatch, terminal):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Gone(terminal))
    progress = Progress(0, 2)
    progress.report(0, VALUES)
    progress.update()
    progress.close()
    say("stopped")


@pytest.mark.slow
def test_what_is_printed_after_a_pipe_was_closed_is_no_error_at_the_end():
    script = "from wgangp.progress import say; say('one'); input(); say('two'); say('three'); raise SystemExit(7)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert (process.wait(), process.stderr.read()) == (7, b"")


@pytest.mark.slow
def test_run_in_a_terminal_that_is_closed_saves_a_checkpoint_and_says_so(tmp_path):
    master, slave = os.openpty()
    arguments = [*TINY, "train.steps=100000", "train.checkpoint_every=100000", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    with subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: os.login_tty(slave)) as process:
        os.close(slave)
        while process.poll() is None and len(read_lines(tmp_path / "run" / "timing.jsonl")) < 2:
            if select.select([master], [], [], 0.1)[0]:
                os.read(master, 1000)
        os.close(master)  # the kernel sends SIGHUP
        assert process.wait(60) == 129
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.pt"))) == 2
