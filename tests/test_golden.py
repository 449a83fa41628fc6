"""A few updates of the toy, MNIST and CIFAR runs, compared with stored numbers: no refactoring changes a number.

On the machine where the numbers were stored (same processor, same torch version) the weights are equal bit for bit.
Elsewhere the logged terms are equal to rounding. `python tests/test_golden.py` stores the numbers anew; that
is right only together with a "Numerics" line in CHANGELOG.md.
"""

import hashlib
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

import wgangp.cli  # noqa: F401 - registers the schemas
from wgangp import config
from wgangp.compiled import build_computation
from wgangp.train import update

STORED = Path(__file__).parent / "golden.json"
TOY = ["train.batch_size=64"]
MNIST = ["experiment=mnist", "networks.generator.width=8", "networks.critic.width=8"]
RESNET = ["experiment=cifar_resnet", "networks.generator.width=8", "networks.critic.width=8"]
TORCH_RMSPROP = ["optim=rmsprop", "optim._target_=torch.optim.RMSprop"]  # that of the code that computed golden.json
RUNS = {  # name: overrides
    "toy": TOY,
    "toy, clipped and regularized": [*TOY, "clip.gradient_norm=0.5", "regularize.gradient_norm=0.01", "penalty=dragan"],
    "toy, weights clipped": [*TOY, "penalty.weight=0", "clip.weights=0.01", *TORCH_RMSPROP, "data=swiss_roll"],
    "mnist": MNIST,
    "mnist_clip": ["experiment=mnist_clip", *TORCH_RMSPROP, *MNIST[1:]],
    "cifar_resnet": [*RESNET, "data=image_folder"],
}
COMPILED = ("toy", "mnist", "cifar_resnet")
UPDATES = 3


def compute(name: str, folder: Path, compile: bool = False) -> dict:
    """Run three updates; return the terms of each and a digest of the final weights."""
    overrides = [*RUNS[name], "device=cpu"]
    if "mnist" in name or "cifar" in name:
        overrides.append(f"data.root={_write_images(folder, gray='mnist' in name)}")
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    cfg.train.report_size = 16
    run, options = config.build_run(cfg), config.train_options(cfg)
    weight = options["regularize_gradient_norm"]
    computation = build_computation(run.generator, run.critic, run.loss, run.penalty, weight, compile=compile)
    names = ("critic_steps", "batch_size", "generator_batch_size", "clip")
    terms = [update(step, run, computation, **{name: options[name] for name in names}) for step in range(UPDATES)]
    tensors = [*run.generator.state_dict().values(), *run.critic.state_dict().values()]
    digest = hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors)).hexdigest()
    for each in terms:
        del each["generator_param_grad_norm"]  # it is in no objective
    return {"terms": [{name: term.item() for name, term in each.items()} for each in terms], "weights": digest}


def _write_images(folder: Path, gray: bool) -> Path:
    """A root with 300 random images: MNIST files if gray, else a folder of 32 x 32 PNGs."""
    rng = np.random.default_rng(0)
    if not gray:
        for i in range(300):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
        return folder
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels, header = rng.integers(0, 256, (300, 28, 28), dtype=np.uint8), np.array([0x803, 300, 28, 28], ">i4")
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header.tobytes() + pixels.tobytes())
        labels = np.array([0x801, 300], ">i4").tobytes() + (np.arange(300) % 10).astype("u1").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def machine() -> str:
    """The machine, as far as it decides about rounding: processor, its instructions, and the version of torch."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else f"model name: {platform.machine()}"
    facts = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    kind = ", ".join(f"{name} {facts.get(name)}" for name in ("cpu family", "model", "stepping", "cache size"))
    flags = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return f"{facts.get('model name')}, {kind}, flags {flags}, torch {torch.__version__}"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sum of a split loop is another one
    yield
    torch.set_num_threads(threads)


def check(name: str, result: dict) -> None:
    golden = json.loads(STORED.read_text())
    expected = golden["runs"][name]
    if golden["machine"] == machine():
        assert result == expected
    for ours, stored in zip(result["terms"], expected["terms"], strict=True):
        assert ours == pytest.approx(stored, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_eager_updates_compute_the_stored_numbers(name, tmp_path):
    check(name, compute(name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_updates_compute_the_stored_numbers(name, tmp_path):
    torch._dynamo.reset()
    check(f"{name}, compiled", compute(name, tmp_path, compile=True))


def store() -> None:
    """Write golden.json."""
    torch.set_num_threads(1)
    runs = {}
    for name in RUNS:
        for compile in (False, True)[: 1 + (name in COMPILED)]:
            with tempfile.TemporaryDirectory() as folder:
                runs[name + ", compiled" * compile] = compute(name, Path(folder), compile)
    STORED.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    store()
