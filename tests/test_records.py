"""Run folders are read as data: what is read, what is one group, and what is refused with file and line."""

import json

import pytest
from helpers import make_old, write_run
from omegaconf import OmegaConf

from wgangp.records import Measure, group_runs, read_folder

LOG = [{"step": 0, "wasserstein": 1.0}, {"step": 10, "wasserstein": 3.0, "js4": 0.5, "reference_js4": 0.25}]
SCORE = {"score": "fid", "step": 10, "checkpoint": "newest", "settings": {"n": 100, "reference": "train"}}
SETTINGS = (("n", "100"), ("reference", "train"))


@pytest.fixture
def write(config_text, tmp_path):
    """write("a", "seed=1", ..., log=LOG) -> the folder of a run with this config and this log."""

    def write_named(name, *overrides, log=LOG, **files):
        return write_run(tmp_path / name, config_text(*overrides), log, **files)

    return write_named


def test_curves_and_numbers_of_real_samples_are_read_by_step(write):
    content = read_folder(write("a", "seed=3", seconds=90.0))
    assert content.curves[Measure("wasserstein")] == {0: 1.0, 10: 3.0} and content.curves[Measure("js4")] == {10: 0.5}
    assert content.reals == {Measure("js4"): {10: 0.25}}
    assert (content.seed, content.step, content.seconds) == (3, 10, 90.0) and "seed" not in content.config
    assert content.config["penalty.weight"] == 10.0 and "train.steps" not in content.config
    assert read_folder(write("b")).seconds is None


def test_last_record_of_a_score_at_a_step_counts(write):
    scores = [{**SCORE, "values": {"fid": value}, "real": {"fid": 1.0}} for value in (9.0, 8.0)]
    scores += [{**SCORE, "step": 20, "values": {"fid": 7.0}}]  # real can be missing
    scores += [{**SCORE, "settings": {"reference": "train", "n": 50}, "values": {"fid": 6.0}}]
    content = read_folder(write("a", scores=scores))
    assert content.curves[Measure("fid", "fid", "", SETTINGS)] == {10: 8.0, 20: 7.0}
    assert content.curves[Measure("fid", "fid", "", (("n", "50"), ("reference", "train")))] == {10: 6.0}
    assert content.reals[Measure("fid", "fid", "", SETTINGS)] == {10: 1.0}


def test_newest_checkpoint_and_one_of_this_step_are_the_same_at_equal_steps(write):
    scores = [{**SCORE, "checkpoint": name, "values": {"fid": 3.0}} for name in ("newest", "of this step")]
    assert read_folder(write("a", scores=scores)).curves[Measure("fid", "fid", "", SETTINGS)] == {10: 3.0}


def test_scores_in_the_log_depend_on_the_settings_of_the_evaluation(write):
    log = [{"step": 0, "wasserstein": 1.0, "points_w1": 2.0, "real_points_w1": 0.5, "modes": 8}]
    content = read_folder(write("a", "evaluate.n=50", "evaluate.scores=[points]", log=log))
    measure = Measure("points_w1", settings=(("evaluate.n", "50"), ("evaluate.seed", "0")))
    assert set(content.curves) == {Measure("step"), Measure("wasserstein"), Measure("modes"), measure}
    assert content.reals == {measure: {0: 0.5}}


def test_best_checkpoint_has_only_its_last_step(write):
    best = {**SCORE, "checkpoint": "best by js4 in training"}
    scores = [{**best, "step": step, "values": {"fid": float(step)}} for step in (20, 10)]
    content = read_folder(write("a", scores=scores))
    assert content.curves[Measure("fid", "fid", "best by js4 in training", SETTINGS)] == {10: 10.0}


class TestGroups:
    def group(self, *folders):
        return [[c.folder.name for c in group] for group in group_runs(list(map(read_folder, folders))).values()]

    def test_runs_that_differ_only_in_the_seed_are_one_group(self, write):
        folders = write("a", "seed=0"), write("b", "penalty.sides=one"), write("c", "seed=1")
        assert self.group(*folders) == [["a", "c"], ["b"]]
        assert list(group_runs(list(map(read_folder, folders)))) == ["A", "B"]

    def test_keys_that_change_no_number_do_not_split_a_group(self, write):
        others = ("train.log_every=3", "device=cpu", "train.steps=7", "train.decay_steps=4000")
        assert self.group(write("a"), write("b", "seed=1", *others)) == [["a", "b"]]
        mnist = ("data=mnist", "networks=mnist")
        assert self.group(write("c", *mnist, "data.root=x"), write("d", *mnist, "seed=1")) == [["c", "d"]]

    def test_folder_that_is_older_than_some_keys_is_in_the_group_of_their_defaults(self, write):
        old = write("old")
        make_old(old / "config.yaml")
        assert self.group(old, write("new", "seed=1")) == [["old", "new"]]

    def test_second_run_with_the_same_seed_is_in_another_group(self, write):
        assert self.group(write("a"), write("b", "seed=1"), write("c"), write("d", "seed=1")) == [
            ["a", "b"],
            ["c", "d"],
        ]

    def test_runs_whose_logs_end_at_different_steps_are_different_groups(self, write):
        assert self.group(write("a"), write("b", "seed=1", log=LOG[:1])) == [["a"], ["b"]]

    @pytest.mark.parametrize("data, key", [("image_folder", "root"), ("text", "path")])
    def test_your_own_data_at_another_place_is_other_data(self, write, data, key):
        folders = [write(name, f"data={data}", f"data.{key}={name}", f"seed={i}") for i, name in enumerate("ab")]
        assert self.group(*folders) == [["a"], ["b"]]


class TestBadInput:
    def check(self, folder, *messages):
        with pytest.raises(ValueError) as error:
            read_folder(folder)
        assert all(message in str(error.value) for message in (str(folder), *messages)), error.value

    def test_other_folder(self, write, tmp_path):
        self.check(tmp_path / "nowhere", "is not a run folder: it has no config.yaml")
        folder = write("figure")
        for text in ("figure:\n  steps: 3\n", "", "just words"):
            (folder / "config.yaml").write_text(text)
            self.check(folder, "is not a run folder: its config.yaml has no seed or no data._target_")

    @pytest.mark.parametrize(
        "text, line",
        [
            (b"seed: 0\ndata:\n  _target_: [1\n", ", line 4"),
            (b"seed: 0\n\xff\xfe\n", ""),
            (b"seed: ${nothing}\n", ", line 1"),
        ],
    )
    def test_damaged_config(self, write, text, line):
        folder = write("a")
        (folder / "config.yaml").write_bytes(text)
        self.check(folder, f"config.yaml{line}: the file is damaged (", "Restore it from a copy")

    def test_run_without_a_log(self, write):
        folder = write("a")
        for text in ("", '{"step": 0'):  # a line without its end was cut off
            (folder / "metrics.jsonl").write_text(text)
            self.check(folder, "has no log (metrics.jsonl is missing or empty): train the run first")
        (folder / "metrics.jsonl").unlink()
        self.check(folder, "has no log")

    @pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "scores.jsonl"])
    @pytest.mark.parametrize("line", [b'{"step": 5, "elap', b"[1, 2]", b"\xff\xff", b"", b"null"])
    def test_line_that_is_no_json_object(self, write, name, line):
        folder = write("a", seconds=1.0, scores=[{**SCORE, "values": {}}])
        path = folder / name
        path.write_bytes(path.read_bytes() + line + b"\n")
        number = path.read_bytes().count(b"\n")
        self.check(folder, f"{name}, line {number} is damaged (", "restore the file from a copy")

    @pytest.mark.parametrize(
        "name, record, reason",
        [
            ("metrics", {"step": 5, "wasserstein": "3"}, "wasserstein is not a number"),
            ("metrics", {"step": 5, "wasserstein": None}, "wasserstein is not a number"),
            ("metrics", {"step": 5, "wasserstein": True}, "wasserstein is not a number"),
            ("metrics", {"wasserstein": 3.0}, "it has no step"),
            ("timing", {"step": 5}, "it has no elapsed_s"),
            ("scores", {**SCORE}, "values is missing or has another type than dict"),
            ("scores", {**SCORE, "values": {}, "step": "10"}, "step is missing or has another type than int"),
            ("scores", {**SCORE, "values": {"fid": "low"}}, "fid is not a number"),
            ("scores", {**SCORE, "values": {}, "real": {"fid": None}}, "fid is not a number"),
            ("scores", {**SCORE, "values": {}, "settings": None}, "settings is missing or has another type than dict"),
        ],
    )
    def test_line_with_a_value_that_does_not_belong_there(self, write, name, record, reason):
        folder = write("a", seconds=1.0, scores=[{**SCORE, "values": {}}])
        path = folder / f"{name}.jsonl"
        path.write_text(path.read_text() + json.dumps(record) + "\n")
        self.check(folder, f"{name}.jsonl, line {path.read_text().count(chr(10))} is damaged ({reason})")


def test_reading_changes_nothing_and_calls_no_code_that_a_config_names(write):
    folder = write("a")
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.networks.critic._target_ = "os.abort"
    OmegaConf.save(cfg, folder / "config.yaml")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert read_folder(folder).config["networks.critic._target_"] == "os.abort"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
