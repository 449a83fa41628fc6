import numpy as np
import pytest
import torch
from PIL import Image

from wgangp import plots


def read_pixels(path):
    """The pixels (H, W, 3) of a picture."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_image_grid_has_the_released_layout_and_keeps_the_values(tmp_path):
    x = torch.zeros(128, 1, 4, 4)
    x[1] = 1.0
    plots.image_grid(tmp_path / "a.png", x, (0.0, 1.0))
    image = read_pixels(tmp_path / "a.png")
    assert image.shape == (8 * 5 + 1, 16 * 5 + 1, 3)  # 8 rows of 16, with one pixel between them
    assert image[2, 2].max() == 0 and image[2, 7].min() == 255  # the second image is to the right of the first
    plots.image_grid(tmp_path / "b.png", x[:6] * 2 - 1, (-1.0, 1.0), columns=3)
    image = read_pixels(tmp_path / "b.png")
    assert image.shape == (2 * 5 + 1, 3 * 5 + 1, 3) and image[2, 7].min() == 255


def test_value_surface_has_x1_to_the_right_and_x2_up(tmp_path):
    """High values are dark: D(x) = x2 is dark at the top, D(x) = x1 is dark at the right."""
    outside = torch.full((1, 2), 9.0)  # points that are not in the frame
    shades = {}
    for name, axis in (("x1", 0), ("x2", 1)):
        plots.value_surface(tmp_path / "a.png", lambda x, axis=axis: x[:, axis], outside, outside, (-3.0, 3.0))
        image = read_pixels(tmp_path / "a.png").sum(2)
        rows, columns = image.shape
        spots = {"top": (0.15, 0.3), "bottom": (0.8, 0.3), "left": (0.5, 0.15), "right": (0.5, 0.65)}
        shades[name] = {spot: image[int(r * rows), int(c * columns)] for spot, (r, c) in spots.items()}
    assert shades["x2"]["top"] < shades["x2"]["bottom"] - 100 and shades["x2"]["left"] == shades["x2"]["right"]
    assert shades["x1"]["right"] < shades["x1"]["left"] - 100 and shades["x1"]["top"] == shades["x1"]["bottom"]


def test_curves_are_reproducible_and_leave_out_metrics_that_are_not_logged(tmp_path):
    records = [
        {"step": s, "critic_loss": s, "heldout_critic_loss": s, "wasserstein": s, "penalty": s, "modes": s}
        | {f"slope_{kind}_mean": s for kind in ("real", "fake", "interpolates")}
        for s in range(3)
    ]
    for name in ("a.png", "b.png"):
        plots.curves(tmp_path / name, records, target=1.0)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plots.curves(tmp_path / "c.png", [{k: v for k, v in r.items() if k != "modes"} for r in records], target=1.0)
    assert read_pixels(tmp_path / "c.png").shape[1] < read_pixels(tmp_path / "a.png").shape[1]


def test_animation_has_every_picture_in_order(tmp_path):
    shades = (0, 120, 250)
    for i, shade in enumerate(shades):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{i}.png")
    plots.animation(tmp_path / "a.gif", [tmp_path / f"{i}.png" for i in range(3)])
    with Image.open(tmp_path / "a.gif") as movie:
        assert movie.n_frames == 3
        for i, shade in enumerate(shades):
            movie.seek(i)
            assert abs(int(np.asarray(movie.convert("L"))[4, 4]) - shade) < 8


def test_points_are_connected_if_asked(tmp_path):
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    plots.points(tmp_path / "a.png", x, (-3.0, 3.0))
    plots.points(tmp_path / "b.png", x, (-3.0, 3.0), connect=True)
    assert read_pixels(tmp_path / "b.png").sum() < read_pixels(tmp_path / "a.png").sum()


@pytest.mark.parametrize("certified", [{"certified": 30.0}, {"not_certified": "a layer has no rule"}])
def test_lipschitz_picture_shows_every_number_of_the_report(tmp_path, certified, monkeypatch):
    figures = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda self, *_, **__: figures.append(self))
    slopes = {"real": torch.rand(50).double(), "fake": torch.full((50,), 0.9).double()}
    report = {
        "lipschitz": {"largest_quotient": 0.0, "steepest": 1.5, **certified},
        "distances": {"gap": -0.5, "proved": {"bound": 0.1, "low": 0.05, "high": 0.15}},
        "expected_slope": 1.05,
        "expected_from": "exact W1",
    }
    plots.lipschitz(tmp_path / "x.png", slopes, report, title="7 updates")
    (figure,) = figures
    slope_axes, constant_axes, distance_axes = figure.axes
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "real" in texts and "fake" in texts and any("-0.5" in t for t in texts) and any("0.1" in t for t in texts)
    assert figure._suptitle.get_text() == "7 updates"
    assert any(line.get_xdata()[0] == 1.05 for line in slope_axes.lines)
    assert ("certified" in " ".join(texts)) == ("certified" in certified)
    assert constant_axes.get_xlim()[0] > 0 and distance_axes.get_xlim()[0] < -0.5


def test_lipschitz_picture_of_a_critic_without_slopes_is_drawn(tmp_path):
    report = {"lipschitz": {"not_certified": "batch norm"}, "distances": {"gap": 0.1}}
    plots.lipschitz(tmp_path / "x.png", {}, report)
    assert (tmp_path / "x.png").stat().st_size > 5000
