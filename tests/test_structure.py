"""The structure of the project: who may import whom, how long files may be, and the language."""

import ast
import re
import sys
import tomllib

import pytest
from helpers import ROOT
from packaging.requirements import Requirement

LAYERS = [  # from the bottom up: a module may import modules of the layers before its own
    {
        "piecewise",
        "seeds",
        "precision",
        "onednn",
        "accumulate",
        "tables",
        "schema",
        "version",
        "linear",
        "state",
        "signals",
        "files",
        "progress",
    },
    {"bounds", "checks", "compiler", "targets"},
    {"form", "gradients", "per_sample"},
    {"affine", "penalty", "losses", "optim", "data", "networks", "transport", "certify"},
    {"step", "lipschitz", "box", "plots", "runs"},
    {"compiled", "generate", "match", "folders", "draws"},
    {"checkpoint"},
    {"metrics"},
    {"logs"},
    {"report", "distributed", "records", "nonfinite"},
    {"train"},
    {"trial"},
    {"config"},
    {"figures", "sample", "evaluate", "compare", "help"},
    {"analysis", "results"},
    {"cli"},
    {"__main__"},
]
LEAVES = {"networks": set(), "data": {"files", "seeds"}}  # sub-packages that know nothing else of the package
STEP = {"accumulate", "checks", "gradients", "losses", "optim", "penalty"}  # the method, without the rest
LIBRARIES = {"torch", "torchvision", "numpy", "PIL", "tqdm"}  # a leaf imports these and the standard library
PACKAGE = ROOT / "wgangp"
HYDRA = {"cli.py", "config.py", "folders.py", "runs.py", "schema.py", "targets.py", "figures/study.py"}


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def name_of(path):
    """The module, or the sub-package, of a file."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_from_lower_layers(path):
    name = name_of(path)
    imported = {other.split(".")[1] for other in imports(path) if other.startswith("wgangp.")} - {name}
    layer = next(i for i, names in enumerate(LAYERS) if name in names)
    assert imported <= LEAVES.get(name, set().union(*LAYERS[:layer]))


def test_step_imports_only_the_method():
    assert {name.split(".")[1] for name in imports(PACKAGE / "step.py") if name.startswith("wgangp.")} == STEP


def test_slow_libraries_are_imported_where_they_are_used():
    """Importing matplotlib and torchvision takes seconds, which only figures need at once."""
    for path in (path for path in modules() if path.parent.name != "figures"):
        assert not re.search(r"^(import|from) (matplotlib|torchvision)\b", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_only_its_libraries(leaf):
    roots = {name.split(".")[0] for path in (PACKAGE / leaf).rglob("*.py") for name in imports(path)}
    assert "torch" in roots and roots - sys.stdlib_module_names <= LIBRARIES | {"wgangp"}


def test_only_scripts_import_the_command_line():
    """Inside of the package, LAYERS allows it only for __main__."""
    assert all("wgangp.cli" in imports(path) for path in (ROOT / "scripts").glob("*.py") if path.name != "render.py")
    for path in (path for folder in ("bench", "examples") for path in (ROOT / folder).glob("*.py")):
        assert "wgangp.cli" not in imports(path), path


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_does_not_import_hydra(path):
    known = {name.split(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    assert not known or str(path.relative_to(PACKAGE)) in HYDRA


def test_method_is_short_and_no_file_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in modules()}
    assert sum(lines[PACKAGE / name] for name in ("gradients.py", "penalty.py", "step.py")) <= 500
    assert max(lines.values()) <= 350


def test_package_scripts_and_configs_have_at_most_665_kb_and_figures_160_kb():
    """Figures are evidence, which nothing else imports: they have a limit of their own."""
    files = [path for path in texts("wgangp", "scripts", "conf") if path.parent != ROOT]
    figures = [path for path in files if "figures" in path.parts]
    assert sum(path.stat().st_size for path in figures) <= 160_000
    assert sum(path.stat().st_size for path in files) - sum(path.stat().st_size for path in figures) <= 665_000


def test_files_are_ascii():
    for folder in ("wgangp", "scripts", "bench", "conf", "tests"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            if path.suffix in (".py", ".yaml"):
                assert path.read_text().isascii(), path


def test_package_does_not_import_bench():
    assert not any(name.split(".")[0] == "bench" for path in modules() for name in imports(path))


def test_bench_and_scripts_have_no_long_file():
    for folder in ("bench", "scripts"):
        assert max(len(path.read_text().splitlines()) for path in (ROOT / folder).glob("*.py")) <= 350


ARTICLE = "a"  # in a variable, so that this file does not match its own patterns
RIDDLES = re.compile(
    "(one|line|file|value|row|score|number|record) (eps )?"
    f"{ARTICLE} (sample|batch|run|report|file|figure|rank|step|device|variant)"
)
VERBS = "(normal|initial|minim|maxim|penal|synchron|regular|general)"
BRITISH = re.compile(
    rf"optimi{'s'}er|colo{'u'}r|cent{'r'}e[sd]?\b|{VERBS}is(e|ed|es|ing|ation)\b"
    rf"|\bgr{'e'}y\b|behavi{'o'}ur|label{'l'}ed|neighb{'o'}ur",
    re.IGNORECASE,
)
PARTICIPLES = "said|found|joined|kept|merged|listed|named|refused|quoted|counted|described|restored|received|given"
NAMES = re.compile(
    rf"^\s*({PARTICIPLES}|built|protected|covered|assumed|leaked|mixed|turned|saved|more|how|of|about|aside|what_\w+)\b"
    r"[^=\n]*(?<![=!<>])=(?!=)",
    re.MULTILINE,
)


FOLDERS = ("wgangp", "bench", "scripts", "conf", "docs", "examples", "tests", "results", ".github")


def texts(*folders, suffixes=(".py", ".md", ".yaml", ".yml", ".toml")):
    paths = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    return [path for path in paths if path.suffix in suffixes]


def test_text_says_per_and_not_an_article():
    for path in texts(*FOLDERS):
        assert not (match := RIDDLES.search(path.read_text())), f"{path}: {match}"


def test_spelling_is_american():
    for path in texts(*FOLDERS):
        assert not (match := BRITISH.search(path.read_text())), f"{path}: {match}"


def test_names_have_content():
    for path in texts("wgangp", "bench", "scripts", "examples", suffixes=(".py",)):
        assert not (match := NAMES.search(path.read_text())), f"{path}: {match.group()}"


def test_lock_file_has_an_allowed_version_with_hashes_of_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = re.sub(r"^#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    locked = dict(re.findall(r"^([\w-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    assert "://" not in text and len(re.findall("^[a-z]", text, re.MULTILINE)) == len(locked) > 40
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["test"], *extras["metrics"]):
        requirement = Requirement(line)
        if requirement.name != "wgangp":
            assert requirement.specifier, f"{line} has no lower bound"
            assert locked[requirement.name.replace("_", "-")] in requirement.specifier


WRITERS = ("write_text", "write_bytes", "save", "savefig", "savez", "savez_compressed")
# logs.py appends lines, and repairs a last one that was cut off.
OPENERS = {"files.py": {"xb"}, "logs.py": {"ab+"}}
# logs.py reads what the run has just written; image_runs.py reads from memory.
READERS = {"data/folder.py", "logs.py", "figures/image_runs.py"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_written_by_write_file_and_pictures_are_read_by_read_picture(path):
    """Everything is written to a buffer in memory first: a file is whole, and no pipe or link is opened for writing."""
    name, modes = str(path.relative_to(PACKAGE)), set()
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        function, arguments = ast.unparse(call.func), [ast.unparse(argument) for argument in call.args]
        assert not function.endswith(tuple(f".{writer}" for writer in WRITERS)) or "buffer" in arguments, function
        assert function != "Image.open" or name in READERS
        if function.rpartition(".")[2] == "open":
            values = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
            modes |= {value for value in values if re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", str(value))}
    assert modes <= OPENERS.get(name, set())
