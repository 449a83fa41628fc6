"""Every file in conf/ composes, builds and trains; every override that the README shows reaches its object."""

import re

import numpy as np
import pytest
from helpers import WIDTHS, train_run, use_quick_pictures
from omegaconf import OmegaConf

from wgangp import NormalizedGradientDescent
from wgangp.config import CONF, TRUSTED

CHOICES = [
    f"{p.parent.relative_to(CONF)}={p.stem}"
    for p in sorted(CONF.rglob("*.yaml"))
    if p.parent != CONF and p.parent.name != "figure"  # these are in tests/test_figures.py
]
SHORT = ("train.steps=1", "train.batch_size=4", "train.report_size=4", "train.critic_steps=2", "device=cpu")
PARTNERS = {  # choice -> the choice that fits it
    "networks=mnist": "data=mnist",
    "networks=cifar_dcgan": "data=cifar10",
    "networks=cifar_resnet": "data=image_folder",
    "networks=language": "data=text",
    "data=mnist": "networks=mnist",
    "data=fashion_mnist": "networks=mnist",
    "data=cifar10": "networks=cifar_dcgan",
    "data=image_folder": "networks=cifar_resnet",
    "data=text": "networks=language",
}
OVERRIDES = [
    ("penalty.weight=0.1",),
    ("penalty.sides=one",),
    ("penalty.points=real", "penalty.target=0"),
    ("penalty.weight=0", "clip.weights=0.01", "optim=rmsprop"),
    ("train.critic_steps=10",),
    ("seed=3",),
    ("clip.gradient_norm=1.0",),
    ("optim=normalized",),
    ("regularize.gradient_norm=0.01",),
    ("penalty.points=perturbed",),
    ("penalty.points=fake",),
]
EXPLAINED_BY_HEADER = ("experiment",)  # whose keys are explained in conf/config.yaml


def no_curves(path, records, target):
    pass


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_trains(configure, tmp_path, monkeypatch, small_mnist, small_pictures, small_cifar, choice):
    # Every kind of data is drawn. The curves of the log, which take most of the time, are not.
    if choice.startswith("data="):
        monkeypatch.setattr("wgangp.plots.save_curves", no_curves)
    else:
        use_quick_pictures(monkeypatch)
    partner = PARTNERS.get(choice, "")
    cfg = configure(*SHORT, choice, *filter(None, [partner]))
    if "root" in cfg.data or OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = str(small_pictures if "image_folder" in choice + partner else small_mnist)
    if OmegaConf.is_missing(cfg.data, "path"):
        cfg.data.path = str(tmp_path / "text.txt")
        (tmp_path / "text.txt").write_text("".join(f"line {i}\n" for i in range(40)))
    if choice == "data=korotin":
        np.savez(tmp_path / "pairs.npz", d2_n4_centers=np.eye(4, 2, dtype="f4"), d2_n4_bias=np.zeros(4, dtype="f4"))
        cfg.data.root = str(tmp_path)
    for name in ("generator", "critic"):
        cfg.networks[name].width = 4
    train_run(cfg, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    if choice.startswith("data="):
        kind = "txt" if choice == "data=text" else "png"
        assert {p.name for p in (tmp_path / "samples").iterdir()} == {f"00000000.{kind}", f"00000001.{kind}"}


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_override_reaches_its_object(configure, tmp_path, quick_pictures, overrides):
    cfg = configure(*SHORT, *WIDTHS, *overrides)
    run = train_run(cfg, tmp_path)
    assert (run.penalty.weight, run.penalty.sides, run.penalty.points, run.penalty.target) == (
        cfg.penalty.weight,
        cfg.penalty.sides,
        cfg.penalty.points,
        cfg.penalty.target,
    )
    if "clip.weights=0.01" in overrides:
        assert max(p.abs().max() for p in run.critic.parameters()) <= 0.01
    if "optim=normalized" in overrides:
        assert isinstance(run.optim_critic, NormalizedGradientDescent)


def test_every_root_config_composes(configure):
    for path in CONF.glob("*.yaml"):
        figure = ["figure=penalties"] if path.stem == "reproduce" else []
        assert configure(*figure, name=path.stem)


def test_every_folder_is_a_group_of_the_schema():
    assert {p.name for p in CONF.iterdir() if p.is_dir()} == {*TRUSTED, "experiment"}


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_has_a_command_and_a_source(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python scripts/train.py experiment={path.stem}")
    assert "Paper:" in lines[2] or "Differs:" in lines[2]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_and_key_is_explained(path):
    header, *lines = path.read_text().splitlines()
    assert header.startswith("# ")
    if path.parent.name in EXPLAINED_BY_HEADER:
        return
    block = ""
    for line in lines:
        key = re.match(r"( *)([\w/]+):", line)
        if key and not key[1]:
            block = key[2]
        if not key or block in ("defaults", "hydra") or key[2] == "_target_" or line.endswith(":"):
            continue
        assert re.search(r" # \S", line), f"{line} has no comment"


def test_released_clipping_run_has_batch_norm_and_no_penalty(configure):
    cfg = configure("experiment=mnist_clip")
    assert cfg.networks.critic.norm and cfg.networks.generator.norm
    assert cfg.penalty.weight == 0 and cfg.clip.weights == 0.01 and cfg.optim._target_ == "wgangp.optim.RMSProp"


@pytest.mark.parametrize(
    "experiment, cpu, paper",
    [
        ("toy_released", None, None),
        ("mnist", None, None),
        ("mnist_clip", None, None),
        ("cifar_dcgan", None, None),
        ("cifar_resnet", 300, 100_000),
        ("language", None, None),
    ],
)
def test_experiments_have_the_decay_of_the_released_code_and_no_average(configure, experiment, cpu, paper):
    for budget, decay_steps in (("cpu", cpu), ("paper", paper)):
        cfg = configure(f"experiment={experiment}", f"budget={budget}")
        assert cfg.train.decay_steps == decay_steps and cfg.ema.decay is None
    assert configure(f"experiment={experiment}", "train.steps=7").train.decay_steps == paper


def test_every_experiment_is_in_the_test_of_its_decay():
    names = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    assert names == {"toy_released", "mnist", "mnist_clip", "cifar_dcgan", "cifar_resnet", "language"}


def test_default_run_decays_until_its_last_update(configure):
    assert configure().train.decay_steps == 4000
    assert configure("train.steps=7").train.decay_steps == 7
    assert configure("train.steps=7", "train.decay_steps=null").train.decay_steps is None
