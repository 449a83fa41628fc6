"""Every file in conf/ composes, builds and runs a step; every override that the README promises does what it says."""

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from wgangp import NormalizedGradientDescent, config
from wgangp.train import train

CONF = ROOT / "conf"
CHOICES = [
    f"{p.parent.relative_to(CONF)}={p.stem}"
    for p in sorted(CONF.rglob("*.yaml"))
    if p.parent.name not in ("conf", "figure")  # tests/test_figures.py has those
]
TOY = ("networks.generator.width=8", "networks.critic.width=8")
SHORT = ("train.steps=1", "train.batch_size=4", "train.report_size=4", "train.critic_steps=2", "device=cpu")
PROMISED = [
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


def run(configure, folder, root, *overrides):
    cfg = configure(*SHORT, *overrides)
    if "root" in cfg.data or OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = str(root)
        for player in ("generator", "critic"):
            cfg.networks[player].width = 4
    players = config.objects(cfg)
    assert train(folder, **players, **config.train_options(cfg)) == 1
    return cfg, players


def test_every_folder_of_conf_is_a_group_of_the_schema():
    groups = {p.name for p in CONF.iterdir() if p.is_dir()}
    assert groups == {"data", "networks", "loss", "penalty", "optim", "experiment", "figure"}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_runs_a_step(configure, tmp_path, small_mnist, small_pictures, small_cifar, choice):
    fitting = {"networks=mnist": "data=mnist", "data=mnist": "networks=mnist", "data=fashion_mnist": "networks=mnist"}
    fitting |= {"networks=cifar_dcgan": "data=cifar10", "networks=cifar_resnet": "data=image_folder"}
    fitting |= {"data=cifar10": "networks=cifar_dcgan", "data=image_folder": "networks=cifar_resnet"}
    pictures = any(word in choice for word in ("mnist", "cifar", "image", "networks", "experiment"))
    root = small_pictures if "image_folder" in choice + fitting.get(choice, "") else small_mnist
    run(configure, tmp_path, root, choice, *filter(None, [fitting.get(choice)]), *(() if pictures else TOY))
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("overrides", PROMISED, ids=" ".join)
def test_every_promised_override_runs_and_reaches_what_it_names(configure, tmp_path, overrides):
    cfg, players = run(configure, tmp_path, None, *TOY, *overrides)
    penalty = players["penalty"]
    assert (penalty.weight, penalty.sides, penalty.points, penalty.target) == (
        cfg.penalty.weight,
        cfg.penalty.sides,
        cfg.penalty.points,
        cfg.penalty.target,
    )
    if "clip.weights=0.01" in overrides:
        assert max(p.abs().max() for p in players["critic"].parameters()) <= 0.01
    if "optim=normalized" in overrides:
        assert isinstance(players["optim_critic"], NormalizedGradientDescent)


def test_every_other_config_composes(configure):
    for path in CONF.glob("*.yaml"):
        figure = ["figure=penalties"] if path.stem == "reproduce" else []
        assert configure(*figure, name=path.stem)


def test_every_experiment_and_key_explains_itself():
    for path in (CONF / "experiment").glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0] == "# @package _global_" and lines[1].startswith("# python scripts/train.py experiment=")
        assert "Paper:" in lines[2] or "Differs:" in lines[2]
    for path in CONF.glob("*.yaml"):
        inside = False
        for line in path.read_text().splitlines():
            inside = line.startswith(
                (
                    "train:",
                    "clip:",
                    "regularize:",
                    "seed",
                    "device",
                    "run",
                    "what",
                    "n:",
                    "out",
                    "starts",
                    "ascent",
                    "budget",
                )
            ) or (inside and line.startswith("  "))
            if inside and not line.endswith(":"):
                assert "#" in line, f"{path.name}: {line} has no comment"


def test_the_released_clipping_run_has_batch_norm_and_no_penalty(configure):
    cfg = configure("experiment=mnist_clip")
    assert cfg.networks.critic.norm and cfg.networks.generator.norm
    assert cfg.penalty.weight == 0 and cfg.clip.weights == 0.01 and cfg.optim._target_ == "torch.optim.RMSprop"
