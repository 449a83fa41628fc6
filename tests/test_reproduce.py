"""Reproducing a figure: what is measured, what is kept, and how the README is rendered."""

import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from filelock import FileLock, Timeout
from helpers import ROOT, render_folder

from wgangp import config
from wgangp.cli import SCHEMAS
from wgangp.config import CONF
from wgangp.figures import known_distance, study
from wgangp.figures.digest import read_records, stamp
from wgangp.figures.overview import list_figures
from wgangp.figures.study import BEGIN, END
from wgangp.logs import read_lines
from wgangp.schema import to_arguments
from wgangp.tables import markdown_table, replace_block

TINY = ("figure=known_distance", "figure.width=4", "figure.iterations=2", "figure.batch_size=8")
NAMES = sorted(path.stem for path in (CONF / "figure").glob("*.yaml"))
RESULTS = sorted(path.parent.name for path in ROOT.glob("results/*/records.jsonl") if path.parent.name != "scaling")


@pytest.fixture
def _draw():
    """Ask for this fixture to draw the picture with matplotlib, which takes most of a second."""


@pytest.fixture(autouse=True)
def _quick_picture(request, monkeypatch):
    if "_draw" not in request.fixturenames:
        monkeypatch.setattr(known_distance.KnownDistance, "draw", lambda self, path, records: path.touch())


@pytest.fixture
def build_figure(configure, monkeypatch):
    """build_figure("figure.iterations=3", ...) -> a tiny known_distance figure with two cells per seed."""
    monkeypatch.setattr(known_distance, "DIMENSIONS", (2,))
    for name in ("HELD_OUT", "STARTS", "ASCENT"):
        monkeypatch.setattr(known_distance, name, 20)
    return lambda *overrides: config.build(configure(*TINY, *overrides, name="reproduce"), "figure")


@pytest.fixture
def measured(monkeypatch):
    """The list of the measured (seed, pair), in order."""
    calls, measure = [], known_distance.KnownDistance.measure

    def record_and_measure(self, cell, seed, *rest):
        calls.append((seed, cell["pair"]))
        return measure(self, cell, seed, *rest)

    monkeypatch.setattr(known_distance.KnownDistance, "measure", record_and_measure)
    return calls


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def reproduce(build_figure, measured, out):
    """reproduce([1], ...) reproduces this figure in the folder out."""

    def run(seeds, *overrides, out=out, budget="cpu", device="cpu", **options):
        out = None if out is None else str(out)
        return study.reproduce(build_figure(*overrides), "known_distance", budget, seeds, out, device, **options)

    return run


def parse(text):
    return [json.loads(line) for line in text.splitlines()]


def numbers_of(records):
    """The records without what differs from one measurement to the next."""
    times = {"seconds", "began", "command", "digest"}
    return [{k: v for k, v in record.items() if k not in times} for record in records]


class TestFolder:
    @pytest.mark.usefixtures("_draw")
    def test_has_a_record_per_seed_and_cell_and_a_picture(self, reproduce):
        folder = reproduce([3, 1])
        records = read_lines(folder / "records.jsonl")
        assert [(r["seed"], r["pair"], r["dim"]) for r in records] == [
            (seed, pair, 2) for seed in (3, 1) for pair in ("shift", "funnels")
        ]
        assert all(r["commit"] and r["seconds"] > 0 and "gap" in r for r in records)
        assert (folder / "known_distance.png").stat().st_size > 10_000

    @pytest.mark.parametrize("budget, name", [("cpu", "known_distance"), ("paper", "known_distance+paper")])
    def test_has_the_name_of_figure_and_budget(self, reproduce, monkeypatch, tmp_path, budget, name):
        monkeypatch.chdir(tmp_path)
        assert str(reproduce([0], out=None, budget=budget)) == f"results/{name}"

    def test_of_other_settings_is_refused(self, reproduce):
        folder = reproduce([0])
        before = (folder / "records.jsonl").read_text()
        with pytest.raises(ValueError, match=r"(?s)figure\.iterations: 2 in the folder, 3 now.*another out="):
            reproduce([0], "figure.iterations=3")
        assert (folder / "records.jsonl").read_text() == before

    def test_with_other_files_is_refused_and_left_alone(self, reproduce, tmp_path):
        (tmp_path / "documents").mkdir()
        (tmp_path / "documents" / "thesis.tex").write_text("years of work")
        with pytest.raises(ValueError, match=r"not empty.*another out="):
            reproduce([0], out=tmp_path / "documents")
        assert [p.name for p in (tmp_path / "documents").iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize(
        "seeds, device, message",
        [
            ([], "cpu", "at least one"),
            ([1, 1], "cpu", "different"),
            ([-1], "cpu", ">= 0"),
            ([0], "toaster", "device=cpu"),
        ],
    )
    def test_is_not_created_for_wrong_arguments(self, reproduce, out, seeds, device, message):
        with pytest.raises(ValueError, match=message):
            reproduce(seeds, device=device)
        assert not out.exists()

    @pytest.mark.parametrize(
        "override, message",
        [
            ("+figure.wdith=3", "figure.wdith is unknown"),
            ("figure._target_=os.system", "only names under"),
        ],
    )
    def test_is_not_created_for_wrong_settings(self, reproduce, out, override, message):
        with pytest.raises(ValueError, match=message):
            reproduce([0], override)
        assert not out.exists()

    def test_is_not_created_for_an_unknown_key(self, configure, out):
        with pytest.raises(ValueError, match="foo"):
            to_arguments(configure(*TINY, f"out={out}", "+foo=1", name="reproduce"), SCHEMAS["reproduce"])
        assert not out.exists()


class TestRecords:
    def test_are_not_measured_again_and_seeds_can_be_added(self, reproduce, measured):
        folder = reproduce([0])
        first = (folder / "records.jsonl").read_text()
        reproduce([0])
        assert measured == [(0, "shift"), (0, "funnels")]
        reproduce([0, 1])
        assert measured[2:] == [(1, "shift"), (1, "funnels")]
        assert (folder / "records.jsonl").read_text().startswith(first)

    @pytest.mark.slow
    def test_jobs_measure_the_same_numbers_in_other_processes(self, build_figure, tmp_path, monkeypatch, capfd):
        figure, folders = build_figure(), [tmp_path / "one", tmp_path / "two"]
        for name, value in (("HELD_OUT", 20_000), ("STARTS", 200), ("ASCENT", 100)):  # as in a new process
            monkeypatch.setattr(known_distance, name, value)
        for jobs, folder in enumerate(folders, 1):
            study.reproduce(figure, "known_distance", "cpu", [3, 1], str(folder), "cpu", jobs)
        one, two = (study.complete_seeds(figure, read_records(folder)) for folder in folders)
        assert [r["seed"] for r in one] == [1, 1, 3, 3]
        for a, b in zip(numbers_of(one), numbers_of(two), strict=True):
            assert a.keys() == b.keys() and (a["seed"], a["pair"]) == (b["seed"], b["pair"])
            assert a["gap"] == pytest.approx(b["gap"], rel=1e-4)
        assert (folders[1] / "README.md").exists()

    @pytest.mark.slow
    def test_processes_end_soon_after_the_one_that_gives_the_work(self):
        work = "import time; print('ready', flush=True); time.sleep(99)"
        script = "from wgangp.figures.processes import call_in_processes\n"
        script += f"if __name__ == '__main__': list(call_in_processes(exec, [({work!r},)] * 4, 2))"
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
            assert [parent.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
            parent.terminate()
            ended, _, _ = select.select([parent.stdout], [], [], 20)  # at the end of a pipe: no process has it open
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
        assert ended

    def test_command_prints_where_they_are_if_none_is_missing(self, reproduce, capsys):
        reproduce([0])
        assert "are in" not in capsys.readouterr().out
        folder = reproduce([0])
        assert f"all 2 runs are in {folder}. To measure" in capsys.readouterr().out

    def test_line_that_was_cut_off_is_measured_again(self, reproduce, measured):
        path = reproduce([0]) / "records.jsonl"
        complete = path.read_text()
        path.write_text(complete[:-30])
        reproduce([0])
        assert measured[2:] == [(0, "funnels")]
        assert numbers_of(read_lines(path)) == numbers_of(parse(complete))

    def test_run_that_diverges_does_not_stop_the_others(self, reproduce, monkeypatch, out):
        measure = known_distance.KnownDistance.measure

        def diverging(self, cell, seed, *rest):
            if (seed, cell["pair"]) == (0, "shift"):
                raise ValueError("the critic diverged")
            return measure(self, cell, seed, *rest)

        monkeypatch.setattr(known_distance.KnownDistance, "measure", diverging)
        with pytest.raises(ValueError, match=r"(?s)failed runs: 1\..*shift, 2, seed 0: the critic diverged"):
            reproduce([0, 1])
        assert len(read_lines(out / "records.jsonl")) == 3
        assert '"seeds=[1]"' in (out / "README.md").read_text()

    def test_run_that_failed_is_tried_again(self, reproduce, measured, monkeypatch, out):
        measure = known_distance.KnownDistance.measure
        failures = iter([RuntimeError("out of memory")])

        def failing_once(self, *arguments):
            for error in failures:
                raise error
            return measure(self, *arguments)

        monkeypatch.setattr(known_distance.KnownDistance, "measure", failing_once)
        with pytest.raises(ValueError, match="out of memory"):
            reproduce([0])
        assert not (out / "README.md").exists()  # no seed is complete
        reproduce([0])
        assert measured == [(0, "funnels"), (0, "shift")]
        assert len(read_lines(out / "records.jsonl")) == 2

    def test_interrupted_run_is_not_recorded(self, reproduce, monkeypatch, out):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(known_distance.KnownDistance, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reproduce([0])
        assert read_lines(out / "records.jsonl") == []

    def test_seconds_include_the_time_before_an_interruption(self, reproduce, out):
        folder = reproduce([1])
        run = out / "runs" / "0+2+shift"
        run.mkdir(parents=True)
        (run / "timing.jsonl").write_text('{"step": 3, "elapsed_s": 1000.0}\n')
        reproduce([0, 1])
        assert [r["seconds"] > 1000 for r in read_lines(folder / "records.jsonl")] == [False, False, True, False]


class TestCells:
    """One cell per process, and the process that collects them."""

    def test_job_measures_one_cell_and_the_whole_command_takes_its_records_over(self, reproduce, measured, out):
        assert reproduce([0, 1], cell=1) == out / "cells" / "1"
        assert measured == [(0, "funnels"), (1, "funnels")]
        assert not [path for path in out.iterdir() if path.suffix in (".png", ".md", ".jsonl")]
        part = read_records(out / "cells" / "1")
        assert reproduce([0, 1]) == out
        assert measured[2:] == [(0, "shift"), (1, "shift")]
        records = read_records(out)
        assert records[:2] == part and len(records) == 4
        assert '"seeds=[0, 1]"' in (out / "README.md").read_text() and (out / "known_distance.png").exists()
        reproduce([0, 1])
        assert read_records(out) == records and len(measured) == 4

    def test_job_does_not_measure_what_is_in_the_folder(self, reproduce, measured, out):
        reproduce([0])
        reproduce([0, 1], cell=0)
        assert measured[2:] == [(1, "shift")]
        assert [record["seed"] for record in read_records(out / "cells" / "0")] == [1]

    def test_runs_have_the_same_folders_so_that_a_killed_job_continues(self, reproduce, monkeypatch):
        folders = []

        def fail(self, cell, seed, folder, device):
            folders.append(folder)
            raise ValueError("killed")

        monkeypatch.setattr(known_distance.KnownDistance, "measure", fail)
        for cell in (1, None):
            with pytest.raises(ValueError, match="killed"):
                reproduce([0], cell=cell)
        job, _, whole = folders
        assert job == whole

    def test_failure_of_a_job_is_an_error(self, reproduce, monkeypatch, out):
        def fail(self, cell, seed, *rest):
            raise ValueError("the critic diverged")

        monkeypatch.setattr(known_distance.KnownDistance, "measure", fail)
        with pytest.raises(ValueError, match=rf"failed runs: 1\..*{out}/cells/0/records\.jsonl"):
            reproduce([0], cell=0)

    @pytest.mark.parametrize("cell", [-1, 2])
    def test_wrong_number_lists_the_cells(self, reproduce, out, cell):
        with pytest.raises(ValueError, match=rf"cell = {cell}: .*\n  0: shift, 2\n  1: funnels, 2$"):
            reproduce([0], cell=cell)
        assert not out.exists()

    def test_cell_in_use_is_refused_and_other_cells_are_not(self, reproduce, measured, out):
        reproduce([0], cell=0)
        with FileLock(out / "cells" / "0" / ".lock"):
            with pytest.raises(ValueError, match=r"cells/0 is in use by another process: .* another cell="):
                reproduce([0, 1], cell=0)
            with pytest.raises(ValueError, match=r"cells/0 is in use by another process: .* another out="):
                reproduce([0])
            reproduce([0], cell=1)
        assert measured == [(0, "shift"), (0, "funnels")]
        assert reproduce([0], cell=0)  # the locks are free again

    def test_job_is_refused_while_all_cells_are_measured(self, reproduce, measured, monkeypatch, out):
        monkeypatch.setattr(study, "START_S", 0.0)
        out.mkdir()
        with FileLock(out / ".lock"), pytest.raises(ValueError, match="in use by another process"):
            reproduce([0], cell=0)
        assert measured == []

    @pytest.mark.parametrize("cell, free", [(0, ["."]), (None, [])])
    def test_locks_while_it_measures(self, reproduce, monkeypatch, out, cell, free):
        """A job locks its cell alone. The whole command locks the folder and all cells."""
        measure, free_locks = known_distance.KnownDistance.measure, []

        def measure_with_locks(self, *arguments):
            for name in (".", "cells/0"):
                with suppress(Timeout), FileLock(out / name / ".lock").acquire(timeout=0):
                    free_locks.append(name)
            return measure(self, *arguments)

        reproduce([0], cell=0)
        monkeypatch.setattr(known_distance.KnownDistance, "measure", measure_with_locks)
        reproduce([0, 1], cell=cell)
        assert free_locks == free

    def test_job_waits_for_another_job_that_starts(self, reproduce, measured, out):
        out.mkdir()
        lock = FileLock(out / ".lock", thread_local=False)
        lock.acquire()
        timer = threading.Timer(0.3, lock.release)
        timer.start()
        reproduce([0], cell=0)
        timer.join()
        assert measured == [(0, "shift")]

    @pytest.mark.parametrize("cell", [1, None])
    def test_job_and_folder_of_other_settings_are_refused(self, reproduce, measured, cell):
        reproduce([0], cell=0)
        with pytest.raises(ValueError, match=r"figure\.iterations: 2 in the folder, 3 now"):
            reproduce([0], "figure.iterations=3", cell=cell)
        assert measured == [(0, "shift")]

    def test_records_of_a_cell_with_other_settings_are_not_taken_over(self, reproduce, measured, out, tmp_path):
        reproduce([0], cell=0)
        reproduce([0], "figure.iterations=3", out=tmp_path / "other", cell=1)
        shutil.copytree(tmp_path / "other" / "cells" / "1", out / "cells" / "1")
        with pytest.raises(ValueError, match=r"cells/1 belongs to another config:\n  figure\.iterations: 3 in"):
            reproduce([0])
        assert not (out / "README.md").exists()


class TestDigest:
    def test_is_that_of_the_sorted_content(self, reproduce):
        for record in parse((reproduce([0]) / "records.jsonl").read_text()):
            content = {key: record[key] for key in sorted(record) if key != "digest"}
            assert record["digest"] == hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def test_stays_when_the_record_is_read_again(self):
        record = {"b": (1, 2.5), "a": float("nan"), "c": {10: None, 9: "text"}}
        stamped = stamp(record)
        assert stamp(json.loads(json.dumps(stamped)))["digest"] == stamped["digest"]
        assert stamp({"c": record["c"], **record})["digest"] == stamped["digest"]  # in another order
        assert stamp({**record, "b": (1, 2.6)})["digest"] != stamped["digest"]

    EDITS = (
        (lambda line: line.replace('"dim": 2', '"dim": 3'), "the record was changed after its run"),
        (lambda line: re.sub(r'"digest": "\w', '"digest": "x', line), "the record was changed after its run"),
        (lambda line: re.sub(', "digest": "[^"]*"', "", line), r"no digest.*figures\.digest\.stamp\(record\)"),
        (lambda line: line.replace(",", ";", 1), "not JSON .*at column"),
        (lambda line: "3\n", "no digest"),
    )

    @pytest.mark.parametrize("edit, message", EDITS)
    def test_line_that_was_edited_is_refused(self, reproduce, measured, edit, message):
        folder = reproduce([0])
        path = folder / "records.jsonl"
        first, second = path.read_text().splitlines(keepends=True)
        edited = first + edit(second)
        assert edited != first + second
        path.write_text(edited)
        expected = rf"{path}, line 2: .*{message}.*Restore the line as it was, or delete it"
        for read in (lambda: reproduce([0, 1]), lambda: render_folder(folder, "known_distance")):
            with pytest.raises(ValueError, match=expected):
                read()
        assert path.read_text() == edited and len(measured) == 2

    def test_line_that_was_copied_is_refused(self, reproduce):
        path = reproduce([0]) / "records.jsonl"
        path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
        with pytest.raises(ValueError, match="line 3: the record is that of line 2 again"):
            reproduce([0])

    def test_edited_record_of_a_job_is_refused(self, reproduce, out):
        reproduce([0], cell=1)
        path = out / "cells" / "1" / "records.jsonl"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
        for cell in (1, None):
            with pytest.raises(ValueError, match=r"cells/1/records\.jsonl, line 1: the record was changed"):
                reproduce([0], cell=cell)

    def test_line_that_was_deleted_is_measured_again(self, reproduce, measured):
        path = reproduce([0]) / "records.jsonl"
        path.write_text(path.read_text().splitlines(keepends=True)[1])
        reproduce([0])
        assert measured[2:] == [(0, "shift")]


class TestList:
    def lines_of(self, results):
        return {line.split()[0]: line for line in list_figures(results).splitlines() if line}

    def test_has_a_line_per_figure_with_its_first_comment(self, tmp_path):
        lines = self.lines_of(tmp_path)
        assert set(NAMES) <= lines.keys()
        for name in NAMES:
            content = (CONF / "figure" / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ")
            assert re.search(r"  0 of \d+ cells +not measured  ", lines[name]) and lines[name].endswith(f"  {content}")

    def test_says_what_is_done_and_how_long_it_took(self, reproduce, tmp_path):
        folder = reproduce([0, 1], out=tmp_path / "known_distance")
        records = [stamp({**record, "seconds": 90.0}) for record in read_records(folder)]
        (folder / "records.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records[:3]))
        reproduce([2], out=tmp_path / "known_distance+paper", budget="paper", cell=0)
        (tmp_path / "known_distance_2").mkdir()  # another figure
        line = self.lines_of(tmp_path)["known_distance"]
        done = "2 of 2 cells x 1 seed, 1 of 2 cells x 1 seed; +paper: 1 of 2 cells x 1 seed"
        hardware = f"{records[0]['device']}, torch {records[0]['torch']}"
        assert f"  {done}  3 min for 1 seed, {hardware}, other settings  The critic" in line

    def test_damaged_folder_does_not_hide_the_others(self, reproduce, tmp_path):
        reproduce([0], out=tmp_path / "known_distance")
        for suffix in ("+edited", "+empty"):
            shutil.copytree(tmp_path / "known_distance", tmp_path / f"known_distance{suffix}")
        path = tmp_path / "known_distance+edited" / "records.jsonl"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
        (tmp_path / "known_distance+empty" / "config.yaml").unlink()
        line = self.lines_of(tmp_path)["known_distance"]
        assert "  2 of 2 cells x 1 seed; " in line
        assert f"{path.parent} cannot be read: {path}, line 1: the record was changed" in line
        assert f"{tmp_path / 'known_distance+empty'} cannot be read: " in line

    def test_committed_results_have_no_damaged_record(self):
        assert "cannot be read" not in list_figures(ROOT / "results")


class TestReadme:
    def test_has_runs_settings_command_time_table_and_picture(self, reproduce, build_figure):
        folder = reproduce([3, 1])
        text = (folder / "README.md").read_text()
        assert text.startswith("# Known distance\n")
        block = text[text.index(BEGIN) : text.index(END)]
        labels = [line.split("**")[1] for line in block.splitlines() if line.startswith("- **")]
        assert labels == ["Runs", "Settings", "To run it again", "Time"]
        assert "**Runs**: 4 with 2 seeds, by `" in block and "width 4, iterations 2, lr 0.001, batch_size 8" in block
        row = build_figure().table(read_lines(folder / "records.jsonl"))[0]
        assert f"| {' | '.join(row)} |" in block and f"| {' | '.join(row.values())} |" in block
        assert "![known_distance](known_distance.png)" in block

    @pytest.mark.parametrize(
        "overrides, command",
        [
            ([], ""),
            (["figure.distance=2.0"], " figure.distance=2.0"),
            (["budget=paper"], " budget=paper"),
            (["budget=paper", "figure.lr=0.5"], " budget=paper figure.lr=0.5"),
        ],
    )
    def test_command_has_the_nearest_budget_and_the_settings_that_differ(self, configure, overrides, command):
        cfg = configure("figure=known_distance", *overrides, name="reproduce")
        figure = config.build(cfg, "figure")
        names = ("gap", "corrected", "proved", "certified", "steepest", "slope", "cosine", "distance")
        origin = {"commit": None, "dirty": False, "device": "cpu", "torch": "2", "command": "c", "seconds": 60.0}
        records = [
            {"seed": seed, **cell, **dict.fromkeys(names, 1.0), **origin} for seed in (4, 2) for cell in figure.cells()
        ]
        text = study.render(study.create_readme("known_distance"), "known_distance", figure, records)
        expected = f'python scripts/reproduce.py figure=known_distance{command} "seeds=[2, 4]" out=FOLDER'
        assert f"- **To run it again**: `{expected}`" in text
        assert "at commit unknown\n" in text and "**Time**: 16 min" in text

    def test_command_asks_for_the_data_where_no_place_is_the_default(self, configure):
        cfg = configure("figure=korotin", "figure.data_root=elsewhere", name="reproduce")
        command = study._format_command("korotin", config.build(cfg, "figure"), [0])
        assert command == 'python scripts/reproduce.py figure=korotin figure.data_root=DATA "seeds=[0]" out=FOLDER'

    def test_text_written_by_hand_stays(self, reproduce):
        path = reproduce([0]) / "README.md"
        path.write_text(f"# By hand\n\nOne seed.\n\n{BEGIN}\nold numbers\n{END}\n\nThe end.\n")
        reproduce([0])
        text = path.read_text()
        assert text.startswith(f"# By hand\n\nOne seed.\n\n{BEGIN}\n") and text.endswith(f"\n{END}\n\nThe end.\n")
        assert "old numbers" not in text and "![known_distance](known_distance.png)" in text

    def test_without_a_block_is_refused_before_anything_is_measured(self, reproduce, measured):
        path = reproduce([0]) / "README.md"
        path.write_text("# By hand\n")
        with pytest.raises(ValueError, match=r"README\.md: the text has 0 lines .*Add the missing line"):
            reproduce([0, 1])
        assert len(measured) == 2 and path.read_text() == "# By hand\n"

    def test_has_no_numbers_of_seeds_that_are_not_complete(self, reproduce):
        folder = reproduce([0])
        path = folder / "records.jsonl"
        path.write_text(path.read_text() + json.dumps(stamp({**parse(path.read_text())[0], "seed": 7})) + "\n")
        reproduce([0])
        assert '"seeds=[0]"' in (folder / "README.md").read_text()

    def test_is_rendered_again_from_the_records_alone(self, reproduce):
        folder = reproduce([0])
        assert render_folder(folder, "known_distance") == (folder / "README.md").read_text()
        (folder / "records.jsonl").write_text("")
        with pytest.raises(AssertionError, match="no seed for which all runs are measured"):
            render_folder(folder, "known_distance")


class TestTables:
    def test_markdown_table_has_a_line_per_row(self):
        table = markdown_table([{"a": "1", "b": "x|y"}, {"a": "", "b": "2"}])
        assert table.splitlines() == ["| a | b |", "| --- | --- |", r"| 1 | x\|y |", "|  | 2 |"]

    @pytest.mark.parametrize(
        "rows, message",
        [
            ([], "at least one row"),
            ([{"a": "1"}, {"b": "1"}], r"columns \['a'\], but one has \['b'\]"),
            ([{"a": "1\n2"}], "line break"),
        ],
    )
    def test_markdown_table_refuses_rows_that_are_no_table(self, rows, message):
        with pytest.raises(ValueError, match=message):
            markdown_table(rows)

    def test_replace_block_keeps_the_markers_and_the_text_around_them(self):
        assert replace_block("a\n<\nold\n>\nb\n", "<", ">", "\nnew\n\nlines\n") == "a\n<\nnew\n\nlines\n>\nb\n"
        assert replace_block("<\n>", "<", ">", "") == "<\n>"

    @pytest.mark.parametrize(
        "text, message",
        [
            ("<\n", "0 lines '>'"),
            ("<\n<\n>\n", "2 lines '<'"),
            ("a < b >\n", "0 lines '<'"),
            (">\n<\n", "comes before"),
        ],
    )
    def test_replace_block_needs_one_line_per_marker_in_order(self, text, message):
        with pytest.raises(ValueError, match=message):
            replace_block(text, "<", ">", "new")


class TestCommittedResults:
    def test_figures_that_were_run_are_there(self):
        names = "gradient_norms known_distance lipschitz_table mistakes overfitting penalties value_surfaces"
        assert set(names.split()) <= set(RESULTS)

    def test_every_rendered_page_is_compared_with_its_records(self):
        """Here; speed in test_benchmark.py, faults in test_faults.py, the two overviews in test_docs.py."""
        pages = {path.parent.name for path in ROOT.glob("results/*/README.md") if "<!-- rendered" in path.read_text()}
        assert pages == {*RESULTS, "benchmark", "scaling", "reliability"}
        assert {name.split("+")[0] for name in RESULTS} <= set(NAMES)

    @pytest.mark.parametrize("name", RESULTS)
    def test_readme_equals_its_records_rendered_anew(self, name):
        folder = ROOT / "results" / name
        assert (folder / "README.md").read_text() == render_folder(folder, name.split("+")[0])

    @pytest.mark.parametrize("name", RESULTS)
    def test_readme_with_an_edited_number_is_not_what_is_rendered(self, name, tmp_path):
        folder = shutil.copytree(ROOT / "results" / name, tmp_path / name)
        text = (folder / "README.md").read_text()
        row = text.index("\n| ", text.index("| --- |"))
        number = re.compile(r"\d").search(text, row)
        edited = text[: number.start()] + str(9 - int(number[0])) + text[number.end() :]
        (folder / "README.md").write_text(edited)
        assert render_folder(folder, name.split("+")[0]) == text != edited

    @pytest.mark.parametrize("name", RESULTS)
    def test_readme_is_written_by_hand_around_the_block(self, name):
        text = (ROOT / "results" / name / "README.md").read_text()
        before = text[: text.index(BEGIN)]
        assert all(heading in before for heading in ("## The paper", "## What we found"))
        assert (ROOT / "results" / name / f"{name.split('+')[0]}.png").exists()
