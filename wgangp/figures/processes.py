"""Work in several processes, which end when the process that gives the work has ended."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import Any

import torch

__all__ = ["call_in_processes"]

END_S = 60.0  # seconds for a last checkpoint


def call_in_processes(function: Callable[..., Any], work: list[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """Yield the results of function(*arguments) for all arguments in the list, in the order in which they are ready.

    Args:
        jobs: number of processes with one thread each; 1: everything is called in this process.

    Raises:
        ValueError: a process was killed. Runs that were not finished are lost.
    """
    if jobs == 1:
        yield from (function(*arguments) for arguments in work)
        return
    pool = ProcessPoolExecutor(min(jobs, max(len(work), 1)), get_context("spawn"), initializer=_start_process)
    try:
        for future in as_completed([pool.submit(function, *arguments) for arguments in work]):
            yield future.result()
    except BrokenExecutor as error:
        raise ValueError("a process was killed, perhaps for lack of memory: try again with fewer jobs=") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the process that gives the work has ended, and end this one: nobody would write its records."""
    if parent := parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # training saves a checkpoint, from which the same command continues
        time.sleep(END_S)
        os._exit(1)
