"""One rank of a small float64 run: tests/rank.py FOLDER STEPS [WORD ...]; main shows what each word changes."""

import os
import sys
import time
from pathlib import Path

import torch

from wgangp.data.toy import gaussians8
from wgangp.distributed import join_ranks
from wgangp.losses import Wasserstein
from wgangp.networks.layers import BatchNorm
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.optim import build_average
from wgangp.penalty import GradientPenalty
from wgangp.runs import Run
from wgangp.seeds import initialize
from wgangp.state import digest_weights
from wgangp.train import Clip, train


class SlowData(type(gaussians8())):
    def batch(self, *args, **kwargs):
        time.sleep(0.05)
        return super().batch(*args, **kwargs)


class NonfiniteData(type(gaussians8())):
    """The last row of some batches is infinite. Only the last rank computes with it."""

    def batch(self, k, *args, **kwargs):
        (real,) = super().batch(k, *args, **kwargs)
        if k in (0, 7, 8) and "purpose" not in kwargs:  # a report has one
            real = real.index_fill(0, torch.tensor([len(real) - 1]), torch.inf)
        return (real,)


def build_generator(norm):
    generator = MLPGenerator((2,), width=32)
    if norm:
        generator.layers.insert(2, BatchNorm(32))
    return generator


def main():
    folder, steps, *words = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    data = gaussians8()
    if "slow" in words:
        data.__class__ = SlowData
    if "lost" in words:
        data.__class__ = NonfiniteData
    if "compile" in words:
        compiler = torch.compile
        torch.compile = lambda f, **k: compiler(f, backend="aot_eager", fullgraph=True, dynamic=False)
    if "differs" in words and os.environ["RANK"] == "1":  # only on this rank
        data.fingerprint = "another"
    clipped = {"clip": Clip(weights=0.1, gradient_norm=0.5), "decay_steps": 40} if "clipped" in words else {}
    clipped |= {"clip": Clip(on_nonfinite="skip")} if "lost" in words else {}
    points = next((word.split("=")[1] for word in words if word.startswith("points=")), "interpolates")
    generator = initialize(lambda: build_generator("norm" in words), 0, "generator")
    critic = initialize(lambda: MLPCritic((2,), width=32), 0, "critic")
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-3, betas=(0.0, 0.9), fused=True) for n in (generator, critic)]
    average = build_average(generator, 0.7 if "average" in words else None)
    run = Run(generator, critic, *optimizers, data, Wasserstein(), GradientPenalty(points=points), 0, average)
    never = dict.fromkeys(("log_every", "sample_every", "checkpoint_every", "lipschitz_every"), 10**6)
    with join_ranks(torch.device("cpu"), rank_timeout=60 if "patient" in words else 6) as world:
        step = train(
            Path(folder),
            run,
            steps=int(steps),
            critic_steps=5,
            batch_size=16,
            report_size=16,
            generator_batch_size=32,
            **never,
            **clipped,
            compile="compile" in words,
            accumulate=4 if "parts" in words else 1,
            sync_batch_norm="sync" in words,
            world=world,
        )
        print(f"rank {world.rank} of {world.size} reached {step}", flush=True)
        if average:
            print(f"average: {digest_weights(average)}", flush=True)


if __name__ == "__main__":
    main()
