"""Pictures from a folder: which files are read, how they are converted, and what is refused before training."""

import io
import os
import re
import shutil
import socket
import zlib
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from helpers import train_run
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wgangp import cli
from wgangp.data.folder import find_pictures, read_header, read_picture
from wgangp.data.images import AHEAD, Images, Streamed, image_folder
from wgangp.distributed import World

GRAY, RGB, RED = (4, 6), (4, 6, 3), (255, 0, 0)


def save(path, pixels=90, mode=None, **options):
    """Save a picture of 6 x 4 with one value or color, or with the given pixels; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(pixels, Image.Image):
        if not isinstance(pixels, np.ndarray):
            pixels = np.full(GRAY if isinstance(pixels, int) else RGB, pixels, np.uint8)
        pixels = Image.fromarray(pixels)
    (pixels.convert(mode) if mode else pixels).save(path, **options)
    return path


def levels(root, **options):
    """The pixels of all training images, uint8 (N, C, H, W)."""
    return image_folder(str(root), **options).pictures["train"]


def names(root):
    return [picture.path.relative_to(root).as_posix() for picture in find_pictures(root)[0].values()]


# How a picture is converted


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "pgm"])
def test_16_bits_are_divided_by_257(suffix, tmp_path):
    values = np.array([[0, 127 * 257, 65535, 128, 129, 30000]], ">u2" if suffix == "tiff" else np.uint16)
    path = save(tmp_path / f"a.{suffix}", values)
    for channels in (1, 3):
        x = np.array(read_picture(path, channels)).reshape(1, 6, channels)
        assert (x == np.array([0, 127, 255, 0, 1, 117])[None, :, None]).all()
    assert read_header(path).gray and "of 16 bits (value / 257)" in read_header(path).changes


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused_by_name(dtype, tmp_path):
    save(tmp_path / "good.png")
    save(tmp_path / "a.tif", np.full(GRAY, 0.5 if dtype == np.float32 else 70000, dtype))
    for gb in (4.0, 0.0):
        with pytest.raises(ValueError, match=r"a\.tif cannot be read: .*mode [IF], .*white is not known.*save it anew"):
            image_folder(str(tmp_path), memory_gb=gb)


def transparent_pictures(folder):
    """Red where alpha is 0, in every way in which a file can say so; blue or black elsewhere."""
    alpha = np.zeros((4, 6), np.uint8)
    alpha[2:] = 255
    blue = np.zeros((4, 6, 4), np.uint8)
    blue[..., 3] = alpha
    blue[:2, :, 0], blue[2:, :, 2] = 255, 255
    rgba = Image.fromarray(blue)
    yield save(folder / "rgba.png", rgba), (0, 0, 255)
    yield save(folder / "rgba.webp", rgba, lossless=True, exact=True), (0, 0, 255)
    yield save(folder / "rgba.tif", rgba), (0, 0, 255)
    black_and_gray = np.stack([np.where(alpha > 0, 0, 77).astype(np.uint8), alpha], axis=2)
    yield save(folder / "la.png", Image.fromarray(black_and_gray, "LA")), (0, 0, 0)
    palette = Image.new("P", (6, 4))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 2, 6, 4))
    yield save(folder / "palette.png", palette, transparency=0), (0, 0, 255)
    yield save(folder / "palette.gif", palette, transparency=0), (0, 0, 255)
    yield save(folder / "key.png", rgba.convert("RGB"), transparency=RED), (0, 0, 255)
    sixteen = np.where(alpha > 0, 0, 77 * 257).astype(np.uint16)
    yield save(folder / "key16.png", sixteen, transparency=77 * 257), (0, 0, 0)


@pytest.mark.filterwarnings("ignore:'mode' parameter")
def test_transparent_pixels_are_put_on_white(tmp_path):
    for path, color in transparent_pictures(tmp_path):
        x = np.array(read_picture(path, 3))
        assert (x[:2] == 255).all() and (x[2:] == color).all(), path.name
        assert "transparent (put on white)" in read_header(path).changes, path.name
    half = save(tmp_path / "half.png", Image.new("RGBA", (6, 4), (100, 0, 255, 51)))  # alpha 0.2
    assert np.abs(np.array(read_picture(half, 3)).astype(int) - [224, 204, 255]).max() <= 1


def test_opaque_alpha_changes_nothing(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, RGB, dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(x), mode="RGBA")
    assert (np.array(read_picture(path, 3)) == x).all()


@pytest.mark.parametrize(
    "name, mode",
    [
        *(("a.png", "RGB"), ("a.bmp", "RGB"), ("a.tif", "RGB"), ("a.ppm", "RGB"), ("A.PNG", "RGB"), ("a.webp", "RGB")),
        *(("a.png", "P"), ("a.gif", "P"), ("a.tiff", "CMYK"), ("a.png", "L"), ("a.bmp", "1"), ("a.PGM", "L")),
    ],
)
def test_every_mode_and_suffix_is_read_as_pillow_converts_it(name, mode, tmp_path):
    picture = Image.new("RGB", (6, 4), (0, 255, 255)).convert(mode)
    options = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path / name, picture, **options)
    assert (np.array(read_picture(path, 3)) == np.array(picture.convert("RGB"))).all()
    assert read_header(path).gray == (mode in ("L", "1"))
    assert ("in CMYK" in read_header(path).changes) == (mode == "CMYK")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_picture_is_turned_upright(suffix, tmp_path):
    left = Image.new("L", (32, 16))
    left.paste(255, (0, 0, 16, 16))  # the left half is white
    whites = {1: "left", 3: "right", 6: "top", 8: "bottom", 2: "right", 5: "top", 9: "left"}  # 9 is not defined
    for orientation, white in whites.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        path = save(tmp_path / f"{orientation}.{suffix}", left.convert("RGB"), exif=exif)
        x = np.array(read_picture(path, 1))
        halves = {"left": x[:, : x.shape[1] // 2], "right": x[:, x.shape[1] // 2 :]}
        halves |= {"top": x[: x.shape[0] // 2], "bottom": x[x.shape[0] // 2 :]}
        means = {name: half.mean() for name, half in halves.items()}
        assert max(means, key=means.get) == white and means[white] > 230, (orientation, means)
        header = read_header(path)
        assert header.size == x.shape[::-1] == ((16, 32) if orientation in (5, 6, 8) else (32, 16))
        assert ("turned upright (EXIF)" in header.changes) == (orientation not in (1, 9))


def test_damaged_exif_data_is_ignored(tmp_path):
    path = save(tmp_path / "a.jpg", RED, exif=b"Exif\0\0not a header")
    assert read_header(path).size == read_picture(path, 3).size == (6, 4)
    assert read_header(path).changes == ()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_header_says_whether_a_file_is_cut_off(suffix, tmp_path):
    path = save(tmp_path / f"a.{suffix}", RED)
    assert read_header(path).whole
    path.write_bytes(path.read_bytes()[:-12])
    with suppress(ValueError):  # a WebP that is cut off cannot be opened
        assert not read_header(path).whole


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_first_of_several_frames_is_used(suffix, tmp_path):
    second = Image.new("RGB", (6, 4), (0, 0, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", RED, save_all=True, append_images=[second], **options)
    assert (np.array(read_picture(path, 3)) == RED).all()
    assert "with several frames (the first is used)" in read_header(path).changes


def test_channels_are_those_of_the_files(tmp_path):
    for i in range(12):
        save(tmp_path / f"{i:02}.png", i)
    gray = image_folder(str(tmp_path))
    assert gray.shape == (1, 4, 6) and torch.equal(levels(tmp_path, channels=3), levels(tmp_path).expand(-1, 3, -1, -1))
    save(tmp_path / "99.png", RED)
    assert image_folder(str(tmp_path)).shape == (3, 4, 6)
    assert "12 gray, as RGB (00.png, 01.png, ...)" in image_folder(str(tmp_path)).summary
    data = image_folder(str(tmp_path), channels=1)
    assert data.shape == (1, 4, 6) and (levels(tmp_path, channels=1)[-1] == 76).all()  # 0.299 * 255
    assert "1 in color, as gray (99.png)" in data.summary
    with pytest.raises(ValueError, match="channels = 4: must be 1"):
        image_folder(str(tmp_path), channels=4)


def test_gray_pictures_are_scaled_to_the_span_of_the_mnist_generator(tmp_path, configure, quick_pictures):
    for i in range(20):
        save(tmp_path / "digits" / f"{i}.png", np.full((28, 28), 12 * i, np.uint8))
    sizes = ("train.batch_size=4", "train.report_size=2", "train.steps=1", "device=cpu")
    widths = ("networks.generator.width=2", "networks.critic.width=2")
    root = f"data.root={tmp_path / 'digits'}"
    run = train_run(configure("data=image_folder", "networks=mnist", root, *sizes, *widths), tmp_path / "run")
    (x,) = run.data.batch(0, 18, seed=0)
    assert x.shape == (18, 1, 28, 28) and run.data.span == (0.0, 1.0)
    assert x.min() == 12 / 255 and x.max() == 19 * 12 / 255
    with pytest.raises(ValueError, match=r"got \(1, 28, 28\).*data.channels"):
        train_run(configure("data=image_folder", "networks=stacked_mnist", root, *sizes), tmp_path / "other")


# Which files are read


def test_hidden_files_and_other_files_are_skipped_and_counted(tmp_path):
    for i in range(11):
        save(tmp_path / "cat" / f"{i}.png")
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/cat/a.png", "cat/._0.png", "cat/@eaDir/0.png", ".b/c/0.png"):
        save(tmp_path / name)
    for name in ("Thumbs.db", "cat/labels.csv", "readme"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # opening it would wait for ever
    (tmp_path / "empty").mkdir()
    save(tmp_path / "folder.png" / "0.png")
    data = image_folder(str(tmp_path))
    assert len(data.pictures["train"]) == 10 and data.classes == 2
    assert "5 hidden (.b, .ipynb_checkpoints, ...), 4 other files (Thumbs.db, labels.csv, ...)" in data.summary
    assert "1 class folders without images (empty)" in data.summary and "\n" not in data.summary


def test_links_are_followed_and_every_file_is_read_once(tmp_path):
    root, away = tmp_path / "root", tmp_path / "away"
    for i in range(5):
        save(root / "cat" / f"{i}.png", i)
        save(away / f"{i}.png", 100 + i)
    (root / "a-loop").symlink_to(root)
    (root / "bird").symlink_to(away)
    (root / "ant").symlink_to(root / "cat")  # comes before cat, which keeps its own class
    (root / "cat" / "bird").symlink_to(away)
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "x.png").symlink_to(root / "cat" / "3.png")
    (root / "single").mkdir()
    (root / "single" / "y.png").symlink_to(save(tmp_path / "elsewhere" / "y.png"))
    found, skipped = find_pictures(root)
    labels = {str(picture.path.relative_to(root)): picture.label for picture in found.values()}
    assert labels == {
        **{f"cat/{i}.png": "cat" for i in range(5)},
        **{f"bird/{i}.png": "bird" for i in range(5)},
        "single/y.png": "single",
    }
    assert len(skipped["linked twice"]) == 4
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert levels(linked).equal(levels(root)) and image_folder(str(linked)).classes == 3


@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_link_that_leads_nowhere_is_named(target, tmp_path):
    save(tmp_path / "cat" / "0.png")
    (tmp_path / "dog").symlink_to(tmp_path / ("nowhere" if target == "nowhere" else "dog"))
    with pytest.raises(ValueError, match=r"dog \(a link to .*\) cannot be read: .*Remove it, or repair it"):
        image_folder(str(tmp_path))


def test_folder_and_file_without_permission_are_named(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / "cat" / f"{i}.png")
    real_scan, real_open = os.scandir, Image.open

    def refuse(path, function, name):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return function(path)

    with monkeypatch.context() as patch:  # root may read everything
        patch.setattr(os, "scandir", lambda path: refuse(path, real_scan, "cat"))
        with pytest.raises(ValueError, match=r"cat cannot be read: Permission denied\. Remove it, or repair it"):
            image_folder(str(tmp_path))
    monkeypatch.setattr(Image, "open", lambda path: refuse(path, real_open, "1.png"))
    with pytest.raises(ValueError, match=r"1\.png cannot be read: Permission denied"):
        image_folder(str(tmp_path))


def test_unusual_names_are_read_and_shown_on_one_line(tmp_path):
    odd = ["a b.png", "\u00e4\u00f6.png", "new\nline.png", "'quote\".png", os.fsdecode(b"latin-\xe4.png")]
    for name in odd:
        save(tmp_path / "a class" / name)
    assert len(names(tmp_path)) == 5
    for gb in (4.0, 0.0):
        assert len(image_folder(str(tmp_path), memory_gb=gb).labels["train"]) == 4
    (tmp_path / "a class" / "new\nline.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^'.*new\\nline\.png' cannot be read"):
        image_folder(str(tmp_path))


def test_pictures_in_no_class_folder_and_held_out_classes_are_noted(tmp_path):
    for i in range(3):
        save(tmp_path / "root" / "cat" / f"{i}.png")
        save(tmp_path / "heldout" / "dog" / f"{i}.png")
    save(tmp_path / "root" / "loose.png")
    summary = image_folder(str(tmp_path / "root"), str(tmp_path / "heldout")).summary
    assert summary.endswith("note: 1 in no class folder (loose.png), 1 classes with held-out images only (dog)")


# Held-out pictures are not trained on


@pytest.fixture
def nested(tmp_path):
    """11 pictures in root/cat, and 5 in root/heldout/cat."""
    for i in range(11):
        save(tmp_path / "root" / "cat" / f"{i:02}.png", i)
    for i in range(5):
        save(tmp_path / "root" / "heldout" / "cat" / f"{i}.png", 100 + i)
    return tmp_path / "root"


@pytest.mark.parametrize("through", ["name", "link to the folder", "link in root", "links to files", "dots"])
def test_held_out_folder_inside_of_root_is_not_trained_on(through, nested, tmp_path):
    heldout = nested / "heldout"
    if through == "link to the folder":
        heldout = tmp_path / "link"
        heldout.symlink_to(nested / "heldout")
    elif through == "link in root":
        heldout = (nested / "heldout").rename(tmp_path / "away")
        (nested / "heldout").symlink_to(heldout)
    elif through == "links to files":
        heldout = tmp_path / "files"
        heldout.mkdir()
        for path in (nested / "heldout" / "cat").iterdir():
            (heldout / path.name).symlink_to(path)
    elif through == "dots":
        heldout = nested / ".." / "root" / "heldout"
    for gb in (4.0, 0.0):
        data = image_folder(str(nested), str(heldout), memory_gb=gb)
        trained, held_out = ((data.batch(0, n, 0, split)[0][:, 0, 0, 0] + 1) * 127.5 for split, n in SIZES)
        assert sorted(trained.round().tolist()) == list(range(11))
        assert sorted(held_out.round().tolist()) == list(range(100, 105))
        assert "5 in root and held out" in data.summary


SIZES = (("train", 11), ("heldout", 5))


def test_root_inside_of_the_held_out_folder_is_refused(nested):
    for heldout in (nested, nested / "..", nested.parent):
        with pytest.raises(ValueError, match="all of its images are in heldout_root, too"):
            image_folder(str(nested), str(heldout))


# What is refused before training


def png_with_text(path):
    """A valid PNG that Pillow refuses: 2 MB of compressed text."""
    info = PngInfo()
    info.add_text("comment", "a" * 2_000_000, zip=True)
    return save(path, RED, pnginfo=info)


def bomb(path):
    """A small PNG that says it has 30,000 x 30,000 pixels."""
    save(path, RED)
    raw = bytearray(path.read_bytes())
    raw[16:24] = (30_000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)


def cut(path, share=0.6):
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    save(path, x)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def change_pixels(path):
    """Change two bytes in the middle: the file is whole, and its checksum is wrong."""
    cut(path, 1.0)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)


BROKEN = {
    "changed.png": change_pixels,
    "text.png": png_with_text,
    "bomb.png": bomb,
    "empty.png": lambda path: path.write_bytes(b""),
    "words.jpg": lambda path: path.write_bytes(b"<html>not found</html>"),
    **{f"cut.{suffix}": cut for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif", "ppm")},
    "almost.jpg": lambda path: cut(path, 0.99),
    "almost.png": lambda path: cut(path, 0.99),
}


@pytest.mark.parametrize("gb", [4.0, 0.0], ids=["memory", "streamed"])
@pytest.mark.parametrize("name", BROKEN)
def test_file_that_cannot_be_read_is_named_before_training(name, gb, tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", np.zeros((32, 32, 3), np.uint8))
    BROKEN[name](tmp_path / name)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} cannot be read: .+ Remove it, or repair it"):
        image_folder(str(tmp_path), memory_gb=gb, size=8)


def test_every_file_that_cannot_be_read_is_counted(tmp_path):
    save(tmp_path / "good.png")
    for i in range(8):
        (tmp_path / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        image_folder(str(tmp_path))
    assert str(error.value).count("cannot be read") == 5 and str(error.value).endswith("... and 3 more")


def test_suffix_does_not_decide_about_the_format(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", RED).rename(tmp_path / f"{i}.jpg")
    assert (levels(tmp_path)[0, :, 0, 0] == torch.tensor(RED)).all()


@pytest.mark.parametrize("gb", [4.0, 0.0], ids=["memory", "streamed"])
def test_other_size_is_named_before_training(gb, tmp_path):
    for i in range(12):
        save(tmp_path / f"{i:02}.png")
    save(tmp_path / "wide.png", np.zeros((4, 9), np.uint8))
    with pytest.raises(ValueError, match=r"wide.png is 4 x 9, but the first image is 4 x 6: set data.size"):
        image_folder(str(tmp_path), memory_gb=gb)


def test_file_that_disappears_or_changes_while_streaming_is_named(tmp_path):
    for i in range(12):
        save(tmp_path / f"{i:02}.png", RED)
    data = image_folder(str(tmp_path), memory_gb=0.0)
    (tmp_path / "05.png").unlink()
    with pytest.raises(ValueError, match=r"05\.png cannot be read: No such file.*Remove it, or repair it"):
        data.batch(0, 10, seed=0)
    cut(tmp_path / "05.png")
    with pytest.raises(ValueError, match=r"05\.png cannot be read"):
        data.batch(0, 10, seed=0)


def test_folder_without_pictures_says_what_it_has(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images.*Skipped: 1 other files \(a.npy\), 1 class folders without"):
        image_folder(str(tmp_path))
    for wrong in (tmp_path / "nowhere", tmp_path / "a.npy"):
        with pytest.raises(ValueError, match=r"no images.*It is not a folder"):
            image_folder(str(wrong))


# The numbers


def test_pictures_are_in_the_order_of_their_folders(tmp_path):
    for name in ("a-b/0.png", "a/0.png", "a/1.png", "b.png"):
        save(tmp_path / name)
    assert names(tmp_path) == ["a/0.png", "a/1.png", "a-b/0.png", "b.png"]


def test_pictures_in_memory_take_a_byte_per_value_and_need_no_classes(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png")
    data = image_folder(str(tmp_path))
    assert {x.dtype for x in data.pictures.values()} == {torch.uint8} and data.label_problem == ""


def test_only_training_batches_are_read_ahead(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i}.png")
    data = image_folder(str(tmp_path), memory_gb=0.0)
    data.batch(0, 2, 0, "heldout", "report")
    assert len(data.pending) == 0
    data.batch(0, 2, 0)
    assert len(data.pending) == AHEAD


def test_streamed_batches_and_labels_equal_those_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    for i, label in enumerate(["b", "a", "c"] * 8):
        save(tmp_path / label / f"{i}.png", rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    save(tmp_path / "a" / "rgba.png", Image.new("RGBA", (20, 10), (9, 8, 7, 99)))
    save(tmp_path / "b" / "deep.png", np.full((8, 8), 127 * 257, np.uint16))
    kept, streamed = (image_folder(str(tmp_path), size=8, memory_gb=gb) for gb in (4.0, 0.0))
    assert isinstance(kept, Images) and isinstance(streamed, Streamed)
    assert kept.summary.replace("in memory", "decoded in every epoch") == streamed.summary
    kept.labeled = streamed.labeled = True
    for k in range(8):
        for split, size in (("train", 7), ("heldout", 2)):
            for a, b in zip(kept.batch(k, size, 3, split), streamed.batch(k, size, 3, split), strict=True):
                assert torch.equal(a, b)


def test_fingerprint_of_a_folder_is_that_of_its_contents(tmp_path):
    for i in range(12):
        save(tmp_path / "root" / f"{i % 2}" / f"{i}.bmp", (i, 2 * i, 3 * i))
    kept, streamed = (image_folder(str(tmp_path / "root"), memory_gb=gb).fingerprint for gb in (4.0, 0.0))
    assert kept == streamed == "ffc559373d2da0449eb741542886d7666a5682c95661e156a4a0bf17444bcc56"
    shutil.copytree(tmp_path / "root", tmp_path / "copy")
    save(tmp_path / "copy" / ".hidden" / "0.bmp")
    assert image_folder(str(tmp_path / "copy")).fingerprint == kept
    for memory_gb in (4.0, 0.0):  # file 0 is held out; its length stays
        for i in (0, 1):
            path = tmp_path / "copy" / f"{i % 2}" / f"{i}.bmp"
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            assert image_folder(str(tmp_path / "copy"), memory_gb=memory_gb).fingerprint != kept
            path.write_bytes(content)
    (tmp_path / "copy" / "1" / "1.bmp").rename(tmp_path / "copy" / "0" / "1.bmp")  # another label
    assert image_folder(str(tmp_path / "copy")).fingerprint != kept


@pytest.mark.parametrize("rank", [0, 1])
def test_summary_is_one_line_of_the_first_rank(rank, tmp_path, monkeypatch, capsys):
    @contextmanager
    def join_ranks(*arguments):
        yield World(rank)

    for i in range(12):
        save(tmp_path / "root" / "cat" / f"{i:02}.png", np.full((28, 28), i, np.uint8))
    save(tmp_path / "root" / ".hidden.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "join_ranks", join_ranks)
    monkeypatch.setattr("wgangp.config.try_run", lambda *_: None)  # there is no rank 1 of 1 rank, which would update
    monkeypatch.setattr(cli, "train", lambda folder, run, steps, **options: steps)
    sizes = ("train.batch_size=2", "train.report_size=2", "device=cpu")
    monkeypatch.setattr("sys.argv", ["train.py", "data=image_folder", "data.root=root", "networks=mnist", *sizes])
    GlobalHydra.instance().clear()
    cli.main("train")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data: ")]
    images = "10 images to train on and 2 held out, 1 x 28 x 28, classes: 1, in memory"
    assert lines == [f"data: {images}; skipped: 1 hidden (.hidden.png)"][: 1 - rank]


def bomb(sides):
    """A PNG of a few bytes whose header says that it has so many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    raw[16:24] = np.array(sides, ">u4").tobytes()
    raw[29:33] = np.array(zlib.crc32(raw[12:29]), ">u4").tobytes()
    return bytes(raw)


@pytest.mark.parametrize("sides", [(20_000, 20_000), (9_000, 9_000), (2**31 - 1, 2**31 - 1)], ids=str)
@pytest.mark.parametrize("gb", [4.0, 0.0], ids=["in memory", "streamed"])
def test_picture_of_too_many_pixels_is_named_and_not_decoded(sides, gb, tmp_path):
    for i in range(20):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:02}.png")
    (tmp_path / "bomb.png").write_bytes(bomb(sides))
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read: .*(pixels|broken|invalid)"):
        image_folder(str(tmp_path), size=8, memory_gb=gb)


def test_pipe_device_socket_and_link_loop_do_not_hang(tmp_path):
    for i in range(20):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:02}.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
        data = image_folder(str(tmp_path))
    assert data.summary.startswith("18 images to train on and 2 held out")
    assert "3 other files (zero, pipe.png, ...)" in data.summary and "1 linked twice (loop)" in data.summary
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    with pytest.raises(ValueError, match=r"self\.png \(a link to .*self\.png\) cannot be read: "):
        image_folder(str(tmp_path))
