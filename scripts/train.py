"""Train a WGAN-GP: python scripts/train.py [experiment=mnist] [key=value ...]. README.md explains every key."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from wgangp import config, runs
from wgangp.distributed import joined, local_device
from wgangp.train import train


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    hydra_cfg = HydraConfig.get()
    name = runs.run_name(hydra_cfg.runtime.choices.get("experiment"), list(hydra_cfg.overrides.task))
    folder = Path(cfg.run_dir or Path("runs", name))
    try:
        options = config.train_options(cfg)
        device = config.device_of(local_device(cfg.device))
        with joined(device, cfg.train.rank_timeout) as world:
            sizes = {name: cfg.train[name] for name in ("batch_size", "generator_batch_size")}
            world.check(sizes, cfg.regularize.gradient_norm, cfg.train.sync_batch_norm and cfg.train.compile)
            with world.first_before_others():  # it may download the data
                players = config.objects(cfg)
            with runs.claim(folder, cfg) if world.first else nullcontext():
                if world.first:
                    print(f"run folder: {folder}")
                step = train(folder, **players, **options, world=world)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")
    if step < options["steps"]:
        if world.first:
            print(f"stopped at step {step} of {options['steps']}; the same command goes on from there")
        sys.exit(130)  # as after any Ctrl-C, so that a sweep ends too
    if not world.first:
        return
    print(f"finished: {step} generator updates")
    newest = max((folder / "samples").glob("*.png"), default=None)
    if newest is not None:
        print(f"pictures: {newest}\n          {folder / 'curves.png'}")


if __name__ == "__main__":
    main()
