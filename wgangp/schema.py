"""The keys and types of the configs, read from the signatures of the functions that take them."""

import difflib
import inspect
import typing
from collections.abc import Callable
from dataclasses import field, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["check_keys", "read_types", "register_schema", "suggest", "to_arguments"]


def read_types(function: Callable[..., Any], *names: str) -> dict[str, Any]:
    """The annotated types of the parameters of a function; of those named, or of all."""
    hints = typing.get_type_hints(function)
    return {name: hints[name] for name in names or inspect.signature(function).parameters}


def register_schema(name: str, keys: dict[str, Any]) -> type:
    """Tell Hydra the keys and types of a config. A value that is itself a dict is a group of keys."""
    fields = [
        (key, register_schema(f"{name}_{key}", kind) if isinstance(kind, dict) else kind, field(default=MISSING))
        for key, kind in keys.items()
    ]
    schema = make_dataclass(name, fields)
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    return schema


def check_keys(cfg: DictConfig, schema: type) -> None:
    """Raise ValueError for a key that the schema does not have (Hydra accepts every key after a +), and for ???."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"{', '.join(missing)}: no value is given. Add {missing[0]}=VALUE")
    try:
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(OmegaConf.to_container(cfg)))
    except OmegaConfBaseException as error:
        key, reason = str(error.full_key), str(error).splitlines()[0]
        siblings = [".".join([*key.split(".")[:-1], name]) for name in _keys(error.parent_node)]
        hint = suggest(key, siblings)
        raise ValueError(f"the config has an unknown key or a wrong value: {key} ({reason}){hint}") from error


def to_arguments(cfg: DictConfig, schema: type) -> dict[str, Any]:
    """Check a config and return it as keyword arguments of the function that its schema was made from."""
    check_keys(cfg, schema)
    return OmegaConf.to_container(cfg, resolve=True)


def suggest(name: str, names: list[str]) -> str:
    """Return a sentence that suggests the nearest of the names; empty if none is near.

    The nearest is a similar key of the same group, else the same key of another group, else, if there is no such
    group, a similar name.
    """
    group, dot, key = name.rpartition(".")
    siblings = [other.rpartition(".")[2] for other in names if other.rpartition(".")[0] == group]
    same_key = [other for other in names if other.endswith(f".{key}")]
    nearest = [group + dot + other for other in difflib.get_close_matches(key, siblings, n=1)]
    nearest = nearest or difflib.get_close_matches(name, same_key, n=1, cutoff=0.0)
    if not nearest and not siblings:
        nearest = difflib.get_close_matches(name, names, n=1)
    return f". Did you mean {nearest[0]}?" if nearest else ""


def _keys(node: Any) -> list[str]:
    return list(node.keys()) if isinstance(node, DictConfig) else []
