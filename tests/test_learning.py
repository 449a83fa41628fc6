"""Every kind of image run learns: a short run moves the samples to the held-out data, for each of several seeds."""

import numpy as np
import pytest
import torch
from helpers import train_run
from PIL import Image

from wgangp.figures.image_runs import draw_samples
from wgangp.metrics.sliced import sliced_wasserstein
from wgangp.report import report

pytestmark = pytest.mark.slow
SHORT = (
    *("data=image_folder", "data.channels=3", "optim.lr=1e-3", "train.decay_steps=null", "device=cpu"),
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
    """The sliced W1 between generated and held-out images."""
    real, *_ = run.data.batch(0, 12, 0, "heldout", purpose="score")
    return sliced_wasserstein(draw_samples(run, 12, 12), real, rng=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "experiment, size, steps, overrides",
    [
        ("cifar_dcgan", 32, 40, ("networks.generator.width=8", "networks.critic.width=8")),
        ("cifar_dcgan_dcgan", 32, 120, ("networks.generator.width=8", "networks.critic.width=8")),
        ("architectures", 64, 40, ("networks=zoo/dcgan", "networks.generator.width=8", "networks.critic.width=8")),
    ],
)
def test_images_come_nearer_to_the_held_out_ones(
    configure, squares, tmp_path, quick_pictures, experiment, size, steps, overrides, seed
):
    classes = [f"networks.{name}.classes=2" for name in ("generator", "critic")] * ("conditional" in experiment)
    data = ("data=image_folder", f"data.root={squares(size)}", "data.channels=3")
    sizes = ("train.batch_size=12", "train.generator_batch_size=null", "train.report_size=12", "optim.lr=1e-3")
    every = (
        "train.log_every=1000",
        "train.checkpoint_every=1000",
        "train.lipschitz_every=1000",
        "train.decay_steps=null",
    )
    common = (f"experiment={experiment}", *data, *overrides, *classes, *sizes, *every, f"seed={seed}", "device=cpu")
    untrained = train_run(configure(*common, "train.steps=0"), tmp_path / "untrained")
    run = train_run(configure(*common, f"train.steps={steps}"), tmp_path / "run")
    assert compute_distance(run) < 0.6 * compute_distance(untrained)


@pytest.mark.parametrize("seed", range(3))
def test_conditional_generator_makes_images_of_the_class_that_is_asked_for(
    configure, squares, tmp_path, quick_pictures, seed
):
    networks = [f"networks.{name}.{key}" for name in ("generator", "critic") for key in ("width=16", "classes=2")]
    own = ("loss.generator_weight=1.0", "train.critic_steps=2", "train.steps=200", f"seed={seed}")
    root = f"data.root={squares(32)}"
    run = train_run(configure("experiment=cifar_resnet_conditional", root, *SHORT, *networks, *own), tmp_path / "run")
    assert report(run, 200, 12)["heldout_accuracy_real"] > 0.9
    z, y = torch.randn(120, 128, generator=torch.Generator().manual_seed(0)), torch.arange(120) % 2
    with torch.no_grad():
        means = run.generator(z, y).mean((2, 3))
    redder = means[:, 0] > means[:, 2]  # class 0 is red, class 1 is blue
    assert (redder == (y == 0)).float().mean() > 0.8
