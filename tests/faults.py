"""Faults in real short runs: python tests/faults.py [PART ...] --kills 200

Each run has everything on: logs, pictures, Lipschitz reports, evaluation, checkpoints, the average of the weights. It
is killed, interrupted, or its disk fails. The same command then continues it, and what it ends with is compared with a
run without faults, bit for bit. One JSON line per row of the table goes to results/reliability/faults.jsonl.
"""

import argparse
import errno
import importlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from inject import NO_FAULT, Plan, compare, run_command, snapshot
from PIL import Image

import wgangp.plots
import wgangp.report
import wgangp.train
from wgangp.checkpoint import write_atomic
from wgangp.logs import collect_provenance, read_lines
from wgangp.signals import STOP_SIGNALS
from wgangp.tables import markdown_table, replace_block

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "results" / "reliability" / "README.md"
BEGIN, END = "<!-- rendered by python tests/faults.py -->", "<!-- /rendered -->"
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all but long")
    parser.add_argument("--kills", type=int, default=200, help="kills of runs of one process")
    parser.add_argument("--updates", type=int, default=20_000, help="generator updates of the long run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PAGE.with_name("faults.jsonl"))
    options = parser.parse_args()
    parts = options.parts or [part for part in PARTS if part != "long"]
    prepare_process()
    failed = False
    origin = collect_provenance(torch.device("cpu"))
    origin = {name: origin[name] for name in ("commit", "dirty", "torch", "device")}
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            start = time.monotonic()
            rows = PARTS[part](Path(folder).resolve(), options)
        size = {"kills": f" --kills {options.kills}", "long": f" --updates {options.updates}"}.get(part, "")
        command = f"python tests/faults.py {part}{size} --seed {options.seed}"
        old = [row for row in read_lines(options.out) if row["part"] != part]
        rows = [{"part": part, **row, "command": command, **origin} for row in rows]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, "".join(json.dumps(row) + "\n" for row in [*old, *rows]))
        failed |= any(row["survived"] != row["faults"] for row in rows)
        for row in rows:
            print(
                f"{part}: {row['fault']}: {row['survived']} of {row['faults']} {json.dumps(row['notes'])}", flush=True
            )
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
    if options.out == PAGE.with_name("faults.jsonl") and PAGE.exists():
        write_atomic(PAGE, render(PAGE.read_text(), read_rows()))
    sys.exit(failed)


def read_rows():
    """Return the rows of the page: those of this script, and those of tests/fuzz.py."""
    return [row for name in ("faults", "fuzz") for row in read_lines(PAGE.with_name(f"{name}.jsonl"))]


def render(page, rows):
    """Return the page with its table: one row per kind of fault."""
    table = [
        {
            "promise": row["promise"],
            "fault": row.get("fault", f"{row.get('kind')} of tests/fuzz.py"),
            "injected": str(row["faults"]),
            "survived": str(row["survived"]),
            "notes": row["notes"] if isinstance(row.get("notes"), str) else "",
            "command": f"`{row['command']}`",
        }
        for row in rows
    ]
    return replace_block(page, BEGIN, END, markdown_table(table))


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

    def __init__(self, promise):
        self.promise, self.faults, self.survived = promise, Counter(), Counter()
        self.notes = defaultdict(list)

    def add(self, fault, differences, note=None):
        self.faults[fault] += 1
        self.survived[fault] += not differences
        self.notes[fault] += [str(d) for d in differences][:3] if differences else [note] if note else []

    def rows(self, summarize=lambda notes: "; ".join(dict.fromkeys(notes))[:300]):
        return [
            {
                "promise": self.promise,
                "fault": fault,
                "faults": count,
                "survived": self.survived[fault],
                "notes": summarize(self.notes[fault]),
            }
            for fault, count in self.faults.items()
        ]


def train_reference(folder, overrides=RUN, **options):
    """Train a run without faults: what it ended with, and the outcome."""
    outcome = run_command(folder / "reference", overrides, **options)
    if set(outcome.codes) != {0}:
        sys.exit(f"error: the run without faults failed:\n{outcome.output}")
    return snapshot(folder / "reference"), outcome


def finish(run, overrides, expected, plan=NO_FAULT, **options):
    """Continue a run until its end, and return what differs from the run without faults."""
    outcome = run_command(run, overrides, plan, **options)
    failures = [f"exit codes {outcome.codes}: {outcome.output[-300:]}"] if set(outcome.codes) != {0} else []
    return failures + compare(run, expected)


def name_place(place):
    operation, phase, _ = place
    return PLACES.get((operation, phase), f"{phase} {operation}" if phase != "middle" else f"in {operation}")


def kill_runs(folder, options, ranks=1, kills=None):
    """Kill runs at chosen places and at random times, about four times per run, and continue them each time."""
    rng, tally = random.Random(options.seed), Tally("a run that is killed ends as one that was not")
    overrides = RUN if ranks == 1 else (*RUN, "train.rank_timeout=20")  # one may be killed before it meets the other
    shape = {"ranks": ranks, "port": find_port()} if ranks > 1 else {}
    expected, outcome = train_reference(folder, overrides, **shape)
    places = sorted(outcome.places)
    queue, goal, series = [], kills or options.kills, 0
    while sum(tally.faults.values()) < goal:
        run, series, killed = folder / f"run{series}", series + 1, []
        while len(killed) < 4:
            if not queue:
                queue = [*places, *[None] * (len(places) // 5)]
                rng.shuffle(queue)
            place = queue.pop()
            shape = {"ranks": ranks, "port": find_port()} if ranks > 1 else {}
            rank = rng.randrange(ranks)
            if place is None:
                plan = Plan(after=rng.uniform(0, outcome.seconds), rank=rank)
            else:
                often = outcome.places[place] < 8
                passage = rng.randint(1, outcome.places[place] if often else outcome.places[place] // 4)
                plan = Plan(place, passage, rank=rank if place[0].startswith("critic") else 0)
            result = run_command(run, overrides, plan, **shape)
            if result.codes[plan.rank] == 0:  # it came to its end before
                break
            if result.codes[plan.rank] != -signal.SIGKILL:
                killed.append((name_place(place) if place else "at a random time", result.output[-300:]))
                break
            killed.append((name_place(place) if place else "at a random time", None))
        shape = {"ranks": ranks, "port": find_port()} if ranks > 1 else {}
        differences = [error for _, error in killed if error] or finish(run, overrides, expected, **shape)
        for name, _ in killed:
            tally.add(f"kill -9 {name}", differences)
        shutil.rmtree(run)
    return sorted(tally.rows(), key=lambda row: row["fault"])


def kill_ranks(folder, options):
    """Two ranks: one is killed; the other one must end with an error; both are started again."""
    rows = kill_runs(folder, options, ranks=2, kills=max(options.kills // 10, 2))
    total = {name: sum(row[name] for row in rows) for name in ("faults", "survived")}
    notes = "; ".join(row["notes"] for row in rows if row["notes"])
    return [{"promise": rows[0]["promise"], "fault": "two ranks: kill -9 of one of them", **total, "notes": notes}]


def switch_off(folder, options):
    """Switch a protection off. A difference must be seen: otherwise the comparison sees nothing."""

    def keep_log():
        log = wgangp.train.Log
        wgangp.train.Log = lambda folder, start: log(folder, 10**9)

    def change_after_loading(change):
        load = wgangp.train.load_state

        def call(run, state, step):
            result = load(run, state, step)
            change(run)
            return result

        wgangp.train.load_state = call

    def forget_optimizer():
        change_after_loading(lambda run: run.optim_critic.state.clear())

    def forget_average():
        change_after_loading(lambda run: run.average.module.load_state_dict(run.generator.state_dict()))

    def write_in_place():
        """A file has its final name before it is complete."""

        def copy(source, target):
            with open(target, "wb") as file:  # noqa: PTH123 - the function that is wrapped
                file.write(Path(source).read_bytes())
            Path(source).unlink()

        os.replace = copy

    tally = Tally("with a protection off, a difference is seen")
    expected, _ = train_reference(folder)
    late = Plan(("update", "before", ""), 8)  # after a line of the log, before the next checkpoint
    in_log = Plan(("write", "middle", "log"), 2)  # after a line of provenance the log is written again
    cases = {
        "control: lines after the checkpoint stay in the log": (keep_log, [late]),
        "control: the optimizer is not loaded": (forget_optimizer, [late]),
        "control: the average is not loaded": (forget_average, [late]),
        "control: files are written in place": (write_in_place, [late, in_log]),
    }
    for number, (name, (patch, plans)) in enumerate(cases.items()):
        run = folder / f"run{number}"
        codes = [run_command(run, RUN, replace(plan, patch=patch)).codes for plan in plans]
        differences = finish(run, RUN, expected, Plan(patch=patch))
        seen = differences and all(code == [-signal.SIGKILL] for code in codes)
        note = differences[0].replace(str(folder), "").splitlines()[0] if differences else ""
        tally.add(name, [] if seen else [f"no difference; exit codes {codes}"], f"differs: {note}")
    return tally.rows()


def send_signals(folder, options):
    """Send each stop signal in a step, in compilation, in an evaluation and in a picture."""
    tally = Tally("a signal saves a checkpoint, the exit code is 128 + N, the run continues")
    moments = {
        "a critic or generator step": ("critic or generator step", "before", ""),
        "an evaluation": ("evaluation", "middle", ""),
        "a picture": ("write", "middle", "picture"),
        "a checkpoint": ("write", "middle", "temporary file"),
        "compilation": ("compilation", "middle", ""),
    }
    for compiled in (False, True):
        overrides = (*RUN, "train.compile=true") if compiled else RUN
        base = folder / f"compiled {compiled}"
        expected, _ = train_reference(base, overrides)
        for name, place in moments.items():
            if compiled != (name == "compilation"):
                continue
            for number in STOP_SIGNALS:
                fault = f"{signal.Signals(number).name} in {name}"
                run = base / fault
                # The first two steps are those of the trial, the first three files those of the set-up.
                passage = {"a critic or generator step": 10, "a checkpoint": 7}.get(name, 2)
                result = run_command(run, overrides, Plan(place, passage, signal=number))
                wrong = [] if result.codes == [128 + number] else [f"exit {result.codes}: {result.output[-300:]}"]
                newest = max((run / "checkpoints").glob("*.pt"), default=None)
                wrong += [] if newest else ["no checkpoint"]
                wrong += finish(run, overrides, expected)
                tally.add(f"a signal in {name}", wrong, f"{result.delay or 0:.2f}")
    return tally.rows(
        lambda notes: (
            f"at most {max(map(float, notes)):.1f} s from the signal to the end"
            if all(is_number(note) for note in notes)
            else "; ".join(notes)[:300]
        )
    )


def is_number(text):
    return text.replace(".", "", 1).isdigit()


def break_disks(folder, options):
    """Disks that are full, read-only or gone: one line of error, and the run continues when the disk is back."""
    rng, tally = (
        random.Random(options.seed),
        Tally("a disk that fails gives one line of error; later the run continues"),
    )
    expected, outcome = train_reference(folder)
    kinds = [place for place in sorted(outcome.places) if place[2]]

    def attempt(fault, run, plan, repair=lambda: None, command=RUN, code=1):
        result = run_command(run, command, plan)
        lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
        wrong = [] if result.codes == [code] else [f"exit {result.codes}"]
        if code and (len(lines) != 1 or str(run) not in lines[0] or "Traceback" in result.output):
            wrong.append(result.output[-300:])
        repair()
        tally.add(fault, wrong + finish(run, RUN, expected))
        shutil.rmtree(run, ignore_errors=True)

    def number_of(place):
        return rng.randint(1, outcome.places[place])

    numbers = {errno.ENOSPC: "no space", errno.EDQUOT: "quota", errno.EROFS: "read-only", errno.EACCES: "no permission"}
    numbers |= {errno.EIO: "input/output error"}
    for number, name in numbers.items():
        wanted = {"open", "rename", "remove"} if number in (errno.EROFS, errno.EACCES) else {"open", "write", "sync"}
        for place in kinds:
            if place[0] in wanted and place[1] != "after":
                plan = Plan(place, number_of(place), signal=None, error=number)
                attempt(f"{name}: {os.strerror(number)}", folder / "run", plan)
    for limit in (1_000, 3_000, 9_000, 20_000):  # what the command prints is a file, too, and shorter
        attempt("limit of the size of a file (RLIMIT_FSIZE)", folder / "run", Plan(limit=limit))
    for passage in (1, 4, 8):
        plan = Plan(("update", "before", ""), passage, signal=None, remove=True)
        attempt("the folder is removed under the run", folder / "run", plan)
    (folder / "run").write_text("")
    attempt("run_dir is a file", folder / "run", NO_FAULT, (folder / "run").unlink)
    disk = folder / "disk"
    try:
        mount(disk, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no tmpfs can be mounted, so that no real disk is full: {error}", file=sys.stderr)
        return tally.rows()
    try:
        needed = sum(path.stat().st_blocks * 512 for path in (folder / "reference").rglob("*"))
        for part in (0.2, 0.4, 0.6, 0.8):
            mount(disk, "-o", f"remount,size={int(part * needed)}")
            grow = partial(mount, disk, "-o", "remount,size=64m")
            attempt("a real full disk (tmpfs)", disk / "run", NO_FAULT, grow)
        for passage in (2, 5, 8):
            run_command(disk / "run", RUN, Plan(("update", "before", ""), passage))
            mount(disk, "-o", "remount,ro")
            attempt("a real read-only disk (tmpfs)", disk / "run", NO_FAULT, partial(mount, disk, "-o", "remount,rw"))
    finally:
        subprocess.run(["umount", disk], check=True)
    return tally.rows()


def mount(folder, *arguments):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(folder)], check=True, capture_output=True)


def train_long(folder, options):
    """Train a long run with everything on, and look at the process every hundredth part of it."""
    tenth = options.updates // 10
    overrides = (
        *(key for key in RUN if not key.startswith("train.") or "size" in key),
        *(f"train.steps={options.updates}", "train.decay_steps=null", "train.log_every=50", "train.sample_every=250"),
        *("train.checkpoint_every=100", "train.lipschitz_every=1000", "train.evaluate_every=1000"),
    )
    looks = folder / "looks.jsonl"

    def look_at_process():
        update, calls, began = wgangp.train.update, Counter(), [time.process_time()]

        def call(step, run, *arguments, **keywords):
            began_update = time.process_time()
            result = update(step, run, *arguments, **keywords)
            began.append(time.process_time() - began_update)
            calls["update"] += 1
            if calls["update"] % max(options.updates // 100, 1) == 0:
                times = sorted(began[1:])
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                sizes = Counter()
                for path in (p for p in (folder / "run").rglob("*") if p.is_file()):
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

    result = run_command(folder / "run", overrides, Plan(patch=look_at_process))
    if result.codes != [0]:
        sys.exit(f"error: the long run failed:\n{result.output[-1000:]}")
    records = read_lines(looks)
    early, late = records[10:30], records[-20:]

    def median(part, name):
        return sorted(record[name] for record in part)[len(part) // 2]

    bounds = {"memory_mb": 1.03, "open_files": 1.0, "checkpoints_kb": 1.01, "update_ms": 1.25}
    units = {"memory_mb": "MB", "open_files": "files", "checkpoints_kb": "kB", "update_ms": "ms of CPU time"}
    titles = {"memory_mb": "resident memory", "open_files": "open files"}
    titles |= {"checkpoints_kb": "size of checkpoints/", "update_ms": "time per update"}
    rows = []
    for name, bound in bounds.items():
        a, b = median(early, name), median(late, name)
        note = f"{a:.4g} {units[name]} after a tenth, {b:.4g} at the end; bound: {bound} times"
        rows.append((titles[name], b <= bound * a, note))
    a, b = (part[-1]["other_kb"] - part[0]["other_kb"] for part in (early, late))
    note = f"{a / 19 * 100 / options.updates:.3g} kB per update early, {b / 19 * 100 / options.updates:.3g} late"
    rows.append(("growth of logs and pictures", b <= 1.1 * a, f"{note}; bound: 1.1 times"))
    promise = f"a run of {tenth * 10:,} updates needs no more memory, files, disk or time at its end"
    return [
        {"promise": promise, "fault": title, "faults": 1, "survived": int(good), "notes": note}
        for title, good, note in rows
    ]


def find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


PARTS = {
    "kills": kill_runs,
    "controls": switch_off,
    "signals": send_signals,
    "disk": break_disks,
    "ranks": kill_ranks,
    "long": train_long,
}

if __name__ == "__main__":
    main()
