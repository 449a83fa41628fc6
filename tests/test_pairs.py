import os
from pathlib import Path

import numpy as np
import pytest
import torch

from wgangp import gradient_norm
from wgangp.data.pairs import funnels, korotin, shift
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


def test_funnels_of_a_layout_stay_where_they_are():
    potential = funnels(dim=2, count=4).potential(torch.tensor([[0.0, 0.0], [3.0, -1.0]], dtype=torch.float64))
    assert potential.tolist() == pytest.approx([0.6094374326688204, 2.123285078329444], rel=1e-12)


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


def write_pairs(folder, dim=2, funnels=4):
    rng = np.random.default_rng(0)
    arrays = {"centers": rng.uniform(-2, 2, (funnels, dim)), "bias": rng.uniform(0, 0.3, funnels)}
    np.savez(folder / "pairs.npz", **{f"d{dim}_n{funnels}_{k}": v.astype("float32") for k, v in arrays.items()})


def test_korotin_distance_equals_exact_transport_and_potential_is_1_lipschitz(tmp_path):
    """Mass moves along the gradient of a 1-Lipschitz function, so the map is optimal."""
    write_pairs(tmp_path)
    pair = korotin(tmp_path)
    (high,) = pair.batch(0, 2_000, seed=0)
    moved = pair.transport(high)
    assert (moved.abs() <= 2.5 + 1e-5).all()
    drop = pair.potential(high) - pair.potential(moved)
    torch.testing.assert_close(drop, (high - moved).norm(dim=1), atol=1e-4, rtol=1e-4)
    assert wasserstein1(high, moved) == pytest.approx((high - moved).norm(dim=1).mean().item(), rel=1e-4)
    assert pair.distance == pytest.approx(drop.mean().item(), rel=0.05)
    assert gradient_norm(pair.potential, high).max() <= 1 + 1e-5


def test_korotin_distance_equals_the_published_one():
    root = os.environ.get("WGANGP_DATA")
    if not root or not (Path(root) / "korotin" / "pairs.npz").exists():
        pytest.skip("needs the files of the benchmark: set WGANGP_DATA=FOLDER, with FOLDER/korotin/pairs.npz")
    assert korotin(Path(root) / "korotin", 2, 4).distance == pytest.approx(0.817381, abs=0.01)
    assert korotin(Path(root) / "korotin", 8, 16).distance == pytest.approx(1.585009, abs=0.02)


def test_korotin_pair_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root.*pairs\.npz"):
        korotin(tmp_path)
    write_pairs(tmp_path)
    with pytest.raises(ValueError, match=r"no pair d3_n4.*d2_n4"):
        korotin(tmp_path, 3)


def test_korotin_file_that_is_damaged_is_named(tmp_path):
    write_pairs(tmp_path)
    path = tmp_path / "pairs.npz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.root: cannot read .*pairs\.npz"):
            korotin(tmp_path)
    np.savez(path, d2_n4_bias=np.zeros(4))
    with pytest.raises(ValueError, match=r"no pair d2_n4"):
        korotin(tmp_path)
