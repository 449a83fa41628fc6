"""Faults in real short runs: python tests/faults.py [PART ...] --kills 200

Each run has everything on: logs, pictures, Lipschitz reports, evaluation, checkpoints, the average of the weights. It
is killed, interrupted, or its disk fails. The same command then continues it, and what it ends with is compared with a
run without faults, bit for bit. One JSON line per kind of fault goes to results/reliability/faults.jsonl.
"""

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from inject import (
    ALLOWED,
    CHANGES,
    COMPILE_S,
    DAMAGE,
    NO_FAULT,
    RUN,
    STOP_S,
    Outcome,
    Plan,
    Tally,
    check_nan_stop,
    check_refusal,
    check_stop,
    compare,
    copy_run,
    damage_bytes,
    enter_twice,
    finish,
    is_finite,
    list_damage,
    name_place,
    prepare_process,
    read_tree,
    run_command,
    snapshot,
    spoil,
    start_ranks,
    stop_early,
    train_reference,
    watch_process,
    watch_rotation,
)  # fmt: skip

import wgangp.checkpoint
import wgangp.folders
import wgangp.match
import wgangp.plots
import wgangp.report
import wgangp.train
from wgangp.checkpoint import list_checkpoints, write_atomic
from wgangp.folders import load_run_config
from wgangp.logs import collect_provenance, read_lines, read_metrics
from wgangp.runs import NOT_COMPUTED, flatten_config, select_computed
from wgangp.signals import STOP_SIGNALS
from wgangp.tables import markdown_table, replace_block

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "results" / "reliability" / "README.md"
BEGIN, END = "<!-- rendered by python tests/faults.py -->", "<!-- /rendered -->"
PROMISES = {
    1: "a run that is killed ends as one that was not",
    2: f"a signal saves a checkpoint within {STOP_S:.0f} s ({COMPILE_S:.0f} s in compilation); later the run continues",
    3: "a damaged or foreign checkpoint is not loaded: the newest good one is, with a warning; nothing is deleted",
    4: "a disk that fails gives one line of error; later the run continues",
    5: "a number that is not finite stops the run, or the update is left out; the checkpoints stay good",
    6: "one process at a time uses a run folder; a lock of a dead process stops nobody",
    7: "a changed key that changes a number is refused by its name; the others are allowed",
    8: "promises 1 to 3 on two ranks",
    9: "a long run needs no more memory, files, disk or time at its end",
    10: "the last two good checkpoints and the best one stay",
    11: "a damaged or hostile file is read, or refused with one line of error",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all but long")
    parser.add_argument("--kills", type=int, default=200, help="kills of runs of one process")
    parser.add_argument("--updates", type=int, default=20_000, help="generator updates of the long run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PAGE.with_name("faults.jsonl"))
    options = parser.parse_args()
    prepare_process()
    origin, failed = collect_provenance(torch.device("cpu")), False
    origin = {name: origin[name] for name in ("commit", "dirty", "torch", "device")}
    for part in options.parts or [part for part in PARTS if part != "long"]:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            start = time.monotonic()
            rows = PARTS[part][0](Path(folder).resolve(), options)
        size = {"kills": f" --kills {options.kills}", "long": f" --updates {options.updates}"}.get(part, "")
        command = f"python tests/faults.py {part}{size} --seed {options.seed}"
        old = [row for row in read_lines(options.out) if row["part"] != part]
        first = {"part": part, "promise": PROMISES.get(PARTS[part][1])}
        rows = [first | row | {"command": command, **origin} for row in rows]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, "".join(json.dumps(row) + "\n" for row in [*old, *rows]))
        failed |= any(row["survived"] != row["faults"] for row in rows)
        for row in rows:
            print(part, f"{row['fault']}: {row['survived']} of {row['faults']}", json.dumps(row["notes"]), flush=True)
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
    if options.out == PAGE.with_name("faults.jsonl") and PAGE.exists():
        write_atomic(PAGE, render(PAGE.read_text(), read_rows()))
    sys.exit(failed)


def read_rows():
    """Return the rows of the page: those of this script, and those of tests/fuzz.py."""
    return [row for name in ("faults", "fuzz") for row in read_lines(PAGE.with_name(f"{name}.jsonl"))]


def find_number(row):
    """Return the number of the promise of a row."""
    if row.get("part") == "controls":
        begin = row["promise"].split()[:4]  # bounds, later in a text, may have been others
        return next(number for number, promise in PROMISES.items() if promise.split()[:4] == begin)
    return PARTS[row["part"]][1] if "part" in row else 11  # of tests/fuzz.py


def render(page, rows):
    """Return the page with its tables: promises, kinds of faults, controls, and the long run."""
    tables, groups = {"Promises": [], "Kinds of faults": [], "Controls": [], "The long run": []}, defaultdict(list)
    for row in sorted(rows, key=find_number):
        number, kind = find_number(row), row.get("fault", row["promise"])
        notes = row["notes"] if "notes" in row else f"{row['accepted']} read, {row['refused']} refused"
        notes = re.sub(r"\S*/faults-\w+/", "", " ".join(notes.split()))  # without line breaks and temporary folders
        commit, faults, survived = {"commit": row["commit"][:7]}, str(row["faults"]), str(row["survived"])
        if row.get("part") == "controls":
            line = {"promise": str(number), "protection that is off": kind.removeprefix("control: "), "tried": faults}
            line |= {"difference seen": survived, "what was seen": notes.removeprefix("differs: ")}
            tables["Controls"].append(line | commit)
            continue
        groups[number].append(row)
        if number == 9:
            pattern = r"(\S+) (.+) (?:after a tenth|early), (\S+) (?:at the end|late); bound: (\S+) times"
            early, unit, late, bound = re.fullmatch(pattern, notes).groups()
            line = {"quantity": f"{kind} ({unit})", "early": early, "late": late, "bound": f"{bound} times early"}
            tables["The long run"].append(line | {"within": "yes" if row["survived"] else "no"} | commit)
        else:
            line = {"promise": str(number), "fault": kind, "injected": faults, "survived": survived, "notes": notes}
            tables["Kinds of faults"].append(line | commit)
    for number, group in groups.items():
        faults, survived = (f"{sum(row[name] for row in group):,}" for name in ("faults", "survived"))
        if number == 9:
            faults, survived = f"no fault, {faults} quantities", f"{survived} within bounds"
        line = {"promise": f"{number}. {PROMISES[number]}", "injected": faults, "survived": survived}
        line |= {"command": ", ".join(dict.fromkeys(f"`{row['command']}`" for row in group))}
        tables["Promises"].append(line | {"commit": ", ".join(dict.fromkeys(row["commit"][:7] for row in group))})
    content = (f"### {title}\n\n{markdown_table(lines)}" for title, lines in tables.items() if lines)
    return replace_block(page, BEGIN, END, "\n\n".join(content))


def kill_runs(folder, options, ranks=1, kills=None):
    """Kill runs at chosen places and at random times, about four times per run, and continue them each time."""
    rng, tally = random.Random(options.seed), Tally()
    overrides = RUN if ranks == 1 else (*RUN, "train.rank_timeout=20")  # one may be killed before it meets the other
    expected, outcome = train_reference(folder, overrides, **start_ranks(ranks))
    places = sorted(outcome.places)
    queue, goal, series = [], kills or options.kills, 0
    while sum(tally.faults.values()) < goal:
        run, series, killed = folder / f"run{series}", series + 1, []
        while len(killed) < 4:
            if not queue:
                queue = [*places, *[None] * (len(places) // 5)]
                rng.shuffle(queue)
            place = queue.pop()
            rank = rng.randrange(ranks)
            if place is None:
                plan = Plan(after=rng.uniform(0, outcome.seconds), rank=rank)
            else:
                often = outcome.places[place] < 8
                passage = rng.randint(1, outcome.places[place] if often else outcome.places[place] // 4)
                plan = Plan(place, passage, rank=rank if place[0].startswith("critic") else 0)
            result = run_command(run, overrides, plan, **start_ranks(ranks))
            if result.codes[plan.rank] == 0:  # it came to its end before
                break
            if result.codes[plan.rank] != -signal.SIGKILL:
                killed.append((name_place(place) if place else "at a random time", result.output[-300:]))
                break
            killed.append((name_place(place) if place else "at a random time", None))
        differences = [error for _, error in killed if error] or finish(run, overrides, expected, ranks=ranks)
        for name, _ in killed:
            tally.add(f"kill -9 {name}", differences)
        shutil.rmtree(run)
    return sorted(tally.rows(), key=lambda row: row["fault"])


def kill_ranks(folder, options):
    """Two ranks: one is killed; the other one must end with an error; both are started again."""
    rows = kill_runs(folder, options, ranks=2, kills=max(options.kills // 10, 2))
    total = {name: sum(row[name] for row in rows) for name in ("faults", "survived")}
    notes = "; ".join(row["notes"] for row in rows if row["notes"])
    return [{"fault": "two ranks: kill -9 of one of them", **total, "notes": notes}]


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

    rows = []

    def add(number, name, differences):
        note = str(differences[0]).replace(str(folder), "").strip().splitlines()[0][:150] if differences else ""
        counts = {"faults": 1, "survived": int(bool(differences)), "notes": f"differs: {note}" if note else ""}
        rows.append({"promise": PROMISES[number], "fault": f"control: {name}", **counts})

    expected, _ = train_reference(folder)
    late = Plan(("update", "before", ""), 8)  # after a line of the log, before the next checkpoint
    in_log = Plan(("write", "middle", "log"), 2)  # after a line of provenance the log is written again
    cases = {
        "lines after the checkpoint stay in the log": (keep_log, [late]),
        "the optimizer is not loaded": (forget_optimizer, [late]),
        "the average is not loaded": (forget_average, [late]),
        "files are written in place": (write_in_place, [late, in_log]),
    }
    for number, (name, (patch, plans)) in enumerate(cases.items()):
        run = folder / f"run{number}"
        codes = [run_command(run, RUN, replace(plan, patch=patch)).codes for plan in plans]
        differences = finish(run, RUN, expected, Plan(patch=patch))
        seen = differences and all(code == [-signal.SIGKILL] for code in codes)
        add(1, name, differences if seen else [])
    expected, killed = stop_early(folder / "killed")
    foreign = folder / "foreign"
    run_command(foreign, (*RUN, "seed=1"))

    def accept_all(owner, *names):
        return lambda: [setattr(owner, name, lambda *_, **__: None) for name in names]

    def stop_without_protection():
        patch = partial(setattr, wgangp.train, "catch_stop_signals", lambda _: nullcontext())
        place = ("critic or generator step", "before", "")
        result = run_command(folder / "stop", RUN, Plan(place, 10, signal=signal.SIGTERM, patch=patch))
        return check_stop(result, folder / "stop", signal.SIGTERM)

    def load_without_digest():
        run = copy_run(killed)
        path = run / "checkpoints" / "step_00000006.pt"
        state = torch.load(path, weights_only=True)
        state["critic"]["layers.0.weight"] *= 2
        torch.save(state, path)  # its sha256 is that of the file before
        patch = partial(setattr, wgangp.checkpoint, "digest_file", lambda path: "")
        return finish(run, RUN, expected, Plan(patch=patch))

    def load_without_comparison():
        run = copy_run(killed)
        for path in (foreign / "checkpoints").glob("step_00000006.pt*"):
            shutil.copy(path, run / "checkpoints")
        return finish(run, RUN, expected, Plan(patch=accept_all(wgangp.match, "require_match")))

    def go_on_with_nan():
        def patch():
            spoil("critic loss", float("nan"), 5)()
            wgangp.train.check_updates = lambda *_: 0
            accept_all(wgangp.train, "check_state", "require_finite")()
            wgangp.checkpoint.check_finite = lambda *_: None

        return check_nan_stop(run_command(folder / "nan", RUN, Plan(patch=patch)), folder / "nan", 5)

    def change_without_comparison():
        patch = accept_all(wgangp.match, "require_match")
        plan = Plan(patch=lambda: (patch(), setattr(wgangp.folders, "_compare", lambda *_: [])))
        return check_refusal(run_command(copy_run(killed), (*RUN, "penalty.weight=1"), plan), "penalty.weight")

    def share_folder():
        def make_lock(path):
            return SimpleNamespace(acquire=lambda timeout: path.touch(), release=lambda: None)

        plan = Plan(patch=partial(setattr, wgangp.folders, "FileLock", make_lock))
        return enter_twice(folder / "shared", expected, plan)

    def rotate(name, value):
        owner = wgangp.train if name == "_list_best" else wgangp.checkpoint
        rows = watch_rotation(folder / name, 0, partial(setattr, owner, name, value))
        return [problem for _, problem in rows if problem]

    cases = {
        (2, "signals are not caught"): stop_without_protection,
        (3, "the sha256 is not compared"): load_without_digest,
        (3, "the content is not compared"): load_without_comparison,
        (5, "numbers are not checked"): go_on_with_nan,
        (6, "there is no lock"): share_folder,
        (7, "config and checkpoint are not compared"): change_without_comparison,
        (10, "the best checkpoint is not known"): partial(rotate, "_list_best", lambda records: ()),
        (10, "every checkpoint counts as good"): partial(rotate, "_is_good", lambda *_: True),
    }
    for (number, name), attempt in cases.items():
        add(number, name, attempt())
    return rows


def send_signals(folder, options, compiled=False):
    """Send each stop signal in a step, in an evaluation, in a picture and in a checkpoint; or in compilation."""
    tally = Tally()
    moments = {  # the first two steps are those of the trial
        "a critic or generator step": (("critic or generator step", "before", ""), 10),
        "an evaluation": (("evaluation", "middle", ""), 2),
        "a picture": (("rename", "before", "picture"), 2),
        "a checkpoint": (("rename", "before", "checkpoint"), 2),
    }
    moments = {"compilation": (("compilation", "middle", ""), 2)} if compiled else moments
    overrides, bound_s = ((*RUN, "train.compile=true"), COMPILE_S) if compiled else (RUN, STOP_S)
    expected, _ = train_reference(folder, overrides)
    for (name, (place, passage)), number in product(moments.items(), STOP_SIGNALS):
        run = folder / f"{signal.Signals(number).name} in {name}"
        result = run_command(run, overrides, Plan(place, passage, signal=number))
        wrong = check_stop(result, run, number, bound_s=bound_s) + finish(run, overrides, expected)
        tally.add(f"a signal in {name}", wrong, f"{result.delay or 0:.2f}")
    return tally.rows(summarize_delays)


def summarize_delays(notes):
    numbers = [float(note) for note in notes if re.fullmatch(r"\d+\.\d+", note)]
    texts = [note for note in notes if not re.fullmatch(r"\d+\.\d+", note)]
    longest = [f"at most {max(numbers):.1f} s from the signal to the end"] if numbers else []
    return "; ".join([*longest, *texts])[:300]


def break_disks(folder, options):
    """Disks that are full, read-only or gone: one line of error, and the run continues when the disk is back."""
    rng, tally = random.Random(options.seed), Tally()
    expected, outcome = train_reference(folder)
    # A temporary file that cannot be removed is no fault of a run: in most cases it was renamed before.
    kinds = [p for p in sorted(outcome.places) if p[2] and p != ("remove", "before", "temporary file")]

    def attempt(fault, run, plan, repair=lambda: None):
        wrong = check_refusal(run_command(run, RUN, plan), str(run))
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
    overrides = (
        *(key for key in RUN if not key.startswith("train.") or "size" in key),
        *(f"train.steps={options.updates}", "train.decay_steps=null", "train.log_every=50", "train.sample_every=250"),
        *("train.checkpoint_every=100", "train.lipschitz_every=1000", "train.evaluate_every=1000"),
    )
    looks = folder / "looks.jsonl"
    patch = partial(watch_process, folder / "run", looks, options.updates)
    result = run_command(folder / "run", overrides, Plan(patch=patch))
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
    return [{"fault": title, "faults": 1, "survived": int(good), "notes": note} for title, good, note in rows]


def damage_checkpoints(folder, options, ranks=1):
    """Put bad checkpoints before the newest good one of a run, twelve at a time; then damage all of them."""
    rng, tally = random.Random(options.seed), Tally()
    overrides = RUN if ranks == 1 else (*RUN, "train.rank_timeout=20")
    expected, killed = stop_early(folder / f"{ranks} ranks", overrides, ranks)
    kinds = list_damage(folder, rng)
    kinds = kinds if ranks == 1 else rng.sample(kinds, 12)
    for start in range(0, len(kinds), 12):
        run = copy_run(killed)
        paths = [run / "checkpoints" / f"step_{101 + i:08d}.pt" for i in range(len(kinds[start : start + 12]))]
        for path, (_, change) in zip(paths, kinds[start:], strict=False):
            state = torch.load(run / "checkpoints" / "step_00000006.pt", weights_only=True)
            change(path, state | {"step": int(path.stem[5:])})
        before = {path: path.read_bytes() for path in paths}
        result = run_command(run, overrides, **start_ranks(ranks))
        wrong = [path for path in paths if not path.exists() or path.read_bytes() != before[path]]
        for path in paths:
            path.unlink(), path.with_suffix(".pt.sha256").unlink(missing_ok=True)
        wrong += compare(run, expected)
        for path, (kind, _) in zip(paths, kinds[start:], strict=False):
            warned = re.search(rf"warning: checkpoint {path} .*: step_00000006\.pt is used", result.output)
            tally.add(kind, wrong if warned else [*wrong, f"no warning in {result.output[-300:]}"])
    for kind in DAMAGE if ranks == 1 else ("a flipped bit", "no file with its sha256"):
        run = copy_run(killed)
        for path in list_checkpoints(run / "checkpoints"):
            damage_bytes(path, kind, rng)
        before = read_tree(run)
        result = run_command(run, overrides, **start_ranks(ranks))
        wrong = check_refusal(result, str(run / "checkpoints" / "step_00000006.pt"), "Restore a copy")
        tally.add("all checkpoints are damaged", wrong + ["a file changed"] * (read_tree(run) != before))
    return tally.rows()


def spoil_numbers(folder, options):
    """Make a sample, a loss or a gradient NaN or infinite: the run stops and later continues, or skips the update."""
    tally = Tally()
    expected, _ = train_reference(folder)
    run = folder / "run"
    kinds = ("sample", "critic loss", "generator loss", "critic gradient", "generator gradient")
    for kind, (value, step) in product(kinds, ((float("nan"), 2), (float("inf"), 5))):
        result = run_command(run, RUN, Plan(patch=spoil(kind, value, step)))
        wrong = check_nan_stop(result, run, step)
        shutil.rmtree(run / "nonfinite", ignore_errors=True)
        tally.add(f"stop: a {kind} that is not finite", wrong + finish(run, RUN, expected))
        shutil.rmtree(run)
    for kind, value in [*product(kinds, (float("nan"), float("inf"))), *product(kinds[3:], (1e30,))]:
        result = run_command(run, (*RUN, "train.on_nonfinite=skip"), Plan(patch=spoil(kind, value, 5)))
        wrong = [] if result.codes == [0] else [f"exit {result.codes}: {result.output[-300:]}"]
        wrong += [p.name for p in list_checkpoints(run / "checkpoints") if not is_finite(p)]
        last = read_metrics(run / "metrics.jsonl")[-1]
        wrong += [] if (last["step"], last["skipped"]) == (8, 1) else [f"the log ends with {last}"]
        tally.add(f"skip: a {kind} that is {'too large' if value == 1e30 else 'not finite'}", wrong)
        shutil.rmtree(run)
    return tally.rows()


def enter_folders(folder, options):
    """Start a second process on a folder while the first is at a chosen place; leave locks of dead processes."""
    tally = Tally()
    expected, killed = stop_early(folder)
    places = {"before the first step": (("update", "before", ""), 1), "in training": (("update", "before", ""), 6)}
    places |= {
        "in an evaluation": (("evaluation", "middle", ""), 2),
        "in a picture": (("rename", "before", "picture"), 2),
        "in a checkpoint": (("rename", "before", "checkpoint"), 2),
    }
    for name, (place, passage) in places.items():
        run, output = folder / name, folder / f"{name}.json"

        def enter(run=run, output=output):
            command = [sys.executable, "-m", "wgangp", "train", f"run_dir={run}", *RUN]
            second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            output.write_text(json.dumps([second.returncode, second.stdout + second.stderr]))

        first = run_command(run, RUN, Plan(place, passage, call=enter))
        code, text = json.loads(output.read_text())
        second = Outcome([code], text, Counter(), 0, None)
        wrong = check_refusal(second, f"{run} is in use by another process") + compare(run, expected)
        tally.add(f"a second process while the first is {name}", wrong + [first.output] * (first.codes != [0]))
    for number in range(3):
        tally.add("four processes that start at once", enter_twice(folder / f"at once {number}", expected))
    contents = {"no process": "", "a dead process": "999999\n", "a process of another host": "4711\nelsewhere\n"}
    contents |= {"a process that lives and does something else": f"{os.getpid()}\n", "nobody": "\0\xff noise"}
    for name, text in contents.items():
        run = copy_run(killed)
        (run / ".lock").write_text(text)
        os.utime(run / ".lock", (0, 0))
        tally.add(f"a lock file that names {name}", finish(run, RUN, expected))
    return tally.rows()


def change_config(folder, options):
    """Continue a run with each key changed: allowed ones give the same numbers, others are refused by name."""
    tally = Tally()
    expected, killed = stop_early(folder)
    name = "checkpoints/step_00000008.pt"
    missing = [key for key in NOT_COMPUTED if key not in ALLOWED and key != "run_dir"]
    for key, value in [*ALLOWED.items(), ("run_dir", None)]:
        run = copy_run(killed)  # in another place, so that run_dir is another one in all cases
        result = run_command(run, RUN if value is None else (*RUN, f"{key}={value}"))
        wrong = [] if result.codes == [0] else [f"{key}: exit {result.codes}: {result.output[-300:]}"]
        if not wrong and snapshot(run).get(name) != expected[name]:
            wrong = [f"{key}: other numbers"]
        tally.add("a key that may change", wrong)
    for key, value in select_computed(flatten_config(load_run_config(killed))).items():
        if value is None:
            change = f"{key}={16 if key.startswith('train') else 1.0}"
        elif isinstance(value, bool):
            change = f"{key}={str(not value).lower()}"
        else:
            change = CHANGES[key] if key in CHANGES else f"{key}={value + 1}"
        if change:
            run = copy_run(killed)
            before = read_tree(run)
            wrong = check_refusal(run_command(run, (*RUN, change)), f"\n  {key}: ")
            tally.add("a key that changes a number", wrong + ["a file changed"] * (read_tree(run) != before))
    rows = tally.rows()
    rows[0]["notes"] += f"not in this run, and not tried: {', '.join(missing)}"
    return rows


def disturb_ranks(folder, options):
    """Two ranks: a signal to one of them, and damaged checkpoints."""
    tally, overrides = Tally(), (*RUN, "train.rank_timeout=20")
    expected, _ = train_reference(folder, overrides, **start_ranks(2))
    for number, rank in product(STOP_SIGNALS, (0, 1)):
        run = folder / f"{number} {rank}"
        plan = Plan(("critic or generator step", "before", ""), 10, signal=number, rank=rank)
        result = run_command(run, overrides, plan, **start_ranks(2))
        wrong = check_stop(result, run, number, rank) + finish(run, overrides, expected, ranks=2)
        tally.add(f"two ranks: a signal to rank {rank}", wrong, f"{result.delay or 0:.2f}")
    rows = damage_checkpoints(folder, options, ranks=2)
    return tally.rows(summarize_delays) + [row | {"fault": f"two ranks: {row['fault']}"} for row in rows]


def rotate_checkpoints(folder, options):
    """Rotate while good checkpoints become bad: the last two good ones, the best and the bad ones stay, no others."""
    tally = Tally()
    for number in range(3):
        for kind, problem in watch_rotation(folder / str(number), options.seed + number):
            if kind != "nothing":
                tally.add(f"rotation after damage to {kind}", [problem] if problem else [])
    return tally.rows()


PARTS = {  # name -> function, number of the promise; None: of each row
    "kills": (kill_runs, 1),
    "signals": (send_signals, 2),
    "compile": (partial(send_signals, compiled=True), 2),
    "damage": (damage_checkpoints, 3),
    "disk": (break_disks, 4),
    "nonfinite": (spoil_numbers, 5),
    "lock": (enter_folders, 6),
    "config": (change_config, 7),
    "ranks": (kill_ranks, 8),
    "two": (disturb_ranks, 8),
    "long": (train_long, 9),
    "rotation": (rotate_checkpoints, 10),
    "controls": (switch_off, None),
}

if __name__ == "__main__":
    main()
