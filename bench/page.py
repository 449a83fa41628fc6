"""Tables and pictures of the measurements, in the README files of the results and in docs/speed.md.

The text of these files is written by hand. Only the lines between two markers are rendered here, from the records:

    python -m bench.page            renders all of them again, for example after an edit of this file
"""

import textwrap
from pathlib import Path
from typing import Any

from bench.command import Parser, print_errors
from bench.contestants import CRITIC_STEPS
from bench.picture import draw_picture, is_of_case
from wgangp.checkpoint import write_atomic
from wgangp.logs import describe_hardware, read_lines
from wgangp.tables import markdown_table, replace_block

__all__ = [
    "arithmetic_table",
    "peer_block",
    "peer_table",
    "ratio_block",
    "ratio_table",
    "read_page",
    "read_speed",
    "render",
    "scaling_block",
    "speed_block",
    "time_table",
    "write_guide",
    "write_page",
]

Record = dict[str, Any]
ROOT = Path(__file__).parent.parent
SPEED, SCALING, GUIDE = "results/benchmark", "results/scaling", "docs/speed.md"
BEGIN, END = "<!-- rendered by bench -->", "<!-- /rendered -->"
GUIDE_MARKERS = "<!-- speed: rendered by bench -->", "<!-- /speed -->"
PEER_MARKERS = "<!-- peers: rendered by bench -->", "<!-- /peers -->"
# Variants in older records -> their names now
RENAMED = {f"bf16{layout}": f"bf16, penalty in bf16{layout}" for layout in ("", ", channels last")}
DEVICES = (8, 64, 512)  # numbers of devices for which the efficiency is predicted


def read_speed(folder: Path, prefix: str = "") -> dict[str, list[Record]]:
    """Return the newest records in a folder, per kind of device (cpu, cuda): of `bench.speed`, or with a prefix."""
    records = {kind: read_lines(folder / f"{prefix}{kind}.jsonl") for kind in ("cpu", "cuda")}
    for record in (record for lines in records.values() for record in lines):
        record["variant"] = RENAMED.get(record["variant"], record["variant"])
    return {kind: lines for kind, lines in records.items() if lines}


def time_table(records: list[Record]) -> list[dict[str, str]]:
    """Return the times of all variants of all cases as a table."""

    def milliseconds(record: Record, part: str) -> str:
        low, high = record[f"{part}_quartiles_s"]
        return f"{_digits(1e3 * record[f'{part}_s'])} ({_digits(1e3 * low)} to {_digits(1e3 * high)})"

    return [
        {
            "case": record["case"],
            "variant": record["variant"],
            "critic step, ms": milliseconds(record, "critic_step"),
            "generator step, ms": milliseconds(record, "generator_step"),
            "iteration, ms": milliseconds(record, "iteration"),
            "real samples/s": f"{record['samples_per_s']:,.0f}",
            "penalty": f"{record['penalty_share']:.0%}",
        }
        for record in _of_cases(records)
    ]


def ratio_table(records: list[Record]) -> list[dict[str, str]]:
    """Return the ratios to the textbook of all variants of all cases as a table."""
    return [
        {
            "case": record["case"],
            "variant": record["variant"],
            "critic step": f"{record['critic_step_ratio']:.2f}",
            "generator step": f"{record['generator_step_ratio']:.2f}",
            "iteration": f"{record['iteration_ratio']:.2f}",
        }
        for record in _of_cases(records)
    ]


def arithmetic_table(records: list[Record]) -> list[dict[str, str]]:
    """Return accuracy, arithmetic, floor and memory of all variants of all cases as a table."""
    return [
        {
            "case": record["case"],
            "variant": record["variant"],
            "gradient error": f"{record['gradient_error']:.1g}",
            "GFLOP": f"{record['critic_step_gflop']:.3g}",
            "floor, ms": _digits(1e3 * record["floor_of_critic_step_s"]),
            "floor / critic step": f"{record['critic_step_share_of_floor']:.0%}",
            "floor / iteration": f"{record['iteration_share_of_floor']:.0%}",
            "peak memory, MB": _digits(record["peak_memory_mb"]),
        }
        for record in _of_cases(records)
    ]


def speed_block(records: dict[str, list[Record]]) -> str:
    """Return the rendered block of results/benchmark/README.md: three tables and a picture per kind of device.

    Args:
        records: per kind of device, all records of `bench.speed`.
    """
    parts = []
    for kind, lines in records.items():
        parts += [f"## Measured on {kind}", *_list_sources(lines, _describe_widths(lines))]
        parts += _list_left_out(lines)
        parts += ["### Time", markdown_table(time_table(lines))]
        parts += ["### Time, divided by the time of the textbook", markdown_table(ratio_table(lines))]
        parts += ["### Accuracy, arithmetic and memory", markdown_table(arithmetic_table(lines))]
        parts += ["### Picture", f"![Ratios of the iteration time, and growth of the critic step, {kind}]({kind}.png)"]
    return "\n\n".join(parts)


def ratio_block(records: dict[str, list[Record]]) -> str:
    """Return the rendered block of docs/speed.md: ratios of critic step and iteration, with one column per case."""
    parts = []
    for kind, lines in records.items():
        ratios: dict[str, dict[str, str]] = {}
        for record in _of_cases(lines):
            both = f"{record['critic_step_ratio']:.2f} / {record['iteration_ratio']:.2f}"
            ratios.setdefault(record["variant"], {})[record["case"]] = both
        cases = list(dict.fromkeys(record["case"] for record in _of_cases(lines)))
        rows = [{kind: name, **{case: row.get(case, "") for case in cases}} for name, row in ratios.items()]
        parts += [markdown_table(rows), *_list_sources(lines, _describe_widths(lines))]
    return "\n\n".join(parts)


def peer_table(records: list[Record]) -> list[dict[str, str]]:
    """Return ratios to the peer's own loop (median and quartiles) and times, of all variants on all peers' networks."""

    def ratio(record: Record, part: str) -> str:
        low, high = record[f"{part}_ratio_quartiles"]
        return f"{record[f'{part}_ratio']:.2f} ({low:.2f} to {high:.2f})"

    return [
        {
            "networks of": f"{record['peer']}" + (f", width {record['width']}" if record["width"] else ""),
            "variant": record["variant"],
            "critic step": ratio(record, "critic_step"),
            "iteration": ratio(record, "iteration"),
            "critic step, ms": _digits(1e3 * record["critic_step_s"]),
            "iteration, ms": _digits(1e3 * record["iteration_s"]),
        }
        for record in records
    ]


def peer_block(records: dict[str, list[Record]]) -> str:
    """Return the block of docs/speed.md about other people's networks: one table per kind of device."""
    parts = []
    for lines in records.values():
        parts += [markdown_table(peer_table(lines)), *_list_sources(lines, "quartiles in parentheses")]
    return "\n\n".join(parts)


def _of_cases(records: list[Record]) -> list[Record]:
    return [record for record in records if is_of_case(record)]


def _list_left_out(records: list[Record]) -> list[str]:
    """Return one line per variant that could not be measured, with the reason."""
    left_out = [record for record in records if "left_out" in record]
    lines = [f"Left out, {record['case']}: `{record['left_out'].replace('`', '')}`." for record in left_out]
    return [textwrap.fill(line, 150, break_on_hyphens=False) for line in lines]


def _digits(value: float) -> str:
    """Three significant digits, without an exponent: 1.23e+03 becomes 1,230."""
    return f"{float(f'{value:.3g}'):,g}"


def _list_sources(records: list[Record], note: str) -> list[str]:
    """Return a line per measurement that tells where its records come from, with a note at its end.

    If there are several measurements, each line begins with the names of its cases.
    """
    sources: dict[str, dict[str, None]] = {}
    for r in records:
        source = (
            f"`{r['command']}`, commit {_commit(r)}, {describe_hardware(r)}: medians over {r['rounds']} rounds; {note}."
        )
        sources.setdefault(source, {})[r.get("case") or r.get("peer") or "growth"] = None
    lines = [f"{'; '.join(names)}: {source}" if len(sources) > 1 else source for source, names in sources.items()]
    return [textwrap.fill(line, 150, break_on_hyphens=False) for line in lines]


def _describe_widths(records: list[Record]) -> str:
    return {
        "cpu": "CIFAR and text have a quarter of the released width, 64 x 64 an eighth",
        "paper": "the widths are those of the released code",
        "smoke": "tiny networks, so that the numbers mean nothing",
    }[records[0]["budget"]]


def _commit(record: Record) -> str:
    return (record["commit"] or "unknown")[:7] + (" (changed)" if record["dirty"] else "")


def scaling_block(records: list[Record]) -> str:
    """Return the rendered block of results/scaling/README.md: two tables per kind of device.

    The first one shows the newest record of each setting, the second one the efficiency that follows from it.
    """
    parts = []
    for kind in dict.fromkeys(record["kind"] for record in records):
        lines = [record for record in records if record["kind"] == kind]
        newest = {(r["case"], r["grows"], r["ranks"]): r for r in lines}
        last, commits = lines[-1], ", ".join(dict.fromkeys(_commit(record) for record in lines))
        if kind == "cpu":
            where = f"{last['cores']} cores, one thread per rank, gloo over loopback"
        else:
            where = f"{last['device']}, one GPU per rank, NCCL"
        parts += [
            f"## Measured on {kind}",
            f"`{last['command']}`, commit {commits}, {where}, torch {last['torch']}: medians of"
            f" {len(last['iteration_s_all'])}.",
            markdown_table([_scaling_row(newest, *setting) for setting in sorted(newest)]),
        ]
        efficiency = _predict_efficiency(newest)
        if efficiency:
            parts += ["### Predicted efficiency", markdown_table(efficiency)]
    return "\n\n".join(parts)


def _scaling_row(newest: dict[tuple[str, bool, int], Record], case: str, grows: bool, ranks: int) -> dict[str, str]:
    record, alone = newest[case, grows, ranks], newest.get((case, grows, 1))
    speedup = record["batch"] / record["iteration_s"] / (alone["batch"] / alone["iteration_s"]) if alone else None
    sent = 2 * (ranks - 1) / ranks * (CRITIC_STEPS * record["critic_bytes"] + record["generator_bytes"]) / 1e6
    per_iteration = CRITIC_STEPS + record["generator_bytes"] / record["critic_bytes"]  # in all-reduces of the critic
    communication = per_iteration * record["all_reduce_s"] + record["one_number_s"]
    return {
        "case": case,
        "batch": f"{record['batch']}, {'grows' if grows else 'constant'}",
        "ranks": f"{ranks}",
        "iteration, ms": f"{1e3 * record['iteration_s']:.1f}",
        "speed-up": f"{speedup:.2f}" if speedup is not None else "",
        "MB sent": f"{sent:.1f}",
        "all-reduce, ms": f"{1e3 * record['all_reduce_s']:.2f}",
        "all-reduces / iteration": f"{communication / record['iteration_s']:.0%}",
    }


def _predict_efficiency(newest: dict[tuple[str, bool, int], Record]) -> list[dict[str, str]]:
    """Return t / (t + time of the all-reduces) for more devices, as a table with one row per case.

    The batch grows with the devices. Rings have the speed that was measured between two ranks.
    """
    rows = []
    for case in dict.fromkeys(case for case, _, _ in newest):
        one, two = newest.get((case, True, 1)), newest.get((case, True, 2))
        if one is None or two is None:
            continue
        latency = two["one_number_s"] / 2
        # With two ranks a ring sends each byte once.
        per_byte = max(two["all_reduce_s"] - two["one_number_s"], 0) / two["critic_bytes"]
        row = {"case": case}
        for n in DEVICES:
            sent = 2 * (n - 1) / n * (CRITIC_STEPS * two["critic_bytes"] + two["generator_bytes"])
            # One all-reduce per critic step, one for the generator step, one that asks whether to stop.
            waits = (CRITIC_STEPS + 2) * 2 * (n - 1) * latency
            row[f"{n} devices"] = f"{one['iteration_s'] / (one['iteration_s'] + sent * per_byte + waits):.0%}"
        rows.append(row)
    return rows


def read_page(path: Path, title: str) -> str:
    """Return the text of a page, or a new page with this title if there is none.

    Raises:
        ValueError: the page has no rendered block. Call this before a long measurement.
    """
    text = path.read_text() if path.exists() else f"# {title}\n\n{BEGIN}\n{END}\n"
    try:
        replace_block(text, BEGIN, END, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return text


def write_page(path: Path, title: str, block: str) -> None:
    """Replace the rendered block of a page. ValueError as in `read_page`."""
    write_atomic(path, replace_block(read_page(path, title), BEGIN, END, f"\n{block}\n"))


def render(root: Path = ROOT) -> list[Path]:
    """Render all blocks again, from the records in results/. Returns the files that were written."""
    speed, scaling = root / SPEED, root / SCALING
    write_page(speed / "README.md", "Speed", speed_block(read_speed(speed)))
    write_page(scaling / "README.md", "Several ranks", scaling_block(read_lines(scaling / "records.jsonl")))
    for kind, records in read_speed(speed).items():
        draw_picture(speed / f"{kind}.png", records)
    write_guide(root)
    return [speed / "README.md", scaling / "README.md", root / GUIDE]


def write_guide(root: Path = ROOT) -> None:
    """Replace the rendered blocks of docs/speed.md. ValueError if one is missing."""
    path, folder = root / GUIDE, root / SPEED
    text = replace_block(path.read_text(), *GUIDE_MARKERS, f"\n{ratio_block(read_speed(folder))}\n")
    write_atomic(path, replace_block(text, *PEER_MARKERS, f"\n{peer_block(read_speed(folder, 'peers-'))}\n"))


def main() -> None:
    with print_errors():
        Parser(prog="python -m bench.page", description="Render the tables again, from the records.").parse_args()
        for path in render():
            print(f"rendered {path}")


if __name__ == "__main__":
    main()
