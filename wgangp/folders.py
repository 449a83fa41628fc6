"""The folder of a run: its name, the lock on it, and its config.yaml, which others may have written."""

import io
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wgangp.files import UNFINISHED, name_file, read_file, refuse_links, remove_unfinished
from wgangp.runs import ADDED, find_differing_keys, flatten_config, select_computed

__all__ = ["claim_folder", "find_folder", "load_config", "load_run_config"]

LARGEST_CONFIG = 100_000  # bytes; those of this project have about 2,000
PARTS = ("data", "networks.generator", "networks.critic", "loss", "penalty", "optim")  # what a run is built from


def find_folder(root: Path, name: str, cfg: DictConfig) -> Path:
    """Return the folder of a run: root / name, or one of the same experiment that has the same config."""
    if not (root / name / "config.yaml").exists():
        for path in sorted(root.glob("*/config.yaml")):
            same_prefix = path.parent.name.split("+")[0] == name.split("+")[0]
            with suppress(Exception):  # a damaged file is no reason not to train another run
                # Reading YAML is slow, so the text is compared first.
                own_seed = f"seed: {cfg.seed}\n".encode()
                if same_prefix and own_seed in read_file(path, LARGEST_CONFIG) and not _compare(path, cfg):
                    return path.parent
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
            differ), a link leads out of it, or it holds something else. Nothing in the folder is changed.
        OSError: the file system refuses the lock. If it has no locks at all (flock gives ENOSYS), filelock warns, and
            the existence of .lock is the lock; after a kill it may have to be deleted.
    """
    config_path = folder / "config.yaml"
    before_config = (".lock", "config.yaml.tmp", UNFINISHED)  # of a run that was killed before it wrote its config
    others = [path for path in folder.glob("*") if not path.name.startswith(before_config)]
    if folder.is_dir() and not config_path.exists() and others:
        raise ValueError(f"{folder} is not empty and not a run folder (it has no config.yaml): choose another {key}=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be created ({error}): choose another {key}=") from error
    refuse_links(folder)  # before the lock, which would empty the file that a link leads to
    lock = FileLock(folder / ".lock")
    try:
        with name_file(folder / ".lock"):
            lock.acquire(timeout=timeout)
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another process: wait for it, or choose another {key}=") from error
    try:
        if config_path.exists() and (differing := _compare(config_path, cfg)):
            raise ValueError(
                f"{folder} belongs to another config:{''.join(differing)}"
                f"\nChoose another {key}=, or set these keys back"
            )
        remove_unfinished(folder, *(folder / name for name in ("checkpoints", "samples", "nonfinite")))
        yield
    finally:
        lock.release()


def _compare(config_path: Path, cfg: DictConfig) -> list[str]:
    """Return a line per key whose value changes a number and is not that of the saved config."""
    old, new = (select_computed(flatten_config(node)) for node in (load_config(config_path), cfg))

    def show(config: dict[str, Any], name: str) -> Any:
        return config.get(name, ADDED.get(name, "(no such key)"))

    return [
        f"\n  {name}: {show(old, name)} in the folder, {show(new, name)} now"
        for name in find_differing_keys([old, new])
    ]


def load_config(path: Path) -> DictConfig:
    """Load a config.yaml that others may have written. Nothing else is read, and no object is built.

    Raises:
        ValueError: the file cannot be read as a config; the message names the line. Aliases and interpolations are
            refused: this package writes none, and a few lines of them can stand for more than fits in memory.
    """
    text = read_file(path, LARGEST_CONFIG)
    try:
        lines = text.decode().split("\n")
        aliases = (token for token in (yaml.scan(text) if b"*" in text else ()) if isinstance(token, yaml.AliasToken))
        if (alias := next(aliases, None)) is not None:
            raise yaml.MarkedYAMLError(problem="it has an alias", problem_mark=alias.start_mark)
        if b"${" in text:
            number = next(i for i, line in enumerate(lines) if "${" in line)
            raise yaml.MarkedYAMLError(problem="it has ${...}", problem_mark=yaml.Mark("", 0, number, 0, None, None))
        cfg = OmegaConf.load(io.StringIO(text.decode()))
        return cfg if isinstance(cfg, DictConfig) else OmegaConf.create()
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ValueError(f"{path}{line}: the file is damaged ({reason}). Restore it from a copy of the run") from error


def load_run_config(folder: Path) -> DictConfig:
    """Load the config.yaml of a run folder, as `load_config`. ValueError, too, if the config is not one of a run."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    cfg = load_config(path)
    flat = flatten_config(cfg)
    if not {"seed", "data._target_"} <= flat.keys() or not OmegaConf.is_dict(cfg.get("data")):
        raise ValueError(f"{folder} is not a run folder: its config.yaml has no seed or no data._target_")
    bad = [key for key in (f"{name}._target_" for name in PARTS) if not isinstance(flat.get(key, ""), str)]
    if type(flat["seed"]) is not int or flat["seed"] < 0:
        bad.append("seed")
    if bad:
        raise ValueError(
            f"{path}: the file is damaged ({bad[0]} = {reprlib.repr(flat[bad[0]])}). Restore it from a copy of the run"
        )
    return cfg
