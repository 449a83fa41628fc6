"""The README is true: its commands, its table, its lists."""

import importlib.util
import re

from conftest import ROOT
from omegaconf import OmegaConf

import wgangp

README = (ROOT / "README.md").read_text()


def test_there_are_exactly_two_set_up_commands():
    commands = re.findall(r"^python -m pip install -e .*$", README, re.MULTILINE)
    assert commands == [
        "python -m pip install -e . && python scripts/train.py",
        'python -m pip install -e ".[test]" && python -m pytest',
    ]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()  # which reads them from there


def test_the_results_table_is_rendered_from_results():
    spec = importlib.util.spec_from_file_location("render", ROOT / "results" / "render.py")
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    assert render.rendered(README) == README, "run: python results/render.py"


def test_every_choice_and_key_is_named():
    for path in (ROOT / "conf").rglob("*.yaml"):
        if path.parent != ROOT / "conf":
            assert f"`{path.stem}`" in README, f"{path.parent.name}={path.stem}"
    config = OmegaConf.load(ROOT / "conf" / "config.yaml")
    keys = [*config.train, *config.clip, *config.regularize, "seed", "device", "run_dir", "weight", "target", "sides"]
    for key in [*keys, "points", "root", "dequantize", "dim", "distance", "count", "layout"]:
        assert f"`{key}" in README, key


def test_every_public_name_is_named_and_exported():
    for name in wgangp.__all__:
        assert hasattr(wgangp, name) and name in README, name


def test_every_picture_and_file_is_there():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`(\w+/\w+\.py)`", README):
        assert (ROOT / target).exists(), target
