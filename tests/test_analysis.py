"""The Lipschitz analysis of a trained critic: which numbers are written for which critic."""

import json
import math

import pytest
import torch
from helpers import TINY, train_run, write_idx
from PIL import Image

from wgangp import checkpoint, gradient_norm, lipschitz_on_box, plots
from wgangp.analysis import analyze
from wgangp.config import load_run
from wgangp.networks import mlp
from wgangp.networks.mlp import MLPCritic

TOY = (*TINY, "train.steps=2", "seed=8", "penalty.sides=one")
SMALL = ("networks.generator.width=4", "networks.critic.width=4", "train.report_size=9", "device=cpu")
SIZES = {"n": 60, "starts": 9, "ascent": 3, "device": "cpu"}
IMAGE_SIZES = {"n": 50, "starts": 5, "ascent": 2, "device": "cpu"}


@pytest.fixture
def _whole():
    """Ask for this fixture to draw the picture and to search for the constant up to its tolerance, in two seconds."""


@pytest.fixture(autouse=True)
def _quick_analysis(request, monkeypatch):
    if "_whole" not in request.fixturenames:
        search = lambda *arguments: lipschitz_on_box(*arguments, max_cells=64)  # noqa: E731
        monkeypatch.setattr("wgangp.analysis.lipschitz_on_box", search)
        monkeypatch.setattr("wgangp.plots.save_lipschitz", lambda path, *_, **__: path.touch())


def read(folder):
    return json.loads((folder / "lipschitz.json").read_text())


@pytest.fixture
def toy(trained):
    return trained(*TOY)


def test_analysis_of_points_has_every_number(toy, _whole):
    folder = analyze(str(toy), **SIZES)
    assert folder == toy / "made" / "lipschitz_step2_seed0_n60_starts9_ascent3"
    report = read(folder)
    assert set(report["slopes"]) == {"real", "fake", "interpolates", "perturbed", "coupled"}
    bounds, distances = report["lipschitz"], report["distances"]
    steepest = max(bounds["largest_quotient"], bounds["steepest"], *(s["max"] for s in report["slopes"].values()))
    assert steepest <= bounds["certified"]
    assert 0 < bounds["low"] <= bounds["high"] <= 1.01 * bounds["low"] and bounds["high"] <= bounds["certified"]
    (low, high), inside = bounds["box"], max(s["max"] for s in report["slopes"].values())
    assert len(low) == len(high) == 2 and inside <= bounds["high"]  # all these points are on the box
    assert distances["proved"]["bound"] == pytest.approx(distances["gap"] / bounds["high"])
    assert distances["proved"]["bound"] <= distances["exact_w1"]
    assert distances["proved"]["low"] <= distances["proved"]["bound"] <= distances["proved"]["high"]
    assert distances["sampling_floor"] < distances["exact_w1"]
    assert report["step"] == 2 and report["n"] == 60 and report["commit"] and report["command"]
    assert {"run", "starts", "ascent", "seed", "out", "data_root", "torch", "device"} <= report.keys()
    with Image.open(folder / "lipschitz.png") as picture:
        assert picture.width > 1000
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # no unfinished files


def test_picture_of_a_small_version_says_so(toy, monkeypatch):
    titles, draw = [], plots.save_lipschitz
    monkeypatch.setattr("wgangp.plots.save_lipschitz", lambda *values: titles.append(values[-1]) or draw(*values))
    for seed, budget in enumerate(("paper", "cpu")):
        path = toy / "config.yaml"
        path.write_text(path.read_text().replace("budget: paper", f"budget: {budget}"))
        analyze(str(toy), **SIZES, seed=seed)
    updates = "2 generator updates"
    assert titles == [updates, f"{updates}; budget=cpu: smaller and shorter than in the paper"]


def test_expected_slope_follows_from_the_exact_distance(trained):
    report = read(analyze(str(trained(*TINY, "train.steps=20", "optim.lr=0.01")), **SIZES))
    assert report["distances"]["gap"] > 0 and report["expected_from"] == "exact W1"
    assert report["expected_slope"] == pytest.approx(1 + report["distances"]["exact_w1"] / 20)
    assert report["distances"]["corrected"] < report["distances"]["gap"]


def test_expected_slope_does_not_need_a_positive_gap_if_the_exact_distance_is_known(toy, monkeypatch):
    forward = MLPCritic.forward
    with monkeypatch.context() as patch:
        patch.setattr(MLPCritic, "forward", lambda self, x: -forward(self, x))
        gaps = [analyze(str(toy), **SIZES)]
    gaps = [read(folder) for folder in (*gaps, analyze(str(toy), **SIZES, out=str(toy / "other")))]
    assert {report["distances"]["gap"] > 0 for report in gaps} == {True, False}  # D and -D
    for report in gaps:
        assert report["expected_slope"] == pytest.approx(1 + report["distances"]["exact_w1"] / 20)
        assert ("corrected" in report["distances"]) == (report["distances"]["gap"] > 0)


def test_same_arguments_return_the_folder_that_exists(toy):
    folder = analyze(str(toy), **SIZES)
    before = (folder / "lipschitz.json").stat().st_mtime_ns
    assert analyze(str(toy), **SIZES) == folder and (folder / "lipschitz.json").stat().st_mtime_ns == before


def test_out_is_the_new_folder_and_is_not_overwritten(toy, tmp_path):
    out = tmp_path / "new" / "custom"
    assert analyze(str(toy), **SIZES, seed=1, out=str(out)) == out
    assert read(out)["seed"] == 1 and not (toy / "made").exists()
    before = (out / "lipschitz.json").read_bytes()
    with pytest.raises(ValueError, match=r"custom exists and is not overwritten: choose another out="):
        analyze(str(toy), **SIZES, out=str(out))
    assert (out / "lipschitz.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n": 5001}, "at most 5000 points, so use n=5000"),
        ({"n": 1}, "n = 1: must be >= 2"),
        ({"starts": 0}, "starts = 0: must be >= 1"),
        ({"ascent": 0}, "ascent = 0: must be >= 1"),
        ({"seed": -1}, "seed = -1: must be >= 0"),
        ({"data_root": "here"}, "data_root = here: the data of this run is drawn, not read from files"),
        ({"device": "toaster"}, "device=cpu"),
        ({"run": "nowhere"}, "nowhere is not a run folder"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_and_nothing_is_written(toy, monkeypatch, arguments, message):
    monkeypatch.chdir(toy)
    before = sorted(toy.rglob("*"))
    with pytest.raises(ValueError, match=message):
        analyze(**({"run": str(toy)} | SIZES | arguments))
    assert sorted(toy.rglob("*")) == before


def test_critic_with_batch_norm_has_a_gap_and_no_certificate(trained, small_mnist):
    folder = trained("experiment=mnist_clip", f"data.root={small_mnist}", *SMALL, "train.steps=1")
    report = read(analyze(str(folder), **IMAGE_SIZES))
    assert "mixes the samples" in report["lipschitz"]["not_certified"] and set(report["distances"]) == {"gap"}
    assert report["slopes"] == {} and "largest_quotient" not in report["lipschitz"] and "expected_slope" not in report
    with pytest.raises(ValueError, match=r"n: .*smaller"):
        analyze(str(folder), **IMAGE_SIZES | {"n": 101})
    state = next((folder / "checkpoints").glob("*1.pt"))
    without = {key: value for key, value in torch.load(state, weights_only=True).items() if key != "critic"}
    for path in (folder / "checkpoints").glob("*.pt"):
        path.unlink()
    checkpoint.save(folder / "checkpoints", 1, without)
    with pytest.raises(ValueError, match="has no 'critic'"):
        analyze(str(folder), **IMAGE_SIZES)


def test_analysis_of_images_has_a_certificate_and_the_corrected_gap(trained, small_mnist, tmp_path):
    overrides = ("experiment=mnist", f"data.root={small_mnist}", *SMALL, "train.steps=20", "optim.lr=1e-3")
    folder = trained(*overrides)
    report = read(analyze(str(folder), **IMAGE_SIZES, data_root=str(small_mnist)))
    assert report["expected_from"] == "corrected gap" and "exact_w1" not in report["distances"]
    assert report["distances"]["proved"]["bound"] < report["distances"]["corrected"] < report["distances"]["gap"]
    assert report["lipschitz"]["steepest"] < report["lipschitz"]["certified"]
    assert report["expected_slope"] == pytest.approx(1 + report["distances"]["corrected"] / 20)
    other = tmp_path / "other"
    write_idx(other / "MNIST" / "raw", pictures=660, side=28)
    with pytest.raises(ValueError, match=r"not the data that .* was trained on .*data_root="):
        analyze(str(folder), **IMAGE_SIZES, seed=3, data_root=str(other))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(f"root: {small_mnist}", f"root: {tmp_path / 'nowhere'}"))
    with pytest.raises(ValueError, match=r"data.*nowhere"):
        analyze(str(folder), **IMAGE_SIZES, seed=3)


def test_analysis_of_a_run_without_penalty_has_no_expected_slope(trained):
    folder = trained(*TINY, "train.steps=2", "penalty.weight=0", "clip.weights=0.01")
    report = read(analyze(str(folder), **SIZES))
    assert "expected_slope" not in report and "corrected" not in report["distances"]
    assert math.isfinite(report["lipschitz"]["certified"]) and "exact_w1" in report["distances"]


def test_critic_with_labels_whose_score_does_not_depend_on_them_is_analyzed(
    labeled_config, tmp_path, quick_pictures, monkeypatch
):
    monkeypatch.setattr(mlp.LabeledCritic, "score_takes_labels", False, raising=False)
    monkeypatch.setattr(mlp.LabeledCritic, "forward", lambda self, x, *y: self.features(x).sum(1))
    run = train_run(labeled_config, tmp_path / "run")
    report = read(analyze(str(tmp_path / "run"), **IMAGE_SIZES | {"n": 4}))
    real, _ = run.data.batch(0, 4, 0, "heldout", purpose="lipschitz")
    assert report["slopes"]["real"]["mean"] == pytest.approx(gradient_norm(run.critic, real).mean().item(), rel=1e-5)
    assert report["lipschitz"]["largest_quotient"] <= report["lipschitz"]["certified"]


def test_critic_with_labels_is_refused(labeled_config, tmp_path, quick_pictures):
    train_run(labeled_config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"depends on labels.*y=\(labels,\).*score_takes_labels = False"):
        analyze(str(tmp_path / "run"), **IMAGE_SIZES | {"n": 4})
    assert not (tmp_path / "run" / "made").exists()


def test_analysis_does_not_change_the_run(toy):
    before = [p.detach().clone() for p in load_run(toy).critic.parameters()]
    checkpoints = {p.name: p.read_bytes() for p in (toy / "checkpoints").iterdir()}
    analyze(str(toy), **SIZES)
    assert {p.name: p.read_bytes() for p in (toy / "checkpoints").iterdir()} == checkpoints
    assert all(torch.equal(p, q) for p, q in zip(load_run(toy).critic.parameters(), before, strict=True))


def test_promise_of_a_module_is_printed_beside_the_certificate(toy, monkeypatch, capsys):
    monkeypatch.setattr(torch.nn.Linear, "lipschitz", 100.0, raising=False)
    assumed = read(analyze(str(toy), **SIZES))["lipschitz"]["assumed"]
    assert assumed and set(assumed.values()) == {100.0}
    assert f"assumes, without a proof, {next(iter(assumed))}.lipschitz = 100" in capsys.readouterr().err
