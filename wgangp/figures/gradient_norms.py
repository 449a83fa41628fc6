"""Figure 1b: how gradients pass through deep critics, and where the weights go, with clipping and with the penalty."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from wgangp.certify import in_float64
from wgangp.data.toy import SwissRoll
from wgangp.figures.common import over, seeds_of, select, spread, train_both
from wgangp.networks.layers import ReLU
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.penalty import GradientPenalty, clip_weights_
from wgangp.seeds import initialised, noise

__all__ = ["GradientNorms"]

CLIPS = {"clip 0.1": 0.1, "clip 0.01": 0.01, "clip 0.001": 0.001, "penalty": None}
POINTS, BINS = 2_000, 80


@dataclass(frozen=True)
class GradientNorms:
    """12 hidden ReLU layers in both players, no norm; Swiss roll; RMSProp 5e-5 for clipping, Adam for the penalty.

    Paper: figure 1b; width, rates and iterations are not given there, and the code is not released.
    """

    width: int
    steps: int
    lr: float = 1e-4
    batch_size: int = 256
    depth: int = 12

    PAPER: ClassVar = (
        "with clipping the gradient norm grows (c = 0.1) or decays (0.01, 0.001) exponentially with depth, the more the"
        " further c is from a value in between; with the penalty it is flat; clipped weights pile up at +-c"
    )

    @property
    def why(self) -> str:
        gain = 0.1 * math.sqrt(self.width / 2)
        return (
            "their width and number of updates are not given, and both move the size of the growth or decay: a"
            " layer of weights +-c scales the gradient by about c sqrt(width / 2) when their signs are random,"
            f" which at width {self.width} is {gain:.2g} for c = 0.1, and up to c width / 2 when they agree. What"
            " c = 0.01 and 0.001 show is there before training: the first clip makes it. With the penalty few"
            " updates leave the weights near their uniform initial ones, where the paper's are bell-shaped"
        )

    def cells(self) -> list[dict[str, str]]:
        return [{"critic": critic} for critic in CLIPS]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        data, clip = SwissRoll(device), CLIPS[cell["critic"]]
        sizes = {"width": self.width, "depth": self.depth}
        generator = initialised(lambda: MLPGenerator(data.shape, **sizes), seed, "generator").to(device)
        critic = initialised(lambda: MLPCritic(data.shape, **sizes), seed, "critic").to(device)
        if clip is not None:
            clip_weights_(critic, clip)  # as the first update would: what is there before anything is learned
        real, _ = data.batch(0, POINTS, seed, "heldout")
        noisy = noise(generator, POINTS, seed, 0, "figure", device)
        with torch.no_grad():
            fake = generator(noisy)
        before = {"norms": layer_gradients(critic, real, fake), "at_the_bound": at_the_bound(critic, clip)}
        train_both(
            folder,
            generator,
            critic,
            data,
            GradientPenalty(weight=10.0 if clip is None else 0.0),
            self.lr,
            seed=seed,
            steps=self.steps,
            batch_size=self.batch_size,
            log_every=max(1, self.steps // 20),
            report_size=self.batch_size,
            clip_weights=clip,
        )
        with torch.no_grad():
            fake = generator(noisy)
        weights = weights_of(critic)
        edge = 1.05 * (clip or weights.abs().sort().values[int(0.999 * len(weights))].item())
        counts, edges = torch.histogram(weights, BINS, range=(-edge, edge))
        return {
            "norms": layer_gradients(critic, real, fake),
            "at_the_bound": at_the_bound(critic, clip),
            "before": before,
            "histogram": {"counts": counts.tolist(), "edge": edges[-1].item()},
        }

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        figure = Figure(figsize=(13, 6), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
        axes = left.subplots()
        for critic in CLIPS:
            mine = select(records, critic=critic)
            log10 = torch.tensor([[_log10(v) for v in r["norms"]] for r in mine])
            layers = range(1, log10.shape[1] + 1)
            (line,) = axes.plot(layers, log10.mean(0), marker="o", markersize=4, label=critic)
            before = torch.tensor([[_log10(v) for v in r["before"]["norms"]] for r in mine]).mean(0)
            axes.plot(layers, before, linestyle=":", linewidth=1, color=line.get_color())
            axes.fill_between(layers, log10.amin(0), log10.amax(0), alpha=0.2, color=line.get_color())
        axes.set(
            title="gradient of the critic loss at each layer's activations",
            xlabel="hidden layer of the critic (1 is next to the input; the gradient comes from the right)",
            ylabel="log10 of its norm",
        )
        axes.plot([], [], linestyle=":", linewidth=1, color="gray", label="before training, clipped once")
        axes.grid(alpha=0.3)
        axes.legend()
        for axes, critic in zip(right.subplots(2, 2).flat, CLIPS, strict=True):
            histogram = select(records, critic=critic)[0]["histogram"]
            edges = torch.linspace(-histogram["edge"], histogram["edge"], BINS + 1)
            axes.stairs(histogram["counts"], edges, fill=True, color="#1b7837")
            tick = histogram["edge"] / 1.05
            axes.set(title=f"critic weights, {critic}", yticks=[], xticks=[-tick, 0, tick])
            axes.set_xticklabels([f"{-tick:.3g}", "0", f"{tick:.3g}"])
        figure.suptitle(
            f"Swiss roll, {self.depth} hidden layers of {self.width}, {self.steps:,} generator updates;"
            f" mean and range of {seeds_of(records)}"
        )
        figure.savefig(path, dpi=100)

    def findings(self, records: list[dict[str, Any]]) -> str:
        norms = {critic: [r["norms"] for r in select(records, critic=critic)] for critic in CLIPS}
        said = [f"{critic} {spread([gained(each) for each in norms[critic]], '+.1f')}" for critic in CLIPS]
        return (
            f"orders of magnitude that the gradient gains from hidden layer {self.depth} down to 1: {', '.join(said)}"
            f" ({over(records)})"
        )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for critic in CLIPS:
            mine = select(records, critic=critic)
            widest = max(max(map(_log10, r["norms"])) - min(map(_log10, r["norms"])) for r in mine)
            first, last = ([part["at_the_bound"] for part in parts] for parts in ([r["before"] for r in mine], mine))
            clipped = None not in last
            rows.append(
                {
                    "critic": critic,
                    "orders of magnitude gained": spread([gained(r["norms"]) for r in mine], "+.1f"),
                    "before training, clipped once": spread([gained(r["before"]["norms"]) for r in mine], "+.1f"),
                    "at most, between two layers": f"{widest:.1f}",
                    "weights within 1 % of +-c": spread(last, ".0%") if clipped else "",
                    "before training": spread(first, ".0%") if clipped else "",
                }
            )
        return rows


def gained(norms: list[float]) -> float:
    """Orders of magnitude from the last hidden layer's gradient to the first's: + where it grows on its way down."""
    return _log10(norms[0]) - _log10(norms[-1])


def layer_gradients(critic: nn.Module, real: Tensor, fake: Tensor) -> list[float]:
    """||d loss / d h_l|| for the activations h_l (2 B, width) behind every ReLU l, from the input to the score.

    The loss is E D(fake) - E D(real): the penalty is left out, since it is taken at other points. In float64, where
    what vanishes in float32 is still there.
    """
    activations: list[Tensor] = []
    critic = in_float64(critic)
    for module in critic.modules():
        if isinstance(module, ReLU):
            module.register_forward_hook(lambda module, inputs, output: activations.append(output))
    sign = torch.cat([-real.new_ones(len(real)), real.new_ones(len(fake))]).double() / len(real)
    loss = (sign * critic(torch.cat([real, fake]).double())).sum()
    return [gradient.norm().item() for gradient in torch.autograd.grad(loss, activations)]


def weights_of(critic: nn.Module) -> Tensor:
    """All weights, without the biases, as one vector in float64."""
    return torch.cat([p.detach().flatten() for p in critic.parameters() if p.ndim == 2]).double().cpu()


def at_the_bound(critic: nn.Module, clip: float | None) -> float | None:
    """The share of the weights within 1 % of +-clip."""
    return None if clip is None else (weights_of(critic).abs() >= 0.99 * clip).double().mean().item()


def _log10(value: float) -> float:
    """log10, and -45 for what is below the smallest float32, as in a critic whose units are all dead."""
    return math.log10(max(value, 1e-45))
