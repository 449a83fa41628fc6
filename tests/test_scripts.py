"""The scripts as a user runs them: as commands, in another folder, with bad input too."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, write_idx
from PIL import Image

from wgangp import checkpoint

pytestmark = pytest.mark.slow  # every command imports torch anew

TINY = ["networks.generator.width=8", "networks.critic.width=8", "train.batch_size=16", "train.report_size=16"]
TINY += ["device=cpu"]


def command(script, *arguments):
    return [sys.executable, str(ROOT / "scripts" / script), *arguments]


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """user("train.py", "train.steps=2", ...) runs a command in the user's folder."""
    folder = tmp_path_factory.mktemp("user")

    def run(script, *arguments, fails=False):
        done = subprocess.run(command(script, *arguments), cwd=folder, capture_output=True, text=True, timeout=300)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.folder = folder
    return run


def test_a_run_is_made_found_again_and_goes_on(user):
    said = user("train.py", *TINY, "train.steps=2")
    (folder,) = (user.folder / "runs").iterdir()
    assert f"runs/{folder.name}" in said and "finished: 2 generator updates" in said
    assert "00000002.png" in said and (folder / "samples" / "00000002.png").exists()
    assert "%|" not in said  # quiet when the output is no terminal
    assert "finished: 2 generator updates" in user("train.py", *TINY, "train.steps=2")
    assert "finished: 3 generator updates" in user("train.py", *TINY[::-1], "train.steps=3", "train.log_every=1")
    assert len(list((user.folder / "runs").iterdir())) == 1
    provenance = [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]
    assert [record["command"].split()[-1] for record in provenance] == ["train.steps=2", "train.log_every=1"]
    user("train.py", *TINY, "train.steps=1", "seed=3")
    assert len(list((user.folder / "runs").iterdir())) == 2
    assert {p.name for p in user.folder.iterdir()} == {"runs"}  # no litter


def test_sampling_from_a_run(user):
    said = user("train.py", *TINY, "train.steps=3", "train.sample_every=1", "train.critic_steps=2", "seed=7")
    run = "run=" + said.splitlines()[0].removeprefix("run folder: ")  # a name that can be typed as it was said
    assert "+seed-7+" in run
    for what, n in (("grid", 16), ("interpolation", 16), ("npz", 300), ("animation", 1)):
        path = user.folder / user("sample.py", run, f"what={what}", f"n={n}").strip()
        assert path.exists()
        if what == "npz":
            with np.load(path) as made:
                assert made["x"].shape == (300, 2) and np.isfinite(made["x"]).all()
        elif what == "animation":
            with Image.open(path) as movie:
                assert movie.n_frames == 4
    before = path.stat().st_mtime_ns
    assert str(path.name) in user("sample.py", run, "what=animation", "n=1") and path.stat().st_mtime_ns == before
    grids = [user("sample.py", run, f"seed={seed}").strip() for seed in (1, 2)]
    assert (user.folder / grids[0]).read_bytes() != (user.folder / grids[1]).read_bytes()
    for bad, said in (
        ("what=film", "must be one of"),
        ("what=images", "no images"),
        ("n=0", "n must be >= 1"),
        (f"out={path}", "not overwritten"),
        ("out=mine", "grid makes .png"),
        ("+foo=1", "unknown key"),
        ("device=toaster", "device=cpu"),
        ("run=nowhere", "no run folder"),
        ("run=null", "run=FOLDER is needed"),
    ):
        message = user("sample.py", *([run] if not bad.startswith("run") else []), bad, fails=True)
        assert "error: " in message and said in message and "Traceback" not in message


def test_the_lipschitz_report_of_a_run(user):
    said = user("train.py", *TINY, "train.steps=2", "seed=8", "penalty.sides=one")
    run = "run=" + said.splitlines()[0].removeprefix("run folder: ")
    small = ["n=60", "starts=9", "ascent=3"]
    made = user.folder / user("lipschitz.py", run, *small).strip()
    found = json.loads((made / "lipschitz.json").read_text())
    assert set(found["slopes"]) == {"real", "fake", "interpolates", "perturbed", "coupled"}
    bounds, distances = found["lipschitz"], found["distances"]
    steepest = max(bounds["largest_quotient"], bounds["steepest"], *(s["max"] for s in found["slopes"].values()))
    assert steepest <= bounds["certified"]
    assert distances["proved"]["low"] <= distances["proved"]["bound"] <= distances["proved"]["high"]
    assert distances["sampling_floor"] < distances["exact_w1"]
    assert found["step"] == 2 and found["n"] == 60 and found["commit"] and "lipschitz.py" in found["command"]
    with Image.open(made / "lipschitz.png") as picture:
        assert picture.width > 1000
    before = (made / "lipschitz.json").stat().st_mtime_ns
    assert made.name in user("lipschitz.py", run, *small) and (made / "lipschitz.json").stat().st_mtime_ns == before
    assert (user.folder / user("lipschitz.py", run, *small, "seed=1", "out=mine_too").strip()).name == "mine_too"
    for bad, said in (
        ("n=5001", "at most 5000 points; take n=5000"),
        ("n=1", "n = 1: must be >= 2"),
        ("ascent=0", "ascent = 0"),
        ("out=mine_too", "not overwritten"),
        ("data_root=here", "is drawn, not read"),
        ("+foo=1", "unknown key"),
        ("run=nowhere", "no run folder"),
        ("run=null", "run=FOLDER is needed"),
    ):
        message = user("lipschitz.py", *([run] if not bad.startswith("run") else []), bad, fails=True)
        assert "error: " in message and said in message and "Traceback" not in message


def test_a_critic_with_batch_norm_is_looked_at_without_a_certificate(user, small_mnist):
    tiny = ["networks.generator.width=4", "networks.critic.width=4", "train.report_size=9", "device=cpu"]
    arguments = [f"data.root={small_mnist}", *tiny, "train.steps=1", "run_dir=clipped"]
    user("train.py", "experiment=mnist_clip", *arguments)
    made = user.folder / user("lipschitz.py", "run=clipped", "n=50", "starts=5", "ascent=2").strip()
    found = json.loads((made / "lipschitz.json").read_text())
    assert "mixes the samples" in found["lipschitz"]["not_certified"] and set(found["distances"]) == {"gap"}
    assert found["slopes"] == {} and "largest_quotient" not in found["lipschitz"] and "expected_slope" not in found
    message = user("lipschitz.py", "run=clipped", "n=101", fails=True)
    assert "error: n: " in message and "smaller" in message
    state = next((user.folder / "clipped" / "checkpoints").glob("*1.pt"))
    without = {key: value for key, value in torch.load(state, weights_only=True).items() if key != "critic"}
    checkpoint.save(user.folder / "clipped" / "checkpoints", 2, without)
    assert "holds no critic" in user("lipschitz.py", "run=clipped", "n=50", fails=True)


def test_the_lipschitz_report_of_images_has_a_certificate_and_the_corrected_gap(user, small_mnist):
    tiny = ["networks.generator.width=4", "networks.critic.width=4", "train.report_size=9", "device=cpu"]
    user(
        "train.py",
        "experiment=mnist",
        f"data.root={small_mnist}",
        *tiny,
        "train.steps=20",
        "optim.lr=1e-3",
        "run_dir=small",
    )
    small = ["n=50", "starts=5", "ascent=2"]
    made = user.folder / user("lipschitz.py", "run=small", *small, f"data_root={small_mnist}").strip()
    found = json.loads((made / "lipschitz.json").read_text())
    assert found["expected_from"] == "corrected gap" and "exact_w1" not in found["distances"]
    assert found["distances"]["proved"]["bound"] < found["distances"]["corrected"] < found["distances"]["gap"]
    assert found["lipschitz"]["steepest"] < found["lipschitz"]["certified"]
    other = user.folder / "other"
    write_idx(other / "MNIST" / "raw", pictures=660, side=28)
    message = user("lipschitz.py", "run=small", *small, f"data_root={other}", "seed=3", fails=True)
    assert "not what small was trained on" in message


def test_figures_are_reproduced_in_a_sweep(user):
    tiny = ["figure.width=4", "figure.steps=1", "figure.batch_size=8", "seeds=[0]", "device=cpu"]
    said = user("reproduce.py", "-m", "figure=gradient_norms", *tiny, "budget=cpu,paper")
    assert "results/gradient_norms\n" in said and "results/gradient_norms+paper" in said
    for name in ("gradient_norms", "gradient_norms+paper"):
        assert {p.name for p in (user.folder / "results" / name).iterdir()} >= {
            "records.jsonl",
            "README.md",
            "config.yaml",
            "gradient_norms.png",
        }
    for arguments, said in (
        (["figure=nothing"], "value_surfaces"),  # Hydra lists what there is
        ([], "figure"),
        (["figure=gradient_norms", "budget=huge"], "must be one of cpu, paper"),
        (["figure=gradient_norms", "figure.width=5"], "belongs to another config"),
        (
            ["figure=overfitting", "figure.data_root=nowhere", "seeds=[0]"],
            "figure.data_root=FOLDER, where FOLDER/MNIST/raw",
        ),
    ):
        message = user("reproduce.py", *arguments, fails=True)
        assert said in message and "Traceback" not in message, message


def test_a_sweep_makes_a_folder_for_each(user):
    user("train.py", "-m", *TINY, "train.steps=1", "seed=10,11", "penalty.sides=one")
    assert len([p for p in (user.folder / "runs").iterdir() if "one+seed-1" in p.name]) == 2


def test_cfg_job_shows_the_config_and_runs_nothing(user):
    before = sorted(user.folder.rglob("*"))
    assert "critic_steps: 5" in user("train.py", "experiment=mnist", "--cfg", "job")
    assert sorted(user.folder.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train.stps=3"], "stps"),
        (["penalty.wieght=3"], "wieght"),
        (["+train.foo=abc"], "unknown key"),
        (["+penalty.wieght=3"], "penalty.wieght is unknown; wgangp.penalty.GradientPenalty knows weight, target"),
        (["penalty.weight=-1"], "penalty: weight = -1: must be >= 0"),
        (["penalty.sides=three"], "must be one of two, one"),
        (["train.steps=abc"], "could not be converted to Integer"),
        (["penalty=nothing"], "two_sided"),  # Hydra lists what there is
        (["clip.weights=-0.01"], "clip.weights = -0.01: must be > 0"),
        (["optim.lr=-1"], "optim: Invalid learning rate"),
        (["experiment=mnist", "data.root=nowhere"], "data.root=FOLDER, where FOLDER/MNIST/raw holds"),
        (["networks=mnist"], "choose data= and networks= that belong together"),
        (["data._target_=os.system"], "only names under"),
        (["run_dir=kept"], "not empty and no run folder"),
        (["optim.lr=1e30", *TINY, "train.steps=50", "run_dir=diverged"], "is not finite"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_an_error_with_the_remedy_and_nothing_is_lost(user, arguments, said):
    kept = user.folder / "kept"
    kept.mkdir(exist_ok=True)
    (kept / "thesis.tex").write_text("years of work")
    runs = sorted(user.folder.glob("runs/*"))
    message = user("train.py", *arguments, fails=True)
    assert said in message
    assert "Traceback" not in message, message
    assert sorted(user.folder.glob("runs/*")) == runs
    assert (kept / "thesis.tex").read_text() == "years of work" and len(list(kept.iterdir())) == 1


def test_another_config_and_another_process_are_kept_out(user):
    user("train.py", *TINY, "train.steps=1", "run_dir=mine")
    message = user("train.py", *TINY, "train.steps=1", "run_dir=mine", "seed=5", fails=True)
    assert "belongs to another config" in message and "seed: 0 there, 5 now" in message
    long = command("train.py", *TINY, "train.steps=1000000", "run_dir=mine")
    with subprocess.Popen(long, cwd=user.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "run folder: mine\n"
        assert "in use by another process" in user("train.py", *TINY, "run_dir=mine", fails=True)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert "the same command goes on from there" in said and process.returncode == 130


def test_a_killed_run_goes_on_from_its_checkpoint(user):
    arguments = [*TINY, "train.checkpoint_every=5", "run_dir=killed"]
    process = subprocess.Popen(command("train.py", *arguments, "train.steps=1000000"), cwd=user.folder)
    checkpoints = user.folder / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step_*5.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    reached = int(max(checkpoints.glob("*.pt")).stem.split("_")[1])
    assert reached >= 5
    said = user("train.py", *arguments, f"train.steps={reached + 1}")
    assert f"finished: {reached + 1} generator updates" in said


@pytest.mark.data
def test_the_real_digits_train(user):
    small = ["networks.generator.width=8", "networks.critic.width=8", "device=cpu"]
    root = os.environ["WGANGP_DATA"]
    user("train.py", "experiment=mnist", f"data.root={root}", *small, "train.steps=30", "run_dir=digits")
    lines = [json.loads(line) for line in (user.folder / "digits" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and lines[-1]["step"] == 30
    assert lines[-1]["wasserstein"] > 1 > abs(lines[0]["wasserstein"])  # the critic tells them apart
    made = user.folder / user("sample.py", "run=digits", "what=images", "n=3").strip()
    with Image.open(made / "000002.png") as image:
        assert image.size == (28, 28)
    assert (user.folder / user("sample.py", "run=digits", "what=interpolation", "n=20").strip()).exists()
