import pytest
import torch

from wgangp.data.pairs import funnels, shift
from wgangp.transport import wasserstein1

PAIRS = [(kind, dim) for kind in (shift, funnels) for dim in (1, 2, 16)]


@pytest.mark.parametrize("kind, dim", PAIRS)
def test_map_moves_by_the_distance_and_the_potential_decreases_by_it(kind, dim):
    """The proof that W1 = distance has two halves: the cost of the map, and the decrease of a 1-Lipschitz function."""
    pair = kind(dim=dim, distance=0.7)
    x = pair.batch(0, 500, seed=0)[0].double()
    assert x.shape == (500, dim)
    y = pair.transport(x)
    assert (x - y).norm(dim=1).numpy() == pytest.approx(0.7)
    assert (pair.potential(x) - pair.potential(y)).numpy() == pytest.approx(0.7)
    for t in (0.3, 0.999):  # the gradient is constant along the ray, so the potential decreases by its length
        between = x + t * (y - x)
        assert (pair.gradient(between) - pair.gradient(x)).abs().max() < 1e-6
        assert pair.gradient(between).norm(dim=1).numpy() == pytest.approx(1)


@pytest.mark.parametrize("kind", [shift, funnels])
def test_samples_in_the_plane_have_the_known_distance(kind):
    pair = kind(dim=2, distance=1.0)
    x = pair.batch(0, 1500, seed=0)[0]
    assert wasserstein1(x, pair.transport(x)) == pytest.approx(1.0, abs=1e-5)  # no other map is cheaper
    assert wasserstein1(x, pair.low(0, 1500, seed=0)) == pytest.approx(1.0, abs=0.1)  # independent samples


@pytest.mark.parametrize("kind, dim", PAIRS)
def test_potential_is_1_lipschitz_and_has_the_stated_gradient(kind, dim):
    pair = kind(dim=dim)
    x = (2 * torch.randn(400, dim)).double().requires_grad_()
    u = pair.potential(x)
    (gradient,) = torch.autograd.grad(u.sum(), x)
    assert (gradient - pair.gradient(x.detach())).abs().max() < 1e-12
    distance = torch.cdist(x.detach(), x.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    assert ((u.unsqueeze(1) - u).abs() <= distance * (1 + 1e-12) + 1e-12).all()


def test_potential_of_one_funnel_is_convex_and_of_several_is_not():
    x, y = (3 * torch.randn(2000, 2).double() for _ in range(2))
    bulge = {
        count: (u((x + y) / 2) - (u(x) + u(y)) / 2).max().item()
        for count in (1, 4)
        for u in [funnels(dim=2, count=count).potential]
    }
    assert bulge[1] < 1e-12 and bulge[4] > 0.1


def test_batches_are_a_function_of_their_arguments_and_the_sides_are_independent():
    for pair in (shift(), funnels()):
        (x,) = pair.batch(7, 9, seed=1)
        assert pair.batch(7, 9, seed=1)[0].equal(x)
        others = [
            pair.batch(8, 9, seed=1)[0],
            pair.batch(7, 9, seed=2)[0],
            pair.batch(7, 9, seed=1, split="heldout")[0],
        ]
        assert not any(other.equal(x) for other in [*others, pair.low(7, 9, seed=1)])
        assert not pair.low(7, 9, seed=1).equal(pair.transport(x))


def test_layouts_of_funnels_differ():
    a, b = (funnels(dim=2, layout=layout).gradient(torch.ones(1, 2)) for layout in (0, 1))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: shift(dim=0), "dim = 0"),
        (lambda: shift(distance=-1.0), "distance = -1"),
        (lambda: funnels(count=0), "count = 0"),
        (lambda: funnels(distance=30.0), "Use a smaller one"),
    ],
)
def test_invalid_pair_raises(make, message):
    with pytest.raises(ValueError, match=message):
        make()
