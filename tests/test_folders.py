import errno
import fcntl
import os

import pytest
from helpers import TINY
from omegaconf import OmegaConf

from wgangp import config, load_run
from wgangp.evaluate import evaluate
from wgangp.files import UNFINISHED, explain_error
from wgangp.folders import claim_folder, find_folder, load_config, load_run_config
from wgangp.records import read_folder
from wgangp.runs import NOT_COMPUTED, flatten_config, run_name, select_computed
from wgangp.sample import sample
from wgangp.train import train

DAMAGED = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "binary": bytes(range(256)),
    "a text": b"just words",
    "a number": b"5",
    "a list": b"- seed: 0\n",
    "half a line": b"seed: 0\ndata:\n  _target_: [1",
    "no YAML": b"seed: : {",
    "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nseed: 0\ndata: {_target_: x, y: [*b, *b]}\n",
    "interpolations": b"seed: ${oc.env:HOME}\ndata: {_target_: x}\n",
    "a Python object": b"seed: 0\ndata: !!python/object/apply:os.getcwd []\n",
    "deep lists": b"[" * 5_000,
    "a long number": b"seed: " + b"9" * 5_000,
    "large": b"seed: 0\n" + b"#" * 100_000,
    "a seed that is text": b"seed: a\ndata: {_target_: x}\n",
    "a negative seed": b"seed: -1\ndata: {_target_: x}\n",
    "data that is text": b"seed: 0\ndata: x\n",
    "a target that is a list": b"seed: 0\ndata: {_target_: [x]}\n",
    "keys with a dot": b"seed: 0\ndata._target_: x\n",
}


class TestFindFolder:
    def test_is_the_folder_of_the_name_if_there_is_none_with_this_config(self, configure, tmp_path):
        assert find_folder(tmp_path, "toy+seed-3", configure("seed=3")) == tmp_path / "toy+seed-3"
        claim(tmp_path / "toy", configure("optim.lr=0.01"))
        assert find_folder(tmp_path, "toy+seed-3", configure("seed=3")) == tmp_path / "toy+seed-3"

    @pytest.mark.parametrize(
        "former", ["toy+++optim.lr-1e-3", "toy+optim.lr-1e-3", "toy+optim.lr-0.0010+seed-0", "toy"]
    )
    def test_is_the_folder_that_has_the_config_under_another_name(self, configure, tmp_path, former):
        claim(tmp_path / former, configure("optim.lr=1e-3"))
        assert find_folder(tmp_path, "toy+optim.lr-0.001", configure("optim.lr=0.001")) == tmp_path / former
        other = find_folder(tmp_path, "toy+optim.lr-0.002", configure("optim.lr=0.002"))
        assert other == tmp_path / "toy+optim.lr-0.002"

    def test_prefers_the_folder_of_the_name(self, configure, tmp_path):
        for name in ("toy", "toy+seed-0"):
            claim(tmp_path / name, configure())
        assert find_folder(tmp_path, "toy+seed-0", configure()) == tmp_path / "toy+seed-0"

    def test_leaves_copies_and_damaged_folders_alone(self, configure, tmp_path):
        claim(tmp_path / "toy_backup", configure())
        (tmp_path / "toy+damaged").mkdir()
        (tmp_path / "toy+damaged" / "config.yaml").write_text("seed: 0\n: {")
        assert find_folder(tmp_path, "toy+seed-0", configure()) == tmp_path / "toy+seed-0"


def claim(folder, cfg):
    """Claim a folder and write the config, as a run does."""
    with claim_folder(folder, cfg):
        (folder / "config.yaml").write_text(config.train_options(cfg)["config"])


class TestClaimFolder:
    def test_raises_while_another_process_holds_the_lock(self, configure, tmp_path):
        with claim_folder(tmp_path, configure()), pytest.raises(ValueError, match="in use by another process"):
            claim(tmp_path, configure())
        claim(tmp_path, configure())

    def test_raises_if_the_disk_refuses_the_lock_and_names_it(self, configure, tmp_path, monkeypatch):
        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(OSError, match="No locks available") as caught:
            claim(tmp_path, configure())
        line = explain_error(caught.value)
        assert line.startswith(f"{tmp_path / '.lock'}: No locks available. The file system refuses locks: choose")

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
        (tmp_path / "config.yaml.tmp").write_text("half")  # of an early version
        (tmp_path / f"{UNFINISHED}1").write_text("half")
        claim(tmp_path, configure())
        assert not (tmp_path / f"{UNFINISHED}1").exists()

    def test_removes_what_a_killed_process_left_and_nothing_else(self, configure, tmp_path):
        claim(tmp_path, configure())
        for folder in (tmp_path, *(tmp_path / name for name in ("checkpoints", "samples", "nonfinite", "made"))):
            folder.mkdir(exist_ok=True)
            (folder / f"{UNFINISHED}1").write_text("half")
        (tmp_path / f"{UNFINISHED}2").mkdir()  # scripts/sample.py writes there now
        claim(tmp_path, configure())
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob(f"{UNFINISHED}*")}
        assert left == {f"{UNFINISHED}2", f"made/{UNFINISHED}1"}

    def test_accepts_an_integer_in_place_of_the_same_float(self, configure, tmp_path):
        claim(tmp_path, configure("penalty.weight=10"))
        claim(tmp_path, configure("penalty.weight=10.0"))


class TestLoadRunConfig:
    def test_config_of_a_run_folder_is_read(self, config_text, tmp_path):
        (tmp_path / "config.yaml").write_text(config_text("optim=normalized"))
        flat = flatten_config(load_run_config(tmp_path))
        assert flat["optim._target_"] == "wgangp.optim.NormalizedGradientDescent"
        assert flat["networks.critic.width"] == 128 and flat["seed"] == 0
        assert set(flat) - set(select_computed(flat)) == {*NOT_COMPUTED, "budget"} & set(flat)

    def test_damaged_file_is_an_error_that_names_the_line(self, config_text, tmp_path):
        lines = config_text().splitlines()
        number = lines.index("penalty:") + 1
        (tmp_path / "config.yaml").write_text("\n".join([*lines[: number - 1], "penalty: : {", *lines[number:]]))
        with pytest.raises(ValueError, match=rf"config\.yaml, line {number}: the file is damaged \(.+\)\. Restore it"):
            load_run_config(tmp_path)

    @pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
    def test_damaged_file_is_an_error_that_names_it(self, tmp_path, text):
        (tmp_path / "config.yaml").write_bytes(text)
        with pytest.raises(ValueError, match=r"config\.yaml.*damaged|not a run folder") as caught:
            load_run_config(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    def test_what_is_no_file_is_an_error_and_not_waited_for(self, configure, tmp_path):
        os.mkfifo(tmp_path / "config.yaml")
        for read in (
            load_run_config,
            lambda folder: claim(folder, configure()),
            lambda f: load_config(f / "config.yaml"),
        ):
            with pytest.raises(ValueError, match=r"config\.yaml is not a file|has no config\.yaml"):
                read(tmp_path)
        assert find_folder(tmp_path.parent, "toy", configure()) == tmp_path.parent / "toy"


LINKS = ["config.yaml", "metrics.jsonl", "checkpoints", "samples", "made", "checkpoints/step_00000009.pt", ".lock"]


class TestLinks:
    @pytest.fixture
    def folder(self, trained):
        return trained(*TINY, "train.steps=1")

    @pytest.mark.parametrize("name", LINKS)
    def test_link_that_leads_out_of_a_run_folder_is_refused(self, configure, folder, trained, tmp_path, name):
        trained(*TINY, "train.steps=1", name="whole")
        path = folder / name
        outside = tmp_path / "outside"
        if path.exists():
            path.rename(outside)
        else:
            outside.write_text("somebody's")
        path.symlink_to(outside)
        before = outside.stat().st_mtime_ns, outside.stat().st_size
        cfg = configure(*TINY, "train.steps=2")
        options = config.train_options(cfg)
        uses = [lambda: claim(folder, cfg), lambda: load_run(folder), lambda: sample(str(folder))]
        for use in (*uses, lambda: train(folder, load_run(folder / ".." / "whole"), **options)):
            with pytest.raises(ValueError, match=rf"{path} is a link that leads out of the folder"):
                use()
        assert (outside.stat().st_mtime_ns, outside.stat().st_size) == before

    def test_link_to_the_log_of_scores_is_refused(self, folder, tmp_path):
        outside = tmp_path / "outside"
        outside.write_text("{}\n")
        (folder / "scores.jsonl").symlink_to(outside)
        with pytest.raises(ValueError, match=r"scores\.jsonl is a link"):
            evaluate(str(folder), scores=["critic"], n=8)
        assert outside.read_text() == "{}\n"

    def test_folder_that_is_a_link_and_links_inside_of_it_are_allowed(self, configure, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder)
        (folder / "checkpoints" / "newest").symlink_to(folder / "checkpoints" / "step_00000001.pt")
        claim(tmp_path / "link", configure(*TINY, "train.steps=1"))
        assert load_run(tmp_path / "link").seed == 0


@pytest.mark.parametrize("name", ["a list", "aliases", "data that is text"])
def test_commands_name_a_damaged_config(trained, name):
    folder = trained(*TINY, "train.steps=1")
    (folder / "config.yaml").write_bytes(DAMAGED[name])
    for use in (load_run, sample, evaluate, read_folder):
        with pytest.raises(ValueError) as caught:
            use(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
