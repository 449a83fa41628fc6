import re

import pytest
from omegaconf import OmegaConf

from wgangp import config, runs
from wgangp.runs import NOT_COMPUTED, run_name


class TestRunName:
    def test_is_the_experiment_and_its_overrides_in_one_order(self):
        assert run_name(None, []) == "toy"
        assert run_name("mnist", ["experiment=mnist", "seed=3", "penalty.weight=1"]) == "mnist+penalty.weight-1+seed-3"
        assert run_name(None, ["b=1", "a=2"]) == run_name(None, ["a=2", "b=1"])

    def test_leaves_out_what_changes_no_number(self):
        overrides = [f"{key}=7" for key in NOT_COMPUTED]
        assert run_name(None, overrides) == "toy"
        assert run_name(None, ["train.critic_steps=7"]) != "toy"

    def test_is_a_name_that_a_folder_can_have_however_long_the_command(self):
        name = run_name(None, ["optim.betas=[0.5, 0.9]", "+optim.x=a/b c", "~penalty"])
        assert re.fullmatch(r"[\w.+-]+", name)
        long = ["networks.generator.width=64", "networks.critic.width=64", "optim.betas=[0.0,0.99]", "data=swiss_roll"]
        names = {run_name("e", [*long, "regularize.gradient_norm=0.01", f"seed={i}"]) for i in range(5)}
        assert len(names) == 5 and max(map(len, names)) < 130


def claim(folder, cfg):
    """What a run does: have the folder, and leave its config there."""
    with runs.claim(folder, cfg):
        (folder / "config.yaml").write_text(config.train_options(cfg)["config"])


class TestClaim:
    def test_a_second_process_is_kept_out_until_the_first_ends(self, configure, tmp_path):
        with runs.claim(tmp_path, configure()), pytest.raises(ValueError, match="in use by another process"):
            claim(tmp_path, configure())
        claim(tmp_path, configure())

    def test_a_folder_of_another_config_is_refused_and_the_keys_are_named(self, configure, tmp_path):
        claim(tmp_path, configure())
        before = (tmp_path / "config.yaml").read_text()
        with pytest.raises(
            ValueError, match=r"(?s)another config.*penalty\.weight: 10\.0 there, 1\.0 now.*seed: 0 there"
        ):
            claim(tmp_path, configure("penalty.weight=1.0", "seed=5"))
        assert (tmp_path / "config.yaml").read_text() == before
        claim(tmp_path, configure())  # and the lock was given back

    def test_keys_that_change_no_number_do_not_matter(self, configure, tmp_path):
        claim(tmp_path, configure())
        with runs.claim(tmp_path, configure("train.steps=7", "train.log_every=3", "device=cpu", "run_dir=x")):
            assert OmegaConf.load(tmp_path / "config.yaml").train.steps == 4000  # until something is computed

    def test_a_budget_is_what_it_stands_for(self, configure, tmp_path):
        assert run_name("cifar_dcgan", ["experiment=cifar_dcgan", "budget=cpu"]) == "cifar_dcgan+budget-cpu"
        claim(tmp_path, configure("experiment=cifar_dcgan", "budget=cpu"))
        widths = [f"networks.{player}.width=32" for player in ("generator", "critic")]
        claim(tmp_path, configure("experiment=cifar_dcgan", *widths))
        with pytest.raises(ValueError, match=r"networks.critic.width: 32 there, 128 now"):
            claim(tmp_path, configure("experiment=cifar_dcgan"))

    def test_a_key_that_came_later_is_no_other_config_where_it_is_null(self, configure, tmp_path):
        claim(tmp_path, configure())
        text = (tmp_path / "config.yaml").read_text()
        (tmp_path / "config.yaml").write_text(text.replace("  generator_batch_size: null\n", ""))
        claim(tmp_path, configure())

    def test_a_folder_from_before_later_keys_goes_on_where_they_change_nothing(self, configure, tmp_path):
        later = ("autocast:", "compile:", "precision:", "channels_last:", "sync_batch_norm:", "rank_timeout:")
        claim(tmp_path, configure())
        lines = (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.strip().startswith(later)]
        assert len(kept) == len(lines) - len(later)
        (tmp_path / "config.yaml").write_text("".join(kept))
        claim(tmp_path, configure())
        with pytest.raises(ValueError, match=r"train\.precision: fp32 there, bf16 now"):
            claim(tmp_path, configure("train.precision=bf16"))

    def test_what_is_no_run_folder_is_left_alone(self, configure, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(ValueError, match="not empty and no run folder"):
            claim(tmp_path, configure())
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
        for folder in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
            with pytest.raises(ValueError, match="cannot be made"):
                claim(folder, configure())

    def test_a_run_that_died_before_its_config_was_there_goes_on(self, configure, tmp_path):
        (tmp_path / "config.yaml.tmp").write_text("half")
        claim(tmp_path, configure())


def test_numbers_that_yaml_cannot_tell_apart_are_one_config(configure, tmp_path):
    claim(tmp_path, configure("penalty.weight=10"))
    claim(tmp_path, configure("penalty.weight=10.0"))
