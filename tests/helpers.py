"""What several test files share: networks, data files, run folders, and the settings of a tiny run."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from wgangp.certify import certified_lipschitz
from wgangp.config import build_run, train_options
from wgangp.figures.digest import read_records
from wgangp.figures.study import complete_seeds, load_figure, render
from wgangp.logs import read_metrics
from wgangp.runs import ADDED
from wgangp.train import train

ROOT = Path(__file__).parent.parent

WIDTHS = ("networks.generator.width=8", "networks.critic.width=8")
# Constant learning rates, so that a longer run continues a shorter one.
TINY = (*WIDTHS, "train.batch_size=16", "train.report_size=16", "train.decay_steps=null", "device=cpu")


def render_folder(folder, name):
    """Return the README of a folder in results/, with its block rendered anew from records.jsonl and config.yaml."""
    figure = load_figure(name, folder)
    records = complete_seeds(figure, read_records(folder))
    assert records, f"{folder} has no seed for which all runs are measured"
    return render((folder / "README.md").read_text(), name, figure, records)


class Function(nn.Module):
    """A module that computes function(x, *modules)."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.modules_ = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.modules_)


class Linear(nn.Module):
    """D(x) = w . x for points of any shape: its slope is ||w|| everywhere."""

    def __init__(self, shape, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape, dtype=dtype))

    def forward(self, x):
        return (self.w * x).unsqueeze(-1).flatten(1).sum(1)


def smooth_critic(features, width=8):
    """A small critic whose third derivatives exist, in float64, for points of any shape."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.Tanh(), nn.Linear(width, 1)).double()


def write_idx(folder, pictures, side):
    """Write the four idx files of a data set like MNIST: a header of big-endian integers, then bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        header = np.array([0x803, pictures, side, side], dtype=">i4").tobytes()
        pixels = rng.integers(0, 256, (pictures, side, side), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([0x801, pictures], dtype=">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + (np.arange(pictures) % 10).astype("u1").tobytes())


def write_run(folder, config, log, seconds=None, scores=(), provenance=()):
    """Write a run folder with the text of a config and a log, without training. Returns the folder.

    log, scores, provenance: lists of records. seconds: of training; None: there is no timing.jsonl.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    timing = [] if seconds is None else [{"step": log[-1]["step"], "elapsed_s": seconds}]
    for name, records in (("metrics", log), ("timing", timing), ("scores", scores), ("provenance", provenance)):
        if records:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def train_run(cfg, folder):
    """Train the run of a config in a folder, and return its objects."""
    run = build_run(cfg)
    assert train(folder, run, **train_options(cfg)) == cfg.train.steps
    return run


def quick_picture(folder, run, step):
    """What wgangp.report.picture writes, without matplotlib: a small file of another color at every step."""
    path = folder / "samples" / f"{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (step % 256, 60 * step % 256, 0)).save(
        path
    )  # an animation drops a picture that looks equal


def quick_curves(folder, run):
    """What wgangp.report.draw_curves writes, without matplotlib: a small file with the color of the last step."""
    step = read_metrics(folder / "metrics.jsonl")[-1]["step"]
    Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(folder / "curves.png")


def use_quick_pictures(monkeypatch):
    """Train without matplotlib, which takes most of the time of a short run."""
    monkeypatch.setattr("wgangp.train.picture", quick_picture)
    monkeypatch.setattr("wgangp.train.draw_curves", quick_curves)


def make_old(path):
    """Rewrite a config.yaml as an early version wrote it: without the keys that were added."""
    cfg = OmegaConf.load(path)
    for group, name in [key.split(".") for key in ("ema.decay", *ADDED) if not key.startswith("networks.")]:
        del cfg[group][name]
    path.write_text(OmegaConf.to_yaml(cfg))


def matrix(function, shape):
    """The linear part of an affine function of one sample, as a matrix (transposed)."""
    n = math.prod(shape)
    with torch.no_grad():
        basis = torch.cat([torch.eye(n), torch.zeros(1, n)]).double().reshape(n + 1, *shape)
        columns = function(basis).unsqueeze(-1).flatten(1)
    return columns[:-1] - columns[-1]


def bound_of(function, shape):
    """The bound of a map whose output is not a score: a last layer with `lipschitz` = 1 computes the norm of it."""
    norm = Function(lambda y: y.unsqueeze(-1).flatten(1).norm(dim=1))
    norm.lipschitz = 1.0
    module = function if isinstance(function, nn.Module) else Function(function)
    return certified_lipschitz(nn.Sequential(module, norm), shape)


def std_of(layer, gain):
    """The standard deviation in tflib for gain 2 (he_init) or 1 (glorot)."""
    weight, k2 = layer.weight, layer.weight[0, 0].numel()
    if isinstance(layer, nn.Linear):
        return math.sqrt(2 * gain / sum(weight.shape))
    stride = layer.stride[0]
    if isinstance(layer, nn.ConvTranspose2d):
        return math.sqrt(2 * gain / (weight.shape[0] * k2 / stride**2 + weight.shape[1] * k2))
    return math.sqrt(2 * gain / (weight.shape[1] * k2 + weight.shape[0] * k2 / stride**2))


def require_uniform(name, layer, std):
    weight, bound = layer.weight.detach(), math.sqrt(3) * std
    assert weight.abs().max() <= bound, name
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.1), name
    if weight.numel() > 500:
        assert weight.square().mean().sqrt().item() == pytest.approx(std, rel=0.05), name
    assert layer.bias is None or layer.bias.eq(0).all(), name


def require_released_weights(network, glorot):
    """The initial weights are uniform with the std of tflib: gain 1 where the name matches glorot, else gain 2."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            require_uniform(name, layer, std_of(layer, 1 if re.fullmatch(glorot, name) else 2))
