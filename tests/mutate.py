"""Mutation testing: change one place of the package, and see whether a test fails.

    python tests/mutate.py map                                  # once: which tests execute which line
    python tests/mutate.py run --mutants 30 --seed 0            # 30 mutants of each module; continues where it stopped

A mutant that no test notices has survived: a test is missing, or the mutant computes the same as the original
(equivalent). Equivalent mutants are in tests/equivalent.txt, one per line, each with the reason.
The work is done in a copy of the tree. A process that has imported torch forks a child per mutant.
"""

import argparse
import ast
import collections
import hashlib
import json
import os
import random
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


def map_tests() -> None:
    """Run the default tests once, in the copy, and record which lines each executes, its seconds, and which fail."""
    _copy_tree()
    arguments = ["-q", "-n", "2", "-p", "no:cacheprovider", "--cov=wgangp", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", *arguments, "--durations=0", "--durations-min=0"]
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


def run(mutants: int, seed: int, out: Path, modules: list[str]) -> None:
    """Test mutants of each module and append one JSON line per mutant to a file. Those in the file are left out."""
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
    tested = {json.loads(line)["id"] for line in out.read_text().splitlines()} if out.exists() else set()
    out.parent.mkdir(parents=True, exist_ok=True)
    for module in modules:
        path = COPY / "wgangp" / f"{module}.py"
        source = path.read_text()
        control = _test(choose_tests(module, range(1, 10_000))[:50])
        if control != "survived":
            raise RuntimeError(f"{module}: tests fail without any change: {COPY.parent / 'mutate_last.log'}")
        choices = sorted(set(find_mutants(source)))
        for begin, end, part in random.Random(f"{seed} {module}").sample(choices, min(mutants, len(choices))):
            content = source.encode()
            old, line = content[begin:end].decode(), content[:begin].count(b"\n") + 1
            whole = source.splitlines()[line - 1].strip()
            column = begin - content.rfind(b"\n", 0, begin)
            number = hashlib.sha256(f"{module} {whole} {column} {part}".encode()).hexdigest()[:12]
            if number in tested:
                continue
            mutant = content[:begin] + part.encode() + content[end:]
            try:
                ast.parse(mutant)
            except SyntaxError:  # for example a keyword in front of *args
                continue
            path.write_bytes(mutant)
            tests = choose_tests(module, range(line, line + old.count("\n") + 1))
            started = time.monotonic()
            result = _test(tests)
            own = f"tests/test_{Path(module).name}.py"
            if result == "survived" and (ROOT / own).exists():  # coverage does not see what the compiler runs
                result = _test([own])
            path.write_text(source)
            record = {"id": number, "module": module, "line": line, "code": whole, "old": old, "new": part}
            record |= {"result": result, "tests": len(tests), "seconds": round(time.monotonic() - started, 1)}
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{result:8} {module}:{line}: {old[:60]!r} -> {part[:60]!r}", flush=True)


def _test(tests: list[str]) -> str:
    """Run tests in a child process and return caught, timeout or survived."""
    if not tests:
        return "survived"
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        null = os.open(COPY.parent / "mutate_last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest

        code = 3
        try:
            failed = [f"--deselect={name}" for name in json.loads(MAP.read_text())["failed"]]
            code = pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *failed, *tests])
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
            return "timeout"
        time.sleep(0.02)
    # 5: no test was run. A package that cannot be imported any more ends pytest with 2 or 4.
    return "survived" if os.waitstatus_to_exitcode(status) in (0, 5) else "caught"


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
    parser.add_argument("command", choices=["map", "run"])
    parser.add_argument("--mutants", type=int, default=30, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=MODULES)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reliability" / "mutants.jsonl")
    arguments = parser.parse_args()
    if arguments.command == "map":
        map_tests()
    else:
        run(arguments.mutants, arguments.seed, arguments.out.resolve(), arguments.modules)


if __name__ == "__main__":
    main()
