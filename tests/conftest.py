import copy
import functools
import gc
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, Linear, smooth_critic, train_run, use_quick_pictures, write_idx  # noqa: F401 - old imports
from hydra import compose, initialize_config_dir
from hypothesis import settings
from labeled import LabeledCritic, LabeledGenerator
from matplotlib.layout_engine import ConstrainedLayoutEngine
from omegaconf import OmegaConf
from PIL import Image

import wgangp.cli  # noqa: F401 - registers the schemas
from wgangp.config import CONF, train_options
from wgangp.metrics import features, scores
from wgangp.metrics.features import FeatureSpace
from wgangp.networks import mlp
from wgangp.signals import STOP_SIGNALS

settings.register_profile("patient", deadline=None)  # a busy machine is not a failure
settings.load_profile("patient")

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; more threads per worker would be slower
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("data") and not os.environ.get("WGANGP_DATA"):
            item.add_marker(pytest.mark.skip(reason="needs real MNIST files: set WGANGP_DATA=FOLDER"))


def pytest_collection_finish():
    gc.freeze()  # the imported libraries, a million objects, are not looked through again and again


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _few_cells(monkeypatch):
    """The search for the interval in logs and figures ends early. It would take half a second per report."""
    monkeypatch.setattr("wgangp.report.BOX_CELLS", 16)


@pytest.fixture(autouse=True)
def _quick_layout(request, monkeypatch):
    """Draw without the search for a layout, which takes two thirds of the time of a picture."""
    if not request.node.get_closest_marker("layout"):
        monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _parse_once():
    """Hydra's config files are parsed once per text. For every command this would take a quarter of its time."""
    load, parsed = OmegaConf.load, {}

    def load_once(file):
        if not hasattr(file, "read"):
            return load(file)
        if (text := file.read()) not in parsed:
            file.seek(0)
            parsed[text] = pickle.dumps(load(file))
        return pickle.loads(parsed[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_sync():
    """No test waits for the disk: a file reads the same before it is there. Tests of a failed sync replace it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)  # of an open file, as fsync
        yield


@pytest.fixture
def heard():
    """The numbers of the stop signals that arrive during a test, in place of what they do otherwise."""
    numbers = []
    before = {number: signal.signal(number, lambda number, frame: numbers.append(number)) for number in STOP_SIGNALS}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def configure():
    """configure("seed=1", ...) -> the composed config, as the commands see it. Each is composed once, then copied."""

    @functools.cache
    def compose_once(name, *overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides=list(overrides))

    return lambda *overrides, name="config": copy.deepcopy(compose_once(name, *overrides))


@pytest.fixture(scope="session")
def config_text(configure):
    """config_text("seed=1", ...) -> the config.yaml of this run. Each is composed once: it takes a while."""
    return functools.cache(lambda *overrides: train_options(configure(*overrides))["config"])


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory):
    """A folder with 600 random images in the files of MNIST and of Fashion-MNIST: 500 to train on, 100 held out."""
    root = tmp_path_factory.mktemp("data")
    for name in ("MNIST", "FashionMNIST"):
        write_idx(root / name / "raw", pictures=600, side=28)
    return root


@pytest.fixture
def small_cifar(monkeypatch):
    """torchvision's reader of CIFAR-10, with 70 white images to train on and 30 black images held out."""

    class Reader:
        def __init__(self, root, train, download):
            if not Path(root).exists():
                raise RuntimeError("Dataset not found or corrupted.")
            self.data = np.full((70 if train else 30, 32, 32, 3), 255 if train else 0, np.uint8)
            self.targets = [i % 10 for i in range(len(self.data))]
            if train:
                self.data[:, 0, 1, 2] = 0  # row 0, column 1, blue

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Reader)


@pytest.fixture(scope="session")
def small_pictures(tmp_path_factory):
    """A folder with 40 images of 32 x 32."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        Image.new("RGB", (32, 32), (i, i, 2 * i)).save(root / f"{i:02}.png")
    return root


@pytest.fixture
def quick_compile(monkeypatch):
    """torch.compile without minutes of C++: the same traced graph, run by torch."""
    original = torch.compile

    def trace(function, **options):
        options = {"backend": "aot_eager", "fullgraph": False, "dynamic": None} | options
        return original(function, **{name: options[name] for name in ("backend", "fullgraph", "dynamic")})

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", trace)


@pytest.fixture
def quick_pictures(monkeypatch):
    """Training without matplotlib."""
    use_quick_pictures(monkeypatch)


@pytest.fixture
def quick_reports(monkeypatch):
    """Training without the analysis of the critic, which takes most of the rest of the time of a short run."""
    monkeypatch.setattr("wgangp.train.lipschitz_report", lambda *_: {"largest_quotient": 1.0})
    monkeypatch.setattr("wgangp.trial.check_per_sample", lambda *_, **__: None)


@pytest.fixture
def no_trial(monkeypatch):
    """Training without the update of a copy that comes before it, and shows that networks, loss and data fit."""
    monkeypatch.setattr("wgangp.config.try_run", lambda *_: None)


@pytest.fixture
def small_features(monkeypatch):
    """Scores of images in six features, which are pixels, of 12 images or more, in batches of 16."""

    def extract(x):
        pixels = x.float().flatten(1) / 99
        return pixels[:, :6], pixels[:, 6:10]

    def make(name):
        space = FeatureSpace(name, extract, {"weights": f"pixels for {name}"})
        return lambda *arguments, **keywords: space

    for name in ("classifier", "efficientnet", "inception"):
        monkeypatch.setattr(scores, f"load_{name}", make(name))
        monkeypatch.setitem(features.WIDTHS, name, 6)
    monkeypatch.setattr(scores, "BATCH", 16)
    monkeypatch.setattr("wgangp.generate.BATCH", 16)
    monkeypatch.setattr(features, "SUBSET_SIZE", 12)


@pytest.fixture(scope="session")
def _trained_once(configure, tmp_path_factory):
    folders = {}

    def train_once(*overrides):
        if overrides not in folders:
            folders[overrides] = tmp_path_factory.mktemp("run")
            with pytest.MonkeyPatch.context() as patch:
                use_quick_pictures(patch)
                train_run(configure(*overrides), folders[overrides])
        return folders[overrides]

    return train_once


@pytest.fixture
def trained(_trained_once, tmp_path):
    """trained("seed=1", ...) -> a copy of the folder of this run, which is trained once per session."""

    def copy_run(*overrides, name="run"):
        return Path(shutil.copytree(_trained_once(*overrides), tmp_path / name))

    return copy_run


@pytest.fixture
def labeled_config(configure, monkeypatch, tmp_path):
    """The config of a small run with labels: images of 8 x 8 in three folders, and networks with three classes."""
    for network in (LabeledGenerator, LabeledCritic):
        monkeypatch.setattr(network, "__module__", mlp.__name__)  # a name that a config may build
        monkeypatch.setattr(mlp, network.__name__, network, raising=False)
    for split, count in (("train", 8), ("heldout", 4)):
        for label in range(3):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (100 * label, 10 * i, 0)).save(folder / f"{i}.png")
    roots = (f"data.root={tmp_path / 'train'}", f"data.heldout_root={tmp_path / 'heldout'}")
    sizes = ("train.batch_size=6", "train.report_size=6", "train.steps=1", "device=cpu")
    cfg = OmegaConf.create(OmegaConf.to_container(configure("data=image_folder", *roots, *sizes)))
    for name, network in (("generator", LabeledGenerator), ("critic", LabeledCritic)):
        target = {"_target_": f"{mlp.__name__}.{network.__name__}"}
        OmegaConf.update(cfg, f"networks.{name}", target, merge=False)
    return cfg
