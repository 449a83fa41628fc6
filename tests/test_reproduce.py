"""scripts/reproduce.py as a function: resumable, extendable, and careful with what is there."""

import importlib.util
import json

import pytest
from conftest import ROOT

from wgangp.figures import known_distance
from wgangp.logs import read_lines

spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture
def reproduce(configure, monkeypatch, tmp_path):
    """reproduce("seeds=[1]", ...) makes a tiny known_distance in tmp_path/out; reproduce.measured lists the work."""
    monkeypatch.setattr(known_distance, "DIMENSIONS", (2,))
    for name in ("HELD_OUT", "STARTS", "ASCENT"):
        monkeypatch.setattr(known_distance, name, 20)
    measured, measure = [], known_distance.KnownDistance.measure

    def counted(self, cell, seed, *rest):
        measured.append((seed, cell["pair"]))
        return measure(self, cell, seed, *rest)

    monkeypatch.setattr(known_distance.KnownDistance, "measure", counted)

    def run(*overrides):
        tiny = ["figure=known_distance", "figure.width=4", "figure.iterations=2", "figure.batch_size=8", "device=cpu"]
        return script.reproduce(
            configure(*tiny, f"out={tmp_path / 'out'}", *overrides, name="reproduce"), "known_distance"
        )

    run.measured = measured
    return run


def test_lines_picture_and_five_lines_are_written(reproduce):
    folder = reproduce("seeds=[3,1]")
    records = read_lines(folder / "records.jsonl")
    assert [(r["seed"], r["pair"], r["dim"]) for r in records] == [
        (seed, pair, 2) for seed in (3, 1) for pair in ("shift", "funnels")
    ]
    assert all(r["commit"] and r["seconds"] > 0 and "gap" in r for r in records)
    assert (folder / "known_distance.png").stat().st_size > 10_000
    said = (folder / "README.md").read_text()
    points = [line.split("**")[1] for line in said.splitlines() if line.startswith("- **")]
    assert points == ["Run", "Time", "The paper", "Here", "Where they differ, and why"]
    assert "width 4" in said and '"seeds=[1, 3]"' in said and "4 runs" in said


def test_what_is_measured_is_not_measured_again_and_seeds_can_be_added(reproduce):
    folder = reproduce("seeds=[0]")
    first = (folder / "records.jsonl").read_text()
    reproduce("seeds=[0]")
    assert reproduce.measured == [(0, "shift"), (0, "funnels")]
    reproduce("seeds=[0,1]")
    assert reproduce.measured[2:] == [(1, "shift"), (1, "funnels")]
    assert (folder / "records.jsonl").read_text().startswith(first)


def test_a_record_that_was_cut_off_is_measured_again(reproduce):
    folder = reproduce("seeds=[0]")
    path = folder / "records.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])
    reproduce("seeds=[0]")
    assert reproduce.measured[2:] == [(0, "funnels")]
    drop = {"seconds", "began", "command"}
    again, before = (
        [{k: v for k, v in r.items() if k not in drop} for r in rs] for rs in (read_lines(path), lines(whole))
    )
    assert again == before


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_seeds_that_are_not_complete_are_not_drawn(reproduce, monkeypatch):
    folder = reproduce("seeds=[0]")
    path = folder / "records.jsonl"
    path.write_text(path.read_text() + json.dumps({**lines(path.read_text())[0], "seed": 7}) + "\n")
    reproduce("seeds=[0]")
    assert "seeds=[0]" in (folder / "README.md").read_text()


def test_other_options_and_what_is_not_ours_are_refused(reproduce, tmp_path):
    folder = reproduce("seeds=[0]")
    before = (folder / "records.jsonl").read_text()
    with pytest.raises(ValueError, match=r"(?s)figure\.iterations: 2 there, 3 now.*another out="):
        reproduce("seeds=[0]", "figure.iterations=3")
    assert (folder / "records.jsonl").read_text() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty.*another out="):
        reproduce(f"out={tmp_path / 'mine'}")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_run_that_diverges_does_not_keep_the_others_from_being_measured(reproduce, monkeypatch, tmp_path):
    measure = known_distance.KnownDistance.measure

    def diverging(self, cell, seed, *rest):
        if (seed, cell["pair"]) == (0, "shift"):
            raise ValueError("the critic diverged")
        return measure(self, cell, seed, *rest)

    monkeypatch.setattr(known_distance.KnownDistance, "measure", diverging)
    with pytest.raises(ValueError, match=r"(?s)1 of 4 runs failed.*shift, 2, seed 0: the critic diverged"):
        reproduce("seeds=[0,1]")
    assert len(read_lines(tmp_path / "out" / "records.jsonl")) == 3
    assert "seeds=[1]" in (tmp_path / "out" / "README.md").read_text()
    monkeypatch.undo()


def test_a_run_that_is_stopped_is_no_record(reproduce, monkeypatch, tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(known_distance.KnownDistance, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        reproduce("seeds=[0]")
    assert read_lines(tmp_path / "out" / "records.jsonl") == []


def test_the_time_of_earlier_sittings_counts(reproduce, tmp_path):
    run = tmp_path / "out" / "runs" / "0+2+shift"
    folder = reproduce("seeds=[1]")
    run.mkdir(parents=True)
    (run / "timing.jsonl").write_text('{"step": 3, "elapsed_s": 1000.0}\n')
    reproduce("seeds=[0,1]")
    assert [r["seconds"] > 1000 for r in read_lines(folder / "records.jsonl")] == [False, False, True, False]


def test_what_is_there_already_is_said(reproduce, capsys):
    reproduce("seeds=[0]")
    assert "are in" not in capsys.readouterr().out
    reproduce("seeds=[0]")
    assert "all 2 runs are in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, said",
    [
        ("seeds=[]", "at least one"),
        ("seeds=[1,1]", "different"),
        ("seeds=[-1]", ">= 0"),
        ("+figure.wdith=3", "figure.wdith is unknown"),
        ("figure._target_=os.system", "only names under"),
        ("device=toaster", "device=cpu"),
        ("+foo=1", "unknown key"),
    ],
)
def test_bad_input_is_an_error_with_the_remedy(reproduce, tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        reproduce(override)
    assert not (tmp_path / "out").exists()
