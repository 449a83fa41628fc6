import json
import math
import resource
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY
from torch import nn

import wgangp.train
from wgangp import checkpoint, config
from wgangp.draws import Draws
from wgangp.nonfinite import check_state, copy_state, is_lost, require_finite
from wgangp.optim import RMSProp, build_average
from wgangp.train import Clip, train

pytestmark = pytest.mark.usefixtures("quick_pictures", "quick_reports", "no_trial")

YES, NO = torch.tensor(True), torch.tensor(False)
EVERY = ("train.log_every=1", "train.sample_every=9", "train.checkpoint_every=1", "train.critic_steps=2")
EVERY += ("train.lipschitz_every=9",)


@pytest.fixture
def train_on(configure, tmp_path):
    """train_on({3}, "train.steps=2", ...) trains tiny networks; batch 3 of the data has a NaN. Returns the run."""

    def call(bad, *overrides, folder=tmp_path):
        cfg = configure(*TINY, *EVERY, "ema.decay=0.9", *overrides)
        run = config.build_run(cfg)
        batch = run.data.batch

        def batch_with_nan(k, size, seed, split="train", purpose="data"):
            (real,) = batch(k, size, seed, split, purpose)
            return (real.clone().fill_(math.nan) if k in bad and purpose == "data" else real,)

        run.data.batch = batch_with_nan
        train(folder, run, **config.train_options(cfg))
        return run

    return call


def values(*parts):
    """All numbers in the state of networks and optimizers."""
    states = [part.state_dict() for part in parts]
    states = [s for state in states for s in (state["state"].values() if "state" in state else [state])]
    return [x.tolist() if isinstance(x, torch.Tensor) else x for state in states for x in state.values()]


def read_log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def step_once(network, optimizer):
    for p in network.parameters():
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: RMSProp(p, lr=0.1),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_update_that_is_lost_changes_nothing_and_another_one_stays_as_it_is(build, steps):
    network, average = nn.Linear(3, 2), None
    optimizer, average = build(network.parameters()), build_average(network, 0.9)
    for _ in range(steps):
        step_once(network, optimizer)
    before = values(network, optimizer, average)
    restore = copy_state(network, optimizer, average, None)
    step_once(network, optimizer)
    average.update_parameters(network)
    after = values(network, optimizer, average)
    restore(NO)
    assert values(network, optimizer, average) == after != before
    restore(YES)
    assert values(network, optimizer, average) == before


def test_numbers_and_replaced_tensors_of_an_optimizer_are_restored():
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    state = optimizer.state[network.weight]
    state |= {"step": 3, "mean": torch.tensor([1.0])}
    restore = copy_state(optimizer)
    state |= {"step": 4, "mean": torch.tensor([math.nan])}
    restore(YES)
    assert state == {"step": 3, "mean": torch.tensor([1.0])}


@pytest.mark.parametrize(
    "term, gradient, lost",
    [(1.0, 2.0, False), (math.nan, 2.0, True), (1.0, -math.inf, True), (1.0, 1e20, True), (-math.inf, 0.0, True)],
)
def test_update_is_lost_if_a_term_or_the_squared_gradient_is_not_finite(term, gradient, lost):
    """1e20 is finite, but Adam's mean of squares would be infinite, and the weight would never move again."""
    assert is_lost({"critic_loss": torch.tensor(term)}, [torch.tensor([0.0, gradient])]) == lost


def test_stop_names_the_step_and_writes_the_batches_of_the_update(train_on, tmp_path):
    with pytest.raises(ValueError, match=r"step 2: wasserstein is not finite.*checkpoint is kept.*nonfinite.*data"):
        train_on({3}, "train.steps=4")
    state = torch.load(tmp_path / "nonfinite" / "step_00000002.pt", weights_only=True)
    assert state["step"] == 2 and math.isnan(state["terms"]["wasserstein"])
    assert [batch["real"].isnan().any().item() for batch in state["critic"]] == [False, True]  # batches 2 and 3
    assert state["critic"][0].keys() == {"real", "z", "eps", "labels"}
    assert state["critic"][0]["z"].shape == state["generator"]["z"].shape == (16, 2)
    assert torch.load(max((tmp_path / "checkpoints").glob("*.pt")), weights_only=True)["step"] == 1


def test_stop_writes_what_the_update_has_drawn(train_on, tmp_path, monkeypatch):
    drawn = []

    def draw(run, k, size):
        drawn.append((run.data.batch(k, size, run.seed)[0], torch.full((16, 2), float(k)), torch.full((16,), 0.5)))
        return drawn[-1]

    monkeypatch.setattr("wgangp.train.draw_critic_batch", draw)
    monkeypatch.setattr("wgangp.draws.draw_critic_batch", draw)
    with pytest.raises(ValueError, match="step 1"):
        train_on({1}, "train.steps=1")
    state = torch.load(tmp_path / "nonfinite" / "step_00000001.pt", weights_only=True)
    assert [batch["z"][0, 0].item() for batch in state["critic"]] == [0.0, 1.0]


def test_stop_without_space_for_the_batches_is_the_same_error(train_on, tmp_path):
    (tmp_path / "nonfinite").write_text("a file is in the way")
    with pytest.raises(ValueError, match=r"step 2: wasserstein is not finite.*could not be written"):
        train_on({3}, "train.steps=4")


def test_batches_that_the_disk_takes_in_part_leave_no_file(tmp_path):
    x, before = torch.zeros(300, 2), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))  # of the bytes of a file
    try:
        with pytest.raises(ValueError, match=r"could not be written to .*step_00000002\.pt \(File too large\)"):
            require_finite(2, {"penalty": math.nan}, tmp_path, lambda step: Draws([(x, x, x[:, 0])], (x,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "nonfinite").iterdir()) == []


def test_skip_leaves_the_updates_out_and_counts_them(train_on, tmp_path):
    run = train_on({2, 3}, "train.steps=2", "train.on_nonfinite=skip")
    one_step = train_on(set(), "train.steps=1", folder=tmp_path / "one")
    assert values(run.critic, run.optim_critic) == values(one_step.critic, one_step.optim_critic)
    assert values(run.generator) != values(one_step.generator)  # its update is finite
    assert [line["skipped"] for line in read_log(tmp_path)] == [0, 0, 2]


@pytest.mark.parametrize("last", [True, False])
def test_generator_gradient_with_a_finite_loss_stops_its_own_step(train_on, tmp_path, monkeypatch, last):
    build, steps = wgangp.train.build_computation, []

    def build_faulty(*arguments, **options):
        computation = build(*arguments, **options)

        def compute(*latent):
            steps.append(len(steps) + 1)
            terms, gradients = computation.generator_gradients(*latent)
            return terms, [g * float("nan") if steps[-1] == 2 else g for g in gradients]

        return replace(computation, generator_gradients=compute)

    monkeypatch.setattr("wgangp.train.build_computation", build_faulty)
    with pytest.raises(ValueError, match=r"step 2: generator_param_grad_norm is not finite .*step_00000002\.pt"):
        train_on(set(), f"train.steps={2 if last else 9}")
    assert steps == [1, 2] and checkpoint.load_latest(tmp_path / "checkpoints")["step"] == 1


def test_update_that_is_left_out_changes_neither_networks_nor_optimizers_nor_average(train_on, tmp_path, monkeypatch):
    before = train_on(set(), "train.steps=0", folder=tmp_path / "before")
    monkeypatch.setattr("wgangp.train.is_lost", lambda terms, gradients: YES)
    after = train_on(set(), "train.steps=1", "train.on_nonfinite=skip", "clip.weights=0.001")
    a, b = (values(r.generator, r.critic, r.optim_generator, r.optim_critic, r.average) for r in (before, after))
    assert a == b
    assert read_log(tmp_path)[-1]["skipped"] == 3  # two of the critic, one of the generator


def test_skip_is_stop_if_everything_is_finite(train_on, tmp_path):
    runs = [train_on(set(), "train.steps=2", f"train.on_nonfinite={w}", folder=tmp_path / w) for w in ("stop", "skip")]
    a, b = (values(r.generator, r.critic, r.optim_generator, r.optim_critic, r.average) for r in runs)
    assert a == b
    stop, skip = (read_log(tmp_path / word) for word in ("stop", "skip"))
    assert skip == [line | {"skipped": 0} for line in stop]


def test_run_that_stopped_continues_with_skip_and_the_count_survives(train_on, tmp_path):
    with pytest.raises(ValueError, match=r"not finite.*train\.on_nonfinite=skip"):
        train_on({3}, "train.steps=4", folder=tmp_path / "a")
    train_on({3}, "train.steps=3", "train.on_nonfinite=skip", folder=tmp_path / "a")
    train_on({7}, "train.steps=4", "train.on_nonfinite=skip", folder=tmp_path / "a")
    train_on({3, 7}, "train.steps=4", "train.on_nonfinite=skip", folder=tmp_path / "b")
    assert read_log(tmp_path / "a")[-1]["skipped"] == 2
    a, b = (torch.load(max((tmp_path / name / "checkpoints").glob("*.pt")), weights_only=True) for name in ("a", "b"))
    assert a["skipped"] == b["skipped"] == 2
    assert all(torch.equal(a["critic"][name], b["critic"][name]) for name in a["critic"])


def test_checkpoint_is_loaded_if_all_updates_were_left_out(train_on):
    train_on({0, 1}, "train.steps=1", "train.on_nonfinite=skip")
    train_on({0, 1}, "train.steps=2", "train.on_nonfinite=skip")


def test_optimizer_state_that_is_not_finite_is_named(tmp_path):
    critic = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.1)
    run = SimpleNamespace(critic=critic, optim_critic=optimizer, generator=None, optim_generator=None, average=None)
    for p in critic.parameters():
        p.grad = torch.full_like(p, 1e30)
    optimizer.step()
    with pytest.raises(ValueError, match=r"step 7: optim_critic.exp_avg_sq is not finite.*optim\.lr"):
        check_state(run, 7, tmp_path)


def test_unknown_word_is_refused_by_its_key(configure):
    with pytest.raises(ValueError, match=r"on_nonfinite = go: must be stop or skip"):
        Clip(on_nonfinite="go")
    with pytest.raises(ValueError, match=r"^train.on_nonfinite = go: must be stop or skip"):
        config.train_options(configure("train.on_nonfinite=go"))


@pytest.mark.slow
def test_compiled_steps_leave_the_same_updates_out(train_on, tmp_path, quick_compile):
    compiled = ("train.compile=true", "train.on_nonfinite=skip", "train.steps=3")
    run = train_on({4, 5}, *compiled, folder=tmp_path / "compiled")
    eager = train_on({4, 5}, *compiled[1:], folder=tmp_path / "eager")
    assert [line["skipped"] for line in read_log(tmp_path / "compiled")] == [0, 0, 0, 2]
    for p, q in zip(run.critic.parameters(), eager.critic.parameters(), strict=True):
        assert p.isfinite().all() and torch.allclose(p, q, atol=1e-5)
    assert "not_compiled" not in (tmp_path / "compiled" / "provenance.jsonl").read_text()
