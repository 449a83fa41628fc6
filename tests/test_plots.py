import errno
import json
import os

import matplotlib
import numpy as np
import pytest
import torch
from helpers import ROOT
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from wgangp import plots
from wgangp.config import CONF
from wgangp.figures.study import load_figure
from wgangp.logs import read_lines

FIGURES = sorted(path.stem for path in (CONF / "figure").glob("*.yaml"))
FIGURES = [name for name in FIGURES if (ROOT / "results" / name / "records.jsonl").exists()]
PICTURES = ("curves", "surface", "lipschitz", *FIGURES)
PAGE, COLUMN = 830, 400  # pixels: the widths of a picture on a page of GitHub, and in one of README's two columns

pytestmark = pytest.mark.layout


def read_pixels(path):
    """The pixels (H, W, 3) of a picture."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_letters_of_a_note_grow_with_the_width_of_a_grid(tmp_path):
    heights = []
    for columns in (100, 300):  # 501 and 1,501 pixels, which a page shows at 501 and 830
        plots.save_image_grid(
            tmp_path / "a.png", torch.zeros(columns, 1, 4, 4), (0.0, 1.0), columns=columns, note="a l"
        )
        with Image.open(tmp_path / "a.png") as picture:
            heights.append((np.asarray(picture) > 100).any(1).sum())
    assert heights[0] >= 5 and heights[1] >= 1.5 * heights[0]


def test_image_grid_has_the_released_layout_and_keeps_the_values(tmp_path):
    x = torch.zeros(128, 1, 4, 4)
    x[1] = 1.0
    plots.save_image_grid(tmp_path / "a.png", x, (0.0, 1.0))
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == "L"  # one channel
    image = read_pixels(tmp_path / "a.png")
    assert image.shape == (8 * 5 + 1, 16 * 5 + 1, 3)  # 8 rows of 16, with one pixel between them
    assert image[2, 2].max() == 0 and image[2, 7].min() == 255  # the second image is to the right of the first
    plots.save_image_grid(tmp_path / "b.png", x[:6] * 2 - 1, (-1.0, 1.0), columns=3)
    image = read_pixels(tmp_path / "b.png")
    assert image.shape == (2 * 5 + 1, 3 * 5 + 1, 3) and image[2, 7].min() == 255


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(name) -> the matplotlib figure of a picture of the project, and the texts in it."""
    figures, texts, path, results = [], [], tmp_path / "x.png", ROOT / "results"
    draw_text = Text.draw

    def record(figure, path, dpi):
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        figures.append(figure)

    def record_text(text, renderer):
        texts.extend([text] if text.get_visible() and text.get_text().strip() else [])
        draw_text(text, renderer)

    def draw(name):
        if name == "curves":
            lines = read_lines(results / "toy" / "metrics.jsonl")
            plots.save_curves(path, [{"largest_quotient": 1.0, **line} for line in lines], target=1.0)
        elif name == "surface":
            points = torch.randn(9, 2)
            plots.save_value_surface(path, lambda x: x[:, 0], points, points, (-3.0, 3.0), "4000 generator updates")
        elif name == "lipschitz":
            report = json.loads((results / "toy" / "lipschitz.json").read_text())
            slopes = {kind: 1 + torch.rand(50).double() for kind in report["slopes"]}  # the slope 1 is at the left
            plots.save_lipschitz(path, slopes, report, title="4000 generator updates")
        else:
            load_figure(name, results / name).draw(path, read_lines(results / name / "records.jsonl"))
        return figures[-1], texts

    monkeypatch.setattr(Figure, "savefig", record)
    monkeypatch.setattr(Text, "draw", record_text)
    return draw


@pytest.mark.parametrize("name", PICTURES)
def test_text_can_be_read_where_the_picture_is_shown(drawn, name):
    """It has at least 9 px there and is inside of the picture. No text and no line goes through it."""
    figure, texts = drawn(name)
    shown = COLUMN if name == "surface" else PAGE
    assert len(texts) > 5
    assert min(text.get_fontsize() for text in texts) / 72 * shown / figure.get_figwidth() >= 9
    boxes = [text.get_window_extent().padded(-1) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.count_overlaps(boxes) == 1, text
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is None or legend.get_frame().get_alpha() == 1  # lines are not seen through it
        paths = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
        for lines in (part for part in axes.collections if isinstance(part, LineCollection)):
            paths += [path.transformed(lines.get_transform()) for path in lines.get_paths()]
        for text, box in zip(texts, boxes, strict=True):
            if legend is None or text not in legend.get_texts():
                assert not any(path.intersects_bbox(box, filled=False) for path in paths), text


def luminance(color):
    """WCAG 2: the relative luminance of colors (*, 3) in [0, 1]."""
    return to_linear(color) @ (0.2126, 0.7152, 0.0722)


def to_linear(color):
    color = np.asarray(color)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG 2: 1 to 21. Graphics need 3."""
    light, dark = np.maximum(luminance(a), luminance(b)), np.minimum(luminance(a), luminance(b))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_has_the_values_of_wcag():
    assert contrast([0, 0, 0], [1, 1, 1]) == pytest.approx(21)
    assert contrast([119 / 255] * 3, [1, 1, 1]) == pytest.approx(4.48, abs=0.01)  # #777777 on white


def test_points_contrast_with_every_color_of_the_surface():
    real, fake, edge = (matplotlib.colors.to_rgb(color) for color in (plots.REAL, plots.FAKE, plots.EDGE))
    surface = plots.cut_colormap(*plots.SURFACE)(np.linspace(0, 1, 256))[:, :3]
    assert np.maximum(contrast(real, surface), contrast(edge, surface)).min() >= 3
    assert contrast(fake, surface).min() >= 3
    assert contrast(real, fake) >= 3 and contrast(real, [1, 1, 1]) >= 3  # on each other, and on white


def test_points_are_seen_on_the_surface_at_the_size_in_readme(tmp_path):
    """D(x) = x1 has every color of the surface. Real points are in the upper half, generated points in the lower."""
    x = torch.linspace(-2.7, 2.4, 13)
    real, fake = (torch.stack([x, torch.full_like(x, y)], 1) for y in (1.0, -1.0))
    pixels = []
    for points in ((real, fake), (real + 9, fake + 9)):  # with points, and without
        plots.save_value_surface(tmp_path / "a.png", lambda x: x[:, 0], *points, (-3.0, 3.0))
        with Image.open(tmp_path / "a.png") as image:
            size = (COLUMN, round(COLUMN * image.height / image.width))
            pixels.append(np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)) / 255)
    seen = contrast(*pixels) >= 3
    for half in np.array_split(seen, 2):
        columns = half.any(0).astype(int)
        assert (np.diff(columns) == 1).sum() == len(x)


def test_lines_differ_in_dashes_and_in_color_also_for_the_color_blind():
    """Deuteranopia, simulated by the matrix of Machado, Oliveira and Fernandes (2009)."""
    colors = np.array([matplotlib.colors.to_rgb(color) for color in plots.LINES["color"]])
    assert len(set(map(str, plots.LINES["linestyle"]))) == len(colors)
    assert contrast(colors, np.ones(3)).min() >= 3
    blind = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    for shades in (colors, (to_linear(colors) @ blind.T).clip(0, 1) ** (1 / 2.4)):
        assert min(np.linalg.norm(a - b) for i, a in enumerate(shades) for b in shades[:i]) > 0.25


def test_bytes_are_rounded_and_channels_are_last():
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2)
    assert plots.to_bytes(x, (-1.0, 1.0)).tolist() == [[[[0], [128]], [[255], [255]]]]  # 127.5 goes to the even 128
    x = torch.rand(3, 3, 4, 5)
    assert torch.equal(plots.to_bytes(x, (0.0, 1.0))[2, 1, 3], (255 * x[2, :, 1, 3]).round().byte())


def test_value_surface_has_x1_to_the_right_and_x2_up(tmp_path):
    """High values are dark: D(x) = x2 is dark at the top, D(x) = x1 is dark at the right."""
    outside = torch.full((1, 2), 9.0)  # points that are not in the frame
    shades = {}
    for name, axis in (("x1", 0), ("x2", 1)):
        plots.save_value_surface(tmp_path / "a.png", lambda x, axis=axis: x[:, axis], outside, outside, (-3.0, 3.0))
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
        plots.save_curves(tmp_path / name, records, target=1.0)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plots.save_curves(tmp_path / "c.png", [{k: v for k, v in r.items() if k != "modes"} for r in records], target=1.0)
    assert (read_pixels(tmp_path / "c.png") < 255).sum() < (read_pixels(tmp_path / "a.png") < 255).sum()


def test_curves_have_both_lower_bounds_of_the_constant_in_one_panel(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        Axes, "plot", lambda axes, x, y, **style: drawn.setdefault(axes, {}).update({style["label"]: y})
    )
    records = [{"step": s, "critic_loss": 0.0, "slope_interpolates_max": 1.5 + s} for s in range(3)]
    plots.save_curves(tmp_path / "x.png", [records[0] | {"largest_quotient": 0.25}, *records[1:]], target=1.0)
    (bounds,) = (lines for axes, lines in drawn.items() if axes.get_title() == "Lipschitz constant, lower bounds")
    assert bounds == {"largest slope at interpolates": [1.5, 2.5, 3.5], "largest quotient of two points": [0.25]}
    drawn.clear()
    plots.save_curves(tmp_path / "y.png", records, target=1.0)  # of a critic with batch norm, for example
    assert [axes.get_title() for axes in drawn] == ["negative critic loss"]


def test_value_surfaces_have_the_same_frame_for_all_values(tmp_path):
    """Otherwise an animation would shake: the axes and the bar of colors are where they are for other values."""
    frames = []
    for scale in (1.0, 1e-4, 1e5):
        plots.save_value_surface(
            tmp_path / "a.png",
            lambda x, scale=scale: scale * x[:, 0],
            torch.zeros(1, 2),
            torch.zeros(1, 2),
            (-1.0, 1.0),
        )
        pixels = read_pixels(tmp_path / "a.png")
        rows, columns = (pixels < 60).mean(1), (pixels < 60).mean(0)  # black lines
        frames.append((np.flatnonzero(rows > 0.5).tolist(), np.flatnonzero(columns > 0.5).tolist()))
        assert (pixels[:, -3:] > 250).all()  # the numbers at the bar fit
    assert frames[0] == frames[1] == frames[2] and len(frames[0][0]) >= 2 and len(frames[0][1]) >= 4


def read_frames(path):
    with Image.open(path) as movie:
        for i in range(movie.n_frames):
            movie.seek(i)
            yield np.asarray(movie.convert("L"), dtype=float)


def test_animation_has_every_picture_in_order(tmp_path):
    shades = (0, 120, 250)
    for i, shade in enumerate(shades):
        Image.new("L", (8 if i else 9, 8), shade).save(tmp_path / f"{i}.png")
    used = plots.save_animation(tmp_path / "a.webp", [tmp_path / f"{i}.png" for i in range(3)])
    frames = list(read_frames(tmp_path / "a.webp"))
    assert used == (3, (8, 8)) and [frame.shape for frame in frames] == [(8, 8)] * 3
    assert [frame[4, 4] for frame in frames] == pytest.approx(shades, abs=8)


@pytest.mark.parametrize(
    "limit, count, width", [(10**6, 30, 64), (6_000, 25, 64), (5_000, 24, 59), (3_000, 24, 46)], ids=str
)
def test_animation_that_is_too_large_loses_pictures_and_then_size(tmp_path, limit, count, width):
    """Of noise in 30 shades: the first and the last picture are always there."""
    rng, paths = np.random.default_rng(0), [tmp_path / f"{i:02}.png" for i in range(30)]
    for i, path in enumerate(paths):
        pixels = 8 * i + rng.integers(0, 20, (32, 64, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    used, size = plots.save_animation(tmp_path / "a.webp", paths, limit=limit)
    assert (tmp_path / "a.webp").stat().st_size < limit
    means = [frame.mean() for frame in read_frames(tmp_path / "a.webp")]
    assert used == len(means) and size[0] == pytest.approx(2 * size[1], abs=1)
    assert (used, size[0]) == (pytest.approx(count, abs=1), pytest.approx(width, abs=8))
    assert means == sorted(means) and (means[0], means[-1]) == pytest.approx((9.5, 29 * 8 + 9.5), abs=4)


def test_points_are_connected_if_asked(tmp_path):
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    plots.save_points(tmp_path / "a.png", x, (-3.0, 3.0))
    plots.save_points(tmp_path / "b.png", x, (-3.0, 3.0), connect=True)
    assert read_pixels(tmp_path / "b.png").sum() < read_pixels(tmp_path / "a.png").sum()


@pytest.mark.parametrize(
    "certified",
    [{"certified": 30.0}, {"not_certified": "a layer has no rule"}, {"certified": 30.0, "low": 1.5, "high": 1.6}],
)
def test_lipschitz_picture_shows_every_number_of_the_report(tmp_path, certified, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    slopes = {"real": torch.rand(50).double(), "fake": torch.full((50,), 0.9).double()}
    report = {
        "lipschitz": {"largest_quotient": 0.0, "steepest": 1.5, **certified},
        "distances": {"gap": -0.5, "proved": {"bound": 0.1, "low": 0.05, "high": 0.15}},
        "expected_slope": 1.05,
        "expected_from": "exact W1",
    }
    plots.save_lipschitz(tmp_path / "x.png", slopes, report, title="7 updates")
    (figure,) = figures
    slope_axes, constant_axes, distance_axes = figure.axes
    texts = [text.get_text() for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels())]
    assert "real" in texts and "fake" in texts and any("-0.5" in t for t in texts) and any("0.1" in t for t in texts)
    assert figure._suptitle.get_text() == "7 updates"
    assert any(line.get_xdata()[0] == 1.05 for line in slope_axes.lines)
    on_box = "high" in certified  # the interval replaces the product of norms
    assert ("certified" in " ".join(texts)) == ("certified" in certified and not on_box)
    assert sum("proved on the box of the points" in text for text in texts) == 2 * on_box
    assert constant_axes.get_xlim()[0] > 0 and distance_axes.get_xlim()[0] < -0.5


def test_lipschitz_picture_of_a_critic_without_slopes_is_drawn(tmp_path):
    report = {"lipschitz": {"not_certified": "batch norm"}, "distances": {"gap": 0.1}}
    plots.save_lipschitz(tmp_path / "x.png", {}, report)
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_title_of_curves_is_the_given_one(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **keywords: titles.append(figure.get_suptitle()))
    records = [{"step": 0, "critic_loss": 1.0, "modes": 2, "points_w1": 1.0, "real_points_w1": 0.1}]
    for title in ("budget=cpu", ""):
        plots.save_curves(tmp_path / "a.png", records, target=1.0, title=title)
    assert titles == ["budget=cpu", ""]


@pytest.mark.parametrize("name", ["image", "points", "animation"])
def test_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch, name):
    """A link at its path is replaced and not followed. A full disk leaves what was there, and no part of the other."""
    Image.new("L", (8, 8)).save(tmp_path / "frame.png")
    path, other = tmp_path / "x.png", tmp_path / "other"
    save = {
        "image": lambda: plots.save_image(path, torch.zeros(8, 8, 3, dtype=torch.uint8)),
        "points": lambda: plots.save_points(path, torch.zeros(1, 2), (-1.0, 1.0)),
        "animation": lambda: plots.save_animation(path, [tmp_path / "frame.png"]),
    }[name]
    path.symlink_to(other)
    save()
    before = path.read_bytes()
    assert before[:4] in (b"\x89PNG", b"RIFF") and not path.is_symlink() and not other.exists()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as caught:
        save()
    assert caught.value.filename == str(path) and path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"frame.png", "x.png"}


def test_format_of_a_figure_is_png_whatever_the_settings_of_matplotlib_are(tmp_path):
    with matplotlib.rc_context({"savefig.format": "svg"}):
        plots.save_points(tmp_path / "x.png", torch.zeros(1, 2), (-1.0, 1.0))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
