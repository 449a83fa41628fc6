"""All figures: what is done, how long it took, and what they show, for python scripts/reproduce.py --list."""

from collections import Counter
from pathlib import Path
from typing import Any

from wgangp.config import CONF
from wgangp.figures.common import count_seeds
from wgangp.figures.study import complete_seeds, list_parts, list_settings, load_figure, merge_records
from wgangp.logs import describe_hardware

__all__ = ["list_figures"]

NOTES = """
done: cells x seeds in results/NAME; with +: in results/NAME+...
time: of the seeds of results/NAME that have all cells"""


def list_figures(results: Path = Path("results")) -> str:
    """Return a table with one line per figure."""
    rows = [("figure", "done", "time with budget=cpu", "content")]
    for path in sorted((CONF / "figure").glob("*.yaml")):
        content = path.read_text().partition("\n")[0].removeprefix("# ")
        rows.append((path.stem, *_describe_folders(results, path.stem), content))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows] + [NOTES])


def _describe_folders(results: Path, name: str) -> tuple[str, str]:
    """Return what is done of a figure, and how long it took."""
    usual = load_figure(name)
    done, time = [f"0 of {len(usual.cells())} cells"], "not measured"
    for folder in [results / name, *sorted(results.glob(f"{name}+*"))]:
        parts = list_parts(folder)
        if not (folder / "records.jsonl").exists() and not parts:
            continue
        try:
            figure = load_figure(name, folder)
            records = merge_records(figure, [folder, *parts])
        except Exception as error:  # one damaged folder does not hide the others
            done.append(f"{folder} cannot be read: {' '.join(str(error).split())}")
            continue
        text = _count_cells(figure, records)
        if folder.name != name:
            done.append(f"{folder.name.removeprefix(name)}: {text}")
            continue
        done[0] = text
        if complete := complete_seeds(figure, records):
            hardware = ", ".join(dict.fromkeys(map(describe_hardware, complete)))
            other = ", other settings" * (list_settings(figure) != list_settings(usual))
            time = f"{sum(r['seconds'] for r in complete) / 60:.0f} min for {count_seeds(complete)}, {hardware}{other}"
    return "; ".join(done), time


def _count_cells(figure: Any, records: list[dict[str, Any]]) -> str:
    """Return how many cells are measured for how many seeds, as "4 of 4 cells x 2 seeds, 1 of 4 cells x 1 seed"."""
    seeds = Counter(Counter(record["seed"] for record in records).values())  # number of cells -> number of seeds
    cells = len(figure.cells())
    texts = [f"{n} of {cells} cells x {seeds[n]} seed{'s' * (seeds[n] > 1)}" for n in sorted(seeds, reverse=True)]
    return ", ".join(texts) or f"0 of {cells} cells"
