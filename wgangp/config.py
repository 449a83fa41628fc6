"""The one place where a config becomes objects."""

import inspect
import math
import pkgutil
import types
import typing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from wgangp.checkpoint import load_latest
from wgangp.distributed import local_device
from wgangp.penalty import check_per_sample
from wgangp.precision import check_precision
from wgangp.seeds import initialised

__all__ = [
    "BUDGETS",
    "Benchmark",
    "Lipschitz",
    "Reproduce",
    "Sample",
    "build",
    "check_keys",
    "device_of",
    "networks",
    "objects",
    "train_options",
    "trained",
]

TRUSTED = {  # what a config may name under each key; anything else is refused
    "data": ("wgangp.data.",),
    "networks": ("wgangp.networks.",),
    "loss": ("wgangp.losses.",),
    "penalty": ("wgangp.penalty.",),
    "optim": ("torch.optim.", "wgangp.gradients."),
    "figure": ("wgangp.figures.",),
}
BUDGETS = ("cpu", "paper")
ELSEWHERE = ("channels_last", "rank_timeout")  # of train.*, what train() does not take: see objects, distributed.joined


# The schema: every key of conf/config.yaml and its type. Values and their meaning stand there.
@dataclass
class Train:
    steps: int = MISSING
    critic_steps: int = MISSING
    batch_size: int = MISSING
    generator_batch_size: int | None = MISSING
    decay_steps: int | None = MISSING
    log_every: int = MISSING
    sample_every: int = MISSING
    checkpoint_every: int = MISSING
    lipschitz_every: int = MISSING
    report_size: int = MISSING
    compile: bool = MISSING
    precision: str = MISSING
    channels_last: bool = MISSING
    sync_batch_norm: bool = MISSING
    rank_timeout: int = MISSING


@dataclass
class Clip:
    weights: float | None = MISSING
    gradient_norm: float | None = MISSING


@dataclass
class Regularize:
    gradient_norm: float = MISSING


@dataclass
class Networks:
    generator: dict[str, Any] = MISSING
    critic: dict[str, Any] = MISSING


@dataclass
class Config:
    data: dict[str, Any] = MISSING
    networks: Networks = MISSING
    loss: dict[str, Any] = MISSING
    penalty: dict[str, Any] = MISSING
    optim: dict[str, Any] = MISSING
    clip: Clip = MISSING
    regularize: Regularize = MISSING
    train: Train = MISSING
    seed: int = MISSING
    device: str = MISSING
    budget: str = MISSING
    run_dir: str | None = MISSING


@dataclass
class Sample:
    run: str | None = MISSING
    what: str = MISSING
    n: int = MISSING
    seed: int = MISSING
    out: str | None = MISSING
    device: str = MISSING


@dataclass
class Lipschitz:
    run: str | None = MISSING
    n: int = MISSING
    starts: int = MISSING
    ascent: int = MISSING
    seed: int = MISSING
    out: str | None = MISSING
    data_root: str | None = MISSING
    device: str = MISSING


@dataclass
class Reproduce:
    figure: dict[str, Any] = MISSING
    budget: str = MISSING
    seeds: list[int] = MISSING
    out: str | None = MISSING
    device: str = MISSING


@dataclass
class Benchmark:
    cases: list[str] = MISSING
    rounds: int = MISSING
    growth: bool = MISSING
    budget: str | None = MISSING
    smoke: bool = MISSING
    out: str | None = MISSING
    device: str = MISSING


def _budget(cpu: Any, paper: Any, *, _root_: DictConfig) -> Any:
    if _root_.budget not in BUDGETS:
        raise ValueError(f"budget = {_root_.budget}: must be one of {', '.join(BUDGETS)}")
    return {"cpu": cpu, "paper": paper}[_root_.budget]


OmegaConf.register_new_resolver("budget", _budget, replace=True)  # ${budget:1000,100000}: on a CPU, as in the paper
ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="sample_schema", node=Sample)
ConfigStore.instance().store(name="lipschitz_schema", node=Lipschitz)
ConfigStore.instance().store(name="reproduce_schema", node=Reproduce)
ConfigStore.instance().store(name="benchmark_schema", node=Benchmark)


def build(cfg: DictConfig, key: str, *arguments: Any, **more: Any) -> Any:
    """Call what cfg.<key>._target_ names with the other entries of cfg.<key> as keyword arguments.

    Raises:
        ValueError: it names something outside of TRUSTED, an argument is unknown or of another type, or the thing
            itself refuses a value. The message begins with the key.
    """
    given = OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)
    target = given.pop("_target_", None)
    trusted = TRUSTED[key.split(".")[0]]
    refused = f"{key}._target_ = {target}: only names under {' and '.join(trusted)} are built"
    if not isinstance(target, str) or not target.startswith(trusted):
        raise ValueError(refused)
    try:
        factory = pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{key}._target_ = {target}: there is no such name") from error
    if not callable(factory) or not f"{factory.__module__}.".startswith(trusted):  # wgangp.data.images.Path, say
        raise ValueError(refused)
    parameters = inspect.signature(factory).parameters
    settable = [name for name in list(parameters)[len(arguments) :] if name not in more]
    for name, value in given.items():
        if name not in settable:
            raise ValueError(f"{key}.{name} is unknown; {target} knows {', '.join(settable) or 'no keys'}")
        if not _fits(value, parameters[name].annotation):
            kind = getattr(parameters[name].annotation, "__name__", parameters[name].annotation)
            raise ValueError(f"{key}.{name} = {value!r}: must be of type {kind}")
    try:
        return factory(*arguments, **given, **more)
    except Exception as error:  # whatever torch raises for a bad value
        raise ValueError(f"{key}: {error}") from error


def objects(cfg: DictConfig) -> dict[str, Any]:
    """Everything that `train` takes first: data, players, optimisers, loss and penalty, on the device.

    Raises:
        ValueError: as in `build`; no such device; a penalty on a critic whose scores depend on each other.
    """
    device = device_of(local_device(cfg.device))
    check_precision(cfg.train.precision, device)
    loss, penalty = build(cfg, "loss"), build(cfg, "penalty")
    trial = build(cfg, "optim", [nn.Parameter(torch.zeros(1))])  # what is wrong is said before data is downloaded
    if not isinstance(trial, torch.optim.Optimizer) or isinstance(trial, torch.optim.LBFGS):
        raise ValueError(f"optim._target_ = {cfg.optim._target_}: must be an optimiser that steps without a closure")
    data = build(cfg, "data", device=device)
    generator, critic = networks(cfg, data.shape, device)
    if cfg.train.channels_last:
        for each in (generator, critic):
            each.to(memory_format=torch.channels_last)
    for name, split in (("batch_size", "train"), ("report_size", "train"), ("report_size", "heldout")):
        try:
            data.batch(0, cfg.train[name], cfg.seed, split)
        except ValueError as error:
            raise ValueError(f"train.{name}: {error}") from error
    if penalty.weight > 0:
        check_per_sample(critic, data.batch(0, 4, cfg.seed)[0])
    return {
        "generator": generator,
        "critic": critic,
        "optim_generator": build(cfg, "optim", generator.parameters()),
        "optim_critic": build(cfg, "optim", critic.parameters()),
        "data": data,
        "loss": loss,
        "penalty": penalty,
    }


def trained(
    folder: Path, device: torch.device, needed: tuple[str, ...]
) -> tuple[DictConfig, dict[str, nn.Module], dict[str, Any]]:
    """A run folder's config, the needed players ("generator", "critic"), and the rest of its newest checkpoint.

    Raises:
        ValueError: no run folder, nothing trained in it yet, or a player that its checkpoint does not hold.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run folder: it has no config.yaml")
    state = load_latest(folder / "checkpoints", device)
    if state is None:
        raise ValueError(f"{folder} has no checkpoint yet: train it first")
    cfg = OmegaConf.load(folder / "config.yaml")
    for name in needed:
        if name not in state or OmegaConf.select(cfg, f"networks.{name}") is None:
            raise ValueError(f"{folder} holds no {name}: give a run that scripts/train.py made, all of it")
    shape = tuple(state["shape"])
    players = {name: player(cfg, name, shape, device) for name in needed}
    for name in needed:
        try:
            players[name].load_state_dict(state[name])
        except RuntimeError as error:
            raise ValueError(f"the {name} in {folder}'s checkpoint is not that of its config.yaml: {error}") from error
    return cfg, players, state


def networks(cfg: DictConfig, shape: tuple[int, ...], device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Generator and critic for points of a shape."""
    players = player(cfg, "generator", shape, device), player(cfg, "critic", shape, device)
    if not hasattr(players[0], "latent_dim"):
        raise ValueError(f"networks.generator._target_ = {cfg.networks.generator._target_}: not a generator")
    return players


def player(cfg: DictConfig, name: str, shape: tuple[int, ...], device: torch.device) -> nn.Module:
    """The network of that name, with initial weights that are a function of the seed."""
    return initialised(partial(build, cfg, f"networks.{name}", shape), cfg.seed, name).to(device)


def train_options(cfg: DictConfig) -> dict[str, Any]:
    """The keyword arguments of `train`, checked: what is wrong is said before anything is built or written."""
    check_keys(cfg, Config)
    numbers = {"seed": cfg.seed} | {f"train.{name}": n for name, n in cfg.train.items() if type(n) is int}
    for key, value in numbers.items():
        least = 0 if key in ("seed", "train.steps") else 1
        if value < least:
            raise ValueError(f"{key} = {value}: must be >= {least}")
    if cfg.budget not in BUDGETS:
        raise ValueError(f"budget = {cfg.budget}: must be one of {', '.join(BUDGETS)}")
    if cfg.train.decay_steps is not None and cfg.train.decay_steps < cfg.train.steps:
        raise ValueError(
            f"train.decay_steps = {cfg.train.decay_steps}: the learning rate would be 0 from there to train.steps ="
            f" {cfg.train.steps}; raise it, or set it to null"
        )
    for name, bound in cfg.clip.items():
        if bound is not None and not 0 < bound < math.inf:
            raise ValueError(f"clip.{name} = {bound}: must be > 0 and finite, or null for no clipping")
    if not 0 <= cfg.regularize.gradient_norm < math.inf:
        raise ValueError(f"regularize.gradient_norm = {cfg.regularize.gradient_norm}: must be >= 0 and finite")
    return {
        **{key: value for key, value in cfg.train.items() if key not in ELSEWHERE},
        "seed": cfg.seed,
        "clip_weights": cfg.clip.weights,
        "clip_gradient_norm": cfg.clip.gradient_norm,
        "regularize_gradient_norm": cfg.regularize.gradient_norm,
        "config": OmegaConf.to_yaml(cfg, resolve=True),
    }


def check_keys(cfg: DictConfig, schema: type) -> None:
    """Raise ValueError for a key that the schema does not have: Hydra itself lets any pass behind a +."""
    try:
        if OmegaConf.missing_keys(cfg):
            raise ValueError(f"{', '.join(sorted(OmegaConf.missing_keys(cfg)))}: no value is given")
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(OmegaConf.to_container(cfg)))
    except OmegaConfBaseException as error:
        raise ValueError(f"the config has an unknown key or a bad value: {error}") from error


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is cuda where there is one, else cpu. ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device = {name}: not to be had here ({reason}). Use device=cpu or device=auto") from error
    return device


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a config's value is of the annotated type, for those types that a config can say."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if isinstance(value, str):
        return str in kinds
    if not all(kind in (int, float, str, bool, type(None)) for kind in kinds):
        return True  # not ours to judge: the callee does
    if type(value) is int:
        return int in kinds or float in kinds
    return type(value) in kinds
