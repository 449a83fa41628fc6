import math

import pytest
import torch

from wgangp.data.toy import gaussians8
from wgangp.metrics import mode_coverage


def test_the_data_itself_covers_every_mode_with_the_mass_of_three_sd():
    data = gaussians8()
    got = mode_coverage(data.batch(0, 20_000, seed=0)[0], data.centres, data.sd)
    assert got["modes"] == 8
    assert got["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.003)


def test_a_mode_needs_one_sample_within_three_sd():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.tensor([[0.29, 0.0], [10.31, 0.0], [5.0, 5.0], [0.0, 9.9]])
    assert mode_coverage(x, centres, sd=0.1) == {"modes": 2, "high_quality": 0.5}
    assert mode_coverage(x + 5, centres, sd=0.1) == {"modes": 0, "high_quality": 0.0}
