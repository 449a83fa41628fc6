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


def test_funnels_point_away_from_the_centre_they_fall_to_and_there_are_so_many():
    """The lines x - t grad u(x) of all points pass through `count` centres, and through no other common point."""
    pair = funnels(dim=3, distance=0.5, count=4)
    x = torch.randn(400, 3).double()
    g = pair.gradient(x)
    centres = []
    while len(x) > 2:  # where two points of one funnel cross, hundreds do
        for other in range(1, len(x)):
            lengths = torch.linalg.lstsq(torch.stack([g[0], -g[other]], dim=1), x[0] - x[other]).solution
            centre = x[0] - lengths[0] * g[0]
            away = x - centre
            own = (torch.nn.functional.normalize(away, dim=1) - g).norm(dim=1) < 1e-4
            if own.sum() > 2:
                break
        else:
            raise AssertionError("a point that shares its centre with no other")
        centres.append(centre)
        x, g = x[~own], g[~own]
    assert len(centres) == 4 and len(x) == 0


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
