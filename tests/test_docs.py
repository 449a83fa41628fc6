"""README and docs are true: their commands, tables, links, keys and metrics."""

import ast
import json
import re
import subprocess
import sys

import pytest
import test_networks
import test_zoo
import torch
import yaml
from helpers import ROOT
from omegaconf import OmegaConf

import wgangp
from wgangp.config import CONF, TRAIN_KEYS, build, build_run, train_options
from wgangp.figures.digest import stamp
from wgangp.logs import read_metrics
from wgangp.results import COUNTED_NETWORKS, render_evidence, render_origins, render_summary
from wgangp.train import train

README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("results/**/*.md"),
]
STATISTICS = r"(mean|std|q05|q50|q95|max|above_1|cosine)"


def test_readme_has_exactly_two_set_up_commands():
    commands = re.findall(r"^python -m pip install -e .*$", README, re.MULTILINE)
    assert commands == [
        "python -m pip install -e . && python scripts/train.py",
        'python -m pip install -e ".[test]" && python -m pytest',
    ]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()  # which reads the commands from there


def test_readme_has_at_most_120_lines_and_no_long_one():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines if not line.startswith("|")) <= 180
    assert max(map(len, lines)) <= 220  # a row of a table


def test_tables_are_rendered_from_results():
    results = ROOT / "results"
    assert render_evidence(README, results) == README, "run: python scripts/render.py"
    page = (results / "README.md").read_text()
    assert render_summary(render_origins(page, results), results) == page, "run: python scripts/render.py"


def test_evidence_is_four_rows_and_says_what_was_not_run(tmp_path):
    block = README.split("<!-- rendered by scripts/render.py -->\n")[1].split("<!-- /rendered -->")[0].splitlines()
    assert len(block) == 6 and {line.count("|") for line in block} == {6}
    assert render_evidence(README, tmp_path).count("| not run yet | 0 |") == 3


def test_evidence_has_medians_and_ranges_over_the_right_rows(tmp_path):
    def write(folder, records):
        (tmp_path / folder).mkdir()
        lines = [json.dumps(stamp({"seed": i, **record})) for i, record in enumerate(records)]
        (tmp_path / folder / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))

    pair = {"distance": 2.0, "published": 1.8, "published_distance": 2.0, "corrected": 1.9, "proved": 1.0}
    pairs = [{"critic": "two-sided", "gap": gap} for gap in (2.2, 2.4, 0.8)] + [{"critic": "one-sided", "gap": 9.0}]
    write("korotin", [pair | record for record in pairs])
    rows = ("one norm per sample", "one norm per sample", "norms over the channels, eps per element")
    covered = zip(rows, (900, 1000, 500), (True, True, True), strict=True)
    runs = [{"row": row, "modes_covered": [0, n], "finite": finite, "steps": [0, 7000]} for row, n, finite in covered]
    write("stacked_mnist", [*runs, {"row": rows[0], "modes_covered": [], "finite": False, "steps": []}])
    point = {"constraint": "two-sided", "slopes": {"interpolates": {"mean": 1.02}}, "w1": [0.7, 0.9]}
    write("lipschitz_table", [point | {"constant": [1.0, high]} for high in (1.5, 1.9)])

    text = render_evidence(README, tmp_path)
    assert "| WGAN-GP -10% (-10%) | gap +10% (-60%), corrected -5% (-5%), proved -50% (-50%) | 3 |" in text
    assert "| one norm 950 (900 to 1000), norms as in their code 500 (500) | 4 |" in text
    assert "figure=stacked_mnist figure.steps=7000`" in text
    assert "| constant 1.50 to 1.90; mean slope 1.02; 1 + W1 / 20: 1.04 | 2 |" in text


def test_number_of_networks_with_counted_parameters_is_true():
    (counts,) = (mark.args[1] for mark in test_networks.test_parameter_counts_are_those_of_the_released_code.pytestmark)
    (zoo,) = (mark.args[1] for mark in test_zoo.test_parameter_counts_are_those_of_the_released_code.pytestmark)
    assert len(counts) + len(zoo) + 2 == COUNTED_NETWORKS  # two of the character model


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_works(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_every_file_that_readme_names_exists():
    for cell in re.findall(r"^\| (`[^|]+`) \|", README, re.MULTILINE):
        names = [name for name in re.findall(r"`([^`]+)`", cell) if "=" not in name and "scripts/train" not in name]
        folder = ROOT / names[0].split("/")[0] if names else ROOT
        for name in names:
            assert (ROOT / name).exists() or (folder / name).exists(), name


def test_every_module_is_in_the_map_of_readme():
    for path in [*(ROOT / "wgangp").glob("*.py"), *(ROOT / "wgangp").glob("*/__init__.py")]:
        name = f"{path.parent.name}/" if path.parent.name != "wgangp" else path.name
        assert name in README or name.startswith("__"), name


def test_every_choice_and_key_is_documented():
    page = DOCS["config.md"]
    for path in CONF.rglob("*.yaml"):
        group = path.parent.name
        if path.parent == CONF or group == "figure":
            continue
        assert f"`{path.stem}`" in page, f"{group}={path.stem}"
        if group != "experiment":
            own = {k: v for k, v in OmegaConf.to_container(OmegaConf.load(path)).items() if k != "defaults"}
            for key in _leaves(own):
                assert f"`{key}`" in page or f".{key}`" in page, f"{group}.{key}"
    config = OmegaConf.load(CONF / "config.yaml")
    keys = [
        *config.train,
        *TRAIN_KEYS,
        *(f"clip.{key}" for key in config.clip),
        "regularize.gradient_norm",
        "ema.decay",
        *(f"evaluate.{key}" for key in config.evaluate),
    ]
    for key in [*keys, "seed", "device", "budget", "run_dir"]:
        assert f"`{key}`" in page, key
    for name in ("sample", "lipschitz", "evaluate", "compare", "reproduce"):
        for key in OmegaConf.load(CONF / f"{name}.yaml"):
            assert key in ("defaults", "hydra") or f"`{key}`" in page, f"{name}: {key}"


def test_every_experiment_is_in_the_table_with_its_parameters_and_updates(configure):
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) / ([\d,]+) \| ([\d,]+) \|$", DOCS["experiments.md"], re.MULTILINE)
    assert {row[0] for row in rows} == {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    shapes = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "stacked_mnist": (3, 28, 28), "text": (257, 32)}
    for name, *numbers in rows:
        cfg = configure(f"experiment={name}", "budget=paper")
        data = cfg.data._target_.rpartition(".")[2]
        shape = shapes.get(data, (3, cfg.data.size, cfg.data.size) if "size" in cfg.data else (2,))
        with torch.device("meta"):
            networks = [build(cfg, f"networks.{network}", shape) for network in ("generator", "critic")]
        counts = [sum(p.numel() for p in network.parameters()) for network in networks]
        assert [f"{number:,}" for number in (*counts, cfg.train.steps)] == numbers, name


def test_defaults_in_the_documentation_are_those_of_the_configs(configure):
    """The default run's value, or the value in the file of the first choice that has the key."""
    config = OmegaConf.to_container(configure(), resolve=False)
    files = {path: OmegaConf.load(path) for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name != "figure"}

    def default(group, key):
        if group.startswith("networks"):
            return config["networks"]["generator"].get(key, False)
        if key in (node := config.get(group, config)):
            return node[key]
        return next(node[key] for path, node in files.items() if path.parent.name == group and key in node)

    rows = 0
    for section in re.split(r"^## ", DOCS["config.md"], flags=re.MULTILINE)[1:]:
        title = re.match(r"`?(\w+)", section)[1]
        for cells in re.findall(r"^\| (`[^|]+`) \| (`[^|]+`) \| ", section, re.MULTILINE):
            keys, values = (re.findall(r"`([^`]+)`", cell) for cell in cells)
            for key, value in zip(keys, values, strict=True):
                group, key = key.split(".") if "." in key else (title, key)
                if (group, key) == ("data", "root"):
                    continue  # null, but image_folder has none
                assert yaml.safe_load(value) == default(group, key), f"{group}.{key}"
                rows += 1
    assert rows > 40


def _leaves(node):
    return [leaf for key, value in node.items() for leaf in (_leaves(value) if isinstance(value, dict) else [key])][
        0 if "_target_" not in node else 1 :
    ]


def test_every_metric_is_documented(tmp_path, configure):
    """The metrics of a run that logs all of them, and of the stored runs."""
    tiny = ("networks.generator.width=8", "networks.critic.width=8", "train.batch_size=16", "train.report_size=16")
    cfg = configure(*tiny, "train.steps=1", "optim.lr=0.01", "device=cpu")
    train(tmp_path, build_run(cfg), **train_options(cfg))
    logs = [tmp_path / "metrics.jsonl", *ROOT.glob("results/*/metrics.jsonl")]
    names = {name for path in logs for record in read_metrics(path) for name in record}
    first_cells = re.findall(r"^\| ([^|]*) \|", DOCS["metrics.md"], re.MULTILINE)
    documented = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    for name in names:
        match = re.fullmatch(rf"slope_(\w+?)_{STATISTICS}", name)
        assert documented.issuperset(match.groups() if match else [name]), name


def test_every_public_name_is_documented_and_exported():
    for name in wgangp.__all__:
        assert hasattr(wgangp, name) and f"`{name}" in DOCS["api.md"], name
    assert re.fullmatch(r"\d+\.\d+\.\d+", wgangp.__version__)
    assert f"version: {wgangp.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {wgangp.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_every_python_example_parses_and_imports_what_exists(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "wgangp":
                assert all(name.name in wgangp.__all__ for name in node.names)


def test_minimal_example_trains():
    """A short run. The whole example covers 8 of 8 modes, which takes a minute."""
    path = ROOT / "examples" / "minimal.py"
    assert len(path.read_text().splitlines()) <= 60
    assert not re.search(r"hydra|omegaconf|wgangp\.\w", path.read_text())
    run = subprocess.run([sys.executable, str(path), "20"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    gaps = [float(gap) for gap in re.findall(r"gap ([-\d.]+)", run.stdout)]
    assert len(gaps) == 2 and "of 8" in run.stdout
