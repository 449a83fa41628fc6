"""Runs of scripts/train.py side by side, scored during training. Each row is a command that a reader can type."""

import shlex
import statistics
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wgangp.figures.common import check_names, describe_range, draw_band, format_spread, select
from wgangp.figures.image_runs import NEVER, check_plane, draw_samples, show_samples, train_finite
from wgangp.logs import read_lines, read_metrics, read_timing
from wgangp.metrics.scores import build_scores
from wgangp.plots import PAGE, open_figure
from wgangp.report import leave_unchanged

__all__ = ["STUDIES", "ScoredRuns", "Study"]

TRUST = "trust=[wgangp.figures]"
SHOWN, COLUMNS = 64, 8  # samples per panel, and per row of it
FEATURES = {"is": "Inception score", "fid": "FID", "kid": "KID"}
NUMBERS = {  # score -> its numbers, and what they are called. The first two are drawn
    "modes": {"covered": "modes of 1,000", "reverse_kl": "reverse KL (nats)"},
    "points": {
        "w1": "exact W1",
        "modes": "modes",
        "high_quality": "share within 3 sd of a mode",
        "reverse_kl": "reverse KL (nats)",
    },
    "ngrams": {f"js{n}": f"JS divergence of {n}-grams (bits)" for n in (4, 3, 2, 1)},
    "classifier": FEATURES,
    "efficientnet": FEATURES,
    "inception": FEATURES,
}
LARGE = ("covered", "is", "modes")  # numbers of which a larger one is better
LOGGED = {"slope_interpolates_mean": "slope at interpolates", "heldout_critic_loss": "held-out critic loss"}


@dataclass(frozen=True)
class Study:
    """What is compared.

    title       what the rows are about
    common      overrides of all rows
    rows        name -> overrides of a row
    published   score -> rows of the literature with this score: name, source, and its numbers as they were printed
    place       the key that says where the data is
    """

    title: str
    common: list[str]
    rows: dict[str, list[str]]
    published: dict[str, list[tuple[str, ...]]]
    place: str = "data.root"


PACGAN, KUMAR, BINKOWSKI = (
    "Lin et al. 2018",
    "Kumar et al. 2019",
    "Binkowski et al. 2018, with a classifier of their own",
)
UNKNOWN = "whether this run did is not known"
STUDIES = {
    "toy_released": Study(
        "Toy runs of the released code",
        ["experiment=toy_released"],
        {f"width {n}": [f"networks.generator.width={n}", f"networks.critic.width={n}"] for n in (512, 128)},
        {"points": []},
    ),
    "stacked_mnist": Study(
        "Stacked MNIST",
        ["experiment=stacked_mnist"],
        {
            "one norm per sample": [],
            "norms over the channels, eps per element": [
                "penalty._target_=wgangp.figures.wrong_penalties.ChannelPenalty",
                TRUST,
            ],
        },
        {
            "modes": [
                ("DCGAN", PACGAN, "99.0", "3.40"),
                ("ALI", PACGAN, "16.0", "5.40"),
                ("Unrolled GAN", PACGAN, "48.7", "4.32"),
                ("VEEGAN", PACGAN, "150.0", "2.95"),
                ("PacDCGAN2", PACGAN, "1000.0 +- 0", ".06"),
                ("WGAN-GP", f"{KUMAR}; their code takes norms over the channels, {UNKNOWN}", "959.0", ".7276"),
                ("MEG", KUMAR, "1000", ".0313"),
            ]
        },
    ),
    "mnist": Study(
        "MNIST",
        ["experiment=mnist"],
        {
            "one norm per sample": [],
            "norms per column": ["penalty._target_=wgangp.figures.wrong_penalties.ColumnPenalty", TRUST],
        },
        {
            "classifier": [
                ("MMD rq", BINKOWSKI, "9.11 +- .01", "4.206 +- .05", ".005 +- .004"),
                ("Cramer GAN", BINKOWSKI, "9.25 +- .02", "3.385 +- .10", ".006 +- .005"),
                (
                    *("WGAN-GP", f"{BINKOWSKI}; their code takes norms per column, {UNKNOWN}"),
                    *("9.12 +- .02", "6.915 +- .10", ".009 +- .004"),
                ),
                ("real samples", BINKOWSKI, "9.78 +- .02", "4.305 +- .16", ".003 +- .003"),
            ]
        },
    ),
    "language": Study("Character model", ["experiment=language"], {"WGAN-GP": []}, {"ngrams": []}, "data.path"),
    "cifar_curves": Study(
        "CIFAR-10, the DCGAN-like pair in four modes",
        [],
        {
            "weight clipping": ["experiment=cifar_dcgan_clip"],
            "gradient penalty (RMSProp)": ["experiment=cifar_dcgan_rmsprop"],
            "gradient penalty (Adam)": ["experiment=cifar_dcgan"],
            "DCGAN": ["experiment=cifar_dcgan_dcgan"],
        },
        {"efficientnet": [], "inception": []},  # figure 3 has curves without numbers
    ),
    "cifar_table": Study(
        "CIFAR-10, the ResNet pair",
        [],
        {
            "unsupervised: WGAN-GP ResNet": ["experiment=cifar_resnet"],
            "supervised: WGAN-GP ResNet": ["experiment=cifar_resnet_conditional"],
        },
        {
            "efficientnet": [],
            "inception": [
                (f"{kind}: {name}", "table 3", score)
                for kind, scores in {
                    "unsupervised": {
                        "ALI": "5.34 +- .05",
                        "BEGAN": "5.62",
                        "DCGAN": "6.16 +- .07",
                        "Improved GAN (-L+HA)": "6.86 +- .06",
                        "EGAN-Ent-VI": "7.07 +- .10",
                        "DFM": "7.72 +- .13",
                        "WGAN-GP ResNet": "7.86 +- .07",
                    },
                    "supervised": {
                        "SteinGAN": "6.35",
                        "DCGAN (with labels)": "6.58",
                        "Improved GAN": "8.09 +- .07",
                        "AC-GAN": "8.25 +- .07",
                        "SGAN-no-joint": "8.37 +- .08",
                        "WGAN-GP ResNet": "8.42 +- .10",
                        "SGAN": "8.59 +- .12",
                    },
                }.items()
                for name, score in scores.items()
            ],
        },
    ),
}


@dataclass(frozen=True)
class ScoredRuns:
    """The rows of a study, each trained for `steps` generator updates and scored at `points` equal intervals.

    A score that fails is left out; that of the last update is computed again.

    The numbers are those of the last update, never of the best one. Times begin after the first score, and include the
    reports and the other scores. The learning rates are those of the experiment: steps does not change when they reach
    0 (train.decay_steps).

    Args:
        study: a name from STUDIES.
        rows: names of its rows; null: all of them.
        score: the score.
        n: samples per score.
        steps: generator updates, a multiple of points.
        points: how often a run is scored, besides at the start.
        options: overrides of all rows, for example of widths and learning rates.
        data_root: data.root (for text data.path) of the runs; null: as in the experiments.
    """

    study: str
    score: str
    n: int
    steps: int
    points: int
    options: list[str]
    rows: list[str] | None = None
    data_root: str | None = None

    def __post_init__(self) -> None:
        if self.study not in STUDIES:
            raise ValueError(f"figure.study = {self.study}: must be one of {', '.join(STUDIES)}")
        if self.score not in STUDIES[self.study].published:
            scores = ", ".join(STUDIES[self.study].published)
            raise ValueError(f"figure.score = {self.score}: must be one of {scores}")
        if self.rows is not None:
            check_names(self, rows=STUDIES[self.study].rows)
        if self.points < 1 or self.steps < 1 or self.steps % self.points:
            raise ValueError(f"figure.steps = {self.steps}: must be a multiple of figure.points = {self.points}")

    def cells(self) -> list[dict[str, str]]:
        return [{"row": row} for row in self.rows or STUDIES[self.study].rows]

    def list_overrides(self, row: str) -> list[str]:
        """Return the overrides of a row, without seed, data and intervals."""
        study = STUDIES[self.study]
        return [*study.common, *study.rows[row], *self.options, f"train.steps={self.steps}"]

    def measure(self, cell: dict[str, str], seed: int, folder: Path, device: torch.device) -> dict[str, Any]:
        study, interval = STUDIES[self.study], self.steps // self.points
        every = [f"train.{name}_every={interval}" for name in ("log", "evaluate", "sample")]
        every += [f"train.checkpoint_every={min(interval, 500)}", f"train.lipschitz_every={NEVER}"]
        data = [] if self.data_root is None else [f"{study.place}={self.data_root}"]
        scores = [f"evaluate.scores=[{self.score}]", f"evaluate.n={self.n}"]
        overrides = [*self.list_overrides(cell["row"]), *every, *scores, *data, f"seed={seed}", f"device={device}"]
        run = train_finite(folder, overrides, check_plane)
        names = self._list_names()
        log = read_metrics(folder / "metrics.jsonl")
        lines = [line for line in log if next(iter(names)) in line]
        if run is not None and next(iter(names)) not in log[-1]:  # it failed: once more
            keys, given = ("reference", "weights", "classifier"), [o.partition("=") for o in self.options]
            (score,) = build_scores(
                run, [self.score], self.n, **{k: v for k in keys for o, _, v in given if o == f"evaluate.{k}"}
            )
            lines.append(log[-1] | leave_unchanged(score.compute)(run, self.steps))
        steps = [line["step"] for line in lines]
        seconds = {line["step"]: line["elapsed_s"] for line in read_timing(folder)}
        record = {"finite": run is not None, "steps": steps, "elapsed_s": [seconds[step] for step in steps]}
        record |= {name: [line.get(name) for line in lines] for name in names}
        record |= {f"real_{name}": lines[-1].get(f"real_{name}") if lines else None for name in names}
        record |= {name: lines[-1].get(name) if run is not None else None for name in LOGGED}
        record["real_n"] = lines[-1].get(f"real_{self.score}_n") if lines else None
        if run is None:
            return record | {"facts": None, "samples": None}
        facts = read_lines(folder / "provenance.jsonl")[-1]["scores"][self.score]
        return record | {"facts": facts, "samples": show_samples(run, folder, SHOWN, COLUMNS)}

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        rows = [cell["row"] for cell in self.cells()]
        known = [item for item in self._list_names().items() if all(None not in run[item[0]] for run in records)]
        names = dict(known[:2])
        text = any(isinstance(run["samples"], list) for run in records)
        heights = 3.1, 3.0 if text else min(3.0, PAGE / len(rows)) + 0.4
        with open_figure(path, sum(heights)) as figure:
            upper, lower = figure.subfigures(2, 1, height_ratios=heights)
            *by_update, by_time = upper.subplots(1, len(names) + 1)
            panels = [(axes, name, "steps", 1) for axes, name in zip(by_update, names, strict=True)]
            panels.append((by_time, next(iter(names)), "elapsed_s", 60))
            for row, axes in zip(rows, lower.subplots(1, len(rows), squeeze=False)[0], strict=True):
                finite = [run for run in select(records, row=row) if run["finite"]]
                axes.set_title(row if len(rows) < 3 else row.replace(" (", "\n("), fontsize="medium")
                draw_samples(axes, finite[0]["samples"] if finite else None, self.study == "stacked_mnist")
                for panel, name, x, unit in panels:
                    if not finite:
                        panel.plot([], [], label=f"{row}: not finite")
                        continue
                    y, mean_x = _pick(finite, name), _pick(finite, x).mean(0) / unit
                    mean_x = mean_x - mean_x[0]
                    draw_band(panel, mean_x, y, label=row, marker=".", markersize=4)
            for panel, name, x, _ in panels:
                real, title = [r[f"real_{name}"] for r in records if r[f"real_{name}"] is not None], names[name]
                if real and NUMBERS[self.score] is FEATURES:  # far away from those of a short run
                    title = f"{names[name]} (real samples: {statistics.mean(real):.3g})"
                elif real:
                    panel.axhline(statistics.mean(real), color="gray", linestyle=":", label="real samples")
                better = "larger" if name.removeprefix(f"{self.score}_") in LARGE else "smaller"
                panel.set_title(title, fontsize="medium")
                label = "generator updates" if x == "steps" else "minutes after the first score"
                panel.set(xlabel=label, ylabel=f"{better} is better")
                panel.locator_params("x", nbins=4)
                panel.grid(alpha=0.3)
            upper.legend(*by_time.get_legend_handles_labels(), loc="outside lower center", ncols=3)
            options = f" with {' '.join(self.options)}" if self.options else ""
            settings = textwrap.fill(f"{self.steps:,} generator updates{options}", 120, break_on_hyphens=False)
            figure.suptitle(
                f"{STUDIES[self.study].title}; score: {self.score}, {self.n:,} samples; {describe_range(records)}"
                f"\n{settings}",
                fontsize="medium",
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        study, names = STUDIES[self.study], self._list_names()
        published = study.published[self.score]
        printed = {name: numbers for name, _, *numbers in published}
        empty = dict.fromkeys(("row", *names.values(), *LOGGED.values(), "difference", "finite runs", "minutes"), "")
        empty |= {"measured with, or source": "", "command": ""}
        if not printed.keys() & {cell["row"] for cell in self.cells()}:
            del empty["difference"]
        rows = []
        for cell in self.cells():
            runs = select(records, row=cell["row"])
            finite = [run for run in runs if run["finite"]]
            last = {label: [run[name][-1] for run in finite] for name, label in names.items()}
            last |= {label: [run[name] for run in finite] for name, label in LOGGED.items()}
            known = {label: [value for value in values if value is not None] for label, values in last.items()}
            row = {label: format_spread(values, ".4g") if values else "" for label, values in known.items()}
            row |= {} if finite else dict.fromkeys(names.values(), "not finite")
            if finite and cell["row"] in printed:
                values, (number, *_) = next(iter(last.values())), printed[cell["row"]]
                row["difference"] = f"{statistics.mean(values) - float(number.split()[0]):+.2f}"
            if finite:
                minutes = [(run["elapsed_s"][-1] - run["elapsed_s"][0]) / 60 for run in finite]
                row["minutes"] = format_spread(minutes, ".1f")
                facts = ", ".join(f"{key} {value}" for key, value in finite[0]["facts"].items())
                row["measured with, or source"] = f"{self.score}: {facts}"
            row |= {"row": cell["row"], "finite runs": f"{len(finite)} of {len(runs)}"}
            command = [*self.list_overrides(cell["row"]), *([] if study.place == "data.root" else ["data.path=FILE"])]
            row["command"] = f"`scripts/train.py {shlex.join(command)}`"
            rows.append(empty | row)
        real = {label: [run[f"real_{name}"] for run in records if run["finite"]] for name, label in names.items()}
        known = {label: f"{values[0]:.4g}" for label, values in real.items() if values and values[0] is not None}
        counts = dict.fromkeys(f"{run['real_n']:,} real images" for run in records if run.get("real_n"))
        rows.append(empty | {"row": "real samples"} | known | {"measured with, or source": ", ".join(counts)})
        for name, source, *numbers in published:
            values = dict(zip(names.values(), numbers, strict=False))  # table 3 has the Inception score alone
            rows.append(empty | {"row": f"published: {name}", **values, "measured with, or source": source})
        columns = [column for column in empty if any(row[column] for row in rows)]  # the Swiss roll has no modes
        return [{column: row[column] for column in columns} for row in rows]

    def _list_names(self) -> dict[str, str]:
        """Return the names of the numbers of the score in the log, and what they are called in tables and pictures."""
        return {f"{self.score}_{name}": label for name, label in NUMBERS[self.score].items()}


def _pick(runs: list[dict[str, Any]], key: str) -> torch.Tensor:
    """Return numbers of runs (N, points), at the steps where all of them have a score."""
    steps = sorted(set.intersection(*({*run["steps"]} for run in runs)))
    return torch.tensor([[run[key][run["steps"].index(step)] for step in steps] for run in runs], dtype=torch.float64)
