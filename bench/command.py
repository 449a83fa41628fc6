"""The command lines of the measurements: wrong options, error lines, and the command that the records keep."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["Parser", "command_line", "print_errors"]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ValueError for a wrong option."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. Use --help for a list of the options")


@contextmanager
def print_errors() -> Iterator[None]:
    """Turn a ValueError into the line `error: ...` and exit code 1. If HYDRA_FULL_ERROR is set, print the traceback."""
    try:
        yield
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")


def command_line(module: str, arguments: list[str]) -> str:
    """Return the command that runs a module with these arguments, quoted for a shell."""
    return shlex.join(["python", "-m", module, *arguments])
