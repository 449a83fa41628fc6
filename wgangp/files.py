"""Errors of files: each names the file, and says in one line what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["explain_error", "name_file"]

REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or ask for a larger quota",
    errno.EFBIG: "Raise the limit of the size of a file (ulimit -f)",
    errno.EACCES: "Give yourself the permission, or choose another folder",
    errno.EPERM: "Give yourself the permission, or choose another folder",
    errno.EROFS: "Choose another folder",
    errno.ENOENT: "A folder or file was removed: put it back, or choose another folder",
    errno.ENOTDIR: "A file is where a folder is needed: move it away, or choose another folder",
    errno.EISDIR: "A folder is where a file is needed: move it away",
    errno.EEXIST: "Move it away",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
}


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Give every OSError of the with block the name of a file. Errors of writing, such as a full disk, have none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def explain_error(error: OSError) -> str:
    """Return one line: which file, what is wrong, and what to do."""
    if error.errno is None or error.strerror is None:
        return str(error)
    remedy = REMEDIES.get(error.errno, "Remove the cause")
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}. {remedy}, and run the same command again. Files that were complete are unchanged"
