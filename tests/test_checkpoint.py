import errno
import os
import subprocess
import zipfile

import pytest
import torch

from wgangp import checkpoint

STATE = {"step": 3, "weights": {"w": torch.arange(1000.0)}, "pair": (0.0, 0.9), "list": [1, None, "a"]}


def save_steps(folder, *steps):
    """Save one checkpoint per step; returns their paths."""
    return [checkpoint.save(folder, step, {**STATE, "step": step}) for step in steps]


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_saved_state_is_loaded(tmp_path):
    save_steps(tmp_path / "new", 3)
    state = checkpoint.load_latest(tmp_path / "new")
    assert torch.equal(state["weights"]["w"], STATE["weights"]["w"])
    assert {k: v for k, v in state.items() if k != "weights"} == {k: v for k, v in STATE.items() if k != "weights"}


def test_folder_without_checkpoints_returns_none(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nowhere") is None


def test_two_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path):
    save_steps(tmp_path, 9, 10, 100)
    assert checkpoint.load_latest(tmp_path)["step"] == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000010.pt",
        "step_00000010.pt.sha256",
        "step_00000100.pt",
        "step_00000100.pt.sha256",
    ]


def test_sha256sum_accepts_a_checkpoint(tmp_path):
    (path,) = save_steps(tmp_path, 5)
    subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"0123456789"),
        lambda path: path.with_suffix(".pt.sha256").unlink(),
        lambda path: path.with_suffix(".pt.sha256").write_text(""),
        lambda path: path.with_suffix(".pt.sha256").write_bytes(b"\xff\xfe"),
    ],
)
def test_damaged_checkpoint_is_reported_and_the_previous_one_is_loaded(tmp_path, capsys, damage):
    _, newest = save_steps(tmp_path, 1, 2)
    damage(newest)
    assert checkpoint.load_latest(tmp_path)["step"] == 1
    assert "step_00000002.pt is damaged" in capsys.readouterr().err
    assert newest.exists()  # it is not deleted


def test_damaged_checkpoint_does_not_displace_an_undamaged_one(tmp_path, capsys):
    _, newest = save_steps(tmp_path, 1, 5)
    flip_a_bit(newest)
    save_steps(tmp_path, 2, 3)
    assert checkpoint.load_latest(tmp_path)["step"] == 3
    save_steps(tmp_path, 6)
    assert checkpoint.load_latest(tmp_path)["step"] == 6
    flip_a_bit(tmp_path / "step_00000006.pt")
    assert checkpoint.load_latest(tmp_path)["step"] == 3  # the undamaged checkpoint was not deleted
    save_steps(tmp_path, 5, 6)  # training passes these steps again
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_load_raises_if_all_checkpoints_are_damaged(tmp_path, capsys):
    for path in save_steps(tmp_path, 1, 2):
        flip_a_bit(path)
    with pytest.raises(
        ValueError, match=r"step_00000002.pt is damaged .*sha256.* The older ones are not good, either. Restore a copy"
    ):
        checkpoint.load_latest(tmp_path)


def test_full_disk_does_not_change_existing_files(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    before = sorted(tmp_path.iterdir())

    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)  # the bytes are in the file, and do not reach the disk
        with pytest.raises(OSError, match=r"No space .*step_00000002\.pt"):
            save_steps(tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == before
    assert checkpoint.load_latest(tmp_path)["step"] == 1


@pytest.mark.parametrize("bad", [torch.tensor([1.0, float("nan")]), torch.tensor(float("inf"))])
def test_state_that_is_not_finite_is_not_saved(tmp_path, bad):
    with pytest.raises(ValueError, match=r"step 7: state\['critic'\]\['w'\] has values that are not finite"):
        checkpoint.save(tmp_path, 7, {"critic": {"w": bad}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_buffer_may_have_inf_and_no_nan(tmp_path, number):
    state, buffers = {"critic": {"mask": torch.tensor([0.0, float(number)])}}, ["state['critic']['mask']"]
    if number == "nan":
        with pytest.raises(ValueError, match=r"state\['critic'\]\['mask'\] has NaN in it"):
            checkpoint.save(tmp_path, 7, state, buffers)
    else:
        checkpoint.save(tmp_path, 7, state, buffers)
        assert torch.equal(checkpoint.load_latest(tmp_path)["critic"]["mask"], state["critic"]["mask"])


def test_checkpoint_with_other_objects_than_plain_data_raises(tmp_path):
    path = tmp_path / "step_00000001.pt"
    torch.save({"step": 1, "evil": torch.nn.Linear(1, 1)}, path)
    checkpoint.write_atomic(path.with_suffix(".pt.sha256"), checkpoint.digest_file(path) + "  x\n")
    with pytest.raises(ValueError, match=r"step_00000001\.pt is damaged \(UnpicklingError: Weights only load failed"):
        checkpoint.load_latest(tmp_path)


def test_text_file_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    checkpoint.write_atomic(path, "old")

    def crash(handle):
        raise OSError("crash")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="crash"):
        checkpoint.write_atomic(path, "new")
    assert path.read_text() == "old"


def list_steps(folder):
    return sorted(int(path.stem.removeprefix("step_")) for path in folder.glob("*.pt"))


@pytest.mark.parametrize("damage", ["flipped", "foreign"])
def test_rotation_counts_only_good_checkpoints_and_deletes_no_others(tmp_path, capsys, damage):
    save_steps(tmp_path, 2, 4)
    for step in (3, 9, 10):  # between ours, and newer than ours
        if damage == "flipped":
            flip_a_bit(checkpoint.save(tmp_path / "other", step, STATE).rename(tmp_path / f"step_{step:08}.pt"))
        else:
            state = {**STATE, "step": step, "weights": {"w": torch.zeros(3)}}
            path = checkpoint.save(tmp_path / "other", step, state)
            for name in (path.name, path.name + ".sha256"):
                (path.parent / name).rename(tmp_path / name)
    save_steps(tmp_path, 5)
    assert list_steps(tmp_path) == [3, 4, 5, 9, 10]
    save_steps(tmp_path, 9, 11, 12)  # training passes one of these steps
    assert list_steps(tmp_path) == [3, 10, 11, 12]
    for step in (11, 12):
        flip_a_bit(tmp_path / f"step_{step:08}.pt")
    save_steps(tmp_path, 13)
    assert list_steps(tmp_path) == [3, 10, 11, 12, 13]


def test_last_verified_checkpoint_stays_if_the_new_one_is_not_written_well(tmp_path, monkeypatch):
    save_steps(tmp_path, 1, 2)
    monkeypatch.setattr(checkpoint, "write_file", lambda path, content: path.write_bytes(bytes(content)[:-9]))
    save_steps(tmp_path, 3, 4)
    monkeypatch.undo()
    assert list_steps(tmp_path) == [1, 2, 3, 4] and checkpoint.load_latest(tmp_path)["step"] == 2


def test_checkpoints_that_a_killed_process_did_not_delete_are_deleted(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "remove_older", lambda *_: None)  # killed before it
        save_steps(tmp_path, 1, 2, 3, 4)
    (tmp_path / "step_00000001.pt").unlink()  # killed between a checkpoint and its sha256
    (tmp_path / "step_00000009.pt.sha256").write_text("of a checkpoint that is written next")
    checkpoint.remove_older(tmp_path, 4, {**STATE, "step": 4})
    names = [f"step_{step:08d}.pt{suffix}" for step in (3, 4) for suffix in ("", ".sha256")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "step_00000009.pt.sha256"]
    (tmp_path / "step_00000002.pt.sha256").write_text("of a checkpoint that was deleted")
    checkpoint.remove_older(tmp_path, 4, {**STATE, "step": 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "step_00000009.pt.sha256"]


def test_best_checkpoint_is_kept(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, {**STATE, "step": step}, best=[2])
    assert list_steps(tmp_path) == [2, 4, 5]


def test_files_with_other_names_are_no_checkpoints(tmp_path):
    save_steps(tmp_path, 7)
    for name in ("step_7.pt", "step_0000000x.pt", "step_-0000007.pt", "step_00000009 (copy).pt", "step_000000009.pt"):
        (tmp_path / name).write_text("other")
    os.mkfifo(tmp_path / "step_00000008.pt")
    (tmp_path / "step_00000010.pt").mkdir()
    assert checkpoint.load_latest(tmp_path)["step"] == 7
    with pytest.raises(ValueError, match=r"has checkpoints of the steps \[7\]"):
        checkpoint.load_step(tmp_path, 8)
    before = sorted(tmp_path.iterdir())
    save_steps(tmp_path, 7)
    assert sorted(tmp_path.iterdir()) == before


def test_compressed_checkpoint_is_refused_before_it_is_read(tmp_path, capsys):
    _, newest = save_steps(tmp_path, 1, 2)
    with zipfile.ZipFile(newest) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(newest, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content + bytes(10**6))
    checkpoint.write_atomic(newest.with_suffix(".pt.sha256"), checkpoint.digest_file(newest))
    assert checkpoint.load_latest(tmp_path)["step"] == 1
    assert "step_00000002.pt is damaged (torch.save does not compress" in capsys.readouterr().err
