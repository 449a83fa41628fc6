"""A figure measures what it says, draws all its records, and says them in numbers. Tiny sizes: nothing is learned."""

import json
import math

import pytest
import torch
from conftest import write_idx
from PIL import Image

from wgangp import config
from wgangp.data.toy import gaussians8
from wgangp.figures import common, gradient_norms, known_distance, overfitting, penalties, value_surfaces
from wgangp.figures.common import fit, seeds_of, select, spread
from wgangp.networks.mlp import MLPCritic
from wgangp.penalty import GradientPenalty

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(value_surfaces, "POINTS", 40)
    monkeypatch.setattr(value_surfaces, "HELD_OUT", 200)
    monkeypatch.setattr(value_surfaces, "DATA", {"8 Gaussians": gaussians8, "again": gaussians8})
    monkeypatch.setattr(penalties, "POINTS", 40)
    monkeypatch.setattr(penalties, "COUNTED", 100)
    monkeypatch.setattr(penalties, "DATA", {"8 Gaussians": gaussians8, "again": gaussians8})
    monkeypatch.setattr(known_distance, "DIMENSIONS", (2, 4))
    for name in ("HELD_OUT", "STARTS", "ASCENT"):
        monkeypatch.setattr(known_distance, name, 20)
    monkeypatch.setattr("wgangp.train.picture", lambda *_: lambda: None)  # it takes longer than everything else here


@pytest.fixture
def tiny(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", pictures=120, side=28)
    small = {"batch_size": 8}
    return {
        "value_surfaces": value_surfaces.ValueSurfaces(width=4, iterations=2, **small),
        "known_distance": known_distance.KnownDistance(width=4, iterations=2, **small),
        "penalties": penalties.Penalties(width=4, steps=1, **small),
        "gradient_norms": gradient_norms.GradientNorms(width=4, steps=1, **small),
        "overfitting": overfitting.Overfitting(
            width=4, steps=4, log_every=1, digits=20, data_root=str(tmp_path), **small
        ),
    }


NAMES = ("value_surfaces", "known_distance", "penalties", "gradient_norms", "overfitting")


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_measured_drawn_and_said(tiny, name, tmp_path):
    figure = tiny[name]
    records = []
    for seed in (0, 1):
        for number, cell in enumerate(figure.cells()):
            numbers = figure.measure(cell, seed, tmp_path / f"run-{seed}-{number}", CPU)
            records.append({"seed": seed, **cell, **json.loads(json.dumps(numbers, allow_nan=False))})
    again = figure.measure(figure.cells()[0], 0, tmp_path / "again", CPU)
    assert json.loads(json.dumps(again)).items() <= records[0].items()  # a function of cell and seed
    assert records[0] != {**records[len(figure.cells())], "seed": 0}
    figure.draw(tmp_path / "figure.png", records)
    figure.draw(tmp_path / "one.png", records[: len(figure.cells())])
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 700 and len(image.convert("L").getcolors()) > 20
    said = figure.findings(records)
    assert "nan" not in said and "\n" not in said
    assert "2 seeds" in said or "over data sets and seeds" in said
    assert figure.findings(records[: len(figure.cells())]) and figure.why
    rows = figure.table(records)
    assert all(row.keys() == rows[0].keys() and "nan" not in str(row) for row in rows)
    for cell in figure.cells():
        assert any(str(list(cell.values())[-1]) in str(row) for row in rows)


def test_the_fixed_generator_is_other_real_points_with_noise():
    data = gaussians8()
    real, fake = value_surfaces.pairs(data, 3, 4000, seed=1)
    assert torch.cdist(real, data.centres).min(1).values.max() < 0.1
    other, _ = data.batch(3, 4000, 1, purpose="fixed generator")
    noise = fake - other
    assert not real.equal(other)
    assert noise.mean(0).abs().max() < 0.06 and (noise.std(0) - 1).abs().max() < 0.05
    assert value_surfaces.pairs(data, 3, 9, 1)[1].equal(value_surfaces.pairs(data, 3, 9, 1)[1])
    assert not value_surfaces.pairs(data, 3, 9, 1, "heldout")[1].equal(value_surfaces.pairs(data, 3, 9, 1)[1])


def test_the_exact_distance_is_at_most_the_noise(monkeypatch):
    monkeypatch.setattr(value_surfaces, "POINTS", 500)
    value_surfaces.true_distances.cache_clear()
    distances = value_surfaces.true_distances("8 Gaussians", 0)
    assert len(set(distances)) == value_surfaces.DRAWS and 0.5 < min(distances) < max(distances) < math.sqrt(
        math.pi / 2
    )
    value_surfaces.true_distances.cache_clear()


def test_the_surface_has_y_upwards():
    critic = rising(MLPCritic((2,), width=4), axis=1)
    rows = value_surfaces.surface(critic, gaussians8())
    assert rows[0][0] == pytest.approx(-3, abs=1e-3) and rows[-1][0] == pytest.approx(3, abs=1e-3)
    assert rows[5][0] == rows[5][-1]


def test_the_two_sided_loss_of_a_record_is_that_of_its_points():
    slopes = torch.tensor([0.5, 1.0, 1.5, 2.0])
    record = {
        "gap": 0.7,
        "slopes": {"interpolates": {"mean": slopes.mean().item(), "std": slopes.std(correction=0).item()}},
    }
    expected = -0.7 + 10 * (slopes - 1).square().mean().item()
    assert value_surfaces.two_sided_objective([record, record]) == pytest.approx(expected)


def test_settings_reach_the_critics():
    for name, (penalty, coupled) in value_surfaces.CRITICS.items():
        assert coupled == ("coupled" in name)
        assert penalty.weight == (0 if name == "clipping" else 10)
        assert penalty.sides == ("one" if name.startswith("one") else "two")
        for points in ("real", "fake", "perturbed"):
            assert (penalty.points == points) == name.endswith(points)


def rising(critic, axis=0):
    """The critic with weights that make it D(x) = x_axis: relu(x) - relu(-x), through every layer."""
    linears = [m for m in critic.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        for layer in linears:
            layer.weight.zero_()
            layer.bias.zero_()
        linears[0].weight[0, axis], linears[0].weight[1, axis] = 1, -1
        for layer in linears[1:-1]:
            layer.weight[0, 0] = layer.weight[1, 1] = 1
        linears[-1].weight[0, 0], linears[-1].weight[0, 1] = 1, -1
    return critic


def test_the_best_critic_of_a_shift_is_said_to_be_right(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(known_distance, "fit", lambda critic, *_: rising(critic))
    monkeypatch.setattr(known_distance, "HELD_OUT", 20_000)
    got = tiny["known_distance"].measure({"pair": "shift", "dim": 4}, 0, tmp_path, CPU)
    assert got["gap"] == pytest.approx(1, abs=0.03)
    assert got["corrected"] == pytest.approx(10 * (math.sqrt(1 + got["gap"] / 5) - 1))
    assert got["cosine"] == pytest.approx(1, abs=1e-6) and got["slope"] == pytest.approx(1, abs=1e-6)
    assert got["steepest"] == pytest.approx(1, abs=1e-6)
    assert got["certified"] == pytest.approx(2, rel=1e-6)  # sqrt 2 in the first and the last layer
    assert got["proved"] == pytest.approx(got["gap"] / 2, rel=1e-6)
    assert got["proved_interval"][0] < got["proved"] < got["proved_interval"][1]


def test_layer_gradients_are_those_of_a_chain_by_hand():
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


def test_clipped_weights_are_all_in_the_histogram(tiny, tmp_path):
    got = tiny["gradient_norms"].measure({"critic": "clip 0.001"}, 0, tmp_path, CPU)
    critic = MLPCritic((2,), width=4, depth=12)
    assert sum(got["histogram"]["counts"]) == sum(p.numel() for p in critic.parameters() if p.ndim == 2)
    assert 0 < got["at_the_bound"] <= 1
    assert 0.9 < got["before"]["at_the_bound"] <= 1  # He-uniform weights are larger: that much nobody learned
    assert len(got["before"]["norms"]) == len(got["norms"]) == 12


@pytest.mark.parametrize(
    "name, clips",
    [("penalties", {"clipping": 0.01}), ("gradient_norms", gradient_norms.CLIPS), ("overfitting", {"clipping": 0.01})],
)
def test_penalty_and_clipping_reach_the_loop(tiny, name, clips, monkeypatch, tmp_path):
    seen = {}

    def train(folder, generator, critic, optim_generator, optim_critic, data, loss, penalty, **options):
        seen.update(penalty=penalty, optimizer=optim_critic, critic=critic, data=data, **options)
        return options["steps"] - 1  # as after Ctrl-C

    monkeypatch.setattr(common, "train", train)
    for cell in tiny[name].cells():
        with pytest.raises(KeyboardInterrupt):  # and nothing is measured of half a run
            tiny[name].measure(cell, 0, tmp_path, CPU)
        clip = clips.get(next(reversed(cell.values())))
        assert seen["clip_weights"] == clip
        assert (seen["penalty"].weight > 0) == (clip is None)
        assert isinstance(seen["optimizer"], torch.optim.Adam if clip is None else torch.optim.RMSprop)
        if name == "overfitting":
            assert len(seen["data"].pictures["train"]) == 20 and len(seen["data"].pictures["heldout"]) == 20
            assert any("Norm" in type(m).__name__ for m in seen["critic"].modules()) == (clip is not None)
        if name == "gradient_norms":
            assert len(seen["critic"].layers) == 2 * 12 + 1
        if cell.get("penalty") == "zero-centred":
            assert seen["penalty"] == GradientPenalty(10.0, target=0.0, points="real")


def test_only_the_digits_to_train_on_are_fewer_and_they_are_the_seeds(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", pictures=120, side=28)
    data = overfitting.mnist(str(tmp_path))
    few, again, other = (overfitting.some(data, 7, seed) for seed in (0, 0, 1))
    assert len(few.pictures["train"]) == len(few.labels["train"]) == 7
    at = [(data.pictures["train"] == picture).flatten(1).all(1).nonzero().item() for picture in few.pictures["train"]]
    assert len(set(at)) == 7 and few.labels["train"].equal(data.labels["train"][at])
    assert few.pictures["heldout"].equal(data.pictures["heldout"])
    assert few.fingerprint == again.fingerprint != other.fingerprint
    assert overfitting.trend([9, 9, 1.0, 1.5, 2.0, 2.5], [0, 10, 20, 30, 40, 50]) == pytest.approx(5.0)


def test_fit_is_the_critic_step_and_stops_at_a_loss_that_is_not_finite():
    critic = MLPCritic((2,), width=8)
    before = [p.clone() for p in critic.parameters()]
    batch = torch.randn(16, 2), torch.randn(16, 2)
    fit(critic, lambda k: batch, 3, 1e-3, GradientPenalty(), seed=0)
    assert all(not p.equal(q) for p, q in zip(critic.parameters(), before, strict=True) if p.ndim == 2)
    fit(critic, lambda k: batch, 1, 1e-3, GradientPenalty(weight=0), seed=0, clip_weights=0.01)
    assert max(p.abs().max().item() for p in critic.parameters()) <= 0.01
    with pytest.raises(ValueError, match=r"diverged.*Lower figure\.lr"):
        fit(critic, lambda k: (batch[0] * math.inf, batch[1]), 1, 1e-3, GradientPenalty(), seed=0)


def test_numbers_come_with_their_spread():
    records = [{"seed": seed, "a": "x", "v": seed + 1.0} for seed in (0, 2)]
    assert spread([r["v"] for r in records]) == "2.000 +- 1.414" and spread([0.5], "+.0%") == "+50%"
    assert spread([0.1, 0.3], "+.0%") == "+20% +- 14%"
    assert seeds_of(records) == "2 seeds" and seeds_of(records[:1]) == "1 seed"
    assert select(records, a="x", seed=2) == records[1:] and select(records, a="y") == []


@pytest.mark.parametrize("budget, width", [("cpu", 128), ("paper", 512)])
def test_the_papers_scale_is_one_override_away(configure, budget, width):
    for name in NAMES:
        figure = config.build(configure(f"figure={name}", f"budget={budget}", name="reproduce"), "figure")
        assert figure.width == (width if name != "overfitting" else width // 8)


def test_a_curve_of_too_few_points_is_refused_before_training():
    with pytest.raises(ValueError, match="log_every = 300: a curve of 600 steps"):
        overfitting.Overfitting(width=4, steps=600, log_every=300)


def test_what_was_read_off_a_scale_is_said_of_that_scale_alone():
    assert "tent" in value_surfaces.ValueSurfaces(width=128, iterations=10_000).why
    assert "not looked into" in value_surfaces.ValueSurfaces(width=128, iterations=2).why
