"""A run: the objects that it consists of, what of them is saved, the name of its folder, and the lock on its folder."""

import hashlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim.swa_utils import AveragedModel
from yaml import YAMLError

from wgangp.data.images import Images, Streamed
from wgangp.data.stacked import StackedImages
from wgangp.data.stream import Unread
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty

__all__ = [
    "Run",
    "choose_generator",
    "claim_folder",
    "collect_stateful",
    "find_differing_keys",
    "find_folder",
    "format_value",
    "match_parts",
    "normalize_overrides",
    "read_config",
    "run_name",
    "select_computed",
]


@dataclass(frozen=True)
class Run:
    """The objects of one training run.

    generator          (z, *y) -> samples (B, *), with the attribute latent_dim
    critic             (x, *y) -> scores (B,)
    optim_generator    the optimizer of the generator's parameters
    optim_critic       the optimizer of the critic's parameters
    data               batch(k, size, seed, split, purpose) -> (x,) or (x, y), .shape, .span: see wgangp/data
    loss, penalty      what the networks minimize
    seed               every random draw is a function of it, the step and the purpose
    average            None, or the moving average of the generator's weights: `average.module` is then the network that
                       samples are drawn with
    """

    generator: nn.Module
    critic: nn.Module
    optim_generator: torch.optim.Optimizer
    optim_critic: torch.optim.Optimizer
    data: Any
    loss: Wasserstein
    penalty: GradientPenalty
    seed: int
    average: AveragedModel | None = None


def choose_generator(run: Run) -> nn.Module:
    """Return the network that samples are drawn with: the averaged generator if the run has one, else the generator."""
    return run.generator if run.average is None else run.average.module


def collect_stateful(run: Run) -> dict[str, Any]:
    """Return what a checkpoint holds of a run, by name: objects with state_dict() and load_state_dict()."""
    names = ("generator", "critic", "optim_generator", "optim_critic", "average")
    return {name: getattr(run, name) for name in names if getattr(run, name) is not None}


def match_parts(generator: nn.Module, critic: nn.Module, loss: Any, data: Any) -> None:
    """Let the data yield what the networks take: values in the generator's span, and labels if they have classes.

    Data that was not read (Unread) stays as it is.

    Raises:
        ValueError: the numbers of classes are not equal; the data's labels cannot be used; the critic does not take the
            keyword arguments of the loss.
    """
    parameters = inspect.signature(critic.forward).parameters.values()
    options = set() if any(p.kind is p.VAR_KEYWORD for p in parameters) else set(loss.critic_options)
    if missing := sorted(options - {p.name for p in parameters}):
        raise ValueError(
            f"the loss {type(loss).__name__} calls the critic with {missing[0]}=, which the forward of"
            f" {type(critic).__name__} does not take: choose networks= that do, or another loss="
        )
    if isinstance(data, Unread):
        return
    if isinstance(data, Images | StackedImages | Streamed):
        data.span = getattr(generator, "span", data.span)
    generator_classes, critic_classes = (getattr(network, "classes", 0) for network in (generator, critic))
    if generator_classes == critic_classes == 0:
        return
    if problem := getattr(data, "label_problem", ""):
        raise ValueError(f"the networks have classes, but {problem}")
    data_classes = getattr(data, "classes", 0)
    if not generator_classes == critic_classes == data_classes:
        raise ValueError(
            f"the generator has {generator_classes} classes, the critic {critic_classes} and the data {data_classes}:"
            " these numbers must be equal. "
            + (
                f"Set networks.generator.classes={data_classes} networks.critic.classes={data_classes}"
                if data_classes > 1
                else "The data has no labels: choose networks without classes, or other data="
            )
        )
    data.labeled = True


NOT_COMPUTED = (  # keys that say where, how long and how often. They do not change a computed number
    "run_dir",
    "objective",
    "trust",
    "device",
    "data.root",
    "data.path",
    "data.heldout_root",
    "data.memory_gb",
    "data.workers",
    "train.rank_timeout",
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.lipschitz_every",
    "train.evaluate_every",
    "evaluate.scores",
    "evaluate.n",
    "evaluate.seed",
    "evaluate.reference",
    "evaluate.weights",
    "evaluate.classifier",
    "figure.data_root",
)
ADDED = {  # keys that older run folders do not have, with the value that changes no number
    "ema.decay": None,
    "penalty.autocast": False,
    "train.accumulate": 1,
    "train.channels_last": False,
    "train.compile": False,
    "train.precision": "fp32",
    "train.sync_batch_norm": False,
}
MOVED = {"wgangp.gradients.NormalizedGradientDescent": "wgangp.optim.NormalizedGradientDescent"}  # old name -> new name


def run_name(experiment: str | None, overrides: list[str]) -> str:
    """Return a readable name for a command: its experiment, and the overrides that change a computed number.

    train.steps is not in the name, because a longer run continues a shorter one. If the learning rates decay until
    train.steps, which is another run, train.decay_steps is in the name (see `normalize_overrides`).

    The name has only letters, digits and . - + _, so that run=runs/NAME needs no quotes in a shell or in Hydra.

    >>> run_name("mnist", ["experiment=mnist", "train.steps=10", "seed=3"])
    'mnist+seed-3'
    """
    kept = sorted(o for o in overrides if o.lstrip("+~").split("=")[0] not in (*NOT_COMPUTED, "experiment"))
    name = "+".join([experiment or "toy", *kept])
    readable = re.sub(r"[^\w.+]", "-", name)
    if len(readable) > 120:
        readable = readable[:100] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return readable


def normalize_overrides(overrides: list[str], cfg: DictConfig) -> list[str]:
    """Return Hydra overrides with the values that the config has: 1e-3, 0.001 and ++ give the same text.

    An override of train.steps gives two texts, if train.decay_steps is equal to it by default.
    """
    texts = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        key, value = override.get_key_element().lstrip("+"), OmegaConf.select(cfg, override.key_or_group)
        if override.is_delete():
            texts[key] = override.input_line
        else:
            text = override.get_value_element_as_str() if OmegaConf.is_dict(value) else format_value(value)
            texts[key] = f"{key}={text}"
    decay_steps = OmegaConf.to_container(cfg.train, resolve=False)["decay_steps"]
    if "train.steps" in texts and decay_steps == "${train.steps}":
        texts["train.decay_steps"] = f"train.decay_steps={cfg.train.steps}"
    return list(texts.values())


def format_value(value: Any) -> str:
    """Return a value of a config as it is written in an override."""
    if OmegaConf.is_list(value) or isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def find_folder(root: Path, name: str, former_prefix: str, cfg: DictConfig) -> Path:
    """Return the folder of a run: root / name, or one that exists under another name and has the same config.

    Args:
        former_prefix: the first part of the names that earlier versions gave to such runs. Names of other experiments
            are not looked at.
    """
    if not (root / name / "config.yaml").exists():
        for saved in sorted(root.glob("*/config.yaml")):
            same_prefix = saved.parent.name.split("+")[0] in (name.split("+")[0], former_prefix)
            # Reading YAML is slow, so the text is compared first.
            if same_prefix and f"seed: {cfg.seed}\n" in saved.read_text():
                with suppress(Exception):  # a damaged file is no reason not to train another run
                    if not _compare(saved, cfg):
                        return saved.parent
    return root / name


@contextmanager
def claim_folder(folder: Path, cfg: DictConfig, key: str = "run_dir", timeout: float = 0.0) -> Iterator[None]:
    """Lock a run folder for this process and this config. The folder is created if it does not exist.

    The caller writes config.yaml.

    Args:
        key: the config key that chose the folder, for messages.
        timeout: seconds to wait for another process that holds the lock.

    Raises:
        ValueError: another process holds the lock, another config created the folder (the message names the keys that
            differ), or the folder holds something else. Nothing in the folder is changed.
    """
    saved = folder / "config.yaml"
    before_config = {".lock", "config.yaml.tmp"}  # the only files of a run that was killed before it wrote its config
    if folder.is_dir() and not saved.exists() and any(path.name not in before_config for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and not a run folder (it has no config.yaml): choose another {key}=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be created ({error}): choose another {key}=") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another process: wait for it, or choose another {key}=") from error
    try:
        _check_same(saved, cfg, key)
        yield
    finally:
        lock.release()


def _check_same(saved: Path, cfg: DictConfig, key: str) -> None:
    """Raise ValueError, with the keys that differ, if the saved config computes something else."""
    if saved.exists() and (differing := _compare(saved, cfg)):
        raise ValueError(
            f"{saved.parent} belongs to another config:{''.join(differing)}"
            f"\nChoose another {key}=, or set these keys back"
        )


def _compare(saved: Path, cfg: DictConfig) -> list[str]:
    """Return a line per key whose value changes a number and is not that of the saved config."""
    old, new = (select_computed(_flatten(node)) for node in (OmegaConf.load(saved), cfg))

    def show(config: dict[str, Any], name: str) -> Any:
        return config.get(name, ADDED.get(name, "(no such key)"))

    return [
        f"\n  {name}: {show(old, name)} in the folder, {show(new, name)} now"
        for name in find_differing_keys([old, new])
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """Return the saved config of a run folder as flat keys, for example optim.lr. No object is built.

    Raises:
        ValueError: the folder is not a run folder; its config.yaml cannot be read (the message names the line).
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    try:
        config = _flatten(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ValueError(f"{path}{line}: the file is damaged ({reason}). Restore it from a copy of the run") from error
    if not {"seed", "data._target_"} <= config.keys():
        raise ValueError(f"{folder} is not a run folder: its config.yaml has no seed or no data._target_")
    return config


def find_differing_keys(configs: list[dict[str, Any]]) -> list[str]:
    """Return the keys, sorted, whose values are not the same in all of the flat configs.

    A key that a config does not have has its value in ADDED, or null: it was added later and changes nothing.
    """

    def differs(name: str) -> bool:
        first, *others = (config.get(name, ADDED.get(name)) for config in configs)
        return any(value != first for value in others)

    return sorted(filter(differs, {name for config in configs for name in config}))


def select_computed(config: dict[str, Any]) -> dict[str, Any]:
    """Return a flat config without the keys that do not change a computed number."""
    # The values that budget chose are in the config.
    return {name: value for name, value in config.items() if name not in (*NOT_COMPUTED, "budget")}


def _flatten(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as flat keys, with the names of this version."""

    def flatten(node: Any, prefix: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {k: v for name, child in node.items() for k, v in flatten(child, f"{prefix}.{name}").items()}
        return {prefix.lstrip("."): MOVED.get(node, node) if isinstance(node, str) else node}

    return flatten(OmegaConf.to_container(cfg, resolve=True), "")
