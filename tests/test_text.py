"""Text as data: lines, vocabulary, one-hot batches, and what is refused."""

import os
from collections import Counter

import pytest
import torch

from wgangp.data.text import decode, text, write_lines


@pytest.fixture
def write(tmp_path):
    """write(contents) -> the path of a file with these bytes, or with this text in UTF-8."""

    def write_file(contents):
        path = tmp_path / "text.txt"
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        return str(path)

    return write_file


def read_split(data, split):
    return decode(data.ids[split], data.symbols)


def test_lines_are_cut_and_padded_and_every_tenth_is_held_out(write):
    lines = [f"{i:02} " + "x" * i for i in range(23)]
    data = text(write("\n".join(lines) + "\n"), length=8)
    expected = [line[:8] for line in lines]
    assert read_split(data, "heldout") == expected[::10]
    assert read_split(data, "train") == [line for i, line in enumerate(expected) if i % 10]
    assert data.ids["train"].dtype == torch.uint8 and data.ids["train"].shape == (20, 8)
    padding = data.symbols.index("`")
    assert data.ids["heldout"][0].tolist()[3:] == [padding] * 5  # "00 " has three symbols


def test_line_ends_of_other_systems_are_not_symbols_and_empty_lines_are_left_out(write):
    data = text(write(b"one\r\n\r\ntwo\r\n\n\nthree"), length=5)
    assert read_split(data, "heldout") == ["one"] and read_split(data, "train") == ["two", "three"]
    assert "3 empty lines left out" in data.summary


def test_vocabulary_is_unk_and_then_the_bytes_by_frequency_with_the_padding(write):
    lines = ["abca", "bc", "cabbage", "c"]
    data = text(write("\n".join(lines)), length=8)
    counts = Counter("".join(line.ljust(8, "`") for line in lines))
    assert data.symbols == ["unk", *sorted(counts, key=lambda symbol: (-counts[symbol], symbol))]
    assert data.shape == (1 + len(counts), 8) and data.span == (0.0, 1.0)


def test_rare_symbols_are_unk_and_are_counted(write):
    data = text(write("aaaa\nbbba\nccaz"), length=4, symbols=4)
    assert data.symbols == ["unk", "a", "b", "c"]  # of a 6, b 3, c 2, z 1
    assert read_split(data, "train") == ["bbba", "ccaunk"]
    assert "1 of 12 symbols are unk" in data.summary and "vocabulary: 4" in data.summary


def test_all_bytes_have_a_symbol_by_default(write):
    every = bytes(b for b in range(1, 256) if b not in b"\r\n")
    line = every + b"text" * 100  # so that control bytes are rare
    data = text(write(line + b"\n" + line), length=len(line))
    assert len(data.symbols) == 1 + len(every) == 254  # every byte but 0, 10 and 13
    assert data.ids["train"][0].unique().tolist() == list(range(1, 254))
    assert "are unk" not in data.summary


def test_bytes_of_a_binary_file_are_refused_also_without_zeros(write):
    rng = torch.Generator().manual_seed(0)
    for size in (300, 3_000):
        contents = bytes(torch.randint(1, 256, (size,), generator=rng).tolist())
        with pytest.raises(ValueError, match=r"is not text, because it has \d+ control bytes .* as text in UTF-8"):
            text(write(contents))


def test_text_in_latin_1_or_utf_8_with_few_control_bytes_is_read(write):
    words = "\u00e4\u00f6\u00fc\u00df \u00e9t\u00e9\t\u00bfqu\u00e9?\f\r\n"
    for contents in ((words * 3).encode("latin-1"), words * 3, "\u4f60\u597d\u0440\u0443\n" * 3, "\t\f\n\ta\n\tb\n"):
        assert len(text(write(contents)).ids["train"]) > 0
    log = "\x1b[32mINFO\x1b[0m started, with a sentence that has the usual length\n" * 3
    assert len(text(write(log)).ids["train"]) == 2  # the codes of colors


def test_characters_of_several_bytes_are_written_as_they_were_read(write, tmp_path):
    data = text(write("na\u00efve caf\u00e9\nstra\u00dfe"), length=12)
    assert read_split(data, "heldout") == ["na\u00efve caf\u00e9"] and read_split(data, "train") == ["stra\u00dfe"]
    (x,) = data.batch(0, 1, seed=0)
    (tmp_path / "out.txt").symlink_to(tmp_path / "other.txt")  # is replaced
    write_lines(tmp_path / "out.txt", x, data.symbols)
    assert not (tmp_path / "other.txt").exists()
    assert (tmp_path / "out.txt").read_bytes() == "stra\u00dfe\n".encode()
    write_lines(tmp_path / "out.txt", x, data.symbols, "budget=cpu")
    assert (tmp_path / "out.txt").read_bytes() == "budget=cpu\nstra\u00dfe\n".encode()
    broken = decode(torch.tensor([[data.symbols.index("\xc3"), data.symbols.index("a")]]), data.symbols)
    assert broken == ["\ufffda"]  # half of a character


def test_wrapped_lines_keep_all_of_the_text(write):
    prose = "The quick brown fox jumps over the lazy dog."
    data = text(write(prose + "\nend"), length=10, wrap=True)
    assert read_split(data, "heldout") == ["The quick "]
    assert "".join(read_split(data, "heldout") + read_split(data, "train")) == prose + "end"
    assert "1 lines wrapped after 10 symbols" in data.summary


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_batch_is_one_hot_and_a_function_of_its_position(write, split):
    data = text(write("\n".join(f"{i:03}" for i in range(200))), length=4)
    (x,) = data.batch(3, 5, seed=1, split=split)
    assert x.shape == (5, *data.shape) and x.dtype == torch.float32
    assert x.sum(1).eq(1).all() and x.max() == 1 and x.eq(0).sum() == x.numel() - 5 * 4
    assert torch.equal(x, data.batch(3, 5, seed=1, split=split)[0])
    others = [data.batch(2, 5, 1, split), data.batch(3, 5, 2, split), data.batch(3, 5, 1, split, "report")]
    assert not any(torch.equal(x, other) for (other,) in others)
    epoch = [
        line
        for k in range(len(data.ids[split]) // 5)
        for line in decode(data.batch(k, 5, 1, split)[0].argmax(1), data.symbols)
    ]
    assert sorted(epoch) == sorted(read_split(data, split))  # each line once per epoch


def test_fingerprint_identifies_the_text_and_the_settings(write):
    first = text(write("one\ntwo\nthree"), length=5)
    assert first.fingerprint == text(write("one\ntwo\nthree"), length=5).fingerprint
    changed = ("one\ntwo\nthrew", "neo\ntwo\nthree")  # a line to train on, and the held-out line
    others = [text(write("one\ntwo\nthree"), length=6), *(text(write(contents), length=5) for contents in changed)]
    assert first.fingerprint not in {other.fingerprint for other in others}
    a, c = text(write("aab\naab"), length=4), text(write("ccd\nccd"), length=4)
    assert torch.equal(a.ids["train"], c.ids["train"]) and a.fingerprint != c.fingerprint  # equal ids, other symbols


@pytest.mark.parametrize(
    "contents, options, message",
    [
        (b"", {}, r"has 0 line\(s\) that are not empty. At least two"),
        (b"\n\n\n", {}, r"has 0 line\(s\)"),
        (b"one line without an end", {}, r"has 1 line\(s\).* data\.wrap=true"),
        ("utf-16 text\nof two lines".encode("utf-16"), {}, "is not text, because it has bytes of value 0"),
        (b"one\ntwo", {"length": 3}, "length = 3: must be >= 4 and <= 65536"),
        (b"one\ntwo", {"length": 2**31}, "length = 2147483648: must be >= 4 and <= 65536"),
        (b"one\ntwo", {"symbols": 1}, "symbols = 1: must be >= 2"),
    ],
    ids=str,
)
def test_text_that_cannot_be_used_is_refused(write, contents, options, message):
    with pytest.raises(ValueError, match=message):
        text(write(contents), **options)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_pipe_and_device_are_refused(make, tmp_path):
    make(tmp_path / "text.txt")
    with pytest.raises(ValueError, match=r"cannot be read \(it is not a file"):
        text(str(tmp_path / "text.txt"))


def test_missing_file_and_folder_are_refused(tmp_path):
    for path, reason in ((tmp_path / "none.txt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=rf"cannot be read \({reason}.*It must be a text file"):
            text(str(path))


@pytest.mark.parametrize(
    "options, problems, remedies",
    [
        (
            {"length": 4, "symbols": 4},  # a, b, `, z: 3 3 2 2; c, d once
            "1 of 3 lines are longer than 4 symbols (the longest has 6) and 4 of 12 symbols are not among the 3 most"
            " frequent",
            "data.length=6 (or data.wrap=true) and data.symbols=9",
        ),
        (
            {"length": 4},
            "1 of 3 lines are longer than 4 symbols (the longest has 6)",
            "data.length=6 (or data.wrap=true)",
        ),
        (
            {"length": 4, "symbols": 7},  # e and f are only in the end that is cut
            "1 of 3 lines are longer than 4 symbols (the longest has 6)",
            "data.length=6 (or data.wrap=true) and data.symbols=9",
        ),
        ({"length": 6, "symbols": 8}, "1 of 18 symbols are not among the 7 most frequent", "data.symbols=9"),
        (
            {"length": 4, "symbols": 8, "wrap": True},
            "1 of 16 symbols are not among the 7 most frequent",
            "data.symbols=9",
        ),
    ],
)
def test_strict_text_names_what_does_not_fit_and_the_settings_that_do(write, options, problems, remedies):
    path = write("abcdef\nab\nabzz")
    with pytest.raises(ValueError) as error:
        text(path, **options, strict=True)
    assert str(error.value) == (
        f"path = {path}: {problems}; strict=true does not allow it. Set {remedies}, or data.strict=false"
    )
    fitting = {"length": 6} if "data.length" in remedies else {}
    fitting |= {"symbols": 9} if "data.symbols" in remedies else {}
    text(path, **options | fitting, strict=True)
    if "data.wrap" in remedies:
        assert text(path, **options | fitting | {"length": 4, "wrap": True}, strict=True).shape[1] == 4


def test_padding_symbol_in_the_text_is_counted(write):
    assert "1 lines have `, which is also the padding" in text(write("a`b\nc\nd")).summary
