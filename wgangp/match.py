"""Whether a checkpoint fits a run: all of it is compared before any of it is used.

A checkpoint says whose it is: step, seed, the config keys that change a number, and the data. Everything else in it
must have the names, types, shapes and dtypes that the run itself would save, and be finite. So the checkpoint of
another seed or network is found, and moments of another shape, which a fused optimizer would read past their end.
"""

import copy
import json
import math
from collections.abc import Collection, Iterator
from functools import partial
from reprlib import repr as shorten
from typing import Any

import torch
from torch import Tensor

from wgangp.runs import Run, collect_state, collect_stateful, find_differing_keys

__all__ = ["COUNTS", "MisfitError", "list_differences", "load_state", "require_match", "require_owner"]

OPTIMIZERS = ("optim_generator", "optim_critic")
COUNTS = ("skipped", "reports", "unfinished")  # integers that a checkpoint may have, see wgangp/train.py
HEADER = ("step", "shape", "span", "symbols", "data")
KNOWN = ("torch.optim.", "wgangp.optim.")  # optimizers whose options do not change during training
LARGEST_SAMPLE = 2**28  # numbers; an image of 3 x 8192 x 8192 has fewer


class MisfitError(ValueError):
    """A checkpoint is damaged, or it is not one of this run. The message is the end of a sentence about it."""


def load_state(run: Run, state: Any, step: int) -> int:
    """Load the state of a checkpoint into a run, and return the step of its file. MisfitError: nothing is loaded."""
    expected, buffers = collect_state(run, step)
    if step > 0:
        expected |= {name: _state_after_a_step(getattr(run, name)) for name in OPTIMIZERS}
    require_match(state, expected, step, buffers)
    for name, part in collect_stateful(run).items():
        if name in OPTIMIZERS:  # another version of torch may have other options: those of the run are complete
            groups = zip(expected[name]["param_groups"], state[name]["param_groups"], strict=True)
            complete_groups = [{key: saved.get(key, value) for key, value in own.items()} for own, saved in groups]
            part.load_state_dict({"state": state[name]["state"], "param_groups": complete_groups})
            _match_strides(part)
        else:
            part.load_state_dict(state[name])
    return step


def require_match(state: Any, expected: dict[str, Any], step: int, buffers: Collection[str] = ()) -> None:
    """Raise MisfitError unless a state has the names, types, shapes and dtypes of another one, and is finite.

    Args:
        expected: the state of the run at this or another step.
        step: in the name of the file of the state.
        buffers: the names of buffers, which may have inf.
    """
    counts = {name: 0 for name in COUNTS if isinstance(state, dict) and name in state}
    expected, config = {n: v for n, v in expected.items() if n not in COUNTS} | {"step": step} | counts, {}
    if "identity" in expected:
        config = expected["identity"]["config"] or {}
        require_owner(state, step, **expected["identity"])
        if state.get("data") != expected["data"]:
            raise MisfitError(
                "the data is not the data that it was trained on (its sha256 differs): set data.root, data.path or"
                " data_root= back"
            )
        expected["identity"] = lambda *_: ()  # keys of the config that are new have a default: see find_differing_keys
    expected |= {name: partial(_list_inequalities, expected[name]) for name in HEADER if name in expected}
    for name in (name for name in OPTIMIZERS if name in expected):
        options = partial(_list_option_problems, expected[name]["param_groups"], config)
        expected[name] = {**expected[name], "param_groups": options}
        empty = isinstance(state.get(name), dict) and state[name].get("state") == {}
        if empty and (step == 0 or "skipped" in counts):  # no update yet
            expected[name]["state"] = {}
    problem = next(list_differences("state", state, expected, buffers), None)
    if problem:
        raise MisfitError(problem)


def require_owner(state: Any, step: int, seed: int, config: dict[str, Any] | None) -> None:
    """Raise MisfitError unless a state has the step, the seed and the config of a run, and a possible shape.

    Args:
        config: flat keys that change a number; None: not compared.
    """
    if not isinstance(state, dict):
        raise MisfitError(f"it holds a {type(state).__name__}, and no dict")
    if type(state.get("step")) is not int or state["step"] != step:
        raise MisfitError(f"its step is {shorten(state.get('step'))}, and its name says {step}")
    shape, span = state.get("shape"), state.get("span")
    if not _is_list(shape, int) or min(shape, default=1) < 1 or math.prod(shape) > LARGEST_SAMPLE:
        raise MisfitError(f"its shape is {shorten(shape)}, which no sample has")
    if not _is_list(span, float, int) or len(span) != 2 or not -math.inf < span[0] < span[1] < math.inf:
        raise MisfitError(f"its span is {shorten(span)}, which is no range (low, high)")
    if not _is_list(state.get("symbols", []), str) or type(state.get("data", "")) is not str:
        raise MisfitError("its symbols are no list of texts, or its fingerprint of the data is no text")
    try:
        identity = json.loads(json.dumps(state["identity"]))
        saved_seed, saved = identity["seed"], identity["config"] or {}
        differing = find_differing_keys([saved, config]) if config is not None else []
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise MisfitError("it does not say whose it is") from error
    if type(saved_seed) is not int or saved_seed != seed:
        raise MisfitError(f"seed: {shorten(saved_seed)} there, {seed} in this run")
    if differing:
        values = [shorten(values.get(differing[0])) for values in (saved, config)]
        raise MisfitError(f"{differing[0]}: {values[0]} there, {values[1]} in this run")


def list_differences(name: str, value: Any, expected: Any, buffers: Collection[str]) -> Iterator[str]:
    """Yield, in words, what of a value does not have the type, the shape or the names that are expected.

    Args:
        expected: an example; or a function (name, value) -> problems.
    """
    if isinstance(expected, Tensor):
        if not isinstance(value, Tensor) or value.is_meta:
            yield f"{name} is no tensor with values"
        elif (value.dtype, value.layout) != (expected.dtype, expected.layout):
            yield f"{name} is of the type {value.dtype}, and not {expected.dtype}"
        elif value.shape != expected.shape:
            yield f"{name} has the shape {shorten(tuple(value.shape))}, and not {tuple(expected.shape)}"
        elif not value.isfinite().all() and (name not in buffers or value.isnan().any()):
            yield f"{name} has {'NaN in it' if name in buffers else 'values that are not finite'}"
    elif callable(expected):
        yield from expected(name, value)
    elif isinstance(expected, dict) and isinstance(value, dict):
        yield from (f"{name} has no {key!r}" for key in expected if key not in value)
        extra = (shorten(key) for key in value if key not in expected)
        yield from (f"{name} has {key}, which the run does not have" for key in extra)
        for key, child in expected.items():
            yield from list_differences(f"{name}[{key!r}]", value[key], child, buffers)
    elif type(value) is not type(expected):
        yield f"{name} is of the type {type(value).__name__}, and not {type(expected).__name__}"
    elif isinstance(expected, list | tuple):
        if len(value) != len(expected):
            yield f"{name} has {len(value)} entries, and not {len(expected)}"
        for i, pair in enumerate(zip(value, expected, strict=False)):
            yield from list_differences(f"{name}[{i}]", *pair, buffers)
    elif isinstance(value, float) and math.isfinite(expected) and not math.isfinite(value):
        yield f"{name} is {value}"


def _list_inequalities(expected: Any, name: str, value: Any) -> Iterator[str]:
    numbers = all(type(x) in (int, float) for x in (value, expected))
    if value != expected if numbers else repr(value) != repr(expected):  # tensors have no == with one answer
        yield f"{name} is {shorten(value)}, and not {shorten(expected)}"


def _list_option_problems(
    expected: list[dict[str, Any]], config: dict[str, Any], name: str, value: Any
) -> Iterator[str]:
    """Compare the groups of an optimizer. Options that only one of two has differ between versions of torch."""
    if not _is_list(value, dict) or len(value) != len(expected):
        yield f"{name} is no list of {len(expected)} dict(s)"
        return
    rates_decay = config.get("train.decay_steps") is not None or not config
    constant = str(config.get("optim._target_", KNOWN[0])).startswith(KNOWN)
    for i, (saved, own) in enumerate(zip(value, expected, strict=True)):
        for key in ("params", *(key for key in own if key in saved and key != "params")):
            path, option = f"{name}[{i}][{key!r}]", saved.get(key)
            if key == "lr" and rates_decay:
                if type(option) not in (int, float) or not 0 <= option <= config.get("optim.lr", math.inf):
                    yield f"{path} is {shorten(option)}, which is no learning rate of this run"
            elif key == "params" or constant:
                yield from _list_inequalities(own[key], path, option)
            else:
                yield from list_differences(path, option, own[key], ())


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state that an optimizer has after its first step, for names and shapes: it is made on a copy."""
    trial = copy.deepcopy(optimizer)
    for p in (p for group in trial.param_groups for p in group["params"]):
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    trial.step()
    return trial.state_dict()


def _match_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer state the strides of its parameter: a fused optimizer reads both with the same strides."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def _is_list(value: Any, *kinds: type) -> bool:
    return type(value) is list and all(type(entry) in kinds for entry in value)
