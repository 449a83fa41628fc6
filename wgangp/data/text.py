"""Lines of a text file as one-hot vectors (V, L), with V symbols and L positions.

Paper: released gan_language.py and language_helpers.py. A symbol is a byte: the vocabulary has "unk" first and then the
bytes of the text, the most frequent first. A line is cut after L symbols and filled with the symbol `.
Differs: every tenth line is held out, where the released code trains on all. Empty lines are left out; its corpus has
none. Bytes that are equally frequent are in the order of their values, where the released code has an arbitrary order.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wgangp.data.stream import batch_indices
from wgangp.files import write_file

__all__ = ["PADDING", "UNKNOWN", "Text", "decode", "text", "write_lines"]

UNKNOWN, PADDING = "unk", "`"
# 28 of the 255 bytes other than 0 are control bytes: about 11 % of random data. Text has few, as in codes for colors.
# The bytes 128 ... 159 are not counted: they are parts of characters in UTF-8, and characters in Windows-1252.
CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\f\r")) + b"\x7f"
MAX_CONTROL_SHARE = 0.05
LARGEST = 2**16  # symbols per line, and of a vocabulary: each line takes so much memory


class Text:
    """A finite set of lines, shuffled anew in every epoch.

    Attributes: symbols, a list of V texts, one per id: "unk", or the character (of Latin-1) that stands for a byte;
    ids, for each split the symbols of every line (N, L); and those of wgangp/data/__init__.py.

    Args:
        ids: for each split, uint8 or int16 (N, L) in 0 ... V - 1.
        symbols: as the attribute.
    """

    span = (0.0, 1.0)

    def __init__(self, ids: dict[str, Tensor], symbols: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.ids, self.symbols = {split: x.to(self.device) for split, x in ids.items()}, list(symbols)
        self.shape = (len(symbols), ids["train"].shape[1])
        parts = (ids[split].cpu().contiguous().numpy().tobytes() for split in ("train", "heldout"))
        self.fingerprint = hashlib.sha256(b" ".join([f"{self.symbols} {self.shape}".encode(), *parts])).hexdigest()

    def batch(self, k: int, size: int, seed: int, split: str = "train", purpose: str = "data") -> tuple[Tensor]:
        """Return batch k of a split: one-hot vectors (size, V, L) in float32."""
        chosen = batch_indices(k, size, len(self.ids[split]), seed, f"{purpose}/{split}", self.device)
        ids = self.ids[split][chosen].long().unsqueeze(1)
        return (torch.zeros(size, *self.shape, device=self.device).scatter_(1, ids, 1.0),)


def text(
    path: str,
    length: int = 32,
    symbols: int = 257,
    wrap: bool = False,
    strict: bool = False,
    device: torch.device | str = "cpu",
) -> Text:
    """Read the lines of a text file. The first line that is not empty and every tenth one after it are held out.

    The result has .summary, one line with the numbers of lines and symbols, and of those that were changed.

    Args:
        path: the file, in UTF-8 or another encoding that has bytes of ASCII as line ends. A character of several bytes
            is several symbols.
        length: symbols per line (L).
        symbols: the largest size of the vocabulary (V), "unk" included. Rarer symbols become "unk".
        wrap: a line that is longer continues in the next one. False: its end is left out.
        strict: refuse a text with a line that would be cut, or with a symbol that would become "unk".

    Raises:
        ValueError: the file cannot be read, is not text or has fewer than two lines; strict is True and the text does
            not fit.
    """
    for name, value, least in (("length", length, 4), ("symbols", symbols, 2)):  # the log counts sequences of four
        if not least <= value <= LARGEST:
            raise ValueError(f"{name} = {value}: must be >= {least} and <= {LARGEST}")
    all_lines = _read_lines(path)
    lines = [line for line in all_lines if line]
    changes = {"empty lines left out": len(all_lines) - len(lines)}
    changes[f"lines {'wrapped' if wrap else 'cut'} after {length} symbols"] = sum(len(line) > length for line in lines)
    if wrap:
        lines = [line[start : start + length] for line in lines for start in range(0, len(line), length)]
    if len(lines) < 2:
        raise ValueError(
            f"path = {path}: has {len(lines)} line(s) that are not empty. At least two are needed, because one in ten"
            " is held out; data.wrap=true makes several of a long one"
        )
    contents = b"".join(line[:length].ljust(length, PADDING.encode()) for line in lines)
    table = np.frombuffer(contents, np.uint8).reshape(-1, length)
    counts = np.bincount(table.ravel(), minlength=256)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]  # the most frequent byte first
    frequent, rare = order[: symbols - 1], order[symbols - 1 :]
    changes[f"of {table.size:,} symbols are {UNKNOWN}"] = unknown = int(counts[rare].sum())
    if strict:
        _check_fit(path, lines, length, symbols, unknown)
    number = np.zeros(256, np.int16 if len(frequent) > 255 else np.uint8)  # byte -> id; 0 is unknown
    number[frequent] = np.arange(1, 1 + len(frequent))
    ids, held_out = torch.from_numpy(number[table]), torch.arange(len(table)) % 10 == 0
    data = Text({"train": ids[~held_out], "heldout": ids[held_out]}, [UNKNOWN, *map(chr, frequent)], device)
    changes[f"lines have {PADDING}, which is also the padding"] = sum(PADDING.encode() in line for line in lines)
    data.summary = (
        f"{len(data.ids['train']):,} lines to train on and {len(data.ids['heldout']):,} held out, of {length} symbols,"
        f" vocabulary: {len(data.symbols)}" + "".join(f"; {n:,} {what}" for what, n in changes.items() if n)
    )
    return data


def _read_lines(path: str) -> list[bytes]:
    """Return the lines of a file. ValueError if it cannot be read or is not text."""
    place = Path(path)
    try:
        if place.exists() and not (place.is_file() or place.is_dir()):  # reading a pipe would never end
            raise ValueError("it is not a file")
        raw = place.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"path = {path}: cannot be read ({reason}). It must be a text file") from error
    controls = len(raw) - len(raw.translate(None, CONTROL_BYTES))
    if b"\0" in raw or controls > MAX_CONTROL_SHARE * len(raw):
        reason = "bytes of value 0" if b"\0" in raw else f"{controls:,} control bytes among {len(raw):,}"
        raise ValueError(f"path = {path}: is not text, because it has {reason}. Save it as text in UTF-8")
    return raw.splitlines()


def _check_fit(path: str, lines: list[bytes], length: int, symbols: int, unknown: int) -> None:
    """Raise ValueError if a line would be cut or if symbols are unknown. The message has the settings that fit."""
    problems, remedies = [], []
    cut, longest = sum(len(line) > length for line in lines), max(map(len, lines))
    if cut:
        problems.append(f"{cut:,} of {len(lines):,} lines are longer than {length} symbols (the longest has {longest})")
        remedies.append(f"data.length={longest} (or data.wrap=true)")
    if unknown:
        total = length * len(lines)
        problems.append(f"{unknown:,} of {total:,} symbols are not among the {symbols - 1} most frequent")
    vocabulary = 1 + len(set(PADDING.encode()).union(*lines))
    if vocabulary > symbols:  # also if all of the rare symbols are in the ends of lines that are cut
        remedies.append(f"data.symbols={vocabulary}")
    if problems:
        raise ValueError(
            f"path = {path}: {' and '.join(problems)}; strict=true does not allow it. Set {' and '.join(remedies)}, or"
            " data.strict=false"
        )


def decode(ids: Tensor, symbols: Sequence[str]) -> list[str]:
    """Return the text of every row of ids (N, L), without the padding at its end. Bytes that are not UTF-8: U+FFFD.

    Differs: the released code writes the padding, too.
    """
    rows = ("".join(symbols[i] for i in row).rstrip(PADDING) for row in ids.tolist())
    return [row.encode("latin-1").decode("utf-8", "replace") for row in rows]


def write_lines(path: Path, x: Tensor, symbols: Sequence[str], note: str = "") -> None:
    """Write samples (N, V, L) as text: the most probable symbol of each position, one line per sample.

    A note is a line before the samples.
    """
    write_file(path, "".join(f"{line}\n" for line in [note] * bool(note) + decode(x.argmax(1), symbols)).encode())
