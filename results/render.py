"""Write the results table of README.md from the folders beside this file: python results/render.py."""

import json
from pathlib import Path

from wgangp.speed_report import width_of

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: rendered from results/ by results/render.py -->\n", "<!-- /results -->"
SPEED_BEGIN, SPEED_END = "<!-- speed: rendered from results/ by results/render.py -->\n", "<!-- /speed -->"
RUNS = ("toy", "mnist", "cifar_dcgan", "cifar_resnet")


def table() -> str:
    """The rows of all runs, in Markdown: one run each (n = 1), the last line of its log."""
    rows = [
        "| run | generator updates | time | hardware | commit | slope at interpolates | slope at real | slope at fake |"
        " wasserstein: training, held out | modes covered | within 3 sd of one |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in RUNS:
        folder = ROOT / "results" / name
        sittings = [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        seconds = json.loads((folder / "timing.jsonl").read_text().splitlines()[-1])["elapsed_s"]
        slopes = [
            f"{last[f'slope_{k}_mean']:.3f} +- {last[f'slope_{k}_std']:.3f}" for k in ("interpolates", "real", "fake")
        ]
        commits = dict.fromkeys(s["commit"][:7] + (" (changed)" if s["dirty"] else "") for s in sittings)
        cells = [
            f"`{sittings[-1]['command']}`",
            f"{last['step']:,}",
            f"{seconds / 60:.1f} min",
            f"{sittings[-1]['device']}, torch {sittings[-1]['torch']}",
            ", ".join(commits),
            *slopes,
            f"{last['wasserstein']:.3f}, {last['heldout_wasserstein']:.3f}",
            f"{last['modes']} of 8" if "modes" in last else "",
            f"{last['high_quality']:.0%} of 10,000 samples" if "modes" in last else "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    note = (
        "One run each, n = 1, while the machine did other work; slopes are mean +- standard deviation over the points"
        " of the last report. What has changed since a commit stands in CHANGELOG.md under Numerics."
    )
    return "\n".join([*rows, "", note]) + "\n"


def speed() -> str:
    """Ratios to the textbook of a critic step and a whole iteration, a column a case, with what they were run on."""
    parts = []
    for path in sorted((ROOT / "results" / "benchmark").glob("*.jsonl")):
        if path.stem not in ("cpu", "cuda"):  # an older one
            continue
        records = [record for record in map(json.loads, path.read_text().splitlines()) if "case" in record]
        cases = list(dict.fromkeys(record["case"] for record in records))
        found = {(record["variant"], record["case"]): record for record in records}
        parts += [
            f"| {path.stem}: critic step / whole iteration, against the textbook | {' | '.join(cases)} |",
            "|---|" + "---|" * len(cases),
        ]
        for variant in dict.fromkeys(record["variant"] for record in records):
            cells = [
                f"{r['critic_step_ratio']:.2f} / {r['iteration_ratio']:.2f}"
                if (r := found.get((variant, case)))
                else ""
                for case in cases
            ]
            parts.append(f"| {variant} | {' | '.join(cells)} |")
        about = records[0]
        changed = " (changed)" if about["dirty"] else ""
        parts += [
            "",
            f"`{about['command']}` at {about['commit'][:7]}{changed}, {about['device']}, torch {about['torch']}:"
            f" medians over {about['rounds']} rounds. {width_of(about)}",
            "",
        ]
    return "\n".join(parts[:-1]) + "\n"


def rendered(readme: str) -> str:
    """README.md with the tables in their places."""
    for begin, end, made in ((BEGIN, END, table()), (SPEED_BEGIN, SPEED_END, speed())):
        before, rest = readme.split(begin)
        _, after = rest.split(end)
        readme = before + begin + made + end + after
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rendered(path.read_text()))
