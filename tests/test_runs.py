import re

import pytest

from wgangp.runs import (
    ADDED,
    NOT_COMPUTED,
    find_differing_keys,
    normalize_overrides,
    run_name,
)


class TestRunName:
    def test_is_the_experiment_and_its_sorted_overrides(self):
        assert run_name(None, []) == "toy"
        assert run_name("mnist", ["experiment=mnist", "seed=3", "penalty.weight=1"]) == "mnist+penalty.weight-1+seed-3"
        assert run_name(None, ["b=1", "a=2"]) == run_name(None, ["a=2", "b=1"])

    def test_leaves_out_keys_that_do_not_change_a_number(self):
        overrides = [f"{key}=7" for key in NOT_COMPUTED]
        assert run_name(None, overrides) == "toy"
        assert run_name(None, ["train.critic_steps=7"]) != "toy"

    def test_is_a_short_and_unique_folder_name_for_any_command(self):
        name = run_name(None, ["optim.betas=[0.5, 0.9]", "+optim.x=a/b c", "~penalty"])
        assert re.fullmatch(r"[\w.+-]+", name)
        long = ["networks.generator.width=64", "networks.critic.width=64", "optim.betas=[0.0,0.99]", "data=swiss_roll"]
        names = {run_name("e", [*long, "regularize.gradient_norm=0.01", f"seed={i}"]) for i in range(5)}
        assert len(names) == 5 and max(map(len, names)) < 130


class TestNormalizeOverrides:
    def normalize(self, configure, *overrides):
        return normalize_overrides(list(overrides), configure(*overrides))

    @pytest.mark.parametrize("text", ["optim.lr=0.001", "++optim.lr=0.001", "optim.lr=1e-3", "optim.lr=1.0E-3"])
    def test_text_of_a_number_does_not_matter(self, configure, text):
        assert self.normalize(configure, text) == ["optim.lr=0.001"]

    def test_values_are_those_of_the_config(self, configure):
        overrides = ("penalty.weight=10", "optim.betas=[0.50, 0.9]", "train.compile=yes", "seed=1", "seed=2")
        assert self.normalize(configure, *overrides) == [
            "penalty.weight=10",
            "optim.betas=[0.5,0.9]",
            "train.compile=true",
            "seed=2",  # the last one counts
        ]
        assert self.normalize(configure, "penalty.weight=10.0", "optim.lr=${seed}") == [
            "penalty.weight=10",
            "optim.lr=0",
        ]

    def test_groups_and_removed_keys_stay_as_they_are(self, configure):
        overrides = ["data=shift", "networks=mlp", "~optim.fused", "train.decay_steps=null", "+optim.amsgrad=true"]
        assert self.normalize(configure, *overrides) == [o.lstrip("+") for o in overrides]

    def test_number_of_steps_brings_the_decay_that_follows_it(self, configure):
        assert self.normalize(configure, "train.steps=7") == ["train.steps=7", "train.decay_steps=7"]
        assert self.normalize(configure, "train.steps=7", "train.decay_steps=9")[1:] == ["train.decay_steps=9"]
        for experiment in ("mnist", "cifar_resnet"):
            overrides = (f"experiment={experiment}", "train.steps=7")
            assert self.normalize(configure, *overrides)[1:] == ["train.steps=7"]


def test_differing_keys_are_those_whose_values_are_not_equal_in_all_configs():
    a = {"optim.lr": 1, "seed": 0, "optim.eps": 0.1, "loss.margin": None, **ADDED}
    flipped = {"data.flip": False}  # of data of one's own, whose default may be true
    assert find_differing_keys([flipped, {}]) == find_differing_keys([{"data.flip": None}, flipped]) == ["data.flip"]
    b = {"optim.lr": 1.0, "seed": 0, "optim.eps": 0.1}  # keys of ADDED have their value there, other keys are null
    c = {"optim.lr": 1, "seed": 1, "train.precision": "bf16"}
    assert find_differing_keys([a, b]) == find_differing_keys([a]) == []
    assert find_differing_keys([a, b, c]) == ["optim.eps", "seed", "train.precision"]
