"""Samples of a trained generator: what is written, and where."""

import numpy as np
import pytest
import torch
from helpers import TINY, WIDTHS, train_run
from PIL import Image

from wgangp.config import build_networks, load_run
from wgangp.networks import mlp
from wgangp.sample import generate, sample
from wgangp.seeds import draw_latent

TOY = (*TINY, "train.steps=3", "train.sample_every=1", "train.critic_steps=2")
SIZES = ("networks.generator.width=2", "networks.critic.width=2", "train.report_size=9", "train.batch_size=9")


@pytest.fixture
def toy(trained):
    return trained(*TOY)


@pytest.fixture
def mnist(trained, small_mnist):
    return trained("experiment=mnist", f"data.root={small_mnist}", *SIZES, "train.steps=1", "device=cpu")


def test_picture_of_points_is_written_into_the_run_folder(toy):
    path = sample(str(toy), device="cpu")
    assert path == toy / "made" / "grid_step3_seed0_n64.png"
    with Image.open(path) as picture:
        assert picture.width > 100
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no unfinished files


def test_interpolation_of_points_is_one_picture(toy):
    path = sample(str(toy), "interpolation", n=16, device="cpu")
    assert path.name == "interpolation_step3_seed0_n16.png" and path.stat().st_size > 1000


def test_numbers_are_the_samples_of_the_newest_checkpoint(toy):
    path = sample(str(toy), "npz", n=300, seed=5, device="cpu")
    with np.load(path) as file:
        x = file["x"]
    assert x.shape == (300, 2) and np.isfinite(x).all()
    generator = load_run(toy).generator
    with torch.no_grad():
        expected = generator(*draw_latent(generator, 300, 5, 0, "sample"))
    np.testing.assert_allclose(x, expected.numpy(), atol=1e-6)


def test_animation_has_every_picture_that_the_run_saved(toy):
    path = sample(str(toy), "animation", n=1, device="cpu")
    assert path.name == "animation_step3.gif"
    with Image.open(path) as movie:
        assert movie.n_frames == 4


def test_same_arguments_return_the_file_that_exists(toy):
    path = sample(str(toy), "npz", device="cpu")
    before = path.stat().st_mtime_ns
    assert sample(str(toy), "npz", device="cpu") == path and path.stat().st_mtime_ns == before


def test_seeds_give_different_samples(toy):
    pictures = [sample(str(toy), seed=seed, device="cpu").read_bytes() for seed in (1, 2)]
    assert pictures[0] != pictures[1]


def test_out_is_the_path_of_the_file(toy, tmp_path):
    path = tmp_path / "new" / "custom.png"
    assert sample(str(toy), out=str(path), device="cpu") == path and path.stat().st_size > 1000
    assert not (toy / "made").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"what": "film"}, "what = film: must be one of grid, interpolation, animation, images, npz"),
        ({"what": "images"}, "points cannot be written as images: use what=npz"),
        ({"n": 0}, "n must be >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"out": "picture"}, r"what=grid writes \.png"),
        ({"out": "picture.gif"}, r"what=grid writes \.png"),
        ({"what": "npz", "out": "picture.png"}, r"what=npz writes \.npz"),
        ({"device": "toaster"}, "device=cpu"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_and_nothing_is_written(toy, monkeypatch, arguments, message):
    monkeypatch.chdir(toy)
    before = sorted(toy.rglob("*"))
    with pytest.raises(ValueError, match=message):
        sample(**({"run": str(toy), "device": "cpu"} | arguments))
    assert sorted(toy.rglob("*")) == before


def test_existing_file_is_not_overwritten(toy, tmp_path):
    path = tmp_path / "thesis.png"
    path.write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.png exists and is not overwritten: choose another out="):
        sample(str(toy), out=str(path), device="cpu")
    assert path.read_text() == "years of work"


def test_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a run folder: it has no config\.yaml"):
        sample(str(tmp_path / "nowhere"), device="cpu")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match="has no checkpoint yet: train it first"):
        sample(str(tmp_path), device="cpu")


def test_animation_without_pictures_is_refused_and_leaves_nothing(toy):
    for picture in (toy / "samples").iterdir():
        picture.unlink()
    with pytest.raises(ValueError, match="has no pictures to animate"):
        sample(str(toy), "animation", device="cpu")
    assert list((toy / "made").iterdir()) == []


def test_points_that_are_not_in_the_plane_have_numbers_only(trained):
    folder = trained("data=shift", "data.dim=3", *TINY, "train.steps=1")
    with pytest.raises(ValueError, match=r"points in R\^3 have no picture: use what=npz"):
        sample(str(folder), device="cpu")
    with np.load(sample(str(folder), "npz", n=5, device="cpu")) as file:
        assert file["x"].shape == (5, 3)


def test_images_are_written_one_file_per_sample(mnist):
    path = sample(str(mnist), "images", n=3, device="cpu")
    assert path == mnist / "made" / "images_step1_seed0_n3"
    assert sorted(p.name for p in path.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    with Image.open(path / "000002.png") as image:
        assert image.size == (28, 28)
    with pytest.raises(ValueError, match="a folder, a name without a suffix"):
        sample(str(mnist), "images", out="images.png", device="cpu")


@pytest.mark.parametrize("n, rows, columns", [(20, 2, 8), (5, 1, 5)])
def test_interpolation_of_images_has_rows_of_eight(mnist, n, rows, columns):
    with Image.open(sample(str(mnist), "interpolation", n=n, device="cpu")) as picture:
        assert picture.size == (29 * columns + 1, 29 * rows + 1)


def test_picture_of_images_is_a_grid(mnist):
    with Image.open(sample(str(mnist), n=12, device="cpu")) as picture:
        assert picture.size == (29 * 4 + 1, 29 * 3 + 1)


def test_images_are_sampled_without_the_data_files(mnist):
    config = mnist / "config.yaml"
    config.write_text(config.read_text().replace("root: ", "root: /nowhere"))
    assert sample(str(mnist), n=4, device="cpu").exists()


def test_generate_joins_batches(configure, monkeypatch):
    generator, _ = build_networks(configure(*WIDTHS), (2,), torch.device("cpu"))
    latent = draw_latent(generator, 7, 0, 0, "sample")
    whole = generate(generator, latent)
    monkeypatch.setattr("wgangp.sample.BATCH", 3)
    parts = generate(generator, latent)
    assert whole.shape == (7, 2) and not whole.requires_grad
    torch.testing.assert_close(parts, whole)


def test_interpolation_goes_between_random_points_with_one_label_per_row(
    labeled_config, tmp_path, monkeypatch, quick_pictures
):
    folder = tmp_path / "run"
    train_run(labeled_config, folder)
    calls = []
    forward = mlp.LabeledGenerator.forward

    def record(self, z, y):
        calls.append((z, y))
        return forward(self, z, y)

    monkeypatch.setattr(mlp.LabeledGenerator, "forward", record)
    assert sample(str(folder), "interpolation", n=24, device="cpu").exists()
    (z, y) = calls[-1]
    ends, labels = draw_latent(load_run(folder).generator, 6, 0, 0, "interpolation")
    assert z.shape == (24, 2)
    torch.testing.assert_close(z.view(3, 8, 2)[:, 0], ends[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z.view(3, 8, 2)[:, -1], ends[3:], atol=1e-4, rtol=1e-4)
    assert torch.equal(y.view(3, 8), labels[:3].unsqueeze(1).expand(3, 8))
