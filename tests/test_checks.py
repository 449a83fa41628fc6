import pytest
import torch
from helpers import smooth_critic
from torch import nn

from wgangp import check_per_sample
from wgangp.networks.dcgan import MNISTCritic


class Mixing(nn.Module):
    """A critic that mixes the samples of a batch, without a norm layer."""

    def forward(self, x):
        return (x - x.mean(0)).square().flatten(1).sum(1)


def test_critics_with_independent_scores_pass():
    check_per_sample(smooth_critic(3), torch.randn(4, 3, dtype=torch.float64))
    check_per_sample(MNISTCritic((1, 28, 28), width=2), torch.rand(4, 1, 28, 28))
    check_per_sample(nn.LayerNorm(1), torch.randn(4, 1))


@pytest.mark.parametrize(
    "critic", [Mixing(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))]
)
def test_critics_that_mix_samples_raise(critic):
    with pytest.raises(ValueError, match="mixes the samples"):
        check_per_sample(critic, torch.randn(4, 3))


def test_critic_that_mixes_samples_raises_under_no_grad():
    with torch.no_grad(), pytest.raises(ValueError, match="mixes the samples"):
        check_per_sample(Mixing(), torch.randn(4, 3))


def test_one_sample_or_a_score_without_a_graph_raises():
    with pytest.raises(ValueError, match="at least two are needed"):
        check_per_sample(Mixing(), torch.randn(1, 3))
    with pytest.raises(ValueError, match="no graph"):
        check_per_sample(lambda x: x.detach().sum(1), torch.randn(4, 3))


def test_batch_norm_in_eval_mode_passes():
    critic = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    check_per_sample(critic, torch.randn(4, 3))


def test_running_statistics_are_not_changed():
    critic = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="batch norm"):
        check_per_sample(critic, torch.randn(4, 3) + 5)
    assert critic[0].running_mean.eq(0).all()
