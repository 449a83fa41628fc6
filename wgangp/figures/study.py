"""Reproduce a figure: measure what is missing, draw the picture, render the README.

The folder of a figure has records.jsonl (one line per run), the picture, and README.md. The text of the README is
written by hand. Only the block between two marker lines is rendered from the records.

A process for one cell writes FOLDER/cells/NUMBER. A process for all cells takes its records over.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from wgangp.checkpoint import write_atomic
from wgangp.config import BUDGETS, CONF, build, build_run, find_device, train_options, train_scores
from wgangp.figures.common import count_seeds
from wgangp.figures.digest import read_records, stamp
from wgangp.figures.processes import call_in_processes
from wgangp.folders import claim_folder, load_config
from wgangp.logs import append_line, collect_provenance, describe_hardware, read_timing
from wgangp.runs import Run, run_name
from wgangp.tables import markdown_table, replace_block
from wgangp.train import train

__all__ = [
    "BEGIN",
    "END",
    "complete_seeds",
    "create_readme",
    "list_parts",
    "list_settings",
    "load_figure",
    "merge_records",
    "render",
    "reproduce",
    "train_command",
]

BEGIN, END = "<!-- rendered by scripts/reproduce.py -->", "<!-- /rendered -->"
START_S = 60.0  # seconds that a process for one cell waits for others that start


def reproduce(
    figure: Any,
    name: str,
    budget: str,
    seeds: list[int],
    out: str | None,
    device: str,
    jobs: int = 1,
    cell: int | None = None,
) -> Path:
    """Measure the runs of a figure that are missing, then draw the picture and render the README of all runs.

    Args:
        figure: the figure with its settings, as wgangp/figures/__init__.py describes it.
        name: the name of the figure, which is also the name of its file in conf/figure.
        budget: cpu or paper. It is part of the default folder only; the settings are those of the figure.
        seeds: each cell of the figure is measured once per seed.
        out: the folder; None: results/NAME, or results/NAME+paper.
        device: auto, cpu, cuda, ...
        jobs: number of runs that are measured at the same time, each in a process of its own with one thread. The
            numbers of a run on a CPU may differ in the last digits from those of a process with several threads.
        cell: measure only the cell with this number, and draw nothing. Other processes can measure other cells. None:
            take over what such processes measured, measure the rest, and draw.

    Returns:
        the folder; FOLDER/cells/NUMBER for one cell.

    Raises:
        ValueError: an argument is not valid; the folder belongs to other settings; another process measures the same;
            its README has no place for the rendered block; a record was changed; a run failed (after all other runs).
        KeyboardInterrupt: the user pressed Ctrl-C. The same call continues from there.
    """
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds = {list(seeds)}: give at least one number, all of them >= 0 and different")
    if budget not in BUDGETS:
        raise ValueError(f"budget = {budget}: must be one of {', '.join(BUDGETS)}")
    if jobs < 1:
        raise ValueError(f"jobs = {jobs}: must be >= 1")
    cells = figure.cells()
    if cell is not None and not 0 <= cell < len(cells):
        numbers = "".join(f"\n  {k}: {', '.join(map(str, values.values()))}" for k, values in enumerate(cells))
        raise ValueError(f"cell = {cell}: must be the number of one of these cells, or null for all:{numbers}")
    torch_device = find_device(device)
    folder = Path(out or Path("results", name if budget == "cpu" else f"{name}+{budget}"))
    settings = OmegaConf.create({"figure": asdict(figure)})
    with _claim_cells(folder, name, settings, cell) as own_folder:
        chosen = cells if cell is None else [cells[cell]]
        failures = _measure_missing(folder, own_folder, figure, chosen, seeds, torch_device, jobs)
        records = complete_seeds(figure, read_records(own_folder)) if cell is None else []
        if records:
            figure.draw(folder / f"{name}.png", records)
            write_atomic(folder / "README.md", render(_read_readme(folder, name), name, figure, records))
        if failures:
            raise ValueError(
                f"failed runs: {len(failures)}. The other runs are in {own_folder / 'records.jsonl'}. The same command"
                f" tries the failed runs again:{''.join(failures)}"
            )
    return own_folder


def train_command(folder: Path, overrides: list[str], check: Callable[[Run], Any] | None = None) -> Run:
    """Train what `scripts/train.py OVERRIDES` trains, from the newest checkpoint in the folder, and return the run.

    The folder has no config.yaml, so that other commands do not take it for a run folder.

    Args:
        check: is called with the run before the training.

    Raises:
        KeyboardInterrupt: training was interrupted, so that there is nothing to measure yet.
    """
    in_command = GlobalHydra.instance().is_initialized()  # of scripts/reproduce.py
    with nullcontext() if in_command else initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    options = train_options(cfg) | {"config": None}
    run = build_run(cfg, channels_last=cfg.train.channels_last, trust=cfg.trust)
    if check is not None:
        check(run)
    if train(folder, run, **options, scores=train_scores(cfg, run)) < options["steps"]:
        raise KeyboardInterrupt
    return run


@contextmanager
def _claim_cells(folder: Path, name: str, settings: DictConfig, cell: int | None) -> Iterator[Path]:
    """Lock the folder of a figure, or one cell of it. Yields the folder whose records.jsonl this process writes.

    A process for all cells holds the locks of the folder and of FOLDER/cells/*. A process for one cell holds that of
    FOLDER/cells/NUMBER, and that of the folder only while it starts.
    """
    own_folder = folder if cell is None else folder / "cells" / str(cell)
    with ExitStack() as start, ExitStack() as locks:
        start.enter_context(claim_folder(folder, settings, key="out", timeout=0.0 if cell is None else START_S))
        _read_readme(folder, name)  # refused before anything is measured
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(settings))
        for part in list_parts(folder) if cell is None else [own_folder]:
            locks.enter_context(claim_folder(part, settings, key="out" if cell is None else "cell"))
            write_atomic(part / "config.yaml", OmegaConf.to_yaml(settings))
        if cell is not None:
            start.close()
        yield own_folder


def _measure_missing(
    folder: Path, own: Path, figure: Any, cells: list[dict[str, Any]], seeds: list[int], device: torch.device, jobs: int
) -> list[str]:
    """Append a line to own/records.jsonl for every (seed, cell) without a record. Returns a message per failed run.

    own is FOLDER/cells/NUMBER, or the folder of the figure itself, which then gets the records of FOLDER/cells/*, too.
    """
    path = own / "records.jsonl"
    records = merge_records(figure, [folder, *list_parts(folder)] if own == folder else [own])
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))  # drops a line that was cut off
    measured = [_identify(figure, record) for record in merge_records(figure, [own, folder])]
    wanted = [(seed, cell) for seed in seeds for cell in cells]
    missing = [work for work in wanted if work not in measured]
    if not missing:
        print(f"all {len(wanted)} runs are in {folder}. To measure them again, give another folder: out=FOLDER")
    work = []
    for number, (seed, cell) in enumerate(missing, 1):
        label = f"{', '.join(map(str, cell.values()))}, seed {seed}"
        run_folder = folder / "runs" / run_name(str(seed), [str(value) for value in cell.values()])
        work.append((figure, cell, seed, run_folder, device, label, f"run {number} of {len(missing)}"))
    failures = []
    for result in call_in_processes(_measure, work, jobs):
        if isinstance(result, str):
            failures.append(result)
        else:
            append_line(path, stamp(result))
    return failures


def _measure(
    figure: Any, cell: dict[str, Any], seed: int, folder: Path, device: torch.device, label: str, number: str
) -> dict[str, Any] | str:
    """Measure one cell. Returns its record, or a message if the run failed: it must not stop the other runs."""
    print(f"{number}: {label}", flush=True)
    seconds_before = max((line["elapsed_s"] for line in read_timing(folder)), default=0.0)
    start_time = time.monotonic()
    try:
        numbers = figure.measure(cell, seed, folder, device)
    except HydraException as error:  # a wrong override; the other lines are about Hydra
        return f"\n  {label}: {str(error).splitlines()[0]}"
    except (ValueError, RuntimeError) as error:
        return f"\n  {label}: {error}"
    seconds = round(seconds_before + time.monotonic() - start_time, 3)
    return {"seed": seed, **cell, **numbers, "seconds": seconds, **collect_provenance(device)}


def list_parts(folder: Path) -> list[Path]:
    """Return the folders of single cells, FOLDER/cells/NUMBER, in the order of the numbers."""
    return sorted((p for p in folder.glob("cells/*") if p.name.isdecimal()), key=lambda part: int(part.name))


def merge_records(figure: Any, folders: list[Path]) -> list[dict[str, Any]]:
    """Return the records of several folders. The first record of a run counts."""
    unique, runs = [], []
    for record in (record for folder in folders for record in read_records(folder)):
        if (run := _identify(figure, record)) not in runs:
            runs.append(run)
            unique.append(record)
    return unique


def complete_seeds(figure: Any, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select the records of the seeds for which every cell is measured, in the order of seeds and cells."""
    seeds, cells = [record["seed"] for record in records], figure.cells()
    complete = [record for record in records if seeds.count(record["seed"]) == len(cells)]
    return sorted(complete, key=lambda r: (r["seed"], cells.index(_identify(figure, r)[1])))


def _identify(figure: Any, record: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return seed and cell of a record."""
    return record["seed"], {key: record[key] for key in figure.cells()[0]}


def _read_readme(folder: Path, name: str) -> str:
    """Return the README of a folder, or a new one. ValueError, before anything is measured, if it has no block."""
    path = folder / "README.md"
    if not path.exists():
        return create_readme(name)
    try:
        return replace_block(path.read_text(), BEGIN, END, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def create_readme(name: str) -> str:
    """Return a README for a figure that has none: a title and the place of the rendered block."""
    return f"# {name.replace('_', ' ').capitalize()}\n\n{BEGIN}\n{END}\n"


def render(readme: str, name: str, figure: Any, records: list[dict[str, Any]]) -> str:
    """Return the README with its block rendered from the records: what was run, the table, the picture.

    Args:
        readme: the text of the README. The block is between the lines BEGIN and END (constants of this module).
        name: of the figure, as in figure=NAME.
        figure: the object that measures and draws it, which has its settings as attributes.
        records: the results, one per cell and seed. A cell is one combination of settings, for example one penalty
            on one data set.
    """
    seeds = sorted({record["seed"] for record in records})
    commands = [f"`{record['command']}`" for record in records]
    commits = [(record["commit"] or "unknown")[:7] + " with changes" * bool(record["dirty"]) for record in records]
    settings = [f"{key} {value}" for key, value in list_settings(figure).items()]
    hardware = [describe_hardware(record) for record in records]
    minutes = sum(record["seconds"] for record in records) / 60
    block = f"""
- **Runs**: {len(records)} with {count_seeds(records)}, by {_join(commands)} at commit {_join(commits)}
- **Settings**: {_join(settings)}
- **To run it again**: `{_format_command(name, figure, seeds)}`
- **Time**: {minutes:.0f} min for all runs together, on {_join(hardware)}

{markdown_table(figure.table(records))}

![{name}]({name}.png)
"""
    return replace_block(readme, BEGIN, END, block)


def load_figure(name: str, folder: Path | None = None) -> Any:
    """Build a figure with the settings of a folder; None: with those of budget=cpu."""
    cfg = OmegaConf.create({"budget": "cpu", "figure": OmegaConf.load(CONF / "figure" / f"{name}.yaml")})
    if folder is not None:
        settings = load_config(folder / "config.yaml").figure
        cfg.figure = {"_target_": cfg.figure._target_, **settings}
    return build(cfg, "figure")


def _format_command(name: str, figure: Any, seeds: list[int]) -> str:
    """Return the command that measures these runs: a budget, and the settings that this budget does not have."""
    changed = {}
    for budget in BUDGETS:
        cfg = OmegaConf.create({"budget": budget, "figure": OmegaConf.load(CONF / "figure" / f"{name}.yaml")})
        usual = OmegaConf.to_container(cfg, resolve=True)["figure"]
        changed[budget] = [_format_override(key, v) for key, v in list_settings(figure).items() if v != usual[key]]
    budget = min(BUDGETS, key=lambda budget: len(changed[budget]))
    overrides = [*(["budget=paper"] if budget == "paper" else []), *changed[budget]]
    overrides += ["figure.data_root=DATA"] * bool(getattr(figure, "data_root", None))
    return " ".join(["python scripts/reproduce.py", f"figure={name}", *overrides, f'"seeds={seeds}"', "out=FOLDER"])


def _format_override(key: str, value: Any) -> str:
    """Return a setting as it is typed in a shell: texts in a list are quoted for Hydra, and all of it for the shell."""
    if isinstance(value, list):
        value = "[" + ",".join(json.dumps(entry) for entry in value) + "]"
    return shlex.quote(f"figure.{key}={value}")


def list_settings(figure: Any) -> dict[str, Any]:
    """Return the settings that change a number: all but the place of the data."""
    return {key: value for key, value in asdict(figure).items() if key != "data_root"}


def _join(values: list[str]) -> str:
    """Return the different values, joined, in the order of their first appearance."""
    return ", ".join(dict.fromkeys(values))
