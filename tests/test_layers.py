"""Who may import whom: rooms import only from lower floors; only config.py, runs.py and scripts/ know Hydra."""

import ast

import pytest
from conftest import ROOT

FLOORS = [  # a module may import from those above it in this list, not from its own floor or below
    {"seeds", "gradients", "precision", "onednn"},
    {"penalty", "losses", "data", "networks", "transport", "certify"},
    {"step", "lipschitz", "metrics", "checkpoint"},
    {"logs", "plots", "compiled", "distributed"},
    {"report"},
    {"train", "config", "runs"},
    {"figures", "contestants", "floor", "speed_report"},
    {"benchmark"},
]
LEAVES = {"networks": set(), "data": {"seeds"}}  # and what these may see of the rest


def modules():
    return [p for p in sorted((ROOT / "wgangp").rglob("*.py")) if p != ROOT / "wgangp" / "__init__.py"]


def room(path):
    return path.relative_to(ROOT / "wgangp").with_suffix("").parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path):
    return {name.split(".")[1] for name in imports(path) if name.startswith("wgangp.")} - {room(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    floor = next(i for i, names in enumerate(FLOORS) if room(path) in names)
    below = set().union(*FLOORS[:floor])
    assert rooms_imported(path) <= LEAVES.get(room(path), below)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_config_knows_hydra(path):
    known = {name.split(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    assert not known or room(path) in ("config", "runs")


def test_the_method_is_short_and_no_file_is_long():
    lines = {p.name: len(p.read_text().splitlines()) for p in modules()}
    assert sum(lines[name] for name in ("gradients.py", "penalty.py", "losses.py", "step.py")) <= 500
    assert max(lines.values()) <= 350


def test_what_is_tracked_is_ascii():
    for folder in ("wgangp", "scripts", "conf", "tests"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            if path.suffix in (".py", ".yaml"):
                assert path.read_text().isascii(), path
