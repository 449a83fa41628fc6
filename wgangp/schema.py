"""The keys and types of the configs, read from the signatures of the functions that take them."""

import difflib
import inspect
import keyword
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

__all__ = [
    "check_keys",
    "convert",
    "describe_key",
    "describe_type",
    "explain_key",
    "flatten_keys",
    "list_keys",
    "read_types",
    "register_schema",
    "suggest",
    "to_arguments",
]

WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
LARGEST = {int: 2**63 - 1, float: 3.4e38}  # what a 64-bit integer and a 32-bit float hold


def read_types(function: Callable[..., Any], *names: str) -> dict[str, Any]:
    """Return the annotated types of a function's parameters: of the named ones, or of all.

    A key of a config can be a keyword of Python, such as class. The parameter is then called class_.
    """
    hints = typing.get_type_hints(function)
    return {name.rstrip("_"): hints[name] for name in names or inspect.signature(function).parameters}


def register_schema(name: str, keys: dict[str, Any]) -> type:
    """Tell Hydra the keys and types of a config. A value that is itself a dict is a group of keys."""
    kinds = {
        key: register_schema(f"{name}_{key}", kind) if isinstance(kind, dict) else kind for key, kind in keys.items()
    }
    # Not make_dataclass: it refuses keywords of Python as names. No code is generated from the names of these fields.
    attributes = {"__annotations__": kinds} | {key: field(default=MISSING) for key in kinds}
    schema = dataclass(init=False, repr=False, eq=False)(type(name, (), attributes))
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    return schema


def check_keys(cfg: DictConfig, schema: type) -> None:
    """Raise ValueError for a key that the schema does not have (Hydra accepts every key after a +), for a key without
    a value, and for a value that is empty, not finite or too large.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg) | {f.name for f in fields(schema)} - set(cfg))
        if missing:
            raise ValueError(f"{', '.join(missing)}: no value is given. Add {missing[0]}=VALUE")
        _check_values(OmegaConf.to_container(cfg, resolve=True))
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(OmegaConf.to_container(cfg)))
    except InterpolationResolutionError as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except OmegaConfBaseException as error:
        raise ValueError(explain_key(schema, str(error.full_key))) from error


def to_arguments(cfg: DictConfig, schema: type) -> dict[str, Any]:
    """Check a config and return it as keyword arguments of the function that its schema was made from."""
    check_keys(cfg, schema)
    values = OmegaConf.to_container(cfg, resolve=True)
    return {f"{key}_" if keyword.iskeyword(key) else key: value for key, value in values.items()}


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
        nearest = difflib.get_close_matches(name, [other for other in names if other != group], n=1)
    return f". Did you mean {nearest[0]}?" if nearest else ""


def explain_key(schema: type, key: str) -> str:
    """Say in words that a schema does not have a key, or which values the key takes."""
    key = key.partition("[")[0]  # not the position in a list
    group, _, name = key.rpartition(".")
    siblings = list_keys(schema, group)
    if siblings is None or name in siblings:
        return f"{key} must be {describe_key(schema, key)}"
    if not siblings:
        return f"the config has no key {key}"
    hint = suggest(key, [f"{group}.{sibling}".lstrip(".") for sibling in siblings])
    return f"{key} is unknown; the keys of {group or 'the config'} are {', '.join(siblings)}{hint}"


def list_keys(schema: type, group: str) -> list[str] | None:
    """Return the keys of a group of a schema; None if it can have any: they are those of its _target_."""
    kind: Any = schema
    for name in group.split(".") if group else ():
        kind = {f.name: f.type for f in fields(kind)}.get(name) if is_dataclass(kind) else kind
    if is_dataclass(kind):
        return [f.name for f in fields(kind)]
    return None if typing.get_origin(kind) is dict else []


def flatten_keys(node: object, prefix: str = "") -> list[str]:
    """Return all keys of a config, as they are written in an override, without _target_."""
    items = node.items() if isinstance(node, dict) else ()
    pairs = [(f"{prefix}{name}", child) for name, child in items if name != "_target_"]
    return [key for name, child in pairs for key in (name, *flatten_keys(child, f"{name}."))]


def _check_values(node: Any, key: str = "") -> None:
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        _check_values(child, f"{key}.{name}".lstrip("."))
    if node == "":
        raise ValueError(f"{key} is empty: write a value, or null")
    largest = LARGEST.get(type(node))
    if largest is not None and not abs(node) <= largest:
        raise ValueError(f"{key} = {node}: must be finite, and not larger than {largest}")


def describe_key(schema: type, key: str) -> str:
    """Say in words which values the key of a schema takes."""
    kind: Any = schema
    for name in key.split("."):
        kind = {f.name: f.type for f in fields(kind)}.get(name, Any) if is_dataclass(kind) else Any
    if is_dataclass(kind):
        return f"a group of keys: {', '.join(f'{key}.{f.name}' for f in fields(kind))}"
    return describe_type(kind)


def describe_type(kind: Any) -> str:
    """Say in words which values of a config have a type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(k) for k in arguments if _can_express(k))
    if origin in (list, tuple):
        count = f"{len(arguments)} values" if origin is tuple and ... not in arguments else "values"
        return f"a list of {count}, each of them {describe_type(arguments[0])}"
    return WORDS.get(kind, "a group of keys" if origin is dict else "a value")


def convert(value: Any, kind: Any) -> Any:
    """Return a value of a config as its type: an integer becomes a float where a float is expected.

    A type that a config cannot express is not checked. TypeError if the value has another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [k for k in arguments if _can_express(k)] or [Any]
        for k in sorted(kinds, key=lambda k: k is not type(value)):
            with suppress(TypeError):
                return convert(value, k)
    elif origin in (list, tuple):
        kinds = (
            arguments
            if origin is tuple and ... not in arguments
            else arguments[:1] * (len(value) if isinstance(value, list) else 0)
        )
        if isinstance(value, list) and len(value) == len(kinds):
            return [convert(*pair) for pair in zip(value, kinds, strict=True)]
    elif kind is float and type(value) is int:
        return float(value)
    elif kind not in WORDS or type(value) is kind:
        return value
    raise TypeError


def _can_express(kind: Any) -> bool:
    return kind in WORDS or typing.get_origin(kind) in (list, tuple, dict)
