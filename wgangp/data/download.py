"""Files from the internet: over https only, under a temporary name, against a pinned digest."""

import gzip
import hashlib
import tarfile
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from wgangp.files import digest_file, write_file

__all__ = ["download", "download_cifar10", "download_mnist", "extract_members"]

MNIST = {  # name -> address, and the published sha256 of every file
    "MNIST": (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "FashionMNIST": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # as in Keras and torchvision

LARGEST = 10**9  # bytes: no file that this project downloads has more
WAIT = 60.0  # seconds without an answer


class _Redirect(HTTPRedirectHandler):
    """Follows redirects to other https addresses, and refuses all others."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> object:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download_mnist(name: str, folder: Path) -> None:
    """Download the four files of MNIST or FashionMNIST to a folder, and unpack them there. Errors: as in `download`."""
    url, files = MNIST[name]
    for file, sha256 in files.items():
        download(f"{url}/{file}", folder / file, sha256)
        with gzip.open(folder / file) as archive:
            _unpack(archive, folder / file.removesuffix(".gz"))


def download_cifar10(folder: Path, names: Iterable[str]) -> None:
    """Download CIFAR-10 to a folder, and unpack the files with these names there. Errors: as in `download`."""
    archive = folder / CIFAR10.rpartition("/")[2]
    download(CIFAR10, archive, CIFAR10_SHA256)
    extract_members(archive, names, folder)


def download(url: str, path: Path, sha256: str) -> None:
    """Download a file, unless there is one with this sha256.

    Raises:
        ValueError: the address, or one that it leads to, is not https; the file has another sha256, or more than 1 GB.
            No file is kept.
        OSError: there is no connection, the server has no such file, or the connection ends early: the message is one
            line with the address; path cannot be written.
    """
    if path.is_file() and digest_file(path) == sha256:
        return
    _require_https(url)
    content, request = bytearray(), Request(url, headers={"User-Agent": "wgangp"})
    bar = tqdm(desc=path.name, unit="B", unit_scale=True, leave=False, disable=None)
    try:
        with bar, build_opener(_Redirect).open(request, timeout=WAIT) as answer:
            while part := answer.read(2**16):
                content += part
                bar.update(len(part))
                if len(content) > LARGEST:
                    raise ValueError(f"{url} has more than {LARGEST:,} bytes: it is not the published file")
            missing = getattr(answer, "length", 0)  # of the bytes that the header says
    except (OSError, HTTPException) as error:  # URLError, a time limit and a reset connection are OSErrors
        reason = str(error) if str(error).isprintable() else ""  # a server may send line breaks
        raise OSError(f"{url}: {reason or repr(error)}. Check the connection, and try again") from error
    if missing:
        raise OSError(f"{url}: the connection ended {missing:,} bytes before the end of the file. Try again")
    if (actual := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{url}: its sha256 is {actual}, and that of the published file is {sha256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)


def extract_members(archive: Path, names: Iterable[str], folder: Path) -> None:
    """Unpack files of a .tar.gz to folder/NAME. Its other files, links and folders are left out.

    Args:
        names: paths in the archive, which this program and not the archive chooses.

    Raises:
        ValueError: the archive has no file of this name.
    """
    with tarfile.open(archive) as tar:
        for name in names:
            try:
                member = tar.getmember(name)
            except KeyError:
                member = None
            file = tar.extractfile(member) if member is not None and member.isfile() else None
            if file is None:
                raise ValueError(f"{archive} has no file {name}")
            _unpack(file, folder / name)


def _unpack(source: IO[bytes], path: Path) -> None:
    content = source.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path.name} has more than {LARGEST:,} bytes: it is not the published file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)


def _require_https(url: str) -> None:
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not https, so that anybody on the way could change it. It is not downloaded")
