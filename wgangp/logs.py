"""What a run writes down: JSON lines, TensorBoard where it is installed, and where the numbers come from."""

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

__all__ = ["Log", "append_line", "provenance", "read_lines"]


class Log:
    """metrics.jsonl (what was computed: the same for a resumed run) and timing.jsonl (when), one line a report.

    Args:
        folder: the run folder; lines of steps from start on are dropped, they are about to be written again.
        start: the first step that will be reported.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.metrics, self.timing = folder / "metrics.jsonl", folder / "timing.jsonl"
        for path in (self.metrics, self.timing):
            kept = [record for record in read_lines(path) if record["step"] < start]
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.elapsed_before = max((record["elapsed_s"] for record in read_lines(self.timing)), default=0.0)
        self.began = time.monotonic()
        self.board = _tensorboard(folder / "tensorboard", start)

    def elapsed(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        return round(self.elapsed_before + time.monotonic() - self.began, 3)

    def write(self, step: int, values: dict[str, float], elapsed: float) -> None:
        """One line of metrics, one of timing, elapsed_s."""
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
    """The records of a file of JSON lines, none where there is no file; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def provenance(device: torch.device) -> dict[str, Any]:
    """Where numbers come from: command, commit (dirty: with changes to code or config), versions, device, time."""
    ours = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None  # not a checkout that only surrounds us
    changes = _git("status", "--porcelain", "--", ":/wgangp", ":/conf", ":/scripts") if ours else None
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD") if ours else None,
        "dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        return None


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra is not installed
        return None
    return SummaryWriter(str(folder), purge_step=start)
