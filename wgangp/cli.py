"""The command line: `python scripts/NAME.py` in a checkout, `wgangp NAME` or `python -m wgangp NAME` when installed.

Every command is a Hydra application. It checks its config, calls one function of this package with it, and turns the
errors that a user can fix into one message. HYDRA_FULL_ERROR=1 shows the traceback of every error.
"""

import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from wgangp import config
from wgangp.analysis import analyze
from wgangp.compare import compare, convert_folders
from wgangp.distributed import join_ranks, local_device
from wgangp.evaluate import evaluate
from wgangp.figures.overview import list_figures
from wgangp.figures.study import reproduce
from wgangp.files import explain_error
from wgangp.folders import claim_folder, find_folder
from wgangp.help import explain_keys, list_choices
from wgangp.logs import read_metrics
from wgangp.progress import say
from wgangp.runs import normalize_overrides, run_name
from wgangp.sample import sample
from wgangp.schema import explain_key, flatten_keys, list_keys, read_types, register_schema, suggest, to_arguments
from wgangp.targets import FOLDERS, check_folder, check_hydra
from wgangp.train import train

__all__ = ["COMMANDS", "main"]


def _read_keys(function: Callable[..., Path]) -> dict[str, Any]:
    """Return the keys and types of a command, without the name of a figure: it is the choice figure=NAME."""
    special = {"trust": list[str], "figure": dict[str, Any]}
    return {key: special.get(key, kind) for key, kind in read_types(function).items() if key != "name"}


FUNCTIONS = {"sample": sample, "lipschitz": analyze, "evaluate": evaluate, "compare": compare, "reproduce": reproduce}
SCHEMAS = {name: register_schema(name, _read_keys(function)) for name, function in FUNCTIONS.items()}
SCHEMAS |= {"config": config.SCHEMA}
OPTIMIZERS = ("ax", "nevergrad", "optuna")  # choices of hydra/sweeper that need a number from every job
NONE = {  # what to write in place of null or ~
    "clip": "clip.weights=null clip.gradient_norm=null",
    "experiment": "nothing, or ~experiment",
    "penalty": "penalty=none",
    "regularize": "regularize.gradient_norm=0",
}


def run_train(cfg: DictConfig) -> float | None:
    """Train, or continue a run: scripts/train.py. Exits with status 128 + N if signal N stopped the run.

    Returns:
        the number that cfg.objective names, from the last line of the log; None without an objective.
    """
    hydra_config = HydraConfig.get()
    options = config.train_options(cfg)
    if hydra_config.runtime.choices.get("hydra/sweeper") in OPTIMIZERS and cfg.objective is None:
        raise ValueError("objective = null: this sweeper optimizes a number. Name it, as in objective=wasserstein")
    experiment, config_name = hydra_config.runtime.choices.get("experiment"), hydra_config.job.config_name
    own_config = [] if config_name == "config" else [config_name.removesuffix(".yaml")]
    prefix = "+".join([*own_config, *([experiment] if experiment else [])])
    name = run_name(prefix, normalize_overrides(OmegaConf.to_container(hydra_config.overrides.task), cfg))
    folder = Path(cfg.run_dir) if cfg.run_dir else find_folder(Path("runs"), name, cfg)
    with join_ranks(config.find_device(local_device(cfg.device)), cfg.train.rank_timeout) as world:
        sizes = {name: cfg.train[name] for name in ("batch_size", "generator_batch_size")}
        compiled_norm = cfg.train.sync_batch_norm and cfg.train.compile
        world.check(sizes, cfg.regularize.gradient_norm, compiled_norm, cfg.train.accumulate)
        with world.first_before_others():  # the first rank may download the data
            own = {"trust": cfg.trust, "objective": cfg.objective, "world": world}
            run = config.build_run(cfg, channels_last=cfg.train.channels_last, **own)
            scores = config.train_scores(cfg, run) if world.first else []
        with claim_folder(folder, cfg) if world.first else nullcontext():
            if world.first:
                say(f"run folder: {folder}")
                if summary := getattr(run.data, "summary", ""):
                    say(f"data: {summary}")
            stop_signals: list[int] = []
            step = train(folder, run, **options, scores=scores, stop_signals=stop_signals, world=world)
    if step < options["steps"]:
        if world.first:
            say(f"stopped at step {step} of {options['steps']}; the same command continues from there")
        sys.exit(128 + (stop_signals or [signal.SIGTERM])[0])  # as a shell reports it; a sweep ends, too
    if not world.first:
        return None
    say(f"finished: {step} generator updates" + " of the small version, budget=cpu" * (cfg.budget == "cpu"))
    newest = max((folder / "samples").glob("[0-9]*"), default=None)
    if newest is not None:
        say(f"samples: {newest}\ncurves:  {folder / 'curves.png'}")
    if cfg.objective is None:
        return None
    last = read_metrics(folder / "metrics.jsonl")[-1]
    if cfg.objective not in last:
        raise ValueError(f"objective = {cfg.objective}: the last line of {folder / 'metrics.jsonl'} does not have it")
    return last[cfg.objective]


def call(name: str, cfg: DictConfig) -> None:
    """Call the function of scripts/NAME.py, and print its result."""
    print(FUNCTIONS[name](**to_arguments(cfg, SCHEMAS[name])))


def run_compare(cfg: DictConfig) -> None:
    """Compare run folders: scripts/compare.py. Prints the page with the tables, and its folder."""
    folder = compare(**to_arguments(cfg, SCHEMAS["compare"]))
    print(f"{(folder / 'README.md').read_text()}\n{folder}")


def run_reproduce(cfg: DictConfig) -> None:
    """Reproduce a figure: scripts/reproduce.py. Prints the folder with the results."""
    arguments = to_arguments(cfg, SCHEMAS["reproduce"]) | {"figure": config.build(cfg, "figure")}
    try:
        print(reproduce(name=HydraConfig.get().runtime.choices["figure"], **arguments))
    except KeyboardInterrupt:
        print("stopped; the same command continues from there")
        sys.exit(130)


COMMANDS = {  # name -> its config in conf/, its function
    "train": ("config", run_train),
    **{name: (name, partial(call, name)) for name in ("sample", "lipschitz", "evaluate")},
    "compare": ("compare", run_compare),
    "reproduce": ("reproduce", run_reproduce),
}


def main(command: str | None = None) -> None:
    """Run a command with the Hydra overrides in sys.argv.

    Args:
        command: one of COMMANDS; None: it is the first argument in sys.argv, as in `wgangp train seed=1`.
    """
    if command is None:
        if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
            sys.exit(f"usage: wgangp COMMAND [key=value ...], where COMMAND is one of {', '.join(COMMANDS)}")
        command = sys.argv.pop(1)
        sys.argv[0] = f"wgangp {command}"
    config_name, job = COMMANDS[command]
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(explain_keys(config_name))
        sys.exit()
    if command == "reproduce" and "--list" in sys.argv[1:]:
        print(list_figures())
        sys.exit()
    if any(argument.startswith("--e") for argument in sys.argv[1:]):
        sys.exit("error: --experimental-rerun reads a pickle, which can run any code. Type the overrides again")
    if command == "compare":
        sys.argv[1:] = convert_folders(sys.argv[1:])
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))  # argparse needs it
    show_traceback = os.environ.get("HYDRA_FULL_ERROR")
    process, arguments, started, failures = os.getpid(), sys.argv, 0, []

    @hydra.main(version_base="1.3", config_path=str(config.CONF), config_name=config_name)
    def task(cfg: DictConfig) -> float | None:
        nonlocal started
        started += 1
        sys.argv = arguments  # for the records of runs: a launcher may start processes with arguments of its own
        hydra_config = HydraConfig.get()
        overrides = OmegaConf.to_container(hydra_config.overrides.task)
        try:
            with _set_environment("HYDRA_FULL_ERROR", show_traceback):
                absent = [key for key in list_keys(SCHEMAS[config_name], "") or () if key not in cfg]
                if len(absent) > 1:
                    begin = f"begin a config of your own with defaults: [{config_name}, _self_]"
                    raise ValueError(f"the config has no keys {', '.join(absent)}: {begin}")
                for key in FOLDERS:
                    check_folder(key, OmegaConf.select(hydra_config, key.removeprefix("hydra.")))
                if cfg.get("trust") and not any(o.lstrip("+").startswith("trust=") for o in overrides):
                    raise ValueError(f"trust = {cfg.trust}: write it on the command line; a config file cannot set it")
                return job(cfg)
        except Exception as error:
            known = isinstance(error, ValueError | OSError) and not show_traceback
            if isinstance(error, OSError):
                error = ValueError(explain_error(error))
            if hydra_config.mode == RunMode.MULTIRUN:  # the other jobs are not lost
                print(f"error: {error}" if known else traceback.format_exc(), file=sys.stderr)
                if os.getpid() != process:
                    raise  # to the launcher that started this process: it raises again after the other jobs
                failures.append(f"\n  {' '.join(overrides)}: {str(error).partition(chr(10))[0]}")
                if hydra_config.runtime.choices["hydra/sweeper"] == "basic":
                    return None
                raise  # a sweeper that optimizes decides whether it goes on
            if not known:
                raise
            sys.exit(f"error: {error}")

    try:
        # Hydra raises its errors. They are explained here.
        with _set_environment("HYDRA_FULL_ERROR", "1"), check_hydra():
            _check_overrides(sys.argv[1:])
            task()
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        if show_traceback or (started and not failures):
            raise
        message = _explain(error, config_name)
        print(f"error: {message}", file=sys.stderr)
        overrides = [argument for argument in sys.argv[1:] if "=" in argument]
        _suggest_keys(config_name, overrides, explained=message.partition(" is unknown;")[0])
        sys.exit(1)
    except KeyboardInterrupt:  # not in training, or a second time
        rest = "; the same command continues from the newest checkpoint" * (command == "train")
        print(f"stopped at once{rest}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        if failures:
            print(f"error: {len(failures)} of {started} jobs failed:{''.join(failures)}", file=sys.stderr)
    if failures:
        sys.exit(1)


@contextmanager
def _set_environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable inside of the with block; None: it is not set there."""
    before = os.environ.pop(name, None)
    try:
        os.environ |= {} if value is None else {name: value}
        yield
    finally:
        os.environ.pop(name, None)
        os.environ |= {} if before is None else {name: before}


def _check_overrides(overrides: list[str]) -> None:
    """Raise ValueError for what Hydra would not explain, before it creates a folder."""
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:  # a flag of Hydra, or its value. Hydra refuses what is neither, and _explain says why
            continue
        key, delete = override.key_or_group, override.is_delete()
        values = [override.value()]
        if override.is_sweep_override():
            values = list(override.sweep_iterator()) if override.is_discrete_sweep() else []
        for value in values if key in FOLDERS else ():
            check_folder(key, value)
        if override.is_sweep_override() and re.match("hydra[./]", key):
            raise ValueError(f"{text}: a sweep cannot change Hydra's own settings. Start one command per value")
        group, _, name = key.partition(".")
        choices = list(list_choices(key)) if key else []
        instead = f"; for none, write {NONE[group]}" if group in NONE else ""
        can_delete = key == "experiment" or group.startswith("hydra") or (group in config.TRUSTED and name)
        if not key:
            raise ValueError(f"{text}: write the key before the =")
        if delete and not can_delete:
            raise ValueError(f"{text}: {key} cannot be removed{instead}")
        if not delete and choices and not all(isinstance(v, str | dict) for v in values):
            raise ValueError(f"{text}: {key} is one of {', '.join(choices)}{instead}")
        if not delete and "/" in key and not all(isinstance(v, str | None) for v in values):
            raise ValueError(f"{text}: {key} is a group of config files: write the name of one")
        if not delete and key in NONE and not choices and not all(isinstance(v, dict) for v in values):
            raise ValueError(f"{text}: {key} is a group of keys{instead}")


def _explain(error: Exception, config_name: str) -> str:
    """Say in our words what Hydra or OmegaConf refused."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # hydra.sweep.dir, for example
        return explain_error(error)
    several = re.match("Ambiguous value for argument '(.*)'", str(error))
    if several or isinstance(error, OverrideParseException):
        override = several[1] if several else error.override
        key, equal, value = override.partition("=")
        value = os.path.expanduser(value).replace('"', r"\"")  # noqa: PTH111 - a path would lose a slash at the end
        example = f'{key}="{value}"' if equal else 'key="a value"'
        reason = "has several values: add -m for one run per value" if several else "cannot be read as key=value"
        return (
            f"{override} {reason}. A value with spaces or special characters has two pairs of quotes, one for the shell"
            f" and one for Hydra: {shlex.quote(example)}"
        )
    text = str(error).partition("\nConfig search path")[0]
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return text
    schema = SCHEMAS[config_name]
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    absent = re.search("Could not find '([a-z]+)/(.*)'", text)
    if absent and (choices := list_choices(absent[1])):
        return f"{absent[1]}={absent[2]}: {absent[1]} is one of {', '.join(choices)}"
    key = str(cause.full_key) if cause else "".join(re.findall(r"full_key: (\S+)", text)[:1])
    misfit, unknown = re.match("Error merging override (.*)", text), re.match("Could not override '(.*)'", text)
    if unknown:
        return _explain_unknown(unknown[1], schema, config_name)
    if cause and "does not support deletion" in str(cause):
        return f"{misfit[1] if misfit else key}: this key cannot be removed"
    if key:
        return (f"{misfit[1]}: " if misfit else "") + explain_key(schema, key)
    return text if cause is None else text.partition("\n")[0]


def _explain_unknown(key: str, schema: type, config_name: str) -> str:
    """Say why the config has no such key, and what to write."""
    group, _, name = key.rpartition(".")
    siblings = list_keys(schema, group)
    if siblings and name in siblings:
        return f"the config has no key {key}: begin a config of your own with defaults: [{config_name}, _self_]"
    if siblings is not None:
        return explain_key(schema, key)
    choices = [choice for choice, path in list_choices(group).items() if f"\n{name}:" in path.read_text()]
    if choices:
        return f"the config has no key {key}. Choices that have it: {', '.join(f'{group}={c}' for c in choices)}"
    return f"the config has no key {key}. An option of no config file needs a plus: +{key}=VALUE"


def _suggest_keys(config_name: str, overrides: list[str], explained: str) -> None:
    """Print the nearest known key for every override with an unknown key, except for the key `explained`."""
    keys = [override.lstrip("+~").split("=")[0] for override in overrides]
    choices = [o for o, key in zip(overrides, keys, strict=True) if (config.CONF / key).is_dir()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            known = flatten_keys(OmegaConf.to_container(compose(config_name, overrides=choices)))
    except Exception:  # a choice is the mistake: Hydra has listed the choices
        return
    for key in keys:
        if key not in (*known, explained) and not key.startswith("hydra.") and (hint := suggest(key, known)):
            print(f"{key} is unknown{hint}", file=sys.stderr)
