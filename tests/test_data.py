import gzip
import math
import os

import pytest
import torch
from helpers import write_idx
from PIL import Image

from wgangp.data import images
from wgangp.data.images import Images, Streamed, cifar10, fashion_mnist, image_folder, mnist
from wgangp.data.stream import batch_indices
from wgangp.data.toy import SwissRoll, gaussians8, gaussians25

CPU = torch.device("cpu")


@pytest.mark.parametrize("make", [gaussians8, gaussians25, SwissRoll])
def test_toy_batch_is_a_function_of_all_its_arguments(make):
    data = make()
    (x,) = data.batch(7, 32, seed=1)
    assert x.shape == (32, 2) and x.dtype == torch.float32 and data.shape == (2,)
    assert torch.equal(x, make().batch(7, 32, seed=1)[0])
    for other in (
        data.batch(8, 32, 1),
        data.batch(7, 32, 2),
        data.batch(7, 32, 1, "heldout"),
        data.batch(7, 32, 1, purpose="report"),
    ):
        assert not torch.equal(x, other[0])
    assert x.abs().max() < data.span[1]


@pytest.mark.parametrize(
    "data, modes, sd, spacing",
    [(gaussians8(), 8, 0.02 / 1.414, 4 / 1.414 * math.sin(math.pi / 8)), (gaussians25(), 25, 0.05 / 2.828, 2 / 2.828)],
)
def test_mixtures_have_the_released_geometry(data, modes, sd, spacing):
    distances = torch.cdist(data.centers, data.centers)
    distances.fill_diagonal_(math.inf)
    assert len(data.centers) == modes
    torch.testing.assert_close(distances.min(1).values, torch.full((modes,), spacing), atol=1e-5, rtol=0)
    (x,) = data.batch(0, 50_000, seed=0)
    distance, nearest = torch.cdist(x, data.centers).min(1)
    shares = torch.bincount(nearest, minlength=modes) / len(x)
    torch.testing.assert_close(shares, torch.full((modes,), 1 / modes), atol=4 / math.sqrt(modes * len(x)), rtol=0)
    assert distance.square().mean().sqrt().item() == pytest.approx(sd * math.sqrt(2), rel=0.02)
    assert (x - data.centers[nearest]).mean(0).abs().max() < 4 * sd / math.sqrt(len(x))


def test_ring_has_the_released_radius_and_angles():
    centers = gaussians8().centers
    torch.testing.assert_close(centers.norm(dim=1), torch.full((8,), 2 / 1.414))
    torch.testing.assert_close(centers[0], torch.tensor([2 / 1.414, 0.0]))
    torch.testing.assert_close(centers[1], torch.tensor([math.sqrt(2), math.sqrt(2)]) / 1.414, atol=1e-6, rtol=0)


def test_swiss_roll_has_the_moments_of_its_formula():
    x = SwissRoll().batch(0, 200_000, seed=0)[0].double()
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 200_001, dtype=torch.float64)
    clean = torch.stack([t * t.cos(), t * t.sin()], 1)
    mean = clean.mean(0) / 7.5
    covariance = (torch.cov(clean.T) + 0.25**2 * torch.eye(2)) / 7.5**2
    torch.testing.assert_close(x.mean(0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), covariance, atol=0.01, rtol=0)
    # the distance of the points to the spiral is that of the stated noise
    nearest = torch.cdist(x[:500], clean[::20] / 7.5).min(1).values
    assert nearest.square().mean().sqrt().item() == pytest.approx(0.25 / 7.5, rel=0.15)


def test_every_epoch_is_another_permutation():
    epochs = [torch.cat([batch_indices(k, 3, 10, 0, "train", CPU) for k in range(3 * e, 3 * e + 3)]) for e in range(3)]
    for epoch in epochs:
        assert len(epoch.unique()) == 9  # the last item does not fill a batch
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(batch_indices(4, 3, 10, 0, "train", CPU), epochs[1][3:6])
    assert not torch.equal(batch_indices(0, 9, 10, 1, "train", CPU), epochs[0])
    with pytest.raises(ValueError, match="use a smaller one"):
        batch_indices(0, 11, 10, 0, "heldout", CPU)


def gray_images(levels):
    """One 4 x 4 image per gray level, in both splits. The label of an image is its index."""
    x = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return {"train": x, "heldout": x}, {"train": torch.arange(len(x)), "heldout": torch.arange(len(x))}


def streamed_gray_images(levels, folder):
    """As gray_images, as files that are decoded for every batch."""
    folder.mkdir()
    paths = []
    for i, level in enumerate(levels):
        paths.append(folder / f"{i:02}.png")
        Image.new("L", (4, 4), level).save(paths[-1])
    labels = torch.arange(len(paths))

    def read(path):
        with Image.open(path) as image:
            return torch.tensor(list(image.convert("L").tobytes()), dtype=torch.uint8).view(1, 4, 4)

    return Streamed({"train": paths, "heldout": paths}, {"train": labels, "heldout": labels}, read, workers=1)


def test_images_are_scaled_to_the_unit_interval():
    data = Images(*gray_images([0, 51, 255]))
    data.labeled = True
    x, y = data.batch(0, 3, seed=0)
    assert x.shape == (3, 1, 4, 4) and data.shape == (1, 4, 4) and data.pictures["train"].dtype == torch.uint8
    torch.testing.assert_close(x[y.argsort(), 0, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


def test_dequantized_images_are_uniform_within_their_level_and_reproducible():
    data = Images(*gray_images([100] * 200), dequantize=True)
    data.labeled = True
    x, y = data.batch(0, 200, seed=0)
    assert not torch.equal(y, data.batch(0, 200, seed=0, purpose="report")[1])
    u = x * 256 - 100
    assert u.min() >= 0 and u.max() < 1.001 and len(u.unique()) > 2000
    assert u.mean().item() == pytest.approx(0.5, abs=0.02) and u.var().item() == pytest.approx(1 / 12, abs=0.01)
    assert torch.equal(x, data.batch(0, 200, seed=0)[0])
    assert not torch.equal(x, data.batch(1, 200, seed=0)[0])


@pytest.mark.parametrize("make", [mnist, fashion_mnist])
def test_mnist_files_are_read_from_root_and_a_sixth_is_held_out(make, small_mnist):
    data = make(root=str(small_mnist))
    assert data.shape == (1, 28, 28)
    assert len(data.pictures["train"]) == 500 and len(data.pictures["heldout"]) == 100
    assert torch.equal(data.labels["heldout"], torch.arange(500, 600) % 10)
    raw = (small_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
    assert bytes(data.pictures["train"][0].flatten().tolist()) == raw[16 : 16 + 784]


def test_root_without_files_raises_with_both_remedies(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)MNIST.*Two remedies.*leave out data.root.*data.root=FOLDER"):
        mnist(root=str(tmp_path))
    assert not list(tmp_path.iterdir())  # nothing was downloaded or created there


def test_download_without_network_raises_with_both_remedies(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", offline)
    with pytest.raises(
        ValueError,
        match=r"(?s)connect to the network, delete data/MNIST/raw.*data.root=FOLDER, where FOLDER/MNIST/raw",
    ):
        mnist()


def test_truncated_file_raises_with_the_folder(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", pictures=12, side=28)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read MNIST from .*raw"):
        mnist(root=str(tmp_path))


@pytest.mark.parametrize("make", [mnist, fashion_mnist])
@pytest.mark.parametrize(
    "file, change, message",
    [
        ("images", lambda raw: raw[:-100], r"train-images-idx3-ubyte has \d+,\d+ bytes; its header says \d+,\d+"),
        ("images", lambda raw: raw + b"0", r"train-images-idx3-ubyte has"),
        ("images", lambda raw: gzip.compress(raw), r"train-images-idx3-ubyte is not an unpacked IDX file"),
        ("images", lambda raw: b"", r"train-images-idx3-ubyte is not an unpacked IDX file"),
        ("labels", lambda raw: idx_labels([3] * 11), r"there are 12 images and 11 labels"),
        ("labels", lambda raw: idx_labels([3] * 13), r"there are 12 images and 13 labels"),
        (
            "labels",
            lambda raw: idx_labels([3] * 9 + [10, 3, 3]),
            r"train-labels-idx1-ubyte has the label 10 at 9; labels are 0",
        ),
        ("labels", lambda raw: raw[:9], r"train-labels-idx1-ubyte has 9 bytes; its header says 20"),
        ("labels", lambda raw: raw.replace(b"\x08\x01", b"\x08\x03"), r"train-labels-idx1-ubyte is not .* 1 dimension"),
    ],
)
def test_damaged_mnist_file_is_named_at_load(make, file, change, message, tmp_path):
    name = {mnist: "MNIST", fashion_mnist: "FashionMNIST"}[make]
    write_idx(tmp_path / name / "raw", pictures=12, side=28)
    assert len(make(root=str(tmp_path)).labels["train"]) == 10
    path = next((tmp_path / name / "raw").glob(f"train-{file}*"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"(?s)cannot read {name} from .*raw: {message}.*Two remedies"):
        make(root=str(tmp_path))


def idx_labels(labels):
    """The bytes of a file of labels."""
    return bytes([0, 0, 8, 1]) + len(labels).to_bytes(4, "big") + bytes(labels)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2, 3], [0, -1, 2]])
def test_labels_that_do_not_fit_the_images_are_refused(labels, tmp_path):
    pictures, fitting = gray_images([10, 20, 30])
    wrong = {"train": fitting["train"], "heldout": torch.tensor(labels)}
    streamed = streamed_gray_images([10, 20, 30], tmp_path / "images")
    for make in (lambda: Images(pictures, wrong), lambda: Streamed(streamed.paths, wrong, streamed.read)):
        with pytest.raises(
            ValueError, match=rf"heldout: 3 images have {len(labels)} labels; each needs one label >= 0"
        ):
            make()


def test_fingerprint_identifies_the_data():
    a, b, c = (Images(*gray_images(levels)).fingerprint for levels in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert a == b != c
    pictures, labels = gray_images([1, 2, 3])
    others = [(pictures | {"heldout": pictures["heldout"] + 1}, labels)]
    others += [(pictures, labels | {split: labels[split].flip(0)}) for split in labels]
    assert a not in {Images(*other).fingerprint for other in others}


def save_images(folder, sizes):
    """Save 00.png, 01.png, ... of the given sizes (W, H). File i has the gray level i."""
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (i, i, i)).save(folder / f"{i:02}.png")


def test_image_folder_is_read_with_its_classes(tmp_path):
    save_images(tmp_path / "cat", [(6, 4)] * 15)
    save_images(tmp_path / "dog" / "small", [(6, 4)] * 5)
    data = image_folder(str(tmp_path))
    assert data.shape == (3, 4, 6) and data.span == (-1.0, 1.0)
    assert [len(data.pictures[split]) for split in ("train", "heldout")] == [18, 2] and data.classes == 2
    data.labeled = True
    x, y = data.batch(0, 18, seed=0)
    level = ((x[:, 0, 0, 0] + 1) / 2 * 255).round().int().tolist()
    assert sorted(zip(level, y.tolist(), strict=True)) == sorted(
        [(i, 0) for i in range(15) if i not in (0, 10)] + [(i, 1) for i in range(5)]
    )
    data = image_folder(str(tmp_path / "cat"), heldout_root=str(tmp_path / "dog"))
    assert [len(data.pictures[split]) for split in ("train", "heldout")] == [15, 5]


def test_streamed_images_equal_those_in_memory(tmp_path):
    save_images(tmp_path / "a", [(8, 8)] * 20)
    save_images(tmp_path / "b", [(8, 8)] * 20)
    kept, streamed = (image_folder(str(tmp_path), dequantize=True, memory_gb=gb) for gb in (4.0, 0.0))
    assert isinstance(kept, Images) and isinstance(streamed, Streamed) and streamed.shape == kept.shape
    assert streamed.classes == kept.classes == 2
    kept.labeled = streamed.labeled = True
    for k in (0, 1, 2, 3, 4, 11, 2, 3):  # past the end of an epoch, forward and back
        for a, b in zip(kept.batch(k, 8, seed=1), streamed.batch(k, 8, seed=1), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(kept.batch(k, 2, 0, "heldout", "report")[0], streamed.batch(k, 2, 0, "heldout", "report")[0])
    assert len(streamed.pending) <= images.AHEAD  # batches that were skipped are deleted
    one = Streamed({"train": [tmp_path / "a" / "00.png"]}, {"train": torch.zeros(1)}, streamed.read)
    assert one.fingerprint != streamed.fingerprint


def test_images_of_different_sizes_are_cropped_or_raise(tmp_path):
    save_images(tmp_path / "a", [(8, 8)] * 3 + [(9, 16)])
    with pytest.raises(ValueError, match=r"03.png is 16 x 9, but the first image is 8 x 8: set data.size"):
        image_folder(str(tmp_path))
    assert image_folder(str(tmp_path), size=4).shape == (3, 4, 4)


def test_folder_without_images_or_with_a_broken_image_raises(tmp_path):
    with pytest.raises(ValueError, match=r"there are no images \(.jpg"):
        image_folder(str(tmp_path / "nowhere"))
    save_images(tmp_path / "a", [(8, 8)])
    with pytest.raises(ValueError, match="at least two images are needed"):
        image_folder(str(tmp_path))
    intact = (tmp_path / "a" / "00.png").read_bytes()
    for broken in (b"not an image", intact[:40], intact.replace(b"IDAT", b"I\0AT")):
        (tmp_path / "a" / "01.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"01.png cannot be read.*Remove it, or repair it"):
            image_folder(str(tmp_path))
    for wrong in ({"size": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match="must be >= 1"):
            image_folder(str(tmp_path), **wrong)


def test_cifar_files_are_read_from_root_and_the_test_images_are_held_out(tmp_path, small_cifar):
    with pytest.raises(ValueError, match=r"(?s)cannot read CIFAR-10 from .*Three remedies.*image_folder"):
        cifar10(root=str(tmp_path / "nowhere"))
    data = cifar10(root=str(tmp_path))
    (x,) = data.batch(0, 70, seed=0)
    assert x.shape == (70, 3, 32, 32) and x.max() == 1 and x[:, 2, 0, 1].eq(-1).all() and (x == -1).sum() == 70
    assert data.batch(0, 3, seed=0, split="heldout")[0].eq(-1).all()
    dequantized = cifar10(root=str(tmp_path), dequantize=True).batch(0, 3, seed=0, split="heldout")[0]
    assert dequantized.min() >= -1 and dequantized.max() < -1 + 1 / 128  # Paper: U[0, 1/128)


@pytest.mark.parametrize("kind", ["Images", "Streamed"])
def test_batch_has_labels_only_if_labeled_is_set(kind, tmp_path):
    levels = [10, 20, 30, 40]
    data = Images(*gray_images(levels)) if kind == "Images" else streamed_gray_images(levels, tmp_path / "images")
    assert data.classes == 4
    assert not data.labeled
    for split in ("train", "heldout"):
        assert len(data.batch(0, 4, seed=0, split=split)) == 1
    data.labeled = True
    for split in ("train", "heldout"):
        x, y = data.batch(3, 4, seed=0, split=split)
        assert y.shape == (4,) and y.dtype == torch.int64
        torch.testing.assert_close(x[:, 0, 0, 0] * 255, 10.0 * (y + 1))  # each image has its own label
    with_labels = data.batch(3, 4, seed=0)
    data.labeled = False
    (without_labels,) = data.batch(3, 4, seed=0)
    assert torch.equal(without_labels, with_labels[0])


def test_classes_count_the_labels_of_both_splits():
    pictures, _ = gray_images([0, 1, 2])
    data = Images(pictures, {"train": torch.tensor([0, 1, 0]), "heldout": torch.tensor([0, 4, 2])})
    assert data.classes == 5


@pytest.mark.data
def test_real_digits_have_the_split_of_the_released_code():
    data = mnist(root=os.environ["WGANGP_DATA"])
    assert len(data.pictures["train"]) == 50_000 and len(data.pictures["heldout"]) == 10_000
    assert data.labels["train"][:5].tolist() == [5, 0, 4, 1, 9]
    (x,) = data.batch(0, 1000, seed=0)
    assert x.mean().item() == pytest.approx(0.1307, abs=0.01)  # MNIST's well-known mean


@pytest.mark.gpu
def test_images_are_on_the_device():
    data = Images(*gray_images([0, 51, 255]), device="cuda")
    assert data.batch(0, 3, seed=0)[0].is_cuda and data.pictures["train"].is_cuda
