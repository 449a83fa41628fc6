"""One run on several processes ("ranks"), started by torchrun. Every rank computes on its slice of the batch, and all
ranks take the same step.

Every rank draws whole batches, noise and eps (they are functions of seed, step and purpose), and then takes its slice.
The mean over the batch is the mean of the means of the ranks. So one all-reduce of all gradients, as one flat tensor,
gives the step that a single process would take: with 1, 2 or 4 ranks the parameters agree to rounding. Besides, only a
flag is sent, which asks whether to stop.
"""

import datetime
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wgangp.accumulate import check_parts
from wgangp.compiled import Computation, Gradients

__all__ = ["World", "join_ranks", "local_device"]

LOST = ("connection", "timed out", "timeout")  # words in the errors of gloo, NCCL and the store when a rank is lost


@dataclass(frozen=True)
class World:
    """All ranks of a run, and which one this process is: rank 0 ... size - 1. Only rank 0 logs, draws and writes."""

    rank: int = 0
    size: int = 1
    launcher: int | None = None  # the number of the process that started this one; None: it may end before this one

    @property
    def first(self) -> bool:
        return self.rank == 0

    def slice(self, *batch: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the rows of this rank, of tensors that all ranks have whole. None stays None."""
        assert all(x is None or len(x) % self.size == 0 for x in batch), "see check"
        return tuple(x if x is None else x.chunk(self.size)[self.rank] for x in batch)

    def average(self, computation: Computation) -> Computation:
        """Return a computation whose gradients and terms are averaged over the ranks."""
        if self.size == 1:
            return computation
        critic, generator = computation.critic_gradients, computation.generator_gradients
        return replace(
            computation, critic_gradients=self._average(critic), generator_gradients=self._average(generator)
        )

    def _average(self, gradients: Gradients) -> Gradients:
        """Average with one all-reduce of one flat tensor."""

        def average(*batch: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
            terms, local = gradients(*batch)
            parts = (*local, *terms.values())
            flat = torch.cat([x.reshape(-1) for x in parts])
            dist.all_reduce(flat)
            flat /= self.size
            means = [mean.view(x.shape) for mean, x in zip(flat.split([x.numel() for x in parts]), parts, strict=True)]
            # Terms are kept for some steps. As views they would keep the memory of all gradients.
            mean_terms = [term.clone() for term in means[len(local) :]]
            return dict(zip(terms, mean_terms, strict=True)), means[: len(local)]

        return average

    @property
    def orphaned(self) -> bool:
        """True if torchrun was killed. Nobody would see that a rank fails, or start the run again."""
        return self.launcher is not None and os.getppid() != self.launcher

    def any(self, flag: bool) -> bool:
        """Logical OR over ranks. The flag is a CPU tensor, so that the call does not wait for a GPU."""
        if self.size == 1:
            return flag
        count = torch.tensor([float(flag)])
        dist.all_reduce(count)
        return count.item() > 0

    def require_equal(self, values: dict[str, str]) -> None:
        """Raise ValueError on every rank if a value is not the same on all ranks. The message names these values."""
        if self.size == 1:
            return
        digests = torch.zeros(self.size, len(values), dtype=torch.int64)
        for i, value in enumerate(values.values()):
            digest = hashlib.sha256(value.encode()).digest()
            digests[self.rank, i] = int.from_bytes(digest[:8], "big", signed=True)
        dist.all_reduce(digests)
        differing = [name for name, column in zip(values, digests.T, strict=True) if len(column.unique()) > 1]
        if differing:
            raise ValueError(
                f"not the same on all {self.size} ranks: {', '.join(differing)}. All ranks must see the same run folder"
                " and the same data, and must be started by the same command"
            )

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first rank of each node runs the with block before its other ranks: they find what it downloaded."""
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0
        if self.size > 1 and not first:
            dist.barrier()
        yield
        if self.size > 1 and first:
            dist.barrier()

    def check(
        self, sizes: dict[str, int | None], regularize_gradient_norm: float, compiled_norm: bool, accumulate: int = 1
    ) -> None:
        """Raise ValueError for settings that do not work with several ranks, or with several parts per rank.

        Args:
            sizes: batch sizes by name; each must be a multiple of the number of ranks times that of parts.
            regularize_gradient_norm: as in `train`. It must be 0 on several ranks.
            compiled_norm: batch norm is synchronized in compiled steps, which fails on several ranks.
            accumulate: parts in which each rank computes its slice of a batch.
        """
        for name, size in sizes.items():
            if size is not None and size % (self.size * accumulate):
                parts = f", {self.size}" if accumulate == 1 else f" times train.accumulate, {self.size} * {accumulate}"
                raise ValueError(f"train.{name} = {size}: must be a multiple of the number of ranks{parts}")
        check_parts(self.size * accumulate, regularize_gradient_norm)
        if self.size > 1 and compiled_norm:
            raise ValueError(
                "train.sync_batch_norm does not work with train.compile: its all-reduce cannot be compiled. Choose one"
            )

    @contextmanager
    def synchronize_batch_norm(self, *networks: nn.Module) -> Iterator[None]:
        """Inside of the with block, batch norm uses the statistics of the batch of all ranks."""
        modules = [module for network in networks for module in network.modules()]
        norms = [module for module in modules if hasattr(module, "synchronized")] if self.size > 1 else []
        for norm in norms:
            norm.synchronized = True
        try:
            yield
        finally:
            for norm in norms:
                norm.synchronized = False


@contextmanager
def join_ranks(device: torch.device, rank_timeout: int) -> Iterator[World]:
    """Connect this process to the other ranks that torchrun started. Without torchrun the world has one rank.

    Args:
        device: the device of this rank.
        rank_timeout: seconds that a rank waits for the others before it ends with an error. If a rank dies, its
            connections close and the others end at once; the timeout is for a rank that hangs.

    Raises:
        ValueError: the other ranks did not come. If a rank is lost later, this process exits with status 1.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    if size == 1:
        yield World(launcher=launcher)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=rank_timeout))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the {size} ranks did not connect within {rank_timeout} s ({error}): start them with torchrun"
        ) from error
    rank = dist.get_rank()
    try:
        yield World(rank, size, launcher)
    except RuntimeError as error:
        if os.environ.get("HYDRA_FULL_ERROR") or not any(word in str(error).lower() for word in LOST):
            raise
        print(
            f"error: rank {rank} cannot reach another rank, which ended or hangs: {error}", file=sys.stderr, flush=True
        )
        if device.type == "cuda":  # NCCL calls in the queue never end, so a normal exit would wait for ever
            os._exit(1)
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """Return the name of the device of this rank. "cuda" becomes cuda:LOCAL_RANK, modulo the visible devices."""
    _from_slurm()
    if "LOCAL_RANK" in os.environ and (device == "cuda" or (device == "auto" and torch.cuda.is_available())):
        return f"cuda:{int(os.environ['LOCAL_RANK']) % max(torch.cuda.device_count(), 1)}"
    return device


def _from_slurm() -> None:
    """Set the environment variables that torchrun sets, for a task that Hydra's submitit launcher started."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and several and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
