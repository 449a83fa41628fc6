"""The figures: what they measure, draw and put into their tables. The sizes are tiny: nothing is learned."""

import json
import math

import pytest
import torch
from helpers import write_idx
from PIL import Image

from wgangp import config
from wgangp.data.toy import gaussians8
from wgangp.figures import common, gradient_norms, known_distance, mistakes, overfitting, penalties, value_surfaces
from wgangp.figures.common import count_seeds, describe_range, format_spread, select, train_critic
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty

CPU = torch.device("cpu")
NAMES = ("value_surfaces", "known_distance", "penalties", "gradient_norms", "overfitting", "mistakes")


@pytest.fixture(autouse=True)
def _small(monkeypatch, quick_pictures):
    monkeypatch.setattr(value_surfaces, "POINTS", 40)
    monkeypatch.setattr(value_surfaces, "HELD_OUT", 200)
    monkeypatch.setattr(value_surfaces, "DATA", {"8 Gaussians": gaussians8, "again": gaussians8})
    monkeypatch.setattr(penalties, "POINTS", 40)
    monkeypatch.setattr(penalties, "COUNTED", 100)
    monkeypatch.setattr(penalties, "DATA", {"8 Gaussians": gaussians8, "again": gaussians8})
    monkeypatch.setattr(known_distance, "DIMENSIONS", (2, 4))
    for name in ("HELD_OUT", "STARTS", "ASCENT"):
        monkeypatch.setattr(known_distance, name, 20)
    some = ("right", "norm over axis 1", "batch norm in the critic")
    monkeypatch.setattr(mistakes, "VERSIONS", {name: mistakes.VERSIONS[name] for name in some})
    monkeypatch.setattr(mistakes, "HELD_OUT", 20)
    monkeypatch.setattr(mistakes, "NEW_CRITIC", 2)
    value_surfaces.exact_distances.cache_clear()
    yield
    value_surfaces.exact_distances.cache_clear()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with 120 random images in the files of MNIST, for training and held out alike."""
    root = tmp_path_factory.mktemp("digits")
    write_idx(root / "MNIST" / "raw", pictures=120, side=28)
    return root


@pytest.fixture
def figures(digits):
    """Every figure at a tiny size."""
    small = {"width": 4, "batch_size": 8}
    return {
        "value_surfaces": value_surfaces.ValueSurfaces(iterations=2, **small),
        "known_distance": known_distance.KnownDistance(iterations=2, **small),
        "penalties": penalties.Penalties(steps=1, **small),
        "gradient_norms": gradient_norms.GradientNorms(steps=1, **small),
        "overfitting": overfitting.Overfitting(steps=4, log_every=1, digits=20, data_root=str(digits), **small),
        "mistakes": mistakes.Mistakes(
            steps=1, digit_width=4, digit_steps=1, digit_batch_size=8, data_root=str(digits), **small
        ),
    }


def linear_critic(dim, axis):
    """A critic with the weights of D(x) = x_axis: relu(x) - relu(-x), passed on by every layer."""
    critic = MLPCritic((dim,), width=4)
    layers = [module for module in critic.modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        layers[0].weight[0, axis], layers[0].weight[1, axis] = 1, -1
        for layer in layers[1:-1]:
            layer.weight[0, 0] = layer.weight[1, 1] = 1
        layers[-1].weight[0, 0], layers[-1].weight[0, 1] = 1, -1
    return critic


class TestEveryFigure:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_cell_is_measured_drawn_and_in_the_table(self, figures, name, tmp_path):
        figure = figures[name]
        cells = figure.cells()
        records = []
        for seed in (0, 1):
            for number, cell in enumerate(cells):
                numbers = figure.measure(cell, seed, tmp_path / f"run-{seed}-{number}", CPU)
                records.append({"seed": seed, **cell, **json.loads(json.dumps(numbers, allow_nan=False))})
        again = figure.measure(cells[0], 0, tmp_path / "again", CPU)
        assert json.loads(json.dumps(again)).items() <= records[0].items()  # a function of cell and seed
        assert records[0] != {**records[len(cells)], "seed": 0}  # the seed matters

        figure.draw(tmp_path / "figure.png", records)
        figure.draw(tmp_path / "one.png", records[: len(cells)])
        with Image.open(tmp_path / "figure.png") as image:
            assert image.width > 700 and len(image.convert("L").getcolors()) > 20

        rows, rows_of_one_seed = figure.table(records), figure.table(records[: len(cells)])
        assert len(rows) == len(rows_of_one_seed)
        for row in (*rows, *rows_of_one_seed):
            assert row.keys() == rows[0].keys()
            assert "nan" not in str(row) and "\n" not in "".join(row.values())
        assert any("+-" in value for row in rows for value in row.values())  # two seeds have a spread
        for cell in cells:
            assert any(str(list(cell.values())[-1]) in str(row) for row in rows)

    @pytest.mark.parametrize("budget, width", [("cpu", 128), ("paper", 512)])
    def test_scale_of_the_paper_is_one_override_away(self, configure, budget, width):
        for name in NAMES:
            figure = config.build(configure(f"figure={name}", f"budget={budget}", name="reproduce"), "figure")
            assert figure.width == (width if name != "overfitting" else width // 8)

    @pytest.mark.parametrize(
        "name, clips",
        [
            ("penalties", {"clipping": 0.01}),
            ("gradient_norms", gradient_norms.CRITICS),
            ("overfitting", {"clipping": 0.01}),
        ],
    )
    def test_penalty_and_clipping_reach_the_training_loop(self, figures, name, clips, monkeypatch, tmp_path):
        calls = []

        def interrupted_train(folder, run, **options):
            calls.append((run, options))
            return options["steps"] - 1  # as after Ctrl-C

        monkeypatch.setattr(common, "train", interrupted_train)
        for cell in figures[name].cells():
            with pytest.raises(KeyboardInterrupt):  # half a run is not measured
                figures[name].measure(cell, 0, tmp_path, CPU)
            run, options = calls[-1]
            clip = clips.get(next(reversed(cell.values())))
            assert options["clip"].weights == clip and options["clip"].gradient_norm is None
            assert (run.penalty.weight > 0) == (clip is None)
            for optimizer in (run.optim_generator, run.optim_critic):
                assert isinstance(optimizer, torch.optim.Adam if clip is None else torch.optim.RMSprop)
            if name == "overfitting":
                assert len(run.data.pictures["train"]) == 20 and len(run.data.pictures["heldout"]) == 20
                assert any("Norm" in type(m).__name__ for m in run.critic.modules()) == (clip is not None)
            if name == "gradient_norms":
                assert len(run.critic.layers) == 2 * 12 + 1
            if cell.get("penalty") == "zero-centered":
                assert run.penalty == GradientPenalty(10.0, target=0.0, points="real")
        assert len(calls) == len(figures[name].cells())


class TestValueSurfaces:
    def test_fixed_generator_is_other_real_points_plus_noise(self):
        data = gaussians8()
        real, fake = value_surfaces.draw_batch(data, 3, 4000, seed=1)
        assert torch.cdist(real, data.centers).min(1).values.max() < 0.1
        (other,) = data.batch(3, 4000, 1, purpose="fixed generator")
        noise = fake - other
        assert not real.equal(other)
        assert noise.mean(0).abs().max() < 0.06 and (noise.std(0) - 1).abs().max() < 0.05

    def test_batch_is_a_function_of_seed_step_and_split(self):
        data = gaussians8()
        _, fake = value_surfaces.draw_batch(data, 3, 9, 1)
        assert fake.equal(value_surfaces.draw_batch(data, 3, 9, 1)[1])
        assert not fake.equal(value_surfaces.draw_batch(data, 3, 9, 1, "heldout")[1])

    def test_exact_distance_is_at_most_the_mean_length_of_the_noise(self, monkeypatch):
        monkeypatch.setattr(value_surfaces, "POINTS", 500)
        distances = value_surfaces.exact_distances("8 Gaussians", 0)
        assert len(set(distances)) == value_surfaces.DRAWS
        assert 0.5 < min(distances) < max(distances) < math.sqrt(math.pi / 2)

    def test_surface_has_one_row_per_y_smallest_first(self):
        rows = value_surfaces.value_surface(linear_critic(dim=2, axis=1), gaussians8())
        assert rows[0][0] == pytest.approx(-3, abs=1e-3) and rows[-1][0] == pytest.approx(3, abs=1e-3)
        assert rows[5][0] == rows[5][-1]

    def test_two_sided_loss_is_computed_from_mean_and_std_of_the_slopes(self):
        slopes = torch.tensor([0.5, 1.0, 1.5, 2.0])
        record = {
            "gap": 0.7,
            "slopes": {"interpolates": {"mean": slopes.mean().item(), "std": slopes.std(correction=0).item()}},
        }
        expected = -0.7 + 10 * (slopes - 1).square().mean().item()
        assert value_surfaces.two_sided_loss([record, record]) == pytest.approx(expected)

    def test_every_critic_has_the_penalty_of_its_name(self):
        for name, (penalty, coupled) in value_surfaces.CRITICS.items():
            assert coupled == ("coupled" in name)
            assert penalty.weight == (0 if name == "clipping" else 10)
            assert penalty.sides == ("one" if name.startswith("one") else "two")
            for points in ("real", "fake", "perturbed"):
                assert (penalty.points == points) == name.endswith(points)

    def test_table_has_relative_errors_and_no_corrected_gap_for_clipping(self, figures, tmp_path):
        figure = figures["value_surfaces"]
        records = [{"seed": 0, **cell, **figure.measure(cell, 0, tmp_path, CPU)} for cell in figure.cells()]
        for record in records:
            record.update(w1=[0.5, 1.5], gap=0.9, corrected=record["corrected"] and 0.8)
        rows = {row["critic"]: row for row in figure.table(records)}
        assert list(rows) == list(value_surfaces.CRITICS)
        for critic, row in rows.items():
            assert row["gap / W1 - 1"] == "-10.0% +- 0.0%"
            assert row["corrected / W1 - 1"] == ("" if critic == "clipping" else "-20.0% +- 0.0%")


class TestKnownDistance:
    def test_best_critic_of_a_shift_gets_the_right_numbers(self, figures, monkeypatch, tmp_path):
        best = linear_critic(dim=4, axis=0).state_dict()
        monkeypatch.setattr(known_distance, "train_critic", lambda critic, *_: critic.load_state_dict(best))
        monkeypatch.setattr(known_distance, "HELD_OUT", 20_000)
        numbers = figures["known_distance"].measure({"pair": "shift", "dim": 4}, 0, tmp_path, CPU)
        assert numbers["gap"] == pytest.approx(1, abs=0.03)
        assert numbers["corrected"] == pytest.approx(10 * (math.sqrt(1 + numbers["gap"] / 5) - 1))
        assert numbers["cosine"] == pytest.approx(1, abs=1e-6) and numbers["slope"] == pytest.approx(1, abs=1e-6)
        assert numbers["steepest"] == pytest.approx(1, abs=1e-6)
        assert numbers["certified"] == pytest.approx(2, rel=1e-6)  # sqrt 2 in the first and the last layer
        assert numbers["proved"] == pytest.approx(numbers["gap"] / 2, rel=1e-6)
        assert numbers["proved_interval"][0] < numbers["proved"] < numbers["proved_interval"][1]

    def test_table_has_a_row_per_pair_and_dimension(self, figures):
        figure = figures["known_distance"]
        keys = ("proved", "certified", "steepest", "slope", "cosine")
        records = [
            {"seed": 0, **cell, "distance": 2.0, "gap": 2.1, "corrected": 1.9, **dict.fromkeys(keys, 1.0)}
            for cell in figure.cells()
        ]
        rows = figure.table(records)
        assert [row["pair"] for row in rows] == ["shift, d = 2", "shift, d = 4", "funnels, d = 2", "funnels, d = 4"]
        assert {row["gap / W1 - 1"] for row in rows} == {"+5.0%"}
        assert {row["corrected / W1 - 1"] for row in rows} == {"-5.0%"}


class TestGradientNorms:
    def test_layer_gradients_equal_the_chain_rule_by_hand(self):
        critic = MLPCritic((2,), width=5, depth=3)
        real, fake = torch.randn(6, 2), torch.randn(6, 2) + 1
        weights = [m.weight.detach().double() for m in critic.layers if isinstance(m, torch.nn.Linear)]
        h, masks = torch.cat([real, fake]).double(), []
        for w in weights[:-1]:
            h = h @ w.T
            masks.append((h > 0).double())
            h = h * masks[-1]
        gradient = torch.cat([-torch.ones(6), torch.ones(6)]).double().unsqueeze(1) / 6 @ weights[-1]
        expected = [gradient.norm().item()]
        for w, mask in zip(weights[-2:0:-1], masks[::-1][:-1], strict=True):
            gradient = (gradient * mask) @ w
            expected.insert(0, gradient.norm().item())
        assert gradient_norms.layer_gradients(critic, real, fake) == pytest.approx(expected)

    def test_all_clipped_weights_are_in_the_histogram(self, figures, tmp_path):
        numbers = figures["gradient_norms"].measure({"critic": "clip 0.001"}, 0, tmp_path, CPU)
        critic = MLPCritic((2,), width=4, depth=12)
        assert sum(numbers["histogram"]["counts"]) == sum(p.numel() for p in critic.parameters() if p.ndim == 2)
        assert 0 < numbers["at_the_bound"] <= 1
        assert 0.9 < numbers["before"]["at_the_bound"] <= 1  # He-uniform weights are larger: the first clip does this
        assert len(numbers["before"]["norms"]) == len(numbers["norms"]) == 12

    def test_table_has_the_growth_from_the_last_layer_to_the_first(self, figures):
        record = {
            "norms": [1.0, 1e-5, 1e-2],
            "at_the_bound": 0.5,
            "before": {"norms": [1e-3, 1e-2, 1.0], "at_the_bound": 0.25},
        }
        records = [{"seed": 0, **cell, **record} for cell in figures["gradient_norms"].cells()]
        rows = figures["gradient_norms"].table(records)
        assert [row["critic"] for row in rows] == list(gradient_norms.CRITICS)
        assert list(rows[0].values())[1:] == ["+2.0", "-3.0", "5.0", "50%", "25%"]

    def test_table_leaves_the_share_at_the_bound_empty_without_clipping(self, figures):
        record = {"norms": [1.0], "at_the_bound": None, "before": {"norms": [1.0], "at_the_bound": None}}
        records = [{"seed": 0, **cell, **record} for cell in figures["gradient_norms"].cells()]
        assert list(figures["gradient_norms"].table(records)[-1].values())[-2:] == ["", ""]


class TestPenalties:
    def test_table_has_the_distance_between_two_samples_of_the_data(self, figures):
        figure = figures["penalties"]
        numbers = {"floor": 0.05, "modes": 8, "high_quality": 0.25}
        records = [{"seed": s, **cell, "w1": 0.1 + s / 10, **numbers} for s in (0, 1) for cell in figure.cells()]
        rows = figure.table(records)
        assert [(row["data"], row["penalty"]) for row in rows] == [tuple(cell.values()) for cell in figure.cells()]
        for row in rows:
            assert list(row.values())[2:] == ["0.150 +- 0.071", "0.050 +- 0.000", "8.0 +- 0.0", "25% +- 0%"]


class TestOverfitting:
    def test_training_digits_are_a_random_choice_of_the_seed(self, digits):
        data = overfitting.mnist(str(digits))
        few, again, other = (overfitting.choose_digits(data, 7, seed) for seed in (0, 0, 1))
        assert len(few.pictures["train"]) == len(few.labels["train"]) == 7
        positions = [(data.pictures["train"] == image).flatten(1).all(1).nonzero() for image in few.pictures["train"]]
        positions = [position.item() for position in positions]
        assert len(set(positions)) == 7 and few.labels["train"].equal(data.labels["train"][positions])
        assert few.fingerprint == again.fingerprint != other.fingerprint

    def test_held_out_digits_stay_the_same(self, digits):
        data = overfitting.mnist(str(digits))
        assert overfitting.choose_digits(data, 7, 0).pictures["heldout"].equal(data.pictures["heldout"])

    def test_trend_is_the_slope_of_the_last_half_per_100_updates(self):
        assert overfitting.trend([9, 9, 1.0, 1.5, 2.0, 2.5], [0, 10, 20, 30, 40, 50]) == pytest.approx(5.0)

    def test_table_has_last_values_and_trends_of_both_curves(self, figures):
        curves = {"step": [0, 100, 200, 300], "training": [0, 0, 1.0, 1.5], "held out": [0, 0, 1.0, 0.75]}
        records = [{"seed": 0, **cell, **curves} for cell in figures["overfitting"].cells()]
        rows = figures["overfitting"].table(records)
        assert [row["critic"] for row in rows] == ["penalty", "clipping"]
        assert list(rows[0].values())[1:] == ["4", "1.5", "+0.5", "0.75", "-0.25"]

    def test_curve_with_too_few_points_is_refused_before_training(self):
        with pytest.raises(ValueError, match="log_every = 300: with steps = 600 it must be <= 150"):
            overfitting.Overfitting(width=4, steps=600, log_every=300)


class TestCommon:
    def test_train_critic_updates_every_weight(self):
        critic = MLPCritic((2,), width=8)
        before = [p.clone() for p in critic.parameters()]
        batch = torch.randn(16, 2), torch.randn(16, 2)
        train_critic(critic, lambda k: batch, 3, 1e-3, GradientPenalty(), seed=0)
        assert all(not p.equal(q) for p, q in zip(critic.parameters(), before, strict=True) if p.ndim == 2)

    def test_train_critic_clips_the_weights(self):
        critic = MLPCritic((2,), width=8)
        batch = torch.randn(16, 2), torch.randn(16, 2)
        train_critic(critic, lambda k: batch, 1, 1e-3, GradientPenalty(weight=0), seed=0, clip_weights=0.01)
        assert max(p.abs().max().item() for p in critic.parameters()) <= 0.01

    def test_train_critic_refuses_a_loss_that_is_not_finite(self):
        batch = torch.full((16, 2), math.inf), torch.randn(16, 2)
        with pytest.raises(ValueError, match=r"diverged.*Lower figure\.lr"):
            train_critic(MLPCritic((2,), width=8), lambda k: batch, 1, 1e-3, GradientPenalty(), seed=0)

    def test_diverging_networks_name_the_key_of_the_figure(self, tmp_path):
        figure = penalties.Penalties(width=4, steps=5, batch_size=8, lr=1e30)
        with pytest.raises(ValueError, match=r"not finite.*Try a lower figure\.lr") as error:
            figure.measure(figure.cells()[0], 0, tmp_path, CPU)
        assert "optim.lr" not in str(error.value) and "clip.gradient_norm" not in str(error.value)

    def test_format_spread_is_mean_and_standard_deviation(self):
        assert format_spread([1.0, 3.0]) == "2.000 +- 1.414" and format_spread([0.5], "+.0%") == "+50%"
        assert format_spread([0.1, 0.3], "+.0%") == "+20% +- 14%"

    def test_seeds_are_counted_once_and_named(self):
        records = [{"seed": 0}, {"seed": 2}, {"seed": 2}]
        assert count_seeds(records) == "2 seeds" and count_seeds(records[:1]) == "1 seed"
        assert describe_range(records) == "mean and range over 2 seeds" and describe_range(records[:1]) == "1 seed"

    def test_select_returns_the_records_of_a_cell(self):
        records = [{"seed": seed, "a": "x"} for seed in (0, 2)]
        assert select(records, a="x", seed=2) == records[1:] and select(records, a="y") == []
