"""Measuring a network changes nothing: not its buffers, modes and gradients, and no random number."""

import copy
import functools
import random
import threading
from collections import deque
from contextlib import nullcontext, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY
from torch import nn
from torch.utils._pytree import tree_leaves

from wgangp import (
    certified_lipschitz,
    config,
    largest_quotient,
    lipschitz_on_box,
    slope_statistics,
    steepest_slope,
)
from wgangp.checks import check_not_random
from wgangp.compiled import verify
from wgangp.generate import generate
from wgangp.logs import read_lines
from wgangp.report import lipschitz_report, report
from wgangp.seeds import initialize
from wgangp.state import find_state, preserve_state, use_eval_mode
from wgangp.train import train

pytestmark = [
    pytest.mark.usefixtures("quick_pictures", "no_trial"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch.nn.utils.spectral_norm and weight_norm
]


class Stateful(nn.Linear):
    """A layer that changes everything that a forward can change, also in eval mode."""

    def __init__(self, width):
        super().__init__(width, width)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(width))
        self.calls, self.plain, self.history, self.rng = 0, torch.zeros(2), [], torch.Generator().manual_seed(0)
        self.nested, self.array, self.queue, self.numbers = {"a": [[]]}, np.zeros(2), deque(maxlen=3), {0}
        self.object = SimpleNamespace(n=0, tensor=torch.zeros(2))
        self.rngs = [np.random.default_rng(0), random.Random(0)]

    def forward(self, x):
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0).float()  # replaced, not updated
        self.plain.add_(1)
        self.calls += 1
        self.history.append(self.calls)
        self.nested["a"][0].append(self.calls)
        self.nested[self.calls] = self.calls
        self.array += 1
        self.queue.append(self.calls)
        self.numbers.add(self.calls)
        self.object.n += 1
        self.object.tensor += 1
        self.rngs[0].random(), self.rngs[1].random()
        self.weight.data.clamp_(-0.1, 0.1)
        torch.rand(1), np.random.rand(), random.random(), torch.rand(1, generator=self.rng)
        return super().forward(x)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand(x.shape, dtype=x.dtype, device=x.device)


class MonteCarlo(nn.Dropout):
    """Dropout that stays active in eval mode."""

    def train(self, mode=True):
        return super().train(True)


class First(nn.Module):
    """The first output of a module."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


def build_critic(*layers):
    return nn.Sequential(nn.Linear(2, 8), *layers, nn.LeakyReLU(), nn.Linear(8, 1), nn.Flatten(0))


LAYERS = {
    "batch norm": lambda: [nn.BatchNorm1d(8)],
    "batch norm, cumulative": lambda: [nn.BatchNorm1d(8, momentum=None)],
    "instance norm": lambda: [nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()],
    "spectral norm": lambda: [nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))],
    "old spectral norm": lambda: [nn.utils.spectral_norm(nn.Linear(8, 8))],
    "old weight norm": lambda: [nn.utils.weight_norm(nn.Linear(8, 8))],
    "dropout": lambda: [nn.Dropout(0.5)],
    "a frozen layer": lambda: [nn.BatchNorm1d(8).eval().requires_grad_(False)],
    "data parallel": lambda: [nn.DataParallel(nn.BatchNorm1d(8))],
    "in place": lambda: [nn.LeakyReLU(inplace=True)],
    "recurrent": lambda: [nn.Unflatten(1, (2, 4)), First(nn.LSTM(4, 4, dropout=0.1, num_layers=2)), nn.Flatten()],
}
RANDOM = {
    "noise": lambda: [Noise()],
    "dropout in eval mode": lambda: [MonteCarlo()],
    "everything": lambda: [Stateful(8)],
}


def copy_state(*networks):
    """Everything that a measurement could change, as a structure that can be compared."""
    state = [torch.get_rng_state(), np.random.get_state()[1].tobytes(), np.random.get_state()[2], random.getstate()]
    for network in networks:
        for module in network.modules():
            names = ("calls", "plain", "history", "weight")
            own = {name: vars(module)[name] for name in names if name in vars(module)}
            state += [module.training, own]
            if isinstance(module, Stateful):
                state += [module.rng.get_state(), *module.queue, *sorted(module.numbers), module.array.tobytes()]
                state += [module.object.n, module.object.tensor, id(module.nested["a"][0]), id(module.object)]
                state += [str(module.nested)]
                state += [str(module.rngs[0].bit_generator.state), str(module.rngs[1].getstate())]
        state += [(p.requires_grad, p.grad) for p in network.parameters()]
        state += [*network.parameters(), *network.buffers()]
    return [x.detach().cpu().numpy().tobytes() if isinstance(x, torch.Tensor) else x for x in tree_leaves(state)]


def require_unchanged(before, *networks):
    assert copy_state(*networks) == before


def train_once(critic):
    """Leave a trace in every kind of state: running statistics, counters, .grad, a graph in a weight."""
    critic(torch.randn(5, 2)).sum().backward()
    return critic


def certify(critic):
    with suppress(ValueError) if any(isinstance(m, nn.LSTM) for m in critic.modules()) else nullcontext():
        return certified_lipschitz(critic, (2,))


def bound_on_box(critic):
    no_rule = any(isinstance(m, (nn.LSTM, nn.InstanceNorm1d)) for m in critic.modules())
    with pytest.raises(ValueError, match="no interval") if no_rule else nullcontext():
        return lipschitz_on_box(critic, [-1.0, -1.0], [1.0, 1.0], max_cells=50)


MEASUREMENTS = {
    "slopes": lambda critic, x: slope_statistics(critic, x, x + 1, coupled=True),
    "slopes in float64": lambda critic, x: slope_statistics(critic, x, -x, float64=True),
    "largest quotient": largest_quotient,
    "steepest slope": lambda critic, x: steepest_slope(critic, x, steps=2),
    "certificate": lambda critic, x: certify(critic),
    "interval": lambda critic, x: bound_on_box(critic),
}
NEED_A_MODULE = ("certificate", "interval")


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_measurement_leaves_a_critic_and_the_random_numbers_as_they_were(layers, measure):
    critic, x = train_once(build_critic(*layers())), torch.randn(6, 2)
    buffers, before = list(critic.buffers()), copy_state(critic)
    measure(critic, x)
    require_unchanged(before, critic)
    assert all(a is b for a, b in zip(critic.buffers(), buffers, strict=True))


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("layers", RANDOM.values(), ids=RANDOM)
def test_random_critic_is_refused_and_left_as_it_was(layers, measure):
    critic, x = train_once(build_critic(*layers())), torch.randn(6, 2)
    before = copy_state(critic)
    with pytest.raises(ValueError, match="the critic draws random numbers in eval mode"):
        measure(critic, x)
    require_unchanged(before, critic)


NETWORKS, TRAINER = {}, SimpleNamespace()  # where a file may keep its networks


def call_critic_of_file(x):
    return NETWORKS["critic"](x)


@pytest.mark.parametrize("measure", [MEASUREMENTS[name] for name in MEASUREMENTS if name not in NEED_A_MODULE])
def test_function_of_a_critic_is_measured_like_the_critic(measure):
    """The modules that a function refers to are put in eval mode, and left as they were."""
    critic, x = train_once(build_critic(nn.Dropout(), nn.BatchNorm1d(8))), torch.randn(6, 2)

    class Holder:
        def __init__(self):
            self.networks = [critic]

        def score(self, x):
            return self.networks[0](x)

    torch.manual_seed(0)
    before, expected = copy_state(critic), measure(copy.deepcopy(critic).eval(), x)
    trainer = SimpleNamespace(critic=critic)
    NETWORKS["critic"], TRAINER.critic = critic, critic
    for function in (
        lambda x: critic(x),
        functools.partial(critic.forward),
        Holder().score,
        Holder().networks[0],
        lambda x: trainer.critic(x),
        lambda x: Holder().score(x),
        lambda x: nn.Identity()(NETWORKS["critic"](x)),  # a module that is new in every call
        lambda x: TRAINER.critic(x),
        lambda x: call_critic_of_file(x),
    ):
        torch.manual_seed(0)
        assert measure(function, x) == expected
        assert critic.training
    torch.manual_seed(0)
    require_unchanged(before, critic)


def test_networks_of_a_function_are_found():
    one, two = nn.Linear(2, 1), nn.Linear(2, 1)
    assert find_state(one) == [one]
    assert find_state(lambda x, second=two: one(x) + second(x)) in ([one, two], [two, one])
    assert find_state(functools.partial(lambda net, x: net(x), one)) == [one]
    assert find_state(one.forward) == [one]
    assert find_state(lambda x: x.sum(1)) == []
    pairs, trainer, x = {"a": [one], "b": (two,)}, SimpleNamespace(one=one, two=two), torch.randn(3, 2)
    assert set(find_state(lambda x: pairs["a"][0](x))) == {one, two}
    assert find_state(lambda x: trainer.one(x)) == []
    assert find_state(lambda x: trainer.one(x), x) == [one]
    assert find_state(lambda x: trainer.one(x) + trainer.two(x), x) == [one, two]
    assert len(find_state(lambda x: nn.Linear(2, 1)(x), x)) == 1


def test_search_for_networks_changes_nothing_and_sees_the_weights_at_rest():
    """A call of torch.func.functional_call swaps the weights of a module: those are not its own."""
    critic = train_once(build_critic(nn.BatchNorm1d(8)))
    trainer, x = SimpleNamespace(critic=critic), torch.randn(6, 2)
    other = {name: p.detach() + 1 for name, p in critic.named_parameters()}
    before, parameters = copy_state(critic), list(critic.parameters())
    function = lambda x: torch.func.functional_call(trainer.critic, other, (x,))  # noqa: E731
    assert find_state(function, x) == [critic]
    slope_statistics(function, x, x + 1)
    require_unchanged(before, critic)
    assert all(p is q for p, q in zip(critic.parameters(), parameters, strict=True))


def test_search_for_networks_ends_at_an_error_and_removes_its_hook():
    with pytest.raises(ValueError, match="do not fit this critic"):
        slope_statistics(lambda x: x @ torch.zeros(2), torch.randn(4, 3), torch.randn(4, 3))
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_state_is_restored_after_an_error_and_when_nested():
    critic = train_once(build_critic(Stateful(8), nn.BatchNorm1d(8)))
    before = copy_state(critic)
    with pytest.raises(RuntimeError, match="stop"), preserve_state(critic), use_eval_mode(critic):
        assert not any(module.training for module in critic.modules())
        critic(torch.randn(3, 2))
        critic.requires_grad_(False)
        raise RuntimeError("stop")
    require_unchanged(before, critic)


def test_graph_that_was_recorded_before_a_measurement_can_be_used_after_it():
    critic, x = build_critic(nn.BatchNorm1d(8), Stateful(8)), torch.randn(6, 2)
    loss = critic(x).square().sum()
    expected = torch.autograd.grad(loss, list(critic.parameters()), retain_graph=True)
    with preserve_state(critic):
        critic(x + 1).sum().backward()
    assert all(p.grad is None for p in critic.parameters())
    for a, b in zip(torch.autograd.grad(loss, list(critic.parameters())), expected, strict=True):
        assert torch.equal(a, b)


def test_gradients_that_were_there_are_kept():
    critic = train_once(build_critic())
    gradients = [(p.grad, p.grad.clone()) for p in critic.parameters()]
    with preserve_state(critic):
        train_once(critic)
    assert all(
        p.grad is g and torch.equal(g, value) for p, (g, value) in zip(critic.parameters(), gradients, strict=True)
    )


def test_overridden_eval_is_called_and_its_result_is_not_used():
    class Own(nn.Linear):
        def eval(self):
            self.scale = 3.0
            self.train(False)

        def forward(self, x):
            return getattr(self, "scale", 1.0) * super().forward(x)

    critic, x = Own(2, 1), torch.randn(5, 2)
    slope = 3 * critic.weight.detach().norm().item()
    assert slope_statistics(critic, x, x)["real"]["max"] == pytest.approx(slope)
    assert certified_lipschitz(critic, (2,)) == pytest.approx(slope)
    assert critic.training and not hasattr(critic, "scale")


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_critic_that_cannot_be_copied_is_measured_and_left_as_it_was(measure):
    critic, x = train_once(build_critic(nn.BatchNorm1d(8))), torch.randn(6, 2)
    parameters, expected = list(critic.parameters()), measure(critic, x)
    critic.lock = threading.Lock()
    before = copy_state(critic)
    assert measure(critic, x) == expected
    require_unchanged(before, critic)
    assert all(p is q for p, q in zip(critic.parameters(), parameters, strict=True))


def test_lazy_network_is_refused():
    with pytest.raises(ValueError, match="a lazy layer has no weights yet"):
        slope_statistics(nn.LazyLinear(1), torch.randn(3, 2), torch.randn(3, 2))


NETWORKS = {}  # of this file: a function does not refer to what it finds in it


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile reads it
def test_compiled_function_of_a_module_in_a_dict_is_measured_in_eval_mode(quick_compile):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    NETWORKS["critic"], x = critic, torch.randn(6, 2)
    expected, before = slope_statistics(critic, x, x + 1), copy_state(critic)
    function = torch.compile(lambda x: NETWORKS["critic"](x))
    for each in (function, torch.compile(critic)):
        assert slope_statistics(each, x, x + 1)["real"] == pytest.approx(expected["real"])
        require_unchanged(before, critic)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_scripted_and_compiled_critics_are_left_as_they_were(quick_compile):
    x = torch.randn(6, 2)
    for change in (torch.jit.script, torch.compile):
        critic = change(
            build_critic(nn.BatchNorm1d(8)),
            **({"fullgraph": False, "dynamic": None} if change is torch.compile else {}),
        )
        before = copy_state(critic)
        slope_statistics(critic, x, x + 1)
        require_unchanged(before, critic)
        assert critic.training


@pytest.mark.gpu
def test_random_numbers_of_cuda_are_preserved():
    critic = build_critic(Noise()).cuda()
    critic(torch.randn(3, 2).cuda())
    before = torch.cuda.get_rng_state_all()
    with preserve_state(critic):
        torch.rand(3, device="cuda")
    assert all(torch.equal(a, b) for a, b in zip(torch.cuda.get_rng_state_all(), before, strict=True))
    with pytest.raises(ValueError, match="random"):
        check_not_random(nn.Sequential(nn.Linear(2, 1), nn.Dropout()).cuda(), torch.randn(99, 2).cuda())


# Runs


class Generator(nn.Sequential):
    """A generator with batch norm and dropout of torch."""

    latent_dim = 3

    def __init__(self):
        super().__init__(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


EVERY = ("train.steps=2", "train.checkpoint_every=1", "train.lipschitz_every=2", "train.sample_every=2")
KINDS = {"spectral norm": LAYERS["spectral norm"], "old spectral norm": LAYERS["old spectral norm"]}
KINDS |= {"dropout": LAYERS["dropout"], "noise": RANDOM["noise"], "counters": lambda: [Stateful(8)]}


@pytest.fixture
def train_foreign(configure, monkeypatch):
    """train_foreign(folder, layers, "train.log_every=1", ...) trains networks that have state; returns them."""

    def call(folder, layers, *overrides):
        cfg = configure(*TINY, *EVERY, *overrides)
        run = config.build_run(cfg)
        critic = initialize(lambda: build_critic(*layers()), 0, "critic")
        generator = initialize(Generator, 0, "generator")
        optimizers = [torch.optim.Adam(network.parameters(), lr=1e-2) for network in (generator, critic)]
        run = replace(
            run, generator=generator, critic=critic, optim_generator=optimizers[0], optim_critic=optimizers[1]
        )
        random_state = torch.get_rng_state()
        train(folder, run, **config.train_options(cfg))
        assert torch.equal(torch.get_rng_state(), random_state)
        return run

    return call


def weights(run):
    return [value for network in (run.generator, run.critic) for value in network.state_dict().values()]


def require_equal_weights(one, two):
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))


@pytest.mark.parametrize("layers", KINDS.values(), ids=KINDS)
def test_run_does_not_depend_on_how_often_it_is_measured_or_resumed(layers, train_foreign, tmp_path):
    often = train_foreign(tmp_path / "often", layers, "train.log_every=1", "train.lipschitz_every=1")
    rarely = train_foreign(tmp_path / "rarely", layers, "train.log_every=2", "train.lipschitz_every=2")
    require_equal_weights(often, rarely)
    torch.rand(5)  # the process that resumes has drawn other numbers
    train_foreign(tmp_path / "parts", layers, "train.log_every=1", "train.steps=1")
    require_equal_weights(train_foreign(tmp_path / "parts", layers, "train.log_every=1"), often)
    whole, parts = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("often", "parts"))
    for record, other in zip(whole, parts, strict=True):  # the interrupted run has fewer Lipschitz reports
        assert {key: record[key] for key in other} == other


@pytest.mark.filterwarnings("ignore:the compiled")
@pytest.mark.parametrize("layers", KINDS.values(), ids=KINDS)
def test_fallback_to_eager_is_the_eager_run(layers, train_foreign, tmp_path, monkeypatch, quick_reports):
    def compile_wrongly(function, **options):
        def wrong(*batch):
            function(*batch)
            raise RuntimeError("not compiled")

        return wrong

    eager = train_foreign(tmp_path / "eager", layers)
    monkeypatch.setattr(torch, "compile", compile_wrongly)
    require_equal_weights(train_foreign(tmp_path / "fallback", layers, "train.compile=true"), eager)


def test_start_up_check_compares_from_the_same_state_and_leaves_no_trace():
    """Eager and compiled passes see the same random numbers, and the result that is used is that of the first pass."""
    critic, x = build_critic(nn.Dropout(), nn.BatchNorm1d(8)), torch.randn(6, 2)

    def gradients(batch):
        return {}, list(torch.autograd.grad(critic(batch).sum(), critic.parameters(), materialize_grads=True))

    with preserve_state(critic):
        expected = gradients(x)[1]
        after = copy_state(critic)
    step = verify("critic", gradients, gradients, double=critic, networks=(critic,))
    for a, b in zip(step(x)[1], expected, strict=True):
        assert torch.equal(a, b)
    require_unchanged(after, critic)


def test_report_of_a_random_critic_has_no_slopes_and_is_repeatable(configure):
    run = replace(config.build_run(configure(*TINY)), critic=build_critic(Noise()))
    values = report(run, 3, 8)
    torch.rand(5)
    assert report(run, 3, 8) == values
    assert "penalty" in values and not any(name.startswith("slope") for name in values)
    assert lipschitz_report(run, 3, 8) == {}


class ListCritic(nn.Module):
    """A critic that keeps layers where torch does not look for modules: in a plain list, and a layer of a layer."""

    def __init__(self, *layers):
        super().__init__()
        self.first, self.plain, self.last = nn.Linear(2, 8), {"layers": list(layers)}, nn.Linear(8, 1)

    def forward(self, x):
        x = self.first(x)
        for layer in self.plain["layers"]:
            x = layer(x)
        return self.last(x).squeeze(1)


class Holder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = (layer,)

    def forward(self, x):
        return self.layer[0](x)


def test_layers_in_a_plain_list_are_measured_in_eval_mode_and_left_as_they_were(configure):
    norm, dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
    critic = ListCritic(norm, Holder(dropout))
    run = replace(config.build_run(configure(*TINY)), critic=critic)
    before = copy_state(critic, norm)
    values = report(run, 0, 8)
    require_unchanged(before, critic, norm)
    assert norm.training and dropout.training
    norm.eval(), dropout.eval()
    assert report(run, 0, 8) == values


def test_a_layer_that_a_network_keeps_in_training_mode_stays_in_it():
    class Keeper(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].train()
            return self

    critic = Keeper(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with use_eval_mode(critic):
        assert critic[1].training and not critic[0].training
    with pytest.raises(ValueError, match="draws random numbers in eval mode"):
        largest_quotient(critic, torch.randn(8, 2))


def test_a_list_that_holds_itself_is_measured():
    critic = nn.Linear(2, 1)
    critic.plain = [1]
    critic.plain.append(critic.plain)
    with preserve_state(critic):
        pass


def test_layers_in_a_plain_list_are_converted_to_float64_and_back():
    critic = ListCritic(nn.Linear(8, 8), Holder(nn.Tanh())).eval()
    (inner, _), x = critic.plain["layers"], torch.randn(6, 2)
    slopes = slope_statistics(critic, x, -x, float64=True, rng=torch.Generator().manual_seed(0))
    assert inner.weight.dtype == torch.float32
    critic.double(), inner.double()
    eps = torch.rand(6, generator=torch.Generator().manual_seed(0)).double()
    expected = slope_statistics(critic, x.double(), -x.double(), eps)
    for kind in ("real", "fake"):
        assert slopes[kind]["mean"] == pytest.approx(expected[kind]["mean"], rel=1e-12)


def test_report_and_samples_are_those_of_eval_mode(configure):
    generator = Generator()
    generator(torch.randn(20, 3))
    run = replace(config.build_run(configure(*TINY)), generator=generator, critic=build_critic(nn.Dropout()))
    before = copy_state(run.generator, run.critic)
    values, samples = report(run, 0, 8), generate(run.generator, 4, lambda k: (torch.ones(4, 3),))
    require_unchanged(before, run.generator, run.critic)
    run.generator.eval(), run.critic.eval()
    assert report(run, 0, 8) == values
    assert torch.equal(generate(run.generator, 4, lambda k: (torch.ones(4, 3),)), samples) and samples.std(0).max() == 0
