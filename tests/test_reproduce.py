"""Reproducing a figure: what is measured, what is kept, and how the README is rendered."""

import json

import pytest
from helpers import ROOT

from wgangp import config
from wgangp.cli import REPRODUCE
from wgangp.config import CONF
from wgangp.figures import known_distance, study
from wgangp.figures.study import BEGIN, END
from wgangp.logs import read_lines
from wgangp.schema import to_arguments
from wgangp.tables import markdown_table, replace_block

TINY = ("figure=known_distance", "figure.width=4", "figure.iterations=2", "figure.batch_size=8")
NAMES = sorted(path.stem for path in (CONF / "figure").glob("*.yaml"))
RESULTS = [name for name in NAMES if (ROOT / "results" / name / "records.jsonl").exists()]


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

    def run(seeds, *overrides, out=out, budget="cpu", device="cpu"):
        out = None if out is None else str(out)
        return study.reproduce(build_figure(*overrides), "known_distance", budget, seeds, out, device)

    return run


def parse(text):
    return [json.loads(line) for line in text.splitlines()]


def numbers_of(records):
    """The records without what differs from one measurement to the next."""
    return [{k: v for k, v in record.items() if k not in {"seconds", "began", "command"}} for record in records]


class TestFolder:
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
            to_arguments(configure(*TINY, f"out={out}", "+foo=1", name="reproduce"), REPRODUCE)
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
        one, two = (study._complete_seeds(figure, read_lines(folder / "records.jsonl")) for folder in folders)
        assert [r["seed"] for r in one] == [1, 1, 3, 3]
        for a, b in zip(numbers_of(one), numbers_of(two), strict=True):
            assert a.keys() == b.keys() and (a["seed"], a["pair"]) == (b["seed"], b["pair"])
            assert a["gap"] == pytest.approx(b["gap"], rel=1e-4)
        assert (folders[1] / "README.md").exists()

    def test_command_prints_where_they_are_if_none_is_missing(self, reproduce, capsys):
        reproduce([0])
        assert "are in" not in capsys.readouterr().out
        folder = reproduce([0])
        assert f"all 2 runs are in {folder / 'records.jsonl'}" in capsys.readouterr().out

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
        path.write_text(path.read_text() + json.dumps({**parse(path.read_text())[0], "seed": 7}) + "\n")
        reproduce([0])
        assert '"seeds=[0]"' in (folder / "README.md").read_text()

    def test_is_rendered_again_from_the_records_alone(self, reproduce):
        folder = reproduce([0])
        assert study.render_folder(folder, "known_distance") == (folder / "README.md").read_text()
        (folder / "records.jsonl").write_text("")
        with pytest.raises(ValueError, match="no seed for which all runs are measured"):
            study.render_folder(folder, "known_distance")


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

    @pytest.mark.parametrize("name", RESULTS)
    def test_readme_equals_its_records_rendered_anew(self, name):
        folder = ROOT / "results" / name
        assert (folder / "README.md").read_text() == study.render_folder(folder, name)

    @pytest.mark.parametrize("name", RESULTS)
    def test_readme_is_written_by_hand_around_the_block(self, name):
        text = (ROOT / "results" / name / "README.md").read_text()
        before = text[: text.index(BEGIN)]
        assert all(heading in before for heading in ("## The paper", "## What we found"))
        assert (ROOT / "results" / name / f"{name}.png").exists()
