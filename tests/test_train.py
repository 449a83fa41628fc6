import copy
import json
import math
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from wgangp import GradientPenalty, config
from wgangp.benchmark import CASES
from wgangp.checkpoint import save
from wgangp.compiled import gradients_of
from wgangp.contestants import Ours
from wgangp.data.toy import gaussians8
from wgangp.logs import read_lines
from wgangp.losses import Wasserstein
from wgangp.seeds import generator_for, noise
from wgangp.step import critic_step, generator_step
from wgangp.train import _as_parameters_lie, train, update

TOY = ("networks.generator.width=8", "networks.critic.width=8", "train.batch_size=16", "train.report_size=16")
EVERY = ("train.log_every=2", "train.sample_every=4", "train.checkpoint_every=2", "device=cpu")
LOGGED = {"wasserstein", "penalty", "critic_loss", "generator_loss", "heldout_critic_loss", "modes", "high_quality"}
LOGGED |= {"critic_gradient_norm", "generator_gradient_norm", "heldout_wasserstein", "heldout_penalty"}
LOGGED |= {
    f"slope_{kind}_{name}" for kind in ("real", "fake", "interpolates") for name in ("mean", "std", "q95", "max")
}


@pytest.fixture
def go(configure):
    """go(folder, "train.steps=4", ...) trains a tiny network there, as scripts/train.py does; returns the objects."""

    def of(folder, *overrides, **replace):
        cfg = configure(*TOY, *EVERY, *overrides)
        players = config.objects(cfg) | replace
        players["reached"] = train(folder, **players, **config.train_options(cfg))
        return players

    return of


def contents(folder):
    """Every byte of a run that is a function of its config: the checkpoint as tensors, timing left out."""
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


def test_a_run_leaves_its_whole_record(go, tmp_path):
    assert go(tmp_path, "train.steps=5")["reached"] == 5
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [0, 2, 4, 5]  # the first and the last state, and what is between
    for record in records:
        assert record.keys() >= LOGGED and all(math.isfinite(v) for v in record.values())
        assert record["critic_loss"] == pytest.approx(record["penalty"] - record["wasserstein"], abs=1e-5)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"{s:08d}.png" for s in (0, 4, 5)]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert [r["step"] for r in read_lines(tmp_path / "timing.jsonl")] == [0, 2, 4, 5]
    assert len(read_lines(tmp_path / "provenance.jsonl")) == 1


@pytest.mark.parametrize(
    "setting",
    [
        (),
        ("optim=rmsprop", "penalty.weight=0", "clip.weights=0.01"),
        ("optim=normalized", "penalty.points=perturbed"),
        ("data=swiss_roll", "clip.gradient_norm=0.1"),
    ],
    ids=lambda s: " ".join(s) or "default",
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(go, tmp_path, setting):
    go(tmp_path / "whole", "train.steps=8", *setting)
    for steps in (4, 8):
        go(tmp_path / "parts", f"train.steps={steps}", *setting)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_so_does_one_that_was_stopped_between_its_intervals(go, tmp_path):
    go(tmp_path / "whole", "train.steps=8")
    go(tmp_path / "parts", "train.steps=8", data=Interrupting(at=2 * 5))
    stopped = read_lines(tmp_path / "parts" / "metrics.jsonl")
    assert [r["step"] for r in stopped] == [0, 2]
    assert max((tmp_path / "parts" / "checkpoints").glob("*.pt")).name == "step_00000003.pt"
    go(tmp_path / "parts", "train.steps=8")
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


class Interrupting:
    """8 Gaussians, with a Ctrl-C or SIGTERM while a batch is drawn."""

    def __init__(self, at, number=signal.SIGINT):
        self.data, self.at, self.number = gaussians8(), at, number
        self.shape, self.span, self.centres, self.sd = self.data.shape, self.data.span, self.data.centres, self.data.sd

    def batch(self, k, size, seed, split="train", purpose="data"):
        if k == self.at and purpose == "data":
            os.kill(os.getpid(), self.number)
        return self.data.batch(k, size, seed, split, purpose)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_stops(go, tmp_path, number):
    before = signal.getsignal(number)
    players = go(
        tmp_path, "train.steps=8", "train.checkpoint_every=100", data=Interrupting(at=2 * 5 + 1, number=number)
    )
    assert players["reached"] == 3  # the step that was under way is finished
    assert signal.getsignal(number) is before
    assert go(tmp_path, "train.steps=8")["reached"] == 8


def test_a_second_signal_stops_at_once(go, tmp_path):
    class Twice(Interrupting):
        def batch(self, k, size, seed, split="train", purpose="data"):
            if k == self.at and purpose == "data":
                os.kill(os.getpid(), self.number)
            return super().batch(k, size, seed, split, purpose)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, "train.steps=8", data=Twice(at=6))


def test_a_finished_run_is_left_alone(go, tmp_path):
    go(tmp_path, "train.steps=4")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert go(tmp_path, "train.steps=4")["reached"] == 4
    assert go(tmp_path, "train.steps=2")["reached"] == 4
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(go, tmp_path, capsys):
    go(tmp_path / "whole", "train.steps=8")
    go(tmp_path / "parts", "train.steps=6")
    newest = max((tmp_path / "parts" / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1])
    go(tmp_path / "parts", "train.steps=8")
    assert "is damaged" in capsys.readouterr().err
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert parts.pop("samples/00000006.png")  # the last picture of the shorter run stays
    assert whole == parts


def test_a_log_without_a_checkpoint_is_not_thrown_away(go, tmp_path):
    go(tmp_path, "train.steps=4")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint to go on from"):
        go(tmp_path, "train.steps=4")
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_config_that_is_not_given_stays(go, tmp_path):
    players = go(tmp_path, "train.steps=2")
    before = (tmp_path / "config.yaml").read_text()
    del players["reached"]
    options = {"seed": 0, "steps": 3, "critic_steps": 5, "batch_size": 16, "report_size": 16}
    options |= {"log_every": 2, "sample_every": 4, "checkpoint_every": 2, "lipschitz_every": 2}
    assert train(tmp_path, **players, **options) == 3
    assert before and (tmp_path / "config.yaml").read_text() == before


def test_other_data_under_the_same_config_is_noticed(go, tmp_path):
    data = gaussians8()
    data.fingerprint = "a"
    go(tmp_path, "train.steps=2", data=data)
    data.fingerprint = "b"
    with pytest.raises(ValueError, match=r"not what .* was trained on"):
        go(tmp_path, "train.steps=4", data=data)


def test_a_report_sees_none_of_the_batches_of_the_training(go, tmp_path):
    seen = {"data": [], "report": [], "lipschitz": [], "picture": []}

    class Watching(Interrupting):
        def batch(self, k, size, seed, split="train", purpose="data"):
            x, y = super().batch(k, size, seed, split, purpose)
            seen[purpose].append(x)
            return x, y

    go(tmp_path, "train.steps=3", "train.log_every=1", "train.lipschitz_every=1", data=Watching(at=-1))
    trained, reported = torch.cat(seen["data"]), torch.cat(seen["report"] + seen["lipschitz"])
    assert len(trained) == 3 * 5 * 16 and len(reported) == 4 * (2 + 1) * 16
    assert torch.cdist(trained, reported).min() > 0


def test_the_log_is_a_function_of_seed_and_config(go, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)  # the global generators do not matter
        go(tmp_path / name, "train.steps=3", f"seed={seed}")
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and a["metrics.jsonl"] != c["metrics.jsonl"]


def test_intervals_and_the_length_change_no_number(go, tmp_path):
    look = "train.lipschitz_every=2"  # and after the last update of each, which is the same at 4 in both
    go(tmp_path / "a", "train.steps=4", look)
    often = ("train.log_every=1", "train.sample_every=3", "train.checkpoint_every=3")
    go(tmp_path / "b", "train.steps=6", look, *often)
    lines = {r["step"]: r for r in read_lines(tmp_path / "b" / "metrics.jsonl")}
    assert all(lines[r["step"]] == r for r in read_lines(tmp_path / "a" / "metrics.jsonl"))


def test_algorithm_1_is_followed(go, tmp_path):
    """n_critic critic updates, each on a new batch and new noise, before each generator update."""
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
        go(tmp_path, *cfg_steps, data=Watching(at=-1))
    finally:
        handle.remove()
    assert order == [0, "step", 1, "step", 2, "step", "step", 3, "step", 4, "step", 5, "step", "step"]


@pytest.mark.parametrize(
    "override, critics, generators",
    [
        ("seed=0", {}, {}),
        ("clip.weights=0.05", {"clip_weights": 0.05}, {}),
        ("clip.gradient_norm=0.1", {"clip_gradient_norm": 0.1}, {"clip_gradient_norm": 0.1}),
        ("regularize.gradient_norm=0.1", {"regularize_gradient_norm": 0.1}, {"regularize_gradient_norm": 0.1}),
    ],
)
def test_every_switch_reaches_the_steps(go, configure, tmp_path, override, critics, generators):
    """The loop against one written out by hand, with the switch given to the steps: the same weights, bit for bit."""
    players = go(tmp_path, "train.steps=2", "train.critic_steps=2", override)
    cfg = configure(*TOY, *EVERY, override)
    hand = config.objects(cfg)
    generator, critic, data, penalty = (hand[name] for name in ("generator", "critic", "data", "penalty"))
    for step in range(2):
        for k in (2 * step, 2 * step + 1):
            real, _ = data.batch(k, 16, 0)
            with torch.no_grad():
                fake = generator(noise(generator, 16, 0, k, "critic"))
            eps = penalty.draw(real, generator_for(0, k, "eps"))
            critic_step(critic, hand["optim_critic"], real, fake, eps, penalty=penalty, **critics)
        z = noise(generator, 16, 0, step, "generator")
        generator_step(generator, critic, hand["optim_generator"], z, **generators)
    for name in ("generator", "critic"):
        assert flat(players[name].state_dict()) == flat(hand[name].state_dict())
    plain = go(tmp_path / "plain", "train.steps=2", "train.critic_steps=2")
    changed = flat(players["critic"].state_dict()) != flat(plain["critic"].state_dict())
    assert changed == (override != "seed=0")


def test_learning_rates_fall_linearly_to_zero_and_the_generator_has_a_batch_of_its_own(go, tmp_path):
    rates, sizes = [], []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    options = ("train.critic_steps=1", "train.generator_batch_size=5", "optim.lr=0.4")
    try:
        generator = go(tmp_path / "a", "train.steps=0", *options)["generator"]
        seen = generator.register_forward_hook(lambda m, args, out: sizes.append((len(out), torch.is_grad_enabled())))
        go(tmp_path / "a", "train.steps=4", "train.decay_steps=4", "train.log_every=9", *options, generator=generator)
        seen.remove()
        assert rates == pytest.approx([0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1])
        assert [s for s in sizes if s == (5, True)] == [(5, True)] * 4 and (16, False) in sizes
        for steps in (2, 4):  # resumed: the rate is a function of the step
            go(tmp_path / "b", f"train.steps={steps}", "train.decay_steps=4", *options)
        assert rates[8:] == rates[:8]
    finally:
        hook.remove()


def test_noise_is_another_one_for_every_step_and_purpose():
    generator = nn.Linear(3, 2)
    generator.latent_dim = 3
    draws = [noise(generator, 4, 0, k, p) for k, p in ((0, "critic"), (1, "critic"), (0, "generator"))]
    assert draws[0].shape == (4, 3) and len({tuple(d.flatten().tolist()) for d in draws}) == 3
    assert torch.equal(draws[0], noise(generator, 4, 0, 0, "critic"))


class Exploding(nn.Module):
    """A critic whose score turns to NaN once its weight was updated so many times."""

    def __init__(self, after):
        super().__init__()
        self.w, self.after, self.calls = nn.Parameter(torch.randn(2)), after, 0

    def forward(self, x):
        if torch.is_grad_enabled() and len(x) == 16:
            self.calls += 1
        return x @ self.w * (math.nan if self.calls > self.after else 1.0)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(go, tmp_path):
    critic = Exploding(after=70)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
    with pytest.raises(
        ValueError, match=r"step \d+: wasserstein is not finite .*checkpoint is kept.*optim\.lr"
    ) as error:
        go(tmp_path, "train.steps=50", "train.log_every=100", critic=critic, optim_critic=optimizer)
    failed = int(str(error.value).split("step ")[1].split(":")[0])
    newest = max((tmp_path / "checkpoints").glob("*.pt"))
    state = torch.load(newest, weights_only=True)
    assert 0 < state["step"] < failed and state["critic"]["w"].isfinite().all()


def test_the_term_that_failed_first_is_named(go, tmp_path):
    class Infinite(GradientPenalty):
        def __call__(self, critic, real, fake, eps=None):
            return super().__call__(critic, real, fake, eps) * math.inf

    with pytest.raises(ValueError, match="penalty is not finite"):
        go(tmp_path, "train.steps=2", penalty=Infinite())


def test_images_are_reported_and_pictured(configure, tmp_path, small_mnist):
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
    train(tmp_path, **config.objects(cfg), **config.train_options(cfg))
    records = read_lines(tmp_path / "metrics.jsonl")
    assert "modes" not in records[0] and records[0].keys() >= LOGGED - {"modes", "high_quality"}
    assert (tmp_path / "samples" / "00000001.png").exists()


def test_pictures_are_made_from_noise_that_stays_the_same(go, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "wgangp.plots.value_surface", lambda path, critic, real, fake, *a, **k: seen.append((real, fake))
    )
    go(tmp_path, "train.steps=8", "optim=normalized", "optim.lr=1e-30")  # nobody moves
    assert len(seen) == 3
    for now in seen[1:]:
        torch.testing.assert_close(now, seen[0], rtol=0, atol=1e-12)


def test_points_that_are_neither_planar_nor_pictures_have_no_picture(tmp_path):
    class Line:
        shape, span = (3,), (-1.0, 1.0)

        def batch(self, k, size, seed, split="train", purpose="data"):
            return torch.randn(size, 3), None

    generator, critic = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    generator.latent_dim = 2
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (generator, critic)]
    options = {"seed": 0, "steps": 1, "critic_steps": 1, "batch_size": 4, "report_size": 4}
    options |= {"log_every": 1, "sample_every": 1, "checkpoint_every": 1, "lipschitz_every": 1}
    train(tmp_path, generator, critic, *optimizers, Line(), Wasserstein(), GradientPenalty(), **options)
    assert not list((tmp_path / "samples").iterdir()) and (tmp_path / "curves.png").exists()
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


def test_the_loop_goes_on_while_a_picture_is_drawn(go, tmp_path, monkeypatch):
    further = threading.Event()

    class Watching(type(gaussians8())):
        def batch(self, k, size, seed, split="train", purpose="data"):
            if purpose == "data" and k >= 5:  # the second generator update
                further.set()
            return super().batch(k, size, seed, split, purpose)

    monkeypatch.setattr("wgangp.plots.value_surface", lambda *_: seen.append(further.wait(20)))
    seen = []
    go(tmp_path, "train.steps=2", "train.checkpoint_every=100", data=Watching(2.0 * torch.eye(2), 0.1))
    assert seen == [True, True]


def test_a_checkpoint_has_every_line_before_it_however_long_a_certificate_takes(go, tmp_path, monkeypatch):
    def slow(*_):
        time.sleep(0.2)
        return 1.0

    def saved(folder, step, state):
        lines.append((step, [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")][:step]))
        return save(folder, step, state)

    lines = []
    monkeypatch.setattr("wgangp.report.certified_lipschitz", slow)
    monkeypatch.setattr("wgangp.train.save", saved)
    go(tmp_path, "train.steps=3", "train.log_every=1", "train.checkpoint_every=1", "train.lipschitz_every=1")
    assert lines == [(step, list(range(step))) for step in range(4)]
    assert [r["certified_lipschitz"] for r in read_lines(tmp_path / "metrics.jsonl")] == [1.0] * 4


def test_what_goes_wrong_while_drawing_ends_the_run(go, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("wgangp.plots.value_surface", full)
    with pytest.raises(OSError, match="No space left"):
        go(tmp_path, "train.steps=100", "train.checkpoint_every=1000")


class NoReads(TorchDispatchMode):
    """Fails where a number of a tensor is asked for, for which a CUDA device would have to be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("points", ["interpolates", "perturbed"])
def test_an_iteration_reads_no_number_from_the_device(go, tmp_path, points):
    made = go(tmp_path, "train.steps=0", f"penalty.points={points}")
    del made["reached"]
    loss = made.pop("loss")
    gradients = gradients_of(made["generator"], made["critic"], loss, made["penalty"], 0.01)
    sizes = {"critic_steps": 5, "batch_size": 16, "generator_batch_size": None, "clip_gradient_norm": 1.0}
    with NoReads():
        update(0, **made, seed=0, gradients=gradients, clip_weights=0.01, **sizes)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReads():
        torch.ones(1).item()


def test_what_a_fused_optimiser_remembers_takes_the_strides_of_its_parameter():
    p = nn.Parameter(torch.randn(4, 3, 5, 5))
    remembered = torch.optim.Adam([p], fused=True)
    p.grad = torch.randn_like(p)
    remembered.step()
    q = nn.Parameter(p.detach().clone(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam([q], fused=True)
    optimizer.load_state_dict(copy.deepcopy(remembered.state_dict()))
    assert optimizer.state[q]["exp_avg"].stride() != q.stride(), "the trap is gone"
    _as_parameters_lie(optimizer)
    assert optimizer.state[q]["exp_avg"].stride() == q.stride()
    q.grad = p.grad.clone(memory_format=torch.channels_last)
    for each in (remembered, optimizer):
        each.step()
    torch.testing.assert_close(q, p)


@pytest.mark.gpu
@pytest.mark.parametrize("how", [{}, {"compile": True}, {"compile": True, "precision": "bf16", "autocast": True}])
@pytest.mark.parametrize("case", ["toy MLP", "CIFAR DCGAN", "CIFAR ResNet"])
def test_an_iteration_does_not_wait_for_a_gpu(case, how):
    ours = Ours(CASES[case], torch.device("cuda"), **how)
    for _ in range(3):  # compiles, checks, records
        ours.iteration()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.iteration()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
def test_a_run_on_a_gpu_trains_stops_and_goes_on(go, tmp_path):
    cuda = ("device=cuda", "train.log_every=2")
    players = go(tmp_path, "train.steps=4", *cuda)
    assert next(players["critic"].parameters()).is_cuda
    assert go(tmp_path, "train.steps=8", *cuda)["reached"] == 8
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [0, 2, 4, 6, 8]


def test_the_lipschitz_constant_is_looked_at_every_so_many_updates_and_at_the_end(go, tmp_path):
    go(tmp_path, "train.steps=7", "train.log_every=2", "train.lipschitz_every=3")
    looked = {"largest_quotient", "certified_lipschitz", "slope_coupled_mean", "slope_coupled_cosine"}
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [0, 2, 3, 4, 6, 7]
    assert [r["step"] for r in records if r.keys() >= looked] == [0, 3, 6, 7]
    assert not any(r.keys() & looked for r in records if r["step"] in (2, 4))
    for r in (r for r in records if "largest_quotient" in r):
        assert 0 < r["largest_quotient"] <= r["certified_lipschitz"] and -1 <= r["slope_coupled_cosine"] <= 1
        if "expected_slope" in r:
            assert r["expected_slope"] == pytest.approx(1 + r["corrected_wasserstein"] / 20)
    assert any("expected_slope" in r for r in records)


def test_a_look_at_the_lipschitz_constant_changes_no_number(go, tmp_path):
    with_look = go(tmp_path / "a", "train.steps=4", "train.lipschitz_every=1")
    without = go(tmp_path / "b", "train.steps=4", "train.lipschitz_every=100")
    assert flat(with_look["critic"].state_dict()) == flat(without["critic"].state_dict())
    assert flat(with_look["generator"].state_dict()) == flat(without["generator"].state_dict())


def test_a_report_that_is_not_finite_is_said_before_the_look(go, tmp_path, monkeypatch):
    monkeypatch.setattr("wgangp.train.report", lambda *_: {"wasserstein": math.nan, "penalty": 0.0})
    with pytest.raises(ValueError, match=r"step 0: wasserstein is not finite.*optim\.lr"):
        go(tmp_path, "train.steps=1")


def test_a_look_takes_a_limited_number_of_points(go, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr("wgangp.report.LOOKED", 4)
    monkeypatch.setattr("wgangp.report.largest_quotient", lambda _, x: sizes.append(len(x)) or 0.0)
    go(tmp_path, "train.steps=0")
    assert sizes == [2 * 4]  # of 16 real points, and 16 generated ones, that a report has


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_to_rounding_and_resumes_bit_for_bit(go, tmp_path, quick_compile, capsys):
    torch._dynamo.reset()
    options = ("train.steps=2", "train.critic_steps=1")
    eager, compiled = go(tmp_path / "a", *options), go(tmp_path / "b", "train.compile=true", *options)
    said = capsys.readouterr().out
    assert "compiled the critic step" in said and "compiled the generator step" in said
    for name in ("critic", "generator"):
        for a, b in zip(compiled[name].parameters(), eager[name].parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    go(tmp_path / "c", "train.compile=true", "train.steps=1", "train.critic_steps=1")
    go(tmp_path / "c", "train.compile=true", *options)
    resumed = torch.load(max((tmp_path / "c" / "checkpoints").glob("*.pt")), weights_only=True)
    assert flat(resumed["critic"]) == flat(compiled["critic"].state_dict())
