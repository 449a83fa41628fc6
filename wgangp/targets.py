"""Which names a config may call: those of this project, of packages that the user trusts, and Hydra's own.

A config that somebody else wrote must not call os.system. Hydra's instantiate would do this.
"""

import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wgangp.schema import convert, describe_type, suggest

__all__ = ["FOLDERS", "call_target", "check_folder", "check_hydra", "check_settings", "resolve_target"]

FOLDERS = {  # settings of Hydra that would move files, with the values that move none
    "hydra.job.chdir": (None, False),
    "hydra.run.dir": (".",),
    "hydra.sweep.subdir": (".",),
    "hydra.output_subdir": (None,),
}
# Launchers and sweepers, those of installed plugins, too, and what the sweeper of optuna is configured with.
HYDRA = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.")
LOGGING = ("logging.StreamHandler", "colorlog.ColoredFormatter")  # of Hydra's own choices
LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"  # the only one that Hydra may write, with a plain name
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
WRITERS = ("wgangp.data.download",)  # modules that write files: a config must not choose which


def resolve_target(target: Any, key: str, trusted: tuple[str, ...], can_trust: bool = True) -> Callable[..., Any]:
    """Return the class or function that a name in a config stands for.

    Args:
        key: the key of the name, with which every message begins.
        trusted: prefixes, each with a dot at its end, of the names that can be used. What a name stands for must be
            defined under one of them, too: `package.os.system` is not.
        can_trust: trust=[package] would help, so that the message says it.

    Raises:
        ValueError: the name is not trusted, does not exist, or cannot be imported.
    """
    choice = f"{key} = {target}"
    message = f"{choice}: only names under {' and '.join(trusted)} can be used"
    package = str(target).partition(".")[0]
    if not isinstance(target, str) or not target.startswith(trusted):
        offer = f". If you trust the package {package}, add trust=[{package}] to the command line, every time"
        own = package.isidentifier() and package not in ("None", "torch", "wgangp", *sys.stdlib_module_names)
        raise ValueError(message + offer * (own and can_trust))
    try:
        factory = pkgutil.resolve_name(target)
    except AttributeError as error:
        raise ValueError(f"{choice}: this name does not exist") from error
    except Exception as error:  # the import of a package can raise anything
        raise ValueError(
            f"{choice}: {package} cannot be imported ({type(error).__name__}: {error}). Install it, or add its folder"
            " to the environment variable PYTHONPATH"
        ) from error
    module = getattr(factory, "__module__", None)
    callable_there = inspect.isclass(factory) or inspect.isfunction(factory)
    if not callable_there or not f"{module}.".startswith(trusted) or module in WRITERS:
        raise ValueError(f"{message}, and only classes and functions that are defined there")
    return factory


def call_target(
    node: dict[str, Any], key: str, trusted: tuple[str, ...], arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    """Call the class or function that node["_target_"] names, with the other entries of the node as keywords.

    An entry that has a _target_ of its own is called first, under the same conditions.

    Args:
        key: the key of the node, with which every message begins.
        trusted: as in `resolve_target`.
        arguments, keywords: further arguments, which the node cannot set.

    Raises:
        ValueError: as in `resolve_target`; a key is unknown or missing; a value has another type; the call fails.
    """
    entries = dict(node)
    target = entries.pop("_target_", None)
    factory = resolve_target(target, f"{key}._target_", trusted)
    parameters = list(inspect.signature(factory).parameters.values())[len(arguments) :]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    settable = {p.name: p for p in parameters if p.kind in named_kinds and p.name not in keywords}
    for name, value in entries.items():
        if name not in settable and (name in keywords or not takes_all):
            raise ValueError(
                f"{key}.{name} is unknown; the keys of {target} are {', '.join(settable) or 'none'}"
                + suggest(name, list(settable))
            )
        kind = settable[name].annotation if name in settable else Any
        try:
            nested = _call_nested(value, f"{key}.{name}", trusted)
            entries[name] = convert(nested, kind) if type(nested) is type(value) else nested
        except TypeError as error:
            raise ValueError(f"{key}.{name} = {value!r}: must be {describe_type(kind)}") from error
    for name, parameter in settable.items():
        if parameter.default is parameter.empty and name not in entries:
            raise ValueError(f"{key}.{name}: no value is given, and {target} needs one")
    try:
        return factory(*arguments, **entries, **keywords)
    except Exception as error:  # torch raises many types for a bad value
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{key}: {reason}") from error


def _call_nested(value: Any, key: str, trusted: tuple[str, ...]) -> Any:
    if isinstance(value, dict) and "_target_" in value:
        return call_target(value, key, trusted, (), {})
    if isinstance(value, dict):
        return {name: _call_nested(child, f"{key}.{name}", trusted) for name, child in value.items()}
    return [_call_nested(child, key, trusted) for child in value] if isinstance(value, list) else value


@contextmanager
def check_hydra() -> Iterator[None]:
    """Check Hydra's own settings in every config that Hydra composes in the with block, before it uses any of them.

    Raises:
        ValueError: as in `check_settings`; hydra.searchpath names a package, which Hydra would import. Hydra has called
            nothing and created no folder.
    """
    compose, find_sources = ConfigLoaderImpl.load_configuration, CachingConfigRepository.initialize_sources

    def check_and_find(repository: CachingConfigRepository, search_path: ConfigSearchPath) -> None:
        for entry in search_path.get_path():
            scheme, separator, _ = entry.path.partition("://")
            if "searchpath" in entry.provider and separator and scheme != "file":
                raise ValueError(f"hydra.searchpath: {entry.path} is no folder of configs. Write file:// and its path")
        find_sources(repository, search_path)

    def compose_and_check(*arguments: Any, **keywords: Any) -> DictConfig:
        cfg = compose(*arguments, **keywords)
        check_settings(cfg.hydra)
        return cfg

    ConfigLoaderImpl.load_configuration, CachingConfigRepository.initialize_sources = compose_and_check, check_and_find
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration, CachingConfigRepository.initialize_sources = compose, find_sources


def check_settings(node: DictConfig) -> None:
    """Raise ValueError for settings of Hydra that can run code which is not Hydra's own, or that make it fail.

    Args:
        node: hydra, a group of the composed config. Hydra calls what is named by _target_, and, in the settings of
            logging, by class and by (); it imports what is named by ext://.
    """
    if not isinstance(verbose := node.get("verbose"), bool | str | ListConfig):
        raise ValueError(f"hydra.verbose = {verbose}: must be true, false, the name of a logger or a list of names")
    for key, value in _walk(node, "hydra"):
        name = key.rpartition(".")[2]
        if key == f"hydra.job.env_set.{name}" and str(value) != os.environ.get(name):  # env_copy copies equal ones here
            raise ValueError(f"{key} = {value}: variables such as PATH choose the programs that run. Use the shell")
        if name == "_target_":
            resolve_target(value, key, HYDRA, can_trust=False)
        elif "_logging." in key and name in ("class", "()") and value not in LOGGING:
            if value != "logging.FileHandler" or not _is_log_of_hydra(node, key):
                raise ValueError(f"{key} = {value}: must be one of {', '.join(LOGGING)}")
        elif isinstance(value, str) and value.startswith("ext://") and value not in STREAMS:
            raise ValueError(f"{key} = {value}: must be one of {', '.join(STREAMS)}")


def _is_log_of_hydra(node: DictConfig, key: str) -> bool:
    """Return whether the handler with this class writes the log file that Hydra writes without any settings."""
    handler = OmegaConf.select(node, key.removeprefix("hydra.").rpartition(".")[0])
    file, job_name = handler._get_node("filename"), OmegaConf.select(node, "job.name", default="")
    appends = handler.get("mode", "a") == "a"  # "w" would empty a file of this name
    return file is not None and file._value() == LOG_FILE and "/" not in str(job_name) and appends


def check_folder(key: str, value: Any) -> None:
    """Raise ValueError if a setting of Hydra, one of FOLDERS, would move files."""
    if value not in FOLDERS[key]:
        raise ValueError(f"{key} = {value}: Hydra does not choose the folders of this project. Use run_dir= or out=")


def _walk(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a config, those of groups, too. What is not known yet is yielded as ${...}."""
    yield key, node
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    for name in node if isinstance(node, DictConfig) else range(len(node)):
        try:
            child = node[name]
        except OmegaConfBaseException:
            child = str(node._get_node(name)._value())
        yield from _walk(child, f"{key}.{name}")
