"""The figures: what they measure, draw and put into their tables. The sizes are tiny: nothing is learned."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from helpers import write_idx
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from wgangp import config, critic_step, gradient_norm, lipschitz_on_box, wasserstein1
from wgangp.data.toy import gaussians8
from wgangp.figures import (
    common,
    default_run,
    fixed_generator,
    gradient_norms,
    known_distance,
    korotin,
    lipschitz_table,
    mistakes,
    overfitting,
    penalties,
    value_surfaces,
)
from wgangp.figures.common import count_seeds, describe_range, draw_band, format_spread, select, train_critic
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty
from wgangp.seeds import initialize, rng_for

CPU = torch.device("cpu")
CONSTRAINTS = lipschitz_table.CONSTRAINTS
NAMES = (
    "default_run",
    "value_surfaces",
    "known_distance",
    "penalties",
    "gradient_norms",
    "overfitting",
    "lipschitz_table",
    "korotin",
    "mistakes",
)
WIDTHS = {"overfitting": (16, 64), "value_surfaces": (128, 1024)}  # with budget=cpu and budget=paper


def search_briefly(*arguments, **options):
    return lipschitz_on_box(*arguments, **options | {"max_cells": 16})


@pytest.fixture(autouse=True)
def _small(monkeypatch, quick_pictures, quick_reports):
    monkeypatch.setattr(fixed_generator, "POINTS", 40)
    for module in (fixed_generator, lipschitz_table, korotin):
        monkeypatch.setattr(module, "lipschitz_on_box", search_briefly)
    names = ("two-sided, lambda 100", "zero at real (R1)", "spectral norm", "clipping at 0.1")
    monkeypatch.setattr(lipschitz_table, "LOOKS", (0.5, 0.7))
    monkeypatch.setattr(lipschitz_table, "CONSTRAINTS", {name: lipschitz_table.CONSTRAINTS[name] for name in names})
    monkeypatch.setattr(lipschitz_table, "PANELS", {name: [name] for name in names})
    monkeypatch.setattr(korotin, "HELD_OUT", 20)
    monkeypatch.setattr("wgangp.data.pairs.TRUTH_SIZE", 2**14)
    monkeypatch.setattr(common, "POINTS", 40)
    monkeypatch.setattr(common, "COUNTED", 100)
    monkeypatch.setattr(penalties, "DATA", {"8 Gaussians": gaussians8, "again": gaussians8})
    monkeypatch.setattr(known_distance, "DIMENSIONS", (2, 4))
    for name in ("HELD_OUT", "STARTS", "ASCENT"):
        monkeypatch.setattr(known_distance, name, 20)
    fixed_generator.compute_distances.cache_clear()
    some = ("right", "norm over axis 1", "batch norm in the critic")
    monkeypatch.setattr(mistakes, "VERSIONS", {name: mistakes.VERSIONS[name] for name in some})
    monkeypatch.setattr(mistakes, "HELD_OUT", 20)
    monkeypatch.setattr(mistakes, "NEW_CRITIC", 2)
    monkeypatch.setattr(mistakes, "MAX_CELLS", 16)
    yield
    fixed_generator.compute_distances.cache_clear()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with 120 random images in the files of MNIST, for training and held out alike."""
    root = tmp_path_factory.mktemp("digits")
    write_idx(root / "MNIST" / "raw", pictures=120, side=28)
    return root


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory):
    """A folder with random pairs in the files of the benchmark of Korotin et al."""
    root = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    arrays, lines = {}, ["dim,funnels,method,cosine,l2,wasserstein"]
    for dim, funnels in product((2, 8), (4, 16)):
        arrays[f"d{dim}_n{funnels}_centers"] = rng.uniform(-2.5, 2.5, (funnels, dim)).astype("float32")
        arrays[f"d{dim}_n{funnels}_bias"] = rng.uniform(0, 0.1, funnels).astype("float32")
        lines += [
            f"{dim},{funnels},{method},0,0,{value}"
            for method, value in (("true", 2.0), ("wgan-gp", 2.2), ("wgan-lp", 1.9), ("sort-out", 1.0))
        ]
    np.savez(root / "pairs.npz", **arrays)
    (root / "published.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def figures(digits, benchmark):
    """Every figure at a tiny size."""
    small = {"width": 4, "batch_size": 8}
    names = ["clipping", "two-sided, paired", "two-sided, coupled", "one-sided, independent", "lambda 0.1, paired"]
    return {
        "default_run": default_run.DefaultRun(steps=2, ema_decay=0.5, **small),
        "value_surfaces": value_surfaces.ValueSurfaces(
            iterations=2, data=["8 Gaussians", "Swiss roll"], critics=names, **small
        ),
        "lipschitz_table": lipschitz_table.LipschitzTable(
            iterations=20, data=["8 Gaussians", "Swiss roll"], max_cells=2000, **small
        ),
        "korotin": korotin.Korotin(
            str(benchmark), 2, 2, dims=[2, 8], funnels=[16], critics=list(korotin.CRITICS), batch_size=8
        ),
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
                numbers = json.loads(json.dumps(numbers, allow_nan=False))
                records.append({"seed": seed, **cell, **numbers, "seconds": 1.5})
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

    @pytest.mark.parametrize("budget", ["cpu", "paper"])
    def test_scale_of_the_paper_is_one_override_away(self, configure, budget):
        figure = config.build(
            configure("figure=korotin", "figure.data_root=x", f"budget={budget}", name="reproduce"), "figure"
        )
        assert figure.iterations == {"cpu": 6_000, "paper": 60_000}[budget]
        for name in set(NAMES) - {"korotin", "default_run"}:
            figure = config.build(configure(f"figure={name}", f"budget={budget}", name="reproduce"), "figure")
            assert figure.width == WIDTHS.get(name, (128, 512))[budget == "paper"]

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
                for network in (run.generator, run.critic):  # the paper: "unregularized"
                    assert not any("Norm" in type(m).__name__ for m in network.modules())
                assert run.generator.width == 4 and run.critic.layers[0].out_channels == 4
            if name == "gradient_norms":
                assert len(run.critic.layers) == 2 * 12 + 1
            if cell.get("penalty") == "zero-centered":
                assert run.penalty == GradientPenalty(10.0, target=0.0, points="real")
        assert len(calls) == len(figures[name].cells())


class Potential(torch.nn.Module):
    """D(x) = -min_n ||x - c_n||: an optimal critic against points that spread from the centers."""

    def __init__(self, centers):
        super().__init__()
        self.centers = torch.nn.Parameter(centers)

    def forward(self, x):
        return -torch.cdist(x, self.centers).amin(1)


class TestFixedGenerator:
    def test_fixed_generator_is_other_real_points_plus_noise(self):
        data = gaussians8()
        real, fake = fixed_generator.draw_batch(data, 3, 4000, seed=1)
        assert torch.cdist(real, data.centers).min(1).values.max() < 0.1
        (other,) = data.batch(3, 4000, 1, purpose="fixed generator")
        noise = fake - other
        assert not real.equal(other)
        assert noise.mean(0).abs().max() < 0.06 and (noise.std(0) - 1).abs().max() < 0.05

    def test_batch_is_a_function_of_seed_step_and_split(self):
        data = gaussians8()
        _, fake = fixed_generator.draw_batch(data, 3, 9, 1)
        assert fake.equal(fixed_generator.draw_batch(data, 3, 9, 1)[1])
        assert not fake.equal(fixed_generator.draw_batch(data, 3, 9, 1, "heldout")[1])

    def test_paired_fakes_are_the_real_points_plus_the_same_noise(self):
        data = gaussians8()
        real, fake = fixed_generator.draw_batch(data, 3, 4000, 1)
        same, paired = fixed_generator.draw_batch(data, 3, 4000, 1, pairing="paired")
        (other,) = data.batch(3, 4000, 1, purpose="fixed generator")
        torch.testing.assert_close(paired - same, fake - other, rtol=0, atol=1e-6)
        assert same.equal(real)

    def test_coupled_fakes_are_a_permutation_with_the_shortest_way(self):
        data = gaussians8()
        real, fake = fixed_generator.draw_batch(data, 3, 200, 1)
        same, coupled = fixed_generator.draw_batch(data, 3, 200, 1, pairing="coupled")
        assert same.equal(real) and coupled.sort(0).values.equal(fake.sort(0).values)
        assert (real - coupled).norm(dim=1).mean().item() == pytest.approx(wasserstein1(real, fake), rel=1e-5)

    def test_real_points_repeat_and_the_noise_does_not(self):
        data = gaussians8()
        batches = [fixed_generator.draw_batch(data, k, 9, 1, pairing="paired", repeat=3) for k in range(4)]
        assert batches[0][0].equal(batches[2][0]) and not batches[0][0].equal(batches[3][0])
        assert not batches[0][1].equal(batches[2][1])

    def test_exact_distance_is_at_most_the_mean_length_of_the_noise(self, monkeypatch):
        monkeypatch.setattr(fixed_generator, "POINTS", 500)
        distances = fixed_generator.compute_distances("8 Gaussians", 0)
        assert len(set(distances)) == fixed_generator.DRAWS
        assert 0.5 < min(distances) < max(distances) < math.sqrt(math.pi / 2)

    def test_proved_bound_is_below_the_exact_distance_of_every_sample(self, monkeypatch):
        monkeypatch.setattr(fixed_generator, "lipschitz_on_box", lipschitz_on_box)
        torch.manual_seed(0)
        for scale in (0.1, 1, 10):
            critic = MLPCritic((2,), width=16)
            for name, p in critic.named_parameters():  # with biases of 0 all kinks would meet in the origin
                p.data += torch.randn_like(p) * name.endswith("bias")
            critic.layers[-1].weight.data *= scale
            numbers = fixed_generator.evaluate(critic, "8 Gaussians", 0, 10.0)
            assert all(proved <= w1 for proved, w1 in zip(numbers["proved"], numbers["w1"], strict=True))
            low, high = numbers["constant"]
            assert numbers["slopes"]["real"]["max"] <= high <= 1.01 * low * (1 + 1e-6)
            assert numbers["proved"][1] == pytest.approx(numbers["gaps"][1] / high)

    def test_peaks_are_counted_at_the_modes(self):
        centers = gaussians8().centers
        assert fixed_generator.count_peaks(Potential(centers), centers) == 8
        assert fixed_generator.count_peaks(Potential(centers[:3]), centers) == 3
        assert fixed_generator.count_peaks(Potential(torch.zeros(1, 2)), centers) == 0  # a tent over the middle
        assert fixed_generator.count_peaks(linear_critic(dim=2, axis=0), centers) == 0

    def test_grid_has_one_row_per_y_smallest_first(self):
        rows = fixed_generator.evaluate_grid(linear_critic(dim=2, axis=1), (-3.0, 3.0), 9)
        assert rows[0][0] == pytest.approx(-3, abs=1e-3) and rows[-1][0] == pytest.approx(3, abs=1e-3)
        assert rows[5][0] == rows[5][-1]
        slopes = fixed_generator.evaluate_grid(linear_critic(dim=2, axis=0), (1.0, 3.0), 4, slope=True)
        assert {value for row in slopes for value in row} == {1.0}


class TestValueSurfaces:
    def test_every_critic_has_the_penalty_and_the_pairing_of_its_name(self):
        for name, (penalty, pairing) in value_surfaces.CRITICS.items():
            assert name == "clipping" or name.endswith(pairing)
            assert penalty.weight == (0 if name == "clipping" else 0.1 if "0.1" in name else 10)
            assert penalty.sides == ("one" if name.startswith("one") else "two")
            assert penalty.points == "interpolates"
        assert len(value_surfaces.CRITICS) == 10

    def test_pairing_and_repeat_reach_the_batches(self, monkeypatch, figures, tmp_path):
        options = []
        draw_batch = value_surfaces.draw_batch

        def record(*arguments, **keywords):
            options.append(keywords)
            return draw_batch(*arguments, **keywords)

        monkeypatch.setattr(value_surfaces, "draw_batch", record)
        figure = replace(figures["value_surfaces"], repeat=7)
        figure.measure({"data": "8 Gaussians", "critic": "two-sided, coupled"}, 0, tmp_path, CPU)
        assert options == [{"pairing": "coupled", "repeat": 7}] * 2

    def test_table_has_relative_errors_and_no_corrected_gap_for_clipping(self, figures, tmp_path):
        figure = figures["value_surfaces"]
        records = [{"seed": 0, **cell, **figure.measure(cell, 0, tmp_path, CPU)} for cell in figure.cells()]
        for record in records:
            record.update(w1=[0.5, 1.5], gap=0.9, corrected=record["corrected"] and 0.8, proved=[0.4, 1.2])
            if record["peaks"] is not None:
                record["peaks"] = 8 if record["critic"].startswith("two") else 3
        rows = figure.table(records)
        assert [(row["data"], row["critic"]) for row in rows] == [(c["data"], c["critic"]) for c in figure.cells()]
        for row in rows:
            assert row["gap / W1 - 1"] == "-10.0%" and row["proved / W1 - 1"] == "-20.0%"
            assert row["corrected / W1 - 1"] == ("" if row["critic"] == "clipping" else "-20.0%")
            shows_all = {True: "1", False: "0"}[row["critic"].startswith("two")]
            assert row["seeds that show all modes"] == (shows_all if row["data"] == "8 Gaussians" else "")

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"data": ["9 Gaussians"]}, "figure.data.*'8 Gaussians'"),
            ({"critics": []}, "figure.critics.*'clipping'"),
            ({"critics": ["clipping", "clipping"]}, "once each"),
            ({"repeat": 0}, "figure.repeat = 0"),
        ],
    )
    def test_wrong_settings_are_refused(self, figures, change, message):
        with pytest.raises(ValueError, match=message):
            replace(figures["value_surfaces"], **change)


class TestLipschitzTable:
    @pytest.fixture(autouse=True)
    def _all(self, monkeypatch):
        monkeypatch.setattr(lipschitz_table, "CONSTRAINTS", CONSTRAINTS)

    def test_every_constraint_is_what_its_name_says(self):
        constraints = lipschitz_table.CONSTRAINTS
        assert len(constraints) == 13
        assert [c.clip for name, c in constraints.items() if "clipping" in name] == [0.01, 0.1]
        weights = {name: c.penalty.weight for name, c in constraints.items()}
        assert [weights[f"two-sided{part}"] for part in ("", *(f", lambda {v}" for v in ("0.1", "1", "100")))] == [
            10,
            0.1,
            1,
            100,
        ]
        assert all(weights[name] == 0 for name in ("spectral norm", "orthogonal"))
        for name, points in (("R1", "real"), ("R2", "fake")):
            (penalty,) = (c.penalty for full, c in constraints.items() if full.endswith(f"({name})"))
            assert (penalty.points, penalty.target) == (points, 0)

    def test_penalty_at_both_is_the_sum_of_the_two(self):
        critic, real, fake = MLPCritic((2,), width=8), torch.randn(5, 2), torch.randn(5, 2)
        total = lipschitz_table.CONSTRAINTS["zero at both (R1 + R2)"].penalty(critic, real, fake)
        parts = [gradient_norm(critic, x).square() * 10 for x in (real, fake)]
        torch.testing.assert_close(total, sum(parts))

    def test_critics_by_construction_are_1_lipschitz(self):
        for name in ("spectral norm", "orthogonal"):
            critic = lipschitz_table.CONSTRAINTS[name].build((2,), 16, 3)
            for _ in range(30):  # spectral norm converges in train mode
                critic(torch.randn(4, 2))
            assert 0 < lipschitz_on_box(critic, [-3.0, -3.0], [3.0, 3.0])[1] <= 1.02

    def test_gap_is_that_of_eval_mode_and_changes_nothing(self):
        critic = lipschitz_table.CONSTRAINTS["spectral norm"].build((2,), 16, 3)
        before = {name: value.clone() for name, value in critic.state_dict().items()}
        points = torch.randn(2, 50, 2)
        gaps = {fixed_generator.measure_gap(critic, *points) for _ in range(3)}
        assert all(value.equal(before[name]) for name, value in critic.state_dict().items()) and critic.training
        critic.eval()
        real, fake = (critic(x).double().mean().item() for x in points)
        assert list(gaps) == pytest.approx([real - fake], abs=1e-12)

    def test_constant_is_computed_through_training(self, figures, tmp_path):
        figure = figures["lipschitz_table"]
        cell = {"data": "8 Gaussians", "constraint": "one-sided"}
        numbers = figure.measure(cell, 0, tmp_path, CPU)
        assert [point["iteration"] for point in numbers["curve"]] == [10, 14, 20]
        assert all(0 < point["constant"][0] <= point["constant"][1] for point in numbers["curve"])
        assert numbers["curve"][-1]["constant"] == numbers["constant"]
        other = figure.measure({**cell, "data": "Swiss roll"}, 0, tmp_path, CPU)
        assert len(other["curve"]) == 3 and "constant" not in other["curve"][0]


def test_band_goes_from_the_smallest_to_the_largest_run():
    axes = Figure().subplots()
    color = draw_band(axes, [1, 2], [[0.0, 4.0], [1.0, 6.0], [5.0, 5.0]], label="x")
    (line,), (band,) = axes.lines, axes.collections
    assert line.get_xydata().tolist() == [[1, 2], [2, 5]] and line.get_color() == color
    ends = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert ends == {(1, 0), (1, 5), (2, 4), (2, 6)}


class TestKorotin:
    def test_published_values_are_those_of_the_pair(self, figures, tmp_path):
        cell = {"dim": 2, "funnels": 4, "critic": "one-sided"}
        numbers = figures["korotin"].measure(cell, 0, tmp_path, CPU)
        assert (numbers["published"], numbers["published_distance"]) == (1.9, 2.0)
        low, high = numbers["constant"]
        assert 0 < low <= high  # in the plane both are computed
        assert numbers["proved"] == pytest.approx(numbers["gap"] / high)

    def test_missing_table_is_named(self, figures, tmp_path):
        with pytest.raises(ValueError, match=r"figure.data_root: cannot read .*published.csv"):
            korotin.read_published(str(tmp_path), 2, 4)
        with pytest.raises(ValueError, match=r"no value of .*true"):
            korotin.read_published(figures["korotin"].data_root, 3, 4)

    def test_chosen_pairs_are_measured_drawn_and_listed(self, figures, tmp_path):
        figure = replace(figures["korotin"], dims=[8], critics=["one-sided"])
        (cell,) = figure.cells()
        records = [{"seed": seed, **cell, **figure.measure(cell, seed, tmp_path, CPU)} for seed in (0, 1)]
        figure.draw(tmp_path / "picture.png", records)
        assert (tmp_path / "picture.png").exists()
        assert [(row["pair"], row["critic"]) for row in figure.table(records)] == [("D = 8, N = 16", "one-sided")]

    @pytest.mark.parametrize(
        "key, chosen, known",
        [
            ("dims", [3], "2, 8, 32"),
            ("dims", [2, 2], "2, 8, 32"),
            ("funnels", [], "4, 16, 64, 256"),
            ("critics", ["clipping"], "'two-sided', 'one-sided', 'by construction'"),
        ],
    )
    def test_what_is_no_pair_or_critic_is_refused(self, figures, key, chosen, known):
        with pytest.raises(ValueError, match=rf"figure\.{key} = .*: one or more of {known}, once each"):
            replace(figures["korotin"], **{key: chosen})


class TestDefaultRun:
    def test_settings_are_those_of_the_default_run(self, configure):
        """The figure at its settings composes the config that scripts/train.py composes, for the variant "decay"."""
        figure, composed = config.build(configure("figure=default_run", name="reproduce"), "figure"), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(default_run, "train_command", lambda folder, overrides: composed.append(overrides))
            for cell in figure.cells():
                with pytest.raises(AttributeError):  # nothing is trained
                    figure.measure(cell, 0, None, CPU)
        decay = figure.ema_decay
        changes = [
            {"train.decay_steps": None},
            {},
            {"train.decay_steps": None, "ema.decay": decay},
            {"ema.decay": decay},
        ]
        for overrides, changed in zip(composed, changes, strict=True):
            expected = configure("device=cpu")
            for key, value in changed.items():
                OmegaConf.update(expected, key, value)
            assert configure(*overrides) == expected

    def test_commands_of_the_table_are_what_is_measured(self, figures):
        figure = figures["default_run"]
        numbers = {"w1": 0.1, "floor": 0.05, "seconds": 100.0}
        records = [
            {"seed": seed, **cell, **numbers, "modes": modes, "high_quality": share}
            for cell in figure.cells()
            for seed, (modes, share) in enumerate([(8, 0.5), (7, 0.9), (8, 0.8)])
        ]
        rows = figure.table(records)
        assert [row["command"] for row in rows] == [
            "`scripts/train.py train.decay_steps=null`",
            "`scripts/train.py`",
            "`scripts/train.py train.decay_steps=null ema.decay=0.5`",
            "`scripts/train.py ema.decay=0.5`",
        ]
        for row in rows:
            assert list(row.values())[2:] == [
                "8 of 8",
                "80%",
                "73% +- 21%",
                "0.100 +- 0.000",
                "0.050 +- 0.000",
                "100 +- 0",
            ]

    def test_samples_are_of_the_average_where_there_is_one(self, figures, tmp_path):
        none, decay, average, both = (
            figures["default_run"].measure(cell, 0, tmp_path / cell["variant"], CPU)
            for cell in figures["default_run"].cells()
        )
        assert none["samples"] != decay["samples"] and none["samples"] != average["samples"] != both["samples"]
        assert not (tmp_path / "decay" / "config.yaml").exists()

    def test_interrupted_run_is_not_measured(self, figures, tmp_path, monkeypatch):
        monkeypatch.setattr("wgangp.figures.study.train", lambda folder, run, **options: 1)
        with pytest.raises(KeyboardInterrupt):
            figures["default_run"].measure({"variant": "both"}, 0, tmp_path, CPU)


class TestKnownDistance:
    def test_best_critic_of_a_shift_gets_the_right_numbers(self, figures, monkeypatch, tmp_path):
        best = linear_critic(dim=4, axis=0).state_dict()
        monkeypatch.setattr("wgangp.figures.common.train_critic", lambda critic, *_, **__: critic.load_state_dict(best))
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

    def test_train_critic_equals_the_steps_by_hand(self):
        critics = [initialize(lambda: MLPCritic((2,), width=8), 0, "critic") for _ in range(2)]
        batches = [(torch.randn(16, 2), torch.randn(16, 2)) for _ in range(3)]
        train_critic(critics[0], lambda k: batches[k], 3, 1e-2, GradientPenalty(), seed=5, betas=(0.0, 0.9), decay=True)
        optimizer = torch.optim.Adam(critics[1].parameters(), betas=(0.0, 0.9), fused=True)
        for k, (real, fake) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = 1e-2 * (3 - k) / 3
            critic_step(critics[1], optimizer, real, fake, torch.rand(16, generator=rng_for(5, k, "eps")))
        for p, q in zip(*(critic.parameters() for critic in critics), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)

    def test_train_critic_looks_before_every_iteration_and_at_the_end(self):
        critic, seen = MLPCritic((2,), width=8), []
        batch = torch.randn(16, 2), torch.randn(16, 2)

        def look(k):
            seen.append((k, critic.layers[0].weight.clone()))

        train_critic(critic, lambda k: batch, 2, 1e-3, GradientPenalty(), seed=0, look=look)
        assert [k for k, _ in seen] == [0, 1, 2]
        assert not seen[0][1].equal(seen[1][1]) and seen[2][1].equal(critic.layers[0].weight)

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
