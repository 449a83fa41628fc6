"""The picture of `bench.speed`."""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from wgangp.plots import BAR, open_figure

__all__ = ["draw_picture", "is_of_case"]

Record = dict[str, Any]
DRAWN = ("textbook", "eager", "compiled")  # variants with a curve
COLUMNS = 4  # panels per row
GROWING = {  # key "grows" of the records -> what the axis shows
    "batch": "batch size (toy MLP)",
    "width": "width (toy MLP)",
    "depth": "depth of the critic (toy MLP)",
    "resolution": "image size (ResNet critic)",
}


def is_of_case(record: Record) -> bool:
    """Return whether a record has the times of a variant: not a point of a growth curve, and not left out."""
    return "grows" not in record and "left_out" not in record


def draw_picture(path: Path, records: list[Record]) -> None:
    """Draw ratios of the iteration time (above) and the growth of the critic step (below)."""
    ratios = [record for record in records if is_of_case(record)]
    cases, variants = _distinct(ratios, "case"), _distinct((r for r in records if "case" in r), "variant")[::-1]
    quantities = _distinct([record for record in records if "grows" in record], "grows")
    rows = max(1, math.ceil(len(cases) / COLUMNS))
    columns = min(len(cases), COLUMNS)
    with open_figure(path, 2.8 * rows + 2.8) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(rows, 1))
        above.suptitle("Time of a whole iteration, divided by that of the textbook")
        panels = above.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for axes in panels[len(cases) :]:
            axes.set_visible(False)
        for axes, case in zip(panels, cases, strict=False):
            for record in (record for record in records if record.get("case") == case):
                position = variants.index(record["variant"])
                if "left_out" in record:
                    axes.text(0.02, position, "left out", va="center")
                else:
                    axes.barh(position, record["iteration_ratio"], color=BAR)
                    axes.text(0.02, position, f"{record['iteration_ratio']:.2f}", va="center", color="white")
            axes.axvline(1, color="black", linewidth=0.8)
            title = textwrap.fill(case, 20)
            axes.set(title=title, xlim=(0, None), yticks=range(len(variants)), yticklabels=variants)
        if quantities:
            below.suptitle("Time of a critic step, in milliseconds")
            for axes, quantity in zip(below.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
                for variant in DRAWN:
                    line = [r for r in records if r.get("grows") == quantity and r["variant"] == variant]
                    sizes = [record["size"] for record in line]
                    axes.plot(sizes, [1e3 * r["critic_step_s"] for r in line], marker="o", markersize=4, label=variant)
                axes.set(xscale="log", yscale="log", xlabel=GROWING[quantity])
                axes.set_xticks(sizes, [str(size) for size in sizes])
                axes.xaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.legend()


def _distinct(records: Iterable[Record], key: str) -> list[str]:
    return list(dict.fromkeys(record[key] for record in records))
