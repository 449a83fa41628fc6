"""The config becomes objects: names, keys, types and values are checked, and a run folder is restored."""

import copy
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TINY, WIDTHS, Function, make_old, train_run, write_idx
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from PIL import Image

import wgangp
from wgangp import GradientPenalty, NormalizedGradientDescent, checkpoint, config, load_run
from wgangp.data import toy
from wgangp.distributed import World
from wgangp.losses import Wasserstein
from wgangp.networks import mlp
from wgangp.report import report
from wgangp.train import Clip, train
from wgangp.trial import try_run


class TestBuild:
    def test_calls_the_target_with_the_other_keys(self):
        cfg = OmegaConf.create({"penalty": {"_target_": "wgangp.penalty.GradientPenalty", "weight": 2, "sides": "one"}})
        assert config.build(cfg, "penalty") == GradientPenalty(weight=2, sides="one")

    @pytest.mark.parametrize(
        "key, target",
        [
            ("penalty", "os.system"),
            ("penalty", "wgangp.penaltyx.evil"),
            ("penalty", "wgangp.penalty.math.sqrt"),  # reached through a trusted module, but defined elsewhere
            ("penalty", "wgangp.penalty.SIDES"),
            ("data", "wgangp.data.images.Path"),
            ("data", "wgangp.logs.subprocess.run"),
            ("optim", "torch.load"),
            ("optim", "wgangp.gradients.total_norm"),
            ("loss", None),
            ("loss", ""),
            ("loss", 3),
        ],
    )
    def test_refuses_names_that_are_not_trusted(self, key, target):
        with pytest.raises(ValueError, match="only names under") as error:
            config.build(OmegaConf.create({key: {"_target_": target}}), key)
        assert "add trust=" not in str(error.value)  # not of the standard library, of torch or of this package

    @pytest.mark.parametrize(
        "key, target",
        [("data", "wgangp.data.nowhere.X"), ("penalty", "wgangp.penalty.Nothing"), ("optim", "torch.optim.Adamm")],
    )
    def test_refuses_names_that_do_not_exist(self, key, target):
        with pytest.raises(ValueError, match=r"_target_ = .*: this name does not exist"):
            config.build(OmegaConf.create({key: {"_target_": target}}), key)

    def test_unknown_key_is_refused_with_the_known_keys_and_the_nearest(self):
        cfg = OmegaConf.create({"penalty": {"_target_": "wgangp.penalty.GradientPenalty", "wieght": 1}})
        known = "weight, target, sides, points"
        with pytest.raises(ValueError, match=rf"penalty\.wieght is unknown; .* are {known}.*Did you mean weight\?"):
            config.build(cfg, "penalty")
        cfg = OmegaConf.create({"loss": {"_target_": "wgangp.losses.Wasserstein", "scale": 1}})
        with pytest.raises(ValueError, match=r"the keys of .* are none"):
            config.build(cfg, "loss")
        assert isinstance(
            config.build(OmegaConf.create({"loss": {"_target_": "wgangp.losses.Wasserstein"}}), "loss"), Wasserstein
        )

    def test_argument_of_the_caller_cannot_be_set(self):
        cfg = OmegaConf.create({"data": {"_target_": "wgangp.data.toy.gaussians8", "device": "cuda"}})
        with pytest.raises(ValueError, match=r"data\.device is unknown"):
            config.build(cfg, "data", device="cpu")

    @pytest.mark.parametrize(
        "key, value", [("weight", "abc"), ("weight", None), ("weight", True), ("sides", 2), ("points", ["real"])]
    )
    def test_value_of_another_type_is_refused_with_its_key(self, key, value):
        cfg = OmegaConf.create({"penalty": {"_target_": "wgangp.penalty.GradientPenalty", key: value}})
        with pytest.raises(ValueError, match=rf"penalty\.{key} = .*must be (a number|text)$"):
            config.build(cfg, "penalty")

    @pytest.mark.parametrize(
        "optim, message",
        [
            ({"lr": -1.0}, "learning rate"),
            ({"lr": 0.1, "betas": [0.5]}, r"\.betas = \[0\.5\]: must be a list of 2 values, each of them a number"),
            ({"lr": "abc"}, "must be a number"),
            ({"lr": 0.1, "betas": [0.5, 1.5]}, "beta"),
        ],
    )
    def test_error_of_the_target_is_reported_with_its_key(self, optim, message):
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
    def test_values_out_of_range_are_refused_with_their_key(self, configure, override):
        with pytest.raises(ValueError, match=override.split("=")[0]):
            config.train_options(configure(override))

    def test_no_update_at_all_has_no_rates_that_decay(self, configure):
        options = config.train_options(configure("train.steps=0"))
        assert options["steps"] == options["decay_steps"] == 0

    def test_are_the_values_of_the_config(self, configure):
        cfg = configure("train.critic_steps=10", "clip.weights=0.01", "seed=3")
        options = config.train_options(cfg)
        assert options["critic_steps"] == 10 and options["clip"] == Clip(weights=0.01, gradient_norm=None)
        assert options["regularize_gradient_norm"] == 0
        saved = OmegaConf.create(options["config"])
        assert options["decay_steps"] == 4000 and "decay_steps: 4000\n" in options["config"]  # resolved
        assert OmegaConf.merge(saved, {"trust": []}) == cfg and "seed: 3" in options["config"]
        assert "trust" not in saved  # a run folder does not say what to trust
        assert config.build_run(configure("seed=3", *TINY)).seed == 3

    @pytest.mark.parametrize(
        "override, message",
        [
            ("budget=small", "budget = small: must be one of cpu, paper"),
            ("train.decay_steps=10", r"train\.decay_steps = 10: the learning rate would be 0 from this update"),
            ("train.decay_steps=0", r"train\.decay_steps = 0: must be >= 1"),
            ("train.generator_batch_size=0", r"train\.generator_batch_size = 0: must be >= 1"),
            ("data=image_folder", r"data\.root: no value is given"),
        ],
    )
    def test_settings_that_cannot_be_trained_with_are_refused(self, configure, override, message):
        with pytest.raises(ValueError, match=message):
            config.train_options(configure(override))


def build_optimizer(**entries):
    cfg = OmegaConf.create({"optim": {"_target_": "torch.optim.Adam", "lr": 0.1} | entries})
    return config.build(cfg, "optim", [torch.nn.Parameter(torch.ones(1))])


class TestValues:
    """Each mistake in a value names its key and what fits."""

    @pytest.mark.parametrize("betas", [0.5, "abc", None, True, [0.5], [0.5, 0.9, 0.9], [0.5, "abc"], {"a": 1}], ids=str)
    def test_betas_are_two_numbers(self, betas):
        with pytest.raises(ValueError, match=r"^optim\.betas = .*: must be a list of 2 values, each of them a number$"):
            build_optimizer(betas=betas)

    def test_integer_is_taken_where_a_number_is_expected(self):
        assert tuple(build_optimizer(betas=[0, 0.9], lr=1).defaults["betas"]) == (0.0, 0.9)  # torch wants two floats

    @pytest.mark.parametrize(
        "override, message",
        [
            ("optim.betas=[0.5,2]", r"optim\.betas = \[0\.5, 2\]: must be >= 0 and < 1"),
            ("optim.lr=-1", r"optim\.lr = -1: must be >= 0"),
            ("optim.lr=true", r"optim\.lr = True: must be a number"),
            ("optim.lr=[1]", r"optim\.lr = \[1\]: must be a number"),
            ("optim.fused=3", r"optim\.fused = 3: must be true or false or null"),
            ("+optim.weight_decay=-1", r"optim\.weight_decay = -1: must be >= 0"),
            ("networks.critic.width=null", r"networks\.critic\.width = None: must be an integer"),
            ("ema.decay=1", r"ema\.decay = 1\.0: must be > 0 and < 1, or null for no average"),
            ("ema.decay=0", r"ema\.decay = 0\.0: must be > 0 and < 1, or null for no average"),
        ],
    )
    def test_number_that_does_not_fit_is_refused(self, configure, override, message):
        with pytest.raises(ValueError, match=f"^{message}$"):
            config.build_run(configure(*TINY, override))

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308"])
    @pytest.mark.parametrize("key", ["optim.lr", "penalty.weight", "penalty.target", "clip.weights", "+optim.eps"])
    def test_number_that_float32_does_not_hold_is_refused(self, configure, key, value):
        with pytest.raises(
            ValueError, match=rf"^{key.lstrip('+')} = .*: must be finite, and not larger than 3\.4e\+38"
        ):
            config.train_options(configure(f"{key}={value}"))

    @pytest.mark.parametrize("key", ["seed", "train.steps", "train.log_every", "networks.critic.width", "optim.lr"])
    def test_integer_with_thirty_zeros_is_refused(self, configure, key):
        with pytest.raises(ValueError, match=f"^{key} = 10{{30}}: must be finite, and not larger"):
            config.train_options(configure(f"{key}=1{'0' * 30}"))

    def test_key_without_a_value_that_its_target_needs_is_refused(self):
        cfg = OmegaConf.create({"optim": {"_target_": "wgangp.optim.NormalizedGradientDescent"}})
        with pytest.raises(ValueError, match=r"^optim\.lr: no value is given, and wgangp\.optim"):
            config.build(cfg, "optim", [torch.nn.Parameter(torch.ones(1))])

    @pytest.mark.parametrize("name, value", [("nothing", "Interpolation key"), ("oc.env:NO_NAME", "NO_NAME")])
    def test_interpolation_of_nothing_names_its_key(self, configure, name, value):
        with pytest.raises(ValueError, match=f"^optim.lr: .*{value}"):
            config.train_options(configure(f"optim.lr=${{{name}}}"))

    @pytest.mark.parametrize("key", ["clip", "train", "seed"])
    def test_config_without_a_key_is_refused(self, configure, key):
        cfg = configure()
        with open_dict(cfg):
            del cfg[key]
        with pytest.raises(ValueError, match=f"^{key}: no value is given"):
            config.train_options(cfg)


class TestTrial:
    """What would fail at the first report or update is refused before anything is written."""

    @pytest.mark.parametrize("key", ["batch_size", "generator_batch_size"])  # a report is in eval mode
    def test_batch_norm_of_one_sample_is_refused_by_name(self, labeled_config, configure, key):
        flat = {"_target_": f"{mlp.__name__}.NormGenerator"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlp, "NormGenerator", NormGenerator, raising=False)
            cfg = OmegaConf.create(OmegaConf.to_container(configure(*TINY, f"train.{key}=1")))
            OmegaConf.update(cfg, "networks.generator", flat, merge=False)
            with pytest.raises(ValueError, match=rf"^train\.{key} = 1: batch norm needs at least two samples"):
                config.build_run(cfg)

    def test_report_of_one_sample_is_refused_by_name(self, configure, small_mnist):
        sizes = (
            "train.report_size=1",
            "train.batch_size=4",
            "networks.generator.norm=true",
            "networks.generator.width=2",
        )
        cfg = configure("experiment=mnist", "networks.critic.width=2", f"data.root={small_mnist}", *sizes)
        with pytest.raises(ValueError, match=r"^train\.report_size = 1: batch norm needs at least two samples"):
            config.build_run(cfg)

    @pytest.mark.parametrize("key", ["batch_size", "generator_batch_size", "report_size"])
    def test_batch_that_does_not_fit_in_the_memory_is_refused(self, configure, key):
        with pytest.raises(ValueError, match=rf"^train\.{key} = 2147483647: so many samples do not fit"):
            config.build_run(configure(*TINY, f"train.{key}=2147483647"))

    def test_optimizer_that_cannot_make_a_step_is_refused(self, configure):
        with pytest.raises(ValueError, match=r"^a first report and update of this run fail \(RuntimeError: a leaf"):
            config.build_run(configure(*TINY, "optim.fused=false", "+optim.differentiable=true"))

    def test_objective_that_the_log_will_not_have_is_refused_with_the_known_names(self, configure):
        with pytest.raises(ValueError, match=r"^objective = loss: the log .*certified_lipschitz.*modes.*wasserstein"):
            config.build_run(configure(*TINY), objective="loss")
        for name in ("wasserstein", "modes", "largest_quotient", "corrected_wasserstein"):
            config.build_run(configure(*TINY), objective=name)

    def test_objective_can_be_a_score_of_the_evaluation(self, configure):
        config.build_run(configure(*TINY, "train.evaluate_every=5"), objective="points_w1")
        for extra in ([], ["train.evaluate_every=5", "evaluate.scores=[critic]"]):
            with pytest.raises(ValueError, match="objective = points_w1"):
                config.build_run(configure(*TINY, *extra), objective="points_w1")

    def test_trial_changes_nothing(self, configure):
        """The networks are the initial ones, and the global random state is as before."""
        state = torch.get_rng_state()
        run, cfg = config.build_run(configure(*TINY)), configure(*TINY)
        assert torch.equal(torch.get_rng_state(), state)
        for network, initial in zip(
            (run.generator, run.critic), config.build_networks(cfg, (2,), torch.device("cpu")), strict=True
        ):
            assert all(torch.equal(p, q) for p, q in zip(network.parameters(), initial.parameters(), strict=True))
        assert not run.optim_critic.state


class Masked(torch.nn.Linear):
    """A critic with a buffer that is not finite."""

    def __init__(self, number):
        super().__init__(2, 1)
        self.register_buffer("mask", torch.tensor([0.0, number]))

    def forward(self, x):
        return super().forward(x) + self.mask[0]


def replace_trial(run, cfg, **parts):
    """Try a run with other parts; the optimizer is of the critic."""
    run = replace(run, **parts)
    run = replace(run, optim_critic=torch.optim.SGD(run.critic.parameters(), lr=0.1))
    try_run(run, cfg, None, World())


class FirstOutput(Wasserstein):
    """A loss for critics that return (score, features)."""

    def critic(self, real, fake):
        return super().critic(real[0], fake[0])

    def generator(self, fake):
        return super().generator(fake[0])


class LabeledPoints(toy.SwissRoll):
    """Points that always come with labels."""

    def batch(self, k, size, *args, **kwargs):
        return *super().batch(k, size, *args, **kwargs), torch.zeros(size, dtype=torch.long)


TRIALS = {  # parts of a run that do not work, and what the error says
    "labels without classes": (lambda: {"data": LabeledPoints()}, r"called as critic\(x, \*y\)"),
    "half precision": (
        lambda: {"critic": Masked(0.0).half()},
        r"gets torch\.float32, and its weights are torch\.float16",
    ),
    "features": (
        lambda: {
            "critic": Function(lambda x, f: (f(x), x), torch.nn.Linear(2, 1)),
            "loss": FirstOutput(),
            "penalty": GradientPenalty(weight=0.0),
        },
        "one score per sample",
    ),
    "NaN in a buffer": (lambda: {"critic": Masked(float("nan"))}, r"\['critic'\]\['mask'\] has NaN in it"),
    "error of another type": (
        lambda: {"critic": Function(lambda x, f: f(x).no_such_method(), torch.nn.Linear(2, 1))},
        r"^a first report and update of this run fail \(AttributeError",
    ),
}


@pytest.mark.parametrize("make, message", TRIALS.values(), ids=TRIALS)
def test_run_that_does_not_work_is_refused_before_it_has_a_folder(configure, make, message):
    cfg = configure(*TINY)
    run = config.build_run(cfg)
    with pytest.raises(ValueError, match=message):
        replace_trial(run, cfg, **make())


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_run_with_a_mask_of_minus_infinity_is_trained_and_continued(
    configure, tmp_path, quick_compile, quick_pictures, compile
):
    cfg = configure(*TINY, "train.steps=2", "train.checkpoint_every=1", f"train.compile={compile}")
    run = replace(config.build_run(cfg), critic=Masked(-float("inf")))
    run = replace(run, optim_critic=torch.optim.SGD(run.critic.parameters(), lr=0.1))
    try_run(copy.deepcopy(run), cfg, None, World())
    with warnings.catch_warnings(action="error", category=UserWarning):  # the compiled step is used
        assert train(tmp_path, run, **config.train_options(cfg) | {"steps": 1}) == 1
    assert train(tmp_path, run, **config.train_options(cfg)) == 2
    assert checkpoint.load_latest(tmp_path / "checkpoints")["critic"]["mask"][1] == -float("inf")


class NormGenerator(torch.nn.Sequential):
    """A generator with batch norm."""

    __module__ = mlp.__name__  # a name that a config may build
    latent_dim = 2

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(torch.nn.Linear(2, *shape), torch.nn.BatchNorm1d(*shape))


class TestTrust:
    """Names of packages that the user trusts."""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """A package outside of wgangp, with names that must not be a way around."""
        folder = tmp_path / "site" / "some_package"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(
            "import os\nfrom torch import nn\nfrom wgangp.networks.mlp import MLPCritic\n"
            "class Critic(nn.Module):\n"
            "    latent_dim = 2\n"
            "    def __init__(self, shape, width: int = 4, block=None, blocks=(), **options):\n"
            "        super().__init__()\n        self.parts = (width, block, blocks, options)\n"
            "    @classmethod\n    def build(cls, shape):\n        return cls(shape)\n"
            "def power(base: float, exponent: int = 2): return base**exponent\n"
            "instance = Critic((2,))\n"
        )
        (folder / "broken.py").write_text("raise RuntimeError('this module is broken')\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
        yield "some_package"
        for name in [name for name in sys.modules if name.split(".")[0] == "some_package"]:
            del sys.modules[name]

    def build(self, target, *trust, **entries):
        cfg = OmegaConf.create({"networks": {"critic": {"_target_": target, **entries}}})
        return config.build(cfg, "networks.critic", (2,), trust=trust)

    def test_class_of_a_trusted_package_is_built(self, package):
        assert self.build("some_package.Critic", package, width=3, anything=1).parts == (3, None, (), {"anything": 1})
        assert self.build("some_package.MLPCritic", package, width=3).shape == (2,)  # defined in wgangp.networks
        assert self.build("some_package.Critic", "other", package)

    def test_package_that_is_not_trusted_is_not_imported_and_the_error_says_what_to_type(self, package):
        with pytest.raises(
            ValueError, match=r"If you trust the package some_package, add trust=\[some_package\] to the"
        ):
            self.build("some_package.Critic")
        assert package not in sys.modules
        for trust in ("some", "some_packag", "some_package.Critic", "some_package.nets"):  # no prefix of a name
            with pytest.raises(ValueError, match="only names under"):
                self.build("some_package.Critic", trust)

    @pytest.mark.parametrize(
        "name", ["os.system", "os", "nn.Linear", "Critic.build", "Critic.__class__", "Critic.__base__", "instance"]
    )
    def test_name_that_is_reached_through_a_trusted_package_is_refused(self, package, name):
        with pytest.raises(ValueError, match="only classes and functions that are defined there"):
            self.build(f"some_package.{name}", package)

    def test_nested_nodes_are_built_and_checked_alike(self, package):
        block = {"_target_": "some_package.power", "base": 3.0}
        assert self.build("some_package.Critic", package, block=block).parts[1] == 9.0
        assert self.build("some_package.Critic", package, blocks=[block, 1], a={"b": block}).parts[2:] == (
            [9.0, 1],
            {"a": {"b": 9.0}},
        )
        for evil in ("os.system", "some_package.os.system", "subprocess.run"):
            for entries in ({"block": {"_target_": evil}}, {"blocks": [{"x": {"_target_": evil, "args": "true"}}]}):
                with pytest.raises(ValueError, match=r"networks\.critic\.block\S*\._target_ = .*: only names under"):
                    self.build("some_package.Critic", package, **entries)
        with pytest.raises(ValueError, match=r"^networks\.critic\.block\.base = 'x': must be a number"):
            self.build("some_package.Critic", package, block={"_target_": "some_package.power", "base": "x"})

    @pytest.mark.parametrize(
        "name, reason", [("no_package.Critic", "No module named"), ("some_package.broken.X", "is broken")]
    )
    def test_package_that_cannot_be_imported_is_named_with_the_remedy(self, package, name, reason):
        with pytest.raises(ValueError, match=rf"{reason}.*PYTHONPATH"):
            self.build(name, name.split(".")[0])

    @pytest.mark.parametrize("trust", [[""], ["."], ["some_package."], [3], ["a b"]])
    def test_trust_is_a_list_of_names(self, trust):
        with pytest.raises(ValueError, match=r"^trust = .*: must be a list of names of packages"):
            self.build("some_package.Critic", *trust)

    @pytest.mark.parametrize(
        "key, missing",
        [("data", "shape"), ("networks.critic", "parameters"), ("loss", "critic"), ("penalty", "weight")],
    )
    def test_what_is_built_has_the_attributes_that_are_needed(self, package, key, missing):
        cfg = OmegaConf.create({})
        OmegaConf.update(cfg, key, {"_target_": "some_package.power", "base": 2.0})
        with pytest.raises(ValueError, match=rf"^{key}\._target_ = some_package\.power: .* no attribute {missing}"):
            config.build(cfg, key, trust=[package])


class TestKeys:
    @pytest.mark.parametrize("override", ["train.stps=3", "sed=1", "clip.weight=0.1", "networks.generater=1"])
    def test_unknown_keys_are_refused(self, configure, override):
        with pytest.raises(Exception, match=r"not in|Could not override"):
            configure(override)

    @pytest.mark.parametrize(
        "override", ["train.steps=abc", "ema.decay=abc", "train.steps=1.5", "seed=abc", "clip.weights=abc"]
    )
    def test_values_of_another_type_are_refused(self, configure, override):
        with pytest.raises(Exception, match="Error merging override"):
            configure(override)

    @pytest.mark.parametrize("text", ["trian: {steps: 3}", "train: {stps: 3}", "train: {steps: abc}", "clip: 3"])
    def test_unknown_keys_and_wrong_values_in_a_file_are_refused(self, tmp_path, text):
        shutil.copytree(config.CONF, tmp_path / "conf")
        (tmp_path / "conf" / "experiment" / "custom.yaml").write_text(f"# @package _global_\n{text}\n")
        with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
            assert compose("config", overrides=["experiment=toy_released"])
            with pytest.raises(Exception, match=r"experiment/custom"):
                compose("config", overrides=["experiment=custom"])

    @pytest.mark.parametrize("override", ["+sed=3", "+clip.wieghts=0.1", "+networks.foo=1", "+train.foo=abc"])
    def test_unknown_keys_after_a_plus_are_refused(self, configure, override):
        key = override.lstrip("+").split("=")[0]
        with pytest.raises(ValueError, match=f"^{key} is unknown; the keys of "):
            config.train_options(configure(override))

    @pytest.mark.parametrize(
        "override, hint",
        [("+sed=3", "seed"), ("+clip.wieghts=0.1", "clip.weights"), ("+train.stps=3", "train.steps")],
    )
    def test_unknown_key_suggests_the_nearest(self, configure, override, hint):
        with pytest.raises(ValueError, match=rf"Did you mean {hint}\?$"):
            config.train_options(configure(override))

    def test_key_without_a_value_is_refused(self, configure):
        with pytest.raises(ValueError, match=r"seed: no value"):
            config.train_options(configure("seed=???"))

    @pytest.mark.parametrize(
        "key, target, message",
        [
            ("optim", "torch.optim.optimizer._use_grad_for_differentiable", "_target_ = .* is no optimizer"),
            ("optim", "torch.optim.LBFGS", "_target_ = .*LBFGS: .* needs a closure"),
            ("networks.generator", "wgangp.networks.mlp.MLPCritic", "_target_ = .* no attribute latent_dim"),
        ],
    )
    def test_trusted_name_in_the_wrong_place_is_refused(self, configure, key, target, message):
        cfg = OmegaConf.create(OmegaConf.to_container(configure(*WIDTHS)))
        OmegaConf.update(cfg, key, {"_target_": target}, merge=False)
        with pytest.raises(ValueError, match=message):
            config.build_run(cfg)

    def test_command_line_takes_precedence_over_the_experiment(self, configure):
        cfg = configure("experiment=mnist", "data=fashion_mnist", "optim=rmsprop")
        assert cfg.data._target_.endswith("fashion_mnist") and cfg.optim._target_ == "wgangp.optim.RMSProp"
        assert cfg.train.batch_size == 50  # the value of the experiment

    def test_defaults_are_those_of_the_paper(self, configure):
        cfg = configure("optim=adam")
        assert config.build(cfg, "penalty") == GradientPenalty(weight=10, target=1, sides="two", points="interpolates")
        assert cfg.train.critic_steps == 5
        assert cfg.optim.lr == 1e-4 and list(cfg.optim.betas) == [0.0, 0.9]


class TestBudget:
    @pytest.mark.parametrize("budget, steps, width", [("cpu", 1000, 32), ("paper", 200_000, 128)])
    def test_chooses_a_value(self, configure, budget, steps, width):
        cfg = configure("experiment=cifar_dcgan", f"budget={budget}")
        assert cfg.train.steps == steps and cfg.networks.critic.width == width
        assert config.train_options(cfg)["steps"] == steps

    def test_is_paper_by_default(self, configure):
        assert configure("experiment=cifar_resnet").train.steps == 100_000

    def test_value_on_the_command_line_replaces_both(self, configure):
        assert configure("experiment=cifar_dcgan", "budget=cpu", "train.steps=7").train.steps == 7

    def test_unknown_budget_is_refused(self, configure):
        with pytest.raises(ValueError, match="budget = small: must be one of cpu, paper"):
            config.train_options(configure("experiment=cifar_dcgan", "budget=small"))


class TestNetworks:
    def test_initial_weights_are_a_function_of_the_seed(self, configure):
        state = torch.get_rng_state()

        def build(*overrides):
            return config.build_networks(configure(*WIDTHS, *overrides), (2,), torch.device("cpu"))

        (g0, d0), (g1, d1), (g2, d2) = build("seed=0"), build("seed=0"), build("seed=1")
        for a, b, c in ((g0, g1, g2), (d0, d1, d2)):
            first = [next(m.parameters()) for m in (a, b, c)]
            assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
        assert not torch.equal(g0.layers[0].weight, d0.layers[0].weight)  # equal shapes, other draws
        assert torch.equal(torch.get_rng_state(), state)

    def test_critic_does_not_change_with_the_generator(self, configure):
        cfgs = [configure(*WIDTHS), configure(*WIDTHS, "networks.generator.width=16")]
        critics = [config.build_networks(cfg, (2,), torch.device("cpu"))[1] for cfg in cfgs]
        assert torch.equal(critics[0].layers[0].weight, critics[1].layers[0].weight)

    def test_images_of_another_size_are_refused(self, configure, tmp_path):
        write_idx(tmp_path / "MNIST" / "raw", pictures=12, side=32)
        with pytest.raises(ValueError, match=r"takes points of shape \(1, 28, 28\), got \(1, 32, 32\)"):
            config.build_run(configure("experiment=mnist", f"data.root={tmp_path}"))

    def test_data_and_networks_that_do_not_fit_are_refused(self, configure, small_mnist):
        with pytest.raises(ValueError, match=r"networks\.generator.*choose data= and networks="):
            config.build_run(configure("networks=mnist"))
        with pytest.raises(ValueError, match=r"networks\.generator.*R\^d"):
            config.build_run(configure("data=mnist", f"data.root={small_mnist}"))


def test_penalty_on_a_critic_that_mixes_samples_is_refused(configure, small_mnist):
    small = (f"data.root={small_mnist}", "train.report_size=9", "networks.generator.width=2", "networks.critic.width=2")
    config.build_run(configure("experiment=mnist_clip", *small))
    with pytest.raises(ValueError, match=r"mixes the samples.*penalty\.weight=0"):
        config.build_run(configure("experiment=mnist_clip", "penalty.weight=10", *small))


def test_device_that_does_not_exist_is_refused_with_the_remedy():
    assert config.find_device("cpu") == torch.device("cpu")
    assert config.find_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "toaster", "meta"):
        with pytest.raises(ValueError, match=r"device = .*device=cpu"):
            config.find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_gpu_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"device = cuda: .*device=cpu"):
        config.find_device("cuda")


def test_batch_larger_than_the_data_is_refused_with_its_key(configure, small_mnist):
    for override in ("train.batch_size=501", "train.report_size=101"):
        with pytest.raises(ValueError, match=override.split("=")[0] + ".*smaller"):
            config.build_run(configure("experiment=mnist", f"data.root={small_mnist}", "train.report_size=9", override))


def test_settings_are_checked_before_the_data_is_read(configure):
    for override in ("penalty.sides=three", "optim.lr=-1"):
        with pytest.raises(ValueError, match=override.split(".")[0]):
            config.build_run(configure("experiment=mnist", "data.root=nowhere", override))


class TestClasses:
    def test_labels_are_yielded_if_the_networks_have_as_many_classes(self, labeled_config):
        run = config.build_run(labeled_config)
        assert run.generator.classes == run.critic.classes == run.data.classes == 3
        x, y = run.data.batch(0, 6, run.seed)
        assert run.data.labeled is True and x.shape == (6, 3, 8, 8) and y.shape == (6,)

    @pytest.mark.parametrize("overrides", [TINY, ("data=shift", *TINY)], ids=["gaussians8", "shift"])
    def test_data_without_classes_is_refused(self, configure, labeled_config, overrides):
        cfg = configure(*overrides)
        labeled_config.data, labeled_config.train = cfg.data, cfg.train
        with pytest.raises(ValueError, match=r"has 3 classes, the critic 3 and the data 0.*no labels: choose networks"):
            config.build_run(labeled_config)

    def test_other_numbers_of_classes_are_refused(self, labeled_config, monkeypatch):
        monkeypatch.setattr(mlp.LabeledCritic, "classes", 4)
        with pytest.raises(ValueError, match="the generator has 3 classes, the critic 4 and the data 3"):
            config.build_run(labeled_config)
        monkeypatch.setattr(mlp.LabeledGenerator, "classes", 4)
        with pytest.raises(ValueError, match=r"the data 3.*networks\.generator\.classes=3 networks\.critic"):
            config.build_run(labeled_config)

    def test_images_in_no_class_folder_are_refused_if_the_networks_have_classes(self, labeled_config):
        loose = Path(labeled_config.data.root) / "loose.png"
        Image.new("RGB", (8, 8)).save(loose)
        with pytest.raises(ValueError, match=r"1 images are in no class folder \(.*loose\.png\): move them"):
            config.build_run(labeled_config)

    @pytest.mark.parametrize("name, label", [("loose.png", "no class"), ("other/1.png", "other")])
    @pytest.mark.parametrize("memory_gb", [4.0, 0.0])
    def test_held_out_class_without_training_images_is_refused(self, labeled_config, name, label, memory_gb):
        path = Path(labeled_config.data.heldout_root) / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        labeled_config.data.memory_gb = memory_gb
        with pytest.raises(ValueError, match=f"held-out images, and none to train on, of: {label}"):
            config.build_run(labeled_config)

    def test_loss_that_needs_another_forward_is_refused(self, configure):
        with pytest.raises(
            ValueError, match=r"ACGAN calls the critic with logits=.*MLPCritic does not take.*networks="
        ):
            config.build_run(configure("loss=acgan"))

    def test_networks_without_classes_get_no_labels(self, configure, small_mnist):
        small = ("networks.generator.width=2", "networks.critic.width=2", "train.report_size=9", "device=cpu")
        data = config.build_run(configure("experiment=mnist", f"data.root={small_mnist}", *small)).data
        assert data.classes == 10 and data.labeled is False and len(data.batch(0, 4, 0)) == 1

    def test_run_with_labels_is_trained_and_loaded(self, labeled_config, tmp_path, quick_pictures):
        run = train_run(labeled_config, tmp_path / "run")
        loaded = load_run(tmp_path / "run", read_data=True)
        assert loaded.data.labeled is True
        assert report(loaded, 1, 6) == report(run, 1, 6)


class TestLoadRun:
    @pytest.fixture
    def folder(self, trained):
        return trained(*TINY, "train.steps=2", "train.checkpoint_every=1", "seed=3", "penalty.sides=one")

    def test_has_the_weights_and_optimizer_states_of_the_newest_checkpoint(self, folder):
        run = wgangp.load_run(folder)
        assert len(list((folder / "checkpoints").glob("*.pt"))) == 2
        state = torch.load(folder / "checkpoints" / "step_00000002.pt", weights_only=True)
        for name in ("generator", "critic", "optim_generator", "optim_critic"):
            assert_equal(getattr(run, name).state_dict(), state[name])
        assert state["optim_critic"]["state"]  # Adam has moments
        assert run.seed == 3 and run.penalty == GradientPenalty(sides="one")
        assert isinstance(run.loss, Wasserstein)
        assert run.optim_critic.param_groups[0]["params"] == list(run.critic.parameters())

    def test_generates_samples_in_one_line(self, folder):
        assert load_run(folder).generator(torch.randn(5, 2)).shape == (5, 2)

    def test_average_is_that_of_the_checkpoint_if_the_run_has_one(self, folder, trained):
        assert load_run(folder).average is None
        folder = trained(*TINY, "train.steps=3", "ema.decay=0.5", name="averaged")
        run, state = load_run(folder), torch.load(folder / "checkpoints" / "step_00000003.pt", weights_only=True)
        assert_equal(run.average.state_dict(), state["average"])
        assert_equal(run.generator.state_dict(), state["generator"])
        z = torch.randn(5, 2)
        assert run.average.module.latent_dim == 2 and not torch.equal(run.average.module(z), run.generator(z))

    def test_continues_as_the_run_itself(self, configure, folder, tmp_path, quick_pictures):
        again = train_run(configure(*TINY, "train.steps=2", "seed=3", "penalty.sides=one"), tmp_path / "again")
        assert report(load_run(folder), 2, 16) == report(again, 2, 16)

    def test_takes_text_and_reads_drawn_data(self, folder):
        data = load_run(str(folder)).data
        assert data.shape == (2,) and data.batch(0, 4, 3)[0].shape == (4, 2)

    def test_does_not_need_the_data_files(self, trained, small_mnist, tmp_path):
        small = ("networks.generator.width=2", "networks.critic.width=2", "train.report_size=9", "device=cpu")
        folder = trained("experiment=mnist", f"data.root={small_mnist}", *small, "train.steps=1", "train.batch_size=9")
        path = folder / "config.yaml"
        with_data = load_run(folder, read_data=True).data
        path.write_text(path.read_text().replace(f"root: {small_mnist}", f"root: {tmp_path / 'gone'}"))
        run = load_run(folder)
        assert run.data.shape == (1, 28, 28) and run.data.span == (0.0, 1.0)
        assert run.data.fingerprint == with_data.fingerprint
        assert run.generator(torch.randn(2, run.generator.latent_dim)).shape == (2, 1, 28, 28)
        with pytest.raises(ValueError, match=r"without its data: use load_run\(folder, read_data=True\)"):
            run.data.batch(0, 4, 0)
        with pytest.raises(ValueError, match=r"data.*gone"):
            load_run(folder, read_data=True)

    def test_read_data_reads_the_files(self, trained, small_mnist):
        small = ("networks.generator.width=2", "networks.critic.width=2", "train.report_size=9", "device=cpu")
        folder = trained("experiment=mnist", f"data.root={small_mnist}", *small, "train.steps=1", "train.batch_size=9")
        (x,) = load_run(folder, read_data=True).data.batch(0, 4, 0)
        assert x.shape == (4, 1, 28, 28)

    def test_loads_folders_of_earlier_versions(self, trained, quick_pictures):
        folder = trained(*TINY, "optim=normalized", "train.steps=1")
        make_old(folder / "config.yaml")
        run = load_run(folder)
        assert isinstance(run.optim_critic, NormalizedGradientDescent) and run.penalty == GradientPenalty()

    def test_folder_that_is_not_a_run_is_refused(self, folder, tmp_path):
        with pytest.raises(ValueError, match=r"nowhere is not a run folder: it has no config\.yaml"):
            load_run(tmp_path / "nowhere")
        shutil.rmtree(folder / "checkpoints")
        with pytest.raises(ValueError, match="has no checkpoint yet: train it first"):
            load_run(folder)

    def test_device_that_does_not_exist_is_refused(self, folder):
        with pytest.raises(ValueError, match=r"device = toaster: .*device=cpu"):
            load_run(folder, device="toaster")

    def test_checkpoint_that_does_not_fit_is_refused(self, folder):
        path = folder / "config.yaml"
        path.write_text(path.read_text().replace("width: 8", "width: 9", 1))
        reason = r"networks\.generator\.width: 8 there, 9 in this run"
        with pytest.raises(ValueError, match=rf"step_00000002\.pt does not fit this run \({reason}\)"):
            load_run(folder)

    def test_checkpoint_without_an_optimizer_is_refused_and_the_older_one_is_loaded(self, folder, capsys):
        state = torch.load(folder / "checkpoints" / "step_00000002.pt", weights_only=True)
        del state["optim_critic"]
        checkpoint.save(folder / "checkpoints", 3, state | {"step": 3})
        with pytest.raises(
            ValueError, match=r"step_00000003\.pt does not fit this run \(state has no 'optim_critic'\)"
        ):
            load_run(folder, step=3)
        capsys.readouterr()
        load_run(folder)
        assert "step_00000003.pt does not fit this run (" in capsys.readouterr().err


def assert_equal(actual, expected):
    """Compare nested dicts and lists of tensors, numbers and strings."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_equal(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_equal(a, b)
    else:
        assert actual == expected
