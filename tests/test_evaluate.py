import pytest
import torch
from helpers import TINY

from wgangp.cli import main
from wgangp.config import build_run, train_options
from wgangp.evaluate import _list_rows, evaluate
from wgangp.logs import read_lines
from wgangp.metrics.scores import Score
from wgangp.train import train


@pytest.fixture
def scored(configure, tmp_path, quick_pictures, quick_reports):
    """A tiny run that was scored at every second update, with the best score at update 2."""
    cfg = configure(*TINY, "train.steps=6", "train.evaluate_every=2")
    score = Score("points", lambda run, step: {"points_w1": abs(step - 2.0)}, {})
    train(tmp_path / "run", build_run(cfg), **train_options(cfg), scores=[score])
    return tmp_path / "run"


def test_table_has_a_row_per_number_and_the_record_says_what_it_depends_on(trained):
    folder = trained(*TINY, "train.steps=3")
    table = evaluate(str(folder), n=60, device="cpu")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| points")]
    assert [row[0] for row in rows] == [f"| points_{k}" for k in ("w1", "modes", "high_quality", "reverse_kl")]
    assert all("3 (newest)" in row[3] for row in rows)
    points, critic = read_lines(folder / "scores.jsonl")
    assert float(rows[0][1]) == pytest.approx(points["values"]["points_w1"], rel=1e-4)
    assert float(rows[0][2]) == pytest.approx(points["real"]["points_w1"], rel=1e-4)
    assert (points["score"], points["step"], points["checkpoint"]) == ("points", 3, "newest")
    assert points["settings"] == {"n": 60, "seed": 0, "generator": "last weights"}
    assert points["libraries"]["pot"]
    assert points["torch"] == torch.__version__
    assert not any(name.startswith("real_") for name in points["values"] | critic["values"])
    assert "budget" not in table


def test_table_says_that_a_run_is_the_small_version(trained):
    folder = trained(*TINY, "train.steps=0")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("budget: paper", "budget: cpu"))
    assert "- budget=cpu: smaller and shorter than in the paper" in evaluate(str(folder), ["critic"], device="cpu")


def test_evaluation_is_a_function_of_run_and_seed_and_changes_nothing(trained):
    folder = trained(*TINY, "train.steps=3")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for seed in (0, 0, 1):
        evaluate(str(folder), scores=["points"], n=60, seed=seed, device="cpu")
    first, second, other = (record["values"] for record in read_lines(folder / "scores.jsonl"))
    assert first == second != other
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "scores.jsonl"}
    assert after == before


def test_averaged_generator_is_scored_and_named(trained):
    folder = trained(*TINY, "train.steps=3", "ema.decay=0.5")
    evaluate(str(folder), scores=["points"], n=60, device="cpu")
    (record,) = read_lines(folder / "scores.jsonl")
    assert record["settings"]["generator"] == "moving average of the weights"


def test_real_samples_are_measured_once_for_both_checkpoints(scored, monkeypatch):
    seen = []
    monkeypatch.setattr("wgangp.evaluate.build_scores", lambda run, *options: seen.append(run.data) or [])
    with pytest.raises(ValueError, match="at least one row"):
        evaluate(str(scored), device="cpu")
    assert len(seen) == 2 and seen[0] is seen[1]


def test_newest_and_best_checkpoint_are_two_rows(scored):
    table = evaluate(str(scored), scores=["points"], n=60, device="cpu")
    assert "6 (newest)" in table
    assert "2 (best by points_w1 in training)" in table
    newest, best = read_lines(scored / "scores.jsonl")
    assert (newest["step"], best["step"]) == (6, 2)
    assert newest["values"] != best["values"]
    evaluate(str(scored), scores=["points"], n=60, step=4, device="cpu")
    assert read_lines(scored / "scores.jsonl")[-1]["checkpoint"] == "of this step"


def test_table_names_the_number_of_real_samples_where_they_are_fewer():
    common = {"score": "a", "values": {"a_fid": 1.0}, "settings": {"n": 50}, "step": 1, "checkpoint": "newest"}
    for count, cell in ((20, "2 (n = 20)"), (50, "2")):
        (row,) = _list_rows(common | {"real": {"a_fid": 2.0, "a_n": count}})
        assert row["real samples"] == cell


def test_command_prints_the_table_and_explains_what_is_wrong(trained, monkeypatch, capsys):
    folder = trained(*TINY, "train.steps=3")
    command = ["evaluate", f"run={folder}", "device=cpu"]
    monkeypatch.setattr("sys.argv", [*command, "scores=[critic]", "n=50"])
    main("evaluate")
    assert "| critic_train_gap |" in capsys.readouterr().out
    for wrong, message in (
        ("scores=[fid]", "choose among points"),
        ("n=many", "n must be an integer"),
        ("run=nowhere", "not a run folder"),
        ("step=99", "has checkpoints of the steps"),
        ("split=test", "split"),
    ):
        monkeypatch.setattr("sys.argv", [*command, wrong])
        with pytest.raises(SystemExit) as error:
            main("evaluate")
        assert message in f"{error.value}{capsys.readouterr().err}"
