"""Measure this project's steps on other people's networks, against their own loops: python -m bench.peers.

docs/speed.md explains it. A peer is a public implementation: its networks (bench/peer_networks.py) and its loop
(bench/peer_loops.py). Our step gets the same networks, unchanged.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import measure, page
from bench.command import Parser, command_line, print_errors
from bench.contestants import CRITIC_STEPS, IMAGES
from bench.peer_loops import PEERS, Loop, Peer, draw_batch, draw_pixels
from bench.speed import print_table
from wgangp.checkpoint import write_atomic
from wgangp.compiled import TOLERANCE, build_computation
from wgangp.config import find_device
from wgangp.data.images import Images
from wgangp.gradients import total_norm
from wgangp.logs import collect_provenance
from wgangp.losses import Wasserstein
from wgangp.penalty import GradientPenalty
from wgangp.precision import product_precision
from wgangp.runs import Run
from wgangp.step import descend
from wgangp.train import update

__all__ = ["main", "measure_peer", "run"]

DESCRIPTION = """Measure the steps of this project on five networks of four other implementations, against the loops of
these implementations. It takes about six minutes on two idle cores if the compiled graphs are cached, and longer the
first time. Nothing else should run on the machine meanwhile."""
VARIANTS: dict[str, dict[str, Any]] = {  # arguments of Ours; "peer" is the loop of the peer
    "peer": {},
    "peer, tf32": {"precision": "tf32"},
    "eager": {},
    "compiled": {"compile": True},
    "bf16, penalty in bf16": {"compile": True, "precision": "bf16", "autocast": True},
    "tf32": {"compile": True, "precision": "tf32"},
}
PARTS = ("critic_step", "iteration")


class Ours:
    """The steps that `wgangp.train` takes, on the networks of a peer."""

    def __init__(
        self,
        peer: Peer,
        device: torch.device,
        networks: tuple[nn.Module, nn.Module],
        precision: str = "fp32",
        autocast: bool = False,
        compile: bool = False,
    ) -> None:
        self.peer, (generator, self.critic) = peer, networks
        has_convolutions = any(isinstance(m, nn.Conv2d) for m in self.critic.modules())
        if compile and has_convolutions and (precision != "bf16" or peer.bf16_channels_last):
            for network in networks:
                network.to(memory_format=torch.channels_last)
        optimizers = (
            torch.optim.Adam(network.parameters(), lr=peer.lr, betas=peer.betas, fused=True) for network in networks
        )
        self.real, self.fake, self.eps = draw_batch(peer, device)
        loss, penalty = Wasserstein(), GradientPenalty(autocast=autocast)
        self.computation = build_computation(*networks, loss, penalty, precision=precision, compile=compile)
        self.run = Run(generator, self.critic, *optimizers, _build_data(peer, device), loss, penalty, seed=0)
        self.step = 0

    def critic_gradients(self) -> list[Tensor]:
        return self.computation.critic_gradients(self.real, self.fake, self.eps)[1]

    def critic_step(self) -> None:
        descend(self.critic, self.critic_gradients(), self.run.optim_critic)

    def iteration(self) -> None:
        update(self.step, self.run, self.computation, critic_steps=CRITIC_STEPS, batch_size=self.peer.batch)
        self.step += 1


def measure_peer(
    peer: Peer,
    device: torch.device,
    rounds: int,
    deadline: float = float("inf"),
    variants: Sequence[str] = tuple(VARIANTS),
) -> list[dict[str, Any]]:
    """Measure the peer's loop and our variants in turn.

    Args:
        deadline: in seconds of time.monotonic(). Variants that are not compiled by then are left out.
        variants: names of VARIANTS; the first is "peer".

    Returns:
        one record per variant: seconds (median), and ratios to the peer (median and quartiles over rounds). A variant
        is left out, with a message, if its gradients are not those of the peer, or if it fell back to eager mode.
    """
    width = peer.width // (peer.cpu_division if device.type == "cpu" else 1)
    timed: dict[tuple[str, str], Callable[[], None]] = {}
    errors, expected = {}, []
    for name in variants:
        options = VARIANTS[name]
        precision = options.get("precision", "fp32")
        if precision == "tf32" and device.type != "cuda":
            continue
        if options.get("compile") and time.monotonic() > deadline:
            print(f"{name} is left out: the time is over")
            continue
        try:
            with product_precision(precision), measure.require_compiled(name):
                variant = _build(peer, device, width, name, options)
                gradients = variant.critic_gradients()
                expected = expected or gradients
                errors[name] = _compare(gradients, expected, precision)
                for _ in range(4 if device.type == "cuda" else 1):  # compiles all of it, and records CUDA graphs
                    variant.iteration()
        except ValueError as error:
            print(f"{name} is left out: {error}")
            continue
        timed |= {(name, part): measure.with_precision(precision, getattr(variant, part)) for part in PARTS}
    seconds = measure.time_in_turn(timed, device, rounds)
    sizes = {"width": width, "batch": peer.batch}
    names = [name for name in variants if (name, "iteration") in timed]
    return [{"variant": name, "gradient_error": errors[name], **sizes, **_summarize(name, seconds)} for name in names]


def _build(peer: Peer, device: torch.device, width: int, name: str, options: dict[str, Any]) -> "Loop | Ours":
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = tuple(network.to(device) for network in peer.build(width))
    if name.startswith("peer"):
        return peer.loop(peer, device, networks)
    return Ours(peer, device, networks, **options)


def _compare(gradients: list[Tensor], expected: list[Tensor], precision: str) -> float:
    """Return the relative error of all gradients together. ValueError if it is too large."""
    difference = total_norm([a - b for a, b in zip(gradients, expected, strict=True)])
    error = (difference / total_norm(expected)).item()
    if not error <= TOLERANCE[precision]:
        raise ValueError(f"its gradients differ by {error:.2g} (relative) from those of the peer")
    return error


def _summarize(name: str, seconds: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    summary = {}
    for part in PARTS:
        ratios = [a / b for a, b in zip(seconds[name, part], seconds["peer", part], strict=True)]
        summary |= {
            f"{part}_s": statistics.median(seconds[name, part]),
            f"{part}_ratio": statistics.median(ratios),
            f"{part}_ratio_quartiles": measure.quartiles(ratios),
        }
    return summary


def main() -> None:
    with print_errors():
        run(sys.argv[1:])


def run(arguments: list[str]) -> None:
    """Measure, print the table, and write it. ValueError for a wrong option, or if nothing could be measured."""
    options = _parse(arguments)
    device = find_device(options.device)
    folder = Path(options.out or page.SPEED)
    source = {**collect_provenance(device), "command": command_line("bench.peers", arguments), "rounds": options.rounds}
    start, records = time.monotonic(), []
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.peers:
        if time.monotonic() - start > options.seconds:
            print(f"{name} is left out: the time is over")
            continue
        peer = PEERS[name]
        if options.smoke:
            peer = replace(peer, batch=6, width=min(peer.width, 16))
        variants = [name for name in VARIANTS if name == "peer" or name in options.variants]
        measured = measure_peer(peer, device, options.rounds, start + options.seconds, variants)
        records += [{"peer": name, "source": peer.source, **record, **source} for record in measured]
        print(f"{name}: {time.monotonic() - start:.0f} s since the start", flush=True)
        # After every peer, so that nothing is lost if the time is over.
        write_atomic(folder / f"peers-{device.type}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    if not records:
        raise ValueError(f"nothing was measured within {options.seconds:g} seconds: give --seconds more")
    print_table(page.peer_table(records))
    if folder.resolve() == page.ROOT / page.SPEED:
        page.write_guide()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m bench.peers", description=DESCRIPTION)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default): cuda if there is a GPU")
    parser.add_argument("--rounds", type=int, default=7, help="number of times that all are measured (default: 7)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, and --seconds 100")
    parser.add_argument("--smoke", action="store_true", help="tiny batches; the numbers mean nothing")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after this time nothing more is begun")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER", help=", ".join(map(repr, PEERS))
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="VARIANT",
        help="what is measured beside the peer (default: all)",
    )
    parser.add_argument("--out", metavar="FOLDER", help=f"for peers-DEVICE.jsonl (default: {page.SPEED})")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 3, min(options.seconds, 100)
    if options.rounds < 1:
        raise ValueError(f"--rounds {options.rounds}: must be >= 1")
    return options


class _Rows:
    """A data set whose images are rows of numbers."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def batch(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        x, *y = self.images.batch(*arguments, **options)
        return x.flatten(1), *y


def _build_data(peer: Peer, device: torch.device) -> Any:
    pixels = draw_pixels(peer, IMAGES[device.type])
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    splits = ("train", "heldout")
    images = Images(dict.fromkeys(splits, pixels), dict.fromkeys(splits, labels), False, device, span=peer.span)
    return _Rows(images) if peer.flat else images


if __name__ == "__main__":
    main()
