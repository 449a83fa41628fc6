"""Files of pictures: which files of a folder are read, and how each becomes 8-bit gray or RGB."""

import errno
import hashlib
import os
import stat
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from wgangp.files import digest_file

__all__ = [
    "SUFFIXES",
    "Picture",
    "check_files",
    "count_reasons",
    "digest_files",
    "find_pictures",
    "format_path",
    "name_file_in_errors",
    "read_header",
    "read_picture",
    "verify_picture",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PIXELS = 80_000_000  # that a picture may have; at more, Pillow warns, and at twice as many it raises an error
HIDDEN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # made by other programs; so is every name that begins with a dot
GRAY = ("1", "L", "LA")
COLOR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # what is in the last bytes of a whole file


class Picture(NamedTuple):
    """A file, and its class: the name of the folder directly below the root; empty for a file in the root."""

    path: Path
    label: str


def find_pictures(root: Path) -> tuple[dict[str, Picture], dict[str, set[str]]]:
    """Find the pictures in a folder and its subfolders. Links are followed, and every real file is found once.

    Returns:
        the pictures by their real path, sorted by path; what was skipped, by reason.

    Raises:
        ValueError: there are no pictures; a folder cannot be read; a link leads nowhere.
    """
    prefix, pictures, classes = len(os.path.join(root, "")), {}, {}  # noqa: PTH118 - Path drops the last slash
    skipped: dict[str, set[str]] = defaultdict(set)
    with name_file_in_errors(root):
        links = deque([str(root)] if root.is_dir() else [])  # links come after what is there, which keeps its class
    seen = set()
    while links:
        with name_file_in_errors(links[0]):
            real = Path(links[0]).resolve(strict=True)
        stack = [(links.popleft(), str(real), real.is_dir(), real.is_file())]
        while stack:
            path, real, is_folder, is_file = stack.pop()
            label = path[prefix:].split("/")[0] if is_folder or "/" in path[prefix:] else ""
            if real in seen:
                skipped["linked twice"].add(path)
            elif is_folder:
                classes.setdefault(label, path)
                with name_file_in_errors(path), os.scandir(path) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                        below = f"{real}/{entry.name}"
                        if entry.name.startswith(".") or entry.name in HIDDEN:
                            skipped["hidden"].add(below)
                        elif entry.is_symlink():
                            links.append(entry.path)
                        else:
                            stack.append((entry.path, below, entry.is_dir(), entry.is_file()))
            elif is_file and path.lower().endswith(SUFFIXES):
                pictures[real] = Picture(Path(path), label)
            else:
                skipped["other files"].add(real)
            seen.add(real)
    empty = classes.keys() - {"", *(picture.label for picture in pictures.values())}
    skipped["class folders without images"] = {classes[label] for label in empty}
    if not pictures:
        reasons = count_reasons(skipped)
        reason = (f" Skipped: {reasons}." if reasons else "") if root.is_dir() else " It is not a folder."
        raise ValueError(
            f"{format_path(root)}: there are no images ({', '.join(SUFFIXES)}) in it or below it.{reason}"
            " Choose another data.root"
        )
    return dict(sorted(pictures.items(), key=lambda item: item[1].path.parts)), skipped


class Header(NamedTuple):
    """What a file says before it is decoded.

    size        (W, H), upright
    gray        it has one channel
    whole       it is known not to be cut off
    changes     how decoding changes it, in words
    """

    size: tuple[int, int]
    gray: bool
    whole: bool
    changes: tuple[str, ...]


def read_header(path: Path) -> Header:
    """Read the header of a picture. ValueError names a file that cannot be read."""
    with name_file_in_errors(path), _open(path) as picture:
        gray, orientation = _is_gray(picture), 1
        with suppress(Exception):  # damaged EXIF data is ignored; the getexif of a PNG would decode the file
            orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
        changes = {
            "of 16 bits (value / 257)": picture.mode.startswith("I"),
            "transparent (put on white)": picture.has_transparency_data,
            f"in {picture.mode}": picture.mode in ("CMYK", "YCbCr"),
            "turned upright (EXIF)": orientation in range(2, 9),
            "with several frames (the first is used)": getattr(picture, "is_animated", False),
        }
        swaps_sides = orientation in range(5, 9) and picture.format != "TIFF"  # which Pillow turns, and its size, too
        whole = picture.format == "WEBP"  # a part of one cannot be opened
        if picture.format in ENDS:
            picture.fp.seek(0, os.SEEK_END)
            picture.fp.seek(max(0, picture.fp.tell() - 64))
            whole = ENDS[picture.format] in picture.fp.read()
        size = picture.size[::-1] if swaps_sides else picture.size
        return Header(size, gray, whole, tuple(change for change, changed in changes.items() if changed))


def verify_picture(path: Path) -> None:
    """Raise ValueError if the checksums of a PNG are wrong. Other formats have none that can be checked quickly."""
    with name_file_in_errors(path), _open(path) as picture:
        picture.verify()


def read_picture(path: Path, channels: int) -> Image.Image:
    """Decode a picture as 8-bit gray (1 channel) or RGB (3 channels). ValueError names a file that cannot be read.

    16 bits: value / 257. Transparent pixels are put on white. A picture is turned upright as its EXIF says. Of several
    frames the first is used. ICC profiles are not applied.
    """
    with name_file_in_errors(path), _open(path) as picture:
        _is_gray(picture)
        picture.load()
        with suppress(Exception):  # damaged EXIF data is ignored
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I"):
            value = np.array(picture, dtype=np.float64)
            value[value == picture.info.get("transparency", -1)] = 65535
            picture = Image.fromarray(np.rint(value / 257).astype(np.uint8))
        elif picture.has_transparency_data:
            layers = Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")
            picture = Image.alpha_composite(*layers)
        return picture.convert("L" if channels == 1 else "RGB")


def _open(path: Path) -> Image.Image:
    """Open a picture without decoding it.

    Raises:
        OSError: it is not a file: opening a pipe would never end.
        ValueError: it would fill the memory. A small file can say any size.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    picture = Image.open(path)
    if picture.width * picture.height > PIXELS:
        picture.close()
        raise ValueError(f"it has {picture.width} x {picture.height} pixels, and at most {PIXELS:,} are read")
    return picture


def _is_gray(picture: Image.Image) -> bool:
    """Return True if a picture has one channel. ValueError for pixels without a known white."""
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if not sixteen and picture.mode not in (*GRAY, *COLOR):
        raise ValueError(f"its pixels are of mode {picture.mode}, and the value of white is not known")
    return sixteen or picture.mode in GRAY


@contextmanager
def name_file_in_errors(path: Path | str) -> Iterator[None]:
    """Turn every error of the with block into a ValueError that names the file and the remedy."""
    try:
        yield
    except Exception as error:  # Pillow and its plugins raise many types for a file that they cannot read
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        link = f" (a link to {format_path(Path(path).readlink())})" if os.path.islink(path) else ""  # noqa: PTH114 - raises nothing
        anew = "" if getattr(error, "strerror", None) else ": save it anew, for example as a PNG of 8 bits without text"
        raise ValueError(
            f"{format_path(path)}{link} cannot be read: {reason}. Remove it, or repair it{anew}"
        ) from error


def check_files(function: Callable[[Any], Any], items: Sequence[Any], workers: int, label: str) -> list[Any]:
    """Call a function with every item, in threads, and return the results.

    Raises:
        ValueError: the function raised it for some items. The message has the first five errors.
    """

    def attempt(item: Any) -> Any:
        try:
            return function(item)
        except ValueError as error:
            return error

    results = []
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(items), desc=label, leave=False, disable=None) as bar:
        for start in range(0, len(items), 1000):  # so that a million files do not wait in the queue at once
            for result in pool.map(attempt, items[start : start + 1000]):
                results.append(result)
                bar.update()
    errors = [str(result) for result in results if isinstance(result, ValueError)]
    if errors:
        hidden = f"\n... and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise ValueError("\n".join(errors[:5]) + hidden)
    return results


def digest_files(paths: dict[str, list[Path]], labels: dict[str, Tensor], workers: int = 4) -> str:
    """Return the sha256 of the contents of files and their labels, per split and in order; not of their names.

    It is the fingerprint of a folder of images, whether they are kept in memory or not.
    """
    digests = check_files(_digest_file, [path for part in paths.values() for path in part], workers, "reading")
    values = {split: y.tolist() for split, y in labels.items()}
    return hashlib.sha256(f"{values} {digests}".encode()).hexdigest()


def _digest_file(path: Path) -> str:
    with name_file_in_errors(path):
        return digest_file(path)


def count_reasons(reasons: dict[str, Collection[Path | str]]) -> str:
    """Return one line: for each reason the number of files or folders, and the names of two of them."""
    parts = []
    for reason, paths in reasons.items():
        if paths:
            names = [format_path(Path(path).name) for path in sorted(map(str, paths))[:2]]
            parts.append(f"{len(paths):,} {reason} ({', '.join(names)}{', ...' if len(paths) > 2 else ''})")
    return ", ".join(parts)


def format_path(path: Path | str) -> str:
    """Return a path as text: as it is, or in quotes and with escapes if it has characters that cannot be printed."""
    return str(path) if str(path).isprintable() else ascii(str(path))
