"""Mutation testing: change one place of the package, and see whether a test fails.

    python tests/mutate.py map                        # once: which tests execute which line. --tests for some files
    python tests/mutate.py run --mutants 20 --seed 0  # 20 mutants of each module; continues where it stopped
    python tests/mutate.py render                     # the table of results/reliability

A mutant is caught if a test fails that passes without it: the failed test is run again on the original. A mutant that
no test notices has survived: a test is missing, or the mutant computes the same as the original (equivalent).
Equivalent mutants are in tests/equivalent.txt, one per line, each with the reason.
The work is done in a copy of the tree. A process that has imported torch forks a child per mutant.
"""

import argparse
import ast
import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPY = ROOT / "runs" / "mutate"
MAP, LINES = COPY.with_suffix(".json"), COPY.with_suffix(".coverage")
MODULES = [
    *("gradients", "penalty", "losses", "step", "compiled", "certify", "lipschitz", "checkpoint", "distributed"),
    *("networks/layers", "data/toy", "data/images", "data/folder", "data/stream", "data/text", "data/pairs"),
]
RECORDS = ROOT / "results" / "reliability" / "mutants.jsonl"
PAGE, EQUIVALENT = RECORDS.with_name("README.md"), ROOT / "tests" / "equivalent.txt"
BEGIN, END = "<!-- rendered by python tests/mutate.py -->", "<!-- /rendered by python tests/mutate.py -->"
TESTS_S = 120.0  # at most so many seconds of tests are run per mutant, the quickest first
LIMIT_S = 600  # a mutant that hangs longer than this is caught

COMPARE = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not"}
COMPARE |= {ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"}
ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*"}
ARITHMETIC |= {ast.BitOr: "&", ast.BitAnd: "|", ast.MatMult: "*"}


def find_mutants(source: str) -> Iterator[tuple[int, int, str]]:
    """Return the mutants of a source text: begin and end of the part that is replaced, and its replacement."""
    tree, starts = ast.parse(source), [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def text(node: ast.AST) -> str:
        begin, end = span(node)
        return source.encode()[begin:end].decode()

    skipped = {id(child) for node in ast.walk(tree) for child in _walk_skipped(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARE:
                yield *span(node), f"{text(left)} {COMPARE[type(op)]} {text(right)}"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                yield *span(node), f"({text(left)} {ARITHMETIC[type(op)]} {text(right)})"
            case ast.BoolOp(op=op, values=values):
                word = " or " if isinstance(op, ast.And) else " and "
                yield *span(node), "(" + word.join(f"({text(value)})" for value in values) + ")"
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                yield *span(node), f"({text(operand)})"
            case ast.Constant(value=bool() as value):
                yield *span(node), str(not value)
            case ast.Constant(value=int() | float() as value):
                yield *span(node), f"({value!r} + 1)" if isinstance(value, int) else f"({value!r} * 2 + 1e-3)"
            case ast.IfExp(test=test):
                yield *span(test), f"(not ({text(test)}))"
            case ast.If(test=test) | ast.While(test=test):
                yield *span(test), "False"
                if isinstance(node, ast.If):
                    yield *span(test), "True"
            case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign() | ast.Delete():
                yield *span(node), "pass"
            case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
                yield *span(value), "None"
            case ast.Call(func=func, args=args, keywords=[*_, last]) if last.arg is not None:
                rest = [text(part) for part in [*args, *(k for k in node.keywords if k is not last)]]
                yield *span(node), f"{text(func)}({', '.join(rest)})"


def _walk_skipped(node: ast.AST) -> list[ast.AST]:
    """Return the nodes in a node that are not mutated: annotations, and what only makes the text of an error."""
    parts = []
    match node:
        case ast.FunctionDef(args=arguments, returns=returns):
            parts = [returns, *(a.annotation for a in ast.walk(arguments) if isinstance(a, ast.arg))]
        case ast.AnnAssign(annotation=annotation):
            parts = [annotation]
        case ast.Raise(exc=exc):
            parts = [exc]
        case ast.JoinedStr():
            parts = [node]
    return [child for part in parts if part is not None for child in ast.walk(part)]


def name_mutants(module: str, source: str) -> dict[str, tuple[int, int, str]]:
    """Return the mutants of a module by name. The name does not depend on the number of the line, which changes."""
    mutants, content, counts = {}, source.encode(), collections.Counter()
    for begin, end, part in sorted(set(find_mutants(source))):
        try:
            ast.parse(content[:begin] + part.encode() + content[end:])
        except SyntaxError:  # for example a keyword in front of *args
            continue
        line = content[:begin].count(b"\n")
        column = begin - content.rfind(b"\n", 0, begin)
        place = f"{module} {source.splitlines()[line].strip()} {column} {part}"
        number = f" {counts[place]}" if counts[place] else ""  # of several equal lines
        counts[place] += 1
        mutants[hashlib.sha256((place + number).encode()).hexdigest()[:12]] = (begin, end, part)
    return mutants


def map_tests(tests: list[str]) -> None:
    """Run the default tests once, in the copy, and record which lines each executes, its seconds, and which fail."""
    _copy_tree()
    arguments = ["-q", "-n", "2", "-p", "no:cacheprovider", "--cov=wgangp", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", *arguments, "--durations=0", "--durations-min=0", *tests]
    done = subprocess.run(command, cwd=COPY, env=_environment(), capture_output=True, text=True, check=False)
    seconds: dict[str, float] = collections.defaultdict(float)
    failed = []  # for example because the copy is no git repository
    for line in done.stdout.splitlines():
        parts = line.split(maxsplit=2)
        if len(parts) == 3 and parts[1] in ("call", "setup") and parts[0].endswith("s"):
            seconds[parts[2]] += float(parts[0][:-1])
        if line.startswith(("FAILED ", "ERROR ")):
            failed.append(parts[1])
    MAP.write_text(json.dumps({"seconds": seconds, "failed": failed}))
    shutil.copy(COPY / ".coverage", LINES)


def choose_tests(module: str, lines: range) -> list[str]:
    """Return the tests that execute any of the lines of a module, the quickest first."""
    from coverage import CoverageData

    data = CoverageData(str(LINES))
    data.read()
    seconds = json.loads(MAP.read_text())["seconds"]
    (path,) = [file for file in data.measured_files() if file.endswith(f"/wgangp/{module}.py")]
    contexts = data.contexts_by_lineno(path)
    names = {context.rpartition("|")[0] for line in lines for context in contexts.get(line, [])}
    if not names or "" in names:  # a line that runs at import, as a signature does, has the tests of its function
        area = range(lines.start, lines.stop + 60)
        names |= {context.rpartition("|")[0] for line in area for context in contexts.get(line, [])}
    names -= {""}
    chosen, total = [], 0.0
    for name in sorted(names, key=lambda name: (seconds.get(name, 0.0), name)):
        total += seconds.get(name, 0.0)
        if total > TESTS_S:
            break
        chosen.append(name)
    return chosen


def run(mutants: int, seed: int, out: Path, modules: list[str], only: list[str]) -> None:
    """Test mutants of each module until a file has so many of them. Append one JSON line per mutant.

    Args:
        only: names of mutants that are tested, again if they are in the file, in place of others.
    """
    _copy_tree()
    os.chdir(COPY)
    sys.path[:0] = [str(COPY), str(COPY / "tests")]
    os.environ |= _environment()
    sys.dont_write_bytecode = True
    import matplotlib.pyplot  # noqa: F401 - what takes long to import, and no part of the package
    import omegaconf  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    if only:
        kept = [record for record in read_records(out) if record["id"] not in only]
        out.write_text("".join(json.dumps(record) + "\n" for record in kept))
    passed: set[str] = set()  # tests that pass without any mutant
    for module in modules:
        path = COPY / "wgangp" / f"{module}.py"
        source = path.read_text()
        choices = name_mutants(module, source)
        tested = [row["id"] for row in read_records(out) if row["module"] == module]
        names = sorted(choices)
        random.Random(f"{seed} {module}").shuffle(names)
        names = [name for name in names if (name in only if only else name not in tested)]
        while names and (only or len(tested) < mutants):
            tested.append(names.pop(0))
            record = {"id": tested[-1], "module": module, **_test_mutant(path, source, choices[tested[-1]], passed)}
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print("{result:8} {module}:{line}: {old!r} -> {new!r}".format(**record), flush=True)


def _test_mutant(path: Path, source: str, mutant: tuple[int, int, str], passed: set[str]) -> dict[str, object]:
    """Put a mutant in the place of a module, and return what the tests say. Add tests that pass to ``passed``."""
    begin, end, part = mutant
    content = source.encode()
    old, line = content[begin:end].decode(), content[:begin].count(b"\n") + 1
    record: dict[str, object] = {"line": line, "code": source.splitlines()[line - 1].strip(), "old": old, "new": part}
    module = path.relative_to(COPY / "wgangp").with_suffix("").as_posix()
    tests = choose_tests(module, range(line, line + old.count("\n") + 1))
    started = time.monotonic()
    line_of_import = re.compile(rf"^from wgangp\.{module.replace('/', '.')} import", re.MULTILINE)
    files = [file for file in sorted((COPY / "tests").glob("test_*.py")) if line_of_import.search(file.read_text())]
    own = ["tests/test_golden.py", *(file.relative_to(COPY).as_posix() for file in files)]
    for chosen in (tests, own):  # coverage does not see what the compiler, other processes and decorators run
        path.write_bytes(content[:begin] + part.encode() + content[end:])
        result, failed = _test(chosen)
        path.write_text(source)
        if result == "timeout" and chosen is own:
            result = "survived"  # so many tests take longer than the limit without a mutant, too
        if result == "caught" and not passed.issuperset(failed or chosen):
            if _test(failed or chosen)[0] != "survived":
                raise RuntimeError(
                    f"tests fail without any change, see {COPY.parent}/mutate_last.log: {failed or chosen}"
                )
            passed.update(failed or chosen)
        if result != "survived":
            break
    return {**record, "result": result, "tests": len(tests), "seconds": round(time.monotonic() - started, 1)}


def _test(tests: list[str]) -> tuple[str, list[str]]:
    """Run tests in a child process and return caught, timeout or survived, and the test that failed."""
    if not tests:
        return "survived", []
    log = COPY.parent / "mutate_last.log"
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        null = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest

        code = 3
        try:
            excluded = [f"--deselect={name}" for name in json.loads(MAP.read_text())["failed"]]
            code = pytest.main(["-q", "-x", "-n", "0", "-rfE", "-p", "no:cacheprovider", *excluded, *tests])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))
    deadline = time.monotonic() + LIMIT_S
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", []
        time.sleep(0.02)
    # 5: no test was run. A package that cannot be imported any more ends pytest with 2 or 4, and names no test.
    if os.waitstatus_to_exitcode(status) in (0, 5):
        return "survived", []
    lines = re.findall(r"^(?:FAILED|ERROR) (.*)$", log.read_text(errors="replace"), re.MULTILINE)
    names = [max((t for t in tests if line.startswith(t)), key=len, default="") for line in lines]
    return "caught", [name for name in names if name]


def read_records(path: Path) -> list[dict]:
    """Return the records of a file, none if it is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def render(page: str, records: list[dict]) -> str:
    """Return the page with its table: one row per module. The score is caught / (mutants - equivalent)."""
    from wgangp.tables import markdown_table, replace_block  # here, because `run` imports the package in children only

    equivalent = {line.split()[0] for line in EQUIVALENT.read_text().splitlines() if not line.startswith("#")}
    rows = []
    for module in [*MODULES, "all"]:
        own = [record for record in records if module in (record["module"], "all")]
        caught = sum(record["result"] in ("caught", "timeout") for record in own)
        same = sum(record["result"] == "survived" and record["id"] in equivalent for record in own)
        score = f"{100 * caught / (len(own) - same):.1f} %" if len(own) > same else ""
        row = {"module": module, "mutants": len(own), "caught": caught, "equivalent": same}
        rows.append({**row, "survived": len(own) - caught - same, "score": score})
    tables = [[{k: str(v) for k, v in row.items()} for row in rows]]
    columns = {"survived in": "module", "line": "code", "part": "old", "in its place": "new"}
    survivors = [row for row in records if row["result"] == "survived" and row["id"] not in equivalent]
    if survivors:
        tables.append([{title: _format_code(row[name]) for title, name in columns.items()} for row in survivors])
    return replace_block(page, BEGIN, END, "\n\n".join(markdown_table(table) for table in tables))


def _format_code(text: str) -> str:
    return f"`{' '.join(text.split())}`".replace("|", r"\|")


def _copy_tree() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in files.splitlines():
        if (ROOT / file).exists():
            (COPY / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, COPY / file)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(COPY), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["map", "run", "render"])
    parser.add_argument("--mutants", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=MODULES)
    parser.add_argument("--tests", nargs="+", default=[], help="files of tests that are mapped; default: all")
    parser.add_argument("--only", nargs="+", default=[], help="names of mutants")
    parser.add_argument("--out", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    if arguments.command == "map":
        map_tests(arguments.tests)
    elif arguments.command == "run":
        run(arguments.mutants, arguments.seed, arguments.out.resolve(), arguments.modules, arguments.only)
    else:
        PAGE.write_text(render(PAGE.read_text(), read_records(RECORDS)))


if __name__ == "__main__":
    main()
