"""Ranks on gloo, as processes of their own: tests/rank.py is what each of them runs, in float64."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from wgangp.checkpoint import load_latest
from wgangp.distributed import World, check_plain, joined, local_device
from wgangp.logs import read_lines
from wgangp.networks.mlp import MLPCritic

CPU = torch.device("cpu")


def start(ranks, folder, steps, *how):
    """The processes of a run, as torchrun would start them, without its agent: nobody else ends them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "rank.py"), str(folder), str(steps), *how]
    rendezvous = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(command, env={**os.environ, **rendezvous, "RANK": str(rank)}, **pipes) for rank in range(ranks)
    ]


def finish(processes):
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), found
    return [out for out, _ in found]


def parameters(folder):
    state = load_latest(folder / "checkpoints", CPU)
    return {f"{who}.{name}": x for who in ("generator", "critic") for name, x in state[who].items()}


def furthest(a, b):
    a, b = parameters(a), parameters(b)
    assert a.keys() == b.keys() and all(x.dtype == torch.float64 for x in a.values())
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """alone("points=real") -> the folder of 20 updates of one process."""
    made = {}

    def of(*how):
        if how not in made:
            made[how] = tmp_path_factory.mktemp("alone")
            finish(start(1, made[how], 20, *how))
        return made[how]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("ranks, how", [(2, ()), (4, ()), (2, ("points=perturbed", "clipped")), (2, ("compile",))])
def test_any_number_of_ranks_trains_the_same_parameters(ranks, how, alone, tmp_path):
    said = finish(start(ranks, tmp_path, 20, *how))
    assert [f"rank {rank} of {ranks} reached 20" in out for rank, out in enumerate(said)] == [True] * ranks
    assert furthest(tmp_path, alone(*(word for word in how if word != "compile"))) < 1e-10
    assert read_lines(tmp_path / "provenance.jsonl")[0]["ranks"] == ranks  # one line: rank 0 alone writes
    theirs, ours = (read_lines(folder / "metrics.jsonl")[-1] for folder in (tmp_path, alone()))
    if not how:
        assert theirs == pytest.approx(ours, rel=1e-6)


@pytest.mark.slow
def test_batch_norm_is_the_exception_and_the_same_when_synchronised(alone, tmp_path):
    finish(start(2, tmp_path / "apart", 20, "norm"))
    finish(start(2, tmp_path / "together", 20, "norm", "sync"))
    assert furthest(tmp_path / "apart", alone("norm")) > 1e-4
    assert furthest(tmp_path / "together", alone("norm")) < 1e-10


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_ranks(alone, tmp_path):
    for ranks, steps in ((2, 6), (1, 12), (4, 20)):
        finish(start(ranks, tmp_path, steps))
    assert furthest(tmp_path, alone()) < 1e-10


def begun(folder, processes):
    """Wait until the run has written its first line."""
    until = time.monotonic() + 120
    while not read_lines(folder / "metrics.jsonl"):
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.1)
    time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize("how, word, within", [(signal.SIGKILL, "patient", 10), (signal.SIGSTOP, "", 25)])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_or_hangs_ends_the_others_with_an_error_in_time(how, word, within, victim, tmp_path):
    processes = start(2, tmp_path, 10**6, "slow", word)
    try:
        begun(tmp_path, processes)
        processes[victim].send_signal(how)
        began = time.monotonic()
        _, said = processes[1 - victim].communicate(timeout=60)
        assert time.monotonic() - began < within  # at once, not after 60 s; or after 6 s
        assert processes[1 - victim].returncode == 1
        assert f"error: rank {1 - victim} lost the others, one of them ended or hangs" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes the pipes, too


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_of_them_at_one_step_and_saves(tmp_path):
    processes = start(2, tmp_path, 10**6, "slow")
    begun(tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes)
    steps = {out.split("reached ")[1].strip() for out in said}
    assert len(steps) == 1 and load_latest(tmp_path / "checkpoints", CPU)["step"] == int(steps.pop()) > 0


@pytest.mark.slow
def test_ranks_that_are_not_one_run_are_refused_on_all_of_them(tmp_path):
    processes = start(2, tmp_path, 20, "differs")
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and "not the same on all 2 ranks: the data. They must see one run folder" in said


def test_what_agrees_is_not_refused_and_what_differs_is_named(monkeypatch):
    facts = {"the data": "a", "the options": "b"}
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x[1].copy_(x[0]))
    World(0, 2).agree(facts)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x[1, 0].copy_(x[0, 0]))
    with pytest.raises(ValueError, match=r"on all 2 ranks: the options\. They"):
        World(0, 2).agree(facts)


@pytest.mark.parametrize("local_rank, order", [("0", ["in", "barrier"]), ("1", ["barrier", "in"])])
def test_the_first_rank_of_a_node_goes_before_its_others(local_rank, order, monkeypatch):
    happened = []
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr("torch.distributed.barrier", lambda: happened.append("barrier"))
    with World(2, 4).first_before_others():
        happened.append("in")
    assert happened == order


def test_what_is_kept_of_a_step_does_not_keep_the_gradients(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x.mul_(2))
    gradients = World(0, 2).reduced(lambda: ({"loss": torch.tensor(3.0)}, [torch.ones(10, 10)]))
    terms, (found,) = gradients()
    assert terms["loss"] == 3 and terms["loss"].untyped_storage().nbytes() == 4 and found.eq(1).all()


@pytest.mark.slow
def test_tasks_of_slurm_become_ranks(tmp_path):
    pytest.importorskip("submitit")
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1"}
    slurm |= {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"run_dir={tmp_path / 'run'}", "device=cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    said = finish(
        [
            subprocess.Popen(
                [*command, "train.steps=2"],
                env={**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                **pipes,
            )
            for rank in range(2)
        ]
    )
    assert [out.count("finished: 2 generator updates") for out in said] == [1, 0]
    assert read_lines(tmp_path / "run" / "provenance.jsonl")[0]["ranks"] == 2


def test_ranks_that_do_not_come_are_said(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"2 ranks did not find each other within 1 s .* torchrun"), joined(CPU, 1):
        pass


@pytest.mark.slow
def test_torchrun_trains_one_run_into_one_folder(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    small = ["train.steps=3", "train.report_size=64", "data=gaussians25", "device=cpu"]
    done = subprocess.run(
        [*command, str(ROOT / "scripts" / "train.py"), f"run_dir={tmp_path / 'run'}", *small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: 3 generator updates") == 1
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    refused = subprocess.run(
        [*command, str(ROOT / "scripts" / "train.py"), f"run_dir={tmp_path / 'odd'}", *small, "train.batch_size=5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert refused.returncode == 1 and "train.batch_size = 5: must be a multiple of the 2 ranks" in refused.stderr
    assert not (tmp_path / "odd" / "metrics.jsonl").exists()


def test_slices_are_the_batch_in_order():
    x = torch.arange(12).view(6, 2)
    assert torch.equal(torch.cat([World(rank, 3).slice(x) for rank in range(3)]), x)
    assert World().slice(x).equal(x)


def test_what_cannot_be_spread_over_ranks_is_refused():
    with pytest.raises(ValueError, match="batch_size = 10: must be a multiple of the 4 ranks"):
        World(0, 4).check({"batch_size": 10}, 0.0, False)
    with pytest.raises(ValueError, match=r"regularize\.gradient_norm: the squared norm of a mean"):
        World(0, 2).check({"batch_size": 10}, 0.1, False)
    with pytest.raises(ValueError, match=r"sync_batch_norm with train\.compile"):
        World(0, 2).check({"batch_size": 10}, 0.0, True)
    World(0, 1).check({"batch_size": 5, "generator_batch_size": None}, 0.1, True)


def test_other_kinds_of_data_parallelism_are_refused_with_the_reason():
    """Real ones, and ones that only a part of a player is wrapped in."""
    check_plain(MLPCritic((2,), width=2))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        replicated = torch.nn.parallel.DistributedDataParallel(MLPCritic((2,), width=2))
        sharded = MLPCritic((2,), width=2)
        fully_shard(sharded.layers[0], mesh=init_device_mesh("cpu", (1,)))
        for wrapped, reason in ((replicated, "come from autograd.grad"), (sharded, "second-order graph")):
            for player in (wrapped, torch.nn.Sequential(wrapped)):
                with pytest.raises(ValueError, match=reason):
                    check_plain(MLPCritic((2,), width=2), player)
    finally:
        torch.distributed.destroy_process_group()


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(CPU, 1) as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        assert world.any(True) and not world.any(False)
        gradients = SimpleNamespace()
        assert world.reduced(gradients) is gradients


def test_each_rank_has_a_device_of_its_own(monkeypatch):
    assert local_device("cuda") == "cuda" and local_device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_device("cuda") == "cuda:3" and local_device("cpu") == "cpu" and local_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_device("auto") == "cuda:3"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # where each task is shown its own
    assert local_device("cuda") == "cuda:0"
