"""Figures 2 and 3: image networks, each cell a command."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from wgangp import config
from wgangp.figures import architectures, cifar_modes, image_runs
from wgangp.figures.architectures import LOSSES, PAIRS, Architectures
from wgangp.figures.cifar_modes import MODES, CIFARModes
from wgangp.figures.image_runs import score_images
from wgangp.figures.study import train_command

CPU = torch.device("cpu")
SMALL = {"width": 4, "batch_size": 4, "samples": 4}


@pytest.fixture(autouse=True)
def _quick(quick_pictures):
    pass


@pytest.fixture
def pairs(small_pictures):
    """Two pairs of networks with two losses, at a tiny size."""
    names = {"pairs": ["DCGAN", "no normalization"], "losses": ["LSGAN", "WGAN-GP"]}
    return Architectures(**names, steps=1, rate_factor=1.0, data_root=str(small_pictures), **SMALL)


@pytest.fixture
def modes(small_pictures):
    return CIFARModes(steps=2, points=1, data="image_folder", data_root=str(small_pictures), **SMALL)


@pytest.mark.parametrize("name", ["pairs", "modes"])
def test_every_cell_is_measured_drawn_and_in_the_table(name, request, tmp_path):
    figure, records = request.getfixturevalue(name), []
    for number, cell in enumerate(figure.cells()):
        numbers = json.loads(json.dumps(figure.measure(cell, 0, tmp_path / f"run-{number}", CPU), allow_nan=False))
        assert numbers["finite"] and numbers["floor"] > 0
        records.append({"seed": 0, **cell, **numbers})
    again, other = (figure.measure(figure.cells()[0], seed, tmp_path / f"again-{seed}", CPU) for seed in (0, 1))
    assert again["distance"] == records[0]["distance"] and again["pictures"] == records[0]["pictures"]
    assert other["distance"] != records[0]["distance"]  # the seed matters
    records += [record | {"seed": 1, "distance": other["distance"]} for record in records]
    figure.draw(tmp_path / "figure.png", records)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 700 and len(image.convert("L").getcolors()) > 20
    rows = figure.table(records)
    assert len({tuple(row) for row in rows}) == 1 and any("+-" in text for row in rows for text in row.values())
    for cell in figure.cells():
        assert all(value in str(rows) for value in cell.values())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_cell_of_figure_2_has_its_networks_its_loss_and_no_batch_norm_with_a_penalty(configure, pair, loss):
    figure = Architectures([pair], [loss], width=4, steps=1, rate_factor=1, batch_size=4, samples=4, data_root="x")
    cfg = configure("experiment=architectures", "data.root=x", *figure.list_overrides(pair, loss))
    networks = configure("experiment=architectures", "data.root=x", f"networks=zoo/{PAIRS[pair]}").networks
    assert cfg.networks.generator == networks.generator
    penalized = loss == "WGAN-GP"
    assert (cfg.penalty.weight, cfg.clip.weights) == (10 if penalized else 0, 0.01 if "clipping" in loss else None)
    norm = "none" if pair == "no normalization" else "layer" if penalized else "batch"
    assert cfg.networks.critic.get("norm") == norm
    name, optimizer = {
        "DCGAN": ("NonSaturating", ("Adam", 2e-4, [0.5, 0.999])),
        "LSGAN": ("LeastSquares", ("RMSProp", 1e-4, None)),
        "WGAN, clipping": ("Wasserstein", ("RMSProp", 5e-5, None)),
        "WGAN-GP": ("Wasserstein", ("Adam", 1e-4, [0.0, 0.9])),
    }[loss]
    assert cfg.loss._target_.endswith(name) and cfg.train.critic_steps == (5 if name == "Wasserstein" else 1)
    assert (cfg.optim._target_.rpartition(".")[2], cfg.optim.lr, cfg.optim.get("betas")) == optimizer


def test_run_that_is_not_finite_is_recorded_and_drawn(pairs, modes, tmp_path, monkeypatch):
    def diverge(folder, overrides):
        raise ValueError("critic_loss is not finite at step 1")

    monkeypatch.setattr(image_runs, "train_command", diverge)
    for figure in (pairs, modes):
        records = [{"seed": 0, **cell, **figure.measure(cell, 0, tmp_path, CPU)} for cell in figure.cells()]
        assert not any(record["finite"] for record in records)
        figure.draw(tmp_path / "figure.png", records)
        assert "not finite" in str(figure.table(records)) or "0 of 1" in str(figure.table(records))


def test_other_errors_of_a_run_are_raised(pairs, tmp_path, monkeypatch):
    def fail(folder, overrides):
        raise ValueError("data.root does not exist")

    monkeypatch.setattr(image_runs, "train_command", fail)
    with pytest.raises(ValueError, match="does not exist"):
        pairs.measure(pairs.cells()[0], 0, tmp_path, CPU)


def test_run_that_is_scored_at_every_point_is_the_run_in_one_piece(modes, tmp_path, monkeypatch):
    calls, modes = [], replace(modes, steps=4, points=2)
    monkeypatch.setattr(image_runs, "train_command", lambda *args: calls.append(args) or train_command(*args))
    record = modes.measure({"mode": "DCGAN"}, 0, tmp_path / "points", CPU)
    assert record["step"] == [2, 4] and 0 < record["elapsed_s"][0] < record["elapsed_s"][1]
    overrides = [override.replace("train.steps=2", "train.steps=4") for override in calls[0][1]]
    run = train_command(tmp_path / "once", overrides)
    assert score_images(run, 4, 4) == {"distance": record["distance"][-1], "floor": record["floor"]}


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"steps = 5: must be a multiple of figure\.points = 2"):
        CIFARModes(width=4, steps=5, points=2)
    with pytest.raises(ValueError, match=r"figure\.losses = \['GAN'\]: one or more of 'DCGAN'"):
        Architectures(["DCGAN"], ["GAN"], width=4, steps=1, rate_factor=1, batch_size=4, samples=4, data_root="x")


@pytest.mark.parametrize("name, width, steps", [("architectures", 64, 200_000), ("cifar_modes", 128, 200_000)])
def test_sizes_of_the_paper_are_one_override_away(configure, name, width, steps):
    root = ["figure.data_root=x"] if name == "architectures" else []
    figure = config.build(configure(f"figure={name}", "budget=paper", *root, name="reproduce"), "figure")
    assert (figure.width, figure.steps, figure.batch_size) == (width, steps, 64)
    assert len(figure.cells()) == {"architectures": 32, "cifar_modes": 4}[name]


def test_modes_are_those_of_the_figure():
    assert list(MODES.values()) == ["cifar_dcgan_clip", "cifar_dcgan_rmsprop", "cifar_dcgan", "cifar_dcgan_dcgan"]
    assert architectures.PAIRS["101-layer ResNet"] == "resnet101" and len(PAIRS) == 8
    assert cifar_modes.SHOWN % cifar_modes.COLUMNS == 0


@pytest.mark.parametrize("factor", [1, 5])
def test_rates_are_the_published_ones_times_the_factor(pairs, modes, configure, tmp_path, monkeypatch, factor):
    rates = []

    def read_rate(folder, overrides):
        rates.append(configure(*overrides).optim.lr)
        raise ValueError("critic_loss is not finite at step 1")

    monkeypatch.setattr(image_runs, "train_command", read_rate)
    figures = replace(pairs, losses=list(LOSSES), rate_factor=factor), replace(modes, rate_factor=factor)
    for figure in figures:
        for cell in figure.cells():
            figure.measure(cell, 0, tmp_path, CPU)
    published = [2e-4, 1e-4, 5e-5, 1e-4] * 2 + [5e-5, 5e-5, 1e-4, 2e-4]
    assert rates == pytest.approx([factor * rate for rate in published])
