"""Random architectures: networks with a free depth, nonlinearity and norm, the draws, and the figure."""

import json
import math
import shlex
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from wgangp import GradientPenalty, check_per_sample
from wgangp.compiled import build_computation
from wgangp.config import build
from wgangp.figures import image_runs, random_architectures
from wgangp.figures.random_architectures import METHODS, RandomArchitectures, draw_architecture
from wgangp.losses import Wasserstein
from wgangp.networks.deep_dcgan import DeepCritic, DeepGenerator, ShiftedSoftplus
from wgangp.networks.layers import BatchNorm, LayerNorm
from wgangp.step import critic_gradients, generator_gradients

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)
ACTIVATIONS = ("relu", "leaky_relu", "softplus", "tanh")
WEIGHTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def count(network):
    return sum(p.numel() for p in network.parameters())


class TestNetworks:
    @pytest.mark.parametrize("width, depth", [(32, 4), (64, 8), (16, 20)])
    def test_parameter_counts_are_those_of_the_layers(self, width, depth):
        """Counted by hand: weights and biases; a norm has a scale and an offset per channel."""
        extra = (depth - 4) * ((2 * width) ** 2 * 9 + 2 * width)
        generator = 129 * 64 * width + (8 + 2) * width**2 * 25 + 3 * width + width * 75 + 3 + extra
        critic = 75 * width + (2 + 8) * width**2 * 25 + 7 * width + 64 * width + 1 + extra
        norms = 2 * (4 + 2 + 1) * width, 2 * (2 + 4) * width, 2 * 2 * width * (depth - 4)
        sizes = {"width": width, "depth": depth}
        assert count(DeepGenerator(SHAPE, **sizes, norm=False)) == generator
        assert count(DeepGenerator(SHAPE, **sizes)) == generator + norms[0] + norms[2]
        assert count(DeepCritic(SHAPE, **sizes)) == critic
        for norm in ("layer", "batch"):
            assert count(DeepCritic(SHAPE, **sizes, norm=norm)) == critic + norms[1] + norms[2]

    @pytest.mark.parametrize("make, shape", [(DeepGenerator, (128,)), (DeepCritic, SHAPE)])
    @pytest.mark.parametrize("depth", [4, 8, 12, 20])
    def test_depth_is_the_number_of_weight_layers_and_further_ones_are_3_x_3_at_8_x_8(self, make, shape, depth):
        network, sizes = make(SHAPE, width=2, depth=depth), []
        layers = [m for m in network.modules() if isinstance(m, WEIGHTS)]
        assert len(layers) == depth
        for layer in layers:
            if getattr(layer, "kernel_size", None) == (3, 3):
                layer.register_forward_hook(lambda module, x, output: sizes.append(tuple(output.shape[1:])))
        network(torch.randn(2, *shape))
        assert sizes == [(4, 8, 8)] * (depth - 4)

    def test_every_layer_but_the_first_and_the_last_has_norm_and_activation(self):
        def names(network):
            return [type(m).__name__ for m in network.layers]

        norm, last = ["BatchNorm", "Tanh"], ["ConvTranspose2d", "Tanh"]
        generator = DeepGenerator(SHAPE, width=2, depth=6, activation="tanh")
        middle = ["ConvTranspose2d", *norm, *["Conv2d", *norm] * 2, "ConvTranspose2d", *norm]
        assert names(generator) == [*norm, *middle, *last]
        critic = DeepCritic(SHAPE, width=2, depth=6, activation="tanh", norm="layer")
        assert names(critic) == ["Conv2d", "Tanh", *["Conv2d", "LayerNorm", "Tanh"] * 4, "Flatten", "Linear"]
        plain = DeepCritic(SHAPE, width=2, depth=6), DeepGenerator(SHAPE, width=2, depth=6, norm=False)
        assert not any(isinstance(m, BatchNorm | LayerNorm) for network in plain for m in network.modules())

    @pytest.mark.parametrize("activation, norm", list(product(ACTIVATIONS, ("layer", "none"))))
    def test_outputs_have_the_documented_shapes_and_scores_are_per_sample(self, activation, norm):
        generator = DeepGenerator(SHAPE, width=2, depth=5, activation=activation)
        critic = DeepCritic(SHAPE, width=2, depth=5, activation=activation, norm=norm).double()
        x = generator(torch.randn(3, 128)).detach()
        assert x.shape == (3, *SHAPE) and -1 <= x.min() < 0 < x.max() <= 1
        assert critic(x.double()).shape == (3,)
        check_per_sample(critic, x.double())

    def test_batch_norm_in_a_penalized_critic_is_refused(self):
        with pytest.raises(ValueError, match="mixes the samples of a batch"):
            check_per_sample(DeepCritic(SHAPE, width=2, norm="batch"), torch.rand(4, *SHAPE))

    @pytest.mark.parametrize("make", [DeepGenerator, DeepCritic])
    def test_options_that_do_not_exist_raise(self, make):
        for options, message in (
            ({"depth": 3}, r"depth = 3: must be >= 4"),
            ({"activation": "elu"}, r"activation = elu: must be one of relu, leaky_relu, softplus, tanh"),
            ({"width": 0}, r"width = 0"),
        ):
            with pytest.raises(ValueError, match=message):
                make(SHAPE, **options)
        with pytest.raises(ValueError, match=r"\(3, 32, 32\), got \(1, 28, 28\)"):
            make((1, 28, 28))
        with pytest.raises(ValueError, match=r"norm = instance: must be one of batch, layer, none"):
            DeepCritic(SHAPE, norm="instance")

    @pytest.mark.slow
    @pytest.mark.parametrize("activation, norm", [("tanh", "layer"), ("softplus", "layer"), ("leaky_relu", "none")])
    def test_compiled_gradients_are_the_eager_ones(self, activation, norm, quick_compile):
        options = {"width": 2, "depth": 6, "activation": activation}
        generator, critic = DeepGenerator(SHAPE, **options).double(), DeepCritic(SHAPE, **options, norm=norm).double()
        real, z, eps = torch.rand(4, *SHAPE).double(), torch.randn(4, 128).double(), torch.rand(4).double()
        fake, penalty = generator(z).detach(), GradientPenalty()
        fast = build_computation(generator, critic, Wasserstein(), penalty, compile=True)
        pairs = [
            (fast.critic_gradients(real, fake, eps), critic_gradients(critic, real, fake, eps, penalty=penalty)),
            (fast.generator_gradients(z), generator_gradients(generator, critic, z)),
        ]
        assert not fast.problems
        for compiled, eager in pairs:
            for a, b in zip(compiled[1], eager[1], strict=True):
                torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


class TestShiftedSoftplus:
    def test_values_are_those_of_the_formula(self):
        x = torch.linspace(-30, 30, 1201, dtype=torch.float64)
        expected = [math.log1p(math.exp(2 * v + 2)) / 2 - 1 for v in x.tolist()]
        torch.testing.assert_close(ShiftedSoftplus()(x), torch.tensor(expected, dtype=x.dtype), atol=1e-14, rtol=1e-14)
        assert ShiftedSoftplus()(torch.tensor([1e4, -1e4])).tolist() == [1e4, -1]

    def test_derivatives_are_those_of_the_formula(self):
        x = torch.linspace(-8, 8, 161, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(ShiftedSoftplus()(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        s = (2 * x + 2).sigmoid().detach()
        torch.testing.assert_close(first.detach(), s, atol=1e-14, rtol=0)
        torch.testing.assert_close(second, 2 * s * (1 - s), atol=1e-14, rtol=0)
        assert first.max() <= ShiftedSoftplus.lipschitz

    def test_gradient_of_the_penalty_is_that_of_the_formula(self):
        """D(x) = v . phi(W x): grad D = W^T (v phi'), by hand; its norm is differentiated with respect to W."""
        v, x = torch.randn(5).double(), torch.randn(6, 3).double()
        weight = torch.randn(5, 3).double().requires_grad_()
        penalties = GradientPenalty()(lambda x: ShiftedSoftplus()(x @ weight.T) @ v, x, x, torch.rand(6).double())
        (ours,) = torch.autograd.grad(penalties.sum(), weight)
        by_hand = weight.detach().clone().requires_grad_()
        slopes = ((2 * x @ by_hand.T + 2).sigmoid() * v) @ by_hand
        (expected,) = torch.autograd.grad(10 * (slopes.norm(dim=1) - 1).square().sum(), by_hand)
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)


class TestDraws:
    def test_draw_is_a_function_of_its_number_and_both_methods_share_it(self):
        draws = [draw_architecture(k, "WGAN-GP") for k in range(20)]
        assert draws == [draw_architecture(k, "WGAN-GP") for k in range(20)]
        assert len({json.dumps(draw) for draw in draws}) > 15
        for k, draw in enumerate(draws):
            gan = draw_architecture(k, "GAN")
            own = {**METHODS["GAN"][0], "networks.critic.norm": draw["networks.critic.norm"].replace("layer", "batch")}
            assert gan == draw | own
            small = draw_architecture(k, "WGAN-GP", [4, 8, 16])
            assert small == draw | {key: draw[key] // 8 for key in draw if key.endswith("width")}

    def test_draws_are_uniform_and_independent_over_the_set_of_the_paper(self):
        draws = [draw_architecture(k, "WGAN-GP") for k in range(3_000)]
        values = {"activation": ACTIVATIONS, "depth": (4, 8, 12, 20), "width": (32, 64, 128)}
        for network, norms in (("generator", (False, True)), ("critic", ("none", "layer"))):
            for key, choices in {**values, "norm": norms}.items():
                counts = Counter(draw[f"networks.{network}.{key}"] for draw in draws)
                assert counts.keys() == set(choices)
                for number in counts.values():
                    share = 1 / len(choices)
                    assert abs(number - 3_000 * share) < 4 * math.sqrt(3_000 * share * (1 - share))
        depths = Counter((draw["networks.generator.depth"], draw["networks.critic.depth"]) for draw in draws)
        assert len(depths) == 16 and min(depths.values()) > 3_000 / 16 - 4 * math.sqrt(3_000 / 16)

    def test_weight_decays_where_the_critic_has_a_norm(self):
        for k, (method, norm) in product(range(30), (("GAN", "batch"), ("WGAN-GP", "layer"))):
            draw = draw_architecture(k, method)
            assert draw.get("+optim.weight_decay") == (1e-3 if draw["networks.critic.norm"] == norm else None)

    def test_commands_compose_to_the_settings_of_the_paper(self, configure):
        figure = RandomArchitectures(draws=3, widths=[32, 64, 128], steps=100_000)
        for draw, method in product(range(1, 4), METHODS):
            cfg = configure(*figure.list_overrides(draw, method))
            for key, value in draw_architecture(draw, method).items():
                if key not in ("loss", "optim"):
                    assert OmegaConf.select(cfg, key.removeprefix("+")) == value
            gan = method == "GAN"
            assert cfg.loss._target_.rpartition(".")[2] == ("NonSaturating" if gan else "Wasserstein")
            assert (cfg.penalty.weight, cfg.train.critic_steps) == ((0, 1) if gan else (10, 5))
            assert (cfg.optim.lr, list(cfg.optim.betas)) == ((2e-4, [0.5, 0.999]) if gan else (1e-4, [0, 0.9]))
            assert (cfg.train.steps, cfg.train.batch_size, cfg.train.decay_steps) == (100_000, 64, None)
            assert cfg.optim.get("weight_decay", 0) == (0 if cfg.networks.critic.norm == "none" else 1e-3)

    def test_order_of_overrides_does_not_matter(self, configure):
        figure = RandomArchitectures(draws=9, widths=[32], steps=10)
        overrides = next(
            figure.list_overrides(k, "GAN") for k in range(9) if draw_architecture(k, "GAN").get("+optim.weight_decay")
        )
        cfg = configure(*overrides)
        assert cfg == configure(*reversed(overrides))
        adam = {"lr": 2e-4, "betas": [0.5, 0.999], "fused": True, "weight_decay": 1e-3}
        assert cfg.optim == {"_target_": "torch.optim.Adam", **adam}

    def test_another_optimizer_has_only_its_own_keys(self, configure):
        cfg = configure("experiment=random_architectures", "optim=rmsprop")
        assert cfg.optim == configure("optim=rmsprop").optim
        build(cfg, "optim", [nn.Parameter(torch.zeros(1))])


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with 40 random images of 32 x 32."""
    root = tmp_path_factory.mktemp("random")
    for i, x in enumerate(torch.randint(256, (40, 32, 32, 3), generator=torch.Generator().manual_seed(0))):
        Image.fromarray(x.to(torch.uint8).numpy()).save(root / f"{i:02}.png")
    return root


@pytest.fixture
def figure(pictures, quick_pictures, quick_reports, small_features):
    """The figure at a tiny size."""
    options = {"widths": [2, 3], "steps": 1, "batch_size": 2, "samples": 12}
    return RandomArchitectures(draws=1, **options, data="image_folder", data_root=str(pictures))


class TestFigure:
    def test_every_cell_is_measured_drawn_and_in_the_table(self, figure, tmp_path):
        records = []
        for seed, cell in product((0, 1), figure.cells()):
            numbers = figure.measure(cell, seed, tmp_path / f"{seed}{cell['draw']}{cell['method']}", CPU)
            assert numbers["finite"]
            assert numbers["is"] >= 1
            assert numbers["fid"] > 0
            records.append({"seed": seed, **cell, **json.loads(json.dumps(numbers, allow_nan=False))})
        again = figure.measure(figure.cells()[0], 0, tmp_path / "again", CPU)
        assert again.items() <= records[0].items()
        assert records[0]["fid"] != records[2]["fid"]  # the seed matters
        figure.draw(tmp_path / "figure.png", records)
        with Image.open(tmp_path / "figure.png") as image:
            assert image.width > 700 and len(image.convert("L").getcolors()) > 20
        rows = figure.table(records)
        assert len(rows) == len(random_architectures.THRESHOLDS) + 2
        for method in METHODS:
            command = shlex.join(figure.list_overrides(0, method))
            assert f"`scripts/train.py {command}`" in rows[-2]["command"]
            assert "+-" in rows[-2][method]
            assert f"data.root={figure.data_root}" in command and f"train.batch_size={figure.batch_size}" in command
        assert not (tmp_path / "00GAN" / "config.yaml").exists()
        overrides = OmegaConf.to_container(OmegaConf.load(tmp_path / "00GAN" / "overrides.yaml"))
        assert overrides == [*figure.list_overrides(0, "GAN"), "seed=0"]

    @pytest.mark.slow
    def test_every_draw_trains_two_updates(self, figure, tmp_path):
        for draw, method in product(range(8), METHODS):
            numbers = figure.measure({"draw": draw, "method": method}, 0, tmp_path / f"{draw}{method}", CPU)
            assert numbers["finite"]

    def test_diverging_run_is_recorded_and_another_error_is_raised(self, figure, tmp_path, monkeypatch):
        for message in ("step 3: wasserstein is not finite", "optim.lr = -1: must be >= 0"):

            def fail(folder, overrides, check, message=message):
                raise ValueError(message)

            monkeypatch.setattr(image_runs, "train_command", fail)
            if "finite" in message:
                numbers = figure.measure({"draw": 0, "method": "GAN"}, 0, tmp_path, CPU)
                assert numbers == {"finite": False, "is": 1.0, "fid": None}
            else:
                with pytest.raises(ValueError, match=r"optim\.lr"):
                    figure.measure({"draw": 0, "method": "GAN"}, 0, tmp_path, CPU)

    def test_no_draws_are_refused(self, figure):
        for changed in ({"draws": 0}, {"widths": []}, {"widths": [0]}):
            with pytest.raises(ValueError, match=r"figure\.draws = .*: all must be > 0"):
                replace(figure, **changed)

    def test_table_counts_the_successes_of_pairs(self, figure, tmp_path):
        figure = replace(figure, draws=3)
        scores = {"GAN": (1.0, 2.5, 1.6), "WGAN-GP": (1.2, 3.2, 9.0)}
        records = [
            {"seed": 0, **cell, "finite": score > 1, "is": score, "fid": 1.0, "real_is": 5.0}
            for cell in figure.cells()
            for score in [scores[cell["method"]][cell["draw"]]]
        ]
        rows = figure.table(records)
        published = [row["paper, Inception network, 200 draws"] for row in rows]
        assert published[3] == "only GAN 0, only WGAN-GP 74, both 125, neither 1" and published[-1] == ""
        assert all(sum(counts) == 200 for counts in random_architectures.THRESHOLDS.values())
        shown = [(row["runs"], row["GAN"], row["WGAN-GP"], row["success"]) for row in rows]
        assert shown[1:7] + shown[-4:] == [
            ("Inception score > 1.5", "2 of 3", "2 of 3", "only GAN 0, only WGAN-GP 0, both 2, neither 1"),
            ("Inception score > 2.0", "1 of 3", "2 of 3", "only GAN 0, only WGAN-GP 1, both 1, neither 1"),
            ("Inception score > 2.5", "0 of 3", "2 of 3", "only GAN 0, only WGAN-GP 2, both 0, neither 1"),
            ("Inception score > 3.0", "0 of 3", "2 of 3", "only GAN 0, only WGAN-GP 2, both 0, neither 1"),
            ("Inception score > 3.5", "0 of 3", "1 of 3", "only GAN 0, only WGAN-GP 1, both 0, neither 2"),
            ("Inception score > 4.0", "0 of 3", "1 of 3", "only GAN 0, only WGAN-GP 1, both 0, neither 2"),
            ("draw 0", "not finite", "1.2", ""),
            ("draw 1", "2.5", "3.2", ""),
            ("draw 2", "1.6", "9", ""),
            ("no run: real images have 5", "", "", ""),
        ]
        figure.draw(tmp_path / "figure.png", records)  # also with a run that was not finite

    @pytest.mark.parametrize("score, most", [("efficientnet", 1_280), ("inception", 2_048)])
    def test_too_few_samples_are_refused_before_training(self, score, most):
        with pytest.raises(ValueError, match=rf"figure\.samples = {most}: must be >= {most + 1:,}, more than the"):
            RandomArchitectures(draws=1, widths=[2], steps=1, samples=most, score=score)

    def test_unknown_score_is_refused(self):
        with pytest.raises(ValueError, match=r"figure\.score = classifier: must be one of efficientnet, inception"):
            RandomArchitectures(draws=1, widths=[2], steps=1, score="classifier")

    def test_score_chooses_the_features(self, figure, tmp_path):
        for score in ("efficientnet", "inception"):
            numbers = replace(figure, score=score).measure(figure.cells()[0], 0, tmp_path / score, CPU)
            assert numbers["facts"]["weights"] == f"pixels for {score}" and numbers["fid"] > 0

    def test_sizes_of_the_paper_are_one_override_away(self, configure):
        figures = [
            build(configure("figure=random_architectures", f"budget={budget}", name="reproduce"), "figure")
            for budget in ("cpu", "paper")
        ]
        assert (figures[1].draws, figures[1].widths, figures[1].steps) == (200, [32, 64, 128], 100_000)
        assert figures[0].draws < 20 and max(figures[0].widths) <= 16 and figures[0].steps < 1_000
        assert len(figures[1].cells()) == 400
        assert [(one.score, one.samples) for one in figures] == [("efficientnet", 2_000), ("inception", 50_000)]


def test_softplus_is_near_to_the_elu():
    """The reason for the constants 2, 2, 2 and 1: the paper replaces the ELU by a smooth function like it."""
    x = torch.linspace(-6, 6, 1_000)
    assert (ShiftedSoftplus()(x) - F.elu(x)).abs().max() < 0.2
