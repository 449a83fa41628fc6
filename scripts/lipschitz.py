"""What a trained critic's slopes are, and what they should be: python scripts/lipschitz.py run=FOLDER [n=2000]."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from wgangp import config, lipschitz, plots
from wgangp.certify import certified_lipschitz
from wgangp.logs import provenance
from wgangp.penalty import GradientPenalty, check_per_sample
from wgangp.seeds import generator_for, noise
from wgangp.transport import LIMIT, wasserstein1

LOW = 3  # dimensions in which the distance between samples says something about the distance of what they are of
BATCH = 256  # samples generated at once, as in sample.py


@hydra.main(version_base="1.3", config_path="../conf", config_name="lipschitz")
def main(cfg: DictConfig) -> None:
    try:
        print(make(cfg))
    except ValueError as error:
        sys.exit(f"error: {error}")


def make(cfg: DictConfig) -> Path:
    """The folder with lipschitz.json and lipschitz.png. ValueError where that cannot be."""
    config.check_keys(cfg, config.Lipschitz)
    for key, least in (("n", 2), ("starts", 1), ("ascent", 1), ("seed", 0)):
        if cfg[key] < least:
            raise ValueError(f"{key} = {cfg[key]}: must be >= {least}")
    if not cfg.run:
        raise ValueError("run=FOLDER is needed: the folder that scripts/train.py named")
    device = config.device_of(cfg.device)
    trained_with, players, state = config.trained(Path(cfg.run), device, ("generator", "critic"))
    generator, critic = players.values()
    low = torch.Size(state["shape"]).numel() <= LOW
    if low and cfg.n > LIMIT:
        raise ValueError(f"n = {cfg.n}: exact transport is for at most {LIMIT} points; take n={LIMIT} or less")
    name = f"lipschitz_step{state['step']}_seed{cfg.seed}_n{cfg.n}_starts{cfg.starts}_ascent{cfg.ascent}"
    path = Path(cfg.out or Path(cfg.run, "made", name))
    if path.exists():
        if cfg.out:
            raise ValueError(f"{path} exists and is not overwritten: choose another out=")
        return path  # the same run, step, seed and sizes: it is this already

    if cfg.data_root is not None:
        if "root" not in trained_with.data:
            raise ValueError(f"data_root = {cfg.data_root}: the data of this run is drawn, not read")
        trained_with.data.root = cfg.data_root
    data = config.build(trained_with, "data", device=device)
    if state.get("data") != getattr(data, "fingerprint", ""):
        raise ValueError(f"the data is not what {cfg.run} was trained on (its sha256 differs): set data_root= to that")
    samples = []
    for split in ("heldout", "train"):
        try:
            samples.append(data.batch(0, cfg.n, cfg.seed, split, purpose="lipschitz")[0])
        except ValueError as error:
            raise ValueError(f"n: {error}") from error
    with torch.no_grad():
        z = noise(generator, cfg.n, cfg.seed, 0, "lipschitz", device)
        fake = torch.cat([generator(part) for part in z.split(BATCH)])
    penalty = config.build(trained_with, "penalty")
    found, slopes = look(critic, *samples, fake, penalty, cfg, low)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
        unfinished = Path(folder, path.name)
        unfinished.mkdir()
        about = {"step": state["step"], **OmegaConf.to_container(cfg), **provenance(device)}
        (unfinished / "lipschitz.json").write_text(json.dumps({**about, **found}, indent=2) + "\n")
        plots.lipschitz(unfinished / "lipschitz.png", slopes, found, title=f"{state['step']} generator updates")
        return unfinished.rename(path)


def look(
    critic: nn.Module,
    real: Tensor,
    trained_on: Tensor,
    fake: Tensor,
    penalty: GradientPenalty,
    cfg: DictConfig,
    low: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All measures that apply, as lipschitz.json has them, and the slopes at every kind of points."""
    with torch.no_grad():
        score_real, score_fake = (torch.cat([critic(part) for part in x.split(BATCH)]) for x in (real, fake))
    gap = (score_real.double().mean() - score_fake.double().mean()).item()
    distances = {"gap": gap}
    if low:
        distances["exact_w1"] = wasserstein1(real, fake)
        distances["sampling_floor"] = wasserstein1(real, trained_on)  # two samples of the data
    try:
        check_per_sample(critic, real[:4])
    except ValueError as error:  # its scores are no function of a point: there is no slope to speak of
        return {"slopes": {}, "lipschitz": {"not_certified": str(error)}, "distances": distances}, {}

    random = generator_for(cfg.seed, 0, "lipschitz/eps", real.device)
    slopes, cosines = lipschitz.critic_slopes(critic, real, fake, generator=random, coupled=low, float64=True)
    found = {"slopes": lipschitz.summary(slopes, cosines)}
    both = torch.cat([real, fake])
    first = [x[: cfg.starts] for x in (real, fake, (real + fake) / 2)]
    found["lipschitz"] = {
        "largest_quotient": lipschitz.largest_quotient(critic, both),
        "steepest": lipschitz.steepest_slope(critic, torch.cat(first), cfg.ascent),
    }
    if penalty.weight > 0 and penalty.target == 1 and gap >= 0:
        distances["corrected"] = lipschitz.corrected_wasserstein(gap, penalty.weight)
        w1, source = distances.get("exact_w1"), "exact W1"
        if w1 is None:
            w1, source = distances["corrected"], "corrected gap"
        found |= {"expected_slope": lipschitz.expected_slope(w1, penalty.weight), "expected_from": source}
    try:
        constant = certified_lipschitz(critic, tuple(real.shape[1:]))
        found["lipschitz"]["certified"] = constant
        if constant > 0:
            distances["proved"] = lipschitz.proved_wasserstein(score_real, score_fake, constant, seed=cfg.seed)
    except ValueError as error:
        found["lipschitz"]["not_certified"] = str(error)
    return found | {"distances": distances}, slopes


if __name__ == "__main__":
    main()
