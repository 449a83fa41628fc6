"""One rank of a small float64 run: tests/rank.py FOLDER STEPS [word ...]; main shows what the words do."""

import os
import sys
import time
from pathlib import Path

import torch

from wgangp.data.toy import gaussians8
from wgangp.distributed import joined
from wgangp.losses import Wasserstein
from wgangp.networks.layers import BatchNorm
from wgangp.networks.mlp import MLPCritic, MLPGenerator
from wgangp.penalty import GradientPenalty
from wgangp.seeds import initialised
from wgangp.train import train


class Slow(type(gaussians8())):
    def batch(self, *args, **kwargs):
        time.sleep(0.05)
        return super().batch(*args, **kwargs)


def generator(norm):
    made = MLPGenerator((2,), width=32)
    if norm:
        made.layers.insert(2, BatchNorm(32))
    return made


def main():
    folder, steps, *how = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    data = gaussians8()
    if "slow" in how:
        data.__class__ = Slow
    if "compile" in how:
        really = torch.compile
        torch.compile = lambda f, **k: really(f, backend="aot_eager", fullgraph=True, dynamic=False)
    if "differs" in how and os.environ["RANK"] == "1":  # from the other ranks
        data.fingerprint = "another"
    clip = {"clip_weights": 0.1, "clip_gradient_norm": 0.5, "decay_steps": 40} if "clipped" in how else {}
    points = next((word.split("=")[1] for word in how if word.startswith("points=")), "interpolates")
    players = [
        initialised(lambda: generator("norm" in how), 0, "generator"),
        initialised(lambda: MLPCritic((2,), width=32), 0, "critic"),
    ]
    optimizers = [torch.optim.Adam(player.parameters(), lr=1e-3, betas=(0.0, 0.9), fused=True) for player in players]
    never = dict.fromkeys(("log_every", "sample_every", "checkpoint_every", "lipschitz_every"), 10**6)
    with joined(torch.device("cpu"), timeout_s=60 if "patient" in how else 6) as world:
        reached = train(
            Path(folder),
            *players,
            *optimizers,
            data,
            Wasserstein(),
            GradientPenalty(points=points),
            seed=0,
            steps=int(steps),
            critic_steps=5,
            batch_size=16,
            report_size=16,
            generator_batch_size=32,
            **never,
            **clip,
            compile="compile" in how,
            sync_batch_norm="sync" in how,
            world=world,
        )
        print(f"rank {world.rank} of {world.size} reached {reached}", flush=True)


if __name__ == "__main__":
    main()
