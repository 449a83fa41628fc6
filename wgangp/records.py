"""What run folders say: configs, curves and scores, read as data. Runs that differ only in the seed are one group."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wgangp.folders import load_run_config
from wgangp.logs import find_number_problem, read_lines, read_metrics, read_timing
from wgangp.metrics.scores import MAIN
from wgangp.runs import find_differing_keys, flatten_config, select_computed

__all__ = ["PLACES", "Content", "Groups", "Measure", "group_runs", "read_folder"]

OWN_DATA = ("wgangp.data.images.image_folder", "wgangp.data.text.text")  # their place says which data it is
PLACES = ("data.root", "data.path", "data.heldout_root")
REAL = ("reference_", "real_")  # prefixes of a metric of real samples: reference_js4 belongs to js4


class Measure(NamedTuple):
    """What a number is. Numbers of two runs compare only if their measures are equal."""

    name: str
    score: str = ""  # the name under which scripts/evaluate.py computes it; empty: it is a metric of the log
    best: str = ""  # best by NAME in training; empty: the checkpoint was not chosen by a score
    settings: tuple[tuple[str, str], ...] = ()  # sorted pairs of name and value


Curves = dict[Measure, dict[int, float]]  # measure -> step -> value


@dataclass(frozen=True)
class Content:
    """What is read of a run folder.

    folder     as it was given
    config     flat keys that change a computed number, without seed
    seed       of the run
    step       of the last line of the log
    seconds    of training; None if there is no timing.jsonl
    eager_steps  names of the steps that were to be compiled and were computed in eager mode, in alphabetical order
    curves     of the log and of scores.jsonl
    reals      the same for real samples in place of generated ones, where they were measured
    """

    folder: Path
    config: dict[str, Any]
    seed: Any
    step: int
    seconds: float | None
    eager_steps: list[str]
    curves: Curves
    reals: Curves


Groups = dict[str, list[Content]]  # a letter -> the runs of a group


def read_folder(folder: Path) -> Content:
    """Read a run folder.

    Raises:
        ValueError: it is not a run folder, has no log, or has a damaged file. The message names file and line.
    """
    flat = flatten_config(load_run_config(folder))
    config = {name: value for name, value in select_computed(flat).items() if name != "seed"}
    if flat["data._target_"] in OWN_DATA:
        config |= {name: flat[name] for name in PLACES if name in flat}
    path = folder / "metrics.jsonl"
    log = read_metrics(path)
    if not log:
        raise ValueError(f"{folder} has no log ({path.name} is missing or empty): train the run first, or leave it out")
    curves: Curves = {}
    reals: Curves = {}
    options = {name: value for name, value in flat.items() if name.startswith("evaluate.") and value is not None}
    options.pop("evaluate.scores", None)
    settings = _sort_settings(options)
    for record in log:
        for name, value in record.items():
            prefix = next((prefix for prefix in REAL if name.startswith(prefix)), "")
            name = name.removeprefix(prefix)
            measure = Measure(name, settings=settings if name in MAIN else ())
            (reals if prefix else curves).setdefault(measure, {})[record["step"]] = value
    timing = read_timing(folder)
    seconds = timing[-1]["elapsed_s"] if timing else None
    _read_scores(folder / "scores.jsonl", curves, reals)
    starts = read_lines(folder / "provenance.jsonl", _find_start_problem)
    eager_steps = sorted({step for line in starts for step in line.get("not_compiled", {})})
    return Content(folder, config, flat["seed"], log[-1]["step"], seconds, eager_steps, curves, reals)


def _find_start_problem(record: dict[str, Any]) -> str:
    """Say what is wrong with a line of provenance.jsonl; empty if nothing is."""
    return "" if isinstance(record.get("not_compiled", {}), dict) else "not_compiled is not an object"


def _read_scores(path: Path, curves: Curves, reals: Curves) -> None:
    """Add what is in scores.jsonl to the curves. Of several records of a measure at a step, the last counts.

    The best checkpoint changes during training: of its records, the last counts, whatever its step.
    """
    for record in read_lines(path, _find_score_problem):
        settings = _sort_settings(record["settings"])
        best = record["checkpoint"] if record["checkpoint"].startswith("best") else ""
        for key, kind in (("values", curves), ("real", reals)):
            for name, value in record.get(key, {}).items():
                curve = kind.setdefault(Measure(name, record["score"], best, settings), {})
                if best:
                    curve.clear()
                curve[record["step"]] = value


def _sort_settings(settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return settings as sorted pairs of name and value, each value as one line of text."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    return tuple(sorted((name, " ".join(text.split())) for name, text in texts.items()))


def _find_score_problem(record: dict[str, Any]) -> str:
    """Say what is wrong with a line of scores.jsonl; empty if nothing is."""
    record = {"real": {}} | record
    kinds = {"score": str, "checkpoint": str, "step": int, "settings": dict, "values": dict, "real": dict}
    for name, kind in kinds.items():
        if type(record.get(name)) is not kind:
            return f"{name} is missing or has another type than {kind.__name__}"
    return find_number_problem(record["values"]) or find_number_problem(record["real"])


def group_runs(contents: list[Content]) -> Groups:
    """Group the runs with equal configs whose logs end at the same step, in the order in which they are given.

    A group has one run per seed: a second run with the same seed is in another group.
    """
    groups: list[list[Content]] = []
    for content in contents:
        for group in groups:
            same = group[0].step == content.step and not find_differing_keys([group[0].config, content.config])
            if same and content.seed not in [other.seed for other in group]:
                group.append(content)
                break
        else:
            groups.append([content])
    return {chr(ord("A") + i): group for i, group in enumerate(groups)}
