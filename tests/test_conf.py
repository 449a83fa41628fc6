"""Every file in conf/ composes, builds and trains; every override that the README shows reaches its object."""

import re

import numpy as np
import pytest
from helpers import WIDTHS, train_run, use_quick_pictures
from omegaconf import OmegaConf

from wgangp import NormalizedGradientDescent
from wgangp.config import CONF, TRUSTED

PATHS = [path.relative_to(CONF).with_suffix("") for path in sorted(CONF.rglob("*.yaml")) if path.parent != CONF]
CHOICES = [  # networks=mlp, networks=zoo/good; the figures are in tests/test_figures.py
    f"{path.parts[0]}={'/'.join(path.parts[1:])}" for path in PATHS if path.parts[0] != "figure"
]
SLOW = ("networks=zoo/resnet101", "experiment=resnet128", "experiment=architectures")
SHORT = ("train.steps=2", "train.batch_size=4", "train.report_size=4", "train.critic_steps=1", "device=cpu")
PARTNERS = {  # choice -> the choice that fits it, and its settings
    "loss=acgan": "experiment=cifar_resnet_conditional",
    "networks=mnist": "data=mnist",
    "networks=cifar_dcgan": "data=cifar10",
    "networks=cifar_resnet": "data=image_folder",
    "networks=deep_dcgan": "data=image_folder",
    "networks=stacked_mnist": "data=stacked_mnist",
    "networks=resnet128": "data=image_folder data.size=128",
    "networks=language": "data=text",
    "data=mnist": "networks=mnist",
    "data=fashion_mnist": "networks=mnist",
    "data=cifar10": "networks=cifar_dcgan",
    "data=image_folder": "networks=cifar_resnet",
    "data=stacked_mnist": "networks=stacked_mnist",
    "experiment=architectures": "data=image_folder",
    "experiment=resnet128": "data=image_folder",
    **{choice: "data=image_folder data.size=64" for choice in CHOICES if choice.startswith("networks=zoo/")},
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


def no_curves(path, records, target, title):
    pass


@pytest.mark.parametrize("choice", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CHOICES])
def test_every_choice_trains(
    configure, tmp_path, monkeypatch, no_trial, small_mnist, small_pictures, small_cifar, choice
):
    # Every kind of data is drawn, and its critic is analyzed. The curves of the log, which take most of the time, are
    # not drawn. A trial would do the same as this training.
    if choice.startswith("data="):
        monkeypatch.setattr("wgangp.plots.save_curves", no_curves)
    else:
        use_quick_pictures(monkeypatch)
        monkeypatch.setattr("wgangp.train.lipschitz_report", lambda *_: {})
    partner = PARTNERS.get(choice, "")
    cfg = configure(*SHORT, choice, *partner.split())
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
        assert {p.name for p in (tmp_path / "samples").iterdir()} == {f"00000000.{kind}", f"00000002.{kind}"}


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_override_reaches_its_object(configure, tmp_path, quick_pictures, quick_reports, no_trial, overrides):
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


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.split("=")[0] in ("networks", "penalty", "optim")])
def test_choice_of_your_own_can_extend_every_choice(configure, tmp_path, choice):
    group, name = choice.split("=")
    (tmp_path / group).mkdir()
    (tmp_path / group / "own.yaml").write_text(f"# mine\ndefaults: [{name}@_here_]\n")
    cfg = configure(f"hydra.searchpath=[file://{tmp_path}]", f"{group}=own")
    assert cfg[group] == configure(choice)[group]


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


ADAM_DCGAN = ("Adam", 2e-4, [0.5, 0.999])
ADAM = ("Adam", 1e-4, [0.5, 0.9])
RMSPROP = ("RMSProp", 5e-5, None)


@pytest.mark.parametrize(
    "experiment, loss, optimizer, critic_steps, weight, bound, norm",
    [
        ("mnist", "Wasserstein", ADAM, 5, 10, None, (False, False)),
        ("mnist_clip", "Wasserstein", RMSPROP, 5, 0, 0.01, (True, True)),
        ("mnist_dcgan", "NonSaturating", ADAM_DCGAN, 1, 0, None, (False, False)),
        ("cifar_dcgan", "Wasserstein", ADAM, 5, 10, None, (True, False)),
        ("cifar_dcgan_rmsprop", "Wasserstein", RMSPROP, 5, 10, None, (True, False)),
        ("cifar_dcgan_clip", "Wasserstein", RMSPROP, 5, 0, 0.01, (True, True)),
        ("cifar_dcgan_dcgan", "NonSaturating", ADAM_DCGAN, 1, 0, None, (True, True)),
    ],
)
def test_modes_have_the_settings_of_the_released_code(
    configure, experiment, loss, optimizer, critic_steps, weight, bound, norm
):
    """The norms are those of generator and critic."""
    cfg = configure(f"experiment={experiment}")
    assert cfg.loss._target_ == f"wgangp.losses.{loss}"
    name, lr, betas = optimizer
    assert (cfg.optim._target_.rpartition(".")[2], cfg.optim.lr, cfg.optim.get("betas")) == (name, lr, betas)
    assert (cfg.train.critic_steps, cfg.penalty.weight, cfg.clip.weights) == (critic_steps, weight, bound)
    assert (cfg.networks.generator.norm, cfg.networks.critic.norm) == norm
    assert cfg.train.batch_size == (50 if experiment.startswith("mnist") else 64)


def test_conditional_resnet_has_the_settings_of_the_released_code(configure):
    cfg = configure("experiment=cifar_resnet_conditional")
    unconditional = configure("experiment=cifar_resnet")
    assert cfg.networks.generator.classes == cfg.networks.critic.classes == 10
    assert (cfg.loss.critic_weight, cfg.loss.generator_weight) == (1.0, 0.1)
    assert cfg.train == unconditional.train and cfg.optim == unconditional.optim and cfg.penalty.weight == 10
    assert (cfg.train.batch_size, cfg.train.generator_batch_size) == (64, 128)


@pytest.mark.parametrize(
    "experiment, cpu, paper",
    [
        ("toy_released", None, None),
        ("mnist", None, None),
        ("mnist_clip", None, None),
        ("mnist_dcgan", None, None),
        ("cifar_dcgan", None, None),
        ("cifar_dcgan_rmsprop", None, None),
        ("cifar_dcgan_clip", None, None),
        ("cifar_dcgan_dcgan", None, None),
        ("cifar_resnet", 2000, 100_000),
        ("cifar_resnet_conditional", 2000, 100_000),
        ("random_architectures", None, None),
        ("stacked_mnist", None, None),
        ("architectures", None, None),
        ("resnet128", 300, 200_000),
        ("language", None, None),
    ],
)
def test_experiments_have_the_decay_of_the_released_code_and_no_average(configure, experiment, cpu, paper):
    for budget, decay_steps in (("cpu", cpu), ("paper", paper)):
        cfg = configure(f"experiment={experiment}", f"budget={budget}")
        assert cfg.train.decay_steps == decay_steps and cfg.ema.decay is None
    assert configure(f"experiment={experiment}", "train.steps=7").train.decay_steps == paper


@pytest.mark.parametrize("experiment", ["cifar_resnet", "cifar_resnet_conditional"])
def test_small_residual_networks_have_one_critic_update_and_a_decay_over_the_run(configure, experiment):
    cfg = configure(f"experiment={experiment}", "budget=cpu", "train.steps=70")
    train = cfg.train
    assert (train.critic_steps, train.batch_size, train.generator_batch_size, train.decay_steps) == (1, 64, 64, 70)
    assert cfg.optim.lr == 5e-4
    assert configure("experiment=resnet128", "budget=cpu", "train.steps=70").train.decay_steps == 70


def test_every_experiment_is_in_the_test_of_its_decay():
    (marker,) = (m for m in test_experiments_have_the_decay_of_the_released_code_and_no_average.pytestmark)
    assert {row[0] for row in marker.args[1]} == {path.stem for path in (CONF / "experiment").glob("*.yaml")}


def test_default_run_decays_until_its_last_update(configure):
    assert configure().train.decay_steps == 4000
    assert configure("train.steps=7").train.decay_steps == 7
    assert configure("train.steps=7", "train.decay_steps=null").train.decay_steps is None


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_has_a_small_version_and_it_is_the_paper_that_is_the_default(configure, path):
    default, paper, cpu = (
        configure(f"experiment={path.stem}", *budget) for budget in ([], ["budget=paper"], ["budget=cpu"])
    )
    assert OmegaConf.to_container(default, resolve=True) == OmegaConf.to_container(paper, resolve=True)
    assert cpu.train.steps < paper.train.steps
    for network in ("generator", "critic"):
        assert cpu.networks[network].width < paper.networks[network].width
    assert cpu.train.log_every <= cpu.train.steps and cpu.train.sample_every <= cpu.train.steps
