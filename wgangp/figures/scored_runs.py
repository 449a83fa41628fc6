"""Runs of scripts/train.py side by side, scored during training. Each row is a command that a reader can type."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wgangp.figures.common import check_names, count_seeds, describe_range, format_spread, select
from wgangp.figures.image_runs import NEVER, draw_samples, read_elapsed, show_samples, train_finite
from wgangp.logs import read_lines, read_metrics
from wgangp.metrics.scores import MAIN, build_scores
from wgangp.plots import open_figure

__all__ = ["STUDIES", "ScoredRuns", "Study"]

TRUST = "trust=[wgangp.figures]"
SHOWN, COLUMNS = 64, 8  # samples per panel, and per row of it


@dataclass(frozen=True)
class Study:
    """What is compared.

    title       what the rows are about
    common      overrides of all rows
    rows        name -> overrides of a row
    numbers     score -> its numbers in the table, the first of which is drawn
    published   name -> numbers of the literature, as they were printed
    """

    title: str
    common: list[str]
    rows: dict[str, list[str]]
    numbers: dict[str, list[str]]
    published: dict[str, dict[str, str]]


MODES = ["covered", "reverse_kl"]
FEATURES = ["is", "fid", "kid"]
STUDIES = {
    "stacked_mnist": Study(
        "Stacked MNIST: modes of 1,000",
        ["experiment=stacked_mnist"],
        {
            "one norm per sample": [],
            "norms over the channels, eps per element": [
                "penalty._target_=wgangp.figures.wrong_penalties.ChannelPenalty",
                TRUST,
            ],
        },
        {"modes": MODES},
        {  # Paper: table 2 of PacGAN (Lin et al. 2018); Kumar et al. 2019 for the last two
            "DCGAN": dict(zip(MODES, ("99.0", "3.40"), strict=True)),
            "ALI": dict(zip(MODES, ("16.0", "5.40"), strict=True)),
            "Unrolled GAN": dict(zip(MODES, ("48.7", "4.32"), strict=True)),
            "VEEGAN": dict(zip(MODES, ("150.0", "2.95"), strict=True)),
            "PacDCGAN2": dict(zip(MODES, ("1000.0", ".06"), strict=True)),
            "WGAN-GP of Kumar et al. 2019, whose released code takes the norm over axis 1": dict(
                zip(MODES, ("959.0", ".7276"), strict=True)
            ),
            "MEG, Kumar et al. 2019": dict(zip(MODES, ("1000", ".0313"), strict=True)),
        },
    ),
    "mnist": Study(
        "MNIST in the features of a classifier",
        ["experiment=mnist"],
        {
            "one norm per sample": [],
            "norms per column": ["penalty._target_=wgangp.figures.wrong_penalties.ColumnPenalty", TRUST],
        },
        {"classifier": FEATURES},
        {  # Paper: Binkowski et al. 2018, table 1. Another classifier: compare ratios to "real"
            "MMD rq": dict(zip(FEATURES, ("9.11 +- .01", "4.206 +- .05", ".005 +- .004"), strict=True)),
            "Cramer GAN": dict(zip(FEATURES, ("9.25 +- .02", "3.385 +- .10", ".006 +- .005"), strict=True)),
            "WGAN-GP; the released code takes a norm per column": dict(
                zip(FEATURES, ("9.12 +- .02", "6.915 +- .10", ".009 +- .004"), strict=True)
            ),
            "real": dict(zip(FEATURES, ("9.78 +- .02", "4.305 +- .16", ".003 +- .003"), strict=True)),
        },
    ),
    "language": Study(
        "Character model: n-grams of samples and of the training text",
        ["experiment=language"],
        {"WGAN-GP": []},
        {"ngrams": ["js4", "js3", "js2", "js1"]},
        {},
    ),
    "cifar_curves": Study(
        "CIFAR-10, the DCGAN-like pair in four modes",
        [],
        {
            "weight clipping": ["experiment=cifar_dcgan_clip"],
            "gradient penalty (RMSProp)": ["experiment=cifar_dcgan_rmsprop"],
            "gradient penalty (Adam)": ["experiment=cifar_dcgan"],
            "DCGAN": ["experiment=cifar_dcgan_dcgan"],
        },
        {"efficientnet": FEATURES, "inception": FEATURES},
        {},  # figure 3 has curves without numbers
    ),
    "cifar_table": Study(
        "CIFAR-10, the ResNet pair",
        [],
        {
            "WGAN-GP ResNet, unsupervised": ["experiment=cifar_resnet"],
            "WGAN-GP ResNet, supervised": ["experiment=cifar_resnet_conditional"],
        },
        {"efficientnet": FEATURES, "inception": FEATURES},
        {  # Paper: table 3
            "unsupervised: ALI": {"is": "5.34 +- .05"},
            "unsupervised: BEGAN": {"is": "5.62"},
            "unsupervised: DCGAN": {"is": "6.16 +- .07"},
            "unsupervised: Improved GAN (-L+HA)": {"is": "6.86 +- .06"},
            "unsupervised: EGAN-Ent-VI": {"is": "7.07 +- .10"},
            "unsupervised: DFM": {"is": "7.72 +- .13"},
            "unsupervised: WGAN-GP ResNet": {"is": "7.86 +- .07"},
            "supervised: SteinGAN": {"is": "6.35"},
            "supervised: DCGAN (with labels)": {"is": "6.58"},
            "supervised: Improved GAN": {"is": "8.09 +- .07"},
            "supervised: AC-GAN": {"is": "8.25 +- .07"},
            "supervised: SGAN-no-joint": {"is": "8.37 +- .08"},
            "supervised: WGAN-GP ResNet": {"is": "8.42 +- .10"},
            "supervised: SGAN": {"is": "8.59 +- .12"},
        },
    ),
}


@dataclass(frozen=True)
class ScoredRuns:
    """The rows of a study, each trained for `steps` generator updates and scored at `points` equal intervals.

    The numbers are those of the last update, never of the best one. Times include the reports and the scores.

    Args:
        study: a name from STUDIES.
        rows: names of its rows; null: all of them.
        score: the score.
        n: samples per score.
        steps: generator updates, a multiple of points.
        points: how often a run is scored.
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
        if self.score not in STUDIES[self.study].numbers:
            scores = ", ".join(STUDIES[self.study].numbers)
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
        interval = self.steps // self.points
        every = [f"train.{name}_every={interval}" for name in ("log", "evaluate", "sample")]
        every += [f"train.checkpoint_every={min(interval, 500)}", f"train.lipschitz_every={NEVER}"]
        place = "data.path" if self.study == "language" else "data.root"
        data = [] if self.data_root is None else [f"{place}={self.data_root}"]
        scores = [f"evaluate.scores=[{self.score}]", f"evaluate.n={self.n}"]
        overrides = [*self.list_overrides(cell["row"]), *every, *scores, *data, f"seed={seed}", f"device={device}"]
        run = train_finite(folder, overrides)
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if self._drawn() in line]
        seconds = {line["step"]: line["elapsed_s"] for line in read_lines(folder / "timing.jsonl")}
        if run is not None and not lines:
            raise ValueError(f"the score {self.score} failed: see the warnings above")
        names = [f"{self.score}_{name}" for name in STUDIES[self.study].numbers[self.score]]
        record = {"finite": run is not None, "steps": [line["step"] for line in lines], "facts": None, "samples": None}
        record["elapsed_s"] = [seconds[line["step"]] for line in lines]
        record |= {name: [line[name] for line in lines] for name in names}
        record |= {f"real_{name}": lines[-1].get(f"real_{name}") if lines else None for name in names}
        if run is not None:
            (score,) = build_scores(run, [self.score], self.n)
            record |= {"facts": score.settings, "samples": show_samples(run, folder, SHOWN, COLUMNS)}
            record["seconds_of_training"] = read_elapsed(folder)
        return record

    def draw(self, path: Path, records: list[dict[str, Any]]) -> None:
        rows = [cell["row"] for cell in self.cells()]
        text = any(isinstance(run["samples"], list) for run in records)
        with open_figure(path, 3.4 + (3.4 if text else 3.0)) as figure:
            upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1))
            by_update, by_time = upper.subplots(1, 2, sharey=True)
            panels = lower.subplots(1, max(len(rows), 2), squeeze=False)[0]
            for axes in panels[len(rows) :]:
                axes.set_axis_off()
            for row, axes in zip(rows, panels, strict=False):
                runs = select(records, row=row)
                finite = [run for run in runs if run["finite"]]
                axes.set_title(row if len(rows) < 3 else row.replace(" (", "\n("), fontsize="medium")
                draw_samples(axes, finite[0]["samples"] if finite else None)
                if finite:
                    values, minutes = (
                        torch.tensor([[v / scale for v in run[name]] for run in finite], dtype=torch.float64)
                        for name, scale in ((self._drawn(), 1), ("elapsed_s", 60))
                    )
                    for panel, x in ((by_update, torch.tensor(finite[0]["steps"])), (by_time, minutes.mean(0))):
                        (line,) = panel.plot(x, values.mean(0), label=row)
                        panel.fill_between(x, values.amin(0), values.amax(0), alpha=0.2, color=line.get_color())
            real = [run[f"real_{self._drawn()}"] for run in records if run.get(f"real_{self._drawn()}") is not None]
            if real:
                for panel in (by_update, by_time):
                    panel.axhline(sum(real) / len(real), color="gray", linestyle="--", label="real samples")
            by_update.set(xlabel="generator updates", ylabel=self._drawn())
            by_time.set(xlabel="minutes, with reports and scores")
            for axes in (by_update, by_time):
                axes.grid(alpha=0.3)
            by_update.legend()
            options = f"; {' '.join(self.options)}" if self.options else ""
            better = "larger" if MAIN.get(self._drawn()) or self._drawn().endswith("_is") else "smaller"
            figure.suptitle(
                f"{STUDIES[self.study].title}. {self._drawn()} of {self.n:,} samples: {better} is better"
                f"\n{self.steps:,} generator updates{options}; {describe_range(records)}",
                fontsize="medium",
            )

    def table(self, records: list[dict[str, Any]]) -> list[dict[str, str]]:
        study, rows = STUDIES[self.study], []
        names = study.numbers[self.score]
        real = dict.fromkeys(names, "")
        for cell in self.cells():
            runs = select(records, row=cell["row"])
            finite = [run for run in runs if run["finite"]]
            values = {name: [run[f"{self.score}_{name}"][-1] for run in finite] for name in names}
            for name in names:
                known = [r[f"real_{self.score}_{name}"] for r in finite if r[f"real_{self.score}_{name}"] is not None]
                real[name] = format_spread(known[:1], ".4g") if known else real[name]
            minutes = [run["elapsed_s"][-1] / 60 for run in finite]
            rows.append(
                {
                    "row": cell["row"],
                    **{name: format_spread(values[name], ".4g") if finite else "not finite" for name in names},
                    "finite runs": f"{len(finite)} of {len(runs)}",
                    "minutes": format_spread(minutes, ".0f") if finite else "",
                    "command": f"`scripts/train.py {shlex.join(self.list_overrides(cell['row']))}`",
                }
            )
        rest = {"finite runs": "", "minutes": "", "command": ""}
        rows.append({"row": "real samples", **real, **rest})
        for name, numbers in study.published.items():
            printed = {key: numbers.get(key, "") for key in names}
            rows.append({"row": f"published: {name}", **printed, **rest})
        facts = next((run["facts"] for run in records if run["facts"]), {})
        listed = ", ".join(f"{key} {value}" for key, value in facts.items())
        return [*rows, {"row": f"{self.score}: {listed} ({count_seeds(records)})", **dict.fromkeys(names, ""), **rest}]

    def _drawn(self) -> str:
        return f"{self.score}_{STUDIES[self.study].numbers[self.score][0]}"
