"""Figure 1b: the gradient at every layer of a deep critic, and the critic's weights, with clipping and the penalty."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wgangp.data.toy import SwissRoll
from wgangp.figures.common import describe_range, draw_band, format_spread, make_run, select, train_networks
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.penalty import GradientPenalty, clip_weights_
from wgangp.plots import BAR, open_figure
from wgangp.seeds import draw_latent, initialize
from wgangp.state import convert_to_float64

__all__ = ["GradientNorms"]

CRITICS = {"clip 0.1": 0.1, "clip 0.01": 0.01, "clip 0.001": 0.001, "penalty": None}  # name -> bound of the weights
POINTS = 2_000  # of each kind, for the gradients
BINS = 80  # of the histograms


@dataclass(frozen=True)
class GradientNorms:
    """Critics of `depth` hidden ReLU layers without norm, with a generator of the same shape, on the Swiss roll.

    With clipping the optimizer is RMSProp, with the penalty it is Adam.

    Paper: figure 1b, with 12 layers. The width, the learning rates and the number of updates are not given, and the
    code is not released.
    """

    width: int
    steps: int
    lr: float = 1e-4
    batch_size: int = 256
    depth: int = 12

    def cells(self) -> list[dict[str, str]]:
        return [{"critic": critic} for critic in CRITICS]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        data, clip = SwissRoll(device), CRITICS[cell["critic"]]
        sizes = {"width": self.width, "depth": self.depth}
        generator = initialize(lambda: MLPGenerator(data.shape, **sizes), seed, "generator").to(device)
        critic = initialize(lambda: MLPCritic(data.shape, **sizes), seed, "critic").to(device)
        if clip is not None:
            clip_weights_(critic, clip)  # as after the first update: it shows what is there before the critic learns
        (real,) = data.batch(0, POINTS, seed, "heldout")
        latent = draw_latent(generator, POINTS, seed, 0, "figure", device)
        with torch.no_grad():
            fake = generator(*latent)
        before = {"norms": layer_gradients(critic, real, fake), "at_the_bound": share_at_bound(critic, clip)}

        penalty = GradientPenalty(weight=10.0 if clip is None else 0.0)
        train_networks(
            folder,
            make_run(generator, critic, data, penalty, self.lr, seed, clipping=clip is not None),
            steps=self.steps,
            clip_weights=clip,
            batch_size=self.batch_size,
            log_every=max(1, self.steps // 20),
            report_size=self.batch_size,
        )

        with torch.no_grad():
            fake = generator(*latent)
        weights = all_weights(critic)
        edge = 1.05 * (clip or weights.abs().sort().values[int(0.999 * len(weights))].item())
        counts, edges = torch.histogram(weights, BINS, range=(-edge, edge))
        return {
            "norms": layer_gradients(critic, real, fake),
            "at_the_bound": share_at_bound(critic, clip),
            "before": before,
            "histogram": {"counts": counts.tolist(), "edge": edges[-1].item()},
        }

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        with open_figure(path, 4.2) as figure:
            left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
            axes = left.subplots()
            for critic in CRITICS:
                runs = select(records, critic=critic)
                after, before = (
                    torch.tensor([[_log10(norm) for norm in norms] for norms in lists])
                    for lists in ([run["norms"] for run in runs], [run["before"]["norms"] for run in runs])
                )
                layers = range(1, after.shape[1] + 1)
                color = draw_band(axes, layers, after, marker="o", markersize=4, label=critic)
                axes.plot(layers, before.mean(0), linestyle=":", linewidth=0.8, color=color)
            axes.plot([], [], linestyle=":", linewidth=0.8, color="gray", label="before training, clipped once")
            axes.set(
                title="gradient of the critic loss at the activations of each layer",
                xlabel="hidden layer of the critic; 1 is next to the input",
                ylabel="log10 of the norm",
            )
            axes.grid(alpha=0.3)
            axes.legend()
            for axes, critic in zip(right.subplots(2, 2).flat, CRITICS, strict=True):
                histogram = select(records, critic=critic)[0]["histogram"]
                edges = torch.linspace(-histogram["edge"], histogram["edge"], BINS + 1)
                axes.stairs(histogram["counts"], edges, fill=True, color=BAR)
                tick = histogram["edge"] / 1.05
                axes.set(title=f"critic weights, {critic}", yticks=[], xticks=[-tick, 0, tick])
                axes.set_xticklabels([f"{-tick:.3g}", "0", f"{tick:.3g}"])
            figure.suptitle(
                f"Swiss roll, {self.depth} hidden layers of width {self.width}, {self.steps:,} generator updates;"
                f" {describe_range(records)}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        rows = []
        for critic in CRITICS:
            runs = select(records, critic=critic)
            largest = max(max(map(_log10, run["norms"])) - min(map(_log10, run["norms"])) for run in runs)
            at_bound, at_bound_before = (
                "" if None in shares else format_spread(shares, ".0%")
                for shares in ([run["at_the_bound"] for run in runs], [run["before"]["at_the_bound"] for run in runs])
            )
            rows.append(
                {
                    "critic": critic,
                    f"growth of the gradient from layer {self.depth} to layer 1 (log10)": format_spread(
                        [growth(run["norms"]) for run in runs], "+.1f"
                    ),
                    "growth before training, clipped once": format_spread(
                        [growth(run["before"]["norms"]) for run in runs], "+.1f"
                    ),
                    "largest difference between two layers": f"{largest:.1f}",
                    "weights within 1 % of +-c": at_bound,
                    "weights within 1 % of +-c before training": at_bound_before,
                }
            )
        return rows


def growth(norms: list[float]) -> float:
    """Compute by how many orders of magnitude the gradient grows from the last hidden layer to the first."""
    return _log10(norms[0]) - _log10(norms[-1])


def layer_gradients(critic: nn.Module, real: Tensor, fake: Tensor) -> list[float]:
    """Compute ||d loss / d h_l|| for the activations h_l (2 B, width) after every ReLU l, the first layer first.

    The loss is E D(fake) - E D(real), without the penalty, which is taken at other points. It is computed in float64,
    because gradients that vanish in float32 are still there in float64.

    Args:
        real, fake: points (B, d).
    """
    activations: list[Tensor] = []
    critic = convert_to_float64(critic)
    for module in critic.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: activations.append(output))
    sign = torch.cat([-real.new_ones(len(real)), real.new_ones(len(fake))]).double() / len(real)
    loss = (sign * critic(torch.cat([real, fake]).double())).sum()
    return [gradient.norm().item() for gradient in torch.autograd.grad(loss, activations)]


def all_weights(critic: nn.Module) -> Tensor:
    """Return all weights, without the biases, as one vector in float64."""
    return torch.cat([p.detach().flatten() for p in critic.parameters() if p.ndim == 2]).double().cpu()


def share_at_bound(critic: nn.Module, clip: float | None) -> float | None:
    """Compute the share of the weights within 1 % of +-clip; None without clipping."""
    return None if clip is None else (all_weights(critic).abs() >= 0.99 * clip).double().mean().item()


def _log10(value: float) -> float:
    """log10, and -45 for values below the smallest float32, as in a critic whose units are all dead."""
    return math.log10(max(value, 1e-45))
