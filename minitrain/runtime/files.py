"""Files that are whole or not there, and a run that ends when it is told to.

Written to a temporary neighbour, flushed to the disk and renamed: a kill at any moment leaves the old file or the new.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replaces `path` by what `write(file)` writes, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step."""
    write_atomically(path, lambda file: file.write(text.encode()))


def append_line(path: Path, line: str) -> None:
    """Adds a line by a single unbuffered write, so that a kill cannot leave half of it."""
    with open(path, "ab", buffering=0) as file:
        file.write(line.encode() + b"\n")


def check_writable(folder: Path, hint: str = "choose another with --out") -> None:
    """Raises `ValueError` where a folder cannot be made or written to, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write to folder {folder} ({error.strerror}); {hint}") from None


@contextmanager
def only_writer(folder: Path | None, wait: bool = False) -> Generator[None]:
    """Keeps other processes from entering with the same folder, wherever the system and its file system have locks.

    Where another one is there already, waits for it or raises `ValueError`.
    """
    if folder is None or not folder.is_dir() or fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"another process is writing to {folder}; wait for it, or choose another folder") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def stop_requests() -> Generator[Callable[[], bool]]:
    """Within it, Ctrl-C and SIGTERM are remembered rather than obeyed: the yielded function tells whether one came.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python allows no handlers, it never says yes.
    """
    came: list[int] = []

    def remember(number: int, frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
