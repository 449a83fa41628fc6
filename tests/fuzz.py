"""Fuzzing: random and damaged inputs for everything that reads one.

    python tests/fuzz.py --inputs 10000 --out results/reliability/fuzz.jsonl

An input survives if it is accepted, or refused with ValueError or OSError, which a command prints as one line. It does
not survive if another error is raised, if the process dies, if it takes more than LIMIT seconds of CPU time, if a file
outside of its folder is written, removed or renamed, or if a program is started. Input i of a kind is a function of
(seed, kind, i), so that `--kind overrides --only 17` shows one again.

Every kind has its own process, with a limit on its memory. It is started again after an input that kills it.
"""

import argparse
import hashlib
import io
import json
import math
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401 - before the inputs: it makes a folder for torch's compiler
from helpers import ROOT, TINY, quick_curves, quick_picture, train_run, write_idx
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from wgangp import cli, config
from wgangp.checkpoint import load_latest
from wgangp.data.idx import read_labeled
from wgangp.data.images import image_folder
from wgangp.data.text import text
from wgangp.logs import Log, read_lines, read_metrics
from wgangp.records import read_folder
from wgangp.schema import flatten_keys

LIMIT = 30  # seconds of CPU time per input
MEMORY = 16e9  # bytes of address space of a process
# Boundaries of every type, what is close to them, and values of other types.
NUMBERS = """-1 0 1 2 3 5 16 100000 2147483647 2147483648 -2147483649 4294967296 9223372036854775807 9223372036854775808
    1000000000000000000000000000000 0.0 -0.0 0.5 0.999 1.0 1.5 -0.5 1e-45 1e-308 1e-8 1e6 1e20 3.4e38 3.5e38 1e308
    -1e308 nan inf -inf 1e400 0x10 1_000"""
INTEGERS = "-1 0 1 2 3 4 5 8 16 17 60 100 4096 100000 2147483647 2147483648 9223372036854775807"
WORDS = """true false null abc '' [] [1,1] [0.5,0.9] [0,1] [1e30,0.5] {} {a:1} {_target_:os.system} two one real fake
    interpolates bf16 tf32 fp32 cpu cuda cuda:99 mps ${seed} ${nothing} ${optim} ??? ~ . .. /dev/null a/../b "a b"
    [null] [[1]] '${oc.env:HOME}' \u00e9 '\\x00' [a,b] {a:{b:1}} [0.5,nan] -inf 1e-320"""
TARGETS = """os.system builtins.eval logging.os.system wgangp.data.images.os.system wgangp.data.toy.gaussians8 wgangp
    wgangp.losses.Wasserstein wgangp.networks.mlp.MLPCritic wgangp.networks torch.optim torch.optim.os.system SGD Adam
    Adadelta Adagrad AdamW Adamax ASGD LBFGS NAdam RAdam RMSprop Rprop SparseAdam Adafactor Muon Optimizer"""
OPTIONS = """weight_decay amsgrad maximize foreach capturable differentiable fused eps momentum dampening nesterov
    centered decoupled_weight_decay initial_accumulator_value lr_decay rho lambd t0 max_iter history_size"""
BASES = {  # choices that fit together
    "": ["data", "loss", "penalty", "optim", "networks"],
    "data=gaussians25 loss=non_saturating": ["data", "penalty"],
    "data=swiss_roll penalty=dragan optim=rmsprop": ["optim"],
    "data=shift penalty=one_sided optim=normalized": ["data", "optim"],
    "data=funnels penalty=zero_centered": ["data"],
    "data=text data.path=text.txt networks=language": ["data", "networks"],
    "data=image_folder data.root=pictures networks=mnist penalty=none": ["data", "networks"],
    "data=mnist data.root=digits networks=mnist networks.critic.norm=false": ["data", "networks"],
}
SETTINGS = """hydra.run.dir hydra.job.chdir hydra.verbose hydra.launcher._target_ hydra.sweeper._target_ hydra.job.name
    hydra.output_subdir +hydra.callbacks.x._target_ hydra/launcher hydra/job_logging +hydra.job_logging.handlers.x.class
    +hydra.job.env_set.X hydra.mode hydra.searchpath hydra.job_logging.disable_existing_loggers"""
LONG = (("steps", 1, math.inf), ("depth", 100, math.inf), ("width", 100, 2**31 - 2))  # open intervals
FLAGS = "-m --cfg --resolve --info --config-name --config-dir -x --package --multirun -c"

Attempt = Callable[[random.Random], None]  # one input


def change_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Damage: flipped, lost, repeated, overwritten or foreign bytes."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        a, n = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64, 512))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[a:]
        elif kind == 2:
            del data[a : a + n]
        elif kind == 3:
            data[a:a] = data[a : a + n]
        elif kind == 4:
            data[a : a + n] = rng.randbytes(n)
        elif kind == 5:
            data[a : a + n] = rng.choice((b"\x00", b"\xff", b"\x7f")) * n
        else:
            data[a:a] = rng.choice((b"\n", b"{}", b"NaN", b'"', b"[", b"\xef\xbb\xbf", b"\r\n", b"1" * 5000))
    return bytes(data)


def prepare_overrides(folder: Path) -> Attempt:
    """The command train, with random overrides in random places. Networks and data are tiny, and one update is made."""
    (folder / "text.txt").write_text("".join(f"line {i}\n" for i in range(200)))
    write_idx(folder / "digits" / "MNIST" / "raw", 120, 28)
    (folder / "pictures").mkdir()
    for i in range(180):
        Image.new("L", (28, 28), i).save(folder / "pictures" / f"{i}.png")
    patch = pytest.MonkeyPatch()
    patch.setattr("wgangp.train.picture", quick_picture)
    patch.setattr("wgangp.train.draw_curves", quick_curves)
    patch.setattr("wgangp.logs._tensorboard", lambda folder, step: None)
    get_mode = Hydra.get_mode  # which composes the whole config once more, only to read hydra.mode
    patch.setattr(Hydra, "get_mode", lambda *a, **k: get_mode(*a, **k) if "hydra.mode" in str((a, k)) else None)
    keys: dict[str, dict[str, object]] = {}  # per base: key -> its value
    for base, groups in BASES.items():
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            cfg = compose("config", base.split())
        names = [key for key in flatten_keys(OmegaConf.to_container(cfg)) if base == "" or key.split(".")[0] in groups]
        names += [f"{group}._target_" for group in groups if group != "networks"]
        keys[base] = {name: OmegaConf.select(cfg, name, throw_on_missing=False) for name in names}
    tiny = [*TINY, "train.steps=1", "train.critic_steps=1"]

    def attempt(rng: random.Random) -> None:
        base = rng.choice(list(keys))
        arguments = [*base.split(), *tiny]
        for _ in range(rng.choice((1, 1, 2, 3))):
            key, kind = rng.choice([*keys[base].items()])
            if OmegaConf.is_dict(kind) and rng.random() < 0.8:  # a whole group
                key, kind = rng.choice([("optim.lr", 0.1), ("penalty.weight", 10.0), ("train.batch_size", 16)])
            if rng.random() < 0.1:
                key, kind = f"+optim.{rng.choice(OPTIONS.split())}", rng.choice((True, 1.0))
            if rng.random() < 0.03:
                key, kind = rng.choice(SETTINGS.split()), ""
            values = {bool: "true false", int: INTEGERS, float: NUMBERS}.get(type(kind), WORDS)
            values = rng.choice((values, values, NUMBERS, WORDS)) if "_target_" not in key else TARGETS
            value, prefix = rng.choice(values.split()), rng.choice((*[""] * 12, "+", "++", "~"))
            if value[0].isupper():
                value = f"torch.optim.{value}"
            if not takes_long(key, value):
                arguments.append(f"{prefix}{key.lstrip('+') if prefix else key}={value}")
            if key == "optim._target_":
                arguments += ["~optim.fused", "~optim.betas"] * ("betas" in str(keys[base].get("optim")))
        if rng.random() < 0.02:
            arguments.append(rng.choice(FLAGS.split()))
        if rng.random() < 0.02:
            arguments = [change_bytes(a.encode(), rng).decode(errors="ignore").replace("\0", "") for a in arguments]
        before, out = set((folder / "runs").glob("[!.]*")), io.StringIO()
        code = run_command(arguments, out)
        made = set((folder / "runs").glob("[!.]*")) - before
        shutil.rmtree(folder / "runs", ignore_errors=True)
        if code:
            message = out.getvalue() + (code if isinstance(code, str) else "")
            assert "Traceback" not in message, message
            # A step whose loss is not finite is found while it is trained.
            assert not made or "not finite" in message or "error: step " in message, f"a folder was made: {message}"
            raise ValueError(message)

    return attempt


def takes_long(key: str, value: str) -> bool:
    """Return whether a value is a long run or a large network, which is no mistake."""
    with suppress(ValueError):
        return any(word in key and low < float(value) < high for word, low, high in LONG)
    return False


def run_command(arguments: list[str], out: io.StringIO) -> int | str:
    """Return what `python scripts/train.py ARGUMENTS` exits with."""
    sys.argv = ["train.py", *arguments]
    GlobalHydra.instance().clear()
    with redirect_stdout(out), redirect_stderr(out):
        try:
            cli.main("train")
        except SystemExit as end:
            return end.code or 0
    return 0


def prepare_checkpoints(folder: Path) -> Attempt:
    """A checkpoint: damaged; damaged, with the sha256 of the damage; with other content."""
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", [*TINY, "train.steps=1", "train.checkpoint_every=1"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wgangp.train.picture", quick_picture)
        patch.setattr("wgangp.train.draw_curves", quick_curves)
        train_run(cfg, folder / "run")
    path = folder / "run" / "checkpoints" / "step_00000001.pt"
    raw, digest_file = path.read_bytes(), path.with_suffix(".pt.sha256")
    state, digest_text = torch.load(path, weights_only=True), digest_file.read_text()
    for other in path.parent.glob("step_00000000*"):
        other.unlink()

    def attempt(rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.4:
            content = change_bytes(raw, rng)
        elif kind < 0.6:
            content = change_zip(raw, rng)
        else:
            buffer = io.BytesIO()
            torch.save(change_state(state, rng), buffer)
            content = buffer.getvalue()
        path.write_bytes(content)
        damaged = kind < 0.4 and rng.random() < 0.3
        digest_file.write_text(digest_text if damaged else f"{hash_bytes(content)}  {path.name}\n")
        with redirect_stderr(io.StringIO()):
            if rng.random() < 0.3:
                load_latest(path.parent)
            else:
                config.load_run(folder / "run")

    return attempt


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def change_zip(raw: bytes, rng: random.Random) -> bytes:
    """A whole zip file, with damage in one of its members, or another name or no member in place of one."""
    source, buffer = zipfile.ZipFile(io.BytesIO(raw)), io.BytesIO()
    names = source.namelist()
    chosen, kind = rng.choice(names), rng.randrange(4)
    with zipfile.ZipFile(buffer, "w") as target:
        for name in names:
            content = source.read(name)
            if name == chosen and kind == 0:
                continue
            if name == chosen and kind == 1:
                name = rng.choice(("../../outside", "/tmp/outside", name.upper(), names[0]))
            if name == chosen or (kind == 3 and name.endswith("data.pkl")):
                content = change_bytes(content, rng)
            with suppress(UserWarning):
                target.writestr(name, content)
    return buffer.getvalue()


def change_state(state: object, rng: random.Random) -> object:
    """A state with one entry changed to another type, shape, value or name."""
    items = list(state.items()) if isinstance(state, dict) else []
    if not items or rng.random() < 0.15:
        return change_value(state, rng)
    name, value = rng.choice(items)
    changed = dict(items)
    kind = rng.random()
    if kind < 0.1:
        del changed[name]
    elif kind < 0.2:
        changed[rng.choice(("other", 7, "../../outside", None))] = value
    else:
        changed[name] = change_state(value, rng)
    return changed


def change_value(value: object, rng: random.Random) -> object:
    """A value of another type, shape or size."""
    others = [None, -5, 10**9, 10**30, 1.5, math.nan, "../../outside", [], [1, 2], {}, {"a": 1}, True, torch.zeros(3)]
    if isinstance(value, torch.Tensor):
        others += [value.to(torch.int8), value.double(), value * math.nan, value.flatten()[:0], value.unsqueeze(0)]
        others += [torch.zeros(1).expand(10**6, 100), torch.zeros(2, 2, dtype=torch.complex64), value.to_sparse()]
        others += [value.half(), value.flatten(), torch.zeros_like(value, device="meta")]
    if isinstance(value, list):
        others += [[*value, 1], value[:-1], [0, *value], [-1], [10**9] * 3, ["a"]]
    return rng.choice(others)


def prepare_idx(folder: Path) -> Attempt:
    """Images and labels of MNIST: IDX files with damage, or with other headers."""
    write_idx(folder / "digits", 20, 4)
    pictures, labels = folder / "digits" / "train-images-idx3-ubyte", folder / "digits" / "train-labels-idx1-ubyte"
    raw = {path: path.read_bytes() for path in (pictures, labels)}

    def attempt(rng: random.Random) -> None:
        for path, content in raw.items():
            content = change_bytes(content, rng) if rng.random() < 0.7 else content
            if rng.random() < 0.3:
                sizes = [rng.choice((0, 1, 6, 20, 2**16, 2**31, 2**32 - 1)) for _ in range(3)]
                header = bytes([0, 0, 8, rng.choice((0, 1, 3, 255))])
                content = header + np.array(sizes, ">u4").tobytes() + content[rng.choice((0, 8, 16)) :]
            path.write_bytes(content)
        read_labeled(pictures, labels)

    return attempt


def prepare_images(folder: Path) -> Attempt:
    """A folder of pictures in which two are damaged, or are a FIFO, a link loop, a folder, or something else."""
    forms = [("png", "RGB"), ("png", "LA"), ("png", "P"), ("png", "I;16"), ("jpg", "RGB"), ("jpg", "L"), ("gif", "P")]
    forms += [("tif", "RGB"), ("bmp", "RGB"), ("webp", "RGB"), ("ppm", "RGB"), ("pgm", "L"), ("tiff", "I;16")]
    forms += [("jpg", "CMYK")]
    samples, root = {}, folder / "pictures"
    for i, (suffix, mode) in enumerate(forms):
        path = folder / f"sample{i}.{suffix}"
        shade = Image.new(mode, (8, 8)) if mode == "I;16" else Image.new("RGB", (8, 8), (10 * i, 99, 0)).convert(mode)
        shade.save(path)
        samples[path.name] = path.read_bytes()
    huge = io.BytesIO()
    Image.new("1", (30000, 30000)).save(huge, "PNG")
    samples |= {"huge.png": huge.getvalue(), "empty.png": b"", "text.png": b"GET / HTTP/1.1\n\n", "bomb.png": bomb()}

    def attempt(rng: random.Random) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for i in range(4):
            (root / f"good{i}.png").write_bytes(samples["sample0.png"])
        for i in range(2):
            name = rng.choice(list(samples))
            path = root / rng.choice((f"{i}{name}", f"a/{i}{name}", f"{i}.gif", f"{i}.\ud800.tif", f"{i}.PNG"))
            path.parent.mkdir(exist_ok=True)
            kind = rng.random()
            if kind < 0.06:
                os.mkfifo(path)
            elif kind < 0.1:
                path.symlink_to(rng.choice((path, "/dev/zero", "/dev/null", root, "..", "/proc/self/mem", "nowhere")))
            elif kind < 0.12:
                path.mkdir()
            else:
                path.write_bytes(samples[name] if kind < 0.2 else change_bytes(samples[name], rng))
        memory = rng.choice((4.0, 4.0, 0.0))
        size, channels = rng.choice((None, 8, 3)), rng.choice((None, 1, 3))
        data = image_folder(str(root), size=size, channels=channels, memory_gb=memory)
        data.batch(0, 2, 0)
        if memory == 0:
            data.pool.shutdown()

    return attempt


def bomb() -> bytes:
    """A PNG of a few kB whose header says 50,000 x 50,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    raw[16:24] = np.array([50000, 50000], ">u4").tobytes()
    return bytes(raw)


def prepare_text(folder: Path) -> Attempt:
    """A text file: damaged, binary, with long lines, or in another encoding."""
    path = folder / "text.txt"
    lines = [f"line {i} of a text: \u00e9\u4e2d\U0001f600" for i in range(30)]
    sources = ["\n".join(lines).encode(code, "ignore") for code in ("utf-8", "latin-1", "utf-16", "cp1252", "utf-7")]
    sources += [b"", b"\n" * 99, b"one line", b"\r" * 9, b"a\nb" * 99, b"x" * 100_000]

    def attempt(rng: random.Random) -> None:
        path.write_bytes(change_bytes(rng.choice(sources), rng) if rng.random() < 0.9 else rng.choice(sources))
        length, symbols = rng.choice((4, 32, 3, 0, -1, 2**31)), rng.choice((2, 257, 1, 2**63 - 1))
        if rng.random() < 0.7:
            length, symbols = 32, 257
        data = text(str(path), length, symbols, wrap=rng.random() < 0.3, strict=rng.random() < 0.3)
        data.batch(0, min(2, len(data.ids["train"])), 0)

    return attempt


def prepare_lines(folder: Path) -> Attempt:
    """Lines of metrics.jsonl, timing.jsonl, scores.jsonl and records.jsonl: damaged, or with other values."""
    (folder / "config.yaml").write_text("seed: 0\ndata: {_target_: wgangp.data.toy.gaussians8}\n")
    values = [None, "a", [], {}, True, -1, 10**400, 1e308, math.nan, math.inf, 2.5, "1", {"a": {"b": 1}}, -(10**30)]

    def write(name: str, records: list[dict], rng: random.Random) -> None:
        for record in records:
            if rng.random() < 0.15:
                record[rng.choice([*record, "other", "step", ""])] = rng.choice(values)
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        (folder / name).write_bytes(change_bytes(content, rng) if rng.random() < 0.5 else content)

    def attempt(rng: random.Random) -> None:
        steps = range(0, 50, 10)
        write("metrics.jsonl", [{"step": k, "wasserstein": 0.5, "modes": 3} for k in steps], rng)
        write("timing.jsonl", [{"step": k, "elapsed_s": float(k)} for k in steps], rng)
        score = {"score": "points", "checkpoint": "newest", "step": 10, "settings": {"n": 5}, "values": {"w1": 0.5}}
        write("scores.jsonl", [score | {"step": k} for k in steps], rng)
        write("records.jsonl", [{"cell": "a", "seed": k} for k in steps], rng)
        kind = rng.randrange(4)
        if kind == 0:
            read_metrics(folder / "metrics.jsonl")
        elif kind == 1:
            Log(folder, rng.choice((0, 20, 50))).close()
        elif kind == 2:
            read_folder(folder)
        else:
            read_lines(folder / "records.jsonl")

    return attempt


KINDS = {  # kind -> what it must survive, its part of all inputs, and how an input is made and read
    "checkpoints": ("damaged and foreign checkpoints", 0.2, prepare_checkpoints),
    "idx": ("damaged IDX files", 0.12, prepare_idx),
    "images": ("damaged pictures, FIFOs, loops, bombs", 0.12, prepare_images),
    "text": ("damaged text files", 0.12, prepare_text),
    "lines": ("damaged lines of logs and scores", 0.12, prepare_lines),
    "overrides": ("random overrides of train: one line, no folder", 0.32, prepare_overrides),
}
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
LINKS = ("os.link", "os.symlink")  # of two paths, the second is written
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")


class Guard:
    """Notes every file that is changed outside of a folder, and every program that is started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.changes = os.path.realpath(folder), []
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple) -> None:
        if event in STARTS and "git" not in str(arguments[:1]):  # provenance asks git for the commit
            self.changes.append(f"{event} {arguments[:2]}")
        elif event in WRITES or (event == "open" and self.writes(*arguments)):
            for path in arguments[int(event in LINKS) : 2 if event in (*LINKS, "os.rename") else 1]:
                named = isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path) != os.devnull
                if named and not os.path.realpath(Path(os.fsdecode(path)).parent).startswith(self.folder):
                    self.changes.append(f"{event} {path}")

    @staticmethod
    def writes(path: object, mode: str | None, flags: int) -> bool:
        return any(c in mode for c in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def work(kind: str, seed: int, numbers: range | list[int], channel: int) -> None:
    """Try inputs, and write a line before and after each. Runs in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "user"
        folder.mkdir()
        os.chdir(folder)
        attempt = KINDS[kind][2](folder)
        resource.setrlimit(resource.RLIMIT_AS, (int(MEMORY), int(MEMORY)))
        guard = Guard(Path(name))
        for i in numbers:
            os.write(channel, f"{json.dumps({'begin': i})}\n".encode())
            start, outcome = time.process_time(), {"end": "accepted"}
            try:
                attempt(random.Random(f"{seed}/{kind}/{i}"))
            except (ValueError, OSError) as error:
                outcome = {"end": "refused", "message": str(error)[:300]}
            except BaseException as error:
                outcome = {"end": type(error).__name__, "message": traceback.format_exc()[-1500:]}
            if guard.changes:
                outcome = {"end": "touched", "message": str(guard.changes)}
                guard.changes = []
            seconds = round(time.process_time() - start, 2)
            os.write(channel, f"{json.dumps(outcome | {'i': i, 's': seconds})}\n".encode())


def fuzz(kind: str, inputs: list[int], seed: int, show: Callable[[dict], None] = lambda outcome: None) -> Counter:
    """Try the inputs with these numbers, and count the outcomes: accepted, refused, or what went wrong."""
    counts, waiting = Counter(), list(inputs)
    while waiting:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                work(kind, seed, waiting, write)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.close(write)
        current, rest, used = None, b"", 0.0
        while True:
            ready, _, _ = select.select([read], [], [], 5)
            if not ready:
                if (current is not None and cpu_seconds(pid) - used > LIMIT) or is_blocked(pid):
                    os.kill(pid, signal.SIGKILL)
                    outcome = {"end": "hang", "i": current, "message": ""}
                    break
                continue
            part = os.read(read, 65536)
            if not part:
                outcome = None if current is None else {"end": "died", "i": current, "message": ""}
                break
            *lines, rest = (rest + part).split(b"\n")
            for line in map(json.loads, lines):
                if "begin" in line:
                    current, used = line["begin"], cpu_seconds(pid)
                else:
                    counts[line["end"]] += 1
                    waiting.remove(line["i"])
                    show(line | {"kind": kind})
                    current = None
        os.waitpid(pid, 0)
        os.close(read)
        if outcome is None:
            assert not waiting, f"{kind} could not be prepared"
            break
        counts[outcome["end"]] += 1
        waiting.remove(outcome["i"])
        show(outcome | {"kind": kind})
    return counts


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process: another one that is busy does not make an input slow."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def is_blocked(pid: int, seconds: float = 10.0) -> bool:
    """Return True if a process uses no CPU time at all: it waits, for example for a FIFO."""
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return cpu_seconds(pid) == before


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzzing", allow_abbrev=False)
    parser.add_argument("--inputs", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS))
    parser.add_argument("--only", type=int, nargs="*", help="numbers of inputs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout

    def show(outcome: dict) -> None:
        if outcome["end"] not in ("accepted", "refused") or options.only:
            print(json.dumps(outcome), flush=True)

    lines = []
    for kind, (promise, part, _) in KINDS.items():
        if options.kind in (None, kind):
            numbers = options.only or list(range(math.ceil(options.inputs * (1 if options.kind else part))))
            counts = fuzz(kind, numbers, options.seed, show)
            survived = counts["accepted"] + counts["refused"]
            kind_option = f"--kind {options.kind} " * bool(options.kind)
            command = f"python tests/fuzz.py {kind_option}--inputs {options.inputs} --seed {options.seed}"
            line = {"promise": promise, "faults": counts.total(), "survived": survived, "kind": kind, **counts}
            lines.append(line | {"seed": options.seed, "command": command, "commit": commit.strip()})
            print(json.dumps(lines[-1]), flush=True)
            if options.out:  # after every kind: the last one takes hours
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
