"""Measure what ranks cost: torchrun --standalone --nproc-per-node N scripts/scaling.py [FOLDER].

Run it for several N, one after another, with nothing else on the machine; each run adds its lines to FOLDER (default
results/scaling) and writes the page there anew. On a CPU every rank has one thread.
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

from wgangp.benchmark import CASES
from wgangp.checkpoint import write_atomic
from wgangp.contestants import CRITIC_STEPS, Ours
from wgangp.distributed import World, joined, local_device
from wgangp.logs import append_line, provenance, read_lines
from wgangp.train import update

ROUNDS = 7
MEASURED = {"toy MLP": CASES["toy MLP"], "CIFAR DCGAN, width 32": replace(CASES["CIFAR DCGAN"], width=32)}
DEVICES = (8, 64, 512)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/scaling")
    device = torch.device(local_device("auto" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(1)
    with joined(device, timeout_s=600) as world:
        records = [measure(name, growing, device, world) for name in MEASURED for growing in (False, True)]
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            for record in records:
                append_line(folder / "records.jsonl", {**record, **provenance(device)})
            write_atomic(folder / "README.md", page(read_lines(folder / "records.jsonl")))
            print(f"written to {folder}")


def measure(name: str, growing: bool, device: torch.device, world: World) -> dict[str, Any]:
    """Seconds of an iteration, and of an all-reduce of the critic's gradients; the batch grows with ranks or not."""
    case = MEASURED[name]
    ours = Ours(case, device)
    batch = case.batch * (world.size if growing else 1)
    players = (ours.generator, ours.critic, ours.optim_generator, ours.optim_critic)
    gradients = ours.of | {who: world.reduced(ours.of[who]) for who in ("critic", "generator")}
    sizes = {"critic_steps": CRITIC_STEPS, "batch_size": batch, "generator_batch_size": None}
    parameters = {who: sum(p.numel() for p in getattr(ours, who).parameters()) for who in ("critic", "generator")}
    flat, number = torch.zeros(parameters["critic"], device=device), torch.zeros(1, device=device)

    def iteration(step: int) -> None:  # as in wgangp.train
        world.any(False)
        update(step, *players, ours.data, ours.penalty, seed=0, gradients=gradients, world=world, **sizes)

    def all_reduce(x: torch.Tensor) -> None:
        if world.size > 1:
            dist.all_reduce(x)

    runs = {
        "iteration_s": iteration,
        "all_reduce_s": lambda _: all_reduce(flat),
        "one_number_s": lambda _: all_reduce(number),
    }
    found: dict[str, list[float]] = {what: [] for what in runs}
    for step in range(ROUNDS + 2):
        for what, run in runs.items():
            all_reduce(number)  # so that all begin together
            seconds = -clock(device)
            run(step)
            found[what].append(seconds + clock(device))
    return {
        "case": name,
        "ranks": world.size,
        "batch": batch,
        "grows": growing,
        **{what: statistics.median(values[2:]) for what, values in found.items()},
        **{f"{what}_all": values[2:] for what, values in found.items()},
        "critic_bytes": 4 * parameters["critic"],
        "generator_bytes": 4 * parameters["generator"],
        "cores": len(os.sched_getaffinity(0)),
        "kind": device.type,
    }


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def page(records: list[dict[str, Any]]) -> str:
    """README.md: what was measured, and what it predicts."""
    lines = ["<!-- written by scripts/scaling.py -->", "# What ranks cost", ""]
    for kind in dict.fromkeys(record["kind"] for record in records):
        lines += table([record for record in records if record["kind"] == kind])
    return "\n".join(lines) + "\n"


def table(records: list[dict[str, Any]]) -> list[str]:
    """What was measured on one kind of device, the newest record of each setting, and what it predicts."""
    newest = {(r["case"], r["grows"], r["ranks"]): r for r in records}
    commits = dict.fromkeys(f"{r['commit'] or 'unknown'}"[:7] + (" (changed)" if r["dirty"] else "") for r in records)
    about = records[-1]
    where = f"one thread a rank, {about['cores']} cores, gloo over loopback; more ranks than cores share them"
    lines = [
        f"- **Run**: `torchrun --standalone --nproc-per-node N scripts/scaling.py` at {', '.join(commits)};"
        f" {where if about['kind'] == 'cpu' else 'one GPU a rank, ' + about['device'] + ', NCCL'}; torch"
        f" {about['torch']}; medians of {ROUNDS}.",
        "",
        "| case | batch, all ranks together | ranks | iteration, ms | samples/s against one rank"
        " | MB sent a rank and iteration | one all-reduce, ms | all-reduces, of the iteration |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (case, grows, ranks), r in sorted(newest.items()):
        alone = newest.get((case, grows, 1))
        speed = f"{r['batch'] / r['iteration_s'] / (alone['batch'] / alone['iteration_s']):.2f}" if alone else ""
        sent = 2 * (ranks - 1) / ranks * (CRITIC_STEPS * r["critic_bytes"] + r["generator_bytes"]) / 1e6
        share = (CRITIC_STEPS + r["generator_bytes"] / r["critic_bytes"]) * r["all_reduce_s"] + r["one_number_s"]
        batch = f"{r['batch']}, {'grows' if grows else 'stays'}"
        lines.append(
            f"| {case} | {batch} | {ranks} | {1e3 * r['iteration_s']:.1f} | {speed} | {sent:.1f} |"
            f" {1e3 * r['all_reduce_s']:.2f} | {share / r['iteration_s']:.0%} |"
        )
    return [*lines, "", *prediction(newest), ""]


def prediction(newest: dict[tuple[str, bool, int], dict[str, Any]]) -> list[str]:
    """Efficiency with the batch growing with the devices: t / (t + all-reduces), rings at the speed measured here."""
    lines = [
        "Predicted, not measured: devices as fast as one rank here, links as fast as the loopback between two ranks,"
        " the batch growing with the devices. A ring sends 2 (N - 1) / N of the gradients in 2 (N - 1) hops; their"
        " latency is half of what an all-reduce of one number takes two ranks.",
        "",
        "| case | " + " | ".join(f"{n} devices: efficiency" for n in DEVICES) + " |",
        "|---|" + "---|" * len(DEVICES),
    ]
    for case in MEASURED:
        one, two = newest.get((case, True, 1)), newest.get((case, True, 2))
        if one is None or two is None:
            continue
        latency = two["one_number_s"] / 2
        per_byte = max(two["all_reduce_s"] - two["one_number_s"], 0) / two["critic_bytes"]  # at N = 2 each is sent once
        shares = []
        for n in DEVICES:
            sent = 2 * (n - 1) / n * (CRITIC_STEPS * two["critic_bytes"] + two["generator_bytes"])
            waits = (CRITIC_STEPS + 2) * 2 * (n - 1) * latency  # with the one that asks whether to stop
            shares.append(f"{one['iteration_s'] / (one['iteration_s'] + sent * per_byte + waits):.0%}")
        lines.append(f"| {case} | " + " | ".join(shares) + " |")
    return lines


if __name__ == "__main__":
    main()
