import copy
import inspect
import json
import math
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from helpers import TINY
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from bench.contestants import Ours
from bench.measure import CASES
from wgangp import GradientPenalty, config
from wgangp.checkpoint import save
from wgangp.compiled import build_computation
from wgangp.data.toy import gaussians8
from wgangp.logs import read_lines
from wgangp.losses import Wasserstein
from wgangp.match import _match_strides
from wgangp.metrics.scores import Score
from wgangp.report import draw_curves, lipschitz_report, picture, report
from wgangp.results import render_origins
from wgangp.runs import Run
from wgangp.seeds import draw_latent, rng_for
from wgangp.signals import STOP_SIGNALS
from wgangp.step import critic_step, generator_step
from wgangp.train import Clip, train, update

pytestmark = pytest.mark.usefixtures("quick_pictures")
without_analysis = pytest.mark.usefixtures("quick_reports", "no_trial")

EVERY = ("train.log_every=2", "train.sample_every=4", "train.checkpoint_every=2")
LOGGED = {"wasserstein", "penalty", "critic_loss", "generator_loss", "heldout_critic_loss", "modes", "high_quality"}
LOGGED |= {"critic_param_grad_norm", "generator_param_grad_norm", "heldout_wasserstein", "heldout_penalty"}
LOGGED |= {
    f"slope_{kind}_{name}" for kind in ("real", "fake", "interpolates") for name in ("mean", "std", "q95", "max")
}


@pytest.fixture
def train_tiny(configure):
    """train_tiny(folder, "train.steps=4", ...) trains tiny networks in a folder; returns the run and the last step."""

    def call(folder, *overrides, **objects):
        cfg = configure(*TINY, *EVERY, *overrides)
        run = replace(config.build_run(cfg), **objects)
        return run, train(folder, run, **config.train_options(cfg))

    return call


@pytest.fixture
def real_pictures(quick_pictures, monkeypatch):
    """The pictures of wgangp.report, which the other tests of this file replace by small ones."""
    monkeypatch.setattr("wgangp.train.picture", picture)
    monkeypatch.setattr("wgangp.train.draw_curves", draw_curves)


def contents(folder):
    """All bytes of a run folder that are a function of its config: without timing, the newest checkpoint as tensors."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith(("timing", "provenance", "tensorboard", "checkpoints")):
            continue
        files[name] = path.read_bytes()
    newest = max((folder / "checkpoints").glob("*.pt"))
    files[newest.name] = flat(torch.load(newest, weights_only=True))
    return files


def flat(node):
    if isinstance(node, torch.Tensor):
        return node.dtype, node.shape, node.numpy().tobytes()
    if isinstance(node, dict):
        return {key: flat(value) for key, value in node.items()}
    return [flat(value) for value in node] if isinstance(node, list | tuple) else node


@pytest.mark.usefixtures("real_pictures")
def test_run_folder_is_the_whole_record(train_tiny, tmp_path):
    assert train_tiny(tmp_path, "train.steps=5")[1] == 5
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [0, 2, 4, 5]  # the first, the intervals, and the last
    for record in records:
        assert record.keys() >= LOGGED and all(math.isfinite(v) for v in record.values())
        assert record["critic_loss"] == pytest.approx(record["penalty"] - record["wasserstein"], abs=1e-5)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"{s:08d}.png" for s in (0, 4, 5)]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert [r["step"] for r in read_lines(tmp_path / "timing.jsonl")] == [0, 2, 4, 5]
    assert len(read_lines(tmp_path / "provenance.jsonl")) == 1


@pytest.mark.usefixtures("real_pictures")
def test_resume_is_bit_identical_including_pictures(train_tiny, tmp_path):
    train_tiny(tmp_path / "whole", "train.steps=4", "train.sample_every=2")
    for steps in (2, 4):
        train_tiny(tmp_path / "parts", f"train.steps={steps}", "train.sample_every=2")
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@without_analysis
@pytest.mark.parametrize(
    "setting",
    [
        ("optim=rmsprop", "penalty.weight=0", "clip.weights=0.01"),
        ("optim=normalized", "penalty.points=perturbed"),
        ("data=swiss_roll", "clip.gradient_norm=0.1"),
        ("ema.decay=0.7", "train.decay_steps=8"),
    ],
    ids=" ".join,
)
def test_resume_is_bit_identical_with_other_settings(train_tiny, tmp_path, setting):
    train_tiny(tmp_path / "whole", "train.steps=8", *setting)
    for steps in (4, 8):
        train_tiny(tmp_path / "parts", f"train.steps={steps}", *setting)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_resume_after_an_interrupt_is_bit_identical(train_tiny, tmp_path):
    train_tiny(tmp_path / "whole", "train.steps=8")
    train_tiny(tmp_path / "parts", "train.steps=8", data=Interrupting(at=2 * 5))
    lines = read_lines(tmp_path / "parts" / "metrics.jsonl")
    assert [r["step"] for r in lines] == [0, 2]
    assert max((tmp_path / "parts" / "checkpoints").glob("*.pt")).name == "step_00000003.pt"
    train_tiny(tmp_path / "parts", "train.steps=8")
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


class Interrupting:
    """8 Gaussians; a signal arrives while batch number `at` is drawn."""

    def __init__(self, at, number=signal.SIGINT):
        self.data, self.at, self.number = gaussians8(), at, number
        self.shape, self.span, self.centers, self.sd = self.data.shape, self.data.span, self.data.centers, self.data.sd

    def batch(self, k, size, seed, split="train", purpose="data"):
        if k == self.at and purpose == "data":
            os.kill(os.getpid(), self.number)
        return self.data.batch(k, size, seed, split, purpose)


@without_analysis
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_finishes_the_update_saves_and_stops(train_tiny, tmp_path, number, heard):
    before = signal.getsignal(number)
    data = Interrupting(at=2 * 5 + 1, number=number)
    _, step = train_tiny(tmp_path, "train.steps=8", "train.checkpoint_every=100", data=data)
    assert step == 3  # the update during which the signal came is finished
    assert signal.getsignal(number) is before
    assert train_tiny(tmp_path, "train.steps=8")[1] == 8


@without_analysis
def test_stop_during_an_evaluation_does_not_wait_for_it_and_the_scores_come_later(configure, tmp_path, heard):
    cfg = configure(*TINY, "train.steps=4", "train.evaluate_every=2", "train.log_every=1")
    calls = []

    def interrupt(run, step):
        calls.append(step)
        if step == 2 and calls.count(2) == 1:
            signal.raise_signal(signal.SIGTERM)
            calls.append("went on")
        return {"points_w1": float(step)}

    scores = [Score("points", interrupt, {})]
    for folder in (tmp_path / "stopped", tmp_path / "whole"):
        stop_signals = []
        step = train(
            folder, config.build_run(cfg), **config.train_options(cfg), scores=scores, stop_signals=stop_signals
        )
        if folder.name == "stopped":
            assert (step, stop_signals, calls) == (2, [signal.SIGTERM], [0, 2])
            assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [0, 1]
            assert train(folder, config.build_run(cfg), **config.train_options(cfg), scores=scores) == 4
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("stopped", "whole")]
    assert lines[0] == lines[1]


@without_analysis
def test_finished_run_is_not_changed(train_tiny, tmp_path):
    train_tiny(tmp_path, "train.steps=4")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert train_tiny(tmp_path, "train.steps=4")[1] == 4
    assert train_tiny(tmp_path, "train.steps=2")[1] == 4
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


@without_analysis
def test_damaged_checkpoint_loses_only_its_steps(train_tiny, tmp_path, capsys):
    train_tiny(tmp_path / "whole", "train.steps=8")
    train_tiny(tmp_path / "parts", "train.steps=6")
    newest = max((tmp_path / "parts" / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1])
    train_tiny(tmp_path / "parts", "train.steps=8")
    assert "is damaged" in capsys.readouterr().err
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert parts.pop("samples/00000006.png")  # the last picture of the shorter run stays
    assert whole == parts


@without_analysis
def test_log_without_a_checkpoint_is_not_overwritten(train_tiny, tmp_path):
    train_tiny(tmp_path, "train.steps=4")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint to continue from"):
        train_tiny(tmp_path, "train.steps=4")
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@without_analysis
@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock"])
@pytest.mark.parametrize("replaced", [False, True])
def test_file_that_is_removed_from_a_running_run_is_noticed_at_the_next_report(train_tiny, tmp_path, name, replaced):
    path = tmp_path / name

    class Removing(Interrupting):
        def batch(self, k, size, seed, split="train", purpose="data"):
            if k == 3 * 5 and purpose == "data":  # in the update after step 3
                path.rename(tmp_path / "moved")
                if replaced:
                    path.touch()
            return super().batch(k, size, seed, split, purpose)

    (tmp_path / ".lock").touch()
    with pytest.raises(ValueError, match=rf"{path} was removed or replaced .* A checkpoint of step 4 is saved: put"):
        train_tiny(tmp_path, "train.steps=8", "train.checkpoint_every=100", data=Removing(at=-1))
    (tmp_path / "moved").rename(path)
    assert train_tiny(tmp_path, "train.steps=8")[1] == 8
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [0, 2, 4, 6, 8]


@without_analysis
@pytest.mark.parametrize("left", [0, 1, 2, None])
def test_lines_of_the_log_that_are_lost_are_counted(train_tiny, tmp_path, capsys, left):
    train_tiny(tmp_path, "train.steps=4")
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:left]))
    if left == 0:
        path.unlink()
    train_tiny(tmp_path, "train.steps=6")
    warning = f"warning: {path} has {left} lines up to step 4, and at least 3 were written. The others are lost"
    assert capsys.readouterr().err.count(warning) == (left is not None)
    assert [r["step"] for r in read_lines(path)] == [*[0, 2][:left], 4, 6]
    capsys.readouterr()
    train_tiny(tmp_path, "train.steps=8")
    assert "lost" not in capsys.readouterr().err  # it is said once


@without_analysis
def test_last_report_that_was_not_written_is_written_by_the_same_command(train_tiny, tmp_path):
    class Removing(Interrupting):
        def batch(self, k, size, seed, split="train", purpose="data"):
            if k == 3 * 5 and purpose == "data":  # in the update before the last step
                (tmp_path / ".lock").rename(tmp_path / "moved")
            return super().batch(k, size, seed, split, purpose)

    (tmp_path / ".lock").touch()
    with pytest.raises(ValueError, match=r"A checkpoint of step 4 is saved"):
        train_tiny(tmp_path, "train.steps=4", data=Removing(at=-1))
    assert train_tiny(tmp_path, "train.steps=4")[1] == 4
    train_tiny(tmp_path.with_name("whole"), "train.steps=4")
    mine, whole = contents(tmp_path), contents(tmp_path.with_name("whole"))
    del mine["moved"]
    assert mine == whole


@without_analysis
def test_run_that_was_stopped_where_it_now_ends_gets_its_last_report_and_picture(train_tiny, tmp_path):
    assert train_tiny(tmp_path / "stopped", "train.steps=8", data=Interrupting(at=2 * 5 + 1))[1] == 3
    for name in ("stopped", "whole"):
        assert train_tiny(tmp_path / name, "train.steps=3")[1] == 3
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@without_analysis
@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "provenance.jsonl"])
def test_damaged_log_stops_a_resume_with_file_and_line_and_changes_nothing(train_tiny, tmp_path, name):
    train_tiny(tmp_path, "train.steps=2")
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1))
    before = contents(tmp_path), path.read_bytes()
    with pytest.raises(ValueError, match=rf"{name}, line 2 is damaged"):
        train_tiny(tmp_path, "train.steps=4")
    assert (contents(tmp_path), path.read_bytes()) == before


@without_analysis
def test_config_file_stays_if_no_config_is_given(train_tiny, tmp_path):
    run, _ = train_tiny(tmp_path, "train.steps=2")
    before = (tmp_path / "config.yaml").read_text()
    options = {"steps": 3, "critic_steps": 5, "batch_size": 16, "report_size": 16}
    options |= {"log_every": 2, "sample_every": 4, "checkpoint_every": 2, "lipschitz_every": 2}
    assert train(tmp_path, run, **options) == 3
    assert before and (tmp_path / "config.yaml").read_text() == before


@without_analysis
def test_other_data_with_the_same_config_is_refused(train_tiny, tmp_path):
    data = gaussians8()
    data.fingerprint = "a"
    train_tiny(tmp_path, "train.steps=2", data=data)
    data.fingerprint = "b"
    with pytest.raises(ValueError, match=r"not the data that .* was trained on"):
        train_tiny(tmp_path, "train.steps=4", data=data)


def test_report_reads_no_batch_of_the_training(train_tiny, tmp_path):
    seen = {"data": [], "report": [], "lipschitz": [], "picture": []}

    class Watching(Interrupting):
        def batch(self, k, size, seed, split="train", purpose="data"):
            (x,) = super().batch(k, size, seed, split, purpose)
            seen[purpose].append(x)
            return (x,)

    train_tiny(tmp_path, "train.steps=3", "train.log_every=1", "train.lipschitz_every=1", data=Watching(at=-1))
    trained, reported = torch.cat(seen["data"]), torch.cat(seen["report"] + seen["lipschitz"])
    assert len(trained) == 3 * 5 * 16 and len(reported) == 4 * (2 + 1) * 16
    assert torch.cdist(trained, reported).min() > 0


@pytest.mark.usefixtures("real_pictures")
def test_log_and_pictures_are_a_function_of_seed_and_config(train_tiny, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)  # the global generators do not matter
        train_tiny(tmp_path / name, "train.steps=3", "train.checkpoint_every=9", f"seed={seed}")
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and a["metrics.jsonl"] != c["metrics.jsonl"]


def test_intervals_and_number_of_steps_change_no_number(train_tiny, tmp_path):
    lipschitz = "train.lipschitz_every=2"  # the last update of the first run, 4, has a Lipschitz report in both
    train_tiny(tmp_path / "a", "train.steps=4", lipschitz)
    often = ("train.log_every=1", "train.sample_every=3", "train.checkpoint_every=3")
    train_tiny(tmp_path / "b", "train.steps=6", lipschitz, *often)
    lines = {r["step"]: r for r in read_lines(tmp_path / "b" / "metrics.jsonl")}
    assert all(lines[r["step"]] == r for r in read_lines(tmp_path / "a" / "metrics.jsonl"))


@without_analysis
def test_order_of_updates_is_algorithm_1(train_tiny, tmp_path):
    """Before every generator update there are n_critic critic updates, each with a new batch."""
    order = []

    class Watching(Interrupting):
        def batch(self, k, size, seed, split="train", purpose="data"):
            order.append(k) if purpose == "data" else None
            return super().batch(k, size, seed, split, purpose)

    def watch(step):
        return lambda optimizer, *args: order.append(step)

    cfg_steps = ("train.steps=2", "train.critic_steps=3", "train.report_size=4")
    handle = register_optimizer_step_post_hook(watch("step"))
    try:
        train_tiny(tmp_path, *cfg_steps, data=Watching(at=-1))
    finally:
        handle.remove()
    assert order == [0, "step", 1, "step", 2, "step", "step", 3, "step", 4, "step", 5, "step", "step"]


@without_analysis
@pytest.mark.parametrize(
    "override, critic_options, generator_options",
    [
        ("seed=0", {}, {}),
        ("clip.weights=0.05", {"clip_weights": 0.05}, {}),
        ("clip.gradient_norm=0.1", {"clip_gradient_norm": 0.1}, {"clip_gradient_norm": 0.1}),
        ("regularize.gradient_norm=0.1", {"regularize_gradient_norm": 0.1}, {"regularize_gradient_norm": 0.1}),
    ],
)
def test_every_setting_reaches_the_steps(train_tiny, configure, tmp_path, override, critic_options, generator_options):
    """The loop and a loop of critic_step and generator_step with the setting end with the same weights, bit for bit."""
    run, _ = train_tiny(tmp_path, "train.steps=2", "train.critic_steps=2", override)
    cfg = configure(*TINY, *EVERY, override)
    other = config.build_run(cfg)
    generator, critic, data, penalty = other.generator, other.critic, other.data, other.penalty
    for step in range(2):
        for k in (2 * step, 2 * step + 1):
            (real,) = data.batch(k, 16, 0)
            with torch.no_grad():
                fake = generator(*draw_latent(generator, 16, 0, k, "critic"))
            eps = penalty.draw(real, rng_for(0, k, "eps"))
            critic_step(critic, other.optim_critic, real, fake, eps, penalty=penalty, **critic_options)
        (z,) = draw_latent(generator, 16, 0, step, "generator")
        generator_step(generator, critic, other.optim_generator, z, **generator_options)
    for name in ("generator", "critic"):
        assert flat(getattr(run, name).state_dict()) == flat(getattr(other, name).state_dict())
    plain, _ = train_tiny(tmp_path / "plain", "train.steps=2", "train.critic_steps=2")
    changed = flat(run.critic.state_dict()) != flat(plain.critic.state_dict())
    assert changed == (override != "seed=0")


@without_analysis
def test_learning_rates_decay_linearly_to_zero_and_generator_batch_size_is_used(train_tiny, tmp_path):
    rates, sizes = [], []

    def record(optimizer, *_):
        if any(p.grad.any() for p in optimizer.param_groups[0]["params"]):  # not the step on a copy at a resume
            rates.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_post_hook(record)
    options = ("train.critic_steps=1", "train.generator_batch_size=5", "optim.lr=0.4")
    try:
        run, _ = train_tiny(tmp_path / "start", "train.steps=0", *options)
        generator = run.generator
        handle = generator.register_forward_hook(lambda m, args, out: sizes.append((len(out), torch.is_grad_enabled())))
        steps = ("train.steps=4", "train.decay_steps=4", "train.log_every=9")
        network = {"generator": generator, "optim_generator": run.optim_generator}
        train_tiny(tmp_path / "a", *steps, *options, **network)
        handle.remove()
        assert rates == pytest.approx([0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1])
        assert [s for s in sizes if s == (5, True)] == [(5, True)] * 4 and (16, False) in sizes
        for steps in (2, 4):  # the rate is a function of the step, so that a resumed run has the same rates
            train_tiny(tmp_path / "b", f"train.steps={steps}", "train.decay_steps=4", *options)
        assert rates[8:] == rates[:8]
    finally:
        hook.remove()


@without_analysis
def test_default_run_decays_until_its_last_update(configure, tmp_path):
    cfg = configure(*TINY, "train.decay_steps=${train.steps}", "train.steps=4", "optim.lr=0.4")
    train(tmp_path, run := config.build_run(cfg), **config.train_options(cfg))
    rates = [group["lr"] for optimizer in (run.optim_generator, run.optim_critic) for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1, 0.1])


FORMS = [(), ("train.compile=true",), ("train.precision=bf16",), ("train.accumulate=2",), ("clip.gradient_norm=0.1",)]


@without_analysis
@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_average_is_that_of_the_generator_after_every_generator_update(
    train_tiny, tmp_path, monkeypatch, quick_compile, form
):
    weights, built = [], {}

    def record(optimizer, *_):
        if optimizer is built["run"].optim_generator:
            weights.append([p.detach().double() for p in built["run"].generator.parameters()])

    build = config.build_run
    monkeypatch.setattr(config, "build_run", lambda cfg: built.setdefault("run", build(cfg)))
    hook = register_optimizer_step_post_hook(record)
    try:
        run, _ = train_tiny(tmp_path, "train.steps=5", "train.critic_steps=2", "ema.decay=0.7", *form)
    finally:
        hook.remove()
    expected = weights[0]
    for values in weights[1:]:
        expected = [0.7 * e + 0.3 * w for e, w in zip(expected, values, strict=True)]
    assert len(weights) == run.average.n_averaged == 5
    average = list(run.average.module.parameters())
    assert {p.dtype for p in average} == {torch.float32}
    torch.testing.assert_close([p.double() for p in average], expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(average[0], next(run.generator.parameters()))


@without_analysis
def test_average_changes_no_trained_number(train_tiny, tmp_path):
    (run, _), (other, _) = (
        train_tiny(tmp_path / name, "train.steps=4", f"ema.decay={decay}")
        for name, decay in (("a", 0.7), ("b", "null"))
    )
    for name in ("generator", "critic", "optim_generator", "optim_critic"):
        assert flat(getattr(run, name).state_dict()) == flat(getattr(other, name).state_dict())
    of_samples = {"modes", "high_quality"}
    with_average, without = (read_lines(tmp_path / name / "metrics.jsonl") for name in "ab")
    for a, b in zip(with_average, without, strict=True):
        assert {k: v for k, v in a.items() if k not in of_samples} == {
            k: v for k, v in b.items() if k not in of_samples
        }
    saved = [torch.load(max((tmp_path / name / "checkpoints").glob("*.pt")), weights_only=True) for name in "ab"]
    assert saved[0].keys() - saved[1].keys() == {"average"}


@without_analysis
@pytest.mark.parametrize("first, then", [("0.7", "null"), ("null", "0.7")])
def test_average_of_a_checkpoint_is_not_lost_and_not_made_up(train_tiny, tmp_path, first, then):
    train_tiny(tmp_path, "train.steps=2", f"ema.decay={first}")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit this run \(ema\.decay: (None|0\.7) there, "):
        train_tiny(tmp_path, "train.steps=4", f"ema.decay={then}")
    assert contents(tmp_path) == before


@without_analysis
def test_average_has_the_memory_layout_of_the_generator(configure, small_mnist):
    small = ("networks.generator.width=2", "networks.critic.width=2", "train.report_size=9", "train.batch_size=9")
    cfg = configure("experiment=mnist", f"data.root={small_mnist}", *small, "device=cpu", "ema.decay=0.7")
    run = config.build_run(cfg, channels_last=True)
    pairs = list(zip(run.average.module.parameters(), run.generator.parameters(), strict=True))
    assert all(a.stride() == p.stride() and torch.equal(a, p) for a, p in pairs)
    assert any(p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) for _, p in pairs)
    run.average.update_parameters(run.generator)
    assert all(a.stride() == p.stride() for a, p in pairs)


def test_noise_differs_between_steps_and_purposes():
    generator = nn.Linear(3, 2)
    generator.latent_dim = 3
    draws = [draw_latent(generator, 4, 0, k, p)[0] for k, p in ((0, "critic"), (1, "critic"), (0, "generator"))]
    assert draws[0].shape == (4, 3) and len({tuple(d.flatten().tolist()) for d in draws}) == 3
    assert torch.equal(draws[0], draw_latent(generator, 4, 0, 0, "critic")[0])


class Exploding(nn.Module):
    """A critic whose score becomes NaN after this number of forward passes with a batch of 16."""

    def __init__(self, after):
        super().__init__()
        self.w, self.after, self.calls = nn.Parameter(torch.randn(2)), after, 0

    def forward(self, x):
        if torch.is_grad_enabled() and len(x) == 16:
            self.calls += 1
        return x @ self.w * (math.nan if self.calls > self.after else 1.0)


@without_analysis
def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(train_tiny, tmp_path):
    critic = Exploding(after=72)  # 12 updates of 6 such passes. The passes of reports do not count
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
    with pytest.raises(
        ValueError, match=r"step \d+: wasserstein is not finite .*checkpoint is kept.*optim\.lr"
    ) as error:
        train_tiny(tmp_path, "train.steps=50", "train.log_every=100", critic=critic, optim_critic=optimizer)
    failed = int(str(error.value).split("step ")[1].split(":")[0])
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    state = torch.load(newest, weights_only=True)
    assert 0 < state["step"] < failed and state["critic"]["w"].isfinite().all()


@without_analysis
def test_first_term_that_is_not_finite_is_named(train_tiny, tmp_path):
    class Infinite(GradientPenalty):
        def __call__(self, critic, real, fake, eps=None):
            return super().__call__(critic, real, fake, eps) * math.inf

    with pytest.raises(ValueError, match="penalty is not finite"):
        train_tiny(tmp_path, "train.steps=2", penalty=Infinite())


@pytest.mark.usefixtures("real_pictures")
def test_images_are_reported_and_drawn(configure, tmp_path, small_mnist):
    cfg = configure(
        "experiment=mnist",
        f"data.root={small_mnist}",
        "networks.generator.width=2",
        "networks.critic.width=2",
        "train.steps=1",
        "train.batch_size=4",
        "train.report_size=4",
        "device=cpu",
    )
    train(tmp_path, config.build_run(cfg), **config.train_options(cfg))
    records = read_lines(tmp_path / "metrics.jsonl")
    assert "modes" not in records[0] and records[0].keys() >= LOGGED - {"modes", "high_quality"}
    assert (tmp_path / "samples" / "00000001.png").exists()


@without_analysis
@pytest.mark.usefixtures("real_pictures")
def test_pictures_use_the_same_noise_at_every_step(train_tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("wgangp.plots.save_curves", lambda *_: None)
    monkeypatch.setattr(
        "wgangp.plots.save_value_surface", lambda path, critic, real, fake, *a, **k: seen.append((real, fake))
    )
    train_tiny(tmp_path, "train.steps=8", "optim=normalized", "optim.lr=1e-30")  # the networks do not change
    assert len(seen) == 3
    for points in seen[1:]:
        torch.testing.assert_close(points, seen[0], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("real_pictures")
def test_points_in_three_dimensions_have_no_picture(tmp_path):
    class Line:
        shape, span = (3,), (-1.0, 1.0)

        def batch(self, k, size, seed, split="train", purpose="data"):
            return (torch.randn(size, 3),)

    generator, critic = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    generator.latent_dim = 2
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (generator, critic)]
    options = {"steps": 1, "critic_steps": 1, "batch_size": 4, "report_size": 4}
    options |= {"log_every": 1, "sample_every": 1, "checkpoint_every": 1, "lipschitz_every": 1}
    run = Run(generator, critic, *optimizers, Line(), Wasserstein(), GradientPenalty(), seed=0)
    train(tmp_path, run, **options)
    assert not list((tmp_path / "samples").iterdir()) and (tmp_path / "curves.png").exists()
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


@pytest.fixture
def checkpoint_events(monkeypatch):
    """One entry per saved checkpoint: its step, and what the run folder holds when it is saved.

    These are the steps of the log lines, and the steps at which samples/STEP.png and curves.png were drawn.
    """

    def spy(checkpoints, step, state, buffers, best):
        folder = checkpoints.parent
        drawn = [read_step(folder / name) for name in (f"samples/{step:08d}.png", "curves.png")]
        events.append((step, [r["step"] for r in read_lines(folder / "metrics.jsonl")], *drawn))
        return save(checkpoints, step, state, buffers, best)

    def read_step(path):
        """The step at which tests/helpers.py drew a picture, from its color; None if there is no picture."""
        if not path.exists():
            return None
        with Image.open(path) as image:
            return image.getpixel((0, 0))[0]

    events = []
    monkeypatch.setattr("wgangp.train.save", spy)
    return events


def test_checkpoint_is_saved_after_every_log_line_and_the_picture_of_its_step(
    train_tiny, tmp_path, monkeypatch, checkpoint_events
):
    monkeypatch.setattr("wgangp.report.certified_lipschitz", lambda *_: 1.0)
    every = ("train.log_every=1", "train.checkpoint_every=1", "train.lipschitz_every=1", "train.sample_every=1")
    train_tiny(tmp_path, "train.steps=3", *every)
    assert checkpoint_events == [(step, list(range(step + 1)), step, step) for step in range(4)]
    assert [r["certified_lipschitz"] for r in read_lines(tmp_path / "metrics.jsonl")] == [1.0] * 4


@without_analysis
def test_last_log_line_picture_and_curves_exist_when_the_last_checkpoint_is_saved(
    train_tiny, tmp_path, checkpoint_events
):
    """Also if the last step is a multiple of no interval."""
    every = ("train.log_every=2", "train.checkpoint_every=2", "train.lipschitz_every=2", "train.sample_every=2")
    train_tiny(tmp_path, "train.steps=3", *every)
    assert checkpoint_events == [(0, [0], 0, 0), (2, [0, 2], 2, 2), (3, [0, 2, 3], 3, 3)]


@without_analysis
def test_curves_are_drawn_with_checkpoints_and_not_with_pictures(train_tiny, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        "wgangp.train.draw_curves", lambda folder, run: steps.append(read_lines(folder / "metrics.jsonl")[-1]["step"])
    )
    every = ("train.log_every=1", "train.sample_every=1", "train.checkpoint_every=3")
    train_tiny(tmp_path, "train.steps=5", *every)
    assert steps == [0, 3, 5] and len(list((tmp_path / "samples").iterdir())) == 6


@pytest.mark.usefixtures("real_pictures")
def test_error_while_drawing_ends_the_run_before_its_checkpoint(train_tiny, tmp_path, monkeypatch, checkpoint_events):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("wgangp.plots.save_value_surface", full)
    with pytest.raises(OSError, match="No space left"):
        train_tiny(tmp_path, "train.steps=100", "train.checkpoint_every=1000")
    assert checkpoint_events == [] and [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [0]


class NoReads(TorchDispatchMode):
    """An AssertionError at every operation that reads a number from a tensor: on CUDA it waits for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique"), name
        return function(*args, **(kwargs or {}))


@without_analysis
@pytest.mark.parametrize("points", ["interpolates", "perturbed"])
def test_update_reads_no_number_from_the_device(train_tiny, tmp_path, points):
    run, _ = train_tiny(tmp_path, "train.steps=0", f"penalty.points={points}")
    computation = build_computation(run.generator, run.critic, run.loss, run.penalty, 0.01)
    with NoReads():
        update(0, run, computation, critic_steps=5, batch_size=16, clip=Clip(weights=0.01, gradient_norm=1.0))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReads():
        torch.ones(1).item()


def test_loaded_state_of_a_fused_optimizer_gets_the_strides_of_its_parameter():
    p = nn.Parameter(torch.randn(4, 3, 5, 5))
    original = torch.optim.Adam([p], fused=True)
    p.grad = torch.randn_like(p)
    original.step()
    q = nn.Parameter(p.detach().clone(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam([q], fused=True)
    optimizer.load_state_dict(copy.deepcopy(original.state_dict()))
    assert optimizer.state[q]["exp_avg"].stride() != q.stride(), "torch keeps the strides now"
    _match_strides(optimizer)
    assert optimizer.state[q]["exp_avg"].stride() == q.stride()
    q.grad = p.grad.clone(memory_format=torch.channels_last)
    for each in (original, optimizer):
        each.step()
    torch.testing.assert_close(q, p)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which says that the mode is new
@pytest.mark.parametrize("options", [{}, {"compile": True}, {"compile": True, "precision": "bf16", "autocast": True}])
@pytest.mark.parametrize("case", ["toy MLP", "CIFAR DCGAN", "CIFAR ResNet"])
def test_iteration_does_not_wait_for_a_gpu(case, options):
    ours = Ours(CASES[case], torch.device("cuda"), **options)
    for _ in range(3):  # compiles, verifies, records
        ours.iteration()
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        ours.iteration()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of pot on Python 3.12
def test_run_on_a_gpu_trains_and_resumes(train_tiny, tmp_path):
    cuda = ("device=cuda", "train.log_every=2")
    run, _ = train_tiny(tmp_path, "train.steps=4", *cuda)
    assert next(run.critic.parameters()).is_cuda
    assert train_tiny(tmp_path, "train.steps=8", *cuda)[1] == 8
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [0, 2, 4, 6, 8]


def test_lipschitz_report_comes_at_its_interval_and_at_the_end(train_tiny, tmp_path):
    train_tiny(tmp_path, "train.steps=7", "train.log_every=2", "train.lipschitz_every=3")
    names = {"largest_quotient", "certified_lipschitz", "slope_coupled_mean", "slope_coupled_cosine"}
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [0, 2, 3, 4, 6, 7]
    assert [r["step"] for r in records if r.keys() >= names] == [0, 3, 6, 7]
    assert not any(r.keys() & names for r in records if r["step"] in (2, 4))
    for r in (r for r in records if "largest_quotient" in r):
        assert 0 < r["largest_quotient"] <= r["certified_lipschitz"] and -1 <= r["slope_coupled_cosine"] <= 1
        assert ("lipschitz_low" in r) == ("lipschitz_high" in r) == (r["step"] > 0)
        if r["step"] > 0:
            assert r["largest_quotient"] <= r["lipschitz_high"] <= r["certified_lipschitz"]
            assert 0 < r["lipschitz_low"] <= r["lipschitz_high"]
        if "expected_slope" in r:
            assert r["expected_slope"] == pytest.approx(1 + r["corrected_wasserstein"] / 20)
    assert any("expected_slope" in r for r in records)


def test_lipschitz_report_changes_no_weight(train_tiny, tmp_path):
    often, _ = train_tiny(tmp_path / "a", "train.steps=4", "train.lipschitz_every=1")
    rarely, _ = train_tiny(tmp_path / "b", "train.steps=4", "train.lipschitz_every=100")
    assert flat(often.critic.state_dict()) == flat(rarely.critic.state_dict())
    assert flat(often.generator.state_dict()) == flat(rarely.generator.state_dict())


def test_report_that_is_not_finite_stops_the_run(train_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("wgangp.train.report", lambda *_: {"wasserstein": math.nan, "penalty": 0.0})
    with pytest.raises(ValueError, match=r"step 0: wasserstein is not finite.*optim\.lr"):
        train_tiny(tmp_path, "train.steps=1")


def test_report_that_is_not_finite_stops_the_run_before_the_lipschitz_report(train_tiny, tmp_path):
    """Otherwise the Lipschitz report raises an error about points, which names no setting to change."""
    run, _ = train_tiny(tmp_path / "a", "train.steps=0")
    run.generator.register_forward_hook(lambda module, arguments, samples: samples * math.nan)
    with pytest.raises(ValueError, match=r"step 0: wasserstein is not finite.*optim\.lr"):
        train_tiny(tmp_path / "b", "train.steps=0", generator=run.generator)


@without_analysis
def test_weights_that_are_not_finite_are_named_before_the_report(train_tiny, tmp_path):
    run, _ = train_tiny(tmp_path / "a", "train.steps=0")
    nn.init.constant_(next(run.generator.parameters()), math.nan)
    with pytest.raises(ValueError, match=r"step 0: generator\.layers\.0\.weight is not finite.*optim\.lr"):
        train_tiny(tmp_path / "b", "train.steps=0", generator=run.generator)


def test_lipschitz_report_uses_a_limited_number_of_points(train_tiny, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr("wgangp.report.QUOTIENT_POINTS", 4)
    monkeypatch.setattr("wgangp.report.largest_quotient", lambda _, x: sizes.append(len(x)) or 0.0)
    train_tiny(tmp_path, "train.steps=0")
    assert sizes == [2 * 4]  # of the 16 real and 16 generated points of a report


@pytest.mark.slow
def test_compiled_run_equals_the_eager_one_to_rounding_and_resume_is_bit_identical(
    train_tiny, tmp_path, quick_compile, capsys
):
    torch._dynamo.reset()
    options = ("train.steps=2", "train.critic_steps=1")
    (eager, _), (compiled, _) = (
        train_tiny(tmp_path / "a", *options),
        train_tiny(tmp_path / "b", "train.compile=true", *options),
    )
    output = capsys.readouterr().out
    assert "compiled the critic step" in output and "compiled the generator step" in output
    for name in ("critic", "generator"):
        for a, b in zip(getattr(compiled, name).parameters(), getattr(eager, name).parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    train_tiny(tmp_path / "c", "train.compile=true", "train.steps=1", "train.critic_steps=1")
    train_tiny(tmp_path / "c", "train.compile=true", *options)
    resumed = torch.load(max((tmp_path / "c" / "checkpoints").glob("*.pt")), weights_only=True)
    assert flat(resumed["critic"]) == flat(compiled.critic.state_dict())


def test_signatures_are_short():
    limits = {train: 23, update: 8, report: 4, lipschitz_report: 4, picture: 4}
    for function, limit in limits.items():
        assert len(inspect.signature(function).parameters) <= limit, function.__name__


def test_run_without_a_terminal_prints_its_first_and_last_report(train_tiny, tmp_path, quick_pictures, capsys):
    train_tiny(tmp_path, "train.steps=4", "train.log_every=1")
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("update 0 of 4: wasserstein ") and last.startswith("update 4 of 4: wasserstein ")
    assert "slope " in last and "modes " in last


@without_analysis
def test_tensorboard_has_every_picture_of_the_run_and_its_config(train_tiny, tmp_path, quick_pictures):
    pytest.importorskip("tensorboard", reason="the extra is not installed: pip install -e '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_tiny(tmp_path, "train.steps=4", "train.sample_every=2")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [picture.step for picture in board.Images("samples")] == [0, 2, 4]
    text = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "steps: 4" in text and "slope/real_mean" in board.Tags()["scalars"]


@without_analysis
def test_a_step_that_is_not_compiled_is_recorded_and_shown(train_tiny, tmp_path, monkeypatch, quick_pictures):
    def fail(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.warns(UserWarning, match="the compiled .* step is not used"):
        train_tiny(tmp_path / "run", "train.compile=true", "train.steps=2")
    (record,) = read_lines(tmp_path / "run" / "provenance.jsonl")
    assert record["not_compiled"] == dict.fromkeys(("sample", "critic", "generator"), "RuntimeError: no compiler")
    assert record["command"] and record["torch"]  # what the line had before
    monkeypatch.setattr("wgangp.results.RUNS", {"run": "a run"})
    page = render_origins("<!-- rendered by scripts/render.py -->\n<!-- /rendered -->", tmp_path)
    assert ", not compiled: sample, critic, generator" in page
