import shutil

import pytest
import torch
from conftest import ROOT, write_idx
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wgangp import GradientPenalty, config
from wgangp.losses import Wasserstein

TINY = ("networks.generator.width=8", "networks.critic.width=8")


class TestBuild:
    def test_calls_the_target_with_the_rest(self):
        cfg = OmegaConf.create({"penalty": {"_target_": "wgangp.penalty.GradientPenalty", "weight": 2, "sides": "one"}})
        assert config.build(cfg, "penalty") == GradientPenalty(weight=2, sides="one")

    @pytest.mark.parametrize(
        "key, target",
        [
            ("penalty", "os.system"),
            ("penalty", "wgangp.penaltyx.evil"),
            ("penalty", "wgangp.penalty.copy.deepcopy"),  # reached through a trusted module, but not of it
            ("penalty", "wgangp.penalty.SIDES"),
            ("data", "wgangp.data.images.Path"),
            ("data", "wgangp.logs.subprocess.run"),
            ("optim", "torch.load"),
            ("loss", None),
            ("loss", ""),
            ("loss", 3),
        ],
    )
    def test_refuses_names_that_are_not_trusted(self, key, target):
        with pytest.raises(ValueError, match="only names under"):
            config.build(OmegaConf.create({key: {"_target_": target}}), key)

    @pytest.mark.parametrize(
        "key, target",
        [("data", "wgangp.data.nowhere.X"), ("penalty", "wgangp.penalty.Nothing"), ("optim", "torch.optim.Adamm")],
    )
    def test_names_that_do_not_exist_are_said(self, key, target):
        with pytest.raises(ValueError, match="no such name"):
            config.build(OmegaConf.create({key: {"_target_": target}}), key)

    def test_an_unknown_key_is_named_with_the_known_ones(self):
        cfg = OmegaConf.create({"penalty": {"_target_": "wgangp.penalty.GradientPenalty", "wieght": 1}})
        with pytest.raises(ValueError, match=r"penalty\.wieght is unknown.*knows weight, target, sides, points"):
            config.build(cfg, "penalty")
        cfg = OmegaConf.create({"loss": {"_target_": "wgangp.losses.Wasserstein", "scale": 1}})
        with pytest.raises(ValueError, match="knows no keys"):
            config.build(cfg, "loss")
        assert isinstance(
            config.build(OmegaConf.create({"loss": {"_target_": "wgangp.losses.Wasserstein"}}), "loss"), Wasserstein
        )

    def test_what_the_caller_gives_cannot_be_set(self):
        cfg = OmegaConf.create({"data": {"_target_": "wgangp.data.toy.gaussians8", "device": "cuda"}})
        with pytest.raises(ValueError, match=r"data\.device is unknown"):
            config.build(cfg, "data", device="cpu")

    @pytest.mark.parametrize(
        "key, value", [("weight", "abc"), ("weight", None), ("weight", True), ("sides", 2), ("points", ["real"])]
    )
    def test_a_value_of_another_type_is_named(self, key, value):
        cfg = OmegaConf.create({"penalty": {"_target_": "wgangp.penalty.GradientPenalty", key: value}})
        with pytest.raises(ValueError, match=rf"penalty\.{key} = .*must be of type"):
            config.build(cfg, "penalty")

    @pytest.mark.parametrize(
        "optim, message",
        [
            ({"lr": -1.0}, "learning rate"),
            ({"lr": 0.1, "betas": [0.5]}, "index"),
            ({"lr": "abc"}, "must be of type"),
            ({"lr": 0.1, "betas": [0.5, 1.5]}, "beta"),
        ],
    )
    def test_what_the_thing_itself_refuses_is_said_with_its_key(self, optim, message):
        cfg = OmegaConf.create({"optim": {"_target_": "torch.optim.Adam", **optim}})
        with pytest.raises(ValueError, match=rf"(?i)optim.*{message}"):
            config.build(cfg, "optim", [torch.nn.Parameter(torch.ones(1))])


class TestTrainOptions:
    @pytest.mark.parametrize(
        "override",
        [
            "train.steps=-1",
            "train.critic_steps=0",
            "train.batch_size=0",
            "train.log_every=0",
            "train.sample_every=-5",
            "train.checkpoint_every=0",
            "train.report_size=0",
            "clip.weights=-0.01",
            "clip.weights=0",
            "clip.gradient_norm=-1",
            "clip.gradient_norm=nan",
            "regularize.gradient_norm=-1",
            "seed=-1",
        ],
    )
    def test_values_that_mean_nothing_are_named(self, configure, override):
        with pytest.raises(ValueError, match=override.split("=")[0]):
            config.train_options(configure(override))

    def test_are_what_the_config_says(self, configure):
        options = config.train_options(configure("train.critic_steps=10", "clip.weights=0.01", "seed=3"))
        assert options["critic_steps"] == 10 and options["clip_weights"] == 0.01 and options["seed"] == 3
        assert options["clip_gradient_norm"] is None and options["regularize_gradient_norm"] == 0


class TestKeys:
    @pytest.mark.parametrize("override", ["train.stps=3", "sed=1", "clip.weight=0.1", "networks.generater=1"])
    def test_unknown_ones_are_refused(self, configure, override):
        with pytest.raises(Exception, match=r"not in|Could not override"):
            configure(override)

    @pytest.mark.parametrize("override", ["train.steps=abc", "train.steps=1.5", "seed=abc", "clip.weights=abc"])
    def test_values_of_another_type_are_refused(self, configure, override):
        with pytest.raises(Exception, match="Error merging override"):
            configure(override)

    @pytest.mark.parametrize("text", ["trian: {steps: 3}", "train: {stps: 3}", "train: {steps: abc}", "clip: 3"])
    def test_unknown_ones_and_bad_values_in_a_file_are_refused_too(self, tmp_path, text):
        shutil.copytree(ROOT / "conf", tmp_path / "conf")
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
        with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
            assert compose("config", overrides=["experiment=toy_released"])
            with pytest.raises(Exception, match=r"experiment/mine"):
                compose("config", overrides=["experiment=mine"])

    @pytest.mark.parametrize("override", ["+sed=3", "+clip.wieghts=0.1", "+networks.foo=1", "+train.foo=abc"])
    def test_unknown_ones_are_refused_behind_a_plus_too(self, configure, override):
        with pytest.raises(ValueError, match="unknown key"):
            config.train_options(configure(override))

    def test_one_without_a_value_is_refused(self, configure):
        with pytest.raises(ValueError, match=r"seed: no value"):
            config.train_options(configure("seed=???"))

    @pytest.mark.parametrize(
        "key, node",
        [
            ("optim", {"_target_": "wgangp.gradients.total_norm"}),
            ("optim", {"_target_": "torch.optim.LBFGS"}),
            ("networks.generator", {"_target_": "wgangp.networks.mlp.MLPCritic"}),
        ],
    )
    def test_a_trusted_name_in_the_wrong_place_is_refused(self, configure, key, node):
        cfg = OmegaConf.create(OmegaConf.to_container(configure(*TINY)))
        OmegaConf.update(cfg, key, node, merge=False)
        with pytest.raises(ValueError, match="_target_"):
            config.objects(cfg)

    def test_a_command_line_choice_beats_the_experiments(self, configure):
        cfg = configure("experiment=mnist", "data=fashion_mnist", "optim=rmsprop")
        assert cfg.data._target_.endswith("fashion_mnist") and cfg.optim._target_ == "torch.optim.RMSprop"
        assert cfg.train.batch_size == 50  # what is not overridden is the experiment's

    def test_the_defaults_are_the_papers(self, configure):
        cfg = configure("optim=adam")
        assert config.build(cfg, "penalty") == GradientPenalty(weight=10, target=1, sides="two", points="interpolates")
        assert cfg.train.critic_steps == 5
        assert cfg.optim.lr == 1e-4 and list(cfg.optim.betas) == [0.0, 0.9]


class TestNetworks:
    def test_initial_weights_are_a_function_of_the_seed(self, configure):
        state = torch.get_rng_state()

        def built(*overrides):
            return config.networks(configure(*TINY, *overrides), (2,), torch.device("cpu"))

        (g0, d0), (g1, d1), (g2, d2) = built("seed=0"), built("seed=0"), built("seed=1")
        for a, b, c in ((g0, g1, g2), (d0, d1, d2)):
            first = [next(m.parameters()) for m in (a, b, c)]
            assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
        assert not torch.equal(g0.layers[0].weight, d0.layers[0].weight)  # of one shape here: each has its own draws
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_critic_does_not_change_with_the_generator(self, configure):
        cfgs = [configure(*TINY), configure(*TINY, "networks.generator.width=16")]
        critics = [config.networks(cfg, (2,), torch.device("cpu"))[1] for cfg in cfgs]
        assert torch.equal(critics[0].layers[0].weight, critics[1].layers[0].weight)

    def test_images_of_another_size_are_refused(self, configure, tmp_path):
        write_idx(tmp_path / "MNIST" / "raw", pictures=12, side=32)
        with pytest.raises(ValueError, match=r"is for points of shape \(1, 28, 28\), got \(1, 32, 32\)"):
            config.objects(configure("experiment=mnist", f"data.root={tmp_path}"))

    def test_data_and_networks_that_do_not_belong_together_are_refused(self, configure, small_mnist):
        with pytest.raises(ValueError, match=r"networks\.generator.*choose data= and networks="):
            config.objects(configure("networks=mnist"))
        with pytest.raises(ValueError, match=r"networks\.generator.*R\^d"):
            config.objects(configure("data=mnist", f"data.root={small_mnist}"))


def test_a_penalty_on_a_critic_that_mixes_samples_is_refused(configure, small_mnist):
    tiny = (f"data.root={small_mnist}", "train.report_size=9", "networks.generator.width=2", "networks.critic.width=2")
    config.objects(configure("experiment=mnist_clip", *tiny))
    with pytest.raises(ValueError, match=r"mixes the samples.*penalty\.weight=0"):
        config.objects(configure("experiment=mnist_clip", "penalty.weight=10", *tiny))


def test_a_device_that_is_not_there_is_refused_with_the_remedy():
    assert config.device_of("cpu") == torch.device("cpu")
    assert config.device_of("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "toaster", "meta"):
        with pytest.raises(ValueError, match=r"device = .*device=cpu"):
            config.device_of(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_one_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"device = cuda: .*device=cpu"):
        config.device_of("cuda")


def test_a_batch_larger_than_the_data_is_refused_by_its_key(configure, small_mnist):
    for override in ("train.batch_size=501", "train.report_size=101"):
        with pytest.raises(ValueError, match=override.split("=")[0] + ".*smaller"):
            config.objects(configure("experiment=mnist", f"data.root={small_mnist}", "train.report_size=9", override))


def test_what_needs_no_data_is_looked_at_before_the_data(configure):
    for override in ("penalty.sides=three", "optim.lr=-1"):
        with pytest.raises(ValueError, match=override.split(".")[0]):
            config.objects(configure("experiment=mnist", "data.root=nowhere", override))


@pytest.mark.parametrize(
    "override, message",
    [
        ("budget=small", "budget = small: must be one of cpu, paper"),
        ("train.decay_steps=10", r"train\.decay_steps = 10: the learning rate would be 0 from there"),
        ("train.decay_steps=0", r"train\.decay_steps = 0: must be >= 1"),
        ("train.generator_batch_size=0", r"train\.generator_batch_size = 0: must be >= 1"),
        ("data=image_folder", r"data\.root: no value is given"),
    ],
)
def test_what_cannot_be_trained_with_is_said_at_once(configure, override, message):
    with pytest.raises(ValueError, match=message):
        config.train_options(configure(override))
