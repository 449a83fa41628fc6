import re

import pytest
from omegaconf import OmegaConf

from wgangp import config
from wgangp.folders import claim_folder, find_folder, read_config
from wgangp.runs import (
    ADDED,
    MOVED,
    NOT_COMPUTED,
    find_differing_keys,
    normalize_overrides,
    run_name,
    select_computed,
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


class TestFindFolder:
    def test_is_the_folder_of_the_name_if_there_is_none_with_this_config(self, configure, tmp_path):
        assert find_folder(tmp_path, "toy+seed-3", "toy", configure("seed=3")) == tmp_path / "toy+seed-3"
        claim(tmp_path / "toy", configure("optim.lr=0.01"))
        assert find_folder(tmp_path, "toy+seed-3", "toy", configure("seed=3")) == tmp_path / "toy+seed-3"

    @pytest.mark.parametrize(
        "former", ["toy+++optim.lr-1e-3", "toy+optim.lr-1e-3", "toy+optim.lr-0.0010+seed-0", "toy"]
    )
    def test_is_the_folder_that_has_the_config_under_another_name(self, configure, tmp_path, former):
        claim(tmp_path / former, configure("optim.lr=1e-3"))
        assert find_folder(tmp_path, "toy+optim.lr-0.001", "toy", configure("optim.lr=0.001")) == tmp_path / former
        assert find_folder(tmp_path, "mine", "toy", configure()) == tmp_path / former  # --config-name mine
        other = find_folder(tmp_path, "toy+optim.lr-0.002", "toy", configure("optim.lr=0.002"))
        assert other == tmp_path / "toy+optim.lr-0.002"

    def test_prefers_the_folder_of_the_name(self, configure, tmp_path):
        for name in ("toy", "toy+seed-0"):
            claim(tmp_path / name, configure())
        assert find_folder(tmp_path, "toy+seed-0", "toy", configure()) == tmp_path / "toy+seed-0"

    def test_leaves_copies_and_damaged_folders_alone(self, configure, tmp_path):
        claim(tmp_path / "toy_backup", configure())
        (tmp_path / "toy+damaged").mkdir()
        (tmp_path / "toy+damaged" / "config.yaml").write_text("seed: 0\n: {")
        assert find_folder(tmp_path, "toy+seed-0", "toy", configure()) == tmp_path / "toy+seed-0"


def claim(folder, cfg):
    """Claim a folder and write the config, as a run does."""
    with claim_folder(folder, cfg):
        (folder / "config.yaml").write_text(config.train_options(cfg)["config"])


class TestClaimFolder:
    def test_raises_while_another_process_holds_the_lock(self, configure, tmp_path):
        with claim_folder(tmp_path, configure()), pytest.raises(ValueError, match="in use by another process"):
            claim(tmp_path, configure())
        claim(tmp_path, configure())

    def test_raises_for_another_config_and_names_the_keys(self, configure, tmp_path):
        claim(tmp_path, configure())
        before = (tmp_path / "config.yaml").read_text()
        with pytest.raises(
            ValueError,
            match=r"(?s)another config.*penalty\.weight: 10\.0 in the folder, 1\.0 now.*seed: 0 in the folder",
        ):
            claim(tmp_path, configure("penalty.weight=1.0", "seed=5"))
        assert (tmp_path / "config.yaml").read_text() == before
        claim(tmp_path, configure())  # the lock was released

    def test_accepts_other_values_of_keys_that_do_not_change_a_number(self, configure, tmp_path):
        claim(tmp_path, configure())
        others = ("train.steps=7", "train.decay_steps=4000", "train.log_every=3", "device=cpu", "run_dir=x")
        with claim_folder(tmp_path, configure(*others)):
            assert OmegaConf.load(tmp_path / "config.yaml").train.steps == 4000  # the caller writes the new config

    def test_raises_for_another_number_of_steps_if_the_learning_rates_decay_until_then(self, configure, tmp_path):
        claim(tmp_path, configure())
        with pytest.raises(ValueError, match=r"another config:\n  train\.decay_steps: 4000 in the folder, 5000 now\n"):
            claim(tmp_path, configure("train.steps=5000"))

    def test_raises_for_another_average(self, configure, tmp_path):
        claim(tmp_path, configure())
        with pytest.raises(ValueError, match=r"another config:\n  ema\.decay: None in the folder, 0\.9 now\n"):
            claim(tmp_path, configure("ema.decay=0.9"))

    def test_compares_the_values_that_a_budget_chooses(self, configure, tmp_path):
        assert run_name("cifar_dcgan", ["experiment=cifar_dcgan", "budget=cpu"]) == "cifar_dcgan+budget-cpu"
        claim(tmp_path, configure("experiment=cifar_dcgan", "budget=cpu"))
        widths = [f"networks.{name}.width=32" for name in ("generator", "critic")]
        claim(tmp_path, configure("experiment=cifar_dcgan", *widths))
        with pytest.raises(ValueError, match=r"networks.critic.width: 32 in the folder, 128 now"):
            claim(tmp_path, configure("experiment=cifar_dcgan"))

    def test_accepts_a_missing_key_that_is_null_now(self, configure, tmp_path):
        claim(tmp_path, configure())
        text = (tmp_path / "config.yaml").read_text()
        (tmp_path / "config.yaml").write_text(text.replace("  generator_batch_size: null\n", ""))
        claim(tmp_path, configure())

    def test_accepts_a_folder_that_is_older_than_some_keys_if_they_have_their_default(self, configure, tmp_path):
        later = ("autocast:", "compile:", "precision:", "channels_last:", "sync_batch_norm:", "rank_timeout:")
        claim(tmp_path, configure())
        lines = (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.strip().startswith(later)]
        assert len(kept) == len(lines) - len(later)
        (tmp_path / "config.yaml").write_text("".join(kept))
        claim(tmp_path, configure())
        with pytest.raises(ValueError, match=r"train\.precision: fp32 in the folder, bf16 now"):
            claim(tmp_path, configure("train.precision=bf16"))

    def test_raises_for_other_folders_and_does_not_change_them(self, configure, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(ValueError, match="not empty and not a run folder"):
            claim(tmp_path, configure())
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
        for folder in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
            with pytest.raises(ValueError, match="cannot be created"):
                claim(folder, configure())

    def test_accepts_a_run_that_was_killed_before_it_wrote_its_config(self, configure, tmp_path):
        (tmp_path / "config.yaml.tmp").write_text("half")
        claim(tmp_path, configure())

    def test_accepts_an_integer_in_place_of_the_same_float(self, configure, tmp_path):
        claim(tmp_path, configure("penalty.weight=10"))
        claim(tmp_path, configure("penalty.weight=10.0"))

    def test_accepts_the_old_name_of_a_class_that_was_moved(self, configure, tmp_path):
        (old,) = MOVED
        claim(tmp_path, configure("optim=normalized"))
        text = (tmp_path / "config.yaml").read_text()
        assert MOVED[old] in text
        (tmp_path / "config.yaml").write_text(text.replace(MOVED[old], old))
        claim(tmp_path, configure("optim=normalized"))


class TestReadConfig:
    def test_keys_are_flat_and_old_names_are_those_of_this_version(self, config_text, tmp_path):
        (old,) = MOVED
        text = config_text("optim=normalized")
        (tmp_path / "config.yaml").write_text(text.replace(MOVED[old], old))
        flat = read_config(tmp_path)
        assert flat["optim._target_"] == MOVED[old] and flat["networks.critic.width"] == 128 and flat["seed"] == 0
        assert set(flat) - set(select_computed(flat)) == {*NOT_COMPUTED, "budget"} & set(flat)

    def test_damaged_file_is_an_error_that_names_the_line(self, config_text, tmp_path):
        lines = config_text().splitlines()
        number = lines.index("penalty:") + 1
        (tmp_path / "config.yaml").write_text("\n".join([*lines[: number - 1], "penalty: : {", *lines[number:]]))
        with pytest.raises(ValueError, match=rf"config\.yaml, line {number}: the file is damaged \(.+\)\. Restore it"):
            read_config(tmp_path)


def test_differing_keys_are_those_whose_values_are_not_equal_in_all_configs():
    a = {"optim.lr": 1, "seed": 0, "optim.eps": 0.1, "loss.margin": None, **ADDED}
    b = {"optim.lr": 1.0, "seed": 0, "optim.eps": 0.1}  # keys of ADDED have their value there, other keys are null
    c = {"optim.lr": 1, "seed": 1, "train.precision": "bf16"}
    assert find_differing_keys([a, b]) == find_differing_keys([a]) == []
    assert find_differing_keys([a, b, c]) == ["optim.eps", "seed", "train.precision"]
