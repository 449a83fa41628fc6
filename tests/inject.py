"""Faults in a child process: `Plan` says which, `run_command` trains one run with it.

The child is a copy of this process (fork), so that torch is imported once. Functions of the operating system and of the
training loop are wrapped in the child. Each call of a wrapped function passes places: before the call, after it, and in
the middle of writing. At the chosen passage of the chosen place the fault happens. The package knows nothing of this.
"""

import builtins
import hashlib
import importlib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from test_match import WRONG, write

import wgangp.data.toy
import wgangp.plots
import wgangp.report
import wgangp.train
from wgangp.checkpoint import list_checkpoints
from wgangp.cli import main
from wgangp.logs import read_metrics
from wgangp.losses import Wasserstein
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

RUN = (
    *("networks.generator.width=8", "networks.critic.width=8", "train.batch_size=16", "train.report_size=16"),
    *("train.steps=8", "train.decay_steps=16", "train.log_every=2", "train.sample_every=4"),
    *("train.checkpoint_every=3", "train.lipschitz_every=4", "train.evaluate_every=4", "evaluate.n=64"),
    *("ema.decay=0.9", "device=cpu"),
)
PLACES = {  # operation, phase -> how a row calls it
    ("open", "before"): "before a file is opened",
    ("write", "before"): "before a file is written",
    ("write", "middle"): "in the middle of writing a file",
    ("write", "after"): "after writing a file",
    ("sync", "before"): "before a file is synced",
    ("sync", "after"): "after a file is synced",
    ("rename", "before"): "before a rename",
    ("rename", "after"): "after a rename",
    ("remove", "before"): "before a file is removed (rotation)",
    ("remove", "after"): "after a file is removed (rotation)",
}
ALLOWED = {  # keys that may change when a run continues -> another value
    "device": "auto",
    "objective": "wasserstein",
    "trust": "[shapely]",
    "train.steps": 9,
    "train.on_nonfinite": "skip",
    "train.rank_timeout": 9,
    **{f"train.{name}_every": 2 for name in ("log", "sample", "checkpoint", "lipschitz", "evaluate")},
    "evaluate.n": 32,
    "evaluate.seed": 1,
    "evaluate.scores": "[points]",
}
CHANGES = {  # keys that change a number, and are no plain numbers -> another value; empty: it changes with another key
    "data._target_": "data=swiss_roll",
    "networks.generator._target_": "",
    "networks.critic._target_": "networks=orthogonal",
    "loss._target_": "loss=least_squares",
    "penalty._target_": "",
    "penalty.sides": "penalty.sides=one",
    "penalty.points": "penalty.points=real",
    "optim._target_": "optim=rmsprop",
    "optim.betas": "optim.betas=[0.5,0.9]",
    "ema.decay": "ema.decay=0.8",
    "train.precision": "train.precision=bf16",
    "train.batch_size": "train.batch_size=32",
}
STOP_S = 10.0  # a signal ends a run of this size within this time
COMPILE_S = 60.0  # and within this time, if it waits for the compiler


@dataclass(frozen=True)
class Plan:
    """One fault.

    place      operation, phase, kind of file; None: no fault. Places that are passed are counted in any case
    passage    at which passage of the place the fault happens, from 1
    signal     the signal that the process sends itself; None: error is raised
    error      number of the OSError
    remove     True: the run folder is removed, and the run goes on
    call       called at the place, and the run goes on
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
    call: object = None
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
        elif self.plan.call is not None:
            self.plan.call()
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
            state = torch.load(path, weights_only=True)
            state.pop("unfinished", None)  # not a number of the run: train.steps decides where it ends
            files[name] = _list_values(state)
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


def spoil(kind, value, step):
    """Return a patch: something in the update that leads to a step is multiplied by value, once.

    Args:
        kind: a sample, critic loss, generator loss, critic gradient, or generator gradient.
        value: NaN, inf, or a number so large that its square is infinite.
    """
    network, _, what = kind.partition(" ")

    def patch():
        update, due = wgangp.train.update, []

        def call(before, *arguments, **keywords):
            due[:] = [True] * (before + 1 == step)  # reports and the trial use data and loss, too
            return update(before, *arguments, **keywords)

        wgangp.train.update = call
        if kind == "sample":
            batch = wgangp.data.toy.Toy.batch

            def spoil_batch(self, k, size, seed, split="train", purpose="data"):
                (real,) = batch(self, k, size, seed, split, purpose)
                if purpose == "data" and k == 5 * step - 3:  # the third of the five batches
                    real[1, 0] *= value
                return (real,)

            wgangp.data.toy.Toy.batch = spoil_batch
            return
        compute = getattr(Wasserstein, network)

        def spoil_loss(self, *scores):
            if due and all(score.requires_grad for score in scores):
                due.clear()
                if what == "loss":
                    terms = compute(self, *scores)
                    return terms | {f"{network}_loss": terms[f"{network}_loss"] * value}
                scores[0].register_hook(lambda gradient: gradient * value)
            return compute(self, *scores)

        setattr(Wasserstein, network, spoil_loss)

    return patch


def damage_bytes(path, kind, rng):
    """Damage a checkpoint, or the file with its sha256, in one of the ways of DAMAGE."""
    data, digest = bytearray(path.read_bytes()), path.with_suffix(".pt.sha256")
    if kind == "a flipped bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut off":
        del data[rng.randrange(len(data)) :]
    elif kind == "a block of zeros":
        start = rng.randrange(len(data))
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
        data[start] ^= data == path.read_bytes()  # there were zeros
    elif kind == "bytes at the end":
        data += b"more"
    elif kind == "no file with its sha256":
        digest.unlink()
    elif kind == "an empty file with its sha256":
        digest.write_bytes(b"")
    elif kind == "the sha256 of another file":
        digest.write_text(f"{hashlib.sha256(b'').hexdigest()}  {path.name}\n")
    elif kind == "noise with the right sha256":
        data = rng.randbytes(len(data))
        digest.write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    path.write_bytes(data)


DAMAGE = {  # kind -> how often a part injects it
    "a flipped bit": 10,
    "cut off": 6,
    "a block of zeros": 3,
    "bytes at the end": 1,
    "no file with its sha256": 1,
    "an empty file with its sha256": 1,
    "the sha256 of another file": 1,
    "noise with the right sha256": 1,
}


def read_tree(folder):
    """Return all files of a folder as bytes, except the lock."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def is_finite(path):
    """Return whether all numbers in a checkpoint are finite."""
    state = _list_values(torch.load(path, weights_only=True))
    tensors = [
        torch.frombuffer(bytearray(v[3]), dtype=torch.float32) for v in state if v[1:2] == ("torch.float32",) and v[3]
    ]
    return all(x.isfinite().all() for x in tensors) and all(
        math.isfinite(v[2]) for v in state if isinstance(v[2], float)
    )


def prepare_process():
    """Import what children need, once. No gradient is computed: torch's autograd does not survive a fork.

    What takes longest in a short run is made smaller: pictures have fewer dots and panels, and the search for the
    interval of the Lipschitz constant ends early.
    """
    import matplotlib.figure  # here, because it takes a while

    for name in ("ot", "torch._dynamo", "torch.utils.tensorboard"):
        with suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    wgangp.report.BOX_CELLS = 64
    figure_type, save_curves = matplotlib.figure.Figure, wgangp.plots.save_curves

    class SmallFigure(figure_type):
        def __init__(self, **options):
            super().__init__(**options | {"layout": None})

        def savefig(self, path, dpi):
            super().savefig(path, dpi=20)

    def save_few_curves(path, records, *arguments):
        save_curves(path, [{n: r[n] for n in ("step", "wasserstein", "penalty")} for r in records], *arguments)

    matplotlib.figure.Figure, wgangp.plots.save_curves = SmallFigure, save_few_curves
    figure = figure_type()
    figure.subplots().set_title("fonts")
    figure.savefig(os.devnull, format="png")
    Image.init()


class Tally:
    """Counts faults and those that were survived, by row, and keeps the first differences."""

    def __init__(self):
        self.faults, self.survived, self.notes = Counter(), Counter(), defaultdict(list)

    def add(self, fault, differences, note=None):
        self.faults[fault] += 1
        self.survived[fault] += not differences
        self.notes[fault] += [str(d) for d in differences][:3] if differences else [note] if note else []

    def rows(self, summarize=lambda notes: "; ".join(dict.fromkeys(notes))[:300]):
        return [
            {"fault": fault, "faults": n, "survived": self.survived[fault], "notes": summarize(self.notes[fault])}
            for fault, n in self.faults.items()
        ]


def train_reference(folder, overrides=RUN, **options):
    """Train a run without faults: what it ended with, and the outcome."""
    outcome = run_command(folder / "reference", overrides, **options)
    if set(outcome.codes) != {0}:
        sys.exit(f"error: the run without faults failed:\n{outcome.output}")
    return snapshot(folder / "reference"), outcome


def finish(run, overrides, expected, plan=NO_FAULT, ranks=1):
    """Continue a run until its end, and return what differs from the run without faults."""
    outcome = run_command(run, overrides, plan, **start_ranks(ranks))
    failures = [f"exit codes {outcome.codes}: {outcome.output[-300:]}"] if set(outcome.codes) != {0} else []
    return failures + compare(run, expected)


def start_ranks(ranks):
    """Return the options of run_command for a number of ranks."""
    return {"ranks": ranks, "port": find_port()} if ranks > 1 else {}


def find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def stop_early(folder, overrides=RUN, ranks=1):
    """Train a run without faults, and kill another one after step 7. Return what the first ended with, and the second.

    The second has the checkpoints of steps 0 (one of the best), 4 and 6.
    """
    folder.mkdir(exist_ok=True)
    expected, _ = train_reference(folder, overrides, **start_ranks(ranks))
    run_command(folder / "killed", overrides, Plan(("update", "before", ""), 8), **start_ranks(ranks))
    return expected, folder / "killed"


def copy_run(run):
    """Return a copy of a run folder, in the place of the last copy."""
    copy = run.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(run, copy))


def check_refusal(result, *words):
    """Return what is wrong with a command that must end with exit code 1 and one line of error with these words."""
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    wrong = [] if set(result.codes) == {1} else [f"exit {result.codes}"]
    text = result.output[result.output.find("error: ") :]  # a line can be followed by lines with details
    clear = 1 <= len(lines) <= len(result.codes) and "Traceback" not in result.output
    return wrong + ([] if clear and all(word in text for word in words) else [text[:300] or result.output[-300:]])


def check_stop(result, run, number, rank=0, bound_s=STOP_S):
    """Return what is wrong with a stop by a signal: the exit codes, the time until the end, or its checkpoint."""
    codes = [128 + (number if r == rank else signal.SIGTERM) for r in range(len(result.codes))]
    wrong = [] if result.codes == codes else [f"exit {result.codes}: {result.output[-300:]}"]
    wrong += [f"{result.delay} s until the end"] if result.delay is None or result.delay > bound_s else []
    step = re.search(r"stopped at step (\d+)", result.output)
    saved = step and (run / "checkpoints" / f"step_{int(step[1]):08d}.pt").exists()
    return wrong + ([] if saved else ["no checkpoint of the step at which it stopped"])


def check_nan_stop(result, run, step):
    """Return what is wrong with a stop because of a number that is not finite."""
    path = run / "nonfinite" / f"step_{step:08d}.pt"
    wrong = check_refusal(result, f"step {step}: ", "is not finite", str(path))
    wrong += [] if path.exists() and torch.load(path, weights_only=True)["step"] == step else ["no file of the batches"]
    return wrong + [f"{p.name} is not finite" for p in list_checkpoints(run / "checkpoints") if not is_finite(p)]


def enter_twice(run, expected, plan=NO_FAULT):
    """Start four processes on a folder at once. Return what is wrong: one trains, and the others are refused."""
    result = run_command(run, RUN, plan, ranks=4)  # without a port they are four commands
    refused = result.output.count("is in use by another process")
    wrong = [] if refused >= 1 and refused == sum(code != 0 for code in result.codes) else [f"{refused} are refused"]
    return wrong + compare(run, expected)


def watch_rotation(folder, seed, patch=lambda: None):
    """Damage checkpoints while a run trains. Return (kind of damage, what is wrong after the next checkpoint)."""
    folder.mkdir()
    notes, rng, bad = folder / "notes.jsonl", random.Random(seed), set()

    def watch():
        patch()
        save = wgangp.train.save

        def call(checkpoints, step, *arguments, **keywords):
            paths = [path for path in list_checkpoints(checkpoints) if path not in bad]
            kind = "nothing"
            if step > 2:
                kind = rng.choice(["nothing", "the newest", "the second newest", "the newest two"])
                chosen = {"the newest": paths[:1], "the second newest": paths[1:2], "the newest two": paths[:2]}
                for path in chosen.get(kind, ()):
                    damage_bytes(path, rng.choice(["a flipped bit", "cut off", "noise with the right sha256"]), rng)
                    bad.add(path)
            before = set(list_checkpoints(checkpoints))
            path = save(checkpoints, step, *arguments, **keywords)
            records = [r for r in read_metrics(folder / "run" / "metrics.jsonl") if "points_w1" in r]
            best = path.with_stem(f"step_{min(records, key=lambda r: r['points_w1'])['step']:08d}")
            good = [path, *(p for p in paths if p not in bad)]
            kept = {*good[:2], *bad} | ({best} & before)
            names = sorted(p.name for p in kept ^ set(list_checkpoints(checkpoints)))
            with notes.open("a") as file:
                file.write(json.dumps([kind, f"step {step}: {', '.join(names)}" if names else ""]) + "\n")
            return path

        wgangp.train.save = call

    overrides = (*RUN, "train.steps=20", "train.decay_steps=null", "train.checkpoint_every=1", "train.sample_every=20")
    result = run_command(folder / "run", overrides, Plan(patch=watch))
    failure = [("the end", f"exit {result.codes}: {result.output[-300:]}")] if result.codes != [0] else []
    return [(row[0], row[1]) for row in map(json.loads, notes.read_text().splitlines())] + failure


def name_place(place):
    operation, phase, _ = place
    return PLACES.get((operation, phase), f"{phase} {operation}" if phase != "middle" else f"in {operation}")


def watch_process(folder, looks, updates):
    """Write a line about this process to the file looks, every hundredth part of a run."""
    update, calls, began = wgangp.train.update, Counter(), [time.process_time()]

    def call(step, run, *arguments, **keywords):
        began_update = time.process_time()
        result = update(step, run, *arguments, **keywords)
        began.append(time.process_time() - began_update)
        calls["update"] += 1
        if calls["update"] % max(updates // 100, 1) == 0:
            times = sorted(began[1:])
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes = Counter()
            for path in (p for p in folder.rglob("*") if p.is_file()):
                sizes["checkpoints" if path.parent.name == "checkpoints" else "other"] += path.stat().st_size
            record = {
                "step": step,
                "memory_mb": pages * resource.getpagesize() / 1e6,
                "open_files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
                "checkpoints_kb": sizes["checkpoints"] / 1e3,
                "other_kb": sizes["other"] / 1e3,
                "update_ms": 1e3 * times[len(times) // 2],
            }
            with looks.open("a") as file:
                file.write(json.dumps(record) + "\n")
            del began[1:]
        return result

    wgangp.train.update = call


def list_damage(folder, rng):
    """Return (kind, function of a path and of a good state that writes a bad one). Other runs are trained in folder."""
    others = {"seed": "seed=1", "data": "data=swiss_roll", "networks": "networks.critic.width=9"}
    others |= {"penalty": "penalty.weight=1", "average": "ema.decay=null"}
    for name, override in others.items():
        train_reference(folder / name, (*RUN, override))

    def use_bytes(kind, path, state):
        write(path.parent, state["step"], state)
        damage_bytes(path, kind, rng)

    def use_other(name, path, state):
        other = torch.load(folder / name / "reference" / "checkpoints" / "step_00000006.pt", weights_only=True)
        write(path.parent, state["step"], other | {"step": state["step"]})

    def use_content(change, path, state):
        number = state["step"]
        change(state)
        write(path.parent, number, state)

    kinds = [(kind, partial(use_bytes, kind)) for kind, often in DAMAGE.items() for _ in range(often)]
    kinds += [("wrong content with the right sha256", partial(use_content, change)) for change, _ in WRONG.values()]
    return [*kinds, *((f"the checkpoint of a run with another {name}", partial(use_other, name)) for name in others)]
