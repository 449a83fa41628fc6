"""The log of a run: JSON lines, TensorBoard if it is installed, and where the numbers come from."""

import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

from wgangp.checkpoint import write_atomic
from wgangp.version import __version__

__all__ = ["Log", "append_line", "provenance", "read_lines", "read_metrics"]

RENAMED = {  # metrics of logs that were written by earlier versions -> their names now
    "critic_gradient_norm": "critic_param_grad_norm",
    "generator_gradient_norm": "generator_param_grad_norm",
}


class Log:
    """metrics.jsonl (what was computed; the same for a resumed run) and timing.jsonl (when), one line per report.

    Args:
        folder: the run folder. Lines of the step start and later are dropped: they will be written again.
        start: the first step that will be reported.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.metrics, self.timing = folder / "metrics.jsonl", folder / "timing.jsonl"
        for path in (self.metrics, self.timing):
            kept = [record for record in read_metrics(path) if record["step"] < start]
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.elapsed_before = max((record["elapsed_s"] for record in read_lines(self.timing)), default=0.0)
        self.start_time = time.monotonic()
        self.board = _tensorboard(folder / "tensorboard", start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics, and one line of timing: elapsed_s, the seconds of training so far.

        Seconds of earlier processes that trained the same run are included.
        """
        elapsed = round(self.elapsed_before + time.monotonic() - self.start_time, 3)
        append_line(self.metrics, {"step": step, **values})
        append_line(self.timing, {"step": step, "elapsed_s": elapsed})
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines; none if there is no file.

    A last line without a line break was cut off by a crash, and is left out.
    """
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """`read_lines` of a metrics.jsonl, with the metric names of this version."""
    return [{RENAMED.get(name, name): value for name, value in record.items()} for record in read_lines(path)]


def provenance(device: torch.device) -> dict[str, Any]:
    """Where numbers come from: command, commit, versions, device and time.

    dirty: the checkout has changes in code or config that are not in the commit. Without a checkout (an installed
    package) commit and dirty are None, and version names the package's version.
    """
    # git may find a checkout that only surrounds the package (a virtual environment inside of a project).
    checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    changes = _git("status", "--porcelain", "--", ":/wgangp", ":/conf", ":/scripts", ":/bench") if checkout else None
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "version": __version__,
        "commit": _git("rev-parse", "HEAD") if checkout else None,
        "dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        return None
    return run.stdout.strip()


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra is not installed
        return None
    return SummaryWriter(str(folder), purge_step=start)
