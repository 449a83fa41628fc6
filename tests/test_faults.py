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
def test_difference_is_seen_if_a_protection_is_off(tmp_path):
    rows = inject("controls", tmp_path / "faults.jsonl")
    assert [row["survived"] for row in rows] == [1, 1, 1, 1]


def test_page_has_the_table_of_the_records():
    page = faults.PAGE.read_text()
    assert faults.render(page, faults.read_rows()) == page


def test_all_recorded_faults_were_survived():
    rows = faults.read_rows()
    assert all(row["survived"] == row["faults"] for row in rows)
    assert sum(row["faults"] for row in rows if row.get("part") == "kills") >= 200
