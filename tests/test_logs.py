import builtins
import json
import subprocess

import torch

from wgangp import logs


def test_lines_from_the_start_on_are_dropped_and_the_time_goes_on(tmp_path):
    log = logs.Log(tmp_path, 0)
    for step in (0, 10, 20):
        log.write(step, {"loss": step / 3}, log.elapsed())
    log.close()
    (tmp_path / "timing.jsonl").write_text('{"step": 0, "elapsed_s": 5.0}\n{"step": 10, "elapsed_s": 9.0}\n')
    log = logs.Log(tmp_path, 10)
    log.write(10, {"loss": 7.0}, log.elapsed())
    log.close()
    assert logs.read_lines(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 0.0}, {"step": 10, "loss": 7.0}]
    elapsed = [record["elapsed_s"] for record in logs.read_lines(tmp_path / "timing.jsonl")]
    assert elapsed[0] == 5.0 and 5.0 <= elapsed[1] < 9.0


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1')
    assert logs.read_lines(tmp_path / "metrics.jsonl") == [{"step": 0}]
    assert logs.read_lines(tmp_path / "none.jsonl") == []


def test_provenance_names_where_numbers_come_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/scripts/train.py", "seed=3"])
    record = logs.provenance(torch.device("cpu"))
    assert record["command"] == "train.py seed=3"
    assert record["torch"] == torch.__version__ and "threads" in record["device"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=logs.Path(__file__).parent)
    assert record["commit"] == (head.stdout.strip() or None)
    json.dumps(record)


def test_provenance_without_git_says_nothing_it_does_not_know(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    record = logs.provenance(torch.device("cpu"))
    assert record["commit"] is None and record["dirty"] is None


def test_tensorboard_is_written_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class Board:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    real_import = builtins.__import__

    def with_board(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            return type("module", (), {"SummaryWriter": Board})
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", with_board)
    log = logs.Log(tmp_path, 4)
    log.write(4, {"loss": 1.0}, log.elapsed())
    log.close()
    assert written == [(str(tmp_path / "tensorboard"), 4), ("loss", 1.0, 4), "closed"]


def test_without_tensorboard_there_is_none(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    log = logs.Log(tmp_path, 0)
    log.write(0, {"loss": 1.0}, log.elapsed())
    log.close()
    assert not (tmp_path / "tensorboard").exists()
