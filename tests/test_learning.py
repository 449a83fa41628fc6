"""Every kind of run learns: a short run moves the samples to the held-out data, for each of several seeds."""

import numpy as np
import pytest
import torch
from helpers import WIDTHS, train_run
from PIL import Image

from wgangp.data.images import Images
from wgangp.report import report
from wgangp.seeds import draw_latent

pytestmark = pytest.mark.slow
FOLDER = ("data=image_folder", "data.channels=3")
SHORT = (
    *("optim.lr=1e-3", "train.decay_steps=null", "device=cpu"),
    *("train.batch_size=12", "train.generator_batch_size=null", "train.report_size=12"),
    *(f"train.{name}_every=1000" for name in ("log", "checkpoint", "lipschitz")),
)
COLORS = ((200, 40, 40), (40, 60, 200))  # of the two classes


@pytest.fixture
def squares(tmp_path):
    """squares(size) -> a folder with two classes of images: a bright square of one color on black."""

    def make(size):
        rng = np.random.default_rng(0)
        for label, color in enumerate(COLORS):
            folder = tmp_path / "squares" / str(label)
            folder.mkdir(parents=True)
            for i in range(60):
                pixels = np.zeros((size, size, 3))
                top, left = rng.integers(size // 8, size // 2, 2)
                pixels[top : top + size // 3, left : left + size // 3] = color
                pixels += rng.uniform(0, 20, pixels.shape)
                Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{i}.png")
        return tmp_path / "squares"

    return make


def compute_distance(run):
    """W1 between 12 generated and 12 held-out images along random directions: the mean over 512 of them."""
    real, *_ = run.data.batch(0, 12, 0, "heldout", purpose="score")
    with torch.no_grad():
        fake = run.generator(*draw_latent(run.generator, 12, run.seed, 0, "score"))
    directions = torch.randn(real[0].numel(), 512, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=0)
    first, second = ((x.flatten(1) @ directions).sort(0).values for x in (real, fake))
    return (first - second).abs().mean().item()


@pytest.mark.parametrize("seed", range(2))
def test_default_run_finds_the_modes(configure, tmp_path, quick_pictures, seed):
    seldom = [f"train.{name}_every=4000" for name in ("log", "checkpoint", "lipschitz")]
    run = train_run(configure(*seldom, "device=cpu", f"seed={seed}"), tmp_path / "run")
    values = report(run, 4000, 256)
    assert values["modes"] == 8 and values["high_quality"] > 0.6  # five seeds in results/default_run: 0.76 to 0.91


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "experiment, size, steps, overrides",
    [
        ("cifar_dcgan", 32, 40, ()),
        ("cifar_dcgan_dcgan", 32, 120, ()),
        ("architectures", 64, 40, ("networks=zoo/dcgan",)),
    ],
)
def test_images_come_nearer_to_the_held_out_ones(
    configure, squares, tmp_path, quick_pictures, experiment, size, steps, overrides, seed
):
    data = (*FOLDER, f"data.root={squares(size)}")
    common = (f"experiment={experiment}", *data, *SHORT, *WIDTHS, *overrides, f"seed={seed}")
    untrained = train_run(configure(*common, "train.steps=0"), tmp_path / "untrained")
    run = train_run(configure(*common, f"train.steps={steps}"), tmp_path / "run")
    assert compute_distance(run) < 0.6 * compute_distance(untrained)


@pytest.mark.parametrize("seed", range(2))
def test_stacked_digits_come_nearer_to_the_held_out_ones(configure, tmp_path, quick_pictures, monkeypatch, seed):
    """Digit k is a square of the level 160 + 10 k on black."""
    pictures, labels = torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 10
    pictures[:, :, 8:20, 8:20] = (160 + 10 * labels).to(torch.uint8).view(-1, 1, 1, 1)
    heldout = pictures.roll(1, dims=3)  # other pictures of the same digits
    digits = Images({"train": pictures, "heldout": heldout}, {"train": labels, "heldout": labels})
    monkeypatch.setattr("wgangp.data.stacked.mnist", lambda root, device: digits)
    common = ("experiment=stacked_mnist", "data.count=120", *SHORT, *WIDTHS, "optim.lr=2e-3", f"seed={seed}")
    untrained = train_run(configure(*common, "train.steps=0"), tmp_path / "untrained")
    run = train_run(configure(*common, "train.steps=40"), tmp_path / "run")
    assert compute_distance(run) < 0.6 * compute_distance(untrained)


@pytest.mark.parametrize("seed", range(3))
def test_conditional_generator_makes_images_of_the_class_that_is_asked_for(
    configure, squares, tmp_path, quick_pictures, seed
):
    networks = [f"networks.{name}.{key}" for name in ("generator", "critic") for key in ("width=16", "classes=2")]
    own = ("loss.generator_weight=1.0", "train.critic_steps=2", "train.steps=200", f"seed={seed}")
    data = (*FOLDER, f"data.root={squares(32)}")
    run = train_run(configure("experiment=cifar_resnet_conditional", *data, *SHORT, *networks, *own), tmp_path / "run")
    assert report(run, 200, 12)["heldout_accuracy_real"] > 0.9
    z, y = torch.randn(120, 128, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 2
    with torch.no_grad():
        means = run.generator(z, y).mean((2, 3))
    redder = means[:, 0] > means[:, 2]  # class 0 is red, class 1 is blue
    assert (redder == (y == 0)).float().mean() > 0.8
