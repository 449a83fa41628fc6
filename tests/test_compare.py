"""The comparison of run folders: its page, its picture, and what is refused."""

import re
from pathlib import Path

import pytest
from helpers import write_run
from matplotlib.figure import Figure

from wgangp import compare as module
from wgangp.compare import compare, convert_folders
from wgangp.metrics.scores import MAIN


def make_log(*values, **more):
    return [{"step": 10 * i, "wasserstein": value, **more} for i, value in enumerate(values)]


def make_score(value, step=10, n=100, checkpoint="newest", real=None):
    values, reals = {"tiny_fid": value}, {} if real is None else {"tiny_fid": real}
    settings = {"n": n, "reference": "training set"}
    kind = {"score": "tiny", "step": step, "checkpoint": checkpoint}
    return {**kind, "values": values, "real": reals, "settings": settings, "commit": "abc"}


@pytest.fixture
def write(config_text, tmp_path, monkeypatch):
    """write("a", "seed=1", log=...) -> "a", a run folder in the folder of the user."""
    monkeypatch.chdir(tmp_path)

    def write_named(name, *overrides, log=None, **files):
        write_run(tmp_path / name, config_text(*overrides), log or make_log(1.0, 2.0), **files)
        return name

    return write_named


@pytest.fixture
def write_many(write, tmp_path):
    """write_many(3) -> ["run0", "run1", "run2"], run folders whose penalties have the weights 0, 1 and 2."""

    def write_weights(count):
        for i in range(count):
            path = tmp_path / write(f"run{i}") / "config.yaml"
            path.write_text(path.read_text().replace("weight: 10.0", f"weight: {i}.0"))
        return [f"run{i}" for i in range(count)]

    return write_weights


@pytest.fixture
def page(monkeypatch):
    """page("a", "b") -> the page of the comparison, without its picture."""
    monkeypatch.setattr(module, "_draw", lambda path, *arguments: path.touch())
    return lambda *runs, **options: (compare(list(runs), **options) / "README.md").read_text()


def find_row(page, name):
    """The cells of the rows of a table that begin with a name."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {name} |")]
    return [[cell.strip() for cell in row[1:]] for row in rows]


class TestPage:
    def test_numbers_of_a_group_are_mean_and_range_over_its_seeds(self, write, page):
        logs = {f"s{i}": make_log(9.0, value, modes=3) for i, value in enumerate((1.0, 2.5, 7.0))}
        folders = [write(name, f"seed={name[1]}", log=log, seconds=60.0) for name, log in logs.items()]
        other = write("other", "penalty.weight=1", log=make_log(9.0, 4.0))
        text = page(*folders, other)
        assert find_row(text, "A") == [["0, 1, 2", "`s0`, `s1`, `s2`"]] and find_row(text, "B") == [["0", "`other`"]]
        assert find_row(text, "score") == [["A (n = 3)", "B (n = 1)"]]
        assert find_row(text, "`wasserstein`") == [["3.5 (1 ... 7)", "4"]]
        assert find_row(text, "`modes`") == [["3", "-"]] and find_row(text, "`step`") == [["10", "10"]]
        assert find_row(text, "time of training (min)") == [["1", "-"]]
        assert "high_quality" not in text  # no group has it

    def test_keys_that_differ_between_groups_are_rows(self, write, page):
        text = page(write("a"), write("b", "seed=1"), write("c", "optim=rmsprop", "train.log_every=7"))
        section = text.split("## What differs in the configs")[1].split("##")[0]
        keys = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
        assert keys == ["optim._target_", "optim.alpha", "optim.betas", "optim.eps", "optim.fused", "optim.lr"]
        assert find_row(text, "`optim.betas`") == [["[0,0.9]", "-"]]
        assert "different data" not in text and "different steps" not in text

    def test_key_that_an_older_folder_does_not_have_is_shown_with_its_value(self, write, page):
        folders = write("old"), write("new", "train.precision=bf16")
        path = Path("old", "config.yaml")
        path.write_text(path.read_text().replace("  precision: fp32\n", ""))
        assert find_row(page(*folders), "`train.precision`") == [["fp32", "bf16"]]

    def test_one_group_has_no_differing_key(self, write, page):
        text = page(write("a"), write("b", "seed=1"))
        assert "No key that changes a number differs." in text and find_row(text, "score") == [["A (n = 2)"]]

    def test_different_data_is_a_warning(self, write, page):
        text = page(write("a"), write("b", "data=gaussians25"))
        assert "**The groups have different data** (`data._target_`)" in text and "are not comparable." in text
        assert "same files" not in text
        folders = [write(name, "data=text", f"data.path={name}") for name in "cd"]
        assert "(`data.path`)" in page(*folders) and "same files at another place" in page(*folders)

    def test_different_numbers_of_updates_are_a_warning(self, write, page):
        text = page(write("a"), write("b", log=make_log(1.0, 2.0, 3.0)))
        assert "**The logs end at different steps**" in text and find_row(text, "`step`") == [["10", "20"]]
        assert find_row(text, "`wasserstein`") == [["2", "3"]]

    def test_steps_that_were_not_compiled_are_a_warning(self, write, page):
        starts = [{"not_compiled": {"generator": "RuntimeError"}}, {}, {"not_compiled": {"critic": "it is old"}}]
        eager, compiled = write("a", provenance=starts), write("b", "seed=1", provenance=[{}])
        text = page(compiled, eager)
        assert "**Steps that were to be compiled were computed in eager mode** in `a` (critic, generator):" in text
        assert "eager mode" not in page(compiled, write("c", "seed=2"))
        with pytest.raises(ValueError, match=r"provenance.jsonl, line 1 is damaged \(not_compiled is not an object\)"):
            page(compiled, write("d", "seed=3", provenance=[{"not_compiled": 3}]))

    def test_metric_that_the_last_line_does_not_have_is_no_number_of_the_end(self, write, page):
        log = [{"step": 0, "critic_loss": 1.0, "modes": 8}, {"step": 10, "critic_loss": 2.0}]
        assert find_row(page(write("a", log=log), write("b", "seed=1", log=log)), "`modes`") == [["-"]]

    def test_value_of_real_samples_is_beside_the_score(self, write, page):
        folders = write("a", log=make_log(1.0, js4=0.5, reference_js4=0.25)), write("b", "seed=1", log=make_log(2.0))
        text = page(*folders)
        assert find_row(text, "score") == [["real against real", "A (n = 2)"]]
        assert find_row(text, "`js4`") == [["0.25", "0.5; n = 1"]] and "reference_js4" not in text


class TestScores:
    def test_only_equal_settings_are_in_one_row(self, write, page):
        a = write("a", scores=[make_score(4.0, n=100, real=1.5), make_score(3.0, n=500)])
        b = write("b", "penalty.weight=1", scores=[make_score(6.0, n=500)])
        text = page(a, b)
        assert find_row(text, "`tiny_fid`") == [
            ["checkpoint of step 10; n = 100", "1.5", "4", "-"],
            ["checkpoint of step 10; n = 500", "", "3", "6"],
        ]
        assert "- Settings of `tiny`: reference = training set\n" in text
        assert find_row(text, "`wasserstein`")[0][0] == "end of the log"

    def test_equal_settings_are_named_once_below_the_table(self, write, page):
        text = page(*(write(name, f"seed={i}", scores=[make_score(4.0 + i)]) for i, name in enumerate("ab")))
        assert find_row(text, "`tiny_fid`") == [["checkpoint of step 10", "4.5 (4 ... 5)"]]
        assert "- Settings of `tiny`: n = 100, reference = training set\n" in text

    def test_numbers_at_different_steps_are_not_averaged(self, write, page):
        a = write("a", scores=[make_score(4.0, step=5), make_score(3.0, step=10)])
        b = write("b", "seed=1", scores=[make_score(8.0, step=5)])
        assert find_row(page(a, b), "`tiny_fid`") == [
            ["checkpoint of step 5", "6 (4 ... 8)"],
            ["checkpoint of step 10", "3; n = 1"],
        ]

    def test_best_checkpoints_are_one_row_and_never_in_that_of_the_newest(self, write, page):
        best = "best by modes in training"
        for i, name in enumerate("ab"):
            write(name, f"seed={i}", scores=[make_score(4.0), make_score(2.0 + i, step=6 + i, checkpoint=best)])
        assert find_row(page("a", "b"), "`tiny_fid`") == [
            ["checkpoint of step 10", "4"],
            ["best by modes in training, step 6 to 7", "2.5 (2 ... 3)"],
        ]

    def test_scores_of_the_log_are_in_one_row_per_settings(self, write, page):
        logs = [make_log(1.0, points_w1=4.0 + i, real_points_w1=0.5) for i in range(2)]
        folders = [write(f"s{i}", f"seed={i}", f"evaluate.n={50 + i}", log=log) for i, log in enumerate(logs)]
        text = page(*folders)
        assert find_row(text, "`points_w1`") == [
            ["end of the log; evaluate.n = 50", "0.5", "4; n = 1"],
            ["end of the log; evaluate.n = 51", "0.5", "5; n = 1"],
        ]
        assert "- Settings of scores in the log: evaluate.seed = 0\n" in text

    def test_real_values_that_differ_between_groups_are_named_per_group(self, write, page):
        a = write("a", scores=[make_score(4.0, real=1.0)])
        b = write("b", "data=gaussians25", scores=[make_score(6.0, real=2.0)])
        assert find_row(page(a, b), "`tiny_fid`") == [["checkpoint of step 10", "A: 1, B: 2", "4", "6"]]

    def test_name_without_its_score_has_the_score_before_it(self, write, page):
        score = make_score(4.0) | {"score": "coverage", "values": {"modes": 7}}
        text = page(write("a", scores=[score]), write("b", "seed=1"))
        assert find_row(text, "`coverage: modes`") == [["checkpoint of step 10", "7; n = 1"]]


class TestFolder:
    def test_default_folder_has_a_short_name_without_special_characters(self, write, page):
        page(write("a b"), write("c", "seed=1"))
        assert Path("runs/compared/a-b_vs_c/README.md").exists()
        long = [write(f"{'long' * 20}{i}", f"seed={i}") for i in range(3)]
        assert len(compare(long).name) <= 60 and compare(long) != compare(long[:2])

    def test_same_comparison_is_written_again_and_keeps_text_around_its_block(self, write, page):
        a, b = write("a"), write("b", "penalty.weight=1")
        path = compare([a, b], out="out") / "README.md"
        path.write_text("My notes.\n" + path.read_text())
        before = path.read_text()
        assert page("./a", "b/", out="out") == before
        Path("a", "metrics.jsonl").write_text('{"step": 30, "wasserstein": 7.0}\n')
        text = page(a, b, out="out")
        assert text.startswith("My notes.\n") and find_row(text, "`step`") == [["30", "10"]]

    def test_other_folder_is_refused_and_stays_as_it_is(self, write, page, tmp_path):
        a, b, c = write("a"), write("b", "seed=1"), write("c", "seed=2")
        page(a, b, out="out")
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "README.md").write_text("years of work")
        (tmp_path / "file").write_text("work")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for out in ("out", "thesis", "file", "a"):
            with pytest.raises(ValueError, match=f"{out} exists and is not this comparison: choose another out="):
                compare([a, c], out=out)
        with pytest.raises(ValueError, match=r"file/x cannot be created .* choose another out="):
            compare([a, c], out="file/x")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_folder_of_all_comparisons_is_left_out_of_the_runs(self, write, page):
        folders = write("runs/a"), write("runs/b", "seed=1")
        before = page(*folders)
        assert page("runs/a", "runs/b", "runs/compared") == before

    def test_empty_folder_is_used(self, write, page, tmp_path):
        (tmp_path / "out").mkdir()
        page(write("a"), write("b", "seed=1"), out="out")


class TestBadInput:
    def check(self, folders, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            compare(folders)
        assert not (tmp_path / "runs").exists()

    def test_fewer_than_two_folders(self, write, tmp_path):
        for folders in ([], [write("a")]):
            self.check(folders, r"two or more run folders, for example python scripts/compare\.py runs/a", tmp_path)

    def test_same_folder_twice(self, write, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / write("a"))
        for again in ("a/", "./a", str(tmp_path / "a"), "link"):
            self.check(["a", again], "is named twice: name every run folder once", tmp_path)

    def test_other_folder_and_missing_log(self, write, tmp_path):
        self.check([write("a"), "nowhere"], "nowhere is not a run folder", tmp_path)
        (tmp_path / write("b") / "metrics.jsonl").unlink()
        self.check(["a", "b"], "b has no log", tmp_path)

    def test_too_many_groups(self, write_many, tmp_path):
        self.check(write_many(17), "17 groups with different configs: compare 16 or fewer at once", tmp_path)

    def test_logs_without_a_common_metric(self, write, tmp_path):
        folders = write("a", log=[{"step": 0, "modes": 1}]), write("b", "penalty.weight=1")
        self.check(list(folders), "no two groups have one of wasserstein, .* choose other runs", tmp_path)


class TestPicture:
    @pytest.fixture
    def draw(self, monkeypatch):
        """draw("a", "b") -> the matplotlib figure of the comparison."""
        figures = []

        def record(figure, path, dpi):
            figure.draw_without_rendering()
            figures.append(figure)

        monkeypatch.setattr(Figure, "savefig", record)
        return lambda *runs: (compare(list(runs)), figures[-1])[1]

    def test_line_is_the_mean_and_band_the_range_over_seeds(self, write, draw):
        folders = [write(f"s{i}", f"seed={i}", log=make_log(1.0, 2.0 + i, 6.0 + 2 * i)) for i in range(2)]
        figure = draw(*folders, write("b", "penalty.weight=1", log=make_log(0.0, 1.0, 5.0)))
        (axes,) = figure.axes
        assert [list(line.get_xdata()) for line in axes.lines] == [[0, 10, 20]] * 2
        assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 2.5, 7.0], [0.0, 1.0, 5.0]]
        corners = axes.collections[0].get_paths()[0].vertices
        assert {(10, 2.0), (10, 3.0), (20, 6.0), (20, 8.0)} <= set(map(tuple, corners))
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.texts] == [
            "A (n = 2): penalty.weight = 10",
            "B (n = 1): penalty.weight = 1",
        ]
        assert axes.get_xlabel() == "generator updates" and axes.get_ylabel() == "wasserstein"

    def test_panels_are_the_metrics_of_two_groups_or_more(self, write, draw):
        a = write("a", log=make_log(1.0, 2.0, modes=3, other=1.0))
        b = write("b", "penalty.weight=1", log=make_log(1.0, 2.0, other=2.0))
        c = write("c", "penalty.weight=2", log=[{"step": 0, "modes": 2}])
        assert [axes.get_ylabel() for axes in draw(a, b, c).axes] == ["wasserstein", "modes"]
        assert [axes.get_ylabel() for axes in draw(a, b).axes] == ["wasserstein"]

    def test_curves_have_the_steps_that_all_seeds_have(self, write, draw):
        write("a", log=make_log(1.0, 2.0, 3.0))
        log = [record for record in make_log(3.0, 9.0, 5.0) if record["step"] != 10]
        write("b", "seed=1", "train.log_every=20", log=log)
        (line,) = draw("a", "b").axes[0].lines
        assert list(line.get_xdata()) == [0, 20] and list(line.get_ydata()) == [2.0, 4.0]

    def test_scores_of_the_log_have_a_panel_per_settings(self, write, draw):
        for i, name in enumerate("abc"):
            write(name, f"penalty.weight={i}", f"evaluate.n={50 if i < 2 else 9}", log=make_log(1.0, 2.0, points_w1=i))
        axes = draw("a", "b", "c").axes[1]
        assert axes.get_title() == "exact W1 to held-out points; evaluate.n = 50" and axes.get_ylabel() == "points_w1"
        assert [list(line.get_ydata()) for line in axes.lines] == [[0, 0], [1, 1], []]

    def test_every_line_has_its_own_color_and_style(self, write_many, draw):
        figure = draw(*write_many(16))
        looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in figure.axes[0].lines}
        assert len(looks) == 16

    def test_label_is_the_folder_if_many_keys_differ(self, write, draw):
        keys = ("penalty.weight=1", "optim.lr=1", "penalty.sides=one", "train.batch_size=9")
        (legend,) = draw(write("plain"), write("changed", *keys)).legends
        assert [text.get_text() for text in legend.texts] == ["A (n = 1): plain", "B (n = 1): changed"]

    @pytest.mark.layout
    def test_legend_fits_into_the_picture(self, write, draw):
        keys = ("penalty.weight=0.123456789", "optim.lr=0.000123456789", "clip.weights=0.123456789")
        figure = draw(write("a"), write("b", *keys))
        box = figure.legends[0].get_window_extent()
        assert 0 < box.x0 < box.x1 < figure.bbox.width and 0 < box.y0 < box.y1 < figure.axes[0].bbox.y0


def test_picture_is_written(write):
    path = compare([write("a"), write("b", "penalty.weight=1")])
    assert (path / "compare.png").read_bytes().startswith(b"\x89PNG") and "](compare.png)" in (
        path / "README.md"
    ).read_text()


class TestConvertFolders:
    def test_folders_become_one_override(self):
        assert convert_folders(["runs/a", "out=x", "b c"]) == ['runs=["runs/a","b c"]', "out=x"]
        assert convert_folders(['a"b']) == [r'runs=["a\"b"]']

    def test_options_of_hydra_and_their_values_are_left_alone(self):
        assert convert_folders(["--cfg", "job", "a", "-m", "b"]) == ['runs=["a","b"]', "--cfg", "job", "-m"]

    @pytest.mark.parametrize("arguments", [[], ["out=x"], ["runs=[a,b]"], ["a", "runs=[b]"]])
    def test_nothing_else_is_changed(self, arguments):
        assert convert_folders(arguments) == arguments


def test_every_score_that_chooses_the_best_checkpoint_is_compared():
    assert set(MAIN) <= set(module.METRICS)
