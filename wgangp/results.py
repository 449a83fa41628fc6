"""The tables of README.md and results/README.md, rendered from the run folders in results/."""

from pathlib import Path
from typing import Any

from wgangp.logs import describe_hardware, read_lines, read_metrics, read_timing
from wgangp.tables import markdown_table, replace_block

__all__ = ["render_origins", "render_summary"]

RUNS = {  # folder in results/ -> what a reader types
    "toy": "`scripts/train.py` (8 Gaussians)",
    "mnist_run": "`experiment=mnist train.steps=2500`",
    "cifar_dcgan": "`experiment=cifar_dcgan budget=cpu`, on JPEG copies of CIFAR-10",
    "cifar_resnet": "`experiment=cifar_resnet budget=cpu`, on JPEG copies of CIFAR-10",
    "cifar_resnet_gpu": "`experiment=cifar_resnet`, bf16 (also the penalty), on JPEG copies of CIFAR-10, GPU",
}
BEGIN, END = "<!-- rendered by scripts/render.py -->", "<!-- /rendered -->"


def render_summary(readme: str, results: Path) -> str:
    """Return README.md with its table of results: one row per run."""
    rows = []
    for name, command in RUNS.items():
        last, seconds, _ = _read_run(results / name)
        slope = f"{last['slope_interpolates_mean']:.2f} +- {last['slope_interpolates_std']:.2f}"
        outcome = f"gap {last['wasserstein']:.2f} on training data, {last['heldout_wasserstein']:.2f} on held-out data"
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
    return replace_block(readme, BEGIN, END, markdown_table(rows))


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
    """The last line of the log, the seconds of training, and the provenance of a run folder."""
    seconds = read_timing(folder)[-1]["elapsed_s"]
    return read_metrics(folder / "metrics.jsonl")[-1], seconds, read_lines(folder / "provenance.jsonl")
