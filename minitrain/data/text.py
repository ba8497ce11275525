"""Text as bytes: Python's own standard library, or any file or folder.

The default needs no download and no file of others: every Python carries the source of its standard library, so the
model learns to write the language it is written in. The first nine tenths of the bytes are for training, the last tenth
for validation; no window crosses the border.
"""

import hashlib
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VALIDATION_SHARE = 0.1
VALIDATION_TOKENS = 32_768  # in windows spread evenly over the validation part; fewer where it is shorter


class Text:
    """Windows of `context` tokens and their successors, out of one long array of bytes.

    The batch of a step is a pure function of (seed, step): window starts are drawn uniformly, with replacement. Raises
    `ValueError` for a text too short to cut a window from either part.
    """

    vocab_size = 256

    def __init__(self, text: bytes, context: int):
        if context < 1:
            raise ValueError(f"context must be at least 1 token, not {context}")
        tokens = np.frombuffer(text, dtype=np.uint8)
        border = len(tokens) - int(len(tokens) * VALIDATION_SHARE)
        self.train_tokens, self.validation_tokens = tokens[:border], tokens[border:]
        if min(len(self.train_tokens), len(self.validation_tokens)) <= context:
            shortest = int((context + 1) / VALIDATION_SHARE)
            raise ValueError(
                f"a text of {len(text):,} bytes is too short for a context of {context}: its last tenth is for validation "
                f"and must hold a window; give at least {shortest:,} bytes or a shorter context"
            )
        self.row_size, self.size = context, len(self.train_tokens)
        self.digest = hashlib.sha256(text).hexdigest()

    def batch(self, seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each `(rows, context)` int64; the targets are the inputs' next bytes."""
        random = np.random.default_rng((seed, step))
        starts = random.integers(len(self.train_tokens) - self.row_size, size=rows)
        return self.windows(self.train_tokens, starts)

    def validation(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Batches of at most `rows` windows that do not overlap, the same ones always."""
        fitting = (len(self.validation_tokens) - 1) // self.row_size
        count = min(max(VALIDATION_TOKENS // self.row_size, 1), fitting)
        starts = np.arange(count) * fitting // count * self.row_size
        return [self.windows(self.validation_tokens, starts[i : i + rows]) for i in range(0, count, rows)]

    def windows(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(tokens[starts[:, None] + np.arange(self.row_size + 1)].astype(np.int64))
        return rows[:, :-1], rows[:, 1:]


def standard_library(context: int, folder: str | None = None) -> Text:
    """The source of 335 modules that every CPython from 3.11 to 3.14 has, about 7 MB, in a fixed order.

    `folder` is another Python's library, instead of the running one's. The text differs slightly from version to version;
    `digest` tells which one it was. Raises `FileNotFoundError` where modules are missing.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    names = files("minitrain.data").joinpath("standard_library.txt").read_text().split()
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} standard-library sources are missing from {root} (the first is {missing[0]}); "
            "install the full standard library of your Python, or train on a text of your own with --data PATH"
        )
    return Text(join_files([root / name for name in names]), context)


def own_text(context: int, path: str) -> Text:
    """A text file, or all text files below a folder in sorted order, but for hidden ones and the folders of runs.

    Raises `FileNotFoundError` where there is nothing, `ValueError` for a binary or empty file and a folder without text.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"there is no file or folder {path}; give the path of a text with --data PATH")
    if root.is_dir():
        found = [file for file in sorted(root.rglob("*")) if belongs(file, root) and is_text(file)]
        if not found:
            raise ValueError(f"folder {path} holds no text file; give one that does")
        return Text(join_files(found), context)
    if not root.is_file():
        raise ValueError(f"{path} is not a regular file; write its content into one first")
    if not is_text(root):
        raise ValueError(f"{path} is empty or not a text (it holds a zero byte); give a UTF-8 text file")
    return Text(join_files([root]), context)


def belongs(file: Path, root: Path) -> bool:
    """A regular file below `root` that is neither hidden nor written by a run of ours."""
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and not hidden and not (file.parent / "metrics.jsonl").exists()


def is_text(file: Path) -> bool:
    """Not empty, and without a zero byte, which no text in UTF-8 has and nearly every binary file does."""
    content = file.read_bytes()
    return bool(content) and b"\0" not in content


def join_files(paths: list[Path]) -> bytes:
    """The files' bytes, one after the other, with newlines as `\\n` on every system."""
    return b"\n".join(path.read_bytes().replace(b"\r\n", b"\n") for path in paths)


def encode(text: str) -> Tensor:
    """`(1, T)` int64 bytes of a text in UTF-8."""
    return torch.tensor([list(text.encode())], dtype=torch.int64)


def decode(tokens: Tensor | np.ndarray) -> str:
    """The text of one row of bytes; a broken UTF-8 sequence becomes a replacement mark."""
    return bytes(tokens.tolist()).decode(errors="replace")


def python_version() -> str:
    """`3.11`: which standard library the default text is."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
