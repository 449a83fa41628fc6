"""Measure how long a training step takes: python -m bench.speed. docs/speed.md explains it."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import measure, page
from bench.command import Parser, command_line, print_errors
from bench.contestants import Case
from bench.picture import draw_picture
from wgangp.checkpoint import write_atomic
from wgangp.config import BUDGETS, find_device
from wgangp.logs import collect_provenance

__all__ = ["main", "run"]

DESCRIPTION = """Measure how long the steps of this project take, compared with what a careful user writes with torch's
own parts. It takes about three quarters of an hour on two idle cores, and longer if the compiled graphs are not cached.
Nothing else should run on the machine meanwhile."""
EPILOG = """A quick look: python -m bench.speed --rounds 3 --no-growth --out runs/speed"""


def main() -> None:
    with print_errors():
        run(sys.argv[1:])


def run(arguments: list[str]) -> None:
    """Measure, print the tables, and write them.

    Raises:
        ValueError: a wrong option; the gradients of a variant are wrong.
    """
    options = parse(arguments)
    device = find_device(options.device, "--device ")
    budget = "smoke" if options.smoke else options.budget or ("paper" if device.type == "cuda" else "cpu")
    folder = Path(options.out or ("runs/benchmark-smoke" if options.smoke else page.SPEED))
    readme = folder / "README.md"
    page.read_page(readme, "Speed")  # an error comes before the measurement
    command = command_line("bench.speed", arguments)
    source = {**collect_provenance(device), "command": command, "rounds": options.rounds, "budget": budget}
    folder.mkdir(parents=True, exist_ok=True)

    path = folder / f"{device.type}.jsonl"
    text = path.read_text() if path.exists() else ""
    before = records = page.read_speed(folder).get(device.type, [])
    for name in tqdm([*options.cases, *[None] * options.growth], desc="cases", disable=None):
        if name is None:
            measured = measure.measure_growth(device, options.rounds, small=options.smoke)
        else:
            case = _choose_size(name, budget)
            measured = [{"case": name, **record} for record in measure.measure(case, device, options.rounds)]
        records = _replace_case(records, [{**record, **source} for record in measured])
        if text and any(record not in records for record in before):  # earlier measurements are kept
            copies = (folder / f"{device.type}.{n}.jsonl" for n in range(1, 10**6))
            write_atomic(next(copy for copy in copies if not copy.exists()), text)
            text = ""
        # After every case, so that nothing is lost if the measurement is stopped.
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))
    draw_picture(folder / f"{device.type}.png", records)
    page.write_page(readme, "Speed", page.speed_block(page.read_speed(folder)))
    for table in (page.time_table(records), page.ratio_table(records), page.arithmetic_table(records)):
        print_table(table)
    print(f"written to {folder}: {path.name}, {device.type}.png, README.md")
    if folder.resolve() == page.ROOT / page.SPEED:
        page.write_guide()
        print(f"written to {page.GUIDE}: the table of ratios")


def _choose_size(name: str, budget: str) -> Case:
    """Return the case with the sizes of a budget; smoke has tiny ones."""
    case = measure.CASES[name]
    if budget == "smoke":
        width, batch = (4, 2) if case.shape[-1] == 64 else (16, 8)
        return replace(case, width=width, batch=batch, generator_batch=None, critic_steps=1)
    return replace(case, width=case.width // measure.SMALLER.get(name, 1)) if budget == "cpu" else case


def _replace_case(records: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with those of one case, or of the growth, replaced; records of another budget are dropped."""
    case, budget = measured[0].get("case"), measured[0]["budget"]
    others = [record for record in records if record.get("case") != case and record["budget"] == budget]
    order = {name: i for i, name in enumerate([*measure.CASES, None])}  # None: growth
    return sorted(others + measured, key=lambda record: order.get(record.get("case"), len(order)))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options. ValueError for a wrong one."""
    parser = Parser(prog="python -m bench.speed", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default): cuda if there is a GPU")
    parser.add_argument(
        "--rounds", type=int, default=9, help="number of times that every variant is measured, in turn (default: 9)"
    )
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        help="cpu: CIFAR and text with a quarter of the released width, 64 x 64 with an eighth; paper: the released"
        " widths. Default: cpu on a CPU, paper on a GPU",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=measure.CASES,
        default=list(measure.CASES),
        metavar="CASE",
        help=f"the pairs of networks: {', '.join(map(repr, measure.CASES))} (default: all)",
    )
    parser.add_argument(
        "--no-growth",
        dest="growth",
        action="store_false",
        help="do not measure how a critic step grows with batch size, width, depth and image size",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="tiny networks, to see that everything runs; the numbers mean nothing",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="the folder for DEVICE.jsonl (records; other cases stay, and the earlier file is kept as DEVICE.N.jsonl),"
        f" DEVICE.png and README.md (default: {page.SPEED}, with --smoke runs/benchmark-smoke)",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise ValueError(f"--rounds {options.rounds}: must be >= 1")
    return options


def print_table(table: list[dict[str, str]]) -> None:
    """Print rows in aligned columns."""
    widths = {key: max(len(key), *(len(row[key]) for row in table)) for key in table[0]}
    for row in ({key: key for key in widths}, *table):
        print("  ".join(row[key].ljust(width) for key, width in widths.items()))
    print()


if __name__ == "__main__":
    main()
