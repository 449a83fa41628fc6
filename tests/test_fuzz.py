"""A short version of tests/fuzz.py, and that it sees what does not survive."""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import fuzz
import pytest
from helpers import ROOT


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, for damaged files
@pytest.mark.parametrize("kind", ["idx", "images", "text", "lines"])
def test_random_inputs_are_accepted_or_refused_by_name(kind, tmp_path):
    attempt, refused = fuzz.KINDS[kind][2](tmp_path), 0
    for i in range(15):
        try:
            with redirect_stderr(StringIO()):
                attempt(random.Random(f"test/{kind}/{i}"))
        except (ValueError, OSError):
            refused += 1
    assert refused > 0


@pytest.mark.slow
def test_random_inputs_of_every_kind_survive(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--inputs", "200", "--seed", "1"]
    result = subprocess.run([*command, "--out", str(tmp_path / "fuzz.jsonl")], capture_output=True, text=True, cwd=ROOT)
    lines = [json.loads(line) for line in (tmp_path / "fuzz.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == set(fuzz.KINDS) and sum(line["faults"] for line in lines) >= 200
    assert all(line["faults"] == line["survived"] for line in lines), result.stdout
    assert all(line["accepted"] > 0 and line["refused"] > 0 for line in lines)


def misbehave(folder):
    def attempt(rng):
        deeds = [
            lambda: None,
            lambda: int("refused"),
            lambda: {}["crash"],
            lambda: os._exit(3),
            lambda: os.kill(os.getpid(), 11),
            lambda: Path("../../outside").write_text("x"),
            lambda: Path(os.devnull).write_text("x"),
            lambda: subprocess.run(["true"]),
            lambda: time.sleep(1000),
        ]
        deeds[attempt.count]()

    attempt.count = 0
    return attempt


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, end",
    list(enumerate(["accepted", "refused", "KeyError", "died", "died", "touched", "accepted", "touched", "hang"])),
)
def test_what_does_not_survive_is_seen(number, end, monkeypatch):
    def prepare(folder):
        attempt = misbehave(folder)
        attempt.count = number
        return attempt

    monkeypatch.setitem(fuzz.KINDS, "bad", ("", 1, prepare))
    counts = fuzz.fuzz("bad", [0, 1], 0)
    assert counts == {end: 2}
