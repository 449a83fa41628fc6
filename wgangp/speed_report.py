"""What scripts/benchmark.py shows of its records: the table, the targets, the picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["page", "picture", "rows", "targets", "width_of"]

Record = dict[str, Any]
COLOURS = {"textbook": "#888888", "eager": "#7fcdbb", "compiled": "#2c7fb8"}
FP32 = ("eager", "eager, channels last", "compiled", "compiled, channels last")
BF16 = ("bf16", "bf16, channels last")
TARGETS: list[tuple[str, str, str, tuple[str, ...], str, float]] = [  # device, case, what, variants, at least/most
    ("cpu", "MNIST DCGAN", "critic_step_ratio", FP32, "<=", 0.80),
    ("cpu", "toy MLP", "critic_step_ratio", FP32, "<=", 0.72),
    ("cpu", "MNIST DCGAN", "critic_step_ratio", BF16, "<=", 0.50),
    ("cpu", "toy MLP", "critic_step_ratio", BF16, "<=", 0.50),
    ("cpu", "MNIST DCGAN", "iteration_ratio", FP32, "<=", 0.75),
    ("cpu", "toy MLP", "iteration_ratio", FP32, "<=", 0.75),
    ("cpu", "CIFAR DCGAN", "iteration_ratio", FP32, "<=", 0.75),
    ("cpu", "CIFAR ResNet", "iteration_ratio", FP32, "<=", 0.75),
    ("cpu", "MNIST DCGAN", "critic_step_share_of_floor", FP32, ">=", 0.85),
    ("cuda", "CIFAR DCGAN", "iteration_ratio", (*FP32, *BF16), "<=", 0.25),
    ("cuda", "CIFAR ResNet", "iteration_ratio", (*FP32, *BF16), "<=", 0.25),
    ("cuda", "CIFAR ResNet", "minutes_of_100000", (*FP32, *BF16), "<=", 25.0),
]
TARGETS += [
    (device, case, "memory_ratio", FP32, "<=", 1.0)
    for device in ("cpu", "cuda")
    for case in ("toy MLP", "MNIST DCGAN", "CIFAR DCGAN", "CIFAR ResNet")
]
WORDS = {
    "critic_step_ratio": "critic step, ratio to textbook",
    "iteration_ratio": "whole iteration, ratio to textbook",
    "critic_step_share_of_floor": "critic step, share of the floor",
    "minutes_of_100000": "minutes for 100,000 generator updates",
    "memory_ratio": "peak memory of an iteration, the most of any variant, ratio to textbook",
}


def rows(records: list[Record]) -> list[dict[str, str]]:
    """The table: a row for each variant of each case."""

    def milliseconds(record: Record, part: str) -> str:
        low, high = (1e3 * value for value in record[f"{part}_quartiles_s"])
        return f"{1e3 * record[f'{part}_s']:.3g} ({low:.3g} to {high:.3g})"

    return [
        {
            "case": record["case"],
            "variant": record["variant"],
            "gradient error": f"{record['gradient_error']:.1g}",
            "critic step, ms": milliseconds(record, "critic_step"),
            "penalty's share": f"{record['penalty_share']:.0%}",
            "generator step, ms": milliseconds(record, "generator_step"),
            "whole iteration, ms": milliseconds(record, "iteration"),
            "real samples/s": f"{record['samples_per_s']:,.0f}",
            "critic step: GFLOP": f"{record['critic_step_gflop']:.3g}",
            "floor, ms": f"{1e3 * record['floor_of_critic_step_s']:.3g}",
            "of the floor: critic step, iteration": f"{record['critic_step_share_of_floor']:.0%},"
            f" {record['iteration_share_of_floor']:.0%}",
            "peak MB": f"{record['peak_memory_mb']:.3g}",
            "ratio: critic step": f"{record['critic_step_ratio']:.2f}",
            "ratio: iteration": f"{record['iteration_ratio']:.2f}",
        }
        for record in records
        if "grows" not in record
    ]


def targets(found: dict[str, list[Record]]) -> list[dict[str, str]]:
    """Each target: what was reached by the best of its variants (of memory: by the worst), or that it was not run.

    What is asked of a GPU is asked of the released widths: other records do not count.
    """
    lines = []
    for device, case, what, variants, sense, bound in TARGETS:
        records = [r for r in found.get(device, []) if r.get("case") == case and "grows" not in r]
        records = [r for r in records if device == "cpu" or r["budget"] == "paper"]
        values = {r["variant"]: _value(what, r, records) for r in records if r["variant"] in variants}
        line = {"device": device, "case": case, "what": WORDS[what], "target": f"{sense} {bound:g}"}
        if not values:
            lines.append({**line, "reached": "not run", "by": "", "met": "not run"})
            continue
        best: Callable[..., str] = max if sense == ">=" or what == "memory_ratio" else min
        by = best(values, key=values.__getitem__)
        met = values[by] <= bound if sense == "<=" else values[by] >= bound
        lines.append({**line, "reached": f"{values[by]:.2f}", "by": by, "met": "yes" if met else "**no**"})
    return lines


def _value(what: str, record: Record, records: list[Record]) -> float:
    if what == "memory_ratio":
        textbook = next(r for r in records if r["variant"] == "textbook")
        return record["peak_memory_mb"] / textbook["peak_memory_mb"]
    if what == "minutes_of_100000":
        return record["iteration_s"] * 100_000 / 60
    return record[what]


def width_of(record: Record) -> str:
    """A sentence on the networks that were timed."""
    if record["budget"] == "paper":
        return "Widths as released."
    return "The CIFAR pairs have a quarter of the released width."


def page(found: dict[str, list[Record]]) -> str:
    """README.md of the results folder: what was run, the targets, a table a device, the picture."""
    parts = ["<!-- written by scripts/benchmark.py; its words stand in wgangp/speed_report.py -->", "# Speed", ""]
    for device, records in found.items():
        about = records[-1]
        changed = " (changed)" if about["dirty"] else ""
        parts += [
            f"- **Run on {device}**: `{about['command']}` at {(about['commit'] or 'unknown')[:7]}{changed};"
            f" {about['device']}, torch {about['torch']}; {about['rounds']} rounds, medians and quartiles over rounds."
            f" {width_of(about)}"
        ]
    if "cuda" not in found:
        parts.append("- **Not run**: anything on a GPU. The same command measures it there, at the released widths.")
    parts += [WHAT, "## Targets", "", _markdown(targets(found)), ""]
    for device, records in found.items():
        parts += [f"## {device}", "", _markdown(rows(records)), "", f"![Ratios and growth, {device}]({device}.png)", ""]
    return "\n".join(parts)


WHAT = """- **Textbook**: three critic forwards, torch's own layers, `autograd.grad(create_graph=True)`, Adam as it is,
  a DataLoader of PIL pictures with transforms; critic weights get gradients in the generator's step. The others are
  the steps that `scripts/train.py` takes.
- **Gradient error**: of both players' parameter gradients on one batch against float64, relative, the larger; before
  timing.
- **GFLOP**: of one critic step, counted call by call with the formulas of torch's FLOP counter (for a compiled
  variant: of the eager one with the same arithmetic). The textbook has a pass of zeros more; on the ResNet it also
  convolves and then pools, where one convolution does both.
- **Floor**: the convolutions and matrix products of our eager step in the same arithmetic, at their shapes, one after
  another with nothing between them: the fastest of the memory layouts, and of torch and oneDNN. Above 100 %: the
  compiler found faster ones.
- **Penalty's share**: of the critic step's time, from the same step with weight 0.
- **Peak memory**: of a whole iteration; on a CPU beyond parameters, optimisers and data, on CUDA all of it.
- **Ratios** are medians over rounds of a round's ratio to the textbook. bf16: compiled; by itself, the penalty too.
"""


def _markdown(table: list[dict[str, str]]) -> str:
    cells = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def picture(path: Path, records: list[Record]) -> None:
    """Above: ratios of the whole iteration. Below: seconds of a critic step as sizes grow."""
    cases = list(dict.fromkeys(r["case"] for r in records if "grows" not in r))
    ways = list(dict.fromkeys(r["grows"] for r in records if "grows" in r))
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1)
    for axes, case in zip(above.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        here = [r for r in records if r.get("case") == case and "grows" not in r][::-1]
        axes.barh([r["variant"] for r in here], [r["iteration_ratio"] for r in here], color="#2c7fb8")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(title=case, xlabel="iteration, ratio to textbook", xlim=(0, None))
        for i, record in enumerate(here):
            axes.text(0.02, i, f"{record['iteration_ratio']:.2f}", va="center", color="white", fontsize=8)
    if ways:
        for axes, way in zip(below.subplots(1, len(ways), squeeze=False)[0], ways, strict=True):
            for variant, colour in COLOURS.items():
                here = [r for r in records if r.get("grows") == way and r["variant"] == variant]
                sizes = [r["size"] for r in here]
                axes.plot(sizes, [1e3 * r["critic_step_s"] for r in here], marker="o", color=colour, label=variant)
            network = "ResNet critic, pixels a side" if way == "resolution" else f"toy MLP, {way}"
            axes.set(xscale="log", yscale="log", xlabel=network, ylabel="critic step, ms", title=f"growth with {way}")
            axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            axes.set_xticks([], minor=True)
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
