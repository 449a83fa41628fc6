"""Figure 2: pairs of image networks, each cell a command; and what figures of image runs share."""

import json
import shlex
from dataclasses import replace

import pytest
import torch
from PIL import Image

from wgangp import config
from wgangp.figures import image_runs
from wgangp.figures.architectures import LOSSES, PAIRS, Architectures
from wgangp.figures.image_runs import draw_samples, score_images, show_samples
from wgangp.generate import generate_batches
from wgangp.metrics import scores
from wgangp.metrics.features import compare_features, extract_features, to_bytes
from wgangp.plots import open_figure

CPU = torch.device("cpu")
SMALL = {"width": 4, "batch_size": 4, "samples": 12}


@pytest.fixture(autouse=True)
def _quick(quick_pictures, quick_reports, small_features):
    pass


@pytest.fixture
def figure(small_pictures):
    """Two pairs of networks with two losses, at a tiny size."""
    names = {"pairs": ["DCGAN", "no normalization"], "losses": ["LSGAN", "WGAN-GP"]}
    return Architectures(**names, steps=1, rate_factor=1.0, data_root=str(small_pictures), **SMALL)


def test_every_cell_is_measured_drawn_and_in_the_table(figure, tmp_path):
    figure, records = replace(figure, pairs=["DCGAN"]), []
    for number, cell in enumerate(figure.cells()):
        numbers = json.loads(json.dumps(figure.measure(cell, 0, tmp_path / f"run-{number}", CPU), allow_nan=False))
        assert numbers["finite"]
        assert numbers["fid"] > 0
        assert numbers["real_fid"] is None  # 4 images are held out, and all others are the reference
        assert numbers["facts"]["reference"] == "the 36 images of train"
        records.append({"seed": 0, **cell, **numbers})
    again, other = (figure.measure(figure.cells()[0], seed, tmp_path / f"again-{seed}", CPU) for seed in (0, 1))
    assert again["fid"] == records[0]["fid"]
    assert again["pictures"] == records[0]["pictures"]
    assert other["fid"] != records[0]["fid"]  # the seed matters
    records += [record | {"seed": 1, "fid": other["fid"]} for record in records]
    figure.draw(tmp_path / "figure.png", records)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 700
        assert len(image.convert("L").getcolors()) > 20
    rows = figure.table(records)
    assert len({tuple(row) for row in rows}) == 1
    assert "+-" in rows[0]["LSGAN"]
    for cell in figure.cells():
        assert all(value in str(rows) for value in cell.values())
    assert rows[-2]["networks"] == "no run: too few real images to compare"
    for loss in figure.losses:
        assert rows[-1][loss] == f"`scripts/train.py {shlex.join(figure.list_overrides(figure.pairs[0], loss))}`"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_cell_of_figure_2_has_its_networks_its_loss_and_no_batch_norm_with_a_penalty(configure, pair, loss):
    figure = Architectures([pair], [loss], width=4, steps=1, rate_factor=1, batch_size=4, samples=12, data_root="x")
    cfg = configure(*figure.list_overrides(pair, loss))
    small = ("networks.generator.width=4", "networks.critic.width=4")
    networks = configure("experiment=architectures", "data.root=x", f"networks=zoo/{PAIRS[pair]}", *small).networks
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


def test_run_that_is_not_finite_is_recorded_and_drawn(figure, tmp_path, monkeypatch):
    def diverge(folder, overrides, check):
        raise ValueError("critic_loss is not finite at step 1")

    monkeypatch.setattr(image_runs, "train_command", diverge)
    records = [{"seed": 0, **cell, **figure.measure(cell, 0, tmp_path, CPU)} for cell in figure.cells()]
    assert not any(record["finite"] for record in records)
    figure.draw(tmp_path / "figure.png", records)
    assert figure.table(records)[0]["LSGAN"] == "not finite"


def test_other_errors_of_a_run_are_raised(figure, tmp_path, monkeypatch):
    def fail(folder, overrides, check):
        raise ValueError("data.root does not exist")

    monkeypatch.setattr(image_runs, "train_command", fail)
    with pytest.raises(ValueError, match="does not exist"):
        figure.measure(figure.cells()[0], 0, tmp_path, CPU)


def test_too_few_images_are_named_before_the_training(figure, tmp_path, monkeypatch):
    monkeypatch.undo()  # the score of the package, which needs 1,281 images
    figure = replace(figure, samples=1_281)
    with pytest.raises(ValueError, match="images of reference = train are too few"):
        figure.measure(figure.cells()[0], 0, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_are_refused(monkeypatch):
    names = {"pairs": ["DCGAN"], "width": 4, "steps": 1, "rate_factor": 1, "batch_size": 4, "data_root": "x"}
    with pytest.raises(ValueError, match=r"figure\.losses = \['GAN'\]: one or more of 'DCGAN'"):
        Architectures(losses=["GAN"], samples=12, **names)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"figure\.samples = 1280: must be >= 1,281"):
        Architectures(losses=["LSGAN"], samples=1_280, **names)


def test_sizes_of_the_paper_are_one_override_away(configure):
    cfg = configure("figure=architectures", "budget=paper", "figure.data_root=x", name="reproduce")
    figure = config.build(cfg, "figure")
    assert (figure.width, figure.steps, figure.batch_size) == (64, 200_000, 64)
    assert len(figure.cells()) == 32


def test_pairs_are_those_of_the_figure_and_the_released_default():
    assert len(PAIRS) == 8
    assert PAIRS["101-layer ResNet"] == "resnet101"


@pytest.mark.parametrize("factor", [1, 5])
def test_rates_are_the_published_ones_times_the_factor(figure, configure, tmp_path, monkeypatch, factor):
    rates = []

    def read_rate(folder, overrides, check):
        rates.append(configure(*overrides).optim.lr)
        raise ValueError("critic_loss is not finite at step 1")

    monkeypatch.setattr(image_runs, "train_command", read_rate)
    figure = replace(figure, losses=list(LOSSES), rate_factor=factor)
    for cell in figure.cells():
        figure.measure(cell, 0, tmp_path, CPU)
    assert rates == pytest.approx([factor * rate for rate in [2e-4, 1e-4, 5e-5, 1e-4] * 2])


SMALL_RUN = (
    *("networks.generator.width=4", "networks.critic.width=4", "train.batch_size=4", "train.report_size=4"),
    *("train.steps=1", "train.decay_steps=null", "device=cpu"),
)


def test_scores_are_those_of_samples_beside_the_held_out_images(configure, small_pictures):
    data = ("data=image_folder", f"data.root={small_pictures}")
    run = config.build_run(configure("experiment=cifar_dcgan", *data, *SMALL_RUN))
    run.data.pictures["heldout"] = run.data.pictures["train"][:20] // 2
    run.data.labels["heldout"] = run.data.labels["train"][:20]
    numbers = score_images(run, 14)
    run.generator.eval()
    space = scores.load_efficientnet()
    x = extract_features(space, [to_bytes(x, (-1.0, 1.0)) for x in generate_batches(run, 14, 0)])
    direct = compare_features(x, extract_features(space, [run.data.pictures["heldout"]]), "direct")
    assert numbers["is"] == pytest.approx(direct["direct_is"])
    assert numbers["fid"] == pytest.approx(direct["direct_fid"], rel=1e-6)
    assert numbers["real_fid"] > 0
    assert numbers["facts"]["n"] == 14


def test_samples_of_a_run_with_classes_have_one_row_per_class(configure, tmp_path, labeled_config):
    run = config.build_run(labeled_config)
    text = show_samples(run, tmp_path, 8, 4)  # three classes: two samples of each
    with Image.open(tmp_path / "samples.png") as image:
        assert image.size == (2 * 9 + 1, 3 * 9 + 1)
    with open_figure(tmp_path / "figure.png", 2.0) as page:
        draw_samples(page.subplots(), text)


def test_text_is_drawn_in_two_columns_of_equal_width(tmp_path):
    with open_figure(tmp_path / "figure.png", 2.0) as page:
        axes = page.subplots()
        draw_samples(axes, ["to be or", "not", "$ that _ is", "the", "question"])
        lines = axes.texts[0].get_text().split("\n")
    assert lines == ["to be or      the", "not           question", "$ that _ is   "]
