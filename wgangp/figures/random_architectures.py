"""Tables 1 and 2: random architectures, each trained as GAN and as WGAN-GP, and how many of them succeed."""

import json
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wgangp.checkpoint import write_atomic
from wgangp.figures.common import count_seeds, select
from wgangp.figures.image_runs import (
    NEVER,
    SCORES,
    build_score,
    check_samples,
    describe_real,
    format_score,
    list_data_options,
    score_images,
    train_finite,
)
from wgangp.plots import open_figure
from wgangp.runs import format_value
from wgangp.seeds import rng_for

__all__ = ["RandomArchitectures", "draw_architecture"]

ACTIVATIONS = ("relu", "leaky_relu", "softplus", "tanh")
DEPTHS = (4, 8, 12, 20)
WIDTHS = (32, 64, 128)
WEIGHT_DECAY = 1e-3  # where the critic has a norm
METHODS = {  # overrides of experiment=random_architectures; the norm that a critic may have
    "GAN": ({"loss": "non_saturating", "penalty.weight": 0, "optim": "adam_dcgan", "train.critic_steps": 1}, "batch"),
    "WGAN-GP": ({}, "layer"),
}
OUTCOMES = {"only GAN": (True, False), "only WGAN-GP": (False, True), "both": (True, True), "neither": (False, False)}
THRESHOLDS = {  # a run succeeds if its Inception score is above -> OUTCOMES of 200 draws. Paper: tables 2 and 5
    1.0: (0, 8, 192, 0),
    1.5: (0, 50, 150, 0),
    2.0: (0, 60, 140, 0),
    2.5: (0, 74, 125, 1),
    3.0: (1, 88, 110, 1),
    3.5: (0, 111, 86, 3),
    4.0: (1, 126, 67, 6),
    4.5: (0, 136, 55, 9),
    5.0: (0, 147, 42, 11),
    5.5: (0, 148, 32, 20),
    6.0: (0, 145, 21, 34),
    6.5: (1, 131, 11, 57),
    7.0: (1, 104, 5, 90),
    7.5: (2, 67, 3, 128),
    8.0: (1, 34, 0, 165),
    8.5: (0, 6, 0, 194),
    9.0: (0, 0, 0, 200),
}


def draw_architecture(draw: int, method: str, widths: tuple[int, ...] | list[int] = WIDTHS) -> dict[str, Any]:
    """Draw an architecture of both networks, uniformly from the set of the paper.

    Args:
        draw: the number of the draw. The architecture is a function of it.
        method: GAN or WGAN-GP. Both have the same architecture, but for the norm of the critic: batch norm for a GAN,
            layer norm for WGAN-GP.
        widths: the numbers of channels to choose from.

    Returns:
        overrides of experiment=random_architectures, those of the method among them.

    Paper: section 5.1: nonlinearity, depth and number of filters per network, batch norm in each; weight decay 1e-3 if
    the critic has a norm. The slope of the leaky ReLU is not given; it is 0.2, as in the rest of the code. It is not
    said either which network's weights decay: here both, as there is one optimizer for both.
    """
    rng = rng_for(draw, 0, "architecture")

    def choose(values: Any) -> Any:
        return values[torch.randint(len(values), (), generator=rng).item()]

    own, norm = METHODS[method]
    overrides = {}
    for network, norms in (("generator", (False, True)), ("critic", ("none", norm))):
        for key, values in (("activation", ACTIVATIONS), ("depth", DEPTHS), ("width", widths), ("norm", norms)):
            overrides[f"networks.{network}.{key}"] = choose(values)
    decay = {"+optim.weight_decay": WEIGHT_DECAY} if overrides["networks.critic.norm"] != "none" else {}
    return overrides | decay | own


@dataclass(frozen=True)
class RandomArchitectures:
    """Random architectures for 32 x 32 images. Draw k is the architecture `draw_architecture(k)`.

    Paper: section 5.1, appendix B: 200 draws, ImageNet at 32 x 32, 100,000 generator updates; a run succeeds if its
    Inception score is above a threshold. Differs: CIFAR-10, unless figure.data=image_folder; all batches have 64
    samples, where the authors' working repository (see networks/deep_dcgan.py) updates the generator of WGAN-GP with
    128 (GEN_BS_MULTIPLE 2).

    Args:
        draws: number of architectures.
        widths: the numbers of channels to choose from.
        steps: generator updates.
        batch_size: samples of each kind per update.
        samples: samples for the scores: 1,281 or more, for inception 2,049 or more.
        score: inception, that of the paper, or efficientnet, which needs no download. Its features are other ones, so
            that a threshold means something else.
        data: cifar10 or image_folder, whose images are resized to 32 x 32.
    """

    draws: int
    widths: list[int]
    steps: int
    batch_size: int = 64
    samples: int = 2_000
    score: str = "efficientnet"
    data: str = "cifar10"
    data_root: str | None = None

    def __post_init__(self) -> None:
        check_samples(self.samples, self.score)
        if self.draws < 1 or not self.widths or min(self.widths) < 1:
            raise ValueError(f"figure.draws = {self.draws}, figure.widths = {[*self.widths]}: all must be > 0")

    def cells(self) -> list[dict[str, Any]]:
        return [{"draw": draw, "method": method} for draw in range(self.draws) for method in METHODS]

    def list_overrides(self, draw: int, method: str) -> list[str]:
        """Return what a cell adds to the command scripts/train.py."""
        overrides = draw_architecture(draw, method, self.widths) | {"train.steps": self.steps}
        overrides |= {"train.batch_size": self.batch_size, "train.report_size": self.batch_size}
        chosen = [f"{key}={format_value(value)}" for key, value in overrides.items()]
        return ["experiment=random_architectures", *list_data_options(self.data, self.data_root, 32), *chosen]

    def measure(self, cell: dict[str, Any], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        every = [f"train.{name}_every={self.steps}" for name in ("log", "sample", "checkpoint")]
        overrides = [*self.list_overrides(**cell), f"seed={seed}"]
        folder.mkdir(parents=True, exist_ok=True)
        # As Hydra writes overrides. There is no config.yaml: see wgangp/figures/__init__.py
        write_atomic(folder / "overrides.yaml", "".join(f"- {json.dumps(text)}\n" for text in overrides))
        others = [*every, f"train.lipschitz_every={NEVER}", f"device={device}"]
        check = partial(build_score, n=self.samples, name=self.score)
        run = train_finite(folder, [*overrides, *others], check)
        if run is None:
            return {"finite": False, "is": 1.0, "fid": None}  # 1 is the smallest Inception score
        return {"finite": True} | score_images(run, self.samples, self.score)

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        with open_figure(path, 3.4) as figure:
            curves, points = figure.subplots(1, 2)
            for method, marker in zip(METHODS, "ox", strict=True):
                runs = select(records, method=method)
                scores = sorted(run["is"] for run in runs)
                shares = [1 - i / len(scores) for i in range(len(scores))]
                curves.step([1.0, *scores, scores[-1]], [1.0, *shares, 0.0], where="pre", label=method)
                points.scatter([run["draw"] for run in runs], [run["is"] for run in runs], marker=marker, label=method)
            curves.set(xlabel="Inception score t", ylabel="share of the runs at or above t", ylim=(0, 1.02))
            points.xaxis.get_major_locator().set_params(integer=True)
            points.set(xlabel="draw", ylabel="Inception score")
            for axes in (curves, points):
                axes.grid(alpha=0.3)
                axes.legend()
            features = f"features of {SCORES[self.score]}"
            figure.suptitle(
                f"{self.draws} random architectures, width {min(self.widths)} to {max(self.widths)}, {self.steps:,}"
                f" generator updates, {count_seeds(records)}"
                f"\nInception score of {self.samples:,} samples, {features}; {describe_real(records, 'is')}"
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Return one row per threshold, with the number of successes, and one row per draw, with its two commands."""
        rows, pairs = [], _pair_scores(records)
        for threshold, published in THRESHOLDS.items():
            won = [tuple(score > threshold for score in pair) for pair in pairs]
            totals = {m: f"{sum(pair[i] for pair in won)} of {len(won)}" for i, m in enumerate(METHODS)}
            counts = {"success": map(won.count, OUTCOMES.values()), "paper, Inception network, 200 draws": published}
            texts = {name: ", ".join(map("{} {}".format, OUTCOMES, of)) for name, of in counts.items()}
            rows.append({"runs": f"Inception score > {threshold}", **totals, **texts, "command": ""})
        for draw in range(self.draws):
            runs = {method: select(records, draw=draw, method=method) for method in METHODS}
            commands = [f"`scripts/train.py {shlex.join(self.list_overrides(draw, method))}`" for method in METHODS]
            scores = {method: format_score(runs[method], "is") for method in METHODS}
            rows.append({"runs": f"draw {draw}", **scores, "command": "<br>".join(commands)})
        rows.append({"runs": f"no run: {describe_real(records, 'is')}"})
        return [dict.fromkeys(rows[0], "") | row for row in rows]


def _pair_scores(records: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """Return the Inception scores of both methods, in the order of METHODS, for every draw and seed."""
    runs = {(r["draw"], r["seed"], r["method"]): r["is"] for r in records}
    return [tuple(runs[draw, seed, m] for m in METHODS) for draw, seed in dict.fromkeys(key[:2] for key in runs)]
