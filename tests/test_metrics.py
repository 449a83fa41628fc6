import math

import pytest
import torch

from wgangp.data.toy import gaussians8
from wgangp.metrics.modes import mode_coverage


def test_data_covers_every_mode_and_has_the_mass_within_three_sd():
    data = gaussians8()
    scores = mode_coverage(data.batch(0, 20_000, seed=0)[0], data.centers, data.sd)
    assert scores["modes"] == 8
    assert scores["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.003)


def test_mode_is_covered_by_one_sample_within_three_sd():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.tensor([[0.29, 0.0], [10.31, 0.0], [5.0, 5.0], [0.0, 9.9]])
    assert mode_coverage(x, centers, sd=0.1) == {"modes": 2, "high_quality": 0.5}
    assert mode_coverage(x + 5, centers, sd=0.1) == {"modes": 0, "high_quality": 0.0}
