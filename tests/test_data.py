import math

import pytest
import torch
from conftest import write_idx
from PIL import Image

from wgangp.data import images
from wgangp.data.images import Images, Streamed, cifar10, fashion_mnist, image_folder, mnist
from wgangp.data.stream import batch_indices
from wgangp.data.toy import SwissRoll, gaussians8, gaussians25
from wgangp.seeds import generator_for

CPU = torch.device("cpu")


def test_generators_are_a_function_of_seed_step_and_purpose_alone():
    def draw(*key):
        return torch.rand(3, generator=generator_for(*key)).tolist()

    state = torch.get_rng_state()
    assert draw(0, 1, "z") == draw(0, 1, "z")
    keys = [(0, 1, "z"), (1, 1, "z"), (0, 2, "z"), (0, 1, "eps"), (1, 11, "z"), (11, 1, "z")]
    assert len({tuple(draw(*key)) for key in keys}) == 6
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [gaussians8, gaussians25, SwissRoll])
def test_toy_batches_are_seekable_and_splits_differ(make):
    data = make()
    x, y = data.batch(7, 32, seed=1)
    assert x.shape == (32, 2) and x.dtype == torch.float32 and y is None and data.shape == (2,)
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
    apart = torch.cdist(data.centres, data.centres)
    apart.fill_diagonal_(math.inf)
    assert len(data.centres) == modes
    torch.testing.assert_close(apart.min(1).values, torch.full((modes,), spacing), atol=1e-5, rtol=0)
    x, _ = data.batch(0, 50_000, seed=0)
    distance, nearest = torch.cdist(x, data.centres).min(1)
    shares = torch.bincount(nearest, minlength=modes) / len(x)
    torch.testing.assert_close(shares, torch.full((modes,), 1 / modes), atol=4 / math.sqrt(modes * len(x)), rtol=0)
    assert distance.square().mean().sqrt().item() == pytest.approx(sd * math.sqrt(2), rel=0.02)
    assert (x - data.centres[nearest]).mean(0).abs().max() < 4 * sd / math.sqrt(len(x))


def test_the_ring_has_the_released_radius_and_angles():
    centres = gaussians8().centres
    torch.testing.assert_close(centres.norm(dim=1), torch.full((8,), 2 / 1.414))
    torch.testing.assert_close(centres[0], torch.tensor([2 / 1.414, 0.0]))
    torch.testing.assert_close(centres[1], torch.tensor([math.sqrt(2), math.sqrt(2)]) / 1.414, atol=1e-6, rtol=0)


def test_the_swiss_roll_has_the_moments_of_its_formula():
    x = SwissRoll().batch(0, 200_000, seed=0)[0].double()
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 200_001, dtype=torch.float64)
    clean = torch.stack([t * t.cos(), t * t.sin()], 1)
    mean = clean.mean(0) / 7.5
    covariance = (torch.cov(clean.T) + 0.25**2 * torch.eye(2)) / 7.5**2
    torch.testing.assert_close(x.mean(0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), covariance, atol=0.01, rtol=0)
    # every point is near the spiral of its own angle: its noise has the stated size
    nearest = torch.cdist(x[:500], clean[::20] / 7.5).min(1).values
    assert nearest.square().mean().sqrt().item() == pytest.approx(0.25 / 7.5, rel=0.15)


def test_an_epoch_is_a_permutation_and_the_next_is_another():
    epochs = [torch.cat([batch_indices(k, 3, 10, 0, "train", CPU) for k in range(3 * e, 3 * e + 3)]) for e in range(3)]
    for epoch in epochs:
        assert len(epoch.unique()) == 9  # the remainder of one is left out
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(batch_indices(4, 3, 10, 0, "train", CPU), epochs[1][3:6])
    assert not torch.equal(batch_indices(0, 9, 10, 1, "train", CPU), epochs[0])
    with pytest.raises(ValueError, match="choose a smaller one"):
        batch_indices(0, 11, 10, 0, "heldout", CPU)


def pictures(levels):
    x = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return {"train": x, "heldout": x}, {"train": torch.arange(len(x)), "heldout": torch.arange(len(x))}


def test_pictures_are_scaled_to_the_unit_interval_with_their_labels():
    data = Images(*pictures([0, 51, 255]))
    x, y = data.batch(0, 3, seed=0)
    assert x.shape == (3, 1, 4, 4) and data.shape == (1, 4, 4) and data.pictures["train"].dtype == torch.uint8
    torch.testing.assert_close(x[y.argsort(), 0, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


def test_dequantised_pictures_fill_their_level_evenly_and_repeatably():
    data = Images(*pictures([100] * 200), dequantize=True)
    assert not torch.equal(data.batch(0, 200, 0)[1], data.batch(0, 200, 0, purpose="report")[1])
    x, _ = data.batch(0, 200, seed=0)
    u = x * 256 - 100
    assert u.min() >= 0 and u.max() < 1.001 and len(u.unique()) > 2000
    assert u.mean().item() == pytest.approx(0.5, abs=0.02) and u.var().item() == pytest.approx(1 / 12, abs=0.01)
    assert torch.equal(x, data.batch(0, 200, seed=0)[0])
    assert not torch.equal(x, data.batch(1, 200, seed=0)[0])


@pytest.mark.parametrize("make", [mnist, fashion_mnist])
def test_mnist_files_are_read_where_they_lie_with_a_sixth_held_out(make, small_mnist):
    data = make(root=str(small_mnist))
    assert data.shape == (1, 28, 28)
    assert len(data.pictures["train"]) == 500 and len(data.pictures["heldout"]) == 100
    assert torch.equal(data.labels["heldout"], torch.arange(500, 600) % 10)
    raw = (small_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
    assert bytes(data.pictures["train"][0].flatten().tolist()) == raw[16 : 16 + 784]


def test_a_root_without_the_files_is_an_error_that_says_both_ways_out(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)MNIST.*Two ways out.*leave data.root out.*data.root=FOLDER"):
        mnist(root=str(tmp_path))
    assert not list(tmp_path.iterdir())  # nothing was downloaded or made there


def test_no_network_and_no_files_is_an_error_that_says_both_ways_out(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        ValueError, match=r"(?s)connect to the network, delete data/MNIST/raw.*data.root=FOLDER, where FOLDER/MNIST/raw"
    ):
        mnist()


def test_a_truncated_file_is_an_error_that_names_the_folder(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", pictures=12, side=28)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read MNIST from .*raw"):
        mnist(root=str(tmp_path))


def test_a_fingerprint_tells_sets_apart():
    a, b, c = (Images(*pictures(levels)).fingerprint for levels in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert a == b != c


def save(folder, sizes, **options):
    """PNG files 0.png, 1.png, ... of the given sizes (W, H); file i has the grey level i."""
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new("L", size, i).save(folder / f"{i:02}.png", **options)


def test_a_folder_of_pictures_is_read_with_its_classes(tmp_path):
    save(tmp_path / "cat", [(6, 4)] * 15)
    save(tmp_path / "dog" / "small", [(6, 4)] * 5)
    data = image_folder(str(tmp_path))
    assert data.shape == (3, 4, 6) and data.span == (-1.0, 1.0)
    assert [len(data.pictures[split]) for split in ("train", "heldout")] == [18, 2]
    x, y = data.batch(0, 18, seed=0)
    level = ((x[:, 0, 0, 0] + 1) / 2 * 255).round().int().tolist()
    assert sorted(zip(level, y.tolist(), strict=True)) == sorted(
        [(i, 0) for i in range(15) if i not in (0, 10)] + [(i, 1) for i in range(5)]
    )
    apart = image_folder(str(tmp_path / "cat"), heldout_root=str(tmp_path / "dog"))
    assert [len(apart.pictures[split]) for split in ("train", "heldout")] == [15, 5]


def test_what_does_not_fit_in_memory_is_streamed_and_is_the_same(tmp_path):
    save(tmp_path / "a", [(8, 8)] * 40)
    kept, streamed = (image_folder(str(tmp_path), dequantize=True, memory_gb=gb) for gb in (4.0, 0.0))
    assert isinstance(kept, Images) and isinstance(streamed, Streamed) and streamed.shape == kept.shape
    for k in (0, 1, 2, 3, 4, 11, 2, 3):  # over an epoch's end, ahead and back
        for a, b in zip(kept.batch(k, 8, seed=1), streamed.batch(k, 8, seed=1), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(kept.batch(k, 2, 0, "heldout", "report")[0], streamed.batch(k, 2, 0, "heldout", "report")[0])
    assert len(streamed.coming) <= images.AHEAD  # what was read ahead and passed by is forgotten
    assert Streamed({"train": [tmp_path / "a" / "00.png"]}, {}, streamed.read).fingerprint != streamed.fingerprint


def test_pictures_of_other_sizes_are_cut_to_size_or_refused(tmp_path):
    save(tmp_path / "a", [(8, 8)] * 3 + [(9, 16)])
    with pytest.raises(ValueError, match=r"03.png is 16 x 9, the first one 8 x 8: set data.size"):
        image_folder(str(tmp_path))
    assert image_folder(str(tmp_path), size=4).shape == (3, 4, 4)


def test_a_folder_that_is_none_or_holds_a_broken_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no pictures \(.jpg"):
        image_folder(str(tmp_path / "nowhere"))
    save(tmp_path / "a", [(8, 8)])
    with pytest.raises(ValueError, match="one picture is too few"):
        image_folder(str(tmp_path))
    whole = (tmp_path / "a" / "00.png").read_bytes()
    for broken in (b"no picture", whole[:40], whole.replace(b"IDAT", b"I\0AT")):
        (tmp_path / "a" / "01.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"01.png cannot be read.*Take it out"):
            image_folder(str(tmp_path))
    for wrong in ({"size": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match="must be >= 1"):
            image_folder(str(tmp_path), **wrong)


def test_cifar_files_are_read_where_they_lie_with_the_test_pictures_held_out(tmp_path, small_cifar):
    with pytest.raises(ValueError, match=r"(?s)cannot read CIFAR-10 from .*Three ways out.*image_folder"):
        cifar10(root=str(tmp_path / "nowhere"))
    data = cifar10(root=str(tmp_path))
    x, _ = data.batch(0, 70, seed=0)
    assert x.shape == (70, 3, 32, 32) and x.max() == 1 and x[:, 2, 0, 1].eq(-1).all() and (x == -1).sum() == 70
    assert data.batch(0, 3, seed=0, split="heldout")[0].eq(-1).all()
    dequantised = cifar10(root=str(tmp_path), dequantize=True).batch(0, 3, seed=0, split="heldout")[0]
    assert dequantised.min() >= -1 and dequantised.max() < -1 + 1 / 128  # Paper: U[0, 1/128)


@pytest.mark.data
def test_the_real_digits_are_split_as_the_released_code_does():
    import os

    data = mnist(root=os.environ["WGANGP_DATA"])
    assert len(data.pictures["train"]) == 50_000 and len(data.pictures["heldout"]) == 10_000
    assert data.labels["train"][:5].tolist() == [5, 0, 4, 1, 9]
    x, _ = data.batch(0, 1000, seed=0)
    assert x.mean().item() == pytest.approx(0.1307, abs=0.01)  # MNIST's well-known mean


@pytest.mark.gpu
def test_pictures_stay_on_the_device():
    data = Images(*pictures([0, 51, 255]), device="cuda")
    assert data.batch(0, 3, seed=0)[0].is_cuda and data.pictures["train"].is_cuda
