"""Several ranks on gloo, each a process that runs tests/rank.py in float64."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, TINY
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from wgangp.checkpoint import load_latest
from wgangp.checks import check_not_wrapped
from wgangp.compiled import Computation
from wgangp.distributed import World, join_ranks, local_device
from wgangp.logs import read_lines
from wgangp.networks.mlp import MLPCritic

CPU = torch.device("cpu")


STEPS = 8


def start(ranks, folder, steps, *words):
    """Start the processes of a run as torchrun does, but without its agent, which would end them together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "rank.py"), str(folder), str(steps), *words]
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
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [out for out, _ in outputs]


def parameters(folder):
    state = load_latest(folder / "checkpoints", CPU)
    parts = {key: state[key] for key in ("generator", "critic", "average") if key in state}
    return {f"{key}.{name}": x for key, part in parts.items() for name, x in part.items() if name != "n_averaged"}


def largest_difference(a, b):
    a, b = parameters(a), parameters(b)
    assert a.keys() == b.keys() and all(x.dtype == torch.float64 for x in a.values())
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """one_process("points=real") -> the folder of a run of one process."""
    folders = {}

    def folder_of(*words):
        if words not in folders:
            folders[words] = tmp_path_factory.mktemp("one_process")
            finish(start(1, folders[words], STEPS, *words))
        return folders[words]

    return folder_of


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks, words",
    [
        (2, ()),
        (4, ()),
        (2, ("points=perturbed", "clipped")),
        (2, ("compile",)),
        (1, ("parts",)),
        (2, ("parts",)),
        (2, ("lost", "patient")),
    ],
)
def test_every_number_of_ranks_trains_the_same_parameters(ranks, words, one_process, tmp_path):
    outputs = finish(start(ranks, tmp_path, STEPS, *words))
    assert [f"rank {rank} of {ranks} reached {STEPS}" in out for rank, out in enumerate(outputs)] == [True] * ranks
    assert (
        largest_difference(tmp_path, one_process(*(word for word in words if word not in ("compile", "parts")))) < 1e-10
    )
    assert read_lines(tmp_path / "provenance.jsonl")[0].get("ranks", 1) == ranks  # one line: only rank 0 writes
    several, single = (read_lines(folder / "metrics.jsonl")[-1] for folder in (tmp_path, one_process()))
    if not words:
        assert several == pytest.approx(single, rel=1e-6)


@pytest.mark.slow
def test_every_rank_has_the_average_of_a_single_process(one_process, tmp_path):
    outputs = finish(start(2, tmp_path, STEPS, "average", "patient"))
    digests = {out.split("average: ")[1].strip() for out in outputs}
    assert len(digests) == 1 and any(name.startswith("average.") for name in parameters(tmp_path))
    assert largest_difference(tmp_path, one_process("average")) < 1e-10


@pytest.mark.slow
def test_batch_norm_differs_between_ranks_unless_it_is_synchronized(one_process, tmp_path):
    finish(start(2, tmp_path / "slices", STEPS, "norm"))
    finish(start(2, tmp_path / "whole", STEPS, "norm", "sync"))
    assert largest_difference(tmp_path / "slices", one_process("norm")) > 1e-4
    assert largest_difference(tmp_path / "whole", one_process("norm")) < 1e-10


@pytest.mark.slow
def test_run_can_be_resumed_with_another_number_of_ranks(one_process, tmp_path):
    for ranks, steps in ((2, 3), (1, 5), (4, STEPS)):
        finish(start(ranks, tmp_path, steps))
    assert largest_difference(tmp_path, one_process()) < 1e-10


def wait_for_log(folder, processes):
    """Wait until the run has written its first line."""
    until = time.monotonic() + 120
    while not read_lines(folder / "metrics.jsonl"):
        assert time.monotonic() < until and all(process.poll() is None for process in processes)
        time.sleep(0.1)
    time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize("number, word, limit_s", [(signal.SIGKILL, "patient", 10), (signal.SIGSTOP, "", 25)])
@pytest.mark.parametrize("victim", [0, 1])
def test_rank_that_dies_or_hangs_ends_the_others_with_an_error(number, word, limit_s, victim, tmp_path):
    processes = start(2, tmp_path, 10**6, "slow", word)
    try:
        wait_for_log(tmp_path, processes)
        processes[victim].send_signal(number)
        start_time = time.monotonic()
        _, message = processes[1 - victim].communicate(timeout=60)
        # A death is noticed at once and not after the timeout of 60 s, a rank that hangs after its timeout of 6 s.
        assert time.monotonic() - start_time < limit_s
        assert processes[1 - victim].returncode == 1
        assert f"error: rank {1 - victim} cannot reach another rank, which ended or hangs" in message
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # closes the pipes, too


@pytest.mark.slow
def test_signal_to_one_rank_stops_all_ranks_at_the_same_step_and_saves(tmp_path):
    processes = start(2, tmp_path, 10**6, "slow")
    wait_for_log(tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish(processes)
    steps = {out.split("reached ")[1].strip() for out in outputs}
    assert len(steps) == 1 and load_latest(tmp_path / "checkpoints", CPU)["step"] == int(steps.pop()) > 0


@pytest.mark.slow
def test_ranks_with_different_data_are_refused_on_every_rank(tmp_path):
    processes = start(2, tmp_path, STEPS, "differs")
    for process in processes:
        _, message = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "not the same on all 2 ranks: the data. All ranks must see the same run folder" in message


def test_values_that_differ_between_ranks_are_named(monkeypatch):
    values = {"the data": "a", "the options": "b"}
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x[1].copy_(x[0]))
    World(0, 2).require_equal(values)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x[1, 0].copy_(x[0, 0]))
    with pytest.raises(ValueError, match=r"on all 2 ranks: the options\. All"):
        World(0, 2).require_equal(values)


@pytest.mark.parametrize("local_rank, order", [("0", ["in", "barrier"]), ("1", ["barrier", "in"])])
def test_first_rank_of_a_node_runs_before_its_other_ranks(local_rank, order, monkeypatch):
    events = []
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr("torch.distributed.barrier", lambda: events.append("barrier"))
    with World(2, 4).first_before_others():
        events.append("in")
    assert events == order


@pytest.mark.parametrize("name", ["critic_gradients", "generator_gradients"])
def test_averaged_terms_do_not_keep_the_memory_of_the_gradients(name, monkeypatch):
    def compute():
        return {"loss": torch.tensor(3.0)}, [torch.ones(10, 10)]

    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x.mul_(2))
    average = World(0, 2).average(Computation(compute, compute, compute))
    terms, (gradient,) = getattr(average, name)()
    assert terms["loss"] == 3 and terms["loss"].untyped_storage().nbytes() == 4 and gradient.eq(1).all()
    assert average.sample is compute  # samples are not averaged


@pytest.mark.slow
def test_slurm_tasks_become_ranks(tmp_path):
    pytest.importorskip("submitit", reason="the extra is not installed: pip install -e '.[test]'")
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1"}
    slurm |= {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"run_dir={tmp_path / 'run'}", "device=cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    outputs = finish(
        [
            subprocess.Popen(
                [*command, "train.steps=2"],
                env={**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                **pipes,
            )
            for rank in range(2)
        ]
    )
    assert [out.count("finished: 2 generator updates") for out in outputs] == [1, 0]
    assert read_lines(tmp_path / "run" / "provenance.jsonl")[0]["ranks"] == 2


def test_missing_ranks_are_an_error_after_the_timeout(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"2 ranks did not connect within 1 s .* torchrun"), join_ranks(CPU, 1):
        pass


@pytest.mark.slow
def test_torchrun_trains_one_run_in_one_folder(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    small = ["train.steps=3", "train.report_size=64", "data=gaussians25", "device=cpu"]
    run = subprocess.run(
        [*command, str(ROOT / "scripts" / "train.py"), f"run_dir={tmp_path / 'run'}", *small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("finished: 3 generator updates") == 1
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    refused = subprocess.run(
        [*command, str(ROOT / "scripts" / "train.py"), f"run_dir={tmp_path / 'odd'}", *small, "train.batch_size=5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (
        refused.returncode == 1
        and "train.batch_size = 5: must be a multiple of the number of ranks, 2" in refused.stderr
    )
    assert not (tmp_path / "odd" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_of_a_launcher_that_was_killed_save_a_checkpoint_and_end(ranks, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [f"run_dir={tmp_path / 'run'}", *TINY, "train.steps=1000000", "train.sample_every=1000000"]
    with (tmp_path / "output").open("w") as output:
        pipes = {"stdout": output, "stderr": output}
        launcher = subprocess.Popen([*command, str(ROOT / "scripts" / "train.py"), *arguments], **pipes)
        wait_for_log(tmp_path / "run", [launcher])
        launcher.kill()
        launcher.wait()
    until = time.monotonic() + 120
    while "; the same command continues from there" not in (tmp_path / "output").read_text():
        assert time.monotonic() < until
        time.sleep(0.2)
    assert load_latest(tmp_path / "run" / "checkpoints", CPU)["step"] > 0


def test_process_of_torchrun_knows_whether_its_launcher_lives(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks(CPU, 1) as world:
        assert world.launcher is None and not world.orphaned  # a shell may end before its background job
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with join_ranks(CPU, 1) as world:
        assert not world.orphaned
        monkeypatch.setattr("os.getppid", lambda: 1)
        assert world.orphaned


def test_slices_are_the_batch_in_order():
    x, y = torch.arange(12).view(6, 2), torch.arange(6)
    slices = [World(rank, 3).slice(x, None, y) for rank in range(3)]
    assert torch.equal(torch.cat([part[0] for part in slices]), x)
    assert torch.equal(torch.cat([part[2] for part in slices]), y)
    assert all(part[1] is None for part in slices)
    assert World().slice(x)[0].equal(x)


def test_settings_that_do_not_work_with_ranks_are_refused():
    with pytest.raises(ValueError, match="batch_size = 10: must be a multiple of the number of ranks, 4"):
        World(0, 4).check({"batch_size": 10}, 0.0, False)
    with pytest.raises(
        ValueError,
        match=r"regularize\.gradient_norm does not work with several ranks or with accumulate > 1: the squared",
    ):
        World(0, 2).check({"batch_size": 10}, 0.1, False)
    with pytest.raises(ValueError, match=r"sync_batch_norm does not work with train\.compile"):
        World(0, 2).check({"batch_size": 10}, 0.0, True)
    with pytest.raises(ValueError, match=r"batch_size = 12: .* of ranks times train\.accumulate, 2 \* 4"):
        World(0, 2).check({"batch_size": 12}, 0.0, False, 4)
    with pytest.raises(ValueError, match=r"regularize\.gradient_norm does not work .* with accumulate > 1"):
        World(0, 1).check({"batch_size": 12}, 0.1, False, 4)
    World(0, 1).check({"batch_size": 5, "generator_batch_size": None}, 0.1, True)


def test_wrapped_networks_are_refused_with_the_reason():
    """Whole networks that are wrapped, and networks of which a part is wrapped."""
    check_not_wrapped(MLPCritic((2,), width=2))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        replicated = torch.nn.parallel.DistributedDataParallel(MLPCritic((2,), width=2))
        sharded = MLPCritic((2,), width=2)
        fully_shard(sharded.layers[0], mesh=init_device_mesh("cpu", (1,)))
        for wrapped, reason in ((replicated, "come from autograd.grad"), (sharded, "second-order graph")):
            for network in (wrapped, torch.nn.Sequential(wrapped)):
                with pytest.raises(ValueError, match=reason):
                    check_not_wrapped(MLPCritic((2,), width=2), network)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "text, full_error, end",
    [
        ("Connection closed by peer", None, SystemExit),
        ("Timed out waiting 6000ms", None, SystemExit),
        ("Connection closed by peer", "1", RuntimeError),
        ("CUDA out of memory", None, RuntimeError),
    ],
)
def test_only_an_error_of_the_connection_is_said_to_be_a_lost_rank(text, full_error, end, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if full_error:
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
    for name, result in (("init_process_group", None), ("get_rank", 1), ("destroy_process_group", None)):
        monkeypatch.setattr(torch.distributed, name, lambda *_, result=result, **__: result)
    with pytest.raises(end), join_ranks(CPU, 6):
        raise RuntimeError(text)
    assert (f"error: rank 1 cannot reach another rank, which ended or hangs: {text}" in capsys.readouterr().err) == (
        end is SystemExit
    )


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks(CPU, 1) as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        assert world.any(True) and not world.any(False)
        computation = Computation(None, None, None)
        assert world.average(computation) is computation


@pytest.mark.parametrize(
    "variables, exported",
    [
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "2"}, True),
        ({"SUBMITIT_EXECUTOR": "local", "SLURM_NTASKS": "2"}, False),
        ({"SLURM_NTASKS": "2"}, False),  # a Slurm job without Hydra's launcher
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "1"}, False),
        ({"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "2", "WORLD_SIZE": "4"}, False),  # torchrun in a Slurm task
    ],
)
def test_tasks_of_submitit_on_slurm_are_ranks_and_no_others(variables, exported, monkeypatch):
    calls = []

    class Environment:
        def export(self, **options):
            calls.append(options)

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "submitit.helpers", SimpleNamespace(TorchDistributedEnvironment=Environment))
    for name in ("SUBMITIT_EXECUTOR", "SLURM_NTASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local_device("cpu") == "cpu"
    assert calls == [{"set_cuda_visible_devices": False}] * exported


def test_every_rank_has_its_own_device(monkeypatch):
    assert local_device("cuda") == "cuda" and local_device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_device("cuda") == "cuda:3" and local_device("cpu") == "cpu" and local_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_device("auto") == "cuda:3"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # every task sees only its own device
    assert local_device("cuda") == "cuda:0"
