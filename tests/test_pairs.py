import pytest
import torch

from wgangp.data.pairs import funnels, shift
from wgangp.transport import wasserstein1

PAIRS = [(kind, dim) for kind in (shift, funnels) for dim in (1, 2, 16)]


@pytest.mark.parametrize("kind, dim", PAIRS)
def test_mass_moves_by_the_distance_and_the_potential_sees_all_of_it(kind, dim):
    """The two halves of the proof: the cost of the map, and the drop of a 1-Lipschitz potential, are the distance."""
    pair = kind(dim=dim, distance=0.7)
    x = pair.batch(0, 500, seed=0)[0].double()
    assert x.shape == (500, dim)
    moved = pair.moved(x)
    assert (x - moved).norm(dim=1).numpy() == pytest.approx(0.7)
    assert (pair.potential(x) - pair.potential(moved)).numpy() == pytest.approx(0.7)
    for t in (0.3, 0.999):  # the gradient is the same all along the ray, so the potential falls by its length
        between = x + t * (moved - x)
        assert (pair.gradient(between) - pair.gradient(x)).abs().max() < 1e-6
        assert pair.gradient(between).norm(dim=1).numpy() == pytest.approx(1)


@pytest.mark.parametrize("kind", [shift, funnels])
def test_samples_in_the_plane_are_at_the_distance(kind):
    pair = kind(dim=2, distance=1.0)
    x = pair.batch(0, 1500, seed=0)[0]
    assert wasserstein1(x, pair.moved(x)) == pytest.approx(1.0, abs=1e-5)  # nothing is cheaper than the map
    assert wasserstein1(x, pair.low(0, 1500, seed=0)) == pytest.approx(1.0, abs=0.1)  # other draws: a sample's error


@pytest.mark.parametrize("kind, dim", PAIRS)
def test_the_potential_is_1_lipschitz_and_its_gradient_is_the_one_given(kind, dim):
    pair = kind(dim=dim)
    x = (2 * torch.randn(400, dim)).double().requires_grad_()
    u = pair.potential(x)
    (gradient,) = torch.autograd.grad(u.sum(), x)
    assert (gradient - pair.gradient(x.detach())).abs().max() < 1e-12
    away = torch.cdist(x.detach(), x.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    assert ((u.unsqueeze(1) - u).abs() <= away * (1 + 1e-12) + 1e-12).all()


def test_one_funnel_is_convex_and_several_are_not():
    x, y = (3 * torch.randn(2000, 2).double() for _ in range(2))
    bulge = {
        count: (u((x + y) / 2) - (u(x) + u(y)) / 2).max().item()
        for count in (1, 4)
        for u in [funnels(dim=2, count=count).potential]
    }
    assert bulge[1] < 1e-12 and bulge[4] > 0.1


def test_the_sides_are_independent_seekable_and_of_every_seed():
    for pair in (shift(), funnels()):
        again = pair.batch(7, 9, seed=1)[0]
        assert pair.batch(7, 9, seed=1)[0].equal(again) and pair.batch(7, 9, seed=1)[1] is None
        others = [
            pair.batch(8, 9, seed=1)[0],
            pair.batch(7, 9, seed=2)[0],
            pair.batch(7, 9, seed=1, split="heldout")[0],
        ]
        assert not any(other.equal(again) for other in [*others, pair.low(7, 9, seed=1)])
        assert not pair.low(7, 9, seed=1).equal(pair.moved(again))


def test_layouts_differ():
    a, b = (funnels(dim=2, layout=layout).gradient(torch.ones(1, 2)) for layout in (0, 1))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: shift(dim=0), "dim = 0"),
        (lambda: shift(distance=-1.0), "distance = -1"),
        (lambda: funnels(count=0), "count = 0"),
        (lambda: funnels(distance=30.0), "take less"),
    ],
)
def test_what_is_no_pair_is_an_error(make, said):
    with pytest.raises(ValueError, match=said):
        make()
