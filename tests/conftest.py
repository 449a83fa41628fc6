import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings
from PIL import Image
from torch import nn

import wgangp.config  # noqa: F401 - registers the schema

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("data") and not os.environ.get("WGANGP_DATA"):
            item.add_marker(pytest.mark.skip(reason="needs real MNIST files: set WGANGP_DATA=FOLDER"))


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def configure():
    """configure("seed=1", ...) -> the composed config, as the scripts see it."""

    def of(*overrides, name="config"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose(name, overrides=list(overrides))

    return of


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory):
    """A root with 600 random pictures in each of MNIST's and Fashion-MNIST's layouts: 500 to train on, 100 held out."""
    root = tmp_path_factory.mktemp("data")
    for name in ("MNIST", "FashionMNIST"):
        write_idx(root / name / "raw", pictures=600, side=28)
    return root


@pytest.fixture
def small_cifar(monkeypatch):
    """torchvision's reader of CIFAR-10, with 70 white pictures to train on and 30 black ones held out."""

    class Reader:
        def __init__(self, root, train, download):
            if not Path(root).exists():
                raise RuntimeError("Dataset not found or corrupted.")
            self.data = np.full((70 if train else 30, 32, 32, 3), 255 if train else 0, np.uint8)
            self.targets = list(range(len(self.data)))
            if train:
                self.data[:, 0, 1, 2] = 0  # row 0, column 1, blue

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Reader)


@pytest.fixture(scope="session")
def small_pictures(tmp_path_factory):
    """A folder with 40 grey 32 x 32 pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        Image.new("RGB", (32, 32), (i, i, 2 * i)).save(root / f"{i:02}.png")
    return root


def write_idx(folder, pictures, side):
    """The four idx files of an MNIST-like set: a header of big-endian integers, then bytes."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        header = np.array([0x803, pictures, side, side], dtype=">i4").tobytes()
        pixels = random.integers(0, 256, (pictures, side, side), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([0x801, pictures], dtype=">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + (np.arange(pictures) % 10).astype("u1").tobytes())


@pytest.fixture
def quick_compile(monkeypatch):
    """torch.compile without minutes of C++: the same traced graph, run by torch."""
    really = torch.compile

    def traced(function, **how):
        return really(function, backend="aot_eager", fullgraph=how["fullgraph"], dynamic=how["dynamic"])

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", traced)


class Linear(nn.Module):
    """D(x) = w . x for points of any rank: its slope is ||w|| everywhere."""

    def __init__(self, shape, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape, dtype=dtype))

    def forward(self, x):
        return (self.w * x).unsqueeze(-1).flatten(1).sum(1)


def smooth_critic(features, width=8):
    """A small critic whose third derivatives exist, in float64, on points of any rank."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.Tanh(), nn.Linear(width, 1)).double()
