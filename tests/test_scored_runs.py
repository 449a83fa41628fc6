"""Figures of scored runs: the rows as commands, their measurement, picture and table, and published numbers."""

import json
import re
import shlex
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from wgangp import config
from wgangp.config import CONF, build_run, train_options
from wgangp.figures import image_runs, scored_runs
from wgangp.figures.image_runs import draw_pictures, encode_pictures
from wgangp.figures.scored_runs import NUMBERS, STUDIES, ScoredRuns
from wgangp.figures.study import reproduce, train_command
from wgangp.generate import generate
from wgangp.logs import read_lines, read_metrics
from wgangp.metrics import scores
from wgangp.seeds import draw_latent
from wgangp.tables import markdown_table

CPU = torch.device("cpu")
BUDGETS = ("cpu", "paper")
RIGHT, CHANNELS = "one norm per sample", "norms over the channels, eps per element"
ROWS = [(study, row) for study, entry in STUDIES.items() for row in entry.rows]
TINY = [
    *("networks.generator.width=2", "networks.critic.width=2", "train.batch_size=8", "train.report_size=8"),
    "train.generator_batch_size=null",
]


@pytest.fixture(autouse=True)
def _quick(quick_pictures, quick_reports, small_features, monkeypatch):
    monkeypatch.setattr(image_runs, "LINES", 4)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"line {i % 7} of {i}, and some words\n" for i in range(300)))
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with random images of 32 x 32 in ten classes: train/ with three per class, heldout/ with two."""
    root, rng = tmp_path_factory.mktemp("classes"), torch.Generator().manual_seed(0)
    for split, label, i in product(("train", "heldout"), range(10), range(3)):
        if (split, i) != ("heldout", 2):
            (root / split / str(label)).mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (32, 32, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / split / str(label) / f"{i}.png")
    return root


@pytest.fixture
def build_small(small_mnist, pictures, text_file):
    """build_small(study) -> the figure with runs of two updates, which are scored three times."""
    folders = {"options": ["data=image_folder", f"data.heldout_root={pictures}/heldout"]}
    folders["data_root"] = str(pictures / "train")
    own = {
        "toy_released": {"score": "points", "options": [], "data_root": None, "rows": ["width 128"]},
        "stacked_mnist": {"score": "modes", "options": ["networks=mnist", "data.count=60"]},
        "mnist": {"score": "classifier", "options": []},
        "language": {"score": "ngrams", "options": [], "data_root": str(text_file)},
        "cifar_curves": {"score": "efficientnet", **folders},
        "cifar_table": {"score": "inception", **folders},
    }

    def build(study, **changed):
        settings = {"n": 12, "steps": 2, "points": 2, "data_root": str(small_mnist)} | own[study] | changed
        return ScoredRuns(study, **settings | {"options": [*settings["options"], *TINY]})

    return build


def build_figure(configure, study, budget, *overrides):
    root = ["figure.data_root=FILE"] if study == "language" else []
    cfg = configure(f"figure={study}", f"budget={budget}", *root, *overrides, name="reproduce")
    return config.build(cfg, "figure")


def make_figure(study, **changed):
    """The figure without options, with the score of the paper."""
    settings = {"score": list(STUDIES[study].published)[-1], "n": 12, "steps": 2, "points": 2, "options": []}
    return ScoredRuns(study, **settings | changed)


def read_command(row):
    """Return the overrides of a row of the table, as a shell splits the command."""
    name, *overrides = shlex.split(re.fullmatch("`(.*)`", row["command"])[1])
    assert name == "scripts/train.py"
    return overrides


# The rows.


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_command_of_every_row_is_a_config_that_can_be_trained(configure, study, budget):
    figure = build_figure(configure, study, budget)
    rows = figure.table([])[: len(figure.cells())]
    for cell, row in zip(figure.cells(), rows, strict=True):
        assert row["row"] == cell["row"]
        overrides = read_command(row)
        assert set(figure.list_overrides(cell["row"])) <= set(overrides)
        cfg = configure(*overrides)
        assert train_options(cfg)["steps"] == figure.steps
        assert cfg.budget == ("cpu" if "budget=cpu" in overrides else "paper")
        assert cfg.trust == (["wgangp.figures"] if "wrong_penalties" in cfg.penalty._target_ else [])


@pytest.mark.parametrize(
    ("study", "row", "penalty", "weight", "optimizer", "loss", "clip"),
    [
        ("toy_released", "width 512", "GradientPenalty", 0.1, "Adam", "Wasserstein", None),
        ("toy_released", "width 128", "GradientPenalty", 0.1, "Adam", "Wasserstein", None),
        ("stacked_mnist", "one norm per sample", "GradientPenalty", 10, "Adam", "Wasserstein", None),
        (
            "stacked_mnist",
            "norms over the channels, eps per element",
            "ChannelPenalty",
            10,
            "Adam",
            "Wasserstein",
            None,
        ),
        ("mnist", RIGHT, "GradientPenalty", 10, "Adam", "Wasserstein", None),
        ("mnist", "norms per column", "ColumnPenalty", 10, "Adam", "Wasserstein", None),
        ("language", "WGAN-GP", "GradientPenalty", 10, "Adam", "Wasserstein", None),
        ("cifar_curves", "weight clipping", "GradientPenalty", 0, "RMSProp", "Wasserstein", 0.01),
        ("cifar_curves", "gradient penalty (RMSProp)", "GradientPenalty", 10, "RMSProp", "Wasserstein", None),
        ("cifar_curves", "gradient penalty (Adam)", "GradientPenalty", 10, "Adam", "Wasserstein", None),
        ("cifar_curves", "DCGAN", "GradientPenalty", 0, "Adam", "NonSaturating", None),
        ("cifar_table", "unsupervised: WGAN-GP ResNet", "GradientPenalty", 10, "Adam", "Wasserstein", None),
        ("cifar_table", "supervised: WGAN-GP ResNet", "GradientPenalty", 10, "Adam", "ACGAN", None),
    ],
)
def test_every_row_is_what_its_name_says(configure, study, row, penalty, weight, optimizer, loss, clip):
    root = ["data.path=FILE"] if study == "language" else []
    cfg = configure(*make_figure(study).list_overrides(row), *root)
    assert cfg.penalty._target_.rpartition(".")[2] == penalty
    assert (cfg.penalty.weight, cfg.penalty.target, cfg.penalty.sides) == (weight, 1, "two")
    assert cfg.optim._target_.rpartition(".")[2] == optimizer
    assert cfg.loss._target_.rpartition(".")[2] == loss
    assert cfg.clip.weights == clip
    data = {"stacked_mnist": "stacked_mnist", "mnist": "mnist", "language": "text"}
    data = (data | {"toy_released": "gaussians8"}).get(study, "cifar10")
    assert cfg.data._target_.rpartition(".")[2] == data
    batch_norm = row in ("weight clipping", "DCGAN")
    assert cfg.networks.critic.get("norm", False) == batch_norm
    assert cfg.train.critic_steps == {"DCGAN": 1, "WGAN-GP": 10}.get(row, 5)  # 10: the released gan_language.py
    assert cfg.networks.critic.get("classes", 0) == cfg.networks.generator.get("classes", 0) == 10 * (loss == "ACGAN")


def test_every_row_is_in_the_test_above():
    marks = test_every_row_is_what_its_name_says.pytestmark
    listed = next(mark.args[1] for mark in marks if len(mark.args[0]) == 7)
    assert [entry[:2] for entry in listed] == ROWS


@pytest.mark.parametrize(
    ("study", "steps", "n", "score", "widths"),
    [
        ("toy_released", 100_000, 2_500, "points", 512),
        ("stacked_mnist", 100_000, 26_000, "modes", 64),
        ("mnist", 50_000, 100_000, "classifier", 64),
        ("language", 200_000, 640, "ngrams", 512),
        ("cifar_curves", 200_000, 50_000, "inception", 128),
        ("cifar_table", 100_000, 50_000, "inception", 128),
    ],
)
def test_sizes_of_the_paper_are_one_override_away(configure, study, steps, n, score, widths):
    small, figure = (build_figure(configure, study, budget) for budget in BUDGETS)
    assert (figure.steps, figure.n, figure.score, figure.options) == (steps, n, score, [])
    assert figure.cells() == [{"row": row} for row in STUDIES[study].rows]
    root = ["data.path=FILE"] if study == "language" else []
    row = next(iter(STUDIES[study].rows))
    assert configure(*figure.list_overrides(row), *root).networks.critic.width == widths
    assert small.steps <= 2_000
    assert small.points <= 10
    assert small.score != "inception"  # which is downloaded
    width = configure(*small.list_overrides(small.cells()[0]["row"]), *root).networks.critic.width
    assert width <= (128 if study == "toy_released" else 64)


@pytest.mark.parametrize("study", STUDIES)
def test_every_setting_is_in_the_file_of_the_figure(study):
    keys = OmegaConf.load(CONF / "figure" / f"{study}.yaml").keys()
    assert keys == {"_target_", *ScoredRuns.__dataclass_fields__}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"study": "cifar"}, "figure.study = cifar: must be one of toy_released, stacked_mnist"),
        ({"score": "inception"}, "figure.score = inception: must be one of modes"),
        ({"steps": 5, "points": 2}, "figure.steps = 5: must be a multiple of figure.points = 2"),
        ({"points": 0}, "must be a multiple"),
        ({"rows": ["right"]}, r"figure.rows = \['right'\]: one or more of 'one norm per sample'"),
        ({"rows": []}, "one or more of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, message):
    settings = {"study": "stacked_mnist", "score": "modes", "n": 9, "steps": 4, "points": 2, "options": []}
    with pytest.raises(ValueError, match=message):
        ScoredRuns(**settings | changed)


def test_command_is_quoted_for_the_shell():
    row, other = make_figure("mnist", options=["data.root=/my digits"]).table([])[:2]
    assert read_command(row) == ["experiment=mnist", "data.root=/my digits", "train.steps=2"]
    assert "'trust=[wgangp.figures]'" in other["command"]


# Published numbers.

PRINTED = {
    "toy_released": "",
    "stacked_mnist": """
        DCGAN 99.0 3.40 | ALI 16.0 5.40 | Unrolled GAN 48.7 4.32 | VEEGAN 150.0 2.95 | PacDCGAN2 1000.0 +- 0 .06
        WGAN-GP 959.0 .7276 | MEG 1000 .0313""",
    "mnist": """
        MMD rq 9.11 +- .01 4.206 +- .05 .005 +- .004 | Cramer GAN 9.25 +- .02 3.385 +- .10 .006 +- .005
        WGAN-GP 9.12 +- .02 6.915 +- .10 .009 +- .004 | real samples 9.78 +- .02 4.305 +- .16 .003 +- .003""",
    "language": "",
    "cifar_curves": "",
    "cifar_table": """
        unsupervised: ALI 5.34 +- .05 | unsupervised: BEGAN 5.62 | unsupervised: DCGAN 6.16 +- .07
        unsupervised: Improved GAN (-L+HA) 6.86 +- .06 | unsupervised: EGAN-Ent-VI 7.07 +- .10
        unsupervised: DFM 7.72 +- .13 | unsupervised: WGAN-GP ResNet 7.86 +- .07
        supervised: SteinGAN 6.35 | supervised: DCGAN (with labels) 6.58 | supervised: Improved GAN 8.09 +- .07
        supervised: AC-GAN 8.25 +- .07 | supervised: SGAN-no-joint 8.37 +- .08 | supervised: WGAN-GP ResNet 8.42 +- .10
        supervised: SGAN 8.59 +- .12""",
}


@pytest.mark.parametrize("study", STUDIES)
def test_published_numbers_are_those_that_were_printed(study):
    expected = [line.strip() for line in re.split(r"[|\n]", PRINTED[study]) if line.strip()]
    figure = make_figure(study)
    rows = [row for row in figure.table([]) if row["row"].startswith("published: ")]
    labels = NUMBERS[figure.score].values()
    texts = [" ".join([row["row"], *(row[label] for label in labels if row[label])]) for row in rows]
    assert texts == [f"published: {text}" for text in expected]
    assert all(row["measured with, or source"] for row in rows)


def test_published_numbers_in_other_features_are_left_out():
    rows = make_figure("cifar_table", score="efficientnet").table([])
    assert [row["row"] for row in rows] == [*STUDIES["cifar_table"].rows, "real samples"]


def test_rows_whose_released_code_is_wrong_say_that_the_run_is_not_known():
    for study in ("stacked_mnist", "mnist"):
        rows = make_figure(study).table([])
        (source,) = [row["measured with, or source"] for row in rows if row["row"] == "published: WGAN-GP"]
        assert "their code takes norms" in source
        assert "whether this run did is not known" in source


# Measurement.


@pytest.mark.parametrize(
    "study", [pytest.param(study, marks=[pytest.mark.slow] if "cifar" in study else []) for study in STUDIES]
)
def test_every_cell_is_measured_drawn_and_in_the_table(build_small, study, tmp_path):
    figure, records = build_small(study), []
    names = [f"{figure.score}_{name}" for name in NUMBERS[figure.score]]
    for number, cell in enumerate(figure.cells()):
        numbers = figure.measure(cell, 0, tmp_path / f"run-{number}", CPU)
        assert numbers["finite"]
        assert numbers["steps"] == [0, 1, 2]
        assert len(numbers["elapsed_s"]) == 3
        assert numbers["elapsed_s"] == sorted(numbers["elapsed_s"])
        log = {line["step"]: line for line in read_metrics(tmp_path / f"run-{number}" / "metrics.jsonl")}
        for name in names:
            assert numbers[name] == [log[step][name] for step in (0, 1, 2)]
        assert numbers["heldout_critic_loss"] == log[2]["heldout_critic_loss"]
        assert numbers["slope_interpolates_mean"] == log[2].get("slope_interpolates_mean")
        assert numbers["facts"]["n"] == 12
        records.append({"seed": 0, **cell, **json.loads(json.dumps(numbers, allow_nan=False))})
    other = figure.measure(figure.cells()[0], 1, tmp_path / "other", CPU)
    assert other[names[-1]] != records[0][names[-1]]  # the seed matters
    records += [record | {"seed": 1, **{name: other[name] for name in names}} for record in records]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw(tmp_path / "figure.png", records)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 1_000
        assert len(image.convert("L").getcolors()) > 20
    rows = figure.table(records)
    assert markdown_table(rows)
    for row, cell in zip(rows, figure.cells(), strict=False):
        assert row["row"] == cell["row"]
        assert row["finite runs"] == "2 of 2"
        assert "n 12" in row["measured with, or source"]
        assert all("+-" in row[label] for label in NUMBERS[figure.score].values())
        assert "+-" in row["slope at interpolates"]
        assert "+-" in row["held-out critic loss"]


def test_stacked_digits_are_shown_one_by_one(tmp_path):
    x = torch.rand(16, 3, 4, 4)
    axes = Figure().add_subplot()
    draw_pictures(axes, encode_pictures(tmp_path, x, (0.0, 1.0), 8), split=True)
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels.shape == (4 * 5, 8 * 5 + 1, 3)  # eight samples, and their channels below
    for k in range(8):
        picture = (x[k] * 255).round().byte().permute(1, 2, 0).numpy()
        rows = [pixels[5 * row + 1 : 5 * row + 5, 5 * k + 1 : 5 * k + 5] for row in range(4)]
        np.testing.assert_array_equal(rows[0], picture)
        for channel in range(3):
            np.testing.assert_array_equal(rows[1 + channel], picture[..., [channel] * 3])


def test_value_of_real_images_is_in_the_titles_and_leaves_the_curves_their_scale(tmp_path, monkeypatch):
    titles, scales = [], []
    monkeypatch.setattr(Axes, "set_title", lambda axes, title, **style: titles.append(title))
    monkeypatch.setattr(Axes, "set_yscale", lambda axes, scale: scales.append(scale))
    figure = make_figure("cifar_curves", score="efficientnet")
    records = [
        record | {"real_efficientnet_is": 43.0, "real_efficientnet_fid": 56.4} for record in make_records(figure)
    ]
    figure.draw(tmp_path / "figure.png", records)
    assert titles[-3:] == ["Inception score (real samples: 43)", "FID (real samples: 56.4)", titles[-3]] and not scales


def test_data_without_modes_has_the_distance_alone(build_small, tmp_path, monkeypatch):
    runs, show = [], image_runs.show_samples
    monkeypatch.setattr(scored_runs, "show_samples", lambda run, *rest: runs.append(run) or show(run, *rest))
    figure = build_small("toy_released", options=["data=swiss_roll"])
    record = {"seed": 0, **figure.cells()[0], **figure.measure(figure.cells()[0], 0, tmp_path / "run", CPU)}
    assert record["points_modes"] == [None] * 3 and all(w1 > 0 for w1 in record["points_w1"])
    figure.draw(tmp_path / "figure.png", [record])
    drawn, real = figure.table([record])
    assert list(drawn) == list(real) and not {"modes", "reverse KL (nats)"} & {*drawn} and real["exact W1"]
    (run,), points = runs, record["samples"]
    assert {kind: len(part) for kind, part in points.items()} == {"real": 500, "generated": 500}
    generated = generate(run.generator, 500, lambda k: draw_latent(run.generator, 500, 0, k, "figure"))
    torch.testing.assert_close(torch.tensor(points["generated"]), generated, atol=1e-3, rtol=0)


def make_records(figure, **changed):
    """Records of two seeds with three evaluations each: number j of row i and seed s is 100 i + 10 j + s at the end."""
    records = []
    for seed in (0, 1):
        for i, cell in enumerate(figure.cells()):
            record = {"seed": seed, **cell, "finite": True, "steps": [0, 1, 2], "elapsed_s": [0.0, 60.0, 120.0 + seed]}
            for j, name in enumerate(NUMBERS[figure.score]):
                record[f"{figure.score}_{name}"] = [0.0, 0.0, 100.0 * i + 10 * j + seed]
                record[f"real_{figure.score}_{name}"] = 7.5 + j
            record |= {"slope_interpolates_mean": 1.25, "heldout_critic_loss": -2.0, "samples": ["a", "b"]}
            records.append(record | {"facts": {"n": 12, "weights": "abc"}} | changed)
    return records


def test_table_has_the_last_numbers_and_the_difference_to_the_published_one():
    figure = make_figure("cifar_table")
    first, second, real, *published = figure.table(make_records(figure))
    columns = ["row", *NUMBERS["inception"].values(), "slope at interpolates", "held-out critic loss", "difference"]
    assert list(first) == [*columns, "finite runs", "minutes", "measured with, or source", "command"]
    sd = "+- 0.7071"
    assert [first[label] for label in NUMBERS["inception"].values()] == [f"0.5 {sd}", f"10.5 {sd}", f"20.5 {sd}"]
    assert (first["difference"], second["difference"]) == ("-7.36", "+92.08")  # 0.5 - 7.86, 100.5 - 8.42
    assert first["minutes"] == "2.0 +- 0.0"
    assert first["measured with, or source"] == "inception: n 12, weights abc"
    assert (first["slope at interpolates"], first["held-out critic loss"]) == ("1.25 +- 0", "-2 +- 0")
    assert [real[label] for label in ("row", *NUMBERS["inception"].values())] == ["real samples", "7.5", "8.5", "9.5"]
    assert len(published) == 14
    assert "difference" not in make_figure("stacked_mnist").table([])[0]


def test_run_that_is_not_finite_is_recorded_drawn_and_counted(build_small, tmp_path, monkeypatch):
    def diverge(folder, overrides, check):
        raise ValueError("critic_loss is not finite at step 1")

    figure = build_small("mnist")
    monkeypatch.setattr(image_runs, "train_command", diverge)
    numbers = figure.measure(figure.cells()[0], 0, tmp_path / "run", CPU)
    assert not numbers["finite"]
    assert numbers["steps"] == []
    assert numbers["samples"] is numbers["facts"] is None
    json.dumps(numbers, allow_nan=False)
    good = make_records(figure)
    records = [{"seed": 0, **figure.cells()[0], **numbers}, *good[1:]]
    figure.draw(tmp_path / "figure.png", records)
    rows = figure.table(records)
    assert rows[0]["finite runs"] == "1 of 2"
    assert rows[0]["FID"] == "11"
    bad = [{"seed": seed, **cell, **numbers} for seed in (0, 1) for cell in figure.cells()]
    figure.draw(tmp_path / "figure.png", bad)
    rows = figure.table(bad)
    assert (rows[0]["FID"], rows[0]["finite runs"]) == ("not finite", "0 of 2") and "minutes" not in rows[0]


def test_facts_are_those_of_the_scores_in_the_log(build_small, tmp_path):
    options = ["evaluate.reference=heldout", "evaluate.seed=7"]
    figure = build_small("mnist", options=options)
    numbers = figure.measure(figure.cells()[0], 0, tmp_path / "run", CPU)
    (facts,) = (line["scores"]["classifier"] for line in read_lines(tmp_path / "run" / "provenance.jsonl"))
    assert numbers["facts"] == facts
    assert facts["seed"] == 7 and facts["reference"].endswith("of heldout")
    assert numbers["real_n"] > 0
    real = figure.table([{"seed": 0, **cell, **numbers} for cell in figure.cells()])[2]
    assert (real["row"], real["measured with, or source"]) == ("real samples", f"{numbers['real_n']} real images")


def test_wrong_option_of_a_figure_fails_its_run_in_words(build_small, tmp_path):
    figure = build_small("mnist", options=["fooo=1"])
    with pytest.raises(ValueError, match=r"(?s)failed runs: 2\..*Could not override 'fooo'"):
        reproduce(figure, "mnist", "cpu", [0], str(tmp_path / "out"), "cpu")
    with pytest.raises(ValueError, match="budget = foo: must be one of cpu, paper"):
        reproduce(figure, "mnist", "foo", [0], str(tmp_path / "out"), "cpu")


def test_place_of_the_data_that_is_not_given_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root: no value is given"):
        train_command(tmp_path / "run", ["experiment=architectures"])


def test_points_that_are_not_in_the_plane_are_refused_before_training(build_small, tmp_path):
    figure = build_small("toy_released", options=["data=shift", "data.dim=1"])
    with pytest.raises(ValueError, match=r"points in R\^1 have no picture"):
        figure.measure(figure.cells()[0], 0, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_other_errors_of_a_run_are_raised(build_small, tmp_path):
    figure = build_small("mnist", data_root=str(tmp_path))
    with pytest.raises(ValueError, match="cannot read MNIST"):
        figure.measure(figure.cells()[0], 0, tmp_path / "run", CPU)


def test_score_that_cannot_be_computed_is_refused_before_training(build_small, tmp_path):
    for changed, message in (({"n": 11}, "11 samples are too few"), ({"n": 1}, r"n = 1")):
        with pytest.raises(ValueError, match=message):
            build_small("mnist", **changed).measure({"row": "one norm per sample"}, 0, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_score_that_failed_is_left_out_and_the_last_one_is_computed_again(build_small, tmp_path, monkeypatch, capsys):
    """A row never has the numbers of an earlier update, and no run is trained again for a score."""
    compute, figure, failing = scores._score_images, build_small("mnist"), []
    cell = figure.cells()[0]
    whole = figure.measure(cell, 0, tmp_path / "whole", CPU)

    def fail(run, step, **options):
        if step in failing:
            failing.remove(step)
            raise RuntimeError("out of memory")
        return compute(run, step, **options)

    monkeypatch.setattr(scores, "_score_images", fail)
    failing += [1, 2]
    record = figure.measure(cell, 0, tmp_path / "run", CPU)
    assert "out of memory" in capsys.readouterr().err
    assert record["steps"] == [0, 2]
    for name in ("classifier_fid", "classifier_is", "elapsed_s"):
        assert len(record[name]) == 2
    assert record["classifier_fid"] == [whole["classifier_fid"][k] for k in (0, 2)]
    assert record["real_n"] == whole["real_n"] and record["heldout_critic_loss"] == whole["heldout_critic_loss"]
    others = [{"seed": k, **cell, **numbers} for k, numbers in enumerate((whole, record)) for cell in figure.cells()]
    figure.draw(tmp_path / "figure.png", others)

    failing += [2, 2]
    with pytest.raises(RuntimeError, match="out of memory"):
        figure.measure(cell, 1, tmp_path / "last", CPU)
    monkeypatch.setattr("wgangp.train.update", None)  # nothing is trained again
    assert figure.measure(cell, 1, tmp_path / "last", CPU)["steps"] == [0, 1, 2]


def test_interrupted_run_continues_and_has_the_numbers_of_one_in_one_piece(build_small, tmp_path, monkeypatch):
    figure = build_small("mnist", steps=4, points=4)
    cell, calls = figure.cells()[1], []

    def stop(folder, overrides, check):
        calls.append(overrides)
        if len(calls) > 1:
            return train_command(folder, overrides)
        train_command(folder, [override.replace("train.steps=4", "train.steps=2") for override in overrides])
        raise KeyboardInterrupt

    monkeypatch.setattr(image_runs, "train_command", stop)
    with pytest.raises(KeyboardInterrupt):
        figure.measure(cell, 0, tmp_path / "pieces", CPU)
    pieces = figure.measure(cell, 0, tmp_path / "pieces", CPU)
    once = figure.measure(cell, 0, tmp_path / "once", CPU)
    assert pieces["steps"] == [0, 1, 2, 3, 4]
    assert pieces.pop("elapsed_s") != once.pop("elapsed_s")
    assert pieces == once
    steps = [line["step"] for line in read_lines(tmp_path / "pieces" / "metrics.jsonl")]
    assert max(steps) == 4


@pytest.mark.slow
def test_run_is_the_one_of_its_command_in_the_table(build_small, configure, tmp_path):
    """The weights after `scripts/train.py COMMAND data.root=... seed=1` are those of the cell."""
    figure = build_small("mnist")
    figure.measure({"row": "norms per column"}, 1, tmp_path / "cell", CPU)
    command = next(read_command(row) for row in figure.table([]) if row["row"] == "norms per column")
    cfg = configure(*command, f"data.root={figure.data_root}", "seed=1", "device=cpu")
    run = build_run(cfg, trust=cfg.trust)
    config.train(tmp_path / "command", run, **train_options(cfg))
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step_00000002.pt", weights_only=True)
        for name in ("cell", "command")
    ]
    for a, b in zip(*(state["critic"].values() for state in states), strict=True):
        assert torch.equal(a, b)


def test_folder_of_a_figure_has_records_picture_and_page(build_small, tmp_path):
    figure = build_small("language")
    folder = reproduce(figure, "language", "cpu", [0], str(tmp_path / "out"), "cpu")
    page = (folder / "README.md").read_text()
    assert "| WGAN-GP |" in page
    assert "![language](language.png)" in page
    assert len(read_lines(folder / "records.jsonl")) == 1
    assert (folder / "language.png").stat().st_size > 10_000
