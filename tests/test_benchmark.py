import importlib.util
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ROOT

from wgangp import benchmark, speed_report
from wgangp.benchmark import CASES, measure
from wgangp.contestants import Case, Ours, Textbook
from wgangp.floor import gflop_of, products_of
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.precision import products

spec = importlib.util.spec_from_file_location("benchmark_script", ROOT / "scripts" / "benchmark.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

CPU = torch.device("cpu")
SMALL = {name: replace(case, width=16, batch=6, generator_batch=None) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_textbook_is_the_same_function_of_the_same_weights(name):
    theirs, ours = Textbook(SMALL[name], CPU), Ours(SMALL[name], CPU)
    for contestant in (theirs, ours):
        contestant.generator.double()
        contestant.critic.double()
    real, z, eps = (x.double() for x in SMALL[name].batch_of(CPU))
    torch.testing.assert_close(theirs.generator(z), ours.generator(z))
    fake = ours.generator(z).detach()
    for a, b in zip(theirs.gradients(real, fake, eps), ours.gradients(real, fake, eps), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_every_timed_step_moves_the_player_that_it_is_about(name):
    for contestant in (Textbook(SMALL[name], CPU), Ours(SMALL[name], CPU)):
        steps = {"critic_step": {"critic"}, "unpenalised_step": {"critic"}, "generator_step": {"generator"}}
        for step, expected in {**steps, "iteration": {"critic", "generator"}}.items():
            before = {
                who: [p.clone() for p in getattr(contestant, who).parameters()] for who in ("critic", "generator")
            }
            getattr(contestant, step)()
            moved = {
                who
                for who, values in before.items()
                if any(
                    not torch.equal(a, b) for a, b in zip(values, getattr(contestant, who).parameters(), strict=True)
                )
            }
            assert moved == expected


def test_arithmetic_is_counted_and_the_textbook_has_a_pass_of_zeros_more():
    # Hidden layers of n x n, in units of a forward pass: 6 for real and fake, 4 for the penalty, or 6 with the zeros.
    batch, width = 32, 512
    case = Case(MLPGenerator, partial(MLPCritic, depth=8), (2,), batch, width)
    unit = 2 * batch * 7 * width**2 / 1e9
    assert gflop_of(Ours(case, CPU).critic_step) / unit == pytest.approx(10, rel=0.01)
    assert gflop_of(Textbook(case, CPU).critic_step) / unit == pytest.approx(12, rel=0.01)


def test_the_floor_runs_every_product_of_the_step_as_often_as_the_step_does():
    step = Ours(SMALL["CIFAR DCGAN"], CPU).critic_step
    floor = products_of(step, CPU)
    assert gflop_of(floor) == gflop_of(step) > 0


def test_peak_memory_is_what_is_held_at_once():
    def run():
        for _ in range(3):
            torch.empty(1_000_000)  # 4 MB each, one at a time
        both = torch.empty(1_000_000), torch.empty(500_000)
        del both

    assert benchmark._held(run) == pytest.approx(6e6, rel=0.01)


def test_peak_memory_has_what_one_step_leaves_to_the_next():
    kept = []

    def run():
        kept.append(torch.empty(1_000_000))
        if len(kept) > 1:
            kept.pop(0)

    assert benchmark._held(run) == pytest.approx(8e6, rel=0.01)


def test_a_compiled_step_that_fell_back_is_not_measured(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match="compiled cannot be measured: the compiled critic step is not used"):
        measure(SMALL["toy MLP"], CPU, rounds=1)


def test_every_variant_is_compared_and_timed_in_its_own_precision(monkeypatch, quick_compile):
    seen = set()

    def precisely(precision):
        seen.add(precision)
        return products(precision)

    monkeypatch.setattr(benchmark, "products", precisely)
    monkeypatch.setattr(benchmark, "VARIANTS", {name: benchmark.VARIANTS[name] for name in ("eager", "bf16")})
    monkeypatch.setattr(benchmark, "_error", lambda *arguments: compared.append(arguments[-2:]) or 0.0)
    compared = []
    timed = []
    monkeypatch.setattr(benchmark, "_interleaved", lambda runs, *_: timed.append(runs) or {k: [1.0] for k in runs})
    measure(SMALL["toy MLP"], CPU, rounds=1)
    assert compared == [("textbook", "fp32"), ("eager", "fp32"), ("bf16", "bf16")] and seen == {"fp32", "bf16"}
    for name, precision in compared:
        seen.clear()
        timed[0][name, "critic_step"]()
        assert seen == {precision}


def test_a_fast_wrong_answer_is_a_failure(monkeypatch, quick_compile):
    right = Ours.gradients
    monkeypatch.setattr(Ours, "gradients", lambda *args: [1.1 * g for g in right(*args)])
    with pytest.raises(ValueError, match=r"eager: gradients are 0.1 off .* and 0.01 is allowed in fp32"):
        measure(SMALL["toy MLP"], CPU, rounds=1)


@pytest.mark.slow
def test_the_benchmark_runs_in_a_smoke_size_and_keeps_what_was_measured(
    configure, tmp_path, capsys, monkeypatch, quick_compile
):
    some = ("eager", "compiled", "compiled, channels last", "bf16, penalty in fp32")
    monkeypatch.setattr(benchmark, "VARIANTS", {name: benchmark.VARIANTS[name] for name in some})

    def run(*more):
        script.run(configure("smoke=true", "rounds=1", f"out={tmp_path}", "device=cpu", *more, name="benchmark"))
        return [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]

    records = run()
    assert {r["case"] for r in records if "case" in r} == set(CASES)
    assert {r["grows"] for r in records if "grows" in r} == {"batch", "width", "depth", "resolution"}
    for record in records:
        assert record["critic_step_s"] > 0 and record["commit"] and record["budget"] == "cpu"
        if "case" in record:
            assert record["gradient_error"] > 0 and record["penalty_share"] < 1
            assert record["peak_memory_mb"] > 0 and record["critic_step_gflop"] > 0
    textbook = [r for r in records if r.get("variant") == "textbook" and "case" in r]
    assert all(r["critic_step_ratio"] == r["iteration_ratio"] == 1 for r in textbook)
    assert (tmp_path / "cpu.png").stat().st_size > 10_000
    page = (tmp_path / "README.md").read_text()
    assert "| cuda | CIFAR ResNet | whole iteration, ratio to textbook | <= 0.25 | not run |  | not run |" in page
    assert "toy MLP" in capsys.readouterr().out
    old = (tmp_path / "cpu.jsonl").read_text()
    run("cases=[toy MLP]", "growth=false")
    assert (tmp_path / "cpu.1.jsonl").read_text() == old


def test_targets_say_what_was_reached_by_whom_and_what_was_not_run():
    base = {"case": "toy MLP", "critic_step_ratio": 1.0, "iteration_ratio": 1.0, "critic_step_share_of_floor": 0.5}
    records = [
        {**base, "variant": "textbook", "peak_memory_mb": 2.0},
        {**base, "variant": "eager", "critic_step_ratio": 0.9, "peak_memory_mb": 3.0},
        {**base, "variant": "compiled", "critic_step_ratio": 0.7, "peak_memory_mb": 1.0},
    ]
    lines = {(t["device"], t["case"], t["what"], t["target"]): t for t in speed_report.targets({"cpu": records})}
    found = lines["cpu", "toy MLP", "critic step, ratio to textbook", "<= 0.72"]
    assert (found["reached"], found["by"], found["met"]) == ("0.70", "compiled", "yes")
    assert lines["cpu", "toy MLP", "whole iteration, ratio to textbook", "<= 0.75"]["met"] == "**no**"
    what = "peak memory of an iteration, the most of any variant, ratio to textbook"
    memory = lines["cpu", "toy MLP", what, "<= 1"]
    assert (memory["reached"], memory["by"], memory["met"]) == ("1.50", "eager", "**no**")
    minutes = ("cuda", "CIFAR ResNet", "minutes for 100,000 generator updates", "<= 25")
    assert lines[minutes]["met"] == "not run"
    fast = {**base, "case": "CIFAR ResNet", "variant": "bf16", "iteration_s": 0.012, "peak_memory_mb": 1.0}
    for budget, met in (("cpu", "not run"), ("paper", "yes")):
        both = [{**fast, "budget": budget}, {**fast, "budget": budget, "variant": "textbook"}]
        lines = {(t["device"], t["case"], t["what"], t["target"]): t for t in speed_report.targets({"cuda": both})}
        assert lines[minutes]["met"] == met


@pytest.mark.parametrize(
    "override, message",
    [
        ("cases=[toy]", r"cases = \['toy'\]: at least one of toy MLP, MNIST DCGAN"),
        ("cases=[]", "at least one of"),
        ("rounds=0", "rounds = 0: must be >= 1"),
        ("budget=gpu", "budget = gpu: must be one of cpu, paper, or null"),
        ("+sort=1", "unknown key"),
        ("device=cuda:99", "device = cuda:99: not to be had"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(configure, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        script.run(configure(f"out={tmp_path / 'new'}", override, name="benchmark"))
    assert not (tmp_path / "new").exists()
