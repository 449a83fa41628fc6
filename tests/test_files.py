import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY

from wgangp.files import complete, explain_error, name_file, write_file

RUN = (*TINY, "train.steps=4", "train.checkpoint_every=1", "run_dir=run")


def test_error_of_writing_gets_the_name_of_the_file():
    with pytest.raises(OSError, match="No space") as caught, name_file(Path("a/b")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == "a/b"
    message = explain_error(caught.value)
    assert message.startswith("a/b: No space left on device. Free some space, and run the same command again")


def test_error_that_has_a_name_and_other_errors_stay_as_they_are():
    with pytest.raises(FileNotFoundError) as caught, name_file(Path("other")):
        Path("missing").read_bytes()
    assert caught.value.filename == "missing"
    with pytest.raises(ValueError, match="my own error"), name_file(Path("other")):
        raise ValueError("my own error")
    assert explain_error(OSError("no number")) == "no number"


def test_error_of_a_disk_that_is_read_only_names_the_file_that_was_to_be_written(tmp_path, monkeypatch):
    """Such a disk refuses to remove a file, too, also one that does not exist."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for owner, name in ((Path, "open"), (Path, "unlink"), (os, "mkdir")):
        monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_file(tmp_path / "a", b"")
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="Read-only") as caught, complete(tmp_path / "b"):
        pass
    assert caught.value.filename == str(tmp_path / "b")


def test_file_or_folder_has_its_name_when_it_is_complete(tmp_path):
    with complete(tmp_path / "new" / "a") as path:
        path.mkdir()
        (path / "x").write_text("x")
        assert not (tmp_path / "new" / "a").exists()
    with pytest.raises(ValueError, match="halfway"), complete(tmp_path / "new" / "b") as path:
        path.write_text("x")
        raise ValueError("halfway")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"new", "new/a", "new/a/x"}


def train(folder, limit=None):
    """Run scripts/train.py in a process of its own, whose files have at most `limit` bytes."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))" if limit else ""
    code += "\nimport sys; from wgangp.cli import main; main('train')"
    command = [sys.executable, "-c", code, *RUN]
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | path, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 3_000, 9_000])  # provenance, log; checkpoint; picture
def test_file_size_limit_is_one_message_and_the_run_goes_on_without_it(tmp_path, limit):
    (tmp_path / "user").mkdir()
    stopped = train(tmp_path / "user", limit)
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    assert "File too large. Raise the limit of the size of a file (ulimit -f)" in stopped.stderr
    assert "error: run/" in stopped.stderr  # the name of the file
    assert train(tmp_path / "user").returncode == 0
    (tmp_path / "whole").mkdir()
    assert train(tmp_path / "whole").returncode == 0
    names = ("metrics.jsonl", "checkpoints/step_00000004.pt", "samples/00000004.png", "curves.png")
    for name in names:
        assert (tmp_path / "user" / "run" / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes(), name
    assert not list((tmp_path / "user").rglob("*.tmp"))
