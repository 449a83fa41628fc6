import builtins
import json
import subprocess

import torch

import wgangp
from wgangp import logs


def test_resumed_log_drops_lines_from_the_start_step_and_continues_the_time(tmp_path):
    log = logs.Log(tmp_path, 0)
    for step in (0, 10, 20):
        log.write(step, {"loss": step / 3})
    log.close()
    (tmp_path / "timing.jsonl").write_text('{"step": 0, "elapsed_s": 5.0}\n{"step": 10, "elapsed_s": 9.0}\n')
    log = logs.Log(tmp_path, 10)
    log.write(10, {"loss": 7.0})
    log.close()
    assert logs.read_lines(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 0.0}, {"step": 10, "loss": 7.0}]
    elapsed = [record["elapsed_s"] for record in logs.read_lines(tmp_path / "timing.jsonl")]
    assert elapsed[0] == 5.0 and 5.0 <= elapsed[1] < 9.0


OLD_RECORD = {"step": 0, "critic_gradient_norm": 2.0, "generator_gradient_norm": 3.0, "penalty": 4.0}
NEW_RECORD = {"step": 0, "critic_param_grad_norm": 2.0, "generator_param_grad_norm": 3.0, "penalty": 4.0}


def test_metrics_of_an_old_log_are_read_with_their_new_names(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(OLD_RECORD) + "\n" + json.dumps({**NEW_RECORD, "step": 10}) + "\n")
    assert logs.read_metrics(path) == [NEW_RECORD, {**NEW_RECORD, "step": 10}]
    assert logs.read_lines(path)[0] == OLD_RECORD  # reading changes no file


def test_resume_rewrites_the_metrics_of_an_old_log_with_their_new_names(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(OLD_RECORD) + "\n" + json.dumps({**OLD_RECORD, "step": 10}) + "\n")
    (tmp_path / "timing.jsonl").write_text('{"step": 0, "elapsed_s": 5.0}\n')
    log = logs.Log(tmp_path, 10)
    log.close()
    assert logs.read_lines(path) == [NEW_RECORD]
    assert list(logs.read_lines(path)[0]) == list(NEW_RECORD)  # in the same order
    assert logs.read_lines(tmp_path / "timing.jsonl") == [{"step": 0, "elapsed_s": 5.0}]


def test_incomplete_last_line_is_ignored(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1')
    assert logs.read_lines(tmp_path / "metrics.jsonl") == [{"step": 0}]
    assert logs.read_lines(tmp_path / "none.jsonl") == []


def test_provenance_has_command_versions_device_and_commit(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/scripts/train.py", "seed=3"])
    record = logs.provenance(torch.device("cpu"))
    assert record["command"] == "train.py seed=3"
    assert record["torch"] == torch.__version__ and "threads" in record["device"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=logs.Path(__file__).parent)
    assert record["commit"] == (head.stdout.strip() or None)
    assert record["version"] == wgangp.__version__
    json.dumps(record)


def test_provenance_without_git_has_no_commit(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    record = logs.provenance(torch.device("cpu"))
    assert record["commit"] is None and record["dirty"] is None and record["version"] == wgangp.__version__


def test_provenance_ignores_a_checkout_that_does_not_track_the_package(monkeypatch):
    """A virtual environment inside of another project: git finds the commit of that project."""

    def run_git(command, **options):
        if command[1] == "ls-files":
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, stdout="0123456\n")

    monkeypatch.setattr(subprocess, "run", run_git)
    record = logs.provenance(torch.device("cpu"))
    assert record["commit"] is None and record["dirty"] is None


def test_tensorboard_is_written_if_it_is_installed(tmp_path, monkeypatch):
    written = []

    class Board:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    real_import = builtins.__import__

    def import_with_board(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            return type("module", (), {"SummaryWriter": Board})
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_with_board)
    log = logs.Log(tmp_path, 4)
    log.write(4, {"loss": 1.0})
    log.close()
    assert written == [(str(tmp_path / "tensorboard"), 4), ("loss", 1.0, 4), "closed"]


def test_log_works_without_tensorboard(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def import_without_tensorboard(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_tensorboard)
    log = logs.Log(tmp_path, 0)
    log.write(0, {"loss": 1.0})
    log.close()
    assert not (tmp_path / "tensorboard").exists()
