"""Downloads, from a server in this process: what arrives is what was wanted, or there is a word on what to do."""

import hashlib
import io
import os
import pickle
import pickletools
import socket
import struct
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from small import assert_one_sentence

from minitrain.data import download
from minitrain.data.download import CIFAR10, CIFAR10_LABELS, TINY_SHAKESPEARE, ArraysOnly, Source, cifar10, fetch
from minitrain.data.images import own_images

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked = CONTENT, Counter()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.strip("/")
        self.server.asked[path] += 1
        content = self.server.content
        if path in ("404", "500"):
            return self.send_error(int(path))
        if path == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        packed = "identity" not in self.headers.get("Accept-Encoding", "")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if packed:  # so that a client which allows it does not get what it wants
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        broken = path == "truncated" or (path == "once" and self.server.asked[path] == 1)
        self.wfile.write(content[: len(content) // 2] if broken else content)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(serving: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    serving.content = CONTENT
    serving.asked.clear()
    monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(download, "PAUSE", 0)
    return serving


def source(*urls: str, content: bytes = CONTENT) -> Source:
    sha256 = hashlib.sha256(content).hexdigest()
    return Source("The thing", "thing.bin", urls, sha256, len(content), stand_in="the other thing")


def nowhere() -> str:
    """A place where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/x"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_downloaded_once_and_lies_alone_in_the_folder(server: Server, tmp_path: Path):
    for _ in range(2):
        file = fetch(source(server.url("good")))
        assert file == tmp_path / "data" / "thing.bin"
        assert file.read_bytes() == CONTENT
    assert os.listdir(tmp_path / "data") == ["thing.bin"]
    assert server.asked == {"good": 1}


@pytest.mark.parametrize("path", ["wrong", "truncated", "404", "500", "nowhere"])
def test_the_next_host_is_asked_at_once_where_one_fails(server: Server, tmp_path: Path, path: str):
    first = nowhere() if path == "nowhere" else server.url(path)
    assert fetch(source(first, server.url("good"))).read_bytes() == CONTENT
    assert os.listdir(tmp_path / "data") == ["thing.bin"]
    assert server.asked == Counter({"good", path} - {"nowhere"})


def test_the_first_host_that_helps_is_the_only_one_asked(server: Server):
    fetch(source(server.url("good"), server.url("404")))
    assert server.asked == {"good": 1}


def test_a_host_that_broke_off_is_asked_again(server: Server):
    assert fetch(source(server.url("once"))).read_bytes() == CONTENT
    assert server.asked == {"once": 2}


@pytest.mark.parametrize(
    ("path", "asked", "why"),
    [
        ("wrong", 1, "sent another file, whose sha256 is wrong"),
        ("404", 1, "answered 404"),
        ("500", 2, "answered 500"),
        ("truncated", 2, "broke off"),
        ("nowhere", 0, "could not be reached"),
    ],
)
def test_where_no_host_helps_the_error_says_what_to_do(server: Server, tmp_path: Path, path: str, asked: int, why: str):
    wanted = source(nowhere() if path == "nowhere" else server.url(path))
    with pytest.raises(ConnectionError) as error:
        fetch(wanted)
    for word in (
        why, "The thing", "thing.bin", wanted.urls[-1], wanted.sha256, "300,000 bytes", tmp_path / "data",
        "MINITRAIN_DATA", "the other thing",
    ):  # fmt: skip
        assert str(word) in str(error.value)
    assert server.asked[path] == asked
    assert os.listdir(tmp_path / "data") == []


def test_the_advice_works(server: Server, tmp_path: Path):
    with pytest.raises(ConnectionError):
        fetch(source(nowhere()))
    (tmp_path / "data" / "thing.bin").write_bytes(CONTENT)
    assert fetch(source(nowhere())).read_bytes() == CONTENT


def test_another_file_of_the_name_is_neither_used_nor_replaced(server: Server, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thing.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="remove it") as error:
        fetch(source(server.url("good")))
    assert_one_sentence(error.value, tmp_path / "data" / "thing.bin", hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "data" / "thing.bin").read_bytes() == CONTENT[:-1]
    assert not server.asked


def test_a_folder_that_cannot_be_made_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINITRAIN_DATA", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="MINITRAIN_DATA") as error:
        fetch(source(server.url("good")))
    assert_one_sentence(error.value, tmp_path / "file")


def test_what_is_not_the_hosts_doing_is_not_blamed_on_it():
    with pytest.raises(OSError, match="No space"):
        download.reason(OSError(28, "No space left on device"))
    assert download.reason(requests.ReadTimeout()) == ("did not answer in time", True)


def test_the_folder_is_the_users_cache_unless_the_variable_names_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MINITRAIN_DATA", "")
    assert "minitrain" in download.data_folder().parts
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINITRAIN_DATA", "~/sets")
    assert download.data_folder() == tmp_path / "sets"


def test_what_is_known_of_the_files():
    assert CIFAR10.sha256 == "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert TINY_SHAKESPEARE.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert CIFAR10.urls[-1].startswith("https://www.cs.toronto.edu/~kriz/")
    for known in (CIFAR10, TINY_SHAKESPEARE):
        assert len(known.urls) > 1
        assert all(url.startswith("https://") for url in known.urls)


def test_tiny_shakespeare_is_a_text(server: Server, monkeypatch: pytest.MonkeyPatch):
    known = replace(source(server.url("good")), file="tinyshakespeare.txt")
    monkeypatch.setattr(download, "TINY_SHAKESPEARE", known)
    text = download.tiny_shakespeare(context=8)
    assert text.digest == known.sha256
    assert text.train_tokens.tobytes() == CONTENT[:270_000]


# --- CIFAR-10: an archive as Python 2 wrote it ------------------------------------------------------------------------


def python2_string(content: bytes) -> bytes:
    """The opcode for `str`, which Python 3 reads and does not write."""
    return (
        b"U" + bytes([len(content)]) + content
        if len(content) < 256
        else b"T" + struct.pack("<i", len(content)) + content
    )


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """`{"labels": [...], "data": array}` in protocol 2: the array is made empty, then filled from its state."""
    dtype = b"cnumpy\ndtype\n" + python2_string(b"u1") + number(0) + number(1) + b"\x87R("
    dtype += number(3) + python2_string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + number(0)
        + b"\x85"
        + python2_string(b"b")
        + b"\x87R"
    )
    array += b"(" + number(1) + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86" + dtype + b"\x89"
    array += python2_string(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + python2_string(b"labels") + listed + python2_string(b"data") + array + b"u."


def archive(rows: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A small archive in the original's layout, and its pixels (6 parts, rows, 3072) and labels."""
    random = np.random.default_rng(1)
    pixels = random.integers(256, size=(6, rows, 3072), dtype=np.uint8)
    labels = np.stack([random.permutation(rows) % 10 for _ in range(6)])
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for i in (5, 3, 0, 1, 4, 2):  # in an archive, as the original's, the parts are in no order
            name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
            content = python2_batch(pixels[i], labels[i])
            pickletools.dis(content, out=io.StringIO())  # it is a sound pickle
            about = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return file.getvalue(), pixels, labels


@pytest.fixture
def small_cifar10(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[Server, np.ndarray, np.ndarray]:
    server.content, pixels, labels = archive(rows=40)
    known = replace(source(server.url("good"), content=server.content), file="cifar.tar.gz")
    monkeypatch.setattr(download, "CIFAR10", known)
    return server, pixels, labels


def test_cifar10_is_what_the_archive_holds(small_cifar10: tuple[Server, np.ndarray, np.ndarray]):
    _, pixels, labels = small_cifar10
    data = cifar10(held_out="test")
    assert data.label_names == CIFAR10_LABELS
    assert data.train_images.shape == (200, 32, 32, 3)
    assert data.train_images[0, 2, 5].tolist() == pixels[0, 0].reshape(3, 32, 32)[:, 2, 5].tolist()
    assert np.array_equal(data.train_images.permute(0, 3, 1, 2).numpy().reshape(5, 40, 3072), pixels[:5])
    assert np.array_equal(data.validation_images.permute(0, 3, 1, 2).numpy().reshape(40, 3072), pixels[5])
    assert data.train_labels.tolist() == labels[:5].flatten().tolist()
    assert data.validation_labels.tolist() == labels[5].tolist()


def test_the_decoded_copy_is_enough_and_a_broken_one_is_made_anew(
    small_cifar10: tuple[Server, np.ndarray, np.ndarray], tmp_path: Path
):
    server, *_ = small_cifar10
    digest = cifar10(held_out="test").digest
    (tmp_path / "data" / "cifar.tar.gz").unlink()
    assert cifar10(held_out="test").digest == digest
    assert server.asked == {"good": 1}
    (copy,) = (tmp_path / "data").iterdir()
    assert own_images(str(copy), held_out="test").digest == digest
    copy.write_bytes(copy.read_bytes()[:1000])
    assert cifar10(held_out="test").digest == digest
    assert server.asked == {"good": 2}


def test_validation_images_of_cifar10_are_training_images(small_cifar10: tuple[Server, np.ndarray, np.ndarray]):
    data = cifar10(limit=100)
    assert (data.size, len(data.validation_labels)) == (100, 20)
    assert np.array_equal(data.validation_labels.bincount(), np.full(10, 2))


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("thing", [Evil(), eval, np.random.default_rng])
def test_a_pickle_that_calls_something_is_refused(thing: object):
    with pytest.raises(pickle.UnpicklingError, match="no part of an array"):
        ArraysOnly(pickle.dumps({"data": thing}, protocol=2)).load()


def test_a_folder_where_nothing_can_be_written_still_gives_its_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    arrays = {"train_labels": np.arange(3)}
    monkeypatch.setenv(download.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(download, "fetch", lambda source: tmp_path / source.file)
    monkeypatch.setattr(download, "decode_cifar10", lambda archive: arrays)
    monkeypatch.setattr(download, "write_atomically", refuse)
    assert download.cifar10_arrays() is arrays
