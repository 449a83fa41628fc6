import numpy as np
import pytest
import torch
from PIL import Image

from wgangp import plots


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_a_grid_has_the_released_shape_and_the_values_of_its_images(tmp_path):
    x = torch.zeros(128, 1, 4, 4)
    x[1] = 1.0
    plots.image_grid(tmp_path / "a.png", x, (0.0, 1.0))
    image = pixels(tmp_path / "a.png")
    assert image.shape == (8 * 5 + 1, 16 * 5 + 1, 3)  # 8 rows of 16, one pixel between
    assert image[2, 2].max() == 0 and image[2, 7].min() == 255  # the second is to the right of the first
    plots.image_grid(tmp_path / "b.png", x[:6] * 2 - 1, (-1.0, 1.0), columns=3)
    image = pixels(tmp_path / "b.png")
    assert image.shape == (2 * 5 + 1, 3 * 5 + 1, 3) and image[2, 7].min() == 255


def test_the_value_surface_is_the_right_way_up(tmp_path):
    """D(x) = x2 is dark (high) at the top and light at the bottom, the same from left to right; D(x) = x1 is not."""
    nothing = torch.full((1, 2), 9.0)  # outside of the frame
    shades = {}
    for name, axis in (("x1", 0), ("x2", 1)):
        plots.value_surface(tmp_path / "a.png", lambda x, axis=axis: x[:, axis], nothing, nothing, (-3.0, 3.0))
        image = pixels(tmp_path / "a.png").sum(2)
        rows, columns = image.shape
        spots = {"top": (0.15, 0.3), "bottom": (0.8, 0.3), "left": (0.5, 0.15), "right": (0.5, 0.65)}
        shades[name] = {spot: image[int(r * rows), int(c * columns)] for spot, (r, c) in spots.items()}
    assert shades["x2"]["top"] < shades["x2"]["bottom"] - 100 and shades["x2"]["left"] == shades["x2"]["right"]
    assert shades["x1"]["right"] < shades["x1"]["left"] - 100 and shades["x1"]["top"] == shades["x1"]["bottom"]


def test_pictures_are_the_same_every_time(tmp_path):
    records = [
        {"step": s, "critic_loss": s, "heldout_critic_loss": s, "wasserstein": s, "penalty": s, "modes": s}
        | {f"slope_{kind}_mean": s for kind in ("real", "fake", "interpolates")}
        for s in range(3)
    ]
    for name in ("a.png", "b.png"):
        plots.curves(tmp_path / name, records, target=1.0)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plots.curves(tmp_path / "c.png", [{k: v for k, v in r.items() if k != "modes"} for r in records], target=1.0)
    assert pixels(tmp_path / "c.png").shape[1] < pixels(tmp_path / "a.png").shape[1]


def test_an_animation_has_every_picture_in_order(tmp_path):
    shades = (0, 120, 250)
    for i, shade in enumerate(shades):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{i}.png")
    plots.animation(tmp_path / "a.gif", [tmp_path / f"{i}.png" for i in range(3)])
    with Image.open(tmp_path / "a.gif") as movie:
        assert movie.n_frames == 3
        for i, shade in enumerate(shades):
            movie.seek(i)
            assert abs(int(np.asarray(movie.convert("L"))[4, 4]) - shade) < 8


def test_points_are_drawn_joined_or_not(tmp_path):
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    plots.points(tmp_path / "a.png", x, (-3.0, 3.0))
    plots.points(tmp_path / "b.png", x, (-3.0, 3.0), joined=True)
    assert pixels(tmp_path / "b.png").sum() < pixels(tmp_path / "a.png").sum()


@pytest.mark.parametrize("certified", [{"certified": 30.0}, {"not_certified": "a layer has none"}])
def test_the_lipschitz_picture_shows_what_was_found(tmp_path, certified, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda self, *_, **__: figures.append(self))
    slopes = {"real": torch.rand(50).double(), "fake": torch.full((50,), 0.9).double()}
    found = {
        "lipschitz": {"largest_quotient": 0.0, "steepest": 1.5, **certified},
        "distances": {"gap": -0.5, "proved": {"bound": 0.1, "low": 0.05, "high": 0.15}},
        "expected_slope": 1.05,
        "expected_from": "exact W1",
    }
    plots.lipschitz(tmp_path / "x.png", slopes, found, title="7 updates")
    (figure,) = figures
    at, between, far = figure.axes
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "real" in said and "fake" in said and any("-0.5" in s for s in said) and any("0.1" in s for s in said)
    assert figure._suptitle.get_text() == "7 updates"
    assert any(line.get_xdata()[0] == 1.05 for line in at.lines)
    assert ("certified" in " ".join(said)) == ("certified" in certified)
    assert between.get_xlim()[0] > 0 and far.get_xlim()[0] < -0.5


def test_a_critic_without_slopes_has_a_picture_that_says_so(tmp_path):
    found = {"lipschitz": {"not_certified": "batch norm"}, "distances": {"gap": 0.1}}
    plots.lipschitz(tmp_path / "x.png", {}, found)
    assert (tmp_path / "x.png").stat().st_size > 5000
