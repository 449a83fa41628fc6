"""Measure what several ranks cost: torchrun --standalone --nproc-per-node N -m bench.scaling.

Run it for several numbers of ranks N, one after another. docs/scaling.md explains it.
"""

import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench import page
from bench.command import Parser, command_line, print_errors
from bench.contestants import CRITIC_STEPS, Ours
from bench.measure import CASES
from wgangp.distributed import World, join_ranks, local_device
from wgangp.logs import append_line, collect_provenance, read_lines
from wgangp.train import update

__all__ = ["main", "measure"]

DESCRIPTION = """Measure how long an iteration takes on several ranks, and an all-reduce of the gradients of the critic.
Start it with torchrun, once per number of ranks. Without torchrun there is one rank. On a CPU each rank has one thread.
Nothing else should run on the machine meanwhile."""
ROUNDS = 7
MEASURED = {"toy MLP": CASES["toy MLP"], "CIFAR DCGAN, width 32": replace(CASES["CIFAR DCGAN"], width=32)}


def main() -> None:
    with print_errors():
        run(sys.argv[1:])


def run(arguments: list[str]) -> None:
    """Measure all settings on the ranks that there are, and add them to the records of the folder."""
    parser = Parser(prog="torchrun --standalone --nproc-per-node N -m bench.scaling", description=DESCRIPTION)
    parser.add_argument(
        "--out",
        default=page.SCALING,
        metavar="FOLDER",
        help="the folder; every run adds lines to records.jsonl and renders the tables of README.md again"
        f" (default: {page.SCALING})",
    )
    folder = Path(parser.parse_args(arguments).out)
    page.read_page(folder / "README.md", "Several ranks")  # an error comes before the measurement
    device = torch.device(local_device("auto" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(1)
    with join_ranks(device, rank_timeout=600) as world:
        records = [measure(name, grows, device, world) for name in MEASURED for grows in (False, True)]
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            source = {**collect_provenance(device), "command": command_line("bench.scaling", arguments)}
            for record in records:
                append_line(folder / "records.jsonl", {**record, **source})
            block = page.scaling_block(read_lines(folder / "records.jsonl"))
            page.write_page(folder / "README.md", "Several ranks", block)
            print(f"written to {folder}: records.jsonl, README.md")


def measure(name: str, grows: bool, device: torch.device, world: World) -> dict[str, Any]:
    """Measure the seconds of an iteration, of an all-reduce of the critic's gradients, and of one of a single number.

    Args:
        name: a key of MEASURED.
        grows: the batch of all ranks together grows with their number; otherwise it is constant.
    """
    case = MEASURED[name]
    ours = Ours(case, device)
    batch = case.batch * (world.size if grows else 1)
    computation = world.average(ours.computation)
    sizes = {"critic_steps": CRITIC_STEPS, "batch_size": batch, "generator_batch_size": None}
    networks = {"critic": ours.critic, "generator": ours.generator}
    parameters = {role: sum(p.numel() for p in network.parameters()) for role, network in networks.items()}
    flat, number = torch.zeros(parameters["critic"], device=device), torch.zeros(1, device=device)

    def iteration(step: int) -> None:  # as in wgangp.train
        world.any(False)
        update(step, ours.run, computation, world=world, **sizes)

    def all_reduce(x: torch.Tensor) -> None:
        if world.size > 1:
            dist.all_reduce(x)

    functions = {
        "iteration_s": iteration,
        "all_reduce_s": lambda _: all_reduce(flat),
        "one_number_s": lambda _: all_reduce(number),
    }
    seconds: dict[str, list[float]] = {key: [] for key in functions}
    for step in range(ROUNDS + 2):  # the first two are not used
        for key, function in functions.items():
            all_reduce(number)  # all ranks begin together
            start = _clock(device)
            function(step)
            seconds[key].append(_clock(device) - start)
    return {
        "case": name,
        "ranks": world.size,
        "batch": batch,
        "grows": grows,
        **{key: statistics.median(values[2:]) for key, values in seconds.items()},
        **{f"{key}_all": values[2:] for key, values in seconds.items()},
        "critic_bytes": 4 * parameters["critic"],
        "generator_bytes": 4 * parameters["generator"],
        "cores": len(os.sched_getaffinity(0)),
        "kind": device.type,
    }


def _clock(device: torch.device) -> float:
    """Return the time in seconds after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
