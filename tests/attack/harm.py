"""What the attacks share: a command as it is at a terminal, small work to harm, ways to harm it, and what must be left."""

import contextlib
import importlib
import io
import json
import random
import re
import resource
import signal
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitrain import cli

TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(200))
EXACT = ["--precision", "fp32", "--threads", "1"]
TRAIN = [
    "train",
    "--depth",
    "1",
    "--width",
    "32",
    "--context",
    "16",
    "--batch-size",
    "64",
    *EXACT,
    "--data",
    "text.txt",
]
TRAIN_IMAGES = ["train-images", "--depth", "8", "--width", "4", "--batch-size", "8", *EXACT, "--data", "own.npz"]

said: list[str] = []  # what was done, to be printed where a case fails


class Hung(BaseException):
    """Not one of the errors that a command may catch."""


def at_terminal(*arguments: str) -> tuple[int, str]:
    """Exit code and errors of a command, which has 5 minutes and 12 GB; what trains after the first is told to stop.

    Raises `AssertionError` where bad input does not end in a sentence.
    """
    ticks = iter(range(4))

    def tick(*_: object) -> None:
        if next(ticks, None) is None:
            raise Hung(arguments)
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)

    errors, code, limits, threads = io.StringIO(), 0, resource.getrlimit(resource.RLIMIT_AS), torch.get_num_threads()
    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 60, 60)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, limits[1]))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            warnings.resetwarnings()
            cli.main(list(arguments))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    said.append(f"{arguments}\n{errors.getvalue()}")
    last = re.split(r"[\r\n]+", errors.getvalue().strip())[-1]
    assert code in (0, 1, 2, 130), code
    assert not re.search("Traceback|frame #", errors.getvalue())  # Python's, and that of torch inside a sentence
    assert code != 2 or re.match(r"minitrain: .*\w", last), last
    return code, errors.getvalue()


def set_defaults(function: Any, **values: Any) -> None:
    """Other defaults of keywords, in this process."""
    function.__kwdefaults__ |= values


@contextlib.contextmanager
def patched(module: str, **values: Any) -> Generator[None]:
    """Within it, names of a module have other values."""
    names = vars(importlib.import_module(module))
    before = {name: names[name] for name in values}
    names.update(values)
    try:
        yield
    finally:
        names.update(before)


# --- work to harm ----------------------------------------------------------------------------------------------------------


def images(count: int = 60) -> dict[str, np.ndarray]:
    """Dark and bright images of 8x8 pixels."""
    labels = np.arange(count, dtype=np.uint8) % 2
    pixels = np.random.default_rng(0).integers(0, 100, (count, 8, 8, 3), dtype=np.uint8)
    return {"train_images": pixels + 150 * labels[:, None, None, None], "train_labels": labels}


def make_data() -> None:
    """`text.txt` and `own.npz`, in this folder."""
    Path("text.txt").write_text(TEXT)
    np.savez("own.npz", **images())  # ty: ignore[invalid-argument-type]


# --- what must be left -----------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_unharmed(before: dict[str, bytes], but: tuple[str, ...] = ()) -> None:
    """All files that were in this folder are there still, byte for byte, but for some that begin so."""
    now = content(Path())
    lost = [name for name, was in before.items() if now.get(name) != was and not name.startswith(but or "\0")]
    assert not lost, lost


def check_attempt(*command: str) -> None:
    """Training keeps all that was there; where it succeeds, the run is whole, and its options lead back to it."""
    before = content(Path())
    code, _ = at_terminal(*command)
    check_unharmed(before, but=("kept/recipe.txt", "kept-images/recipe.txt"))  # in which a resume writes whole paths
    for path in Path().rglob("metrics.jsonl"):
        if code == 0 and str(path) not in before:
            lines = path.read_text().splitlines()
            assert "NaN" not in "".join(lines)
            assert (steps := [json.loads(line)["step"] for line in lines]) == sorted(steps)
            again = "train-images" if "train-images" in (path.parent / "options.json").read_text() else "train"
            assert at_terminal(again, "--resume", str(path.parent))[0] == 0
            assert path.read_text().splitlines() == lines


# --- harm ------------------------------------------------------------------------------------------------------------------


def harm_bytes(path: Path, chance: random.Random) -> None:
    """Cuts a file, empties it, changes some of its bytes, takes some out, adds some, or puts a folder in its place."""
    whole = path.read_bytes()
    at, few = chance.randrange(len(whole)), chance.choice([1, 7, 512])
    how = chance.choice(["cut", "empty", "change", "change", "zero", "take", "add", "folder"])
    said.append(f"{how} {few} at {at} of {path}")
    path.unlink()
    if how == "folder":
        path.mkdir()
        return
    changed = bytearray(whole)
    for _ in range(chance.choice([1, 1, 5, 50])):
        changed[chance.randrange(len(whole))] = chance.randrange(256)
    cases = {"cut": whole[:at], "empty": b"", "change": changed, "take": whole[:at] + whole[at + few :]}
    cases |= {
        "zero": whole[:at] + bytes(few) + whole[at + few :],
        "add": whole[:at] + chance.randbytes(few) + whole[at:],
    }
    path.write_bytes(cases[how])


STRANGE: tuple[Any, ...] = (None, 70, -1, 10**30, float("nan"), "x", "", (), {}, (1,), {"a": 1})


def harm_value(value: Any, chance: random.Random, strange: tuple[Any, ...] = STRANGE, path: str = "") -> Any:
    """The same nested value with one part, at any depth, taken out or replaced by something strange."""
    if isinstance(value, dict | list) and value and (chance.random() < 0.9 or not path):
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy: Any = value.copy()
        if chance.random() < 0.25:
            said.append(f"{path}.{key} taken out")
            del copy[key]
        else:
            copy[key] = harm_value(value[key], chance, strange, f"{path}.{key}")
        return copy
    new = chance.choice(strange)
    said.append(f"{path} was {str(value)[:60]} and is {new}")
    return new
