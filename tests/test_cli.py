"""The commands as a user types them: in another folder, and with wrong input, too.

Most tests run a command in this process, because a new process needs seconds for its imports.
"""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, make_old
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from wgangp import cli, load_run, runs
from wgangp.config import CONF
from wgangp.logs import read_lines
from wgangp.train import update

FIGURE = ("figure.width=4", "figure.steps=1", "figure.batch_size=8", "seeds=[0]", "device=cpu")
SIZES = ("n=60", "starts=9", "ascent=3", "device=cpu")


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """command("train", "seed=1", ...) runs scripts/train.py in the user's folder, and returns all that it prints."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    # Hydra takes the measurement of coverage for a debugger, and then shows tracebacks in place of messages.
    monkeypatch.setattr("hydra._internal.utils.is_under_debugger", lambda: False)

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
    def test_creates_a_run_finds_it_and_continues_it(self, command):
        output = command("train", *TINY, "train.steps=2")
        (folder,) = (command.folder / "runs").iterdir()
        assert f"runs/{folder.name}" in output and "finished: 2 generator updates" in output
        assert "00000002.png" in output and (folder / "samples" / "00000002.png").exists()
        assert f"{folder.relative_to(command.folder)}/curves.png" in output and (folder / "curves.png").exists()
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

    def test_sweep_has_a_folder_per_run(self, command, quick_pictures):
        command("train", "-m", *TINY, "train.steps=1", "seed=10,11", "penalty.sides=one")
        assert len([p for p in (command.folder / "runs").iterdir() if "one+seed-1" in p.name]) == 2
        assert {p.name for p in command.folder.iterdir()} == {"runs"}

    def test_cfg_job_prints_the_config_and_runs_nothing(self, command):
        assert "critic_steps: 5" in command("train", "experiment=mnist", "--cfg", "job")
        assert list(command.folder.iterdir()) == []

    def test_folder_of_another_config_is_refused(self, command, quick_pictures):
        command("train", *TINY, "train.steps=1", "run_dir=custom")
        message = command("train", *TINY, "train.steps=1", "run_dir=custom", "seed=5", status=1)
        assert "belongs to another config" in message and "seed: 0 in the folder, 5 now" in message

    def test_folder_in_use_is_refused(self, command, configure):
        with runs.claim_folder(command.folder / "custom", configure(*TINY)):
            message = command("train", *TINY, "run_dir=custom", status=1)
        assert "custom is in use by another process" in message and "Traceback" not in message

    def test_interrupted_run_prints_how_to_continue(self, command, quick_pictures, monkeypatch):
        def interrupt(step, *arguments, **options):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            return update(step, *arguments, **options)

        monkeypatch.setattr("wgangp.train.update", interrupt)
        output = command("train", *TINY, "train.steps=9", "run_dir=custom", status=130)
        assert "stopped at step 3 of 9; the same command continues from there" in output
        monkeypatch.setattr("wgangp.train.update", update)
        assert "finished: 9 generator updates" in command("train", *TINY, "train.steps=9", "run_dir=custom")
        assert [record["step"] for record in read_lines(command.folder / "custom" / "metrics.jsonl")] == [0, 9]

    def test_folder_of_an_earlier_version_is_continued(self, command, quick_pictures):
        arguments = (*TINY, "optim=normalized", "run_dir=old")
        command("train", *arguments, "train.steps=2")
        path = command.folder / "old" / "config.yaml"
        before = path.read_text()
        make_old(path)
        assert "wgangp.gradients.NormalizedGradientDescent" in path.read_text() and "compile" not in path.read_text()
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
            (["train.stps=3"], "train.stps is unknown. Did you mean train.steps?"),
            (["penalty.wieght=3"], "penalty.wieght is unknown. Did you mean penalty.weight?"),
            (["+train.foo=abc"], "unknown key or a wrong value: train.foo"),
            (["+penalty.wieght=3"], "wieght is unknown; the keys of wgangp.penalty.GradientPenalty are weight, target"),
            (["penalty.weight=-1"], "penalty: weight = -1: must be >= 0"),
            (["penalty.sides=three"], "must be one of two, one"),
            (["train.steps=abc"], "could not be converted to Integer"),
            (["penalty=nothing"], "two_sided"),  # Hydra lists the choices
            (["clip.weights=-0.01"], "clip.weights = -0.01: must be > 0"),
            (["optim.lr=-1"], "optim: Invalid learning rate"),
            (["experiment=mnist", "data.root=nowhere"], "data.root=FOLDER, where FOLDER/MNIST/raw has"),
            (["networks=mnist"], "choose data= and networks= that belong together"),
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
    def test_real_digits_are_learned(self, command):
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
            ("+foo=1", "error: the config has an unknown key or a wrong value: foo"),
            ("+sed=1", "Did you mean seed?"),
            ("sed=1", "sed is unknown. Did you mean seed?"),
            ("device=toaster", "error: device = toaster: not available on this machine"),
            ("device=toaster", "device=cpu"),
            ("run=nowhere", "error: nowhere is not a run folder"),
            ("run=null", "field 'run' is not Optional"),
            ("run=???", "error: run: no value is given. Add run=VALUE"),
            ("n=abc", "could not be converted to Integer"),
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
        folder = command.folder / command("lipschitz", f"run={run}", *SIZES).strip()
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
            ("+foo=1", "error: the config has an unknown key or a wrong value: foo"),
            ("strts=1", "strts is unknown. Did you mean starts?"),
            ("run=nowhere", "error: nowhere is not a run folder"),
            ("run=null", "field 'run' is not Optional"),
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
            ("train.stps=3", "train.stps is unknown. Did you mean train.steps?"),
            ("trian.steps=3", "trian.steps is unknown. Did you mean train.steps?"),
            ("sed=3", "sed is unknown. Did you mean seed?"),
            ("~clip.wieghts=3", "clip.wieghts is unknown. Did you mean clip.weights?"),
            ("data.rooot=here", "data.rooot is unknown. Did you mean data.root?"),
            ("+train.stps=3", "Did you mean train.steps?"),
            ("+penalty.wieght=3", "Did you mean weight?"),
        ],
    )
    def test_nearest_key_is_suggested(self, command, argument, hint):
        choice = ["data=mnist"] if argument.startswith("data") else []  # keys of the chosen data
        assert command("train", *choice, argument, status=1).rstrip().endswith(hint)

    def test_suggestions_of_a_sweep(self, command):
        assert "train.stps is unknown. Did you mean train.steps?" in command("train", "-m", "train.stps=1,2", status=1)

    @pytest.mark.parametrize("argument", ["+train.foo=1", "qqq=1", "optim.learning_rate=1", "train.steps=abc"])
    def test_no_key_is_suggested_if_none_is_near(self, command, argument):
        assert "Did you mean" not in command("train", argument, "hydra.run.dir=.", status=1)

    def test_hints_are_on_stderr(self, command, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["train.py", "train.stps=3"])
        assert run_main("train") == 1
        output, errors = capsys.readouterr()
        assert output == "" and errors.endswith("train.stps is unknown. Did you mean train.steps?\n")


class TestFullError:
    CASES = (
        ("train", ["clip.weights=-1"], "clip.weights"),
        ("sample", ["run=nowhere"], "not a run folder"),
        ("lipschitz", ["run=nowhere"], "not a run folder"),
        ("reproduce", ["figure=penalties", "seeds=[]"], "seeds"),
    )

    def test_every_command_has_a_case(self):
        assert {name for name, _, _ in self.CASES} == set(cli.COMMANDS)

    @pytest.mark.parametrize("name, arguments, message", CASES)
    def test_variable_shows_the_traceback(self, command, monkeypatch, name, arguments, message):
        output = command(name, *arguments, "device=cpu", status=1)
        assert output.startswith("error: ") and message in output and "Traceback" not in output
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "device=cpu"])
        with pytest.raises(ValueError, match=message):  # the interpreter prints its traceback
            cli.main(name)

    def test_variable_shows_the_traceback_of_hydra(self, command, monkeypatch):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", ["train.py", "train.stps=3"])
        with pytest.raises(Exception, match=r"Could not override 'train\.stps'"):
            cli.main("train")


class TestMain:
    USAGE = "usage: wgangp COMMAND [key=value ...], where COMMAND is one of train, sample, lipschitz, reproduce"

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
            assert started.returncode == 0 and errors == "", output + errors
            return output

        folder = run_folder(run("train", *TINY, "train.steps=2"))
        assert (tmp_path / run("sample", f"run={folder}", "device=cpu").strip()).exists()
        assert (tmp_path / run("lipschitz", f"run={folder}", *SIZES).strip() / "lipschitz.json").exists()
        folder = run("reproduce", "figure=gradient_norms", *FIGURE).splitlines()[-1]
        assert (tmp_path / folder / "records.jsonl").exists()

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
