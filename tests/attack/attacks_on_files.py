"""Attacks on data, on what a comparison and a lesson keep, and on a learner's file."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harm import (
    TEXT,
    TRAIN,
    TRAIN_IMAGES,
    at_terminal,
    check_attempt,
    check_unharmed,
    content,
    harm_bytes,
    harm_value,
    images,
    patched,
    said,
)
from toys import draws

from minitrain.lab.compare import compare, final
from minitrain.lab.places import lessons_folder, results_folder
from minitrain.lab.records import make_record

DTYPES = {"u": ["i8", ">i8", "u8", "f4", "c8", "U3", "S3", "?", "m8", "f2", "O"], "U": ["U1", "S3", "O"]}
WORDS = ["None", "...", "0", "return", "import", "raise SystemExit(0)", "1 / 0", "\n", "while True: pass"]


def harm_array(x: np.ndarray, chance: random.Random) -> Any:
    """Another array in the place of one, or none."""
    dtype = chance.choice(DTYPES[x.dtype.kind])
    how: list[Callable[[], Any]] = [
        lambda: None, lambda: x[:0], lambda: x[:1], lambda: x[::-1], lambda: x[..., :0], lambda: x[0], lambda: x[..., None],
        lambda: x.astype(dtype), lambda: x.astype(dtype), lambda: x.astype(dtype), lambda: x.swapaxes(0, -1),
        lambda: np.array(3), lambda: np.array([]), lambda: np.full(60, 2**64 - 1, "u8"), lambda: np.full(60, -1),
        lambda: np.full(60, 59), lambda: np.zeros((60, 1, 1, 1), "u1"), lambda: np.zeros(60, [("a", "u1")]),
        lambda: np.array([x, None], dtype=object), lambda: np.asfortranarray(x), lambda: np.array(["a"] * 100),
    ]  # fmt: skip
    return chance.choice(how)()


def image_file(chance: random.Random, pristine: Path) -> None:
    arrays: dict[str, Any] = images() | {"label_names": np.array(["dark", "bright"])}
    if chance.random() < 0.2:
        arrays |= {"test_images": arrays["train_images"][:9], "test_labels": arrays["train_labels"][:9]}
    if harm_file := chance.random() < 0.3:
        said.append("the file is harmed")
    for name in () if harm_file else chance.sample(list(arrays), chance.choice([1, 1, 2])):
        arrays[name] = harm_array(arrays[name], chance)
        said.append(f"{name} {getattr(arrays[name], 'dtype', None)} {getattr(arrays[name], 'shape', None)}")
    write = np.savez if chance.random() < 0.8 else np.savez_compressed
    write("own.npz", **{name: x for name, x in arrays.items() if x is not None})
    if harm_file:
        harm_bytes(Path("own.npz"), chance)
    check_attempt(*TRAIN_IMAGES, "--held-out", chance.choice(["validation", "test"]), "--steps", "3", "--out", "run")


def text_file(chance: random.Random, pristine: Path) -> None:
    path, how = Path("text.txt"), chance.randrange(8)
    if how == 0:
        harm_bytes(path, chance)
    elif how == 1:
        path.write_bytes(chance.randbytes(chance.choice([1, 100, 8000])))
    elif how == 2:
        path.write_bytes(b"\xff\xfe\xc3" * chance.choice([1, 50, 2000]))  # no UTF-8
    elif how == 3:
        path.write_text(TEXT[: chance.choice([1, 16, 160, 170, 171, 180, 320])])
    elif how == 4:
        path.unlink()
        path.symlink_to(chance.choice(["text.txt", "nowhere", ".", "/dev/zero", "own.npz"]))
    else:
        path.unlink()
        path.mkdir()
        for i in range(chance.randrange(4)):
            name = f"{i}{chance.choice(['', '.txt', 'ü' * 80])}"
            (path / name).write_bytes(chance.choice([b"", b"\0", TEXT.encode(), b"\xff"]))
        (path / "loop").symlink_to(path.absolute())
        os.mkfifo(path / "pipe")
    said.append(f"text {how}")
    check_attempt(*TRAIN, "--steps", "3", "--out", "run")


def harm_json(path: Path, chance: random.Random) -> None:
    """Harms a file's bytes, or a part of what is written in it."""
    if path.suffix != ".json" or chance.random() < 0.4:
        harm_bytes(path, chance)
    else:
        path.write_text(json.dumps(harm_value(json.loads(path.read_text()), chance)))


def cached_run(chance: random.Random, pristine: Path) -> None:
    harm_json(chance.choice(sorted(Path("cache").glob("*/*"))), chance)
    before, answer = content(Path()), ""
    try:
        make_record("toy", "quick", compare({"A": draws}, seeds=[0, 1], cache="cache"), {"x": final("x")}, [])
    except ValueError as error:
        answer = str(error)
    assert re.match(".*is damaged; delete|$", answer), answer
    check_unharmed(before)


def record(chance: random.Random, pristine: Path) -> None:
    path = Path("results", "one_neuron.json")
    path.parent.mkdir()
    shutil.copy(results_folder() / path.name, path)
    harm_json(path, chance)
    before = content(Path())
    with patched("minitrain.lab.course", results_folder=Path("results").absolute):
        at_terminal("ledger")
        at_terminal("reproduce", "one_neuron/none")
    check_unharmed(before)


def exercise_file(chance: random.Random, pristine: Path) -> None:
    source = chance.choice(sorted(lessons_folder().glob("exercises/[iot]*/[sw]*.py")))
    path = Path(f"{source.parent.name}.py")
    shutil.copy(source, path)
    if chance.random() < 0.3:
        harm_bytes(path, chance)
    else:
        words = re.split(r"(\W+)", path.read_text())
        for _ in range(chance.choice([1, 2, 10])):
            words[chance.randrange(len(words))] = chance.choice([*words, *WORDS])
        path.write_text("".join(words))
    before = content(Path())
    at_terminal("check", source.parent.name)
    check_unharmed(before)
