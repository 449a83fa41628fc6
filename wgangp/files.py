"""Files: written completely or not at all, read with care, and errors that name the file and say what to do."""

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "UNFINISHED",
    "complete",
    "digest_file",
    "explain_error",
    "name_file",
    "read_file",
    "refuse_links",
    "remove_unfinished",
    "write_file",
]

UNFINISHED = ".unfinished-"  # the names of files and folders that are being written begin with it

REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or ask for a larger quota",
    errno.EFBIG: "Raise the limit of the size of a file (ulimit -f)",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Give yourself the permission, or choose another folder"),
    errno.EROFS: "Choose another folder",
    errno.ENOENT: "A folder or file was removed: put it back, or choose another folder",
    errno.ENOTDIR: "A file is where a folder is needed: move it away, or choose another folder",
    errno.EISDIR: "A folder is where a file is needed: move it away",
    errno.EEXIST: "Move it away",
    errno.ELOOP: "A link is where a file is needed: replace it by the file",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENOLCK: "The file system refuses locks: choose another folder",
    errno.EOPNOTSUPP: "The file system cannot do this: choose another folder",
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


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file. After a crash it is either the old one or the new one, never a part of it.

    It is written under a random name in the same folder, synced to the disk and renamed. A link at path is replaced.
    OSError names the path.
    """
    temporary = path.with_name(UNFINISHED + secrets.token_hex(8))  # as mkstemp, which would make it private
    try:
        with name_file(path), temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # a disk that is read-only refuses this, too, and the first error is what matters
            temporary.unlink()


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Yield another path, for a file or a folder. It is renamed to path at the end of the with block, without an error.

    The parents of path are created. OSError names the path.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED, ignore_cleanup_errors=True) as folder:
            yield Path(folder, path.name)
            Path(folder, path.name).rename(path)
    except OSError as error:
        if UNFINISHED in str(error.filename):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def remove_unfinished(*folders: Path) -> None:
    """Remove the files that `write_file` left in folders when its process was killed. Nobody else may write there."""
    for path in (path for folder in folders for path in folder.glob(f"{UNFINISHED}*")):
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)


def read_file(path: Path, limit: float = float("inf")) -> bytes:
    """Read a file that others may have written. ValueError if it is not a file, or has more than limit bytes."""
    if not path.is_file():  # reading a pipe would never end
        problem = "is not a file: move it away, and restore the file" if path.exists() else "does not exist: restore it"
        raise ValueError(f"{path} {problem} from a copy")
    if path.stat().st_size > limit:
        raise ValueError(f"{path} is damaged (it has more than {limit:,} bytes): restore the file from a copy")
    return path.read_bytes()


def refuse_links(folder: Path) -> None:
    """Raise ValueError for a link in a run folder that leads out of it: other files would be written or deleted.

    The folder itself may be a link.
    """
    root = os.path.realpath(folder)
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise ValueError(
                f"{path} is a link that leads out of the folder: nothing is written there. Replace it by what it leads"
                " to; the run folder itself may be a link"
            )


def digest_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
