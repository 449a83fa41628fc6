"""Reproduce a figure: python scripts/reproduce.py figure=NAME [budget=paper] [seeds=[0]]. README.md lists them."""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from wgangp import config, runs
from wgangp.checkpoint import write_atomic
from wgangp.logs import append_line, provenance, read_lines


@hydra.main(version_base="1.3", config_path="../conf", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    try:
        print(reproduce(cfg, HydraConfig.get().runtime.choices["figure"]))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there")
        sys.exit(130)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")


def reproduce(cfg: DictConfig, name: str) -> Path:
    """Measure what is not measured yet, then draw and write all of it. ValueError where that cannot be."""
    config.check_keys(cfg, config.Reproduce)
    if not cfg.seeds or min(cfg.seeds) < 0 or len(set(cfg.seeds)) < len(cfg.seeds):
        raise ValueError(f"seeds = {list(cfg.seeds)}: different numbers >= 0, at least one")
    figure, device = config.build(cfg, "figure"), config.device_of(cfg.device)
    cells = figure.cells()
    folder = Path(cfg.out or Path("results", name if cfg.budget == "cpu" else f"{name}+{cfg.budget}"))
    options = OmegaConf.create({"figure": asdict(figure)})
    with runs.claim(folder, options, key="out"):
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(options))
        path = folder / "records.jsonl"
        wanted = [(seed, cell) for seed in cfg.seeds for cell in cells]
        whole = read_lines(path)
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in whole))  # without a line that was cut off
        done = [(r["seed"], {key: r[key] for key in cells[0]}) for r in whole]
        missing = [work for work in wanted if work not in done]
        if not missing:
            print(f"all {len(wanted)} runs are in {path}; out=FOLDER measures them anew")
        failed = []
        for number, (seed, cell) in enumerate(missing, 1):
            said = f"{', '.join(map(str, cell.values()))}, seed {seed}"
            print(f"{number} of {len(missing)}: {said}", flush=True)
            run = folder / "runs" / runs.run_name(str(seed), [str(value) for value in cell.values()])
            earlier = max((line["elapsed_s"] for line in read_lines(run / "timing.jsonl")), default=0.0)
            began = time.monotonic()
            try:
                numbers = figure.measure(cell, seed, run, device)
            except (
                ValueError,
                RuntimeError,
            ) as error:  # one that diverges must not keep the others from being measured
                failed.append(f"\n  {said}: {error}")
                continue
            seconds = round(earlier + time.monotonic() - began, 3)
            append_line(path, {"seed": seed, **cell, **numbers, "seconds": seconds, **provenance(device)})
        records = read_lines(path)
        complete = [r for r in records if sum(other["seed"] == r["seed"] for other in records) == len(cells)]
        if complete:
            figure.draw(folder / f"{name}.png", complete)
            write_atomic(folder / "README.md", readme(name, figure, complete))
        if failed:
            raise ValueError(f"{len(failed)} of {len(missing)} runs failed, the others are in {path}:{''.join(failed)}")
    return folder


def readme(name: str, figure: Any, records: list[dict[str, Any]]) -> str:
    """The five lines, the table and the picture."""
    rows = figure.table(records)
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    seeds = sorted({record["seed"] for record in records})
    commits = dict.fromkeys(f"{r['commit'] or 'unknown'}"[:7] + (" (changed)" if r["dirty"] else "") for r in records)
    hardware = dict.fromkeys(f"{r['device']}, torch {r['torch']}" for r in records)
    commands = dict.fromkeys(r["command"] for r in records)
    numbers = ", ".join(f"{key} {value}" for key, value in asdict(figure).items() if key != "data_root")
    minutes = sum(record["seconds"] for record in records) / 60
    command = ", ".join(f"`{c}`" for c in commands)
    return f"""<!-- written by scripts/reproduce.py; its words stand in wgangp/figures/{name}.py -->
# {name}

- **Run**: {command} at {", ".join(commits)}: {numbers}; {len(records)} runs.
  Anew: `python scripts/reproduce.py figure={name} "seeds={seeds}" out=FOLDER`.
- **Time**: {minutes:.0f} min in all on {", ".join(hardware)}.
- **The paper**: {figure.PAPER}.
- **Here**: {figure.findings(records)}.
- **Where they differ, and why**: {figure.why}.

{table}

![{name}]({name}.png)
"""


if __name__ == "__main__":
    main()
