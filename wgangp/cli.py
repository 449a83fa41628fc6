"""The command line: `python scripts/NAME.py` in a checkout, `wgangp NAME` or `python -m wgangp NAME` when installed.

Every command is a Hydra application. It checks its config, calls one function of this package with it, and turns the
errors that a user can mend into one message. HYDRA_FULL_ERROR=1 shows the traceback of every error.
"""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from wgangp import config
from wgangp.analysis import analyze
from wgangp.distributed import join_ranks, local_device
from wgangp.figures.study import reproduce
from wgangp.runs import claim_folder, run_name
from wgangp.sample import sample
from wgangp.schema import read_types, register_schema, suggest, to_arguments
from wgangp.train import train

__all__ = ["COMMANDS", "main"]


def _read_keys(function: Callable[..., Path], **replaced: Any) -> dict[str, Any]:
    return {name: kind for name, kind in (read_types(function) | replaced).items() if name != "return"}


SAMPLE = register_schema("sample", _read_keys(sample))
LIPSCHITZ = register_schema("lipschitz", _read_keys(analyze))
REPRODUCE = register_schema(
    "reproduce", {k: v for k, v in _read_keys(reproduce, figure=dict[str, Any]).items() if k != "name"}
)


def run_train(cfg: DictConfig) -> None:
    """Train, or continue a run: scripts/train.py. Exits with status 130 if the run was interrupted."""
    hydra_config = HydraConfig.get()
    name = run_name(hydra_config.runtime.choices.get("experiment"), list(hydra_config.overrides.task))
    folder = Path(cfg.run_dir or Path("runs", name))
    options = config.train_options(cfg)
    device = config.find_device(local_device(cfg.device))
    with join_ranks(device, cfg.train.rank_timeout) as world:
        sizes = {name: cfg.train[name] for name in ("batch_size", "generator_batch_size")}
        compiled_norm = cfg.train.sync_batch_norm and cfg.train.compile
        world.check(sizes, cfg.regularize.gradient_norm, compiled_norm, cfg.train.accumulate)
        with world.first_before_others():  # the first rank may download the data
            run = config.build_run(cfg, channels_last=cfg.train.channels_last)
        with claim_folder(folder, cfg) if world.first else nullcontext():
            if world.first:
                print(f"run folder: {folder}")
                if summary := getattr(run.data, "summary", ""):
                    print(f"data: {summary}")
            step = train(folder, run, **options, world=world)
    if step < options["steps"]:
        if world.first:
            print(f"stopped at step {step} of {options['steps']}; the same command continues from there")
        sys.exit(130)  # as after every Ctrl-C, so that a sweep ends, too
    if not world.first:
        return
    print(f"finished: {step} generator updates")
    newest = max((folder / "samples").glob("*.png"), default=None)
    if newest is not None:
        print(f"pictures: {newest}\n          {folder / 'curves.png'}")


def run_sample(cfg: DictConfig) -> None:
    """Draw samples from a trained generator: scripts/sample.py. Prints the path of what was made."""
    print(sample(**to_arguments(cfg, SAMPLE)))


def run_lipschitz(cfg: DictConfig) -> None:
    """Analyze the slopes of a trained critic: scripts/lipschitz.py. Prints the folder with the results."""
    print(analyze(**to_arguments(cfg, LIPSCHITZ)))


def run_reproduce(cfg: DictConfig) -> None:
    """Reproduce a figure: scripts/reproduce.py. Prints the folder with the results."""
    arguments = to_arguments(cfg, REPRODUCE) | {"figure": config.build(cfg, "figure")}
    try:
        print(reproduce(name=HydraConfig.get().runtime.choices["figure"], **arguments))
    except KeyboardInterrupt:
        print("stopped; the same command continues from there")
        sys.exit(130)


COMMANDS = {  # name -> its config in conf/, its function
    "train": ("config", run_train),
    "sample": ("sample", run_sample),
    "lipschitz": ("lipschitz", run_lipschitz),
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
    started = False

    @hydra.main(version_base="1.3", config_path=str(config.CONF), config_name=config_name)
    def task(cfg: DictConfig) -> None:
        nonlocal started
        started = True
        try:
            job(cfg)
        except ValueError as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            sys.exit(f"error: {error}")

    try:
        task()
    except SystemExit as end:
        if end.code and not started:  # Hydra refused an override, and has said why
            _suggest_keys(config_name, [argument for argument in sys.argv[1:] if "=" in argument])
        raise


def _suggest_keys(config_name: str, overrides: list[str]) -> None:
    """Print the nearest known key for every override with an unknown key."""
    keys = [override.lstrip("+~").split("=")[0] for override in overrides]
    choices = [o for o, key in zip(overrides, keys, strict=True) if (config.CONF / key).is_dir()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            known = _flat_keys(OmegaConf.to_container(compose(config_name, overrides=choices)))
    except Exception:  # a choice is the mistake: Hydra has listed the choices
        return
    for key in keys:
        if key not in known and not key.startswith("hydra.") and (hint := suggest(key, known)):
            print(f"{key} is unknown{hint}", file=sys.stderr)


def _flat_keys(node: object, prefix: str = "") -> list[str]:
    """All keys of a config, as they are written in an override, without _target_."""
    items = node.items() if isinstance(node, dict) else ()
    pairs = [(f"{prefix}{name}", child) for name, child in items if name != "_target_"]
    return [key for name, child in pairs for key in (name, *_flat_keys(child, f"{name}."))]
