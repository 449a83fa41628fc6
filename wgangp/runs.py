"""A run: the objects that it consists of, what of them is saved, its name, and which config keys change a number."""

import hashlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim.swa_utils import AveragedModel

from wgangp.data.images import Images, Streamed
from wgangp.data.stream import Unread
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty

__all__ = [
    "ADDED",
    "Run",
    "choose_generator",
    "collect_state",
    "collect_stateful",
    "expects_slope",
    "find_differing_keys",
    "flatten_config",
    "format_value",
    "match_parts",
    "normalize_overrides",
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
    config             None, or the keys of the config that change a number, flat; they say whose a checkpoint is
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
    config: dict[str, Any] | None = None


def expects_slope(run: Run) -> bool:
    """Return whether 1 + W1 / (2 lambda) is the slope of an optimal critic: with Wasserstein loss and target 1."""
    loss = getattr(run.loss, "loss", run.loss)  # of AC-GAN
    return isinstance(loss, Wasserstein) and run.penalty.weight > 0 and run.penalty.target == 1


def choose_generator(run: Run) -> nn.Module:
    """Return the network that samples are drawn with: the averaged generator if the run has one, else the generator."""
    return run.generator if run.average is None else run.average.module


def collect_stateful(run: Run) -> dict[str, Any]:
    """Return what a checkpoint holds of a run, by name: objects with state_dict() and load_state_dict()."""
    names = ("generator", "critic", "optim_generator", "optim_critic", "average")
    return {name: getattr(run, name) for name in names if getattr(run, name) is not None}


def collect_state(run: Run, step: int, counts: dict[str, int] | None = None) -> tuple[dict[str, Any], set[str]]:
    """Return what a checkpoint holds, and the names of the buffers in it.

    Args:
        counts: further numbers, by name. Those that are 0 are left out.
    """
    plain = {  # torch.load refuses numbers of numpy
        name: [value.item() if hasattr(value, "item") else value for value in getattr(run.data, name)]
        for name in ("shape", "span")
    }
    data = {**plain, "data": getattr(run.data, "fingerprint", "")}
    networks = {"generator": run.generator, "critic": run.critic}
    networks |= {} if run.average is None else {"average": run.average}
    buffers = {f"state[{key!r}][{name!r}]" for key, network in networks.items() for name, _ in network.named_buffers()}
    data |= {"symbols": list(run.data.symbols)} if hasattr(run.data, "symbols") else {}
    data |= {"identity": {"seed": run.seed, "config": run.config}}
    data |= {name: count for name, count in (counts or {}).items() if count}
    return {"step": step, **data, **{name: part.state_dict() for name, part in collect_stateful(run).items()}}, buffers


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
    if isinstance(data, Images | Streamed):
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
    "train.on_nonfinite",
    "evaluate.scores",
    "evaluate.n",
    "evaluate.seed",
    "evaluate.reference",
    "evaluate.weights",
    "evaluate.classifier",
    "figure.data_root",
)
ADDED = {  # keys that older run folders do not have, with the value that changes no number, if it is not null
    "networks.critic.plain_first": False,
    "networks.generator.upsample_second": False,
    "penalty.autocast": False,
    "train.accumulate": 1,
    "train.channels_last": False,
    "train.compile": False,
    "train.precision": "fp32",
    "train.sync_batch_norm": False,
}


def run_name(experiment: str | None, overrides: list[str]) -> str:
    """Return a readable name for a command: its experiment, and the overrides that change a computed number.

    train.steps is not in the name, because a longer run continues a shorter one. If the learning rates decay until
    train.steps, which is another run, train.decay_steps is in the name (see `normalize_overrides`).

    The name has only letters, digits and . - + _, so that run=runs/NAME needs no quotes in a shell or in Hydra.

    >>> run_name("mnist", ["experiment=mnist", "train.steps=10", "seed=3"])
    'mnist+seed-3'
    """
    parts = sorted(o for o in overrides if o.lstrip("+~").split("=")[0] not in (*NOT_COMPUTED, "experiment"))
    name = "+".join([experiment or "toy", *parts])
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


def flatten_config(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as flat keys."""

    def flatten(node: Any, prefix: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {k: v for name, child in node.items() for k, v in flatten(child, f"{prefix}.{name}").items()}
        return {prefix.lstrip("."): node}

    return flatten(OmegaConf.to_container(cfg, resolve=True), "")
