"""The figure about mistakes: what every mistake computes, against closed forms, and what the figure shows of it."""

import math

import pytest
import torch
from helpers import ROOT, render_folder, smooth_critic, write_idx
from omegaconf import OmegaConf
from torch import nn

from wgangp import check_per_sample, config, gradient_penalty
from wgangp.data.toy import gaussians8
from wgangp.figures import mistakes, study
from wgangp.figures.mistakes import DIGITS, PLANE, Mistakes, build_critic, build_generator, find_constant, format_finite
from wgangp.figures.textbook import LAMBDA, VERSIONS, Version, insert_batch_norm, penalize, train_pair
from wgangp.logs import read_lines
from wgangp.networks.dcgan import MNISTCritic
from wgangp.plots import to_bytes

CPU = torch.device("cpu")
SHAPE = (3, 4, 5)  # channels, rows, columns: all different
UNBOUNDED = ("no create_graph", "mixed scores")


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(1)


@pytest.fixture
def batch():
    return torch.randn(6, *SHAPE, dtype=torch.float64), torch.randn(6, *SHAPE, dtype=torch.float64)


class LinearCritic(nn.Module):
    """D(x) = w . x for pictures. It keeps the points that it is called with."""

    def __init__(self, w):
        super().__init__()
        self.w, self.points = nn.Parameter(w), []

    def forward(self, x):
        self.points.append(x.detach())
        return (x * self.w).flatten(1).sum(1)


class Shift:
    """Real samples are all at one point, whose distance to 0 is `distance`. All of its elements are equal."""

    shape = (1, 28, 28)

    def __init__(self, distance):
        self.real = torch.full(self.shape, distance / 28)

    def batch(self, k, size, seed, split="train", purpose="data"):
        return (self.real.expand(size, *self.shape),)


class ZeroGenerator(nn.Module):
    latent_dim = 1

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return self.unused * torch.zeros(len(z), *Shift.shape)


def train_toy(name, steps=3, critic=None, seed=0, version=None):
    """The weights of both networks on 8 Gaussians after a few updates."""
    data = gaussians8()
    torch.manual_seed(0)
    generator, critic = build_generator(data, 8), critic or build_critic(data, 8)
    stopped = train_pair(version or VERSIONS[name], generator, critic, data, steps, 1e-2, 16, seed)
    assert stopped is None
    return [p.detach() for network in (generator, critic) for p in network.parameters()]


def are_equal(weights, others):
    return all(p.equal(q) for p, q in zip(weights, others, strict=True))


class TestPenalties:
    @pytest.mark.parametrize("name", VERSIONS)
    def test_value_for_a_linear_critic_equals_the_closed_form(self, name, batch, rng):
        w = torch.randn(SHAPE, dtype=torch.float64)
        slope = w.square().sum().sqrt()
        by_hand = {  # the sum of squares is written out, axis by axis
            "norm over axis 1": ((w[0] ** 2 + w[1] ** 2 + w[2] ** 2).sqrt() - 1).square().mean(),
            "norm per column": ((w[:, 0] ** 2 + w[:, 1] ** 2 + w[:, 2] ** 2 + w[:, 3] ** 2).sqrt() - 1).square().mean(),
            "root of the mean square": (slope / math.sqrt(60) - 1).square(),
            "mixed scores": torch.tensor(0.0),
        }
        penalty = penalize(VERSIONS[name], LinearCritic(w), *batch, rng)
        torch.testing.assert_close(penalty.item(), 10 * by_hand.get(name, (slope - 1).square()).item())
        assert penalty.requires_grad == (name not in UNBOUNDED)

    def test_right_penalty_equals_that_of_the_package(self, batch, rng):
        critic = smooth_critic(60)
        eps = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(1)).flatten().double()
        expected = gradient_penalty(critic, *batch, weight=LAMBDA, eps=eps)
        torch.testing.assert_close(penalize(Version(), critic, *batch, rng), expected)

    @pytest.mark.parametrize(
        "name, axes", [("right", (1, 2, 3)), ("one eps per batch", (0, 1, 2, 3)), ("one eps per element", ())]
    )
    def test_eps_is_shared_by_sample_batch_or_nothing(self, name, axes, batch, rng):
        critic = LinearCritic(torch.ones(SHAPE, dtype=torch.float64))
        penalize(VERSIONS[name], critic, *batch, rng)
        real, fake = batch
        eps = (critic.points[-1] - fake) / (real - fake)
        shared = eps.mean(axes, keepdim=True) if axes else eps
        torch.testing.assert_close(eps, shared.expand_as(eps))
        assert len(shared.flatten().round(decimals=9).unique()) == shared.numel()
        assert eps.min() >= -1e-9 and eps.max() <= 1 + 1e-9

    def test_only_the_careless_root_has_no_derivative_where_the_gradient_is_zero(self, batch, rng):
        for name, version in VERSIONS.items():
            critic = LinearCritic(torch.zeros(SHAPE, dtype=torch.float64))
            penalty = penalize(version, critic, *batch, rng)
            if name not in UNBOUNDED:
                penalty.backward()
                careless = name in ("root without care at 0", "root of the mean square")
                assert critic.w.grad.isnan().all() if careless else (critic.w.grad == 0).all(), name

    def test_norms_are_counted_by_shape(self):
        counts = {name: v.count_norms and v.count_norms((1, 28, 28)) for name, v in VERSIONS.items()}
        k = {"norm over axis 1": 784, "norm per column": 28, "root of the mean square": 784}
        unbounded = dict.fromkeys((*UNBOUNDED, "batch norm in the critic"))
        assert counts == {name: {**k, **unbounded}.get(name, 1) for name in VERSIONS}


class TestTraining:
    @pytest.mark.parametrize("name", [name for name, version in VERSIONS.items() if version.count_norms])
    def test_linear_critic_gets_the_expected_slope(self, name):
        """W1 = 0.5, k norms: sqrt(k) + k W1 / (2 lambda), or lambda / B for a summed loss."""
        expected = {
            "norm over axis 1": 28 + 784 * 0.5 / 20,
            "norm per column": math.sqrt(28) + 28 * 0.5 / 20,
            "root of the mean square": 28 + 784 * 0.5 / 20,
            "loss summed over the batch": 1 + 4 * 0.5 / 20,
        }.get(name, 1 + 0.5 / 20)
        assert VERSIONS[name].expect_slope(Shift.shape, 4, 0.5) == pytest.approx(expected)
        critic = LinearCritic(torch.full(Shift.shape, expected / 28 / 2))  # half the slope
        train_pair(VERSIONS[name], ZeroGenerator(), critic, Shift(0.5), 100, expected / 2000, 4, 0)
        assert critic.w.norm().item() == pytest.approx(expected, rel=0.01)

    @pytest.mark.parametrize("name", UNBOUNDED)
    def test_without_a_penalty_the_slope_grows_with_every_update(self, name):
        slopes = []
        for steps in (20, 40):
            critic = LinearCritic(torch.full(Shift.shape, 0.1))
            train_pair(VERSIONS[name], ZeroGenerator(), critic, Shift(0.5), steps, 0.02, 4, 0)
            slopes.append(critic.w.norm().item())
        assert slopes[1] > 1.8 * slopes[0] > 50
        assert VERSIONS[name].expect_slope(Shift.shape, 4, 0.5) is None

    def test_two_ways_to_have_no_penalty_train_the_same_networks(self):
        assert are_equal(train_toy("no create_graph"), train_toy("mixed scores"))
        assert not are_equal(train_toy("no create_graph"), train_toy("right"))

    def test_every_mistake_but_one_changes_the_weights(self):
        right = train_toy("right")
        assert are_equal(right, train_toy("right"))
        for name in VERSIONS:
            critic = build_critic(gaussians8(), 8, batch_norm=True) if VERSIONS[name].batch_norm else None
            if critic is None and name not in ("right", "root without care at 0", "penalty in the generator's loss"):
                assert not are_equal(right, train_toy(name)), name

    def test_penalty_in_the_loss_of_the_generator_has_no_gradient_for_a_piecewise_linear_critic(self):
        assert are_equal(train_toy("right"), train_toy("penalty in the generator's loss"))

    def test_penalty_in_the_loss_of_the_generator_changes_it_for_a_smooth_critic(self):
        weights = []
        for name in ("right", "penalty in the generator's loss"):
            torch.manual_seed(3)
            weights.append(train_toy(name, critic=smooth_critic(2).float()))
        assert not are_equal(*weights)

    def test_training_stops_at_a_loss_that_is_not_finite(self):
        def diverge(gradient):
            calls.append(0)
            return gradient.flatten(1).norm(2, dim=1) * (math.nan if len(calls) > 12 else 1)

        calls = []
        data = gaussians8()
        networks = build_generator(data, 4), build_critic(data, 4)
        stopped = train_pair(Version(norm=diverge), *networks, data, 9, 1e-3, 8, 0)
        assert stopped == 3 and len(calls) == 15

    def test_weights_that_are_not_finite_after_the_last_update_are_reported(self):
        def diverge_last(gradient):
            calls.append(0)
            squares = gradient.flatten(1).square().sum(1)
            return (squares * 0).sqrt() + 1 if len(calls) > 5 else squares.sqrt()  # the value is 1, its derivative NaN

        calls = []
        generator = build_generator(gaussians8(), 4)
        version = Version(norm=diverge_last, in_generator=True)
        assert train_pair(version, generator, smooth_critic(2).float(), gaussians8(), 1, 1e-3, 8, 0) == 1
        assert len(calls) == 6 and any(p.isnan().any() for p in generator.parameters())


class TestBatchNorm:
    def test_mixes_the_samples_of_a_batch(self):
        x = torch.randn(6, 1, 1, 2)
        check_per_sample(build_critic(gaussians8(), 4), x)
        with pytest.raises(ValueError, match="mixes the samples"):
            check_per_sample(build_critic(gaussians8(), 4, batch_norm=True), x)

    def test_is_after_every_layer_but_the_last(self):
        layers = insert_batch_norm(MNISTCritic((1, 28, 28), 4).layers)
        kinds = [type(layer).__name__ for layer in layers]
        block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
        assert kinds == [*block, *block, *block, "Flatten", "Linear"]

    def test_constant_is_that_of_the_critic_in_eval_mode(self):
        critic = build_critic(gaussians8(), 4, batch_norm=True)
        for _ in range(20):
            critic(3 * torch.randn(50, 1, 1, 2) + 1)  # running statistics far from 0 and 1
        critic.eval()
        grid = torch.cartesian_prod(*[torch.linspace(-3, 3, 101, dtype=torch.float64)] * 2)
        x = grid.view(-1, 1, 1, 2).requires_grad_()
        (gradient,) = torch.autograd.grad(critic.double()(x).sum(), x)
        low, high = find_constant(critic[1], torch.zeros(1, 2))
        largest = gradient.flatten(1).norm(dim=1).max().item()
        assert largest <= high and low == pytest.approx(largest, rel=0.05) and high <= 1.06 * low

    def test_box_holds_samples_that_are_far_away(self, monkeypatch):
        boxes = []
        monkeypatch.setattr(mistakes, "lipschitz_on_box", lambda critic, low, high, **_: boxes.append((low, high)))
        for point in (1.0, -7.0):
            find_constant(build_critic(gaussians8(), 4)[1], torch.tensor([[0.5, point]]))
        assert boxes == [([-3.0] * 2, [3.0] * 2), ([-7.0] * 2, [7.0] * 2)]


class TestFigure:
    @pytest.fixture
    def figure(self, tmp_path, monkeypatch):
        """A tiny figure with three mistakes: the right version, one mistake, and one that diverges."""
        some = {name: VERSIONS[name] for name in ("right", "norm over axis 1", "norm per column")}
        bad = Version(norm=lambda gradient: gradient.flatten(1).norm(2, dim=1) * math.nan)
        monkeypatch.setattr(mistakes, "VERSIONS", {**some, "root without care at 0": bad})
        monkeypatch.setattr(mistakes, "HELD_OUT", 20)
        monkeypatch.setattr(mistakes, "NEW_CRITIC", 2)
        write_idx(tmp_path / "data" / "MNIST" / "raw", pictures=120, side=28)
        sizes = {"width": 4, "steps": 1, "digit_width": 4, "digit_steps": 1, "batch_size": 8, "digit_batch_size": 8}
        return Mistakes(**sizes, data_root=str(tmp_path / "data"))

    def test_study_goes_from_cells_to_picture_and_readme(self, figure, tmp_path, monkeypatch):
        monkeypatch.setattr(mistakes, "MAX_CELLS", 16)
        folder = study.reproduce(figure, "mistakes", "cpu", [0, 1], str(tmp_path / "out"), "cpu")
        records, page = read_lines(folder / "records.jsonl"), (folder / "README.md").read_text()
        assert len(records) == 2 * (4 + 3) and (folder / "mistakes.png").stat().st_size > 20_000
        rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
        assert rows["norm over axis 1"].count(" 28 ") == 1 and " 1.41 " in rows["norm over axis 1"]
        assert " 5.29 " in rows["norm per column"]
        assert rows["root without care at 0"].count("not finite") == 8
        assert "not finite" not in rows["right"] + rows["norm over axis 1"] + rows["norm per column"]
        assert render_folder(folder, "mistakes") == page

    def test_diverged_run_is_a_record_without_numbers(self, figure, tmp_path):
        for data in (DIGITS, PLANE):
            cell = {"data": data, "mistake": "root without care at 0"}
            record = figure.measure(cell, 0, tmp_path, CPU)
            assert record.pop("stopped") == 1 and set(record.values()) == {None}

    def test_every_mistake_starts_from_the_same_networks(self, figure, monkeypatch, tmp_path):
        starts = {DIGITS: [], PLANE: []}

        def remember(version, generator, critic, data, *_):
            starts[DIGITS if len(data.shape) == 3 else PLANE].append([p.clone() for p in generator.parameters()])
            return 1

        monkeypatch.setattr(mistakes, "train_pair", remember)
        for cell in figure.cells():
            figure.measure(cell, 3, tmp_path, CPU)
        for weights in starts.values():
            assert len(weights) >= 3 and all(are_equal(weights[0], others) for others in weights)

    def test_missing_digits_name_the_key_of_the_figure(self, figure, tmp_path):
        with pytest.raises(ValueError, match=r"figure\.data_root=FOLDER"):
            Mistakes(4, 1, 4, 1, data_root=str(tmp_path / "nowhere")).measure(figure.cells()[0], 0, tmp_path, CPU)

    def test_digits_survive_the_record(self, figure, tmp_path):
        x = torch.rand(16, 1, 28, 28)
        axes = AxesDouble()
        runs = [{"samples": mistakes.encode_pictures(tmp_path, x, (0, 1)), "slope": 1.0, "distance": 2.0}]
        mistakes.draw_panel(axes, DIGITS, "right", runs)
        assert (axes.image[1:29, 1:29] == to_bytes(x, (0, 1))[0, :, :, 0].numpy()).all()
        assert axes.label == "slope 1\ndistance 2"

    def test_settings_of_the_committed_folder_are_those_of_the_config(self, configure):
        saved = OmegaConf.load(ROOT / "results" / "mistakes" / "config.yaml").figure
        figure = config.build(configure("figure=mistakes", name="reproduce"), "figure")
        assert all(getattr(figure, key) == value for key, value in saved.items() if key != "data_root")

    def test_numbers_that_are_not_finite_are_counted(self):
        assert format_finite([]) == ""
        assert format_finite([None, None]) == "not finite"
        assert format_finite([1.0, None, 3.0]) == "2 +- 1 (1 of 3 not finite)"
        assert format_finite([0.51234]) == "0.512" and format_finite([30.04, 30.56]) == "30.3 +- 0.4"
        assert format_finite([2345.6, 4345.6]) == "3,346 +- 1,414" and format_finite([1.2345e6]) == "1.23e6"


class AxesDouble:
    """What draw_panel needs of matplotlib's axes for digits."""

    def set(self, **_):
        pass

    def imshow(self, image, *_, **__):
        self.image = image

    def set_xlabel(self, label):
        self.label = label
