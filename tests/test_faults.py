"""A short version of tests/faults.py, and its page. results/reliability has the long version."""

import subprocess
import sys

import faults
import pytest
from helpers import ROOT

from wgangp.logs import read_lines


def inject(part, out, *options):
    """Run a part of tests/faults.py in a process of its own, and return its rows."""
    command = [sys.executable, str(ROOT / "tests" / "faults.py"), part, "--out", str(out), *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    return read_lines(out)


@pytest.mark.slow
def test_killed_runs_end_as_runs_that_were_not(tmp_path):
    rows = inject("kills", tmp_path / "faults.jsonl", "--kills", "10")
    assert sum(row["survived"] for row in rows) == sum(row["faults"] for row in rows) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("part", ["nonfinite", "rotation"])
def test_faults_of_a_part_are_survived(part, tmp_path):
    rows = inject(part, tmp_path / "faults.jsonl")
    assert rows and all(row["survived"] == row["faults"] > 0 for row in rows)


@pytest.mark.slow
def test_difference_is_seen_if_a_protection_is_off(tmp_path):
    rows = inject("controls", tmp_path / "faults.jsonl")
    assert [row["survived"] for row in rows] == [1] * 12


def test_page_has_the_tables_of_the_records():
    page = faults.PAGE.read_text()
    assert faults.render(page, faults.read_rows()) == page


def test_every_promise_has_faults_and_all_were_survived():
    rows = faults.read_rows()
    assert all(row["survived"] == row["faults"] > 0 for row in rows)
    numbers = {faults.find_number(row) for row in rows if row.get("part") != "controls"}
    assert numbers == set(faults.PROMISES) == set(range(1, 12))
    assert sum(row["faults"] for row in rows if row.get("part") == "kills") >= 200


def test_every_protection_has_a_control():
    rows = [row for row in faults.read_rows() if row.get("part") == "controls"]
    assert {faults.find_number(row) for row in rows} == {1, 2, 3, 5, 6, 7, 10}
