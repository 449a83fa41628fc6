"""Measure the speed: python scripts/benchmark.py [device=cuda] [budget=paper]. README.md says what the rows are."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig
from tqdm import tqdm

from wgangp import benchmark, config, speed_report
from wgangp.checkpoint import write_atomic
from wgangp.logs import provenance, read_lines


@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    try:
        run(cfg)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")


def run(cfg: DictConfig) -> None:
    """Measure, show and write. ValueError for a bad value, and for gradients that are wrong."""
    config.check_keys(cfg, config.Benchmark)
    unknown = [name for name in cfg.cases if name not in benchmark.CASES]
    if unknown or not cfg.cases:
        raise ValueError(f"cases = {list(cfg.cases)}: at least one of {', '.join(benchmark.CASES)}")
    if cfg.rounds < 1:
        raise ValueError(f"rounds = {cfg.rounds}: must be >= 1")
    device = config.device_of(cfg.device)
    budget = cfg.budget or ("paper" if device.type == "cuda" else "cpu")
    if budget not in config.BUDGETS:
        raise ValueError(f"budget = {budget}: must be one of {', '.join(config.BUDGETS)}, or null")
    folder = Path(cfg.out or ("runs/benchmark-smoke" if cfg.smoke else "results/benchmark"))
    folder.mkdir(parents=True, exist_ok=True)
    about = {**provenance(device), "rounds": cfg.rounds, "budget": budget}

    records = []
    for name in tqdm(cfg.cases, desc="cases", disable=None):
        case = benchmark.CASES[name]
        if budget == "cpu" and name.startswith("CIFAR"):
            case = replace(case, width=case.width // 4)
        if cfg.smoke:
            case = replace(case, width=16, batch=8, generator_batch=None)
        records += [{"case": name, **record, **about} for record in benchmark.measure(case, device, cfg.rounds)]
    if cfg.growth:
        records += [{**record, **about} for record in benchmark.growth(device, cfg.rounds, small=cfg.smoke)]

    path = folder / f"{device.type}.jsonl"
    if path.exists():  # nothing that was measured is lost
        path.rename(next(p for n in range(1, 10**6) if not (p := folder / f"{device.type}.{n}.jsonl").exists()))
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))
    speed_report.picture(folder / f"{device.type}.png", records)
    found = {kind: read_lines(folder / f"{kind}.jsonl") for kind in ("cpu", "cuda")}
    found = {kind: lines for kind, lines in found.items() if lines}
    write_atomic(folder / "README.md", speed_report.page(found))
    for table in (speed_report.rows(records), speed_report.targets({device.type: records})):
        widths = {key: max(len(key), *(len(row[key]) for row in table)) for key in table[0]}
        for row in ({key: key for key in widths}, *table):
            print("  ".join(row[key].ljust(width) for key, width in widths.items()))
        print()
    print(f"written to {folder}: {device.type}.jsonl, {device.type}.png, README.md")


if __name__ == "__main__":
    main()
