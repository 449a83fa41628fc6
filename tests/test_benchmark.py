"""The speed measurements in bench/."""

import json
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import ROOT

from bench import contestants, measure, page, peer_loops, peers, scaling, speed
from bench.contestants import Case, Ours, Textbook
from bench.floor import build_floor, count_gflop
from bench.measure import CASES
from bench.peer_loops import PEERS, draw_batch
from wgangp.compiled import build_computation
from wgangp.distributed import World
from wgangp.logs import collect_provenance, read_lines
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.precision import product_precision
from wgangp.tables import replace_block

CPU = torch.device("cpu")
LARGE = [name for name, case in CASES.items() if case.shape[-1] == 64]
SMALL = {
    name: replace(case, width=4 if name in LARGE else 16, batch=6, generator_batch=None, critic_steps=1)
    for name, case in CASES.items()
}


@pytest.fixture
def no_compile(monkeypatch):
    """Short measurements: compiled variants are computed eagerly, one critic step per iteration, no repetitions."""

    def build_eager(*arguments, compile, **options):
        return build_computation(*arguments, **options)

    for module in (contestants, peers):
        monkeypatch.setattr(module, "build_computation", build_eager)
    monkeypatch.setattr(measure, "LEAST_S", 0.0)
    for module in (peer_loops, peers):
        monkeypatch.setattr(module, "CRITIC_STEPS", 1)


@pytest.mark.parametrize("name", CASES)
def test_textbook_computes_the_same_function_with_the_same_weights(name):
    textbook, ours = Textbook(SMALL[name], CPU), Ours(SMALL[name], CPU)
    for contestant in (textbook, ours):
        contestant.generator.double()
        contestant.critic.double()
    real, z, eps, *y = (x.double() if x.is_floating_point() else x for x in SMALL[name].draw_batch(CPU))
    assert len(y) == ("AC-GAN" in name)
    torch.testing.assert_close(textbook.generator(z, *y), ours.generator(z, *y))
    fake = ours.generator(z, *y).detach()
    expected = [*textbook.critic_gradients(real, fake, eps, *y), *textbook.generator_gradients(z, *y)]
    actual = [*ours.critic_gradients(real, fake, eps, *y), *ours.generator_gradients(z, *y)]
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_each_timed_step_updates_only_its_own_network(name):
    for contestant in (Textbook(SMALL[name], CPU), Ours(SMALL[name], CPU)):
        networks = {"critic": contestant.critic, "generator": contestant.generator}
        steps = {"critic_step": {"critic"}, "unpenalized_step": {"critic"}, "generator_step": {"generator"}}
        for step, expected in {**steps, "iteration": {"critic", "generator"}}.items():
            before = {role: [p.clone() for p in network.parameters()] for role, network in networks.items()}
            getattr(contestant, step)()
            updated = {
                role
                for role, values in before.items()
                if any(not torch.equal(a, b) for a, b in zip(values, networks[role].parameters(), strict=True))
            }
            assert updated == expected


def test_gflop_are_counted_and_the_textbook_has_an_additional_pass_of_zeros():
    # Hidden layers of n x n, in units of a forward pass: 6 for real and fake, 4 for the penalty, or 6 with the zeros.
    batch, width = 32, 512
    case = Case(MLPGenerator, partial(MLPCritic, depth=8), (2,), batch, width)
    unit = 2 * batch * 7 * width**2 / 1e9
    assert count_gflop(Ours(case, CPU).critic_step) / unit == pytest.approx(10, rel=0.01)
    assert count_gflop(Textbook(case, CPU).critic_step) / unit == pytest.approx(12, rel=0.01)


def test_floor_computes_every_product_of_the_step_equally_often():
    for step in (Ours(SMALL["CIFAR DCGAN"], CPU).critic_step, partial(torch.bmm, *torch.ones(2, 2, 3, 3))):
        floor = build_floor(step, CPU)
        assert count_gflop(floor) == count_gflop(step) > 0


def test_peak_memory_is_the_memory_held_at_the_same_time():
    def function():
        for _ in range(3):
            torch.empty(1_000_000)  # 4 MB each, one at a time
        both = torch.empty(1_000_000), torch.empty(500_000)
        del both

    assert measure._peak_cpu_bytes(function) == pytest.approx(6e6, rel=0.01)


def test_peak_memory_includes_what_the_previous_step_left():
    kept = []

    def function():
        kept.append(torch.empty(1_000_000))
        if len(kept) > 1:
            kept.pop(0)

    assert measure._peak_cpu_bytes(function) == pytest.approx(8e6, rel=0.01)


def test_a_compiled_step_that_falls_back_to_eager_is_left_out_with_its_reason(monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(measure, "VARIANTS", {name: measure.VARIANTS[name] for name in ("eager", "compiled")})
    *measured, left_out = measure.measure(SMALL["toy MLP"], CPU, rounds=1)
    assert [record["variant"] for record in measured] == ["textbook", "eager"]
    reason = "compiled cannot be measured: the compiled critic step is not used: RuntimeError: no compiler"
    assert left_out["variant"] == "compiled" and left_out["left_out"].startswith(reason)
    assert "compiled is left out" in capsys.readouterr().out
    source = {"case": "toy MLP", "budget": "cpu", "command": "bench.speed", "rounds": 1, **collect_provenance(CPU)}
    records = [source | record for record in (*measured, left_out)]
    block = page.speed_block({"cpu": records})
    assert " ".join(block.split()).count(f"Left out, toy MLP: `{reason}") == 1
    assert "| toy MLP | compiled |" not in block and "computed in eager mode" not in block


def test_growth_leaves_out_a_variant_that_falls_back_to_eager(monkeypatch):
    def compare(case, variant, device, name, precision):
        if name == "compiled":
            warnings.warn("the compiled critic step is not used", stacklevel=1)

    monkeypatch.setattr(measure, "_compare_with_float64", compare)
    monkeypatch.setattr(measure, "time_in_turn", lambda timed, *_: {key: [1.0] for key in timed})
    records = measure.measure_growth(CPU, 1, small=True)
    assert {record["variant"] for record in records} == {"textbook", "eager"}
    assert {record["grows"] for record in records} == {"batch", "width", "depth", "resolution"}


def test_each_variant_is_compared_and_timed_in_its_own_precision(monkeypatch, no_compile):
    used = set()

    def record_precision(precision):
        used.add(precision)
        return product_precision(precision)

    compared, timed = [], []
    monkeypatch.setattr(measure, "product_precision", record_precision)
    monkeypatch.setattr(
        measure, "VARIANTS", {name: measure.VARIANTS[name] for name in ("eager", "bf16, penalty in bf16")}
    )
    monkeypatch.setattr(measure, "_compare_with_float64", lambda *arguments: compared.append(arguments[-2:]) or 0.0)
    monkeypatch.setattr(
        measure, "time_in_turn", lambda functions, *_: timed.append(functions) or {key: [1.0] for key in functions}
    )
    measure.measure(SMALL["toy MLP"], CPU, rounds=1)
    assert compared == [("textbook", "fp32"), ("eager", "fp32"), ("bf16, penalty in bf16", "bf16")] and used == {
        "fp32",
        "bf16",
    }
    for name, precision in compared:
        used.clear()
        timed[0][name, "critic_step"]()
        assert used == {precision}


def test_wrong_gradients_are_refused(monkeypatch):
    correct = Ours.critic_gradients
    monkeypatch.setattr(Ours, "critic_gradients", lambda *arguments: [1.1 * g for g in correct(*arguments)])
    message = r"eager is not timed: its gradients differ from float64 by 0.1 .* 0.01 is allowed in fp32"
    with pytest.raises(ValueError, match=message):
        measure.measure(SMALL["toy MLP"], CPU, rounds=1)


def test_gradients_that_are_not_a_number_are_refused(monkeypatch):
    correct = Ours.generator_gradients
    monkeypatch.setattr(Ours, "generator_gradients", lambda *arguments: [g / 0 for g in correct(*arguments)])
    with pytest.raises(ValueError, match="eager is not timed"):
        measure.measure(SMALL["toy MLP"], CPU, rounds=1)


def check_smoke_run(folder, monkeypatch, capsys, names, variants):
    """Run bench.speed twice with tiny networks, and check the records, the picture, the page and what is printed."""
    monkeypatch.setattr(measure, "VARIANTS", {name: measure.VARIANTS[name] for name in variants})

    def run(*options):
        speed.run(["--smoke", "--rounds", "1", "--out", str(folder), "--device", "cpu", *options])
        return read_lines(folder / "cpu.jsonl")

    records = run("--cases", *names)
    assert {r["case"] for r in records if "case" in r} == set(names)
    assert {r["grows"] for r in records if "grows" in r} == {"batch", "width", "depth", "resolution"}
    for record in records:
        assert record["critic_step_s"] > 0 and record["commit"] and record["budget"] == "smoke"
        assert record["command"].startswith("python -m bench.speed --smoke --rounds 1 --out ")
        if "case" in record:
            assert record["gradient_error"] > 0 and record["penalty_share"] < 1
            assert record["peak_memory_mb"] > 0 and record["critic_step_gflop"] > 0
    textbook = [r for r in records if r.get("variant") == "textbook" and "case" in r]
    assert all(r["critic_step_ratio"] == r["iteration_ratio"] == 1 for r in textbook)
    assert (folder / "cpu.png").stat().st_size > 10_000
    readme = (folder / "README.md").read_text()
    assert readme == replace_block(readme, page.BEGIN, page.END, page.speed_block({"cpu": records}))
    assert all(f"| {case} | {variant} |" in readme for case in names for variant in ("textbook", "compiled"))
    assert "toy MLP" in capsys.readouterr().out
    old = (folder / "cpu.jsonl").read_text()
    newer = run("--cases", "toy MLP", "--no-growth")
    assert (folder / "cpu.1.jsonl").read_text() == old
    assert [r for r in newer if r.get("case") != "toy MLP"] == [r for r in records if r.get("case") != "toy MLP"]
    without_channels = [name for name in variants if "channels" not in name]
    assert [r["variant"] for r in newer if r.get("case") == "toy MLP"] == ["textbook", *without_channels]
    assert not [r for r in newer if r.get("case") == "toy MLP" and r in records]  # measured anew
    real = {**records[0], "budget": "cpu", "case": "text"}
    (folder / "cpu.jsonl").write_text(json.dumps(real) + "\n")
    assert real not in run("--cases", "toy MLP", "--no-growth")  # budgets are not mixed
    assert read_lines(folder / "cpu.2.jsonl") == [real]


@pytest.mark.parametrize("old, copied", [("text", False), ("toy MLP", True)])
def test_cases_that_are_done_are_kept_if_the_measurement_is_stopped(tmp_path, monkeypatch, old, copied):
    def stop_at_text(case, *_):
        if case.shape == CASES["text"].shape:
            raise KeyboardInterrupt
        return [{"variant": "textbook"}]

    monkeypatch.setattr(measure, "measure", stop_at_text)
    (tmp_path / "cpu.jsonl").write_text(json.dumps({"case": old, "variant": "textbook", "budget": "smoke"}) + "\n")
    with pytest.raises(KeyboardInterrupt):
        speed.run(["--smoke", "--out", str(tmp_path), "--device", "cpu", "--cases", "toy MLP", "text"])
    assert [record["case"] for record in read_lines(tmp_path / "cpu.jsonl")] == list(dict.fromkeys(["toy MLP", old]))
    assert (tmp_path / "cpu.1.jsonl").exists() == copied  # only if a record was replaced
    assert not copied or "commit" not in read_lines(tmp_path / "cpu.1.jsonl")[0]


@pytest.mark.parametrize("names", [("toy MLP", "text"), pytest.param(tuple(CASES), marks=pytest.mark.slow)])
def test_smoke_run_measures_the_cases_and_keeps_earlier_records(tmp_path, monkeypatch, capsys, no_compile, names):
    check_smoke_run(tmp_path, monkeypatch, capsys, names, ("eager", "compiled"))


@pytest.mark.slow
def test_smoke_run_with_traced_steps(tmp_path, monkeypatch, capsys, quick_compile):
    names = ("toy MLP", "MNIST DCGAN", "CIFAR ResNet, AC-GAN", "text")
    variants = ("eager", "compiled", "compiled, channels last", "bf16, penalty in fp32")
    check_smoke_run(tmp_path, monkeypatch, capsys, names, variants)


@pytest.mark.slow
def test_a_variant_compiled_by_the_real_compiler_is_measured(monkeypatch):
    monkeypatch.setattr(measure, "VARIANTS", {name: measure.VARIANTS[name] for name in ("eager", "compiled")})
    records = measure.measure(SMALL["toy MLP"], CPU, rounds=1)
    assert [record["variant"] for record in records] == ["textbook", "eager", "compiled"]
    assert all(record["iteration_s"] > 0 and record["gradient_error"] < 1e-4 for record in records)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--cases", "toy"], r"--cases: invalid choice: 'toy' \(choose from .*toy MLP.*MNIST DCGAN"),
        (["--cases"], "--cases: expected at least one argument"),
        (["--rounds", "0"], "--rounds 0: must be >= 1"),
        (["--rounds", "many"], "--rounds: invalid int value: 'many'"),
        (["--budget", "gpu"], r"--budget: invalid choice: 'gpu' \(choose from .*cpu.*paper"),
        (["--sort", "1"], "unrecognized arguments: --sort 1. Use --help"),
        (["--device", "cuda:99"], r"device = cuda:99: not available.*Use --device cpu or --device auto$"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        speed.run(["--out", str(tmp_path / "new"), *options])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("module", [speed, scaling, peers])
def test_errors_are_one_line_with_exit_code_1_or_a_traceback_on_request(module, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench", "--unknown"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit, match=r"^error: unrecognized arguments: --unknown\. Use --help"):
        module.main()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="unrecognized arguments"):
        module.main()


@pytest.mark.parametrize("module", [speed, scaling])
def test_a_page_without_markers_is_refused_before_the_measurement(module, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# My notes\n")
    monkeypatch.setattr("bench.contestants.Ours.__init__", None)  # nothing can be measured
    with pytest.raises(ValueError, match=r"README\.md: the text has 0 lines '<!-- rendered by bench -->'"):
        module.run(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_scaling_measures_every_setting_and_adds_to_the_records(tmp_path, monkeypatch, capsys):
    small = {name: replace(case, width=8, batch=4) for name, case in scaling.MEASURED.items()}
    monkeypatch.setattr(scaling, "MEASURED", small)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # a setting of this process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for runs in (1, 2):
        scaling.run(["--out", str(tmp_path)])
        records = read_lines(tmp_path / "records.jsonl")
        assert [(r["case"], r["grows"], r["ranks"]) for r in records] == runs * [
            (name, grows, 1) for name in small for grows in (False, True)
        ]
    committed = read_lines(ROOT / "results" / "scaling" / "records.jsonl")
    assert set(committed[0]) <= set(records[0])
    assert len(records[0]["iteration_s_all"]) == scaling.ROUNDS and records[0]["iteration_s"] > 0
    readme = (tmp_path / "README.md").read_text()
    assert readme == replace_block(readme, page.BEGIN, page.END, page.scaling_block(records))
    assert "records.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("grows, batch", [(False, 4), (True, 8)])
def test_scaling_batch_of_all_ranks_grows_with_the_ranks_or_is_constant(grows, batch, monkeypatch):
    monkeypatch.setattr(scaling, "MEASURED", {"toy": replace(CASES["toy MLP"], width=8, batch=4)})
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x)
    record = scaling.measure("toy", grows, CPU, World(0, 2))
    assert (record["ranks"], record["batch"], record["grows"]) == (2, batch, grows)


SMALL_PEERS = {name: replace(peer, batch=4, width=min(peer.width, 4), cpu_division=1) for name, peer in PEERS.items()}
SIZES = {  # trainable numbers of critic and generator at the published width, added up by hand from the layers
    "PyTorch-GAN MLP": (533_505, 1_510_032),
    "caogang MNIST": (1_030_145, 1_556_673),
    "caogang CIFAR": (1_487_105, 1_731_203),
    "collections ResNet": (1_053_825, 4_276_739),
    "mimicry ResNet": (1_053_825, 4_276_739),
}


@pytest.mark.parametrize("name", PEERS)
def test_networks_of_peers_have_the_published_sizes(name):
    generator, critic = PEERS[name].build(PEERS[name].width)
    assert tuple(sum(p.numel() for p in network.parameters()) for network in (critic, generator)) == SIZES[name]
    real, fake, _ = draw_batch(replace(PEERS[name], batch=2), CPU)
    assert real.shape == fake.shape == generator(torch.randn(len(real), generator.latent_dim)).shape
    assert critic(real).numel() == len(real)


@pytest.mark.parametrize("name", PEERS)
def test_our_step_computes_the_gradients_of_the_peer(name):
    peer = SMALL_PEERS[name]
    gradients = []
    for build in (peer.loop, peers.Ours):
        torch.manual_seed(0)
        contestant = build(peer, CPU, tuple(network.double() for network in peer.build(peer.width)))
        contestant.real, contestant.fake, contestant.eps = (x.double() for x in draw_batch(peer, CPU))
        gradients.append(contestant.critic_gradients())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", PEERS)
def test_iteration_of_a_peer_updates_both_networks_and_reads_new_data(name):
    peer = SMALL_PEERS[name]
    loop = peer.loop(peer, CPU, peer.build(peer.width))
    for step, updated in ((loop.critic_step, (False, True)), (loop.iteration, (True, True))):
        before = [[p.clone() for p in network.parameters()] for network in (loop.generator, loop.critic)]
        step()
        after = [list(network.parameters()) for network in (loop.generator, loop.critic)]
        assert updated == tuple(
            any(map(torch.ne, a, b)) for a, b in zip(map(_sums, before), map(_sums, after), strict=True)
        )
    assert all(p.requires_grad for p in loop.critic.parameters())
    first, second = next(loop.batches), next(loop.batches)
    assert first.shape == draw_batch(peer, CPU)[0].shape and not torch.equal(first, second)
    assert first.min() < peer.span[0] + 0.1 and first.max() > peer.span[1] - 0.1


def _sums(tensors):
    return [t.sum() for t in tensors]


CPU_VARIANTS = ("peer", "eager", "compiled", "bf16, penalty in bf16")


def test_peers_are_measured_and_rendered(tmp_path, monkeypatch, capsys, no_compile):
    monkeypatch.setattr(peers, "PEERS", SMALL_PEERS)
    peers.run(["--smoke", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)])
    records = read_lines(tmp_path / "peers-cpu.jsonl")
    assert [(r["peer"], r["variant"]) for r in records] == [(p, v) for p in PEERS for v in CPU_VARIANTS]
    for record in records:
        assert record["iteration_s"] > 0 and record["commit"] and record["source"].count("/") == 1
        assert record["gradient_error"] <= (0.2 if record["variant"].startswith("bf16") else 1e-4)
        low, high = record["critic_step_ratio_quartiles"]
        assert low <= record["critic_step_ratio"] <= high
        assert record["variant"] != "peer" or low == high == 1
    assert "mimicry ResNet, width 4" in capsys.readouterr().out
    block = page.peer_block({"cpu": records})
    assert "| PyTorch-GAN MLP | peer | 1.00 (1.00 to 1.00) |" in block and "python -m bench.peers --smoke" in block


def test_no_further_peer_is_begun_when_the_time_is_over(tmp_path, monkeypatch, capsys, no_compile):
    monkeypatch.setattr(peers, "PEERS", SMALL_PEERS)
    options = [
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--seconds",
        "0",
        "--peers",
        "PyTorch-GAN MLP",
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(ValueError, match="nothing was measured within 0 seconds"):
        peers.run(options)
    assert "PyTorch-GAN MLP is left out" in capsys.readouterr().out
    records = peers.measure_peer(SMALL_PEERS["PyTorch-GAN MLP"], CPU, rounds=1, deadline=0.0)
    assert [record["variant"] for record in records] == ["peer", "eager"]


def test_a_variant_with_wrong_gradients_is_left_out(monkeypatch, capsys, no_compile):
    right = peers.Ours.critic_gradients
    monkeypatch.setattr(peers.Ours, "critic_gradients", lambda self: [1.1 * g for g in right(self)])
    records = peers.measure_peer(SMALL_PEERS["caogang MNIST"], CPU, rounds=1)
    assert [record["variant"] for record in records] == ["peer", "bf16, penalty in bf16"]  # 0.1 is right in bf16
    assert "eager is left out: its gradients differ by 0.1 (relative) from those of the peer" in capsys.readouterr().out


def test_committed_pages_are_rendered_from_the_committed_records():
    speed_records = page.read_speed(ROOT / page.SPEED)
    scaling_records = read_lines(ROOT / page.SCALING / "records.jsonl")
    for name, markers, block in (
        (f"{page.SPEED}/README.md", (page.BEGIN, page.END), page.speed_block(speed_records)),
        (f"{page.SCALING}/README.md", (page.BEGIN, page.END), page.scaling_block(scaling_records)),
        (page.GUIDE, page.GUIDE_MARKERS, page.ratio_block(speed_records)),
        (page.GUIDE, page.PEER_MARKERS, page.peer_block(page.read_speed(ROOT / page.SPEED, "peers-"))),
    ):
        text = (ROOT / name).read_text()
        assert text == replace_block(text, *markers, block), f"{name}: run python -m bench.page"
        assert max(map(len, text.splitlines())) <= 160, name


def test_all_pages_are_rendered_again_from_the_records(tmp_path):
    for folder in ("results/benchmark", "results/scaling", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    names = [f"{page.SPEED}/{name}.jsonl" for name in ("cpu", "peers-cpu", "peers-cuda")]
    names.append(f"{page.SCALING}/records.jsonl")
    pages = (f"{page.SPEED}/README.md", f"{page.SCALING}/README.md", page.GUIDE)
    for name in (*names, *pages):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for name in pages:
        begin, end = page.GUIDE_MARKERS if name == page.GUIDE else (page.BEGIN, page.END)
        (tmp_path / name).write_text(replace_block((tmp_path / name).read_text(), begin, end, "old"))
    assert page.render(tmp_path) == [tmp_path / name for name in pages]
    for name in pages:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    assert (tmp_path / page.SPEED / "cpu.png").stat().st_size > 10_000


def test_ratios_are_shown_per_variant_and_case():
    source = {
        "budget": "paper",
        "command": "x",
        "commit": None,
        "dirty": True,
        "device": "GPU",
        "torch": "2",
        "rounds": 3,
    }
    records = [
        {"case": "A", "variant": "textbook", "critic_step_ratio": 1.0, "iteration_ratio": 1.0, **source},
        {"case": "A", "variant": "eager", "critic_step_ratio": 0.816, "iteration_ratio": 0.5, **source},
        {"case": "B", "variant": "textbook", "critic_step_ratio": 1.0, "iteration_ratio": 1.0, **source},
        {"grows": "batch", "size": 16, "variant": "textbook", **source},
    ]
    lines = page.ratio_block({"cuda": records}).splitlines()
    assert lines[:4] == [
        "| cuda | A | B |",
        "| --- | --- | --- |",
        "| textbook | 1.00 / 1.00 | 1.00 / 1.00 |",
        "| eager | 0.82 / 0.50 |  |",
    ]
    assert "commit unknown (changed), GPU" in lines[-1] and "the widths are those of the released code." in lines[-1]


def test_committed_records_have_the_keys_of_new_ones(monkeypatch, no_compile):
    monkeypatch.setattr(measure, "VARIANTS", {"eager": {}})
    new = measure.measure(SMALL["toy MLP"], CPU, rounds=1)[0]
    committed = json.loads((ROOT / page.SPEED / "cpu.jsonl").read_text().splitlines()[0])
    assert set(new) <= set(committed)


@pytest.mark.parametrize("value, text", [(1234.5, "1,230"), (12.0, "12"), (9.984, "9.98"), (0.5, "0.5")])
def test_times_have_three_digits_and_no_exponent(value, text):
    assert page._digits(value) == text
