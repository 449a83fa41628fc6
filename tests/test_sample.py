"""Samples of a trained generator: what is written, and where."""

import os

import numpy as np
import pytest
import torch
from helpers import TINY, train_run
from PIL import Image

from wgangp.config import load_run
from wgangp.generate import generate
from wgangp.networks import mlp
from wgangp.sample import sample
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
        expected = torch.cat([generator(*draw_latent(generator, 256, 5, k, "sample")) for k in (0, 1)])[:300]
    np.testing.assert_array_equal(x, expected.numpy())


@pytest.mark.parametrize(("what", "noted"), [("grid", True), ("interpolation", True), ("images", False)])
def test_pictures_of_a_small_version_say_so_and_single_images_do_not(mnist, what, noted):
    sizes = []
    for n, budget in enumerate(("paper", "cpu")):
        path = mnist / "config.yaml"
        path.write_text(path.read_text().replace("budget: paper", f"budget: {budget}"))
        path = sample(str(mnist), what, n=16, seed=n, device="cpu")
        with Image.open(path if path.is_file() else path / "000000.png") as image:
            sizes.append(image.height)
    assert sizes[1] - sizes[0] == (13 if noted else 0)


def test_samples_are_of_the_average_if_the_run_has_one(trained):
    folder = trained(*TOY, "ema.decay=0.5")
    run = load_run(folder)
    with np.load(sample(str(folder), "npz", device="cpu")) as file:
        x = file["x"]
    with torch.no_grad():
        latent = draw_latent(run.generator, 256, 0, 0, "sample")
        average, last = (network(*latent)[:64].numpy() for network in (run.average.module, run.generator))
    np.testing.assert_array_equal(x, average)
    assert not np.array_equal(x, last)


def test_animation_has_every_picture_that_the_run_saved(toy):
    (toy / "samples" / "0abc.png").write_text("not one of them")
    path = sample(str(toy), "animation", n=1, device="cpu")
    assert path.name == "animation_step3.webp"
    with Image.open(path) as movie:
        assert movie.n_frames == 4


@pytest.mark.parametrize(
    "damage, reason",
    [
        (os.mkfifo, "it is not a file"),
        (lambda path: path.write_text("text"), "cannot identify"),
        (lambda path: Image.new("1", (9_000, 9_000)).save(path), "it has 9000 x 9000 pixels"),
    ],
    ids=["pipe", "text", "large"],
)
def test_picture_of_a_run_folder_that_cannot_be_read_is_named(toy, damage, reason):
    path = toy / "samples" / "00000002.png"
    path.unlink()
    damage(path)
    with pytest.raises(ValueError, match=rf"{path} cannot be read: {reason}"):
        sample(str(toy), "animation", device="cpu")
    assert list((toy / "made").iterdir()) == []


def test_animation_that_leaves_pictures_out_says_so(toy, monkeypatch, capsys):
    sample(str(toy), "animation", device="cpu", out=str(toy / "all.webp"))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("wgangp.plots.save_animation", lambda path, pictures: path.touch() or (2, (5, 5)))
    sample(str(toy), "animation", device="cpu")
    assert capsys.readouterr().out == "2 of 4 pictures, 5 x 5 px: the file has less than 1 MB\n"


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
    (tmp_path / "config.yaml").write_text("seed: 0\ndata: {_target_: x}\n")
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


class Double(torch.nn.Module):
    def forward(self, z):
        return 2 * z


def test_generate_keeps_the_first_samples_of_whole_batches():
    batches = []

    def draw(k):
        batches.append(k)
        return (torch.arange(3.0, requires_grad=True) + 3 * k,)

    x = generate(Double(), 7, draw)
    assert x.tolist() == [0, 2, 4, 6, 8, 10, 12] and batches == [0, 1, 2] and not x.requires_grad


@pytest.fixture
def batch_norm(trained, small_mnist):
    """A run whose samples depend on the other samples of their batch."""
    norm = ("networks.generator.norm=true", "networks.generator.width=2", "networks.critic.width=2")
    sizes = ("train.report_size=9", "train.batch_size=9", "train.steps=1", "device=cpu")
    return trained("experiment=mnist", f"data.root={small_mnist}", *norm, *sizes)


def read_npz(path):
    with np.load(path) as file:
        return dict(file)


def read_images(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


@pytest.mark.parametrize("what", ["npz", "images", "interpolation"])
def test_sample_of_a_seed_is_the_same_for_every_n(batch_norm, what):
    """Bit for bit, with batch norm, and for n = 1, where a batch of one sample would have no variance."""
    paths = {n: sample(str(batch_norm), what, n=n, device="cpu") for n in (8, 16, 264, 1, 2)}
    if what == "npz":
        x = {n: read_npz(path)["x"] for n, path in paths.items()}
    elif what == "images":
        x = {n: read_images(path) for n, path in paths.items()}
    else:  # rows of 8 images
        x = {n: np.asarray(Image.open(paths[n]))[1:].reshape(n // 8, -1) for n in (8, 16, 264)}
    for n, images in x.items():
        rows = n // 8 if what == "interpolation" else n
        assert len(images) == rows and np.array_equal(images, x[264][:rows])
    assert len(np.unique(x[264], axis=0)) > 0.9 * len(x[264])


def test_generator_samples_in_eval_mode(toy, monkeypatch):
    modes = []
    forward = mlp.MLPGenerator.forward
    monkeypatch.setattr(mlp.MLPGenerator, "forward", lambda self, z: modes.append(self.training) or forward(self, z))
    sample(str(toy), "npz", device="cpu")
    assert modes == [False]


def test_npz_of_gray_images_has_bytes_for_scorers_beside_the_numbers(mnist):
    arrays = read_npz(sample(str(mnist), "npz", n=5, seed=3, device="cpu"))
    assert next(iter(arrays)) == "arr_0"
    assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (5, 28, 28, 1)
    x, (low, high) = arrays["x"], arrays["span"]
    assert x.dtype == np.float32 and x.shape == (5, 1, 28, 28) and (low, high) == (0, 1)
    np.testing.assert_allclose(arrays["arr_0"], 255 * x.transpose(0, 2, 3, 1), atol=0.5001)
    assert arrays["step"] == 1 and arrays["seed"] == 3 and "y" not in arrays
    images = read_images(sample(str(mnist), "images", n=5, seed=3, device="cpu"))
    assert np.array_equal(images, arrays["arr_0"][..., 0])  # files of one channel


def test_npz_of_points_has_the_points_their_square_step_and_seed(toy):
    arrays = read_npz(sample(str(toy), "npz", n=5, device="cpu"))
    assert np.array_equal(arrays["arr_0"], arrays["x"]) and arrays["x"].shape == (5, 2)
    assert tuple(arrays["span"]) == (-3, 3) and arrays["step"] == 3 and arrays["seed"] == 0


def test_step_chooses_the_checkpoint(trained):
    folder = trained(*TOY, "train.checkpoint_every=1")
    old, new = (read_npz(sample(str(folder), "npz", step=step, device="cpu")) for step in (2, None))
    assert old["step"] == 2 and new["step"] == 3 and not np.array_equal(old["x"], new["x"])
    generator = load_run(folder, step=2).generator
    np.testing.assert_array_equal(old["x"], generator(*draw_latent(generator, 256, 0, 0, "sample")).detach()[:64])
    with Image.open(sample(str(folder), "animation", step=2, device="cpu")) as movie:
        assert movie.n_frames == 3
    with pytest.raises(ValueError, match=r"step = 7: .* has checkpoints of the steps \[2, 3\]\. Choose one"):
        sample(str(folder), step=7, device="cpu")
    next(folder.glob("checkpoints/*2.pt")).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"step = 2: .* is damaged"):
        sample(str(folder), step=2, seed=1, device="cpu")


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
    ends, labels = draw_latent(load_run(folder).generator, 512, 0, 0, "interpolation")
    assert z.shape == (256, 2)  # a whole batch, of which 24 samples are kept
    torch.testing.assert_close(z.view(32, 8, 2)[:, 0], ends[:64:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z.view(32, 8, 2)[:, -1], ends[1:64:2], atol=1e-4, rtol=1e-4)
    assert torch.equal(y.view(32, 8), labels[:64:2].unsqueeze(1).expand(32, 8))
    with np.load(sample(str(folder), "npz", n=3, device="cpu")) as file:
        assert file["y"].shape == (3,) and file["arr_0"].shape == (3, 8, 8, 3)


def test_grid_of_a_labeled_run_has_one_row_per_class(labeled_config, tmp_path, monkeypatch, quick_pictures):
    train_run(labeled_config, tmp_path / "run")
    monkeypatch.setattr(mlp.LabeledGenerator, "forward", draw_label)
    with Image.open(sample(str(tmp_path / "run"), n=7, device="cpu")) as grid:  # 2 samples per class
        rows = np.asarray(grid)[1:, 1:, 0].reshape(3, 9, 2, 9)[:, :8, :, :8]
    values = [np.unique(row) for row in rows]
    assert all(len(value) == 1 for value in values) and values[0] < values[1] < values[2]
    with Image.open(sample(str(tmp_path / "run"), n=2, device="cpu")) as grid:  # fewer samples than classes
        assert grid.size == (10, 19)


def draw_label(self, z, y):
    """In place of a generator: every pixel shows the label."""
    return y.view(-1, 1, 1, 1).expand(len(z), 3, 8, 8) / 4.0


@pytest.mark.parametrize("what", ["grid", "images", "npz", "interpolation"])
def test_all_samples_have_the_class_that_is_given(labeled_config, tmp_path, monkeypatch, quick_pictures, what):
    train_run(labeled_config, tmp_path / "run")
    calls = []
    monkeypatch.setattr(mlp.LabeledGenerator, "forward", lambda self, z, y: calls.append(y) or draw_label(self, z, y))
    path = sample(str(tmp_path / "run"), what, n=300, class_=2, device="cpu")
    assert path.name.startswith(f"{what}_step1_seed0_n300_class2")
    assert len(calls) == 2 and all(labels.eq(2).all() for labels in calls)
    if what == "npz":
        with np.load(path) as file:
            assert (file["y"] == 2).all() and file["y"].shape == (300,)


def test_class_that_the_generator_does_not_have_is_refused(toy, labeled_config, tmp_path, quick_pictures):
    train_run(labeled_config, tmp_path / "labeled")
    for class_ in (-1, 3):
        with pytest.raises(ValueError, match=f"class = {class_}: must be one of 0 ... 2"):
            sample(str(tmp_path / "labeled"), class_=class_, device="cpu")
    with pytest.raises(ValueError, match="what=animation shows the pictures that the run saved: leave out class="):
        sample(str(tmp_path / "labeled"), "animation", class_=0, device="cpu")
    with pytest.raises(ValueError, match="class = 0: the generator has no classes: leave it out"):
        sample(str(toy), class_=0, device="cpu")
