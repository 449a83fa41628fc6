"""The log of a run: JSON lines, TensorBoard if it is installed, what a person sees, and where the numbers come from."""

import json
import math
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

from wgangp.checkpoint import write_atomic
from wgangp.files import name_file
from wgangp.metrics.scores import MAIN
from wgangp.version import __version__

__all__ = [
    "Log",
    "Progress",
    "amend_last_line",
    "append_line",
    "collect_provenance",
    "describe_hardware",
    "read_lines",
    "read_metrics",
    "tensorboard_name",
]

MINUTE = 60.0  # seconds

RENAMED = {  # metrics of logs that were written by earlier versions -> their names now
    "critic_gradient_norm": "critic_param_grad_norm",
    "generator_gradient_norm": "generator_param_grad_norm",
}
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
        before = [record["elapsed_s"] for record in read_lines(self.timing) if record["step"] <= start]
        self.elapsed_before = max(before, default=0.0)  # the report of the step start came before its checkpoint
        for path in (self.metrics, self.timing):
            kept = [record for record in read_metrics(path) if record["step"] < start]
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.start_time = time.monotonic()
        self.board = _tensorboard(folder, start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics, and one line of timing: elapsed_s, the seconds of training so far.

        Seconds of earlier processes that trained the same run are included.
        """
        elapsed = round(self.elapsed_before + time.monotonic() - self.start_time, 3)
        append_line(self.metrics, {"step": step, **values})
        append_line(self.timing, {"step": step, "elapsed_s": elapsed})
        with self._use_board() as board:
            for name, value in {**values, "elapsed_s": elapsed}.items() if board else ():
                board.add_scalar(tensorboard_name(name), value, step)

    def write_picture(self, step: int) -> None:
        """Add samples/STEP.png or samples/STEP.txt to TensorBoard. Nothing is done if there is neither."""
        path = self.folder / "samples" / f"{step:08d}.png"
        with self._use_board() as board:
            if board and path.exists():
                with Image.open(path) as image:
                    board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
            if board and (path := path.with_suffix(".txt")).exists():
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


class Progress:
    """What a person sees of a run, on stderr: a bar in a terminal or a notebook, plain lines in a file or a pipe.

    A line is written at the first report and at the last one, and in between at most once per minute.

    Args:
        step: generator updates that are done.
        steps: generator updates in total.
        visible: False shows nothing. It is for all ranks but the first.
    """

    def __init__(self, step: int, steps: int, visible: bool = True) -> None:
        bar = sys.stderr.isatty() or issubclass(tqdm, tqdm_notebook)
        self.bar = tqdm(initial=step, total=steps, unit="update", dynamic_ncols=True, disable=not (visible and bar))
        self.lines = visible and not bar
        self.start, self.steps = step, steps
        self.start_time, self.line_time = time.monotonic(), -math.inf

    def update(self) -> None:
        """Count one generator update."""
        self.bar.update()

    def report(self, step: int, values: dict[str, float]) -> None:
        """Show the most important numbers of a line of the log."""
        numbers = _summarize(values)
        self.bar.set_postfix(numbers)
        now = time.monotonic()
        if not self.lines or (step < self.steps and now < self.line_time + MINUTE):
            return
        self.line_time = now
        left = ""
        if self.start < step < self.steps:
            seconds = (now - self.start_time) / (step - self.start) * (self.steps - step)
            left = f", {tqdm.format_interval(seconds)} left"
        listed = ", ".join(f"{name} {number}" for name, number in numbers.items())
        print(f"update {step:,} of {self.steps:,}{left}: {listed}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()


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
    with name_file(path), path.open("ab+") as file:
        size = file.tell()
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")


def amend_last_line(path: Path, values: dict[str, Any]) -> None:
    """Add values to the last record of a file of JSON lines."""
    *before, last = read_lines(path)
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in (*before, last | values)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines; none if there is no file.

    A last line without a line break was cut off by a crash, and is left out.

    Raises:
        ValueError: another line is damaged: it is not a JSON object.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            reason = "" if isinstance(record, dict) else "it is not a JSON object"
        except ValueError as error:  # not JSON, or not UTF-8
            reason = str(error)
        if reason:
            raise ValueError(f"{path}, line {number} is damaged ({reason}): restore the file from a copy")
        records.append(record)
    return records


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """`read_lines` of a metrics.jsonl, with the metric names of this version."""
    return [{RENAMED.get(name, name): value for name, value in record.items()} for record in read_lines(path)]


def collect_provenance(device: torch.device) -> dict[str, Any]:
    """Return where numbers come from: command, commit, versions, device and time.

    dirty: the checkout has changes in code or config that are not in the commit. Without a checkout (an installed
    package) commit and dirty are None, and version names the package's version.
    """
    # git may find a checkout that only surrounds the package (a virtual environment inside of a project).
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
        "device": gpu or f"{platform.machine()} CPU, {threads} thread" + "s" * (threads > 1),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe_hardware(record: dict[str, Any]) -> str:
    """Return the device and the version of torch of a record with provenance, for a page."""
    device = record["device"].replace(", 1 threads", ", 1 thread")  # as early versions wrote it
    eager = f", not compiled: {', '.join(record['not_compiled'])}" if record.get("not_compiled") else ""
    return f"{device}, torch {record['torch']}{eager}"


def _summarize(values: dict[str, float]) -> dict[str, str]:
    """Return the most important numbers of a line of the log, with names for a person."""
    names = ["wasserstein" if "wasserstein" in values else "critic_loss", "penalty", "slope_interpolates_mean"]
    names.append(next((name for name in ("modes", "js4") if name in values), "generator_loss"))
    labels = {"slope_interpolates_mean": "slope"}
    return {labels.get(n, n.replace("_", " ")): f"{values[n]:.4g}" for n in names if n in values}


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
