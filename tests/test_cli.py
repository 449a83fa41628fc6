"""The commands as a user types them: in another folder, and with wrong input, too.

Most tests run a command in this process, because a new process needs seconds for its imports.
"""

import errno
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from helpers import ROOT, TINY, make_old
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from wgangp import cli, folders, load_run, schema
from wgangp.config import CONF
from wgangp.logs import read_lines
from wgangp.train import update

FIGURE = ("figure.width=4", "figure.steps=1", "figure.batch_size=8", "seeds=[0]", "device=cpu")
SIZES = ("n=60", "starts=9", "ascent=3", "device=cpu")


@pytest.fixture(autouse=True)
def _quick_reports(quick_reports):
    pass


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """command("train", "seed=1", ...) runs scripts/train.py in the user's folder, and returns all that it prints."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(name, *arguments, status=0):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        GlobalHydra.instance().clear()
        code = run_main(name)
        output = "".join(capsys.readouterr())
        if isinstance(code, str):  # the interpreter would print it and end with status 1
            output, code = output + code, 1
        assert code == status, output
        return output

    run.folder = folder
    return run


def run_main(name=None):
    """Return the exit status of a command, or its last message."""
    try:
        cli.main(name)
    except SystemExit as end:
        return end.code or 0
    return 0


def run_folder(output):
    return output.splitlines()[0].removeprefix("run folder: ")


class TestTrain:
    def test_prints_the_newest_text(self, command, tmp_path):
        (tmp_path / "lines.txt").write_text("".join(f"line {i}\n" for i in range(40)))
        text = ("experiment=language", f"data.path={tmp_path / 'lines.txt'}", "data.length=8", "train.critic_steps=1")
        output = command("train", *TINY, *text, "train.batch_size=4", "train.report_size=4", "train.steps=1")
        (folder,) = (command.folder / "runs").iterdir()
        assert f"samples: runs/{folder.name}/samples/00000001.txt" in output and "data: 36 lines to train on" in output
        assert folder.name.startswith("language+") and "lines.txt" not in folder.name

    def test_creates_a_run_finds_it_and_continues_it(self, command):
        output = command("train", *TINY, "train.steps=2")
        (folder,) = (command.folder / "runs").iterdir()
        assert f"runs/{folder.name}" in output and "finished: 2 generator updates" in output
        assert "00000002.png" in output and (folder / "samples" / "00000002.png").exists()
        assert f"{folder.relative_to(command.folder)}/curves.png" in output and (folder / "curves.png").exists()
        assert "samples: " in output and "curves: " in output
        assert "%|" not in output  # no progress bar if the output is not a terminal
        assert "finished: 2 generator updates" in command("train", *TINY, "train.steps=2")
        assert "finished: 3 generator updates" in command("train", *TINY[::-1], "train.steps=3", "train.log_every=1")
        assert len(list((command.folder / "runs").iterdir())) == 1
        provenance = read_lines(folder / "provenance.jsonl")
        assert [record["command"].split()[0] for record in provenance] == ["train.py", "train.py"]
        assert [record["command"].split()[-1] for record in provenance] == ["train.steps=2", "train.log_every=1"]
        command("train", *TINY, "train.steps=1", "seed=3")
        assert len(list((command.folder / "runs").iterdir())) == 2
        assert {p.name for p in command.folder.iterdir()} == {"runs"}  # no other files

    def test_longer_run_is_another_run_if_the_learning_rates_decay_until_its_end(self, command, quick_pictures):
        sizes = [argument for argument in TINY if "decay" not in argument]
        folders = [run_folder(command("train", *sizes, f"train.steps={steps}")) for steps in (1, 2, 1)]
        assert "+train.decay_steps-1+" in folders[0] and "+train.decay_steps-2+" in folders[1]
        assert folders[0] == folders[2] and len(list((command.folder / "runs").iterdir())) == 2
        command("train", *sizes, "train.steps=1", "run_dir=kept")
        output = command("train", *sizes, "train.steps=2", "run_dir=kept", status=1)
        assert "train.decay_steps: 1 in the folder, 2 now" in output and "Traceback" not in output

    def test_sweep_has_a_folder_per_run(self, command, quick_pictures):
        command("train", "-m", *TINY, "train.steps=1", "seed=10,11", "penalty.sides=one")
        assert len([p for p in (command.folder / "runs").iterdir() if "one+seed-1" in p.name]) == 2
        assert {p.name for p in command.folder.iterdir()} == {"runs"}

    def test_folder_of_sweeps_that_cannot_be_made_is_named(self, command):
        (command.folder / "file").write_text("")
        output = command("train", "-m", "hydra.sweep.dir=file/sweeps", "seed=10,11", status=1)
        assert output.startswith("error: file/sweeps: Not a directory. A file is where") and "Traceback" not in output

    def test_cfg_job_prints_the_config_and_runs_nothing(self, command):
        assert "critic_steps: 5" in command("train", "experiment=mnist", "--cfg", "job")
        assert list(command.folder.iterdir()) == []

    def test_folder_of_another_config_is_refused(self, command, quick_pictures):
        command("train", *TINY, "train.steps=1", "run_dir=custom")
        message = command("train", *TINY, "train.steps=1", "run_dir=custom", "seed=5", status=1)
        assert "belongs to another config" in message and "seed: 0 in the folder, 5 now" in message

    def test_folder_in_use_is_refused(self, command, configure):
        with folders.claim_folder(command.folder / "custom", configure(*TINY)):
            message = command("train", *TINY, "run_dir=custom", status=1)
        assert "custom is in use by another process" in message and "Traceback" not in message

    @pytest.mark.parametrize(("name", "continues"), [("train", True), ("evaluate", False)])
    def test_second_ctrl_c_has_no_traceback(self, command, monkeypatch, name, continues):
        def interrupt(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(cli.config, "build_run", interrupt)
        monkeypatch.setitem(cli.FUNCTIONS, "evaluate", interrupt)
        output = command(name, *(TINY if name == "train" else ("run=x",)), status=130)
        assert "stopped at once" in output and "Traceback" not in output
        assert ("continues from the newest checkpoint" in output) == continues

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    def test_interrupted_run_prints_how_to_continue(self, command, quick_pictures, monkeypatch, number):
        def interrupt(step, *arguments, **options):
            if step == 2:
                signal.raise_signal(number)
            return update(step, *arguments, **options)

        monkeypatch.setattr("wgangp.train.update", interrupt)
        output = command("train", *TINY, "train.steps=9", "run_dir=custom", status=128 + number)
        assert "stopped at step 3 of 9; the same command continues from there" in output
        monkeypatch.setattr("wgangp.train.update", update)
        assert "finished: 9 generator updates" in command("train", *TINY, "train.steps=9", "run_dir=custom")
        assert [record["step"] for record in read_lines(command.folder / "custom" / "metrics.jsonl")] == [0, 9]

    def test_folder_of_an_earlier_version_is_continued(self, command, quick_pictures):
        arguments = (*TINY, "run_dir=old")
        command("train", *arguments, "train.steps=2")
        path = command.folder / "old" / "config.yaml"
        before = path.read_text()
        make_old(path)
        assert "compile" in before and "compile" not in path.read_text()
        assert "finished: 3 generator updates" in command("train", *arguments, "train.steps=3")
        assert path.read_text() == before.replace("steps: 2\n", "steps: 3\n")  # written anew
        command("train", *arguments, "train.steps=3", "run_dir=new")
        old, new = (load_run(command.folder / name).critic for name in ("old", "new"))
        assert all((p == q).all() for p, q in zip(old.parameters(), new.parameters(), strict=True))
        assert "penalty.autocast: False in the folder, True now" in command(
            "train", *arguments, "penalty.autocast=true", status=1
        )

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["train.stps=3"], "train.stps is unknown; the keys of train are steps, critic_steps, "),
            (["penalty.wieght=3"], "penalty.wieght is unknown. Did you mean penalty.weight?"),
            (["+train.foo=abc"], "error: train.foo is unknown; the keys of train are steps, critic_steps, "),
            (["train.foo=5"], "error: train.foo is unknown; the keys of train are steps, critic_steps, "),
            (["foo=5"], "error: foo is unknown; the keys of the config are data, networks, "),
            (["networks.foo=5"], "error: networks.foo is unknown; the keys of networks are generator, critic"),
            (["data.root=x"], "has no key data.root. Choices that have it: data=cifar10, data=fashion_mnist, data=im"),
            (["penalty.foo=5"], "An option of no config file needs a plus: +penalty.foo=VALUE"),
            (["+penalty.wieght=3"], "wieght is unknown; the keys of wgangp.penalty.GradientPenalty are weight, target"),
            (["penalty.weight=-1"], "penalty: weight = -1.0: must be >= 0"),
            (["penalty.sides=three"], "must be one of two, one"),
            (["train.steps=abc"], "train.steps must be an integer"),
            (["penalty=nothing"], "two_sided"),  # Hydra lists the choices
            (["clip.weights=-0.01"], "clip.weights = -0.01: must be > 0"),
            (["optim.lr=-1"], "optim.lr = -1: must be >= 0"),
            (["experiment=mnist", "data.root=nowhere"], "data.root=FOLDER, where FOLDER/MNIST/raw has"),
            (["networks=mnist"], "choose data= and networks= that belong together"),
            (["networks=zoo/nope"], "networks=zoo/nope: networks is one of cifar_dcgan"),
            (["networks=nope"], "zoo/dcgan, zoo/gated, zoo/good"),
            (["experiment=nope"], "experiment=nope: experiment is one of"),
            (["data._target_=os.system"], "only names under"),
            (["run_dir=kept"], "not empty and not a run folder"),
            (["experiment=cifar_dcgan", "budget=huge"], "budget = huge: must be one of cpu, paper"),
            (["optim.lr=1e30", *TINY, "train.steps=50", "run_dir=diverged"], "is not finite"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_wrong_input_is_an_error_with_the_remedy_and_nothing_is_lost(
        self, command, quick_pictures, arguments, message
    ):
        kept = command.folder / "kept"
        kept.mkdir()
        (kept / "thesis.tex").write_text("years of work")
        output = command("train", *arguments, status=1)
        assert message in output
        assert "Traceback" not in output, output
        assert not (command.folder / "runs").exists()
        assert (kept / "thesis.tex").read_text() == "years of work" and len(list(kept.iterdir())) == 1

    @pytest.mark.data
    def test_real_digits_are_learned(self, command, quick_pictures):
        small = ["networks.generator.width=8", "networks.critic.width=8", "device=cpu"]
        root = os.environ["WGANGP_DATA"]
        command("train", "experiment=mnist", f"data.root={root}", *small, "train.steps=30", "run_dir=digits")
        lines = read_lines(command.folder / "digits" / "metrics.jsonl")
        assert lines[0]["step"] == 0 and lines[-1]["step"] == 30
        assert lines[-1]["wasserstein"] > 1 > abs(lines[0]["wasserstein"])  # the critic tells real from fake
        folder = command.folder / command("sample", "run=digits", "what=images", "n=3").strip()
        with Image.open(folder / "000002.png") as image:
            assert image.size == (28, 28)
        path = command.folder / command("sample", "run=digits", "what=interpolation", "n=20").strip()
        assert path.exists()


class TestOverrides:
    """What a user may write in place of a value, and what is said if it does not work."""

    @pytest.mark.parametrize(
        "argument, message",
        [
            ("~clip", "~clip: clip cannot be removed; for none, write clip.weights=null clip.gradient_norm=null"),
            ("clip=null", "clip=null: clip is a group of keys; for none, write clip.weights=null"),
            ("~clip.weights", "cannot be removed; for none, write clip.weights=null"),
            ("regularize=null", "for none, write regularize.gradient_norm=0"),
            ("penalty=null", "penalty=null: penalty is one of dragan, none, one_sided"),
            ("~penalty", "~penalty: penalty cannot be removed; for none, write penalty=none"),
            ("optim=null", "optim=null: optim is one of adam, adam_dcgan"),
            ("data=null", "data=null: data is one of cifar10"),
            ("data=[1,1]", "data=[1,1]: data is one of cifar10"),
            ("penalty=[one_sided,two_sided]", "penalty is one of dragan, none"),
            ("hydra/launcher=[1,1]", "hydra/launcher is a group of config files: write the name of one"),
            ("hydra/job_logging=3", "hydra/job_logging is a group of config files"),
            ("networks=3", "networks=3: networks is one of cifar_dcgan"),
            ("loss=true", "loss=true: loss is one of acgan, least_squares"),
            ("experiment=null", "for none, write nothing, or ~experiment"),
            ("~data", "~data: data cannot be removed"),
            ("~networks.critic", "~networks.critic: this key cannot be removed"),
            ("~train", "~train: train cannot be removed"),
            ("~train.steps", "~train.steps: train.steps cannot be removed"),
            ("~seed", "~seed: seed cannot be removed"),
            ("train=3", "train=3: train must be a group of keys: train.steps, "),
            ("networks.critic=null", "networks.critic must be a group of keys"),
            ("train.steps=true", "train.steps must be an integer"),
            ("train.compile=maybe", "train.compile must be true or false"),
            ("train.precision=null", "train.precision must be text"),
            ("device=null", "device must be text"),
            ("clip.weights=abc", "clip.weights must be a number or null"),
            ("run_dir=[1]", "run_dir must be text or null"),
            ("trust=my_package", "trust must be a list of values, each of them text"),
            (
                "optim.weight_decay=0.1",
                "the config has no key optim.weight_decay. An option of no config file needs a plus: +",
            ),
            ("=3", "=3: write the key before the ="),
            ("seed", "seed cannot be read as key=value"),
            ("seed=1,2", "seed=1,2 has several values: add -m for one run per value"),
            ("data.root=my pics (1)", "'data.root=\"my pics (1)\"'"),
            ("run_dir=d\u00eda", "'run_dir=\"d\u00eda\"'"),
            ("run_dir=~/runs", f"'run_dir=\"{Path.home()}/runs\"'"),
            ("hydra.job.chdir=true", "hydra.job.chdir = True: Hydra does not choose the folders of this project"),
            ("hydra.run.dir=elsewhere", "hydra.run.dir = elsewhere: Hydra does not choose the folders"),
            ("hydra.output_subdir=elsewhere", "hydra.output_subdir = elsewhere: Hydra does not"),
            ("hydra.sweep.subdir=elsewhere", "hydra.sweep.subdir = elsewhere: Hydra does not"),
            ("hydra.foo=3", "the config has no key hydra.foo"),
            ("run_dir=", "run_dir is empty: write a value, or null"),
            ("penalty.sides=''", "penalty.sides is empty: write"),
            (
                "+hydra.callbacks={x:{_target_:os.system,command:ls}}",
                "hydra.callbacks.x._target_ = os.system: only names",
            ),
            (
                "+hydra.callbacks={x:{y:[{_target_:builtins.eval}]}}",
                "hydra.callbacks.x.y.0._target_ = builtins.eval: only",
            ),
            (
                "hydra.launcher._target_=logging.os.system",
                "hydra.launcher._target_ = logging.os.system: only names under",
            ),
            (
                "+hydra.hydra_logging.handlers.x.class=os.system",
                "hydra.hydra_logging.handlers.x.class = os.system: must be one of logging.StreamHandler",
            ),
        ],
    )
    def test_mistake_is_explained_and_nothing_is_written(self, command, argument, message):
        output = command("train", "train.steps=1", argument, status=1)
        assert f"error: {message}" in output or message in output.splitlines()[0], output
        for word in ("Traceback", "full_key", "object_type", "subscriptable", "LexerNoViable", "HYDRA_FULL_ERROR"):
            assert word not in output
        assert list(command.folder.iterdir()) == []

    @pytest.mark.parametrize(
        "argument",
        ["~clip", "penalty=two_sided,null", "hydra.job.chdir=true", "train.steps=1,abc", "hydra.launcher.x=1,2"],
    )
    def test_mistake_in_a_sweep_is_explained_before_the_first_job(self, command, argument):
        output = command("train", "-m", argument, "seed=0,1", status=1)
        assert "error: " in output and "Traceback" not in output and not list(command.folder.glob("runs/toy*"))

    @pytest.mark.parametrize(
        "argument", ["penalty=none", "~experiment", "~optim.fused", "clip={weights: 0.1}", "optim.betas=[0,1e-1]"]
    )
    def test_natural_way_works(self, command, quick_pictures, argument):
        assert "finished: 1" in command("train", *TINY, "train.steps=1", argument)

    def test_printed_quotes_work_in_a_shell(self, command, quick_pictures):
        for name in ("my pics (1)", "d\u00eda", 'a"b', "it's", "a,b", "a=b"):
            message = command("train", f"run_dir={name} ", status=1)
            (argument,) = shlex.split(message.strip().split("for Hydra: ")[1])
            command("train", *TINY, "train.steps=1", argument)
            assert (command.folder / f"{name} " / "config.yaml").exists()

    def test_flag_of_a_sweep_can_stand_anywhere(self, command, quick_pictures):
        command("train", *TINY, "-m", "train.steps=1", "seed=1,2")
        assert len(list((command.folder / "runs").glob("toy*"))) == 2

    @pytest.mark.parametrize(
        "settings, message",
        [
            ("{job: {chdir: true}}", "hydra.job.chdir = True: Hydra does not choose the folders"),
            ("{callbacks: {x: {_target_: os.mkdir, path: made}}}", "hydra.callbacks.x._target_ = os.mkdir: only names"),
            ("{launcher: {_target_: logging.os.system}}", "hydra.launcher._target_ = logging.os.system: only names"),
        ],
    )
    def test_settings_of_hydra_in_a_config_file_are_refused(self, command, settings, message):
        mine = command.folder / "mine"
        mine.mkdir()
        (mine / "other.yaml").write_text(f"defaults: [config, _self_]\nhydra: {settings}\n")
        output = command("train", *TINY, "--config-dir", "mine", "--config-name", "other", status=1)
        assert output.startswith(f"error: {message}") and "Traceback" not in output
        assert list(command.folder.iterdir()) == [mine]

    def test_damaged_config_file_is_named(self, command):
        (command.folder / "other.yaml").write_text("seed: [\n")
        output = command("train", "--config-dir", ".", "--config-name", "other", status=1)
        assert output.startswith("error: ") and "other.yaml" in output and "Traceback" not in output


class TestFolders:
    def names(self, command):
        return {p.name for p in (command.folder / "runs").iterdir() if p.name != ".sweeps"}

    def test_one_config_has_one_folder(self, command, quick_pictures):
        command("train", *TINY, "train.steps=1", "optim.lr=1e-3")
        for text in ("optim.lr=0.001", "++optim.lr=0.0010", "seed=0", "penalty=two_sided", "objective=modes"):
            assert "optim.lr-0.001" in run_folder(command("train", *TINY, "train.steps=1", text))
        command("train", "-m", *TINY, "train.steps=1", "optim.lr=0.001,1.0e-3", "seed=0")
        command("train", *TINY, "train.steps=1")  # 0.001 is the default
        assert len(self.names(command)) == 1
        command("train", *TINY, "train.steps=1", "optim.lr=0.002")
        assert len(self.names(command)) == 2

    def test_folder_of_the_former_name_is_continued(self, command, quick_pictures):
        runs = command.folder / "runs"
        (now,) = (Path(run_folder(command("train", *TINY, "train.steps=2", "penalty.weight=1.0"))),)
        former = runs / now.name.replace("penalty.weight-1", "++penalty.weight-1.0")
        (command.folder / now).rename(former)
        output = command("train", *TINY, "train.steps=3", "++penalty.weight=1.0")
        assert run_folder(output) == f"runs/{former.name}" and "finished: 3" in output
        assert self.names(command) == {former.name}
        assert [line["step"] for line in read_lines(former / "metrics.jsonl")] == [0, 3]

    def test_name_of_the_config_is_in_the_name_of_the_folder(self, command, quick_pictures):
        mine = command.folder / "mine"
        mine.mkdir()
        (mine / "other.yaml").write_text("defaults: [config, _self_]\npenalty: {weight: 3.0}\n")
        arguments = ("--config-dir", "mine", *TINY, "train.steps=1", "seed=4", "--config-name")
        assert run_folder(command("train", *arguments, "other")).startswith("runs/other+networks.critic")
        assert run_folder(command("train", *arguments, "other.yaml")).startswith("runs/other+networks.critic")
        assert run_folder(command("train", *arguments, "config")).startswith("runs/toy+networks.critic")
        assert len(self.names(command)) == 2


class TestSweep:
    def test_failures_do_not_stop_it_and_are_listed(self, command, quick_pictures):
        output = command("train", "-m", *TINY, "train.steps=30", "optim.lr=0.001,1e30,-1,0.002", status=1)
        assert output.count("finished: 30 generator updates") == 2
        summary = output[output.index("error: 2 of 4 jobs failed:") :].splitlines()
        assert len(summary) == 3 and "optim.lr=1e+30: step" in summary[1] and "is not finite" in summary[1]
        assert summary[2].endswith("optim.lr=-1: optim.lr = -1: must be >= 0")
        assert "Traceback" not in output

    def test_job_after_an_unexpected_error_is_run_and_its_traceback_is_shown(
        self, command, quick_pictures, monkeypatch
    ):
        def fail(folder, run, **options):
            if run.seed == 1:
                raise RuntimeError("out of memory")
            return options["steps"]

        monkeypatch.setattr(cli, "train", fail)
        for batch in ([], ["hydra.sweeper.max_batch_size=1"]):
            output = command("train", "-m", *TINY, "train.steps=2", "seed=0,1,2", *batch, status=1)
            assert output.count("finished: 2") == 2 and "RuntimeError: out of memory" in output
            assert "error: 1 of 3 jobs failed:" in output and "seed=1: out of memory" in output
            assert output.count("Traceback") == 1

    def test_ctrl_c_stops_it_and_the_failures_are_listed(self, command, quick_pictures, monkeypatch):
        def stop(folder, run, stop_signals, **options):
            stop_signals.append(signal.SIGINT)
            return 1

        monkeypatch.setattr(cli, "train", stop)
        arguments = (*TINY, "train.steps=2", "optim.lr=-1,0.001,0.002")
        output = command("train", "-m", *arguments, status=130)
        assert output.count("stopped at step 1 of 2") == 1 and "error: 1 of 2 jobs failed" in output

    def test_sweep_of_other_commands_goes_on_alike(self, command, trained):
        run = trained(*TINY, "train.steps=1")
        output = command("sample", "-m", f"run={run}", "n=4,0,5", "device=cpu", status=1)
        assert "seed0_n4.png" in output and "seed0_n5.png" in output and "n=0 device=cpu: n = 0, seed = 0" in output


class Maximizer(Sweeper):
    """A sweeper that optimizes: it runs two jobs and keeps the numbers that they return."""

    __module__ = "hydra_plugins.maximizer"  # where Hydra wants plugins
    returned: ClassVar[list] = []

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        Path("runs/.sweeps").mkdir(parents=True, exist_ok=True)
        for number in range(2):
            (job,) = self.launcher.launch([[*arguments, f"seed={number}"]], initial_job_idx=number)
            self.returned.append(job.return_value)


class TestObjective:
    @pytest.fixture
    def sweeper(self, monkeypatch):
        """The arguments that choose a sweeper that optimizes, as a plugin of Hydra."""
        monkeypatch.setattr(Maximizer, "returned", [])
        Plugins.instance().register(Maximizer)
        plugins = SimpleNamespace(maximizer=SimpleNamespace(Maximizer=Maximizer))
        monkeypatch.setitem(sys.modules, "hydra_plugins", plugins)
        ConfigStore.instance().store(
            group="hydra/sweeper", name="optuna", node={"_target_": "hydra_plugins.maximizer.Maximizer"}
        )
        yield ("-m", "hydra/sweeper=optuna", *TINY, "train.steps=1")
        del ConfigStore.instance().repo["hydra"]["sweeper"]["optuna.yaml"]

    def test_number_of_the_last_line_is_returned(self, command, quick_pictures, sweeper):
        command("train", *sweeper, "objective=largest_quotient")
        logs = sorted((command.folder / "runs").glob("*/metrics.jsonl"))
        assert len(logs) == 2 and Maximizer.returned == [read_lines(path)[-1]["largest_quotient"] for path in logs]

    def test_sweeper_that_optimizes_needs_it(self, command, sweeper):
        output = command("train", *sweeper, status=1)
        assert "objective = null: this sweeper optimizes a number. Name it" in output
        assert "Traceback" not in output and not list((command.folder / "runs").glob("toy*"))

    def test_unknown_name_is_refused_before_training(self, command):
        output = command("train", *TINY, "objective=loss", status=1)
        assert (
            output.startswith("error: objective = loss: the log of this run will have ") and ", wasserstein" in output
        )
        assert not (command.folder / "runs").exists()


class TestHelp:
    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_explains_every_key_and_choice(self, command, name):
        output = command(name, "--help")
        assert output == command(name, "-h", "seed=3") and output.isascii()
        lines = [line.split(None, 1) for line in output.splitlines()]
        explained = {line[0].split("=")[0] for line in lines if len(line) == 2 and "=" in line[0]}
        choices = {line[0] for line in lines if len(line) == 2 and "=" in line[0]}
        path = CONF / f"{cli.COMMANDS[name][0]}.yaml"
        groups = [key for key in OmegaConf.load(path).get("defaults") if isinstance(key, dict | DictConfig)]
        groups = [key for group in groups for key in group if (CONF / key).is_dir()]
        assert bool(groups) == (name in ("train", "reproduce"))
        for group in groups:
            for file in (CONF / group).rglob("*.yaml"):
                assert f"{group}={file.relative_to(CONF / group).with_suffix('')}" in choices
                if group != "experiment":
                    own = {k: v for k, v in OmegaConf.to_container(OmegaConf.load(file)).items() if k != "defaults"}
                    keys = schema.flatten_keys(own, f"{group}.")
                    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
                    assert leaves <= explained, file
        own = OmegaConf.load(path)
        keys = schema.flatten_keys(
            {key: value for key, value in OmegaConf.to_container(own).items() if key not in ("defaults", "hydra")}
        )
        assert {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)} <= explained
        assert "hydra=" not in output and list(command.folder.iterdir()) == []


class TestOwnPackage:
    """The example of docs/config.md, from the file to the picture."""

    @pytest.fixture
    def example(self, command, monkeypatch):
        """Write the files of the example; returns its two commands, as (name, arguments)."""
        section = (
            (ROOT / "docs" / "config.md").read_text().split("## Your own data set or network")[1].split("\n## ")[0]
        )
        blocks = re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL)
        (code,), files = ([text for kind, text in blocks if kind == wanted] for wanted in ("python", "yaml"))
        names = [name for name in re.findall(r"`([\w/]+\.(?:py|yaml))`", section) if not name.startswith("wgangp/")]
        assert names == ["my_package.py", "mine/data/circle.yaml", "mine/networks/circle.yaml"]
        for name, text in zip(names, [code, *files], strict=True):
            path = command.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(command.folder)  # as export PYTHONPATH=$PWD does
        lines = [shlex.split(line) for line in blocks[-1][1].splitlines() if line.startswith("python")]
        yield [(Path(line[1]).stem, line[2:]) for line in lines]
        sys.modules.pop("my_package", None)

    def test_example_of_the_documentation_trains_and_draws_a_picture(self, command, example, quick_pictures):
        (train, arguments), (sample, sample_arguments) = example
        small = ("train.steps=2", "train.batch_size=16", "train.report_size=16", "device=cpu")
        folder = run_folder(command(train, *arguments, *small, "objective=wasserstein"))
        assert folder + "+train.batch_size-16+train.decay_steps-2+train.report_size-16" == folder + folder.removeprefix(
            "runs/toy+data-circle+networks-circle"
        )
        assert f"run={'runs/toy+data-circle+networks-circle'}" in sample_arguments
        (command.folder / folder).rename(command.folder / "runs" / "toy+data-circle+networks-circle")
        path = command.folder / command(sample, *sample_arguments, "device=cpu").strip()
        assert path.exists() and path.suffix == ".png"

    def test_every_command_asks_for_trust_again(self, command, example, quick_pictures):
        (train, arguments), _ = example
        small = (
            *arguments,
            "train.steps=2",
            "train.decay_steps=3",
            "train.batch_size=16",
            "train.report_size=16",
            "device=cpu",
        )
        folder = run_folder(command(train, *small, "run_dir=kept"))
        assert "trust" not in (command.folder / folder / "config.yaml").read_text()
        with (command.folder / folder / "config.yaml").open("a") as file:
            file.write("trust: [my_package]\n")  # as somebody else could write it
        offer = "If you trust the package my_package, add trust=[my_package] to the command line, every time"
        untrusted = [argument for argument in small if not argument.startswith("trust")]
        assert offer in command(train, *untrusted, "run_dir=kept", status=1)
        for name, sizes in (("sample", ("n=9",)), ("lipschitz", ("n=60", "starts=9", "ascent=3"))):
            assert offer in command(name, f"run={folder}", *sizes, "device=cpu", status=1)
            path = command(name, f"run={folder}", *sizes, "device=cpu", "trust=[my_package]").strip()
            assert (command.folder / path).exists()
        assert offer in command("evaluate", f"run={folder}", "scores=[critic]", "device=cpu", status=1)
        table = command("evaluate", f"run={folder}", "scores=[critic]", "n=60", "device=cpu", "trust=[my_package]")
        assert "| critic_heldout_gap |" in table
        with pytest.raises(ValueError, match=re.escape(offer)):
            load_run(command.folder / folder)
        run = load_run(command.folder / folder, trust=["my_package"])
        assert type(run.critic).__name__ == "Critic" and type(run.data).__module__ == "my_package"
        assert "finished: 3" in command(train, *small, "train.steps=3", "run_dir=kept")  # resumed

    @pytest.mark.parametrize(
        "text, argument, message",
        [
            (
                "defaults: [config, _self_]\ntrain: {stepz: 2}\n",
                "seed=1",
                "error: train.stepz is unknown; the keys of train",
            ),
            ("defaults: [config, _self_]\ntrain: {steps: abc}\n", "seed=1", "error: train.steps must be an integer"),
            (
                "train: {steps: 2}\n",
                "device=cpu",
                "error: the config has no key device: begin a config of your own with",
            ),
            ("train: {steps: 2}\n", "train.steps=1", "begin a config of your own with defaults: [config, _self_]"),
        ],
    )
    def test_mistake_in_a_config_of_ones_own_is_explained(self, command, text, argument, message):
        (command.folder / "mine").mkdir()
        (command.folder / "mine" / "other.yaml").write_text(text)
        output = command("train", "--config-dir", "mine", "--config-name", "other", argument, status=1)
        assert message in output and "Key '" not in output and "Did you mean data?" not in output

    def test_file_cannot_trust(self, command, example):
        (train, arguments), _ = example
        (command.folder / "mine" / "other.yaml").write_text("defaults: [config, _self_]\ntrust: [my_package]\n")
        arguments = [argument for argument in arguments if not argument.startswith("trust")]
        output = command(train, *arguments, "--config-name", "other", status=1)
        assert "trust = ['my_package']: write it on the command line; a config file cannot set it" in output

    def test_compiled_steps_work(self, command, example, quick_pictures, quick_compile):
        (train, arguments), _ = example
        small = ("train.steps=1", "train.batch_size=16", "train.report_size=16", "device=cpu", "train.compile=true")
        output = command(train, *arguments, *small)
        assert "compiled the critic step" in output and "finished: 1" in output

    def test_package_that_python_does_not_find_is_named_with_the_remedy(self, command, example, monkeypatch):
        (train, arguments), _ = example
        (command.folder / "my_package.py").rename(command.folder / "hidden.txt")
        output = command(train, *arguments, status=1)
        assert "my_package cannot be imported (ModuleNotFoundError" in output and "PYTHONPATH" in output


class TestSample:
    def test_prints_the_path_and_takes_the_folder_as_train_prints_it(self, command, quick_pictures):
        folder = run_folder(command("train", *TINY, "train.steps=1", "seed=7"))
        assert "+seed-7+" in folder
        for what in ("grid", "npz", "animation"):
            path = command.folder / command("sample", f"run={folder}", f"what={what}", "n=16", "device=cpu").strip()
            assert path.exists() and path.parent == command.folder / folder / "made"
        before = path.stat().st_mtime_ns
        again = command("sample", f"run={folder}", "what=animation", "n=16", "device=cpu").strip()
        assert again == str(path.relative_to(command.folder)) and path.stat().st_mtime_ns == before
        assert {p.name for p in command.folder.iterdir()} == {"runs"}

    @pytest.mark.parametrize(
        "argument, message",
        [
            ("what=film", "error: what = film: must be one of"),
            ("what=images", "error: points cannot be written as images"),
            ("n=0", "error: n = 0, seed = 0: n must be >= 1"),
            ("out=custom.png", "error: custom.png exists and is not overwritten"),
            ("out=custom", "error: out = custom: what=grid writes .png"),
            ("+foo=1", "error: foo is unknown; the keys of the config are "),
            ("+sed=1", "Did you mean seed?"),
            ("sed=1", "sed is unknown; the keys of the config are "),
            ("device=toaster", "error: device = toaster: not available on this machine"),
            ("device=toaster", "device=cpu"),
            ("run=nowhere", "error: nowhere is not a run folder"),
            ("run=null", "run must be text"),
            ("run=???", "error: run: no value is given. Add run=VALUE"),
            ("n=abc", "n must be an integer"),
            ("out=", "error: out is empty: write a value, or null"),
        ],
    )
    def test_wrong_input_is_an_error_with_the_remedy(self, command, trained, argument, message):
        run = trained(*TINY, "train.steps=1")
        (command.folder / "custom.png").write_text("years of work")
        arguments = [argument] if argument.startswith("run") else [f"run={run}", argument]
        output = command("sample", "device=cpu", *arguments, status=1)
        assert message in output and "Traceback" not in output
        assert not (run / "made").exists() and [p.name for p in command.folder.iterdir()] == ["custom.png"]
        assert (command.folder / "custom.png").read_text() == "years of work"


class TestLipschitz:
    def test_prints_the_folder_and_records_the_command(self, command, trained):
        run = trained(*TINY, "train.steps=2", "seed=8", "penalty.sides=one")
        folder = (
            command.folder / command("lipschitz", f"run={run}", *SIZES).split("\n")[0]
        )  # then what the training printed
        assert {p.name for p in folder.iterdir()} == {"lipschitz.json", "lipschitz.png"}
        report = json.loads((folder / "lipschitz.json").read_text())
        assert report["step"] == 2 and report["n"] == 60 and report["commit"]
        assert report["command"].startswith("lipschitz.py run=")
        before = (folder / "lipschitz.json").stat().st_mtime_ns
        assert folder.name in command("lipschitz", f"run={run}", *SIZES)
        assert (folder / "lipschitz.json").stat().st_mtime_ns == before
        assert command("lipschitz", f"run={run}", *SIZES, "seed=1", "out=custom").strip() == "custom"
        assert {p.name for p in command.folder.iterdir()} == {"custom"}

    @pytest.mark.parametrize(
        "argument, message",
        [
            ("n=5001", "error: n = 5001: exact transport takes at most 5000 points, so use n=5000"),
            ("n=1", "error: n = 1: must be >= 2"),
            ("ascent=0", "error: ascent = 0"),
            ("out=custom", "error: custom exists and is not overwritten"),
            ("data_root=here", "error: data_root = here: the data of this run is drawn, not read"),
            ("+foo=1", "error: foo is unknown; the keys of the config are "),
            ("strts=1", "strts is unknown; the keys of the config are "),
            ("run=nowhere", "error: nowhere is not a run folder"),
            ("run=null", "run must be text"),
        ],
    )
    def test_wrong_input_is_an_error_with_the_remedy(self, command, trained, argument, message):
        run = trained(*TINY, "train.steps=1")
        (command.folder / "custom").mkdir()
        arguments = [argument] if argument.startswith("run") else [f"run={run}", argument]
        output = command("lipschitz", "device=cpu", *arguments, status=1)
        assert message in output and "Traceback" not in output
        assert not (run / "made").exists() and list((command.folder / "custom").iterdir()) == []


class TestReproduce:
    def test_list_shows_the_figures_and_creates_nothing(self, command):
        output = command("reproduce", "--list")
        assert "gradient_norms  " in output and output.isascii() and list(command.folder.iterdir()) == []

    def test_default_run_is_trained_by_its_commands(self, command, quick_pictures, monkeypatch):
        """The figure composes configs while Hydra runs the command."""
        monkeypatch.setattr("wgangp.figures.common.POINTS", 40)
        tiny = ("figure.steps=1", "figure.width=4", "figure.batch_size=8", "device=cpu", "seeds=[0]", "out=custom")
        assert "custom" in command("reproduce", "figure=default_run", *tiny)
        records = read_lines(command.folder / "custom" / "records.jsonl")
        assert [record["variant"] for record in records] == ["none", "decay", "EMA", "both"]
        rows = (command.folder / "custom" / "README.md").read_text()
        assert "| both | `scripts/train.py ema.decay=0.999` |" in rows

    def test_sweep_has_a_folder_per_budget(self, command, quick_pictures):
        output = command("reproduce", "-m", "figure=gradient_norms", *FIGURE, "budget=cpu,paper")
        assert "results/gradient_norms\n" in output and "results/gradient_norms+paper" in output
        files = {"records.jsonl", "README.md", "config.yaml", "gradient_norms.png"}
        for name in ("gradient_norms", "gradient_norms+paper"):
            assert {p.name for p in (command.folder / "results" / name).iterdir()} >= files
        message = command("reproduce", "figure=gradient_norms", "figure.width=5", status=1)
        assert "belongs to another config" in message and "Traceback" not in message

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["figure=nothing"], "value_surfaces"),  # Hydra lists the figures
            ([], "figure"),
            (["figure=gradient_norms", "budget=huge"], "must be one of cpu, paper"),
            (["figure=penalties", "figure.stesp=1"], "figure.stesp is unknown. Did you mean figure.steps?"),
            (["figure=penalties", "+figure.stesp=1"], "figure.stesp is unknown; the keys of"),
            (
                ["figure=overfitting", "figure.data_root=nowhere", "seeds=[0]"],
                "figure.data_root=FOLDER, where FOLDER/MNIST/raw",
            ),
        ],
        ids=str,
    )
    def test_wrong_input_is_an_error_with_the_remedy(self, command, arguments, message):
        output = command("reproduce", *arguments, status=1)
        assert message in output and "Traceback" not in output

    def test_interrupted_command_prints_how_to_continue(self, command, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("wgangp.figures.gradient_norms.GradientNorms.measure", interrupt)
        output = command("reproduce", "figure=gradient_norms", *FIGURE, status=130)
        assert output.endswith("stopped; the same command continues from there\n")


class TestKeySuggestions:
    @pytest.mark.parametrize(
        "argument, hint",
        [
            ("train.stps=3", "Did you mean train.steps?"),
            ("trian.steps=3", "trian.steps is unknown. Did you mean train.steps?"),
            ("sed=3", "Did you mean seed?"),
            ("~clip.wieghts=3", "clip.wieghts is unknown. Did you mean clip.weights?"),
            ("data.rooot=here", "data.rooot is unknown. Did you mean data.root?"),
            ("+train.stps=3", "Did you mean train.steps?"),
            ("+penalty.wieght=3", "Did you mean weight?"),
        ],
    )
    def test_nearest_key_is_suggested(self, command, argument, hint):
        choice = ["data=mnist"] if argument.startswith("data") else []  # keys of the chosen data
        output = command("train", *choice, argument, status=1)
        assert output.rstrip().endswith(hint) and output.count("Did you mean") == 1

    def test_suggestions_of_a_sweep(self, command):
        output = command("train", "-m", "train.stps=1,2", status=1)
        assert "train.stps is unknown; " in output and output.count("Did you mean train.steps?") == 1

    def test_every_unknown_key_has_its_suggestion(self, command):
        output = command("train", "sed=1", "trian.steps=3", "train.stps=3", status=1)
        hints = "trian.steps is unknown. Did you mean train.steps?\ntrain.stps is unknown. Did you mean train.steps?\n"
        assert "sed is unknown; " in output and output.endswith(f"Did you mean seed?\n{hints}")

    @pytest.mark.parametrize("argument", ["+train.foo=1", "qqq=1", "optim.learning_rate=1", "train.steps=abc"])
    def test_no_key_is_suggested_if_none_is_near(self, command, argument):
        assert "Did you mean" not in command("train", argument, "hydra.run.dir=.", status=1)

    def test_hints_are_on_stderr(self, command, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["train.py", "train.stps=3"])
        assert run_main("train") == 1
        output, errors = capsys.readouterr()
        assert output == "" and errors.endswith("Did you mean train.steps?\n")
        assert errors.startswith("error: train.stps is unknown; the keys of train are ")


class TestCompare:
    def test_folders_are_positional_and_one_page_and_one_picture_are_written(self, command, quick_pictures):
        for seed in (0, 1):
            command("train", *TINY, "train.steps=1", f"seed={seed}", f"run_dir=runs/seed {seed}")
        command("train", *TINY, "train.steps=1", "penalty.sides=one", "run_dir=runs/one")
        output = command("compare", "runs/seed 0", "runs/seed 1", "runs/one/")
        page, folder = output.rstrip("\n").rsplit("\n\n", 1)
        assert folder == "runs/compared/seed-0_vs_seed-1_vs_one"
        assert page + "\n" == (command.folder / folder / "README.md").read_text()
        assert "| A | 0, 1 | `runs/seed 0`, `runs/seed 1` |" in page and "| `penalty.sides` | two | one |" in page
        assert (command.folder / folder / "compare.png").exists()
        again = command("compare", "runs=[runs/seed 0,runs/seed 1,runs/one]")
        assert again == output
        assert {p.name for p in command.folder.iterdir()} == {"runs"}

    def test_out_and_flags_of_hydra_can_be_anywhere(self, command, trained):
        folders = [str(trained(*TINY, "train.steps=1", f"seed={seed}", name=f"run{seed}")) for seed in (0, 1)]
        output = command("compare", folders[0], "out=mine", folders[1])
        assert "\nmine\n" in output and (command.folder / "mine" / "compare.png").exists()
        assert f"- {folders[1]}\n" in command("compare", "--cfg", "job", *folders)

    def test_fewer_than_two_folders_are_refused(self, command):
        for arguments in ([], ["runs/a"], ["runs/a", "runs=[runs/b]"]):
            output = command("compare", *arguments, status=1)
            assert output.startswith("error: ") and "Traceback" not in output
        assert "two or more run folders, for example python scripts/compare.py runs/a" in command("compare", status=1)


class TestFullError:
    CASES = (
        ("train", ["clip.weights=-1"], "clip.weights"),
        ("sample", ["run=nowhere"], "not a run folder"),
        ("lipschitz", ["run=nowhere"], "not a run folder"),
        ("evaluate", ["run=nowhere"], "not a run folder"),
        ("compare", ["runs=[nowhere]"], "two or more run folders"),
        ("reproduce", ["figure=penalties", "seeds=[]"], "seeds"),
    )

    def test_every_command_has_a_case(self):
        assert {name for name, _, _ in self.CASES} == set(cli.COMMANDS)

    @pytest.mark.parametrize("name, arguments, message", CASES)
    def test_variable_shows_the_traceback(self, command, monkeypatch, name, arguments, message):
        arguments = arguments if name == "compare" else [*arguments, "device=cpu"]
        output = command(name, *arguments, status=1)
        assert output.startswith("error: ") and message in output and "Traceback" not in output
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(ValueError, match=message):  # the interpreter prints its traceback
            cli.main(name)

    def test_variable_shows_the_traceback_of_hydra(self, command, monkeypatch):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", ["train.py", "train.stps=3"])
        with pytest.raises(Exception, match=r"Could not override 'train\.stps'"):
            cli.main("train")


class TestMain:
    USAGE = (
        "usage: wgangp COMMAND [key=value ...], where COMMAND is one of"
        " train, sample, lipschitz, evaluate, compare, reproduce"
    )

    def test_command_is_the_first_argument(self, command, quick_pictures, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["/bin/wgangp", "train", *TINY, "train.steps=1", "run_dir=custom"])
        assert run_main() == 0
        assert "finished: 1 generator updates" in capsys.readouterr().out
        (record,) = read_lines(command.folder / "custom" / "provenance.jsonl")
        assert record["command"].replace("'", "").startswith("wgangp train networks.generator.width=8")

    @pytest.mark.parametrize("arguments", [[], ["trian", "seed=1"], ["seed=1"]], ids=str)
    def test_without_a_command_the_usage_is_printed(self, monkeypatch, arguments):
        monkeypatch.setattr(sys, "argv", ["wgangp", *arguments])
        assert run_main() == self.USAGE

    def test_package_can_be_run_as_a_module(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["wgangp"])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("wgangp", run_name="__main__")
        assert end.value.code == self.USAGE

    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_script_runs_the_command_of_its_name(self, monkeypatch, name):
        calls = []
        monkeypatch.setattr(cli, "main", lambda *arguments: calls.append(arguments))
        path = ROOT / "scripts" / f"{name}.py"
        runpy.run_path(str(path), run_name="__main__")
        assert calls == [(name,)]
        assert f"scripts/{name}.py" in path.read_text().splitlines()[0]  # its first line is the usage

    def test_every_command_has_a_config(self):
        assert {config for config, _ in cli.COMMANDS.values()} == {path.stem for path in CONF.glob("*.yaml")}


class TestProcesses:
    """New processes, for what cannot be seen in this one."""

    @pytest.fixture
    def process(self, tmp_path):
        """process("train", "seed=1", ...) starts scripts/train.py in tmp_path."""
        processes = []

        def start(name, *arguments):
            script = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(script, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True))
            return processes[-1]

        yield start
        for started in processes:
            started.kill()
            started.communicate()

    @pytest.mark.slow
    def test_scripts_run(self, process, tmp_path):
        def run(name, *arguments):
            started = process(name, *arguments)
            output, errors = started.communicate(timeout=300)
            errors = [line for line in errors.splitlines() if not line.startswith("update ")]  # how far the run is
            assert started.returncode == 0 and not errors, output
            return output

        folder = run_folder(run("train", *TINY, "train.steps=2"))
        assert (tmp_path / run("sample", f"run={folder}", "device=cpu").strip()).exists()
        assert (tmp_path / run("lipschitz", f"run={folder}", *SIZES).strip() / "lipschitz.json").exists()
        folder = run("reproduce", "figure=gradient_norms", *FIGURE).splitlines()[-1]
        assert (tmp_path / folder / "records.jsonl").exists()

    @pytest.mark.slow
    def test_cells_are_jobs_of_joblib_and_a_failed_one_does_not_end_the_others(self, process, tmp_path):
        parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
        jobs = process("reproduce", "-m", "figure=gradient_norms", *FIGURE, "cell=9,0,1,2,3", *parallel)
        _, errors = jobs.communicate(timeout=600)
        assert jobs.returncode == 1 and "error: cell = 9: must be the number" in errors and "Traceback" not in errors
        parts = [tmp_path / "results" / "gradient_norms" / "cells" / str(cell) for cell in range(4)]
        (command,) = {record["command"] for part in parts for record in read_lines(part / "records.jsonl")}
        assert command.startswith("reproduce.py -m figure=gradient_norms ") and command.endswith(parallel[1])
        output, _ = process("reproduce", "figure=gradient_norms", *FIGURE).communicate(timeout=300)
        assert output.startswith("all 4 runs are in ") and (parts[0].parents[1] / "gradient_norms.png").exists()

    def test_error_of_a_script_is_one_message_on_stderr(self, process):
        failed = process("sample", "run=nowhere")
        output, errors = failed.communicate(timeout=300)
        assert failed.returncode == 1 and output == ""
        assert errors == "error: nowhere is not a run folder: it has no config.yaml\n"

    def test_killed_run_continues_from_its_checkpoint(self, process, command, tmp_path, quick_pictures):
        arguments = (*TINY, "train.checkpoint_every=5", "run_dir=killed")
        killed = process("train", *arguments, "train.steps=1000000")
        checkpoints = tmp_path / "killed" / "checkpoints"
        deadline = time.monotonic() + 120
        while not list(checkpoints.glob("step_*5.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        killed.kill()
        killed.wait()
        reached = int(max(checkpoints.glob("*.pt")).stem.split("_")[1])
        assert reached >= 5
        shutil.move(tmp_path / "killed", command.folder / "killed")
        output = command("train", *arguments, f"train.steps={reached + 1}")
        assert f"finished: {reached + 1} generator updates" in output

    def test_second_process_is_kept_out_and_the_first_can_be_interrupted(self, process, command, tmp_path):
        folder = tmp_path / "custom"
        first = process("train", *TINY, "train.steps=1000000", f"run_dir={folder}")
        assert first.stdout.readline() == f"run folder: {folder}\n"
        assert "in use by another process" in command("train", *TINY, f"run_dir={folder}", status=1)
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate(timeout=120)
        assert re.search(r"stopped at step \d+ of 1000000; the same command continues from there", output)
        assert first.returncode == 130


class TestFiles:
    """Errors of files are one message with the name of the file, and what was saved stays."""

    @pytest.mark.parametrize("name", ["checkpoints", "samples", "metrics.jsonl", "provenance.jsonl", "curves.png"])
    def test_something_in_the_way_is_named(self, command, quick_pictures, name):
        command("train", *TINY, "train.steps=1", "run_dir=run")
        path = command.folder / "run" / name
        if path.is_dir():
            kept = [p.read_bytes() for p in sorted(path.glob("*.pt"))]
            path.rename(path.with_name("away"))
            path.write_text("")
        else:
            path.unlink()
            path.mkdir()
        output = command("train", *TINY, "train.steps=2", "run_dir=run", status=1)
        named = "no checkpoint to continue from" if name == "checkpoints" else f"run/{name}"
        assert "Traceback" not in output and named in output and "error: " in output
        if name == "checkpoints":
            assert [p.read_bytes() for p in sorted((command.folder / "run" / "away").glob("*.pt"))] == kept

    def test_folder_that_is_removed_under_the_run_is_named(self, command, quick_pictures, monkeypatch):
        def remove(step, *arguments, **options):
            if step == 1:
                shutil.rmtree(command.folder / "run")
            return update(step, *arguments, **options)

        monkeypatch.setattr("wgangp.train.update", remove)
        monkeypatch.setattr("wgangp.logs._tensorboard", lambda folder, start: None)  # its thread would fail, too
        output = command("train", *TINY, "train.steps=3", "train.log_every=1", "run_dir=run", status=1)
        assert "Traceback" not in output and "run/" in output and "A folder or file was removed" in output
        assert not (command.folder / "run").exists()  # a folder with a checkpoint alone would be no run folder

    def test_full_disk_is_named_and_can_be_freed(self, command, quick_pictures, monkeypatch):
        command("train", *TINY, "train.steps=1", "run_dir=run")
        sync = os.fsync

        def fail(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
        output = command("train", *TINY, "train.steps=2", "run_dir=run", status=1)
        assert "No space left on device. Free some space" in output and "Traceback" not in output
        assert re.search(r"error: run/\S+: No space", output)
        monkeypatch.setattr(os, "fsync", sync)
        assert "finished: 2" in command("train", *TINY, "train.steps=2", "run_dir=run")
