"""The tables of README.md and results/README.md, rendered from the folders in results/."""

import statistics
from pathlib import Path
from typing import Any

from wgangp.figures.common import count_seeds, select
from wgangp.figures.digest import read_records
from wgangp.logs import describe_hardware, read_lines, read_metrics, read_timing
from wgangp.tables import markdown_table, replace_block

__all__ = ["COUNTED_NETWORKS", "render_evidence", "render_origins", "render_summary"]

COUNTED_NETWORKS = 28  # networks whose parameters are counted in tests/
NOT_RUN = "not run yet"
LAMBDA = 10.0  # of the critics in the table of evidence

RUNS = {  # folder in results/ -> what a reader types
    "toy": "`scripts/train.py` (8 Gaussians)",
    "mnist_run": "`experiment=mnist train.steps=2500`",
    "cifar_dcgan": "`experiment=cifar_dcgan budget=cpu`, on CIFAR-10 (JPEG copy)",
    "cifar_cars": "`experiment=cifar_resnet` at a small size, on the cars of CIFAR-10 (JPEG copy)",
    "cifar_resnet": "`experiment=cifar_resnet` at a small size, on CIFAR-10 (JPEG copy)",
    "conditional_digits": "`experiment=cifar_resnet_conditional` at a small size, on digits",
    "cifar_resnet_gpu": "`experiment=cifar_resnet`, bf16 (also the penalty), on CIFAR-10 (JPEG copy), GPU",
}
BEGIN, END = "<!-- rendered by scripts/render.py -->", "<!-- /rendered -->"
BEGIN_RUNS, END_RUNS = "<!-- numbers of the runs, rendered by scripts/render.py -->", "<!-- /numbers of the runs -->"


def render_evidence(readme: str, results: Path) -> str:
    """Return README.md with its table of evidence: four rows, what was published beside what was measured here."""
    rows = [
        {
            "question": "Are the networks those of the released code?",
            "published": f"parameters of {COUNTED_NETWORKS} networks",
            "here": f"{COUNTED_NETWORKS} of {COUNTED_NETWORKS} are equal; initial values and padding are tests",
            "seeds": "",
            "command": "`python -m pytest -k parameter_counts`",
        },
        {"question": "Is a known W1 estimated? Error, 12 pairs: median (worst)"}
        | _compare_distances(results / "korotin"),
        {"question": "Stacked MNIST: modes of 1,000"} | _compare_modes(results / "stacked_mnist"),
        {"question": "How Lipschitz is the critic? lambda 10, 3 data sets"}
        | _compare_constants(results / "lipschitz_table"),
    ]
    return replace_block(readme, BEGIN, END, markdown_table(rows))


def _compare_distances(folder: Path) -> dict[str, str]:
    runs = select(read_records(folder), critic="two-sided")

    def describe(name: str, values: list[float]) -> str:
        return f"{name} {statistics.median(values):+.0%} ({max(values, key=abs):+.0%})"

    errors = {name: [run[name] / run["distance"] - 1 for run in runs] for name in ("gap", "corrected", "proved")}
    theirs = [run["published"] / run["published_distance"] - 1 for run in runs]
    return {
        "published": describe("WGAN-GP", theirs) if runs else "Korotin et al. 2022",
        "here": ", ".join(describe(name, values) for name, values in errors.items()) if runs else NOT_RUN,
        "seeds": _count(runs),
        "command": "`scripts/reproduce.py figure=korotin figure.data_root=FOLDER`",
    }


def _compare_modes(folder: Path) -> dict[str, str]:
    """Return the row of the modes of Stacked MNIST, after the last update of each run."""
    runs, texts = read_records(folder), []
    steps = runs[0]["steps"][-1] if runs else 14_000
    for row, name in {
        "one norm per sample": "one norm",
        "norms over the channels, eps per element": "norms as in their code",
    }.items():
        if values := [run["modes_covered"][-1] for run in select(runs, row=row) if run["finite"]]:
            texts.append(f"{name} {statistics.mean(values):.0f} ({_range(values, '.0f')})")
    return {
        "published": "WGAN-GP 959 (Kumar et al. 2019)",
        "here": ", ".join(texts) if texts else NOT_RUN,
        "seeds": _count(runs),
        "command": f"`scripts/reproduce.py figure=stacked_mnist figure.steps={steps}`",
    }


def _compare_constants(folder: Path) -> dict[str, str]:
    runs = select(read_records(folder), constraint="two-sided")
    constants = [run["constant"][1] for run in runs]
    slopes = [run["slopes"]["interpolates"]["mean"] for run in runs]
    expected = [1 + statistics.mean(run["w1"]) / (2 * LAMBDA) for run in runs]
    return {
        "published": "no constant",
        "here": NOT_RUN
        if not runs
        else f"constant {_range(constants)}; mean slope {_range(slopes)}; 1 + W1 / {2 * LAMBDA:g}: {_range(expected)}",
        "seeds": _count(runs),
        "command": '`scripts/reproduce.py figure=lipschitz_table "seeds=[0,1,2,3,4]"`',
    }


def _range(values: list[float], form: str = ".2f") -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _count(runs: list[dict[str, Any]]) -> str:
    return count_seeds(runs).split()[0] if runs else "0"


def render_summary(page: str, results: Path) -> str:
    """Return results/README.md with its table of results: one row per run."""
    rows = []
    for name, command in RUNS.items():
        last, seconds, _ = _read_run(results / name)
        slope = f"{last['slope_interpolates_mean']:.2f} +- {last['slope_interpolates_std']:.2f}"
        outcome = f"gap {last['wasserstein']:.2f} on training data, {last['heldout_wasserstein']:.2f} on held-out data"
        if "heldout_accuracy_fake" in last:
            outcome += f"; the critic names {last['heldout_accuracy_fake']:.0%} of fake samples right"
        if "modes" in last:
            outcome = f"{last['modes']} of 8 modes; {last['high_quality']:.0%} of samples within 3 sd of a mode"
        rows.append(
            {
                "run": command,
                "updates, time": f"{last['step']:,}, {seconds / 60:.0f} min",
                "slope at interpolates": slope,
                "result": outcome,
            }
        )
    return replace_block(page, BEGIN_RUNS, END_RUNS, markdown_table(rows))


def render_origins(readme: str, results: Path) -> str:
    """Return results/README.md with its table of origins: command, commit and hardware of each run."""
    rows = []
    for name in RUNS:
        _, _, origins = _read_run(results / name)
        commits = dict.fromkeys(o["commit"][:7] + (" (changed)" if o["dirty"] else "") for o in origins)
        newest = origins[-1]
        rows.append(
            {
                "folder": f"[{name}]({name})",
                "command": f"`{newest['command']}`",
                "commit": ", ".join(commits),
                "hardware": describe_hardware(newest),
            }
        )
    return replace_block(readme, BEGIN, END, markdown_table(rows))


def _read_run(folder: Path) -> tuple[dict[str, Any], float, list[dict[str, Any]]]:
    """Return the last line of the log, the seconds of training, and the provenance."""
    seconds = read_timing(folder)[-1]["elapsed_s"]
    return read_metrics(folder / "metrics.jsonl")[-1], seconds, read_lines(folder / "provenance.jsonl")
