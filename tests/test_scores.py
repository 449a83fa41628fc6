import gc
import hashlib
import json
import math
import os
import signal
import sys
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import TINY
from torch import nn

from wgangp.config import build_run, train_options, train_scores
from wgangp.data.images import Images, mnist
from wgangp.data.stacked import StackedImages
from wgangp.data.text import Text
from wgangp.data.toy import gaussians8, gaussians25
from wgangp.generate import BATCH, generate_batches
from wgangp.logs import read_lines, read_metrics
from wgangp.metrics import classifier, efficientnet, features, inception, scores
from wgangp.metrics.classifier import load_classifier, train_classifier
from wgangp.metrics.features import WIDTHS, Features, FeatureSpace, compare_features, extract_features, to_bytes
from wgangp.metrics.modes import count_modes
from wgangp.metrics.scores import MAIN, NAMES, SAMPLES, build_scores, find_best, list_scores
from wgangp.networks.layers import BatchNorm
from wgangp.precision import product_precision
from wgangp.report import evaluate
from wgangp.seeds import draw_latent
from wgangp.train import train


@pytest.fixture
def few(monkeypatch):
    """Subsets of 12 images in place of 1,000."""
    monkeypatch.setattr(features, "SUBSET_SIZE", 12)


def draw_features(seed, n, width=5, classes=4):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=rng) * torch.linspace(0.5, 2, width) + seed
    return Features(x, torch.randn(n, classes, generator=rng) * 2)


def write_out_inception_score(logits, splits):
    """exp(E KL(p(y | x) | p(y))) of contiguous parts: mean and standard deviation."""
    p = logits.double().softmax(1)
    values = []
    for i in range(splits):
        part = p[len(p) * i // splits : len(p) * (i + 1) // splits]
        marginal = part.mean(0)
        values.append(math.exp(sum((row * (row / marginal).log()).sum() for row in part) / len(part)))
    return np.mean(values), np.std(values)


def write_out_frechet(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    cx, cy = np.cov(x.T), np.cov(y.T)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * scipy.linalg.sqrtm(cx @ cy).real)


def write_out_kernel(x, y):
    """The unbiased squared MMD with the kernel (x . y / F + 1)^3."""
    x, y = x.double(), y.double()

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    same = [(kernel(a, a).sum() - kernel(a, a).diagonal().sum()) / (n * (n - 1)) for a in (x, y)]
    return (same[0] + same[1] - 2 * kernel(x, y).mean()).item()


def test_scores_of_features_are_those_of_the_definitions(few):
    x, y = draw_features(0, 12), draw_features(1, 12)  # a subset of 12 is then the whole set
    values = compare_features(x, y, "small")
    mean, sd = write_out_inception_score(x.logits, splits=10)
    assert values["small_is"] == pytest.approx(mean, rel=1e-9)
    assert values["small_is_sd"] == pytest.approx(sd, rel=1e-9)
    assert values["small_fid"] == pytest.approx(write_out_frechet(x.features, y.features), rel=1e-6)
    assert values["small_kid"] == pytest.approx(write_out_kernel(x.features, y.features), rel=1e-6)
    assert values["small_kid_sd"] == pytest.approx(0, abs=1e-9)


def test_parts_of_the_inception_score_are_contiguous(few):
    x, y = draw_features(0, 60), draw_features(1, 60)
    order = x.logits.argmax(1).argsort()
    by_class = Features(x.features, x.logits[order])
    values, mixed = compare_features(by_class, y, "s"), compare_features(x, y, "s")
    assert values["s_is"] == pytest.approx(write_out_inception_score(by_class.logits, 10)[0], rel=1e-9)
    assert values["s_is"] < 0.8 * mixed["s_is"]  # a shuffle would make them nearly equal


def test_too_few_samples_are_refused_with_the_minimum():
    big = draw_features(0, 1_500)
    for samples, reference, kind in (
        (draw_features(0, 999), big, "999 samples"),
        (big, draw_features(0, 20), "20 ref"),
    ):
        with pytest.raises(ValueError, match=f"{kind}.*at least 1,000"):
            compare_features(samples, reference, "s")
    with pytest.raises(ValueError, match=r"at least 1,281.*1,280 features"):
        features.require_samples("efficientnet", 1_280, 1_280)


def test_scores_do_not_touch_global_random_numbers(few):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    compare_features(draw_features(0, 30), draw_features(1, 30), "s")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_bytes_are_the_floor_of_256_times_the_value():
    x = torch.tensor([-1.0, -1 + 2 * 0.99 / 256, -1 + 2 / 256, 0.0, 1.0, 1.5]).view(1, 1, 1, 6)
    assert to_bytes(x, (-1.0, 1.0)).flatten().tolist() == [0, 0, 1, 128, 255, 255]
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(pixels.float() / 255, (0.0, 1.0)), pixels)


# Inception: the weights are checked before torch-fidelity opens them.


@pytest.fixture
def small_inception(monkeypatch):
    """A small network in place of torch-fidelity's; returns the paths that it was loaded from."""
    opened = []

    class Extractor(nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            assert features_list == ["2048", "logits_unbiased"]
            opened.append(feature_extractor_weights_path)

        def forward(self, x):
            flat = x.float().flatten(1)
            return flat[:, :4], flat[:, 4:7] / 99

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3", Extractor)
    inception.load_inception.cache_clear()
    yield opened
    inception.load_inception.cache_clear()


def test_weights_with_another_sha256_are_not_opened(small_inception, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not the weights")
    with pytest.raises(ValueError, match=r"its sha256 is .*6726825d0af5"):
        inception.load_inception(str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        inception.load_inception(str(tmp_path / "none"))
    assert small_inception == []


def test_weights_are_downloaded_once_against_the_published_sha256(small_inception, tmp_path, monkeypatch):
    asked = []

    def download(url, path, sha256):
        asked.append((url, sha256))
        path.parent.mkdir()
        path.write_bytes(b"weights")

    monkeypatch.setattr(inception, "download", download)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="sha256"):  # what came is checked again
        inception.load_inception()
    assert asked == [(inception.URL, inception.SHA256)]
    assert inception.URL.startswith("https://")
    path = tmp_path / "checkpoints" / inception.NAME
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"weights").hexdigest())
    space = inception.load_inception()
    assert len(asked) == 1
    assert small_inception == [str(path)]
    assert space.facts["weights"] == inception.SHA256[:8]


def test_features_of_inception_are_scored_as_the_definitions_say(small_inception, few, tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"weights").hexdigest())
    space = inception.load_inception(str(file))
    gray, color = (torch.randint(256, (12, channels, 4, 4), dtype=torch.uint8) for channels in (1, 3))
    x, y = (extract_features(space, [pictures]) for pictures in (gray, color))
    flat = gray.expand(-1, 3, -1, -1).float().flatten(1)
    assert torch.equal(x.features, flat[:, :4]) and torch.equal(x.logits, flat[:, 4:7] / 99)
    values = compare_features(x, y, space.name)
    assert values["inception_is"] == pytest.approx(write_out_inception_score(x.logits, splits=10)[0], rel=1e-9)
    assert values["inception_fid"] == pytest.approx(write_out_frechet(x.features, y.features), rel=1e-6)
    assert values["inception_kid"] == pytest.approx(write_out_kernel(x.features, y.features), rel=1e-6)


def test_failed_download_says_what_to_do(small_inception, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError("no route")

    monkeypatch.setattr(inception, "download", fail)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"no route.*weights=FILE.*scores=\[efficientnet\]"):
        inception.load_inception()


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"torch-fidelity.*wgangp\[metrics\]"):
        features.require_library("torch_fidelity", "torch-fidelity")


# EfficientNet.


def test_efficientnet_has_1280_features_and_leaves_random_numbers_alone():
    efficientnet.load_efficientnet.cache_clear()
    before = torch.get_rng_state()
    space = efficientnet.load_efficientnet(size=64)
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = extract_features(space, [x, x[:1]])
    assert torch.equal(torch.get_rng_state(), before)
    assert out.features.shape == (4, WIDTHS["efficientnet"]) == (4, 1_280)
    assert out.logits.shape == (4, 1_000)
    torch.testing.assert_close(out.features[3], out.features[0])  # a sample does not depend on its batch
    gray = extract_features(space, [x[:, :1]]).features
    torch.testing.assert_close(gray, extract_features(space, [x[:, :1].expand(-1, 3, -1, -1)]).features)
    assert space.facts == {"weights": "57934424", "classifier": "EfficientNet-Lite0", "pixels": 64}
    efficientnet.load_efficientnet.cache_clear()


def test_efficientnet_with_other_weights_is_refused(monkeypatch):
    efficientnet.load_efficientnet.cache_clear()
    monkeypatch.setattr(efficientnet, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"its sha256 is 57934424.*expected is 0000"):
        efficientnet.load_efficientnet()


# The classifier.


def draw_stripes(count, rng):
    """Gray images of 12 x 12 with one of four classes: where the bright stripe is."""
    labels = torch.randint(4, (count,), generator=rng)
    pictures = torch.randint(0, 60, (count, 1, 12, 12), generator=rng, dtype=torch.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[0, 3 * label : 3 * label + 3] += 180
    return pictures, labels


@pytest.fixture(scope="module")
def stripes():
    rng = torch.Generator().manual_seed(0)
    parts = {split: draw_stripes(n, rng) for split, n in (("train", 300), ("heldout", 60))}
    return Images({s: x for s, (x, _) in parts.items()}, {s: y for s, (_, y) in parts.items()})


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Torch's cache in a new folder, and a classifier that is trained for 60 updates."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "home"))
    monkeypatch.setattr(classifier, "train_classifier", partial(train_classifier, steps=60))
    load_classifier.cache_clear()
    yield tmp_path / "home" / "wgangp"
    load_classifier.cache_clear()


def test_classifier_learns_its_data_and_is_trained_once(stripes, home):
    before = torch.get_rng_state()
    space = load_classifier(stripes)
    assert torch.equal(torch.get_rng_state(), before)
    (file,) = home.iterdir()
    assert file.name == f"classifier-{stripes.fingerprint[:16]}.pt"
    assert space.facts["accuracy"] > 0.95
    load_classifier.cache_clear()
    written = file.read_bytes()
    again = load_classifier(stripes)
    assert file.read_bytes() == written
    assert again.facts == space.facts
    x = stripes.take("heldout", torch.arange(60))
    right = (classifier.classify(again, x) == stripes.labels["heldout"]).double().mean().item()
    assert right == pytest.approx(space.facts["accuracy"])
    out = extract_features(space, [x])
    assert out.features.shape == (60, WIDTHS["classifier"]) == (60, 512)
    assert (out.features >= 0).all()  # after the ReLU


def test_classifier_is_a_function_of_its_data(stripes):
    first, second = (train_classifier(stripes, steps=5)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_classifier_of_other_data_and_other_files_are_refused(stripes, home, tmp_path):
    load_classifier(stripes)
    (file,) = home.iterdir()
    rng = torch.Generator().manual_seed(1)
    pictures, labels = draw_stripes(40, rng)
    other = Images({"train": pictures, "heldout": pictures}, {"train": labels, "heldout": labels})
    with pytest.raises(ValueError, match="trained on other data"):
        load_classifier(other, str(file))
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        load_classifier(stripes, str(damaged))
    saved = torch.load(file, weights_only=True)
    for changed in ({"shape": [1, 16, 16]}, {"classes": 3}):  # streamed images have the sha256 of names and sizes
        torch.save(saved | changed, damaged)
        with pytest.raises(ValueError, match="trained on other data"):
            load_classifier(stripes, str(damaged))
    for weights in ({}, {name: x[:1] for name, x in saved["weights"].items()}):
        torch.save(saved | {"weights": weights}, damaged)
        with pytest.raises(ValueError, match=r"damaged\.pt: its weights do not fit"):
            load_classifier(stripes, str(damaged))
    torch.save({"weights": {}}, damaged)
    with pytest.raises(ValueError, match="not a classifier"):
        load_classifier(stripes, str(damaged))


def test_classifier_that_cannot_be_written_is_not_trained(stripes, home, tmp_path, monkeypatch):
    def fail(*arguments):
        raise AssertionError("trained")

    monkeypatch.setattr(classifier, "train_classifier", fail)
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    places = {tmp_path / "file" / "c.pt": "cannot be written"}
    for path, message in (places | dict.fromkeys((tmp_path, tmp_path / "pipe"), "is not a file")).items():
        with pytest.raises(ValueError, match=f"classifier = .*{message}"):
            load_classifier(stripes, str(path))


def test_data_is_not_kept_after_its_run(stripes):
    data = Images(stripes.pictures, stripes.labels)
    calls = []

    def extract(x):
        calls.append(len(x))
        return x.flatten(1).float(), x.flatten(1).float()

    space = FeatureSpace("classifier", extract, {})
    first, second = (scores._extract_real(data, space, "heldout") for _ in range(2))
    assert first is second
    assert calls == [16, 16, 16, 12]  # once, in pieces
    kept = weakref.ref(data)
    del data
    gc.collect()
    assert kept() is None


def test_runs_on_the_same_images_share_the_features_of_real_ones():
    def build(seed, splits=("train", "heldout")):
        rng = torch.Generator().manual_seed(seed)
        pictures = {split: torch.randint(0, 256, (6, 1, 4, 4), generator=rng).byte() for split in splits}
        return Images(pictures, dict.fromkeys(pictures, torch.zeros(6, dtype=torch.int64)))

    def load(weights):  # anew for each run, as the classifier is
        return FeatureSpace("classifier", lambda x: (x, x), {"weights": weights})

    calls = []

    @features.cache_per_content
    def compute(images, space, split="train"):
        calls.append((space.facts["weights"], split))
        return images.take(split, torch.arange(6))

    first, same, other = build(0), build(0), build(1)
    assert compute(first, load("a")) is compute(same, load("a"))
    assert torch.equal(compute(same, load("a"), "heldout"), first.pictures["heldout"])  # arguments count
    assert calls == [("a", "train"), ("a", "heldout")]
    compute(first, load("b"))
    assert calls[2:] == [("b", "train")]  # weights count
    assert torch.equal(compute(other, load("a")), other.pictures["train"])
    assert torch.equal(compute(first, load("a")), first.pictures["train"])
    unknown, twin = build(0), build(0)
    unknown.take, twin.take = first.take, first.take
    del unknown.pictures, twin.pictures
    assert compute(unknown, load("a")) is not compute(twin, load("a"))
    tested, others = build(0, ("train", "heldout", "test")), build(0, ("train", "heldout", "test"))
    others.pictures["test"] = 255 - others.pictures["test"]  # the fingerprint is that of the two other splits
    assert others.fingerprint == tested.fingerprint
    assert not torch.equal(compute(tested, load("a"), "test"), compute(others, load("a"), "test"))
    for name in "abcdefg":
        compute(first, load(name))
    before = len(calls)
    compute(first, load("g")), compute(first, load("a"))
    assert calls[before:] == [("a", "train")]  # the oldest results are not kept


@pytest.mark.parametrize(
    "data", [gaussians8(), Images({"train": torch.zeros(9, 3, 8, 8, dtype=torch.uint8)}, {"train": torch.arange(9)})]
)
def test_classifier_needs_gray_images_with_labels(data):
    with pytest.raises(ValueError, match="gray images with labels"):
        load_classifier(data)


# Modes.


def test_reverse_kl_is_that_of_the_definition():
    values = count_modes(torch.tensor([0, 0, 0, 2]), total=4)
    assert values["modes"] == 2
    assert values["reverse_kl"] == pytest.approx(0.75 * math.log(0.75 * 4) + 0.25 * math.log(0.25 * 4))
    assert count_modes(torch.arange(1_000), 1_000) == {"modes": 1_000, "reverse_kl": pytest.approx(0, abs=1e-12)}


def test_reverse_kl_of_a_perfect_generator_is_half_of_modes_by_samples():
    drawn = [torch.randint(1_000, (26_000,), generator=torch.Generator().manual_seed(i)) for i in range(5)]
    mean = sum(count_modes(modes, 1_000)["reverse_kl"] for modes in drawn) / 5
    assert mean == pytest.approx(999 / 52_000, rel=0.1)


# Scores of runs.


def test_scores_that_fit_the_data_are_the_default(stripes):
    assert list_scores(gaussians8()) == ["points", "critic"]
    assert list_scores(stripes) == ["classifier", "critic"]
    assert list_scores(StackedImages(stripes, 30)) == ["modes", "critic"]
    ids = torch.zeros(9, 4, dtype=torch.uint8)
    assert list_scores(Text({"train": ids, "heldout": ids}, "ab")) == ["ngrams", "critic"]
    color = Images({"train": torch.zeros(9, 3, 8, 8, dtype=torch.uint8)}, {"train": torch.arange(9)})
    assert list_scores(color) == ["efficientnet", "critic"]
    assert set(SAMPLES) == set(NAMES)
    assert {name.split("_")[0] for name in MAIN} == set(NAMES) - {"critic"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ["coverage"]}, "choose among points"),
        ({"scores": []}, "choose among points"),
        ({"scores": ["critic", "critic"]}, "at most once"),
        ({"scores": ["modes"]}, "needs stacked digits.*points, critic"),
        ({"scores": ["inception"]}, "needs images"),
        ({"scores": ["ngrams"]}, "needs text"),
        ({"scores": ["classifier"]}, "gray images with labels"),
        ({"n": 1}, "n = 1"),
        ({"n": 5_001}, "at most 5,000"),
        ({"seed": -1}, "seed = -1"),
        (
            {"reference": "test"},
            "reference = test: it is for classifier, efficientnet, inception, not for points, critic",
        ),
        ({"weights": "file"}, "weights = file: it is for inception"),
        ({"classifier": "file"}, "classifier = file: it is for classifier, modes"),
    ],
)
def test_scores_that_do_not_fit_are_refused(configure, options, message):
    run = build_run(configure(*TINY))
    with pytest.raises(ValueError, match=message):
        build_scores(run, **options)


class Exact(nn.Module):
    """A generator that draws from the data: z decides."""

    latent_dim = 2

    def __init__(self, draw):
        super().__init__()
        self.draw, self.dummy = draw, nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return self.draw(z)


def test_points_of_the_data_have_the_scores_of_the_data(configure):
    run = build_run(configure(*TINY, "data=gaussians25"))
    data = gaussians25()
    generator = Exact(lambda z: data.draw(len(z), torch.Generator().manual_seed(int(z[0, 0] * 1e6) % 2**31)))
    run = replace(run, generator=generator)
    (score,) = build_scores(run, scores=["points"], n=2_000)
    values = evaluate(run, 0, [score])
    assert values["points_modes"] == values["real_points_modes"] == 25
    assert values["points_high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)
    assert values["points_w1"] == pytest.approx(values["real_points_w1"], rel=0.5)
    assert values["points_reverse_kl"] == pytest.approx(24 / 4_000, rel=0.8)
    assert score.settings["n"] == 2_000


def test_gap_of_the_critic_is_the_mean_over_all_batches(configure):
    run = build_run(configure(*TINY))
    (score,) = build_scores(run, scores=["critic"], n=300)
    values = evaluate(run, 0, [score])
    z = torch.cat([draw_latent(run.generator, BATCH, 0, k, "evaluate/critic")[0] for k in (0, 1)])
    for split in ("train", "heldout"):
        real = torch.cat([run.data.batch(k, BATCH, 0, split, purpose="evaluate")[0] for k in (0, 1)])[:300]
        with torch.no_grad():
            gap = (run.critic(real).double().mean() - run.critic(run.generator(z))[:300].double().mean()).item()
        assert values[f"critic_{split}_gap"] == pytest.approx(gap, abs=1e-5)
    assert values["critic_overfitting"] == values["critic_train_gap"] - values["critic_heldout_gap"]


def test_modes_of_stacked_digits_are_those_of_the_classifier(stripes, home, configure):
    data = StackedImages(stripes, 200)
    images = data.take("train", torch.arange(200))
    order = iter(range(99))
    run = build_run(configure(*TINY))
    generator = Exact(lambda z: images[(torch.arange(len(z)) + 256 * next(order)) % 50].float() / 255)
    run = replace(run, data=data, generator=generator)
    data.span = (0.0, 1.0)
    (score,) = build_scores(run, scores=["modes"], n=300)
    values = score.compute(run, 0)
    space = load_classifier(stripes)
    digits = classifier.classify(space, images[:50].flatten(0, 1).unsqueeze(1)).view(50, 3)
    modes = (digits * torch.tensor([100, 10, 1])).sum(1)
    repeated = torch.cat([modes[(torch.arange(256) + 256 * k) % 50] for k in (0, 1)])[:300]
    assert values["modes_covered"] == len(modes.unique())
    assert values["modes_reverse_kl"] == pytest.approx(count_modes(repeated, 1_000)["reverse_kl"])
    assert score.settings["accuracy"] == space.facts["accuracy"]
    assert values["real_modes_n"] == 40  # all held-out images


def test_images_are_compared_with_the_reference_and_real_ones_with_the_same(stripes, few, home, configure, monkeypatch):
    monkeypatch.setattr(scores, "BATCH", 16)

    def extract(x):
        flat = x.float().flatten(1)
        return flat[:, :6], flat[:, 6:10] / 99

    space = FeatureSpace("classifier", extract, {"weights": "abc"})
    monkeypatch.setitem(scores.WIDTHS, "classifier", 6)
    monkeypatch.setattr(scores, "load_classifier", lambda *arguments: space)
    run = build_run(configure(*TINY))
    shades = torch.linspace(0, 1, 144).view(12, 12)
    generator = Exact(lambda z: z.sum(1).sigmoid().view(-1, 1, 1, 1) * shades)
    run = replace(run, data=stripes, generator=generator)
    (score,) = build_scores(run, scores=["classifier"], n=40)
    values = score.compute(run, 0)
    batches = [to_bytes(x, (0.0, 1.0)) for x in generate_batches(run, 40, 0)]
    held_out = extract_features(space, [stripes.pictures["heldout"]])
    direct = compare_features(extract_features(space, batches), held_out, "classifier")
    assert values["classifier_is"] == pytest.approx(direct["classifier_is"])
    assert values["classifier_fid"] == pytest.approx(direct["classifier_fid"], rel=1e-4)
    chosen = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:40]
    real = compare_features(extract_features(space, [stripes.take("train", chosen)]), held_out, "classifier")
    assert values["real_classifier_fid"] == pytest.approx(real["classifier_fid"], rel=1e-4)
    assert score.settings["reference"] == "the 60 images of heldout" and score.settings["splits"] == features.SPLITS
    with pytest.raises(ValueError, match=r"reference = test.*train, heldout"):
        build_scores(run, scores=["classifier"], n=40, reference="test")


def test_test_digits_are_the_reference_where_there_are_some(small_mnist):
    data = mnist(str(small_mnist))
    assert len(data.labels["test"]) == 600
    assert scores._choose_reference("classifier", data) == "test"
    assert scores._choose_reference("inception", data) == "train"


def test_reference_of_an_early_stream_is_read_in_whole(stripes):
    read = torch.cat(list(scores._read_images(stripes, "heldout")))
    assert torch.equal(read.flatten(1).sort(0).values, stripes.pictures["heldout"].flatten(1).sort(0).values)


def test_wrong_samples_are_refused_before_anything_is_loaded(stripes, configure, monkeypatch):
    def load(*arguments):
        raise AssertionError("loaded")

    monkeypatch.setattr(scores, "load_classifier", load)
    run = replace(build_run(configure(*TINY)), data=stripes)
    for options, message in (
        ({"n": 999}, "999 samples are too few.*at least 1,000"),
        ({"reference": "test"}, "reference = test.*train, heldout"),
        ({}, "60 images of reference = heldout are too few.*at least 1,000"),
    ):
        with pytest.raises(ValueError, match=message):
            build_scores(run, scores=["classifier"], **options)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="needs the package torch-fidelity"):
        build_scores(run, scores=["classifier"])


def test_score_of_the_critic_names_the_generator_that_it_was_trained_against(configure):
    run = build_run(configure(*TINY, "ema.decay=0.5"))
    points, critic = build_scores(run, n=20)
    assert "batch norm" not in points.settings  # this generator has none
    for layer, policy in ((BatchNorm(3), f"statistics of batches of {BATCH}"), (nn.BatchNorm2d(3), "running averages")):
        assert scores._describe_samples(run, nn.Sequential(layer))["batch norm"] == policy
    assert points.settings["generator"] == "moving average of the weights"
    assert critic.settings["generator"] == "last weights"


def test_number_of_lines_is_at_most_that_of_the_held_out_ones(configure):
    ids = torch.zeros(9, 4, dtype=torch.uint8)
    run = replace(build_run(configure(*TINY)), data=Text({"train": ids, "heldout": ids[:5]}, "ab"))
    (score,) = build_scores(run, scores=["ngrams"])
    assert score.settings["n"] == 5


# Evaluation during training.


@pytest.mark.usefixtures("quick_pictures", "quick_reports", "no_trial")
def test_evaluation_does_not_change_the_training(configure, tmp_path):
    common = [*TINY, "train.steps=6", "train.checkpoint_every=3"]
    for name, extra in (("with", ["train.evaluate_every=2", "evaluate.n=40"]), ("without", [])):
        cfg = configure(*common, *extra)
        run = build_run(cfg)
        assert train(tmp_path / name, run, **train_options(cfg), scores=train_scores(cfg, run)) == 6
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step_00000006.pt", weights_only=True)
        for name in ("with", "without")
    ]
    flat = [[*state["generator"].values(), *state["critic"].values()] for state in states]
    assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
    lines = read_metrics(tmp_path / "with" / "metrics.jsonl")
    assert [line["step"] for line in lines if "points_w1" in line] == [0, 2, 4, 6]
    plain = {line["step"]: line for line in read_metrics(tmp_path / "without" / "metrics.jsonl")}
    for line in lines:
        assert plain.get(line["step"], line).items() <= line.items()


@pytest.mark.usefixtures("quick_pictures", "quick_reports", "no_trial")
def test_failed_score_warns_and_the_training_goes_on(configure, tmp_path, capsys):
    cfg = configure(*TINY, "train.steps=2", "train.evaluate_every=1")
    run = build_run(cfg)

    def fail(run, step):
        raise RuntimeError("out of memory")

    failing = scores.Score("points", fail, {})
    lost = scores.Score("critic", lambda run, step: {"critic_gap": math.nan}, {})
    good = scores.Score("ngrams", lambda run, step: {"ngrams_js1": float(step)}, {})
    assert train(tmp_path, run, **train_options(cfg), scores=[failing, lost, good]) == 2
    warnings = capsys.readouterr().err
    assert "step 1: the score points failed (out of memory)" in warnings
    assert "critic_gap: not finite" in warnings
    assert [line["ngrams_js1"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0.0, 1.0, 2.0]


@pytest.mark.usefixtures("quick_pictures", "quick_reports", "no_trial")
def test_checkpoint_with_the_best_score_is_kept(configure, tmp_path):
    cfg = configure(*TINY, "train.steps=6", "train.evaluate_every=1")
    run = build_run(cfg)
    numbers = {0: 9.0, 1: 3.0, 2: 1.0, 3: 5.0, 4: 6.0, 5: 7.0, 6: 8.0}
    falling = scores.Score("points", lambda run, step: {"points_w1": numbers[step]}, {})
    rising = scores.Score("modes", lambda run, step: {"modes_covered": numbers[step]}, {})
    train(tmp_path, run, **train_options(cfg), scores=[falling, rising])
    kept = sorted(int(path.stem[5:]) for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert kept == [0, 2, 5, 6]
    assert find_best(read_metrics(tmp_path / "metrics.jsonl")) == {"points_w1": 2, "modes_covered": 0}
    (tmp_path / "metrics.jsonl").unlink()  # the best steps are not known: nothing is deleted
    for steps in (6, 8):
        cfg = configure(*TINY, f"train.steps={steps}")
        train(tmp_path, build_run(cfg), **train_options(cfg))
    assert {0, 2, 5, 6, 8} <= {int(path.stem[5:]) for path in (tmp_path / "checkpoints").glob("*.pt")}


def test_random_layers_and_random_states_do_not_see_an_evaluation(configure):
    run = build_run(configure(*TINY))
    before = torch.get_rng_state()

    def draw(run, step):
        return {"points_w1": torch.rand(()).item(), "points_eval": float(run.generator.training)}

    first, second = (evaluate(run, step, [scores.Score("points", draw, {})]) for step in (0, 1))
    assert first == second
    assert first["points_eval"] == 0.0
    assert run.generator.training
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_is_in_fp32_at_every_precision_of_training(configure):
    run = build_run(configure(*TINY))
    convolutions = torch.backends.cudnn.conv

    def read(run, step):
        return {"points_w1": float(convolutions.fp32_precision == "ieee")}

    score = scores.Score("points", read, {})
    for precision in ("tf32", "fp32"):
        with product_precision(precision):
            before = convolutions.fp32_precision
            assert evaluate(run, 0, [score])["points_w1"] == 1.0
            assert convolutions.fp32_precision == before


@pytest.mark.usefixtures("quick_pictures", "quick_reports", "no_trial")
def test_settings_of_the_scores_are_in_the_provenance(configure, tmp_path):
    cfg = configure(*TINY, "train.steps=1", "train.evaluate_every=1")
    score = scores.Score("points", lambda run, step: {"points_w1": 0.5}, {"n": 7})
    train(tmp_path, build_run(cfg), **train_options(cfg), scores=[score])
    (line,) = read_lines(tmp_path / "provenance.jsonl")
    assert line["scores"] == {"points": {"n": 7}}


@pytest.mark.usefixtures("quick_pictures", "quick_reports", "no_trial")
def test_resumed_run_has_the_same_log_and_the_same_best_checkpoint(configure, tmp_path):
    score = scores.Score("points", lambda run, step: {"points_w1": abs(step - 2.0)}, {})
    for name, parts in (("whole", [8]), ("parts", [3, 4, 8])):
        for steps in parts:
            cfg = configure(*TINY, f"train.steps={steps}", "train.evaluate_every=2", "train.checkpoint_every=3")
            train(tmp_path / name, build_run(cfg), **train_options(cfg), scores=[score])
            # As after kill -9 between a line of the log and its checkpoint.
            with (tmp_path / name / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": steps + 1, "points_w1": -1.0}) + "\n")
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [line for line in parts if line["step"] % 2 == 0] == [line for line in whole if line["step"] % 2 == 0]
    for name in ("whole", "parts"):
        assert (tmp_path / name / "checkpoints" / "step_00000002.pt").exists()


@pytest.mark.usefixtures("quick_pictures", "quick_reports", "no_trial")
def test_stop_in_the_first_evaluation_leaves_a_run_that_continues(configure, tmp_path):
    cfg = configure(*TINY, "train.steps=2", "train.evaluate_every=1")

    def stop(run, step):
        signal.raise_signal(signal.SIGTERM)
        return {"points_w1": 0.0}

    for compute, steps in ((stop, 0), (lambda run, step: {"points_w1": 1.0}, 2)):
        score = scores.Score("points", compute, {})
        assert train(tmp_path, build_run(cfg), **train_options(cfg), scores=[score]) == steps
    assert [line["points_w1"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 1.0, 1.0]


def test_evaluation_options_are_checked_before_training(configure):
    cfg = configure(*TINY, "train.evaluate_every=5", "evaluate.n=1")
    with pytest.raises(ValueError, match=r"evaluate\.n = 1"):
        train_scores(cfg, build_run(cfg))
    cfg = configure(*TINY, "evaluate.n=1")
    assert train_scores(cfg, build_run(cfg)) == []
