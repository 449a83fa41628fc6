"""How a command becomes a run folder: its name, and the right to write in it."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

__all__ = ["claim", "run_name"]

NOT_COMPUTED = (  # keys that say where, how long and how often, and do not change a number that is computed
    "run_dir",
    "device",
    "data.root",
    "data.heldout_root",
    "data.memory_gb",
    "data.workers",
    "train.rank_timeout",
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.lipschitz_every",
    "figure.data_root",
)
CAME_LATER = {  # keys that an older run folder does not have, with the value that changes nothing
    "penalty.autocast": False,
    "train.channels_last": False,
    "train.compile": False,
    "train.precision": "fp32",
    "train.sync_batch_norm": False,
}


def run_name(experiment: str | None, overrides: list[str]) -> str:
    """A readable name of a command: its experiment and its overrides, without those that change no number.

    Letters, digits and . - + _ alone, so that run=runs/NAME can be typed to Hydra and a shell without quotes.

    >>> run_name("mnist", ["experiment=mnist", "train.steps=10", "seed=3"])
    'mnist+seed-3'
    """
    named = sorted(o for o in overrides if o.lstrip("+~").split("=")[0] not in (*NOT_COMPUTED, "experiment"))
    name = "+".join([experiment or "toy", *named])
    readable = re.sub(r"[^\w.+]", "-", name)
    if len(readable) > 120:
        readable = readable[:100] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return readable


@contextmanager
def claim(folder: Path, cfg: DictConfig, key: str = "run_dir") -> Iterator[None]:
    """Have a run folder for this process and this config alone: make it, or find it made by the same config.

    Its config.yaml is written by who has it, when there is something to compute. key=FOLDER is what chose the folder.

    Raises:
        ValueError: another process has it, another config made it (the differing keys are named), or it holds
            something else. Nothing in it is touched then.
    """
    saved = folder / "config.yaml"
    begun = {".lock", "config.yaml.tmp"}  # all that a run leaves that died before its config was there
    if folder.is_dir() and not saved.exists() and any(path.name not in begun for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and no run folder (it has no config.yaml): choose another {key}=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error}): choose another {key}=") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another process: wait for it, or choose another {key}=") from error
    try:
        _check_same(saved, cfg, key)
        yield
    finally:
        lock.release()


def _check_same(saved: Path, cfg: DictConfig, key: str) -> None:
    """Raise ValueError, with the differing keys, when a saved config computes something else."""
    if saved.exists():
        old, new = CAME_LATER | _computed(OmegaConf.load(saved)), _computed(cfg)
        old = {name: value for name, value in old.items() if name in new or name not in CAME_LATER}
        missing = "(no such key)"
        differing = [
            f"\n  {name}: {old.get(name, missing)} there, {new.get(name, missing)} now"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)  # a key that came later is null where it changes nothing
        ]
        if differing:
            raise ValueError(
                f"{saved.parent} belongs to another config:{''.join(differing)}"
                f"\nChoose another {key}=, or set these back"
            )


def _computed(cfg: DictConfig) -> dict[str, Any]:
    """The config as flat keys, without those that do not change what is computed."""

    def flat(node: Any, prefix: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {k: v for name, child in node.items() for k, v in flat(child, f"{prefix}.{name}").items()}
        return {prefix.lstrip("."): node}

    everything = flat(OmegaConf.to_container(cfg, resolve=True), "")
    return {k: v for k, v in everything.items() if k not in (*NOT_COMPUTED, "budget")}  # what it stands for is in there
