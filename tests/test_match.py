import copy
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import TINY
from torch import nn

from wgangp import checkpoint, load_run
from wgangp.analysis import analyze
from wgangp.match import MisfitError, load_state
from wgangp.penalty import GradientPenalty
from wgangp.runs import Run, collect_state
from wgangp.sample import sample

RUN = (*TINY, "train.steps=4", "train.checkpoint_every=2")


@pytest.fixture
def folder(trained):
    return trained(*RUN)


@pytest.fixture(scope="module")
def run(_trained_once):
    return load_run(_trained_once(*RUN))


def write(folder, step, state):
    """Write a checkpoint with a right sha256, whatever is in it."""
    path = folder / f"step_{step:08d}.pt"
    torch.save(state, path)
    checkpoint.write_atomic(path.with_suffix(".pt.sha256"), f"{checkpoint.digest_file(path)}  {path.name}\n")
    return path


def put(value, *keys):
    """Return a function that sets state[keys[0]][keys[1]]... to a value, or to value(the value that is there)."""

    def change(state):
        node = state
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value(node[keys[-1]]) if callable(value) else value

    return change


def remove(*keys):
    def change(state):
        node = state
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]

    return change


def rename_layer(state):
    weights = state["critic"]
    weights["other.weight"] = weights.pop(WEIGHT[1])


def swap_networks(state):
    state["generator"], state["critic"] = state["critic"], state["generator"]


def swap_moments(state):
    moments = state["optim_critic"]["state"]
    moments[0], moments[1] = moments[1], moments[0]


WEIGHT = ("critic", "layers.0.weight")
MOMENT = ("optim_critic", "state", 0, "exp_avg")
GROUP = ("optim_critic", "param_groups", 0)
NAN, INF = float("nan"), float("inf")
WRONG = {
    "another seed": (put(1, "identity", "seed"), "seed: 1 there, 0 in this run"),
    "a seed that is true": (put(False, "identity", "seed"), "seed: False there"),
    "another config": (put(1.0, "identity", "config", "penalty.weight"), r"penalty\.weight: 1\.0 there, 10\.0 in"),
    "a config with a tensor": (put(torch.ones(3), "identity", "config", "optim.lr"), "does not say whose it is"),
    "a config that is a list": (put([1], "identity", "config"), "does not say whose it is"),
    "no config": (put(None, "identity", "config"), "None there, .* in this run"),
    "no seed": (remove("identity", "seed"), "does not say whose it is"),
    "no owner": (put(None, "identity"), "does not say whose it is"),
    "no word of an owner": (remove("identity"), "does not say whose it is"),
    "another step": (put(2, "step"), "its step is 2, and its name says 4"),
    "a negative step": (put(-5, "step"), "its step is -5"),
    "a large step": (put(10**9, "step"), "its step is 1000000000"),
    "a step that is a path": (put("../../4", "step"), r"its step is '\.\./\.\./4'"),
    "a step that is a float": (put(4.0, "step"), r"its step is 4\.0"),
    "a step that is a tensor": (put(torch.tensor(4), "step"), r"its step is tensor\(4\)"),
    "no step": (remove("step"), "its step is None"),
    "other data": (put("ab" * 32, "data"), "not the data that it was trained on"),
    "data that is a number": (put(5, "data"), "fingerprint of the data is no text"),
    "another shape": (put([3], "shape"), r"\['shape'\] is \[3\], and not \[2\]"),
    "a huge shape": (put([10**9], "shape"), "its shape is .* which no sample has"),
    "a negative shape": (put([-2], "shape"), "which no sample has"),
    "a span that is NaN": (put([NAN, 1.0], "span"), "no range"),
    "another span": (put([0.0, 1.0], "span"), r"\['span'\] is \[0\.0, 1\.0\]"),
    "symbols": (put(["a"], "symbols"), "has 'symbols', which the run does not have"),
    "int8 weights": (put(lambda x: x.to(torch.int8), *WEIGHT), r"type torch\.int8, and not torch\.float32"),
    "float64 weights": (put(lambda x: x.double(), *WEIGHT), "float64"),
    "complex weights": (put(lambda x: x.to(torch.complex64), *WEIGHT), "complex64"),
    "sparse weights": (put(lambda x: x.to_sparse(), *WEIGHT), r"layers\.0\.weight"),
    "NaN weights": (put(lambda x: x.clone().fill_(NAN), *WEIGHT), "not finite"),
    "one inf weight": (put(lambda x: x.index_fill(0, torch.tensor(3), INF), *WEIGHT), "not finite"),
    "weights of another shape": (put(lambda x: x[:-1], *WEIGHT), "has the shape"),
    "weights of a huge shape": (put(torch.zeros(1, 1).expand(10**9, 10**9), *WEIGHT), "has the shape"),
    "weights without values": (put(torch.empty(8, 2, device="meta"), *WEIGHT), "no tensor with values"),
    "weights that are numbers": (put(0.5, *WEIGHT), "no tensor with values"),
    "a missing weight": (remove(*WEIGHT), "has no 'layers.0.weight'"),
    "a renamed layer": (rename_layer, "has no 'layers.0.weight'"),
    "an additional weight": (put(torch.ones(1), "critic", "more.weight"), "which the run does not have"),
    "a missing network": (remove("critic"), "state has no 'critic'"),
    "a missing optimizer": (remove("optim_generator"), "state has no 'optim_generator'"),
    "a network that is a list": (put([], "generator"), "is of the type list"),
    "swapped networks": (swap_networks, "generator"),
    "an additional entry": (put(1, "more"), "state has 'more', which the run does not have"),
    "an average": (put({}, "average"), "state has 'average', which the run does not have"),
    "moments of another shape": (put(torch.zeros(1), *MOMENT), "has the shape"),
    "swapped moments": (swap_moments, "has the shape"),
    "moments of another type": (put(lambda x: x.to(torch.int8), *MOMENT), "int8"),
    "inf moments": (put(lambda x: x + INF, *MOMENT), "not finite"),
    "a missing moment": (remove(*MOMENT), "has no 'exp_avg'"),
    "an additional moment": (put(torch.ones(1), *MOMENT[:-1], "more"), "which the run does not have"),
    "no moments of a parameter": (remove(*MOMENT[:-1]), "has no 0"),
    "no moments": (put({}, *MOMENT[:-2]), "has no 0"),
    "moments of no parameter": (put({}, "optim_critic", "state", 99), "has 99, which the run does not have"),
    "moments that are a list": (put([], *MOMENT[:-2]), "is of the type list"),
    "an optimizer step that is a number": (put(3, *MOMENT[:-1], "step"), "no tensor with values"),
    "a large learning rate": (put(5.0, *GROUP, "lr"), r"\['lr'\] is 5\.0, and not"),
    "a learning rate that is NaN": (put(NAN, *GROUP, "lr"), r"\['lr'\] is nan"),
    "a learning rate that is text": (put("fast", *GROUP, "lr"), r"\['lr'\] is 'fast'"),
    "other betas": (put(lambda betas: type(betas)([0.9, 0.9]), *GROUP, "betas"), r"\['betas'\] is"),
    "parameters in another order": (put(lambda ids: ids[::-1], *GROUP, "params"), r"\['params'\] is"),
    "no parameters": (remove(*GROUP, "params"), r"\['params'\]"),
    "two groups": (put(lambda groups: groups * 2, *GROUP[:-1]), r"is no list of 1 dict"),
    "groups that are a number": (put(1, *GROUP[:-1]), r"is no list of 1 dict"),
    "an optimizer without groups": (remove(*GROUP[:-1]), "has no 'param_groups'"),
}


@pytest.fixture(scope="module")
def saved(_trained_once):
    return torch.load(_trained_once(*RUN) / "checkpoints" / "step_00000004.pt", weights_only=True)


@pytest.fixture
def state(saved):
    return copy.deepcopy(saved)


def numbers(run):
    """All tensors of a run."""
    networks = (run.generator, run.critic)
    moments = [m for o in (run.optim_generator, run.optim_critic) for s in o.state.values() for m in s.values()]
    return [x.clone() for x in (*(p for network in networks for p in network.parameters()), *moments)]


def assert_equal(a, b):
    assert len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("change, reason", WRONG.values(), ids=WRONG)
def test_wrong_content_is_found_before_it_is_loaded(run, state, change, reason):
    before = numbers(run)
    change(state)
    with pytest.raises(MisfitError, match=reason):
        load_state(run, state, 4)
    assert_equal(numbers(run), before)


@pytest.mark.parametrize("name", ["a step that is a path", "NaN weights", "swapped moments", "another seed"])
def test_older_checkpoint_is_used_with_a_warning_that_names_file_and_reason(folder, run, state, name, capsys):
    change, reason = WRONG[name]
    change(state)
    path = write(folder / "checkpoints", 4, state)
    before = path.read_bytes()
    assert checkpoint.load_latest(folder / "checkpoints", fit=partial(load_state, copy.deepcopy(run))) == 2
    (warning,) = capsys.readouterr().err.splitlines()
    start, end = f"warning: checkpoint {path} does not fit this run (", "): step_00000002.pt is used"
    assert warning.startswith(start) and warning.endswith(end) and re.search(reason, warning)
    assert path.read_bytes() == before


def test_folder_without_a_good_checkpoint_is_one_line_of_error_and_stays_as_it_is(folder, run, state):
    write(folder / "checkpoints", 2, [])
    put(-5, "step")(state)
    write(folder / "checkpoints", 4, state)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = (
        r"^checkpoint .*step_00000004\.pt does not fit this run \(its step is -5.*\)\. The older ones are not good.*$"
    )
    for use in (load_run, sample, analyze):
        with pytest.raises(ValueError, match=message):
            use(str(folder))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_checkpoint_of_the_run_is_loaded(run, state):
    other = copy.deepcopy(run)
    nn.init.zeros_(next(other.critic.parameters()))
    assert load_state(other, state, 4) == 4
    assert_equal(numbers(other), numbers(run))


@pytest.mark.parametrize("other", [None, [], torch.ones(3), "text", {}])
def test_file_that_holds_something_else_is_found(run, other):
    with pytest.raises(MisfitError, match=r"and no dict|its step is None"):
        load_state(run, other, 4)


def test_config_of_another_version_may_lack_keys_that_have_their_default(run, state):
    config = state["identity"]["config"]
    del config["ema.decay"], config["train.precision"]
    config["penalty.weight"] = 10
    assert load_state(copy.deepcopy(run), state, 4) == 4


def test_options_of_another_version_of_torch_are_those_of_the_run(run, state):
    (group,) = state["optim_critic"]["param_groups"]
    del group["maximize"]
    group["new_option"] = True
    other = copy.deepcopy(run)
    load_state(other, state, 4)
    assert other.optim_critic.param_groups[0].keys() == run.optim_critic.param_groups[0].keys()


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Adagrad", "Adafactor", "NAdam", "Rprop", "ASGD"])
def test_state_of_every_optimizer_fits_its_run(name):
    def build():
        networks = [nn.Linear(2, 1), nn.Linear(2, 1)]
        networks[1].bias.requires_grad_(False)
        optimizers = [getattr(torch.optim, name)(network.parameters(), lr=0.1) for network in networks]
        return Run(*networks, *optimizers, Points(), None, GradientPenalty(), 0)

    run = build()
    for step in (0, 1):
        load_state(build(), collect_state(run, step)[0], step)
        for network, optimizer in ((run.generator, run.optim_generator), (run.critic, run.optim_critic)):
            for p in (p for p in network.parameters() if p.requires_grad):
                p.grad = torch.ones_like(p)
            optimizer.step()


class Points:
    shape, span = (2,), (-1.0, 1.0)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("span", (-INF, INF), "span is .* which is no range"),
        ("shape", (2**15, 2**15), "shape is .* which no sample has"),
        ("fingerprint", 12345, "fingerprint of the data is no text"),
    ],
)
def test_state_that_could_not_be_loaded_again_is_not_saved(folder, run, tmp_path, name, value, message):
    data = copy.copy(run.data)
    object.__setattr__(data, name, value)
    state, buffers = collect_state(replace(run, data=data), 0)
    with pytest.raises(ValueError, match=f"could not be loaded again: its .*{message}"):
        checkpoint.save(tmp_path / "new", 0, state, buffers)
    assert not (tmp_path / "new").exists()


def test_numbers_of_numpy_are_saved_as_plain_ones(run, tmp_path):
    data = copy.copy(run.data)
    object.__setattr__(data, "span", tuple(np.float32([-2, 2])))
    numpy_run = replace(run, data=data)
    checkpoint.save(tmp_path, 0, *collect_state(numpy_run, 0))
    assert checkpoint.load_latest(tmp_path)["span"] == [-2.0, 2.0]
