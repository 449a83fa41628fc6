"""Downloads: over https only, under a temporary name, against a pinned digest, and archives without other paths."""

import gzip
import hashlib
import io
import socket
import tarfile
import threading
import urllib.request
from http.client import BadStatusLine
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from wgangp.data import download as module
from wgangp.data.download import CIFAR10, MNIST, download, download_cifar10, download_mnist, extract_members
from wgangp.files import explain_error
from wgangp.metrics.inception import URL

CONTENT = b"published" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """server[address] is what the internet has: bytes, an address to which it leads, or an error."""
    pages = {}

    def open_page(opener, request, timeout):
        url = request.full_url
        page = pages[url]
        if isinstance(page, Exception):
            raise page
        if isinstance(page, str):
            (handler,) = [
                h for h in opener.handlers if hasattr(h, "redirect_request") or type(h).__name__ == "_Redirect"
            ]
            return open_page(opener, handler.redirect_request(request, io.BytesIO(), 302, "Found", {}, page), timeout)
        return io.BytesIO(page)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", open_page)
    return pages


def content(folder):
    return {path.name for path in folder.iterdir()}


def test_file_is_downloaded_once(server, tmp_path):
    server["https://a.org/file"] = CONTENT
    download("https://a.org/file", tmp_path / "new" / "file", SHA256)
    server.clear()
    download("https://a.org/file", tmp_path / "new" / "file", SHA256)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT and content(tmp_path / "new") == {"file"}


@pytest.mark.parametrize("url", ["http://a.org/file", "ftp://a.org/file", "file:///etc/passwd", "HTTPS.org"])
def test_other_protocols_are_refused(server, tmp_path, url):
    server[url] = CONTENT
    with pytest.raises(ValueError, match="is not https"):
        download(url, tmp_path / "file", SHA256)
    assert content(tmp_path) == set()


@pytest.mark.parametrize("target, works", [("https://b.org/file", True), ("http://a.org/file", False)])
def test_redirects_stay_on_https(server, tmp_path, target, works):
    server |= {"https://a.org/file": target, target: CONTENT}
    if works:
        download("https://a.org/file", tmp_path / "file", SHA256)
    else:
        with pytest.raises(ValueError, match=r"http://a\.org/file is not https"):
            download("https://a.org/file", tmp_path / "file", SHA256)
    assert content(tmp_path) == ({"file"} if works else set())


@pytest.mark.parametrize(
    "answer", [CONTENT[:-1], b"", OSError("no route"), CONTENT + b"!"], ids=["cut", "", "", "long"]
)
def test_nothing_is_kept_of_another_file(server, tmp_path, answer):
    server["https://a.org/file"] = answer
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises((ValueError, OSError), match=r"its sha256 is .* that of the published file|no route"):
        download("https://a.org/file", tmp_path / "file", SHA256)
    assert content(tmp_path) == {"file"} and (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize(
    "header, body", [("Content-Length: 9000", CONTENT[:5000]), ("Transfer-Encoding: chunked", b"")]
)
def test_connection_that_ends_early_is_not_said_to_be_another_file(monkeypatch, tmp_path, header, body):
    """A real server on this machine closes the connection."""

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n".encode() + body)

    monkeypatch.setattr(module, "_require_https", lambda url: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        with pytest.raises(OSError, match=r"(the connection ended 4,000 bytes before|IncompleteRead).*[Tt]ry again"):
            download(url, tmp_path / "file", SHA256)
        thread.join()
    assert content(tmp_path) == set()


@pytest.mark.parametrize(
    "error",
    [
        URLError(ConnectionRefusedError(111, "Connection refused")),
        HTTPError("https://a.org/file", 404, "Not Found", {}, None),
        TimeoutError("timed out"),
        ConnectionResetError(104, "Connection reset by peer"),
        BadStatusLine("odd\r\n\x1b[2J"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_of_the_connection_is_one_line_with_the_address_and_the_remedy(server, tmp_path, error):
    server["https://a.org/file"] = error
    with pytest.raises(OSError, match=r"^https://a\.org/file: .+\. Check the connection, and try again$") as caught:
        download("https://a.org/file", tmp_path / "file", SHA256)
    assert explain_error(caught.value).isprintable() and content(tmp_path) == set()


def test_endless_answer_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 5000)
    server["https://a.org/file"] = CONTENT
    with pytest.raises(ValueError, match="has more than 5,000 bytes"):
        download("https://a.org/file", tmp_path / "file", SHA256)
    assert content(tmp_path) == set()


def test_every_address_is_https_with_a_sha256():
    for url in (CIFAR10, URL, *(url for url, _ in MNIST.values())):
        assert url.startswith("https://")
    digests = [sha256 for _, files in MNIST.values() for sha256 in files.values()]
    assert len(set(digests)) == 8 and all(len(bytes.fromhex(sha256)) == 32 for sha256 in digests)


def test_digits_are_unpacked(server, tmp_path, monkeypatch):
    packed = gzip.compress(CONTENT)
    monkeypatch.setitem(MNIST, "MNIST", ("https://a.org", {"images.gz": hashlib.sha256(packed).hexdigest()}))
    server["https://a.org/images.gz"] = packed
    download_mnist("MNIST", tmp_path)
    assert (tmp_path / "images").read_bytes() == CONTENT and content(tmp_path) == {"images", "images.gz"}


def write_archive(path, members):
    """A .tar.gz with (name, content): bytes, or the target of a link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, value in members:
            member = tarfile.TarInfo(name)
            if isinstance(value, bytes):
                member.size = len(value)
            else:
                member.type, member.linkname = tarfile.SYMTYPE, value
            tar.addfile(member, io.BytesIO(value) if isinstance(value, bytes) else None)


def test_only_named_files_of_an_archive_are_unpacked(server, tmp_path, monkeypatch):
    archive, folder = tmp_path / "archive.tar.gz", tmp_path / "a" / "b"
    absolute = str(tmp_path / "outside")
    hostile = [("../outside", b"x"), (absolute, b"x"), ("data/../../outside", b"x"), ("link", "/etc")]
    write_archive(archive, [*hostile, ("data/batch", CONTENT), ("data/link", "/etc/passwd")])
    extract_members(archive, ["data/batch"], folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "data" / "batch"]
    assert content(tmp_path) == {"a", "archive.tar.gz"} and content(tmp_path / "a") == {"b"}
    for name in ("data/link", "data/none", "data"):
        with pytest.raises(ValueError, match=f"has no file {name}"):
            extract_members(archive, [name], folder)
    assert not Path(absolute).exists()


def test_pictures_are_unpacked(server, tmp_path, monkeypatch):
    write_archive(tmp_path / "packed", [("cifar-10-batches-py/test_batch", CONTENT)])
    server[CIFAR10] = (tmp_path / "packed").read_bytes()
    monkeypatch.setattr(module, "CIFAR10_SHA256", hashlib.sha256(server[CIFAR10]).hexdigest())
    download_cifar10(tmp_path / "data", ["cifar-10-batches-py/test_batch"])
    assert (tmp_path / "data" / "cifar-10-batches-py" / "test_batch").read_bytes() == CONTENT
