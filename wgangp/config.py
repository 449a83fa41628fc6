"""The only place where a config becomes objects.

A key of the config, the parameter of the function that takes it, and its entry in docs/config.md are one setting. The
keys and their types are read from the signatures of these functions.
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from wgangp.checkpoint import load_latest, load_step
from wgangp.data.stream import Unread
from wgangp.distributed import World, join_ranks, local_device
from wgangp.files import refuse_links
from wgangp.folders import load_run_config
from wgangp.match import load_state, require_owner
from wgangp.metrics.scores import Score, build_scores
from wgangp.optim import build_average
from wgangp.precision import check_precision
from wgangp.runs import Run, flatten_config, match_parts, select_computed
from wgangp.schema import check_keys, read_types, register_schema
from wgangp.seeds import initialize
from wgangp.targets import call_target
from wgangp.train import ALONE, Clip, train
from wgangp.trial import try_run

__all__ = [
    "BUDGETS",
    "CONF",
    "build",
    "build_networks",
    "build_run",
    "find_device",
    "load_run",
    "restore",
    "train_options",
    "train_scores",
]

# The configs: in an installed package inside of it, in a checkout beside it.
CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if path.is_dir())
TRUSTED = {  # the names that a config may build under each key, besides those of packages that the user trusts
    "data": ("wgangp.data.",),
    "networks": ("wgangp.networks.",),
    "loss": ("wgangp.losses.",),
    "penalty": ("wgangp.penalty.",),
    "optim": ("torch.optim.", "wgangp.optim."),
    "figure": ("wgangp.figures.",),
}
NEEDED = {  # attributes of what a config builds
    "data": ("shape", "span", "batch"),
    "networks.generator": ("latent_dim", "parameters"),
    "networks.critic": ("parameters",),
    "loss": ("critic", "generator", "critic_options"),
    "penalty": ("weight", "target", "draw"),
}
BUDGETS = ("cpu", "paper")


def load_run(
    folder: str | Path,
    *,
    device: str = "cpu",
    step: int | None = None,
    read_data: bool = False,
    trust: Sequence[str] = (),
) -> Run:
    """Load a trained run from its folder: networks, optimizers, data, loss, penalty and seed.

        generator = load_run("runs/toy").generator.eval()

    `.generator` has the weights after the last update, from which training continues. If the run has an average of them
    (ema.decay), samples are drawn with `.average.module`, a network like the generator; otherwise `.average` is None.
    Networks are in training mode, as after training. For the project's own networks both modes are equal.

    Args:
        folder: a folder that scripts/train.py wrote.
        device: cpu, cuda, cuda:1, ..., or auto.
        step: the step of the checkpoint to load. None: the newest.
        read_data: read the data set from its files, too. Data that is drawn (toy data) is always there. Otherwise
            run.data has the attributes shape and span, but no samples.
        trust: packages of your own that the run uses. Their code is called, so name only what you trust.

    Raises:
        ValueError: the folder is not a run folder, it has no checkpoint (of this step), or it needs a package that is
            not named.
    """
    return restore(Path(folder), find_device(device), step=step, read_data=read_data, trust=trust)[0]


def build_run(
    cfg: DictConfig,
    *,
    channels_last: bool = False,
    trust: Sequence[str] = (),
    objective: str | None = None,
    world: World = ALONE,
) -> Run:
    """Build the objects of a run from its config, on its device.

    Args:
        channels_last: store the weights of convolutions with the channels innermost.
        trust: as in `load_run`.
        objective: a name that the log must have.
        world: the ranks.

    Raises:
        ValueError: as in `build`; the device does not exist; networks, data, batch sizes and penalty do not fit; a
            first report or update fails; the log will have no number that is called objective.
    """
    device = find_device(local_device(cfg.device))
    check_precision(cfg.train.precision, device)
    for key in ("loss", "penalty"):
        build(cfg, key, trust=trust)
    _check_rates(cfg)
    trial = build(cfg, "optim", [nn.Parameter(torch.zeros(1))], trust=trust)  # errors come before the data is read
    if not isinstance(trial, torch.optim.Optimizer) or isinstance(trial, torch.optim.LBFGS):
        raise ValueError(f"optim._target_ = {cfg.optim._target_}: is no optimizer, or needs a closure. Use optim=adam")
    build_average(nn.Identity(), cfg.ema.decay)
    data = build(cfg, "data", trust=trust, device=device)
    assemble = partial(_assemble, cfg, data, device, trust, torch.channels_last if channels_last else None)
    try_run(assemble(), cfg, objective, world)
    return assemble()


def _assemble(
    cfg: DictConfig, data: Any, device: torch.device, trust: Sequence[str], layout: torch.memory_format | None = None
) -> Run:
    """Build a run on its data. layout: of the weights of convolutions in memory."""
    loss, penalty = (build(cfg, key, trust=trust) for key in ("loss", "penalty"))
    networks = build_networks(cfg, data.shape, device, trust)
    match_parts(*networks, loss, data)
    for network in networks if layout else ():
        network.to(memory_format=layout)
    optimizers = [build(cfg, "optim", network.parameters(), trust=trust) for network in networks]
    average = build_average(networks[0], OmegaConf.select(cfg, "ema.decay"))
    config = select_computed(flatten_config(cfg))
    return Run(*networks, *optimizers, data, loss, penalty, cfg.seed, average, config)


def _check_rates(cfg: DictConfig) -> None:
    """Raise ValueError for a number of the optimizer that no optimizer takes."""
    for name, value in OmegaConf.to_container(cfg.optim, resolve=True).items():
        numbers = [n for n in (value if isinstance(value, list) else [value]) if type(n) in (int, float)]
        least, bound = 0, 1 if name in ("betas", "alpha", "momentum") else float("inf")
        if not all(least <= n < bound for n in numbers):
            raise ValueError(f"optim.{name} = {value}: must be >= 0" + " and < 1" * (bound == 1))


def restore(
    folder: Path,
    device: torch.device,
    *,
    step: int | None = None,
    read_data: bool = False,
    data_root: str | None = None,
    trust: Sequence[str] = (),
) -> tuple[Run, int]:
    """Load a run folder; returns the run and the step of its checkpoint.

    Args:
        step: as in `load_run`.
        read_data, trust: as in `load_run`. The config in the folder cannot change them.
        data_root: the folder (for text, the file) where the data is now; None: where it was during training.

    Raises:
        ValueError: the folder is not a run folder, or has no checkpoint yet; no checkpoint is undamaged and fits its
            config and its data.
    """
    cfg = load_run_config(folder)
    refuse_links(folder)
    config = select_computed(flatten_config(cfg))
    place = next((name for name in ("root", "path") if name in cfg.data), None)
    if data_root is not None:
        if place is None:
            raise ValueError(
                f"data_root = {data_root}: the data of this run is drawn, not read from files. Leave out data_root="
            )
        cfg.data[place] = data_root

    @cache
    def read() -> Any:
        return build(cfg, "data", trust=trust, device=device)

    def fit(state: Any, step: int) -> tuple[Run, int]:
        require_owner(state, step, cfg.seed, config)
        run = _assemble(cfg, Unread(state) if place is not None and not read_data else read(), device, trust)
        return run, load_state(run, state, step)

    place_of, options = folder / "checkpoints", {"device": device, "fit": fit}
    loaded_run = load_latest(place_of, **options) if step is None else load_step(place_of, step, **options)
    if loaded_run is None:
        raise ValueError(f"{folder} has no checkpoint yet: train it first")
    return loaded_run


def build_networks(
    cfg: DictConfig, shape: tuple[int, ...], device: torch.device, trust: Sequence[str] = ()
) -> tuple[nn.Module, nn.Module]:
    """Build generator and critic for points of a shape. Their initial weights are a function of the seed."""
    generator, critic = (
        initialize(partial(build, cfg, f"networks.{name}", shape, trust=trust), cfg.seed, name).to(device)
        for name in ("generator", "critic")
    )
    return generator, critic


def build(cfg: DictConfig, key: str, *arguments: Any, trust: Sequence[str] = (), **keywords: Any) -> Any:
    """Call the function or class that cfg.<key>._target_ names, with the other entries of cfg.<key> as keywords.

    Args:
        arguments, keywords: further arguments, which the config cannot set.
        trust: packages whose names can be used besides those of TRUSTED.

    Raises:
        ValueError: as in `targets.call_target`; what is built does not have the attributes that are NEEDED.
    """
    node = OmegaConf.select(cfg, key)
    if not OmegaConf.is_dict(node):
        raise ValueError(f"{key}: must be a group of keys with a _target_")
    node = OmegaConf.to_container(node, resolve=True)
    trusted = TRUSTED[key.split(".")[0]] + tuple(f"{package}." for package in _check_packages(trust))
    value = call_target(node, key, trusted, arguments, keywords)
    missing = [name for name in NEEDED.get(key, ()) if not hasattr(value, name)]
    if missing:
        raise ValueError(
            f"{key}._target_ = {node.get('_target_')}: what it returns has no attribute {missing[0]}; needed are"
            f" {', '.join(NEEDED[key])}"
        )
    return value


def _check_packages(trust: Sequence[str]) -> Sequence[str]:
    packages = (trust,) if isinstance(trust, str) else trust
    for package in packages:
        if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
            raise ValueError(f"trust = {package!r}: must be a list of names of packages, as in trust=[my_package]")
    return packages


def train_options(cfg: DictConfig) -> dict[str, Any]:
    """Check the config and return the keyword arguments of `train`. Nothing is built or written before."""
    check_keys(cfg, SCHEMA)
    numbers = {"seed": cfg.seed} | {f"train.{name}": n for name, n in cfg.train.items() if type(n) is int}
    for key, value in numbers.items():
        least = 0 if key in ("seed", "train.steps") or (key, cfg.train.steps) == ("train.decay_steps", 0) else 1
        if value < least:
            raise ValueError(f"{key} = {value}: must be >= {least}")
    if cfg.budget not in BUDGETS:
        raise ValueError(f"budget = {cfg.budget}: must be one of {', '.join(BUDGETS)}")
    if cfg.train.decay_steps is not None and cfg.train.decay_steps < cfg.train.steps:
        raise ValueError(
            f"train.decay_steps = {cfg.train.decay_steps}: the learning rate would be 0 from this update to train.steps"
            f" = {cfg.train.steps}. Increase it, or set it to null"
        )
    weight = cfg.regularize.gradient_norm
    if not 0 <= weight < float("inf"):
        raise ValueError(f"regularize.gradient_norm = {weight}: must be >= 0 and finite")
    try:
        clip = Clip(**cfg.clip, on_nonfinite=cfg.train.on_nonfinite)
    except ValueError as error:
        group = "train" if str(error).startswith("on_nonfinite") else "clip"
        raise ValueError(f"{group}.{error}") from error
    keys = [key for key in cfg if key != "trust"]  # a folder does not say what to trust
    return {
        **{name: value for name, value in cfg.train.items() if name in TRAIN_KEYS},
        "clip": clip,
        "regularize_gradient_norm": weight,
        "config": OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, keys), resolve=True),
    }


def train_scores(cfg: DictConfig, run: Run) -> list[Score]:
    """Build the scores that a run is evaluated with during training: none without train.evaluate_every."""
    if cfg.train.evaluate_every is None:
        return []
    try:
        return build_scores(run, **OmegaConf.to_container(cfg.evaluate))
    except ValueError as error:
        raise ValueError(f"evaluate.{error}" if re.match(r"\w+ = ", str(error)) else str(error)) from error


def find_device(name: str, option: str = "device=") -> torch.device:
    """Return the device of this name. "auto" is cuda if there is a GPU, else cpu. ValueError if it does not exist.

    Args:
        option: how the user sets the device, for the message.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device = {name}: not available on this machine ({reason}). Use {option}cpu or {option}auto"
        ) from error
    return device


def _choose_budget(values: DictConfig, *, _root_: DictConfig) -> Any:
    if _root_.budget not in BUDGETS:
        raise ValueError(f"budget = {_root_.budget}: must be one of {', '.join(BUDGETS)}")
    return values[_root_.budget]


OmegaConf.register_new_resolver("budget", _choose_budget, replace=True)  # "${budget:{cpu: 1000, paper: 100000}}"

# Parameters of train that are no keys of the group train.
NOT_KEYS = ("folder", "run", "clip", "regularize_gradient_norm", "world", "config", "scores", "stop_signals")
TRAIN_KEYS = {name: kind for name, kind in read_types(train).items() if name not in (*NOT_KEYS, "return")}
FURTHER_KEYS = (  # of the group train, which other functions take
    read_types(Clip, "on_nonfinite") | read_types(build_run, "channels_last") | read_types(join_ranks, "rank_timeout")
)
SCHEMA = register_schema(
    "config",
    {
        "data": dict[str, Any],
        "networks": {"generator": dict[str, Any], "critic": dict[str, Any]},
        "loss": dict[str, Any],
        "penalty": dict[str, Any],
        "optim": dict[str, Any],
        "ema": read_types(build_average, "decay"),
        "clip": read_types(Clip, "weights", "gradient_norm"),
        "regularize": {"gradient_norm": read_types(train)["regularize_gradient_norm"]},
        "evaluate": {name: kind for name, kind in read_types(build_scores).items() if name not in ("run", "return")},
        "train": TRAIN_KEYS | FURTHER_KEYS,
        "seed": read_types(Run)["seed"],
        "device": str,
        "budget": str,
        "run_dir": str | None,
        "objective": str | None,
        "trust": list[str],
    },
)
