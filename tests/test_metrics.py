import math
import random
from collections import Counter

import pytest
import torch

from wgangp.data.text import Text
from wgangp.data.toy import gaussians8
from wgangp.metrics.modes import mode_coverage
from wgangp.metrics.ngrams import count_ngrams, js_divergence, ngram_divergence


def test_data_covers_every_mode_and_has_the_mass_within_three_sd():
    data = gaussians8()
    scores = mode_coverage(data.batch(0, 20_000, seed=0)[0], data.centers, data.sd)
    assert scores["modes"] == 8
    assert scores["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.003)


def test_mode_is_covered_by_one_sample_within_three_sd():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.tensor([[0.29, 0.0], [10.31, 0.0], [5.0, 5.0], [0.0, 9.9]])
    assert mode_coverage(x, centers, sd=0.1) == {"modes": 2, "high_quality": 0.5}
    assert mode_coverage(x + 5, centers, sd=0.1) == {"modes": 0, "high_quality": 0.0}


def js_of_texts(a, b, n):
    """The divergence in bits of two lists of strings, with Counter and the definition."""
    p, q = (Counter(line[i : i + n] for line in lines for i in range(len(line) - n + 1)) for lines in (a, b))
    divergence = 0.0
    for part in (p, q):
        for ngram, count in part.items():
            share = count / part.total()
            middle = (p[ngram] / p.total() + q[ngram] / q.total()) / 2
            divergence += share * math.log2(share / middle) / 2
    return divergence


def to_ids(lines):
    return torch.tensor([[ord(symbol) - ord("a") for symbol in line] for line in lines], dtype=torch.uint8)


def draw_lines(count, length, weights):
    rng = random.Random(count)
    return ["".join(rng.choices("abc", weights, k=length)) for _ in range(count)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_divergence_of_ngrams_is_that_of_the_definition(n, monkeypatch):
    monkeypatch.setattr("wgangp.metrics.ngrams.ROWS", 7)  # of 20 and 30 lines
    a, b = draw_lines(20, 9, (3, 2, 1)), draw_lines(30, 9, (1, 1, 5))
    counted = [count_ngrams(to_ids(lines), n, 3) for lines in (a, b)]
    assert js_divergence(*counted) == pytest.approx(js_of_texts(a, b, n), abs=1e-12)
    assert js_divergence(*reversed(counted)) == pytest.approx(js_of_texts(a, b, n), abs=1e-12)
    assert js_of_texts(a, b, n) > 0.1


def test_ngrams_stay_within_a_line():
    codes, counts = count_ngrams(torch.tensor([[0, 1, 2], [2, 1, 0]]), 2, size=3)
    assert dict(zip(codes.tolist(), counts.tolist(), strict=True)) == {1: 1, 5: 1, 7: 1, 3: 1}  # 01, 12, 21, 10


def test_divergence_is_zero_for_equal_shares_and_one_without_common_ngrams():
    once = count_ngrams(to_ids(["abcab"]), 2, 3)
    assert js_divergence(once, count_ngrams(to_ids(["abcab"] * 9), 2, 3)) == 0
    assert js_divergence(once, count_ngrams(to_ids(["cccc"]), 2, 3)) == pytest.approx(1, abs=1e-12)


def test_ngrams_of_every_byte_have_numbers_of_their_own():
    rows = torch.tensor([[256, 256, 256, 256], [256, 256, 256, 255], [0, 256, 256, 256]], dtype=torch.int16)
    assert count_ngrams(rows, 4, size=257)[0].tolist() == [257**3 - 1, 257**4 - 2, 257**4 - 1]


def test_samples_are_compared_with_the_training_text_and_held_out_lines_are_the_reference():
    train, heldout, fake = draw_lines(50, 6, (3, 2, 1)), draw_lines(11, 6, (2, 2, 1)), draw_lines(9, 6, (1, 1, 1))
    data = Text({"train": to_ids(train), "heldout": to_ids(heldout)}, "abc")
    values = ngram_divergence(to_ids(fake[:4]), data)
    assert sorted(values) == sorted(f"{kind}js{n}" for kind in ("", "reference_") for n in range(1, 5))
    for n in range(1, 5):
        assert values[f"js{n}"] == pytest.approx(js_of_texts(fake[:4], train, n), abs=1e-12)
        spread = [heldout[i] for i in (0, 2, 4, 6)]  # as many lines as there are samples
        assert values[f"reference_js{n}"] == pytest.approx(js_of_texts(spread, train, n), abs=1e-12)
    few = ngram_divergence(to_ids(fake * 2), data)  # 18 samples, but 11 held-out lines
    assert few["js2"] == pytest.approx(js_of_texts((fake * 2)[:11], train, 2), abs=1e-12)
    assert few["reference_js2"] == pytest.approx(js_of_texts(heldout, train, 2), abs=1e-12)


def test_training_text_is_counted_once(monkeypatch):
    data = Text({split: to_ids(draw_lines(20, 6, (1, 1, 1))) for split in ("train", "heldout")}, "abc")
    ngram_divergence(data.ids["heldout"], data)
    counted = []
    monkeypatch.setattr(
        "wgangp.metrics.ngrams.count_ngrams", lambda ids, *rest: counted.append(len(ids)) or count_ngrams(ids, *rest)
    )
    ngram_divergence(data.ids["heldout"][:7], data)
    ngram_divergence(data.ids["heldout"][:7], data)
    assert counted == [7] * 12  # for each n the samples twice, the reference once, the 20 lines of the text never
