"""The character model: layers, a run from a text file to samples as text, and that it learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import quick_curves, train_run
from torch import nn

from wgangp import config, gradient_norm
from wgangp.compiled import build_computation
from wgangp.config import load_run
from wgangp.data.text import decode
from wgangp.logs import read_metrics
from wgangp.losses import Wasserstein
from wgangp.metrics.ngrams import ngram_divergence
from wgangp.networks.language import LanguageCritic, LanguageGenerator
from wgangp.penalty import GradientPenalty
from wgangp.report import picture, report
from wgangp.sample import sample
from wgangp.seeds import draw_latent
from wgangp.step import critic_gradients, generator_gradients

SHAPE = (7, 6)  # symbols, positions
WORDS = ("the cat", "a dog", "the dog", "a cat", "one cat", "one dog")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    rng = np.random.default_rng(0)
    path.write_text("".join(f"{WORDS[i]}\n" for i in rng.integers(len(WORDS), size=400)))
    return path


@pytest.fixture
def settings(text_file):
    """The overrides of a tiny run."""
    widths = ("networks.generator.width=4", "networks.critic.width=4", "train.critic_steps=2", "train.steps=2")
    sizes = ("data.length=8", "train.batch_size=8", "train.report_size=8", "device=cpu", "train.sample_every=1")
    return ("experiment=language", f"data.path={text_file}", *widths, *sizes)


@pytest.mark.parametrize(
    "symbols, of_generator, of_critic", [(100, 15_277_156, 13_180_417), (257, 15_357_697, 13_260_801)]
)
def test_parameter_counts_are_those_of_the_released_code(symbols, of_generator, of_critic):
    networks = (LanguageGenerator((symbols, 32)), LanguageCritic((symbols, 32)))
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [of_generator, of_critic]


def released(network, x):
    """The released operations between the first and the last layer, with a sum per tap of a convolution."""

    def conv(layer, x):
        width, length = layer.weight.shape[-1], x.shape[-1]
        padded = F.pad(x, (width // 2, width // 2))
        taps = [torch.einsum("oi,bil->bol", layer.weight[..., k], padded[..., k : k + length]) for k in range(width)]
        return sum(taps) + layer.bias[:, None]

    for block in network.blocks:
        _, first, _, second = block.main
        x = x + 0.3 * conv(second, conv(first, x.clamp(min=0)).clamp(min=0))
    return x


def test_pair_equals_the_released_operations():
    generator, critic = LanguageGenerator(SHAPE, width=5).double(), LanguageCritic(SHAPE, width=5).double()
    for p in (*generator.parameters(), *critic.parameters()):
        nn.init.normal_(p, std=0.3)  # also biases
    z = torch.randn(3, 128).double()
    x = F.linear(z, generator.input.weight, generator.input.bias).view(3, 5, 6)
    output = generator.output[0]
    logits = torch.einsum("vc,bcl->bvl", output.weight[..., 0], released(generator, x)) + output.bias[:, None]
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    x = generator(z)
    torch.testing.assert_close(x, expected, atol=1e-12, rtol=1e-12)
    features = torch.einsum("cv,bvl->bcl", critic.input.weight[..., 0], x) + critic.input.bias[:, None]
    features = released(critic, features)
    score = features.reshape(3, -1) @ critic.output[1].weight[0] + critic.output[1].bias
    torch.testing.assert_close(critic(x), score, atol=1e-12, rtol=1e-12)


def test_outputs_have_the_documented_shapes_and_ranges():
    generator, critic = LanguageGenerator(SHAPE, latent_dim=3, width=4), LanguageCritic(SHAPE, width=4)
    x = generator(torch.randn(5, 3))
    assert x.shape == (5, *SHAPE) and x.min() > 0
    torch.testing.assert_close(x.sum(1), torch.ones(5, 6))
    assert critic(x).shape == (5,) and critic(x[:1]).shape == (1,)


def test_score_of_a_sample_does_not_depend_on_other_samples():
    critic, x = LanguageCritic(SHAPE, width=4).double(), torch.rand(4, *SHAPE).double()
    jacobian = torch.autograd.functional.jacobian(critic, x).flatten(2)
    own = torch.eye(4, dtype=torch.bool)
    assert jacobian[~own].eq(0).all() and jacobian[own].abs().amax(1).gt(0).all()


def test_slope_is_over_symbols_and_positions_together():
    critic, x = LanguageCritic(SHAPE, width=4).double(), torch.rand(4, *SHAPE).double().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    torch.testing.assert_close(gradient_norm(critic, x.detach()), gradient.square().sum((1, 2)).sqrt())
    assert GradientPenalty().draw(x).shape == (4,)  # one eps per line


def test_activations_leave_the_skip_connection_unchanged():
    for network in (LanguageGenerator(SHAPE, width=4), LanguageCritic(SHAPE, width=4)):
        for block in network.blocks:
            x = torch.randn(2, 4, 6)
            before = x.clone()
            block(x)
            assert torch.equal(x, before)
            assert [type(layer) for layer in block.main[::2]] == [nn.ReLU, nn.ReLU]


@pytest.mark.parametrize("make", [LanguageGenerator, LanguageCritic])
def test_networks_refuse_shapes_and_sizes_that_they_cannot_take(make):
    with pytest.raises(ValueError, match=r"text of shape \(V, L\), got \(1, 28, 28\): use data=text"):
        make((1, 28, 28))
    with pytest.raises(ValueError, match="width = 0"):
        make(SHAPE, width=0)
    with pytest.raises(ValueError, match=r"takes points of shape \(7, 6\), got \(6, 7\)"):
        LanguageCritic(SHAPE, width=4)(torch.rand(2, 6, 7))


def test_run_writes_text_and_the_divergence_of_its_ngrams(configure, settings, tmp_path):
    run = train_run(configure(*settings), tmp_path)
    files = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in files] == [f"{step:08}.txt" for step in range(3)]
    with torch.no_grad():
        x = run.generator(*draw_latent(run.generator, 128, 0, 0, "picture"))
        lines = run.generator(*draw_latent(run.generator, 640, 0, 0, "ngrams")).argmax(1)
    assert files[-1].read_text().split("\n") == [*decode(x.argmax(1), run.data.symbols), ""]
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert ngram_divergence(lines, run.data).items() <= last.items()
    assert [name for name in last if "js" in name] == [
        f"{kind}js{n}" for n in range(1, 5) for kind in ("", "reference_")
    ]
    assert (tmp_path / "curves.png").exists()


def test_picture_is_of_the_average_and_changes_nothing(configure, settings, tmp_path):
    run = config.build_run(configure(*settings, "ema.decay=0.5"))
    with torch.no_grad():
        for p in run.generator.parameters():
            p.normal_()
    picture(tmp_path, run, 3)
    with torch.no_grad():
        latent = draw_latent(run.generator, 128, 0, 0, "picture")
        average, last = (
            decode(network(*latent).argmax(1), run.data.symbols) for network in (run.average.module, run.generator)
        )
    path = tmp_path / "samples" / "00000003.txt"
    assert path.read_text().splitlines() == average != last
    (tmp_path / "config.yaml").write_text("seed: 0\nbudget: cpu\nloss: 0\n")
    picture(tmp_path, run, 3)
    note, *lines = path.read_text().splitlines()
    assert note.startswith("budget=cpu") and lines == average
    before = torch.get_rng_state()
    assert report(run, 3, 8) == report(run, 3, 8) and torch.equal(before, torch.get_rng_state())


def test_resumed_run_is_bit_identical(configure, settings, tmp_path, monkeypatch, quick_reports):
    monkeypatch.setattr("wgangp.train.draw_curves", quick_curves)
    train_run(configure(*settings), tmp_path / "whole")
    train_run(configure(*settings, "train.steps=1"), tmp_path / "stopped")
    train_run(configure(*settings), tmp_path / "stopped")
    for name in ("metrics.jsonl", "samples/00000002.txt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_samples_are_text_without_the_data_file(trained, settings, text_file, tmp_path):
    folder = trained(*settings)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace(str(text_file), "/nowhere.txt"))
    run = load_run(folder)
    assert run.data.symbols[0] == "unk" and run.data.shape[1] == 8
    path = sample(str(folder), n=5, device="cpu")
    assert path == folder / "made" / "grid_step2_seed0_n5.txt"
    with np.load(sample(str(folder), "npz", n=5, device="cpu")) as file:
        assert path.read_text().splitlines() == decode(torch.from_numpy(file["arr_0"]), file["symbols"].tolist())
        assert np.array_equal(file["arr_0"], file["x"].argmax(1)) and file["x"].shape == (5, *run.data.shape)
    with pytest.raises(ValueError, match=r"loaded without its data"):
        run.data.batch(0, 1, 0)
    assert load_run(trained(*settings, name="again"), read_data=True).data.batch(0, 1, 0)[0].shape == (
        1,
        *run.data.shape,
    )


def test_experiment_has_the_numbers_of_the_released_code(configure, text_file):
    for budget, width, rate, critic_steps in (("paper", 512, 1e-4, 10), ("cpu", 64, 5e-4, 5)):
        cfg = configure("experiment=language", f"data.path={text_file}", f"budget={budget}")
        assert (cfg.networks.generator.width, cfg.networks.critic.width) == (width, width)
        assert (cfg.optim.lr, cfg.optim.betas, cfg.train.critic_steps) == (rate, [0.5, 0.9], critic_steps)
    cfg = configure("experiment=language")
    assert (cfg.train.steps, cfg.train.batch_size, cfg.penalty.weight, cfg.data.length) == (200_000, 64, 10, 32)
    assert cfg.networks.generator.latent_dim == 128 and cfg.data.symbols == 257 and not cfg.data.wrap


@pytest.mark.parametrize("what", ["interpolation", "animation", "images"])
def test_text_is_not_drawn(trained, settings, what):
    folder = trained(*settings)
    with pytest.raises(ValueError, match=f"what = {what}: text is written as lines with what=grid"):
        sample(str(folder), what, device="cpu")
    with pytest.raises(ValueError, match=r"what=grid writes \.txt"):
        sample(str(folder), out="samples.png", device="cpu")
    assert not (folder / "made").exists()


def test_text_with_too_few_lines_for_a_batch_is_refused_before_training(configure, settings, tmp_path):
    with pytest.raises(ValueError, match=r"train\.batch_size: a batch of 500 is larger than the 360 items"):
        config.build_run(configure(*settings, "train.batch_size=500"))
    with pytest.raises(ValueError, match=r"train\.report_size: a batch of 41 is larger than the 40 items"):
        config.build_run(configure(*settings, "train.report_size=41"))


def test_networks_of_images_refuse_text(configure, settings):
    with pytest.raises(ValueError, match=r"got \(12, 8\)"):
        config.build_run(configure(*settings, "networks=mnist"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["traced", "whole"])
def test_compiled_gradients_are_the_eager_ones(backend, request):
    torch._dynamo.reset()
    if backend == "traced":
        request.getfixturevalue("quick_compile")
    generator, critic = LanguageGenerator(SHAPE, width=4).double(), LanguageCritic(SHAPE, width=4).double()
    z, eps = torch.randn(4, 128).double(), torch.rand(4).double()
    real = F.one_hot(torch.randint(7, (4, 6)), 7).transpose(1, 2).double()
    fake = generator(z).detach()
    fast = build_computation(generator, critic, Wasserstein(), GradientPenalty(), compile=True)
    for _ in range(2):
        pairs = [
            (fast.critic_gradients(real, fake, eps), critic_gradients(critic, real, fake, eps)),
            (fast.generator_gradients(z), generator_gradients(generator, critic, z)),
        ]
        for (terms, compiled), (eager_terms, eager) in pairs:
            torch.testing.assert_close(terms, eager_terms, atol=1e-12, rtol=1e-10)
            torch.testing.assert_close(list(compiled), list(eager), atol=1e-12, rtol=1e-10)
    assert not fast.problems


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tiny_run_learns_the_letters_and_words_of_its_text(configure, settings, tmp_path, quick_pictures, seed):
    sizes = ("networks.generator.width=16", "networks.critic.width=16", "train.batch_size=32", "train.critic_steps=5")
    train_run(configure(*settings, *sizes, "train.steps=100", "optim.lr=1e-3", f"seed={seed}"), tmp_path)
    first, *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert last["js1"] < 0.75 * first["js1"] and last["js2"] < 0.4 < 0.7 < first["js2"]
    assert last["js4"] < 0.65 < 0.95 < first["js4"]
