"""One run on many processes, started by torchrun: a rank takes its slice of the batch, and all take the same step.

Batches, noise and eps are drawn whole on every rank (they are functions of seed, step and purpose), then sliced. The
mean over the batch is the mean of the ranks' means, so one all-reduce of all gradients, flat, makes a step the one that
a single process takes: with 1, 2 or 4 ranks the parameters agree to rounding. Nothing else is sent meanwhile, but for a
flag that asks whether to stop.
"""

import datetime
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wgangp.step import Gradients

__all__ = ["World", "check_plain", "joined", "local_device"]

LOST = ("connection", "timed out", "timeout")  # what gloo, NCCL and the store say of a rank that does not answer


@dataclass(frozen=True)
class World:
    """This process among all: rank 0 .. size - 1. Rank 0 alone reports, draws pictures and writes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def slice(self, x: Tensor) -> Tensor:
        """This rank's rows of a batch that all ranks have whole."""
        assert len(x) % self.size == 0, "see check"
        share = len(x) // self.size
        return x[self.rank * share : (self.rank + 1) * share]

    def reduced(self, gradients: Gradients) -> Gradients:
        """The same gradients and terms, averaged over the ranks: one flat all-reduce."""
        if self.size == 1:
            return gradients

        def averaged(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
            terms, found = gradients(*batch)
            flat = torch.cat([x.reshape(-1) for x in (*found, *terms.values())])
            dist.all_reduce(flat)
            flat /= self.size
            parts = flat.split([x.numel() for x in (*found, *terms.values())])
            whole = [part.view(x.shape) for part, x in zip(parts, (*found, *terms.values()), strict=True)]
            of_terms = [term.clone() for term in whole[len(found) :]]  # so that who keeps one does not keep all of flat
            return dict(zip(terms, of_terms, strict=True)), whole[: len(found)]

        return averaged

    def any(self, mine: bool) -> bool:
        """Whether any rank says so. On CPU tensors, so that no device is waited for."""
        if self.size == 1:
            return mine
        flag = torch.tensor([float(mine)])
        dist.all_reduce(flag)
        return flag.item() > 0

    def agree(self, facts: dict[str, str]) -> None:
        """Raise ValueError, on every rank, naming the facts that are not the same on all of them."""
        if self.size == 1:
            return
        digests = torch.zeros(self.size, len(facts), dtype=torch.int64)
        for i, fact in enumerate(facts.values()):
            digest = hashlib.sha256(fact.encode()).digest()
            digests[self.rank, i] = int.from_bytes(digest[:8], "big", signed=True)
        dist.all_reduce(digests)
        differing = [name for name, column in zip(facts, digests.T, strict=True) if len(column.unique()) > 1]
        if differing:
            raise ValueError(
                f"not the same on all {self.size} ranks: {', '.join(differing)}. They must see one run folder and the"
                " same data, and be started by the same command"
            )

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first rank of each node goes through this before its others do: what it downloads, they find."""
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0
        if self.size > 1 and not first:
            dist.barrier()
        yield
        if self.size > 1 and first:
            dist.barrier()

    def check(self, sizes: dict[str, int | None], regularize_gradient_norm: float, compiled_norm: bool) -> None:
        """Raise ValueError for what cannot be spread over ranks."""
        for name, size in sizes.items():
            if size is not None and size % self.size:
                raise ValueError(f"train.{name} = {size}: must be a multiple of the {self.size} ranks")
        if self.size > 1 and regularize_gradient_norm:
            raise ValueError(
                "regularize.gradient_norm: the squared norm of a mean over ranks is no mean over ranks, so that one"
                " all-reduce does not give its gradient. Use one process, or 0"
            )
        if self.size > 1 and compiled_norm:
            raise ValueError("train.sync_batch_norm with train.compile: its all-reduce cannot be compiled; choose one")

    @contextmanager
    def synchronised(self, *players: nn.Module) -> Iterator[None]:
        """Batch norm over the batch of all ranks, instead of a rank's slice, while this lasts."""
        modules = [module for player in players for module in player.modules()]
        norms = [module for module in modules if hasattr(module, "synchronised")] if self.size > 1 else []
        for norm in norms:
            norm.synchronised = True
        try:
            yield
        finally:
            for norm in norms:
                norm.synchronised = False


@contextmanager
def joined(device: torch.device, timeout_s: float) -> Iterator[World]:
    """The world that torchrun made this process part of; a world of one without torchrun.

    Args:
        device: this rank's.
        timeout_s: how long a rank waits for the others before it ends with an error. A rank that dies on the same
            network closes its connections, which ends the others at once; this is for one that hangs.

    Raises:
        ValueError: the others did not come. A rank that is lost later ends this process, with status 1.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the {size} ranks did not find each other within {timeout_s:g} s ({error}): start them with torchrun"
        ) from error
    rank = dist.get_rank()
    try:
        yield World(rank, size)
    except RuntimeError as error:
        if os.environ.get("HYDRA_FULL_ERROR") or not any(word in str(error).lower() for word in LOST):
            raise
        print(f"error: rank {rank} lost the others, one of them ended or hangs: {error}", file=sys.stderr, flush=True)
        if device.type == "cuda":  # what waits in NCCL's queue never ends, and neither would a graceful exit
            os._exit(1)
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this rank: cuda means cuda:LOCAL_RANK; the only one there is, where each task is shown one."""
    _from_slurm()
    if "LOCAL_RANK" in os.environ and (device == "cuda" or (device == "auto" and torch.cuda.is_available())):
        return f"cuda:{int(os.environ['LOCAL_RANK']) % max(torch.cuda.device_count(), 1)}"
    return device


def _from_slurm() -> None:
    """What torchrun would have set, for a task that Hydra's submitit launcher started."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and several and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment  # who starts us there: it knows the nodes

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def check_plain(*players: nn.Module) -> None:
    """Raise ValueError for a player that is wrapped for another kind of data parallelism."""
    for module in (module for player in players for module in player.modules()):
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "DistributedDataParallel" in kinds:
            raise ValueError(
                "a player is wrapped in DistributedDataParallel: its hooks do not see gradients that come from"
                " autograd.grad, and with static_graph=True not even all of backward's, so every rank would train on"
                " its own. Hand over the module itself and start with torchrun"
            )
        if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
            raise ValueError(
                "a player is sharded (FSDP): it breaks on the second-order graph of a gradient penalty. Hand over the"
                " module itself and start with torchrun"
            )
