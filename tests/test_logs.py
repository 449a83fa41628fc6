import builtins
import json
import os
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

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
    assert elapsed[0] == 5.0 and 9.0 <= elapsed[1] < 12.0  # the first process reported step 10, and saved it


def test_incomplete_last_line_is_ignored(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1')
    assert logs.read_lines(tmp_path / "metrics.jsonl") == [{"step": 0}]
    assert logs.read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [b'{"step": 1', b"5", b"[]", b"\xff", b"", b" ", b"\0" * 9, b"[" * 99_999, b'{"step": ' + b"9" * 9_999 + b"}"],
)
def test_damaged_line_is_an_error_that_names_file_and_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match=rf"^{path}, line 2 is damaged \(.+\): restore the file from a copy$"):
        logs.read_lines(path)


def test_provenance_has_command_versions_device_and_commit(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/scripts/train.py", "seed=3"])
    record = logs.collect_provenance(torch.device("cpu"))
    assert record["command"] == "train.py seed=3"
    assert record["torch"] == torch.__version__ and record["torchvision"].startswith("0.")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=logs.Path(__file__).parent)
    assert record["commit"] == (head.stdout.strip() or None)
    assert record["version"] == wgangp.__version__
    assert record["libraries"]["numpy"] == np.__version__
    json.dumps(record)


def test_libraries_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(logs, "LIBRARIES", ("numpy", "no-such-library"))
    assert logs.collect_provenance(torch.device("cpu"))["libraries"] == {"numpy": np.__version__}


def test_provenance_without_git_has_no_commit(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    record = logs.collect_provenance(torch.device("cpu"))
    assert record["commit"] is None and record["dirty"] is None and record["version"] == wgangp.__version__


def test_provenance_ignores_a_checkout_that_does_not_track_the_package(monkeypatch):
    """A virtual environment inside of another project: git finds the commit of that project."""

    def run_git(command, **options):
        if command[1] == "ls-files":
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, stdout="0123456\n")

    monkeypatch.setattr(subprocess, "run", run_git)
    record = logs.collect_provenance(torch.device("cpu"))
    assert record["commit"] is None and record["dirty"] is None


@pytest.mark.parametrize("threads, unit", [(1, "1 thread"), (2, "2 threads"), (11, "11 threads")])
def test_one_thread_is_singular(monkeypatch, threads, unit):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    record = logs.collect_provenance(torch.device("cpu"))
    assert record["device"].endswith(f" CPU, {unit}")
    old = {"device": f"x86_64 CPU, {threads} threads", "torch": "2.11"}  # as early versions wrote it
    assert logs.describe_hardware(old) == f"x86_64 CPU, {unit}, torch 2.11"


NAMES = {
    "slope_real_mean": "slope/real_mean",
    "slope_interpolates_above_1": "slope/interpolates_above_1",
    "heldout_critic_loss": "heldout/critic_loss",
    "wasserstein": "loss/wasserstein",
    "generator_loss": "loss/generator_loss",
    "critic_param_grad_norm": "param_grad_norm/critic",
    "largest_quotient": "lipschitz/largest_quotient",
    "expected_slope": "lipschitz/expected_slope",
    "modes": "coverage/modes",
    "js1": "ngrams/js1",
    "reference_js4": "ngrams/reference_js4",
    "elapsed_s": "time/elapsed_s",
}


def test_names_in_tensorboard_have_a_group_which_the_docs_list():
    assert {name: logs.tensorboard_name(name) for name in NAMES} == NAMES
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name in NAMES.values():
        assert f"| `{name.split('/')[0]}/" in page, name


def test_tensorboard_has_groups_pictures_the_config_and_the_time(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra is not installed: pip install -e '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "config.yaml").write_text("seed: 3\ntrain:\n  steps: 9\n")
    (tmp_path / "samples").mkdir()
    Image.new("L", (5, 4), 200).save(tmp_path / "samples" / "00000002.png")
    log = logs.Log(tmp_path, 0)
    for step in (0, 2):
        log.write(step, {"slope_real_mean": 1.5 + step})
        log.write_picture(step)  # there is none at step 0
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(board.Tags()["scalars"]) == ["slope/real_mean", "time/elapsed_s"]
    assert [(e.step, e.value) for e in board.Scalars("slope/real_mean")] == [(0, 1.5), (2, 3.5)]
    assert abs(board.Scalars("time/elapsed_s")[0].wall_time - time.time()) < 100
    (picture,) = board.Images("samples")
    assert (picture.step, picture.width, picture.height) == (2, 5, 4)
    (text,) = board.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    seed: 3\n    train:\n      steps: 9\n"
    assert logs.read_lines(tmp_path / "metrics.jsonl")[0] == {"step": 0, "slope_real_mean": 1.5}  # flat, as before


def test_tensorboard_shows_samples_of_text_line_by_line(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra is not installed: pip install -e '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "00000010.txt").write_text("# one\ntwo\u2028\u00e9\n", encoding="utf-8")
    log = logs.Log(tmp_path, 0)
    log.write_picture(10)
    log.write_picture(20)  # of which there is no file
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = board.Tensors("samples/text_summary")
    expected = "    # one\n    two\u2028\u00e9\n"  # a code block of Markdown
    assert event.step == 10 and event.tensor_proto.string_val[0].decode() == expected


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


def test_scores_have_a_group_of_their_own_in_tensorboard():
    assert logs.tensorboard_name("classifier_fid") == "score/classifier_fid"
    assert logs.tensorboard_name("real_points_w1") == "score/real_points_w1"
    assert logs.tensorboard_name("modes") == "coverage/modes"
    assert logs.tensorboard_name("critic_loss") == "loss/critic_loss"


def test_line_that_was_cut_off_is_replaced_by_the_next_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    for record in ({"a": 1}, {"b": 2}):
        logs.append_line(path, record)
    with path.open("a") as file:
        file.write('{"c": 3')
    logs.append_line(path, {"d": 4})
    assert logs.read_lines(path) == [{"a": 1}, {"b": 2}, {"d": 4}]
    path.write_text('{"only": ')
    logs.append_line(path, {"d": 4})
    assert path.read_text() == '{"d": 4}\n'


def test_errors_of_other_threads_are_handled_as_before(tmp_path, monkeypatch):
    handled = []
    monkeypatch.setattr(threading, "excepthook", handled.append)
    for _ in range(2):
        logs.Log(tmp_path, 0).close()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert [arguments.exc_type for arguments in handled] == [ZeroDivisionError]


def test_error_of_the_thread_of_tensorboard_is_one_line(capsys):
    class _AsyncWriterThread(threading.Thread):
        """It has the name of TensorBoard's."""

    handled, error = [], OSError("No space left on device")
    for thread in (_AsyncWriterThread(), threading.Thread()):
        logs._report_lost_events(handled.append, threading.ExceptHookArgs((OSError, error, None, thread)))
    assert capsys.readouterr().err == "warning: TensorBoard's events are not written (No space left on device)\n"
    assert len(handled) == 1


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"loss": 1.0}', "it has no step"),
        ('{"step": "1"}', "step is not a number"),
        ('{"step": 1.5}', r"step is 1\.5, and not an integer >= 0"),
        ('{"step": -1}', "step is -1, and not an integer >= 0"),
        ('{"step": true}', "step is not a number"),
        ('{"step": 1, "loss": "low"}', "loss is not a number"),
        ('{"step": 1, "loss": [1.0]}', "loss is not a number"),
        ('{"step": 1, "elapsed_s": null}', "elapsed_s is not a number"),
    ],
)
def test_line_with_a_wrong_value_is_an_error_that_names_file_and_line(tmp_path, line, reason):
    reads = {
        "metrics": lambda: logs.read_metrics(tmp_path / "metrics.jsonl"),
        "timing": lambda: logs.read_timing(tmp_path),
    }
    for name, read in reads.items():
        (tmp_path / f"{name}.jsonl").write_text(f'{{"step": 0, "elapsed_s": 1.0}}\n{line}\n')
        reasons = reason if name == "metrics" else f"{reason}|it has no elapsed_s"
        with pytest.raises(ValueError, match=rf"{name}\.jsonl, line 2 is damaged \(({reasons})\): restore the file"):
            read()


def test_log_that_is_no_file_is_an_error_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not a file"):
        logs.read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        logs.append_line(tmp_path / "metrics.jsonl", {"step": 0})


def test_link_is_not_followed_when_a_line_is_appended(tmp_path):
    (tmp_path / "other").write_text("{}\n")
    (tmp_path / "metrics.jsonl").symlink_to("other")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        logs.append_line(tmp_path / "metrics.jsonl", {"step": 0})
    assert (tmp_path / "other").read_text() == "{}\n"
