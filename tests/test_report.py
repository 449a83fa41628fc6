"""The log line and the picture of a run at a step, for labeled and for unlabeled networks."""

import copy
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import TINY
from labeled import WithClassifier, labeled_run
from matplotlib.axes import Axes
from PIL import Image
from torch import nn

from wgangp import GradientPenalty, config, plots
from wgangp.certify import certified_lipschitz
from wgangp.lipschitz import largest_quotient
from wgangp.logs import append_line
from wgangp.losses import ACGAN, LeastSquares, NonSaturating, Wasserstein
from wgangp.networks import layers
from wgangp.networks.resnet import ResNetCritic
from wgangp.optim import build_average
from wgangp.report import draw_curves, lipschitz_report, picture, report
from wgangp.runs import expects_slope
from wgangp.seeds import draw_latent, rng_for
from wgangp.step import critic_objective, generator_objective

IMAGE = (1, 4, 4)
LOSSES = pytest.mark.parametrize("loss", [Wasserstein(), WithClassifier()], ids=lambda loss: type(loss).__name__)


@pytest.fixture
def toy_run(configure):
    """toy_run("penalty.weight=0", ...) builds an untrained run on 8 Gaussians."""
    return lambda *overrides: config.build_run(configure(*TINY, *overrides))


def copy_state(run):
    """All that a report could change: weights, gradients, optimizer state, the global random numbers."""
    networks, optimizers = (run.generator, run.critic), (run.optim_generator, run.optim_critic)
    return copy.deepcopy(
        [
            *(part.state_dict() for part in (*networks, *optimizers)),
            [(p.grad, p.requires_grad) for network in networks for p in network.parameters()],
            torch.get_rng_state().tolist(),
        ]
    )


def picture_size(path):
    with Image.open(path) as image:
        return image.size


@LOSSES
def test_report_of_a_labeled_run_has_the_terms_of_its_batches(loss):
    """Fake samples of the critic's terms have the labels of the real batch; those of the generator's are drawn."""
    run, step, size = labeled_run(loss=loss), 3, 12
    values = report(run, step, size)
    z, y = draw_latent(run.generator, size, run.seed, step, "report")
    for split, prefix in (("train", ""), ("heldout", "heldout_")):
        real, labels = run.data.batch(step, size, run.seed, split, purpose="report")
        fake, eps = run.generator(z, labels), run.penalty.draw(real, rng_for(run.seed, step, f"eps/{split}"))
        terms = critic_objective(run.critic, real, fake, eps, labels, loss=loss)
        assert {name: values[prefix + name] for name in terms} == {name: t.item() for name, t in terms.items()}
    for name, term in generator_objective(run.generator, run.critic, z, y, loss=loss).items():
        assert values[name] == term.item()
    assert ("wasserstein" in values) == ("heldout_wasserstein" in values) == (type(loss) is Wasserstein)
    assert values["critic_param_grad_norm"] > 0 and values["generator_param_grad_norm"] > 0
    assert 0 < values["slope_real_mean"] <= values["slope_real_max"]


@LOSSES
def test_report_of_a_labeled_run_is_repeatable_and_changes_nothing(loss, tmp_path):
    run = labeled_run(IMAGE, loss=loss)
    before = copy_state(run)
    values = report(run, 1, 8)
    lipschitz_report(run, 1, 8)
    append_line(tmp_path / "metrics.jsonl", {"step": 1, **values})
    picture(tmp_path, run, 1)
    draw_curves(tmp_path, run)
    torch.testing.assert_close(copy_state(run), before, rtol=0, atol=0)
    assert report(run, 1, 8) == values
    assert report(run, 2, 8) != values


def test_lipschitz_report_is_empty_for_a_labeled_run():
    assert lipschitz_report(labeled_run(), 0, 8) == {}


def test_lipschitz_report_is_empty_for_a_critic_with_the_released_batch_norm(toy_run):
    run = toy_run("penalty.weight=0")
    assert lipschitz_report(run, 0, 8).keys() >= {"largest_quotient", "certified_lipschitz"}
    critic = nn.Sequential(nn.Linear(2, 4), layers.BatchNorm(4), nn.Linear(4, 1), nn.Flatten(0))
    assert lipschitz_report(replace(run, critic=critic), 0, 8) == {}
    critic[1] = nn.BatchNorm1d(4)  # in eval mode it is affine
    values = lipschitz_report(replace(run, critic=critic), 0, 8)
    assert 0 < values["largest_quotient"] <= values["certified_lipschitz"]


@pytest.mark.parametrize(
    "change",
    [
        {"penalty": GradientPenalty(weight=0.0)},
        {"penalty": GradientPenalty(target=0.0)},
        {"loss": NonSaturating()},
        {"loss": ACGAN(LeastSquares())},
    ],
    ids=["no penalty", "target 0", "another loss", "AC-GAN with another loss"],
)
def test_expected_slope_is_reported_only_for_the_wasserstein_loss_and_a_penalty_with_target_1(toy_run, change):
    run = toy_run()
    for step in range(20):  # the gap must be positive
        if "expected_slope" in lipschitz_report(run, step, 8):
            break
    else:
        pytest.fail("no step has an expected slope")
    assert expects_slope(replace(run, loss=ACGAN(run.loss)))
    values = lipschitz_report(replace(run, **change), step, 8)
    assert not values.keys() & {"expected_slope", "corrected_wasserstein"}


class Shifted(nn.Module):
    """A generator whose samples are all at one point. The class lists the mode of every call."""

    latent_dim = 2
    modes: ClassVar[list[bool]] = []

    def __init__(self, point):
        super().__init__()
        self.point = nn.Parameter(torch.tensor(point))

    def forward(self, z):
        self.modes.append(self.training)
        return self.point + 0 * z


def test_samples_are_of_the_average_and_losses_of_the_generator(toy_run, tmp_path, monkeypatch):
    run = toy_run()
    on_a_mode = Shifted(run.data.centers[3].tolist())
    averaged = replace(run, average=build_average(on_a_mode, 0.5))
    plain, values = report(run, 1, 16), report(averaged, 1, 16)
    assert (values["modes"], values["high_quality"]) == (1, 1.0) and plain["high_quality"] < 1
    names = plain.keys() - {"modes", "high_quality"}
    assert {name: plain[name] for name in names} == {name: values[name] for name in names}
    assert lipschitz_report(run, 1, 16) == lipschitz_report(averaged, 1, 16)
    drawn = []
    monkeypatch.setattr("wgangp.plots.save_value_surface", lambda path, critic, real, fake, *_: drawn.append(fake))
    picture(tmp_path, averaged, 1)
    torch.testing.assert_close(drawn[0], run.data.centers[3].expand(512, 2))
    assert averaged.average.module.training and len(Shifted.modes) >= 2 and not any(Shifted.modes)


@LOSSES
def test_picture_of_a_labeled_run_shows_the_same_noise_and_labels_at_every_step(loss, tmp_path):
    run = labeled_run(IMAGE, loss=loss)
    for step in (0, 5):
        picture(tmp_path, run, step)
    pictures = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in pictures] == ["00000000.png", "00000005.png"]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert picture_size(pictures[0]) == (42 * 5 + 1, 3 * 5 + 1)  # 3 classes, 42 images of 4 x 4 each


def test_picture_of_a_labeled_run_has_one_row_per_class(tmp_path):
    run = labeled_run(IMAGE)
    run.generator.forward = lambda z, y: y.view(-1, 1, 1, 1).expand(len(z), *IMAGE).float()
    picture(tmp_path, run, 0)
    with Image.open(tmp_path / "samples" / "00000000.png") as grid:
        rows = np.asarray(grid)[1:, 1:].reshape(3, 5, 42, 5)[:, :4, :, :4]  # 4 pixels and one between, per image
    low, high = run.data.span
    expected = [round((y - low) * 255 / (high - low)) for y in range(3)]
    assert [set(row.ravel().tolist()) for row in rows] == [{value} for value in expected]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_that_are_neither_gray_nor_rgb_have_no_picture(channels, tmp_path):
    run = labeled_run((channels, 4, 4))
    append_line(tmp_path / "metrics.jsonl", {"step": 0, **report(run, 0, 4)})
    picture(tmp_path, run, 0)
    draw_curves(tmp_path, run)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["00000000.png"] * (channels in (1, 3))
    assert (tmp_path / "curves.png").exists()


def test_curves_of_a_log_without_wasserstein_have_the_penalty_alone(tmp_path, monkeypatch):
    records = [
        {"step": step, **report(labeled_run(loss=loss), step, 8)}
        for loss in (Wasserstein(), WithClassifier())
        for step in (0, 1)
    ]
    assert "wasserstein" in records[0] and "wasserstein" not in records[2]
    labels = []
    draw_line = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **style: labels.append(style["label"]) or draw_line(*args, **style))
    plots.save_curves(tmp_path / "with.png", records[:2], target=1.0)
    assert labels[2:4] == ["wasserstein", "penalty"]
    labels.clear()
    plots.save_curves(tmp_path / "without.png", records[2:], target=1.0)
    assert labels[2:4] == ["penalty", "real"] and picture_size(tmp_path / "without.png")[0] > 1000


def test_picture_of_labeled_points_in_the_plane_shows_the_points(tmp_path):
    picture(tmp_path, labeled_run((2,)), 0)
    assert (tmp_path / "samples" / "00000000.png").exists()


@pytest.mark.parametrize("budget", ["paper", "cpu"])
def test_curves_of_a_small_version_say_so(tmp_path, monkeypatch, budget):
    titles = []
    monkeypatch.setattr("wgangp.plots.save_curves", lambda path, records, target, title: titles.append(title))
    (tmp_path / "config.yaml").write_text(f"seed: 0\nbudget: {budget}\nloss: 0\n")
    append_line(tmp_path / "metrics.jsonl", {"step": 0})
    draw_curves(tmp_path, labeled_run(IMAGE))
    assert ("budget=cpu: smaller" in titles[0]) == (budget == "cpu")


def draw_small(folder, run):
    """The pictures of a run with budget=paper and with budget=cpu."""
    for budget in ("paper", "cpu"):
        (folder / budget).mkdir()
        (folder / budget / "config.yaml").write_text(f"seed: 0\nbudget: {budget}\nloss: 0\n")
        picture(folder / budget, run, 1)
    return [next((folder / budget / "samples").iterdir()) for budget in ("paper", "cpu")]


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_of_a_small_version_says_so_below_the_samples(tmp_path, channels):
    paths = draw_small(tmp_path, labeled_run((channels, 4, 4)))
    paper, small = (np.asarray(Image.open(path).convert("L")) for path in paths)
    height, width = paper.shape
    assert small.shape == (height + 13, max(width, 300))
    np.testing.assert_array_equal(small[:height, :width], paper)
    strip = small[height:, 2:]
    assert strip.max() > 200 and 150 < (strip > 100).any(0).nonzero()[0].max() < 297  # the whole of the text


def test_title_of_points_of_a_small_version_says_so(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "wgangp.plots.save_points", lambda path, x, span, title: titles.append(title) or path.write_text("")
    )
    draw_small(tmp_path, labeled_run((2,)))
    assert titles == ["1 generator updates", "1 generator updates, budget=cpu"]


def test_lipschitz_report_of_labeled_critics_needs_a_score_without_labels(monkeypatch):
    run = labeled_run(IMAGE)
    assert lipschitz_report(run, 0, 4) == {}
    critic = ResNetCritic((3, 32, 32), width=4, classes=3)
    run = replace(labeled_run((3, 32, 32)), critic=critic)
    values = lipschitz_report(run, 0, 4)
    real, y = run.data.batch(0, 4, run.seed, "heldout", purpose="lipschitz")
    fake = run.generator(draw_latent(run.generator, 4, run.seed, 0, "lipschitz")[0], y).detach()
    assert values["largest_quotient"] == largest_quotient(critic, torch.cat([real, fake]))
    assert values["certified_lipschitz"] == certified_lipschitz(critic, (3, 32, 32))


class InPlace(nn.Module):
    """A generator that doubles its noise, in place or not."""

    def __init__(self, generator, in_place):
        super().__init__()
        self.generator, self.in_place, self.latent_dim = generator, in_place, generator.latent_dim

    def forward(self, z):
        return self.generator(z.mul_(2) if self.in_place else z * 2)


def test_log_of_a_generator_that_changes_its_noise_in_place_is_that_of_one_that_does_not(toy_run):
    run = toy_run()
    first, second = (report(replace(run, generator=InPlace(run.generator, x)), 0, 16) for x in (True, False))
    assert first == second
