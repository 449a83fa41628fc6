"""A comparison of run folders: what differs in their configs, and their scores and curves side by side.

The folders are read as data: no network is built, and no checkpoint is loaded.
"""

import hashlib
import math
import re
import shlex
import textwrap
from pathlib import Path

from wgangp.checkpoint import write_atomic
from wgangp.plots import LINES, open_figure
from wgangp.records import PLACES, Content, Groups, Measure, group_runs, read_folder
from wgangp.runs import ADDED, find_differing_keys, format_value
from wgangp.tables import markdown_table, replace_block

__all__ = ["compare", "convert_folders"]

METRICS = {  # what is compared of a log -> the title of its panel
    "wasserstein": "gap E D(real) - E D(fake), training data",
    "heldout_wasserstein": "gap E D(real) - E D(fake), held-out data",
    "critic_loss": "critic loss, training data",
    "heldout_critic_loss": "critic loss, held-out data",
    "slope_interpolates_mean": "mean slope ||grad D|| at interpolates",
    "largest_quotient": "Lipschitz constant of D, lower bound",
    "modes": "covered modes",
    "high_quality": "share of samples near a mode",
    "accuracy_real": "accuracy of the critic's classifier, real samples",
    "accuracy_fake": "accuracy of the critic's classifier, generated samples",
    **{f"js{n}": f"Jensen-Shannon divergence of {n}-grams (bits)" for n in range(1, 5)},
    "points_w1": "exact W1 to held-out points",
    "ngrams_js4": "Jensen-Shannon divergence of 4-grams (bits)",
    "modes_covered": "covered modes of stacked digits",
    "classifier_fid": "FID, classifier features",
    "efficientnet_fid": "FID, EfficientNet features",
    "inception_is": "Inception score",
}
COMPARED = Path("runs", "compared")  # where comparisons are written by default
END_OF_LOG = "end of the log"
LIMIT = 16  # groups: as many lines can be told apart by color and style
LABEL, NAME = 75, 60  # characters of a label in the picture, and of the name of the folder
BEGIN, END = "<!-- rendered by scripts/compare.py -->", "<!-- /rendered -->"
VALUED = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir")


def compare(runs: list[str], out: str | None = None) -> Path:
    """Compare run folders: write compare.png and README.md with two tables, and return their folder.

    Runs whose configs differ only in the seed (and in keys that change no number) are one group if their logs end at
    the same step. A number of a group is the mean over its runs, with the smallest and the largest value.

    Args:
        runs: the run folders, two or more. runs/compared is left out, so that a shell can expand runs/*.
        out: the folder to write; None: runs/compared/NAME, where NAME is made of the names of the run folders. The same
            comparison is written again, and text around its rendered block stays.

    Raises:
        ValueError: there are fewer than two folders, or two are the same; one is not a run folder, has no log, or has a
            damaged file; out has something else. Nothing is written.
    """
    folders = [Path(run) for run in runs if Path(run).resolve() != COMPARED.resolve()]
    if len(folders) < 2:
        example = "python scripts/compare.py runs/a runs/b"
        raise ValueError(f"runs = {list(runs)}: name two or more run folders, for example {example}")
    for i, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:i]]:
            raise ValueError(f"{folder} is named twice: name every run folder once")
    groups = group_runs([read_folder(folder) for folder in folders])
    if len(groups) > LIMIT:
        raise ValueError(f"the runs make {len(groups)} groups with different configs: compare {LIMIT} or fewer at once")
    panels = _list_panels(groups)
    if not panels:
        raise ValueError(f"no two groups have one of {', '.join(METRICS)} in their logs: choose other runs")
    path = Path(out or COMPARED / _make_name(folders))
    command = f"`{shlex.join(['python', 'scripts/compare.py', *map(str, folders)])}`"
    readme = replace_block(_read_readme(path, command, len(folders)), BEGIN, END, _render(groups, command))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be created ({error}): choose another out=") from error
    write_atomic(path / "README.md", readme)
    _draw(path / "compare.png", groups, panels)
    return path


def convert_folders(arguments: list[str]) -> list[str]:
    """Return the arguments of the command with all folders as one Hydra override of runs.

    A folder is an argument without = that does not begin with - and is not the value of an option of Hydra. If there is
    an override of runs already, nothing is converted.

    >>> convert_folders(["runs/a", "runs/b", "out=c"])
    ['runs=["runs/a","runs/b"]', 'out=c']
    """
    folders, others, before = [], [], ""
    for argument in arguments:
        other = "=" in argument or argument.startswith("-") or before in VALUED
        (others if other else folders).append(argument)
        before = argument
    if not folders or any(argument.startswith("runs=") for argument in others):
        return arguments
    value = ",".join('"' + folder.replace('"', r"\"") + '"' for folder in folders)
    return [f"runs=[{value}]", *others]


def _make_name(folders: list[Path]) -> str:
    """Return a short name of a comparison, with letters, digits and . - + _ only."""
    names = "_vs_".join(folder.resolve().name for folder in folders)
    readable = re.sub(r"[^\w.+-]", "-", names)
    if len(readable) > NAME:
        readable = f"{readable[: NAME - 20]}-{len(folders)}-runs-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    return readable


def _read_readme(folder: Path, command: str, count: int) -> str:
    """Return the README of this comparison, or a new one. ValueError if the folder has something else."""
    path = folder / "README.md"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return f"# Comparison of {count} runs\n\n{BEGIN}\n{END}\n"
    text = path.read_text() if path.is_file() else ""
    if f"{BEGIN}\n{command}\n" not in text or END not in text.splitlines():
        raise ValueError(f"{folder} exists and is not this comparison: choose another out=")
    return text


def _render(groups: Groups, command: str) -> str:
    """Return the rendered block of the README: command, groups, both tables, picture."""
    names = [
        {
            "group": letter,
            "seeds": ", ".join(str(run.seed) for run in group),
            "run folders": ", ".join(f"`{run.folder}`" for run in group),
        }
        for letter, group in groups.items()
    ]
    keys = _list_differing_keys(groups)
    configs = [{"key": f"`{key}`"} | {letter: _show(group[0], key) for letter, group in groups.items()} for key in keys]
    parts = [
        command,
        markdown_table(names),
        "Runs that differ only in the seed are one group. A number is the mean over its n runs; if they differ, the"
        " smallest and the largest value follow in parentheses.",
        *_list_warnings(groups, keys),
        "## What differs in the configs",
        markdown_table(configs) if configs else "No key that changes a number differs.",
        "## Scores",
        markdown_table(_tabulate_scores(groups)),
        *_list_settings(groups),
        "Time is wall clock: it compares only on equal hardware with nothing else running.",
        "![Curves of the logs, one line per group](compare.png)",
    ]
    return "\n\n".join(parts)


def _list_differing_keys(groups: Groups) -> list[str]:
    return find_differing_keys([group[0].config for group in groups.values()])


def _show(run: Content, key: str) -> str:
    """Return the value of a key of a config as text; - if the config has no such key."""
    config = ADDED | run.config
    return format_value(config[key]) if key in config else "-"


def _list_warnings(groups: Groups, keys: list[str]) -> list[str]:
    """Return a paragraph per reason why numbers of the groups do not compare."""
    warnings, data = [], [key for key in keys if key.startswith("data.")]
    if data:
        places = " (The same files at another place are the same data.)" * set(data).issubset(PLACES)
        warnings.append(
            f"**The groups have different data** ({', '.join(f'`{key}`' for key in data)}): distances, losses and"
            f" scores of different data are not comparable.{places}"
        )
    if len({group[0].step for group in groups.values()}) > 1:
        warnings.append("**The logs end at different steps**: compare the curves at equal numbers of updates.")
    eager = [(run.folder, run.eager_steps) for group in groups.values() for run in group if run.eager_steps]
    if eager:
        places = ", ".join(f"`{folder}` ({', '.join(steps)})" for folder, steps in eager)
        warnings.append(
            f"**Steps that were to be compiled were computed in eager mode** in {places}: these times cannot be"
            " compared. `provenance.jsonl` says why."
        )
    return warnings


def _list_measures(groups: Groups) -> list[Measure]:
    """Return what is compared: METRICS of the logs, and everything in scores.jsonl, if at least one run has it."""
    measured = dict.fromkeys(measure for group in groups.values() for run in group for measure in run.curves)
    logged = sorted((m for m in measured if m.name in METRICS and not m.score), key=lambda m: [*METRICS].index(m.name))
    return logged + [measure for measure in measured if measure.score]


def _list_places(groups: Groups, measure: Measure) -> list[tuple[str, list[int | None]]]:
    """Return where a measure is shown: a text, and one step per group; None: the only step that each run has.

    Numbers at different steps do not compare, so that there is one place per step. The best checkpoint is at another
    step in every run.
    """
    settings = _describe_settings(measure, _find_differing_settings(groups, measure.score))
    suffix = f"; {settings}" if settings else ""
    if not measure.score:
        return [(END_OF_LOG + suffix, [group[0].step for group in groups.values()])]
    curves = [run.curves.get(measure, {}) for group in groups.values() for run in group]
    steps = sorted({step for curve in curves for step in curve})
    if measure.best:
        between = f"step {steps[0]:,}" + f" to {steps[-1]:,}" * (len(steps) > 1)
        return [(f"{measure.best}, {between}{suffix}", [None] * len(groups))]
    return [(f"checkpoint of step {step:,}{suffix}", [step] * len(groups)) for step in steps]


def _tabulate_scores(groups: Groups) -> list[dict[str, str]]:
    """Return the rows of the table of scores. Columns without any text are left out."""
    heads = [f"{letter} (n = {len(group)})" for letter, group in groups.items()]
    label, place, real = "score", "measured at", "real against real"
    end = {place: END_OF_LOG, real: ""}
    steps = [f"{group[0].step:,}" for group in groups.values()]
    seconds = [[run.seconds for run in group if run.seconds is not None] for group in groups.values()]
    times = [_format([value / 60 for value in values], len(values)) for values in seconds]
    rows = [{label: "`step`", **end, **dict(zip(heads, steps, strict=True))}]
    rows += [{label: "time of training (min)", **end, **dict(zip(heads, times, strict=True))}] * any(seconds)
    for measure in _list_measures(groups):
        name = measure.name if measure.name.startswith(measure.score) else f"{measure.score}: {measure.name}"
        for text, steps in _list_places(groups, measure):
            pairs = list(zip(groups.values(), steps, strict=True))
            values = [_select([run.curves for run in group], measure, step) for group, step in pairs]
            reals = [_select([run.reals for run in group], measure, step) for group, step in pairs]
            cells = [_format(numbers, len(group)) for numbers, (group, _) in zip(values, pairs, strict=True)]
            rows.append({label: f"`{name}`", place: text, real: _format_reals(groups, reals)})
            rows[-1] |= dict(zip(heads, cells, strict=True))
    empty = [real] * (not any(row[real] for row in rows)) + [place] * all(row[place] == end[place] for row in rows)
    return [{column: cell for column, cell in row.items() if column not in empty} for row in rows]


def _select(runs: list[dict[Measure, dict[int, float]]], measure: Measure, step: int | None) -> list[float]:
    """Return the values of the runs that have the measure at a step; None: at the only step that they have."""
    curves = [curves[measure] for curves in runs if measure in curves]
    return [curve[max(curve) if step is None else step] for curve in curves if step is None or step in curve]


def _format(values: list[float], size: int) -> str:
    """Format numbers as mean (smallest ... largest), or as one if they are equal, and n if they are fewer than size."""
    if not values:
        return "-"
    mean = values[0] if len(set(values)) == 1 else sum(values) / len(values)
    low, middle, high = (f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for v in (min(values), mean, max(values)))
    return middle + f" ({low} ... {high})" * (low != high) + f"; n = {len(values)}" * (len(values) < size)


def _format_reals(groups: Groups, reals: list[list[float]]) -> str:
    """Format the numbers of real samples: one cell, or one per group if the groups differ."""
    cells = {letter: _format(values, len(values)) for letter, values in zip(groups, reals, strict=True) if values}
    if len(set(cells.values())) == 1:
        return next(iter(cells.values()))
    return ", ".join(f"{letter}: {cell}" for letter, cell in cells.items())


def _find_differing_settings(groups: Groups, score: str) -> list[str]:
    """Return the settings that are not equal for all numbers of a score; of metrics, only some have settings."""
    measures = [measure for measure in _list_measures(groups) if measure.score == score]
    return find_differing_keys([dict(m.settings) for m in measures if m.score or m.settings])


def _describe_settings(measure: Measure, names: list[str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in measure.settings if name in names)


def _list_settings(groups: Groups) -> list[str]:
    """Return a list with one line per score: the settings that all of its numbers have in common."""
    firsts: dict[str, Measure] = {}
    for measure in _list_measures(groups):
        if measure.settings:
            firsts.setdefault(measure.score, measure)
    lines = []
    for score, measure in firsts.items():
        differing = _find_differing_settings(groups, score)
        common = _describe_settings(measure, [name for name, _ in measure.settings if name not in differing])
        name = f"`{score}`" if score else "scores in the log"
        lines += [f"- Settings of {name}: {common}"] * bool(common)
    return ["\n".join(lines)] if lines else []


def _list_panels(groups: Groups) -> dict[tuple[str, str], list[dict[int, list[float]]]]:
    """Return title and name of each panel -> one curve per group: step -> the values of its runs.

    A panel has one metric of the log, and the curves of two groups or more.
    """
    panels = {}
    for measure in (measure for measure in _list_measures(groups) if not measure.score):
        curves = []
        for group in groups.values():
            parts = [run.curves.get(measure, {}) for run in group]
            steps = sorted(set(parts[0]).intersection(*parts))  # where all runs of the group have a value
            curves.append({step: [part[step] for part in parts] for step in steps})
        settings = _describe_settings(measure, _find_differing_settings(groups, ""))
        if sum(map(bool, curves)) >= min(2, len(groups)):
            panels[METRICS[measure.name] + f"; {settings}" * bool(settings), measure.name] = curves
    return panels


def _label_groups(groups: Groups) -> list[str]:
    """Return the label of each group in the legend: its letter, its number of runs, and up to three differing keys.

    If no key or more keys differ, the label has the name of the folder of its first run.
    """
    keys, labels = _list_differing_keys(groups), []
    different_steps = len({group[0].step for group in groups.values()}) > 1
    for letter, group in groups.items():
        parts = [f"{key} = {_show(group[0], key)}" for key in keys] + [f"{group[0].step:,} updates"] * different_steps
        text = ", ".join(parts) if keys and len(keys) <= 3 else group[0].folder.resolve().name
        labels.append(f"{letter} (n = {len(group)}): {textwrap.shorten(text, LABEL, placeholder=' ...')}")
    return labels


def _draw(path: Path, groups: Groups, panels: dict[tuple[str, str], list[dict[int, list[float]]]]) -> None:
    """Draw one panel per metric: per group a line for the mean over its runs, and a band for their range."""
    labels, handles = _label_groups(groups), {}
    colors, styles = LINES["color"], LINES["linestyle"]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend_columns = 1 if max(map(len, labels)) > 60 else 2
    with open_figure(path, 2.1 * rows + 0.18 * math.ceil(len(labels) / legend_columns) + 0.4) as figure:
        for position, ((title, name), curves) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, position)
            for i, (label, curve) in enumerate(zip(labels, curves, strict=True)):
                line = {"color": colors[i % len(colors)], "linestyle": styles[(i + i // len(colors)) % len(styles)]}
                line |= {"linewidth": 1.2, "marker": "o" if len(curve) == 1 else None, "markersize": 4}
                means = [sum(values) / len(values) for values in curve.values()]
                (handle,) = axes.plot(list(curve), means, **line)
                low, high = ([choose(values) for values in curve.values()] for choose in (min, max))
                axes.fill_between(list(curve), low, high, color=line["color"], alpha=0.2, linewidth=0)
                handles.setdefault(label, handle)
            axes.set(title=title, xlabel="generator updates", ylabel=name)
            axes.grid(alpha=0.3)
        several = any(len(group) > 1 for group in groups.values())
        figure.suptitle("line: mean over the runs of a group; band: their range" if several else "one run per line")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=legend_columns)
