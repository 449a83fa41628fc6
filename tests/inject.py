"""Faults in a child process: `Plan` says which, `run_command` trains one run with it.

The child is a copy of this process (fork), so that torch is imported once. Functions of the operating system and of the
training loop are wrapped in the child. Each call of a wrapped function passes places: before the call, after it, and in
the middle of writing. At the chosen passage of the chosen place the fault happens. The package knows nothing of this.
"""

import builtins
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import wgangp.train
from wgangp.cli import main
from wgangp.signals import STOP_SIGNALS

KINDS = (  # what a file of a run folder is
    (r"checkpoints/step_\d+\.pt$", "checkpoint"),
    (r"checkpoints/step_\d+\.pt\.sha256$", "digest"),
    (r"(metrics|timing|provenance)\.jsonl$", "log"),
    (r"config\.yaml$", "config"),
    (r"samples/\d+\.png$", "picture"),
    (r"curves\.png$", "curves"),
    (r"(tensorboard|\.lock)", ""),  # not part of what is promised
    (r"", "temporary file"),
)


@dataclass(frozen=True)
class Plan:
    """One fault.

    place      operation, phase, kind of file; None: no fault. Places that are passed are counted in any case
    passage    at which passage of the place the fault happens, from 1
    signal     the signal that the process sends itself; None: error is raised
    error      number of the OSError
    remove     True: the run folder is removed, and the run goes on
    limit      bytes that a file can have at most (RLIMIT_FSIZE)
    patch      called in the child before the command
    after      seconds after which the parent kills the child; None: it does not
    rank       the rank that has the fault
    """

    place: tuple[str, str, str] | None = None
    passage: int = 1
    signal: int | None = signal.SIGKILL
    error: int = 0
    remove: bool = False
    limit: int | None = None
    patch: object = None
    after: float | None = None
    rank: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a command: exit code of each rank, what they printed, places that were passed, and times."""

    codes: list[int]
    output: str
    places: Counter
    seconds: float
    delay: float | None  # seconds from the fault to the end; None: no fault happened


NO_FAULT = Plan()


def run_command(folder, overrides, plan=NO_FAULT, ranks=1, port=0):
    """Run `wgangp train run_dir=FOLDER ...` in a child, or in one child per rank, and wait for the end."""
    with tempfile.TemporaryDirectory(prefix="notes-") as notes:  # not beside the run, whose disk may fail
        return _run_children(folder, overrides, plan, ranks, port, Path(notes))


def _run_children(folder, overrides, plan, ranks, port, notes):
    start, children = time.monotonic(), []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if port else {}
            os.environ |= {"WORLD_SIZE": str(ranks)} if port else {}
            own = plan if rank == plan.rank else replace(plan, place=None, after=None, limit=None)
            _be_command(folder, overrides, own, notes / str(rank))
        children.append(child)
    if plan.after is not None:
        victim = children[plan.rank]
        while time.monotonic() < start + plan.after and not os.waitid(
            os.P_PID, victim, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    end, places, fault_time = time.monotonic(), Counter(), None
    for path in notes.glob("*.json"):
        record = json.loads(path.read_text())
        places.update({tuple(place): count for place, count in record["places"]})
        fault_time = record["time"] or fault_time
    output = "".join(path.read_text() for path in sorted(notes.glob("*.out")))
    return Outcome(codes, output, places, end - start, fault_time and end - fault_time)


def _be_command(folder, overrides, plan, notes):
    """Become the command. It never returns."""
    out = os.open(f"{notes}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    for number in STOP_SIGNALS:  # those that are ignored here, as SIGHUP under nohup, would stay ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = 1
    try:
        injector = Injector(folder, plan, f"{notes}.json")
        injector.wrap_functions()
        if plan.limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (plan.limit, plan.limit))
        if plan.patch is not None:
            plan.patch()
        sys.argv = ["wgangp", f"run_dir={folder}", *overrides]
        main("train")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    injector.note(None)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


class Injector:
    """Counts the places that are passed, and causes the fault of a plan."""

    def __init__(self, folder, plan, notes):
        self.folder, self.plan, self.notes, self.places = str(folder), plan, notes, Counter()
        self.open, self.time = builtins.open, None

    def note(self, now):
        self.time = now or self.time
        with self.open(self.notes, "w") as file:
            file.write(json.dumps({"places": [[list(p), n] for p, n in self.places.items()], "time": self.time}))

    def pass_place(self, operation, phase, kind="", act=None, path=None):
        """Count a place. At the passage of the plan, call act, cause the fault and return True."""
        place = (operation, phase, kind)
        self.places[place] += 1
        if place != self.plan.place or self.places[place] != self.plan.passage:
            return False
        if act is not None:
            act()
        self.note(time.monotonic())
        if self.plan.remove:
            shutil.rmtree(self.folder)
        elif self.plan.signal is not None:
            os.kill(os.getpid(), self.plan.signal)
        else:
            raise OSError(self.plan.error, os.strerror(self.plan.error), path)
        return True

    def kind(self, path):
        """Return the kind of a file in the run folder; empty for other files."""
        path = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fspath(path)
        if not isinstance(path, str) or not os.path.abspath(path).startswith(self.folder + "/"):  # noqa: PTH100
            return ""
        name = os.path.abspath(path)[len(self.folder) + 1 :]  # noqa: PTH100
        return next(kind for pattern, kind in KINDS if re.match(pattern, name))

    def wrap_functions(self):
        """Wrap what the run calls. It is not undone: the process ends with the run."""
        for name, operation in (("replace", "rename"), ("rename", "rename"), ("unlink", "remove"), ("fsync", "sync")):
            self._wrap(os, name, operation, of_file=True)
        os.remove = os.unlink
        for name in ("report", "lipschitz_report", "picture", "draw_curves", "update", "save"):
            self._wrap(wgangp.train, name, name.replace("_", " "))
        self._wrap(wgangp.train, "descend", "critic or generator step")
        evaluate, compiler = wgangp.train.evaluate, torch.compile

        def evaluate_slowly(run, step, scores, *stop):
            def compute(score, *arguments):
                self.pass_place("evaluation", "middle")
                return score.compute(*arguments)

            wrapped = [replace(score, compute=lambda *a, score=score: compute(score, *a)) for score in scores]
            return evaluate(run, step, wrapped, *stop)

        def compile_slowly(function, **options):
            compiled = compiler(function, backend="aot_eager", fullgraph=True, dynamic=False)

            def call(*arguments):
                self.pass_place("compilation", "middle")
                return compiled(*arguments)

            return call

        wgangp.train.evaluate, torch.compile = evaluate_slowly, compile_slowly
        builtins.open = io.open = self._open

    def _wrap(self, module, name, operation, of_file=False):
        original = getattr(module, name)

        def call(*arguments, **keywords):
            kind = ""
            if of_file and not (kind := self.kind(arguments[-1] if operation == "rename" else arguments[0])):
                return original(*arguments, **keywords)
            path = arguments[0] if of_file and not isinstance(arguments[0], int) else None  # as the system says it
            self.pass_place(operation, "before", kind, path=path)
            result = original(*arguments, **keywords)
            self.pass_place(operation, "after", kind)
            return result

        setattr(module, name, call)

    def _open(self, file, mode="r", *arguments, **keywords):
        kind = self.kind(file) if set(mode) & set("wax+") else ""
        if not kind:
            return self.open(file, mode, *arguments, **keywords)
        self.pass_place("open", "before", kind, path=file)
        return File(self.open(file, mode, *arguments, **keywords), kind, self)


class File:
    """A file that passes a place before, in the middle of and after every write."""

    def __init__(self, file, kind, injector):
        self.__dict__ |= {"file": file, "kind": kind, "injector": injector}

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __iter__(self):
        return iter(self.file)

    def write(self, data):
        half = len(data) // 2

        def write_half():
            self.file.write(data[:half])
            self.file.flush()

        self.injector.pass_place("write", "before", self.kind)
        begun = self.injector.pass_place("write", "middle", self.kind, write_half)
        self.file.write(data[half:] if begun else data)
        self.injector.pass_place("write", "after", self.kind)
        return len(data)

    def close(self):
        self.file.close()


def snapshot(folder):
    """Return everything that must be equal, bit for bit, in two folders of the same run.

    Checkpoints as lists of tensors and numbers, other files as bytes. Of what depends on time (timing.jsonl,
    provenance.jsonl) only whether it can be read, and the steps.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink()):
        name = str(path.relative_to(folder))
        if name.startswith("tensorboard") or name == ".lock":
            continue
        if path.suffix == ".pt":
            files[name] = _list_values(torch.load(path, weights_only=True))
        elif path.suffix == ".sha256":
            files[name] = len(path.read_bytes())
        elif name == "timing.jsonl":
            files[name] = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        elif name == "provenance.jsonl":
            files[name] = all("commit" in json.loads(line) for line in path.read_text().splitlines())
        else:
            files[name] = re.sub(rb"run_dir: .*", b"", path.read_bytes())
    return files


def compare(folder, expected):
    """Return the names of files, and of values in checkpoints, that differ from a snapshot."""
    try:
        actual = snapshot(folder)
    except Exception as error:  # a file that cannot be read is a difference
        return [f"{type(error).__name__}: {error}"]
    names = sorted(set(actual) | set(expected))
    return [name for name in names if name not in actual or name not in expected or actual[name] != expected[name]]


def _list_values(state, name=""):
    """Return (name, type, bytes or value) of everything in a checkpoint."""
    if isinstance(state, dict):
        return [pair for key in state for pair in _list_values(state[key], f"{name}.{key}")]
    if isinstance(state, list | tuple):
        return [pair for i, value in enumerate(state) for pair in _list_values(value, f"{name}.{i}")]
    if isinstance(state, torch.Tensor):
        return [(name, str(state.dtype), tuple(state.shape), state.contiguous().numpy().tobytes())]
    return [(name, type(state).__name__, state)]
