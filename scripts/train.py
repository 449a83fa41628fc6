"""Train a WGAN-GP: python scripts/train.py [experiment=mnist] [key=value ...]. README.md explains every key."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from wgangp import config, runs
from wgangp.train import train


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    hydra_cfg = HydraConfig.get()
    name = runs.run_name(hydra_cfg.runtime.choices.get("experiment"), list(hydra_cfg.overrides.task))
    folder = Path(cfg.run_dir or Path("runs", name))
    try:
        options = config.train_options(cfg)
        players = config.objects(cfg)
        with runs.claim(folder, cfg):
            print(f"run folder: {folder}")
            step = train(folder, **players, **options)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")
    if step < options["steps"]:
        print(f"stopped at step {step} of {options['steps']}; the same command goes on from there")
        sys.exit(130)  # as after any Ctrl-C, so that a sweep ends too
    print(f"finished: {step} generator updates")
    newest = max((folder / "samples").glob("*.png"), default=None)
    if newest is not None:
        print(f"pictures: {newest}\n          {folder / 'curves.png'}")


if __name__ == "__main__":
    main()
