"""The critic as an estimate of W1 on the benchmark of Korotin et al. 2022, beside their published values.

Their protocol: two hidden layers of max(2 D, 128), Adam (0, 0.9) with lr 2e-4, batch 1,024, lambda 10. Gaps are
estimated on 4,096 points.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wgangp.box import lipschitz_on_box
from wgangp.certify import certified_lipschitz
from wgangp.data.pairs import CUBE, korotin
from wgangp.figures.common import check_names, describe_range, draw_band, format_spread, select, train_on_pair
from wgangp.networks.mlp import MLPCritic
from wgangp.networks.orthogonal import OrthogonalCritic
from wgangp.penalty import GradientPenalty
from wgangp.plots import open_figure
from wgangp.seeds import initialize

__all__ = ["Korotin"]

DIMENSIONS, FUNNELS = (2, 8, 32), (4, 16, 64, 256)
CRITICS: dict[str, tuple[str, GradientPenalty, Callable[..., nn.Module]]] = {  # name -> their name, penalty, network
    "two-sided": ("wgan-gp", GradientPenalty(), MLPCritic),
    "one-sided": ("wgan-lp", GradientPenalty(sides="one"), MLPCritic),
    "by construction": ("sort-out", GradientPenalty(weight=0), OrthogonalCritic),
}
DEPTH, WIDTH, BETAS = 2, 128, (0.0, 0.9)
HELD_OUT = 4_096  # points of each side
BOX_DIMENSION = 3  # up to here the Lipschitz constant on the cube is computed


@dataclass(frozen=True)
class Korotin:
    """Critics on the pairs of the benchmark.

    Args:
        dims, funnels: of the pairs. critics: names from CRITICS; each is trained on each pair.
        data_root: the folder that has pairs.npz and published.csv (dim, funnels, method, cosine, l2, wasserstein).
        iterations: critic updates with a penalty. Paper: 60,000.
        sorted_iterations: updates of the critic that is 1-Lipschitz by construction. Paper: 25,000.
        compile: compute the gradients with torch.compile.
    """

    data_root: str
    iterations: int
    sorted_iterations: int
    dims: list[int]
    funnels: list[int]
    critics: list[str]
    lr: float = 2e-4
    batch_size: int = 1024
    compile: bool = False

    def __post_init__(self) -> None:
        check_names(self, dims=DIMENSIONS, funnels=FUNNELS, critics=CRITICS)

    def cells(self) -> list[dict[str, Any]]:
        return [
            {"critic": critic, "dim": dim, "funnels": funnels}
            for critic in self.critics
            for dim in self.dims
            for funnels in self.funnels
        ]

    def measure(self, cell: dict[str, Any], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        dim, (method, penalty, build) = cell["dim"], CRITICS[cell["critic"]]
        published = read_published(self.data_root, dim, cell["funnels"])
        pair = korotin(self.data_root, dim, cell["funnels"], device)
        critic = initialize(lambda: build(pair.shape, max(2 * dim, WIDTH), DEPTH), seed, "critic").to(device)
        options = {"lr": self.lr, "batch_size": self.batch_size, "betas": BETAS, "compile": self.compile}
        options["iterations"] = self.iterations if penalty.weight else self.sorted_iterations
        _, numbers = train_on_pair(critic, pair, penalty, seed, HELD_OUT, **options)
        if dim <= BOX_DIMENSION and penalty.weight:
            constant = list(lipschitz_on_box(critic, [-CUBE] * dim, [CUBE] * dim))
        else:
            constant = [0.0, certified_lipschitz(critic, pair.shape)]
        return numbers | {
            "published": published[method],
            "published_distance": published["true"],
            "constant": constant,
            "proved": numbers["gap"] / constant[1],
        }

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        with open_figure(path, 7.4) as figure:
            panels = figure.subplots(2, len(self.dims), sharex=True, sharey="row", squeeze=False)
            for column, dim in enumerate(self.dims):
                above, below = panels[0, column], panels[1, column]
                for name in self.critics:
                    runs = [select(records, dim=dim, funnels=funnels, critic=name) for funnels in self.funnels]
                    gaps = torch.tensor([[run["gap"] / run["distance"] for run in cell] for cell in runs])
                    color = draw_band(above, self.funnels, gaps.T, marker="o", markersize=4, label=f"gap, {name}")
                    theirs = [cell[0]["published"] / cell[0]["published_distance"] for cell in runs]
                    label = f"published, {CRITICS[name][0]}"
                    above.plot(self.funnels, theirs, "x", color=color, markersize=7, label=label)
                    proved = [[run["proved"] / run["distance"] for run in cell] for cell in runs]
                    below.plot(self.funnels, [sum(v) / len(v) for v in proved], marker="o", markersize=4, label=name)
                for axes, title in ((above, f"D = {dim}: estimate / true W1"), (below, "proved lower bound / true W1")):
                    axes.axhline(1, color="black", linestyle=":", linewidth=1)
                    axes.set(xscale="log", xticks=self.funnels, xticklabels=self.funnels, title=title, ylim=(0, None))
                    axes.minorticks_off()
                    axes.grid(alpha=0.3)
                below.set_xlabel("funnels N")
            figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
            others = f" ({self.sorted_iterations:,} by construction)" if "by construction" in self.critics else ""
            figure.suptitle(
                f"{self.iterations:,} critic updates{others}, batch {self.batch_size:,}; {describe_range(records)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [summarize_cell(cell, select(records, **cell)) for cell in self.cells()]


def read_published(root: str, dim: int, funnels: int) -> dict[str, float]:
    """Read the published estimates of W1 for a pair: method -> value. The method "true" is the true W1.

    Raises:
        ValueError: the file cannot be read, or it does not have the pair.
    """
    path = Path(root) / "published.csv"
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["dim"], row["funnels"]) == (str(dim), str(funnels))]
            values = {row["method"]: float(row["wasserstein"]) for row in rows}
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"figure.data_root: cannot read {path} ({error}). Set it to the folder that has pairs.npz and published.csv"
        ) from error
    missing = {"true", *(method for method, *_ in CRITICS.values())} - set(values)
    if missing:
        raise ValueError(f"{path} has no value of {', '.join(sorted(missing))} for dim {dim} and {funnels} funnels")
    return values


def summarize_cell(cell: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return a row of the table: mean +- standard deviation over the seeds of a cell."""

    def format_errors(key: str) -> str:
        return format_spread([run[key] / run["distance"] - 1 for run in runs], "+.1%")

    theirs = runs[0]["published"] / runs[0]["published_distance"] - 1
    return {
        "pair": f"D = {cell['dim']}, N = {cell['funnels']}",
        "critic": cell["critic"],
        "true W1": f"{runs[0]['distance']:.3f}",
        "published / W1 - 1": f"{theirs:+.1%}",
        "ours / W1 - 1": format_errors("gap"),
        "corrected / W1 - 1": format_errors("corrected") if cell["critic"] != "by construction" else "",
        "proved / W1 - 1": format_errors("proved"),
        "Lipschitz constant, or a bound": format_spread([run["constant"][1] for run in runs], ".2f"),
        "mean slope where mass moves": format_spread([run["slope"] for run in runs]),
        "cosine": format_spread([run["cosine"] for run in runs]),
    }
