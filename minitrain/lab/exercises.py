"""Exercises: a stub goes into the learner's folder, and what comes back is held against what the mathematics says.

An exercise is a folder with `stub.py` and `check.py`. The latter has functions `check_...(answer)`, each about one
property of the learner's module `answer`; the first line of its docstring names the property, and `require` or
`require_close` rejects. The learner's file runs in a process of its own, for it may loop, crash or exit, and every such
end becomes one message that names the line. What it prints appears as it is printed.
"""

import difflib
import json
import linecache
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from minitrain.lab.places import lessons_folder
from minitrain.lab.worker import ONE_THREAD
from minitrain.runtime.files import write_atomically


@dataclass(frozen=True)
class Verdict:
    """What one check said."""

    name: str
    """The function in `check.py`, or `run_file`, which comes first."""
    property: str
    """What must hold."""
    passed: bool | None
    """None: not reached."""
    message: str = ""
    """Why it did not pass; may have several lines."""


# --- what there is -----------------------------------------------------------------------------------------------------


def exercises(folder: Path | None = None) -> list[str]:
    """The names of all exercises in the order of their lessons; `folder` holds others than the course's."""
    folder = folder or lessons_folder() / "exercises"
    slugs = [path.parent.name for path in folder.glob("*/check.py")]
    lesson = {slug: next((path.name for path in folder.parent.glob(f"[0-9]*_{slug}.py")), slug) for slug in slugs}
    return sorted(slugs, key=lambda slug: (lesson[slug], slug))


def folder_of(slug: str, folder: Path | None = None) -> Path:
    """The folder of an exercise. Raises `ValueError` that names the nearest, or all that there are."""
    there = exercises(folder)
    if slug not in there:
        near = difflib.get_close_matches(slug, there, 1)
        advice = f"did you mean {near[0]}?" if near else f"there are: {', '.join(there) or 'none'}"
        raise ValueError(f"there is no exercise {slug!r}; {advice}")
    return (folder or lessons_folder() / "exercises") / slug


def write_stub(slug: str, into: Path, folder: Path | None = None) -> Path:
    """Writes `SLUG.py` into a folder. Raises `FileExistsError` rather than overwrite the learner's work."""
    stub, path = folder_of(slug, folder) / "stub.py", into / f"{slug}.py"
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already; grade it with `minitrain check {slug}`, or move it away")
    try:
        write_atomically(path, lambda file: file.write(stub.read_bytes()))
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}); go to a folder that is yours") from None
    return path


# --- for check.py ------------------------------------------------------------------------------------------------------


class Rejected(Exception):
    """A property does not hold: a line each for what was measured, what is required and, if given, a hint.

    Where `...` still stands in what was measured, the answer counts as not written yet.
    """

    def __init__(self, measured: object, required: object, hint: str = "") -> None:
        super().__init__(f"measured: {shown(measured)}\nrequired: {shown(required)}\n{hint}".rstrip())
        self.unwritten = has_dots(measured)


def has_dots(value: object) -> bool:
    """Whether a value is `...` or has it among its items."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return any(item is ... for item in items)


def require(ok: object, measured: object, required: object, hint: str = "") -> None:
    """Raises `Rejected` unless `ok`, a truth value; what has none, such as an array of several, counts as not ok."""
    try:
        holds = bool(ok)
    except Exception:
        holds = False
    if not holds:
        raise Rejected(measured, required, hint)


def require_close(measured: Any, required: SupportsFloat, rtol: float, hint: str = "") -> None:
    """Raises `Rejected` unless `measured` is one real number with `|measured - required| <= rtol * |required|`.

    Whatever a learner's code may return can be given as `measured`: tensors and arrays of one number pass as that number.
    """
    try:
        number = measured.item() if hasattr(measured, "item") else measured
        value = float(number) if isinstance(number, Real) and not isinstance(number, bool) else None
    except Exception:  # an array of several numbers, an integer beyond all floats, a class of the learner's
        value = None
    if value is None:
        raise Rejected(measured, f"{shown(required)}, as one real number", hint)
    required = float(required)
    if not abs(value - required) <= rtol * abs(required):  # so that NaN is rejected
        digits = max(6, min(17, 2 - math.floor(math.log10(rtol)))) if rtol > 0 else 17  # enough to show the difference
        off = f" ({100 * (value - required) / abs(required):+.3g} %)" if required and math.isfinite(value) else ""
        raise Rejected(f"{value:.{digits}g}{off}", f"{required:.{digits}g}, within {100 * rtol:g} %", hint)


def hint_for(measured: Any, likely: Mapping[str, float], rtol: float = 1e-6) -> str:
    """The hint whose value is the measured one; nothing where none is."""
    try:
        value = float(measured)
    except (TypeError, ValueError):
        return ""
    return next((hint for hint, wrong in likely.items() if math.isclose(value, wrong, rel_tol=rtol)), "")


def require_numbers(found: Any, length: int, required: str) -> np.ndarray:
    """What the learner returned, as an array of `length` numbers."""
    try:
        values = np.array([float(np.asarray(x).item()) for x in found])
    except (TypeError, ValueError):
        values = np.zeros(0)
    require(len(values) == length, found, required)
    return values


def require_pair(found: Any, required: str) -> tuple[Any, Any]:
    """What the learner returned, as two things."""
    require(isinstance(found, Iterable) and len(list(found)) == 2, found, required)
    first, second = found
    return first, second


def shown(value: Any) -> str:
    """A value on one line of about 100 characters; never raises."""
    if isinstance(value, str):
        return value
    if value is None:
        return "None, which is what a function without `return` gives"
    try:
        kind = f"{type(value).__name__} of shape {tuple(value.shape)}: " if getattr(value, "shape", ()) else ""
        text = kind + " ".join(six_digits(value.tolist() if hasattr(value, "tolist") else value).split())
    except Exception:
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 100 else f"{text[:97]}..."


def six_digits(value: object) -> str:
    """`repr` with fewer digits of floats, in lists and tuples too."""
    if isinstance(value, list | tuple):
        inside = ", ".join(map(six_digits, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


# --- grading -----------------------------------------------------------------------------------------------------------


def grade(slug: str, file: Path, folder: Path | None = None, limit: float = 60.0) -> list[Verdict]:
    """Holds the learner's file against every check of the exercise, in a process that has `limit` seconds.

    It stops at the first check that fails, because later properties build on earlier ones and would only repeat it.
    """
    exercise = folder_of(slug, folder)
    file = readable(file)
    environment = {**os.environ, **ONE_THREAD, "MPLBACKEND": "Agg"}  # a window would wait to be closed
    with tempfile.TemporaryDirectory() as notes:
        # -P: modules beside the learner's file, a `copy.py` say, must not stand in for those that we import.
        command = [sys.executable, "-P", "-m", "minitrain.lab.grader", str(exercise), str(file), notes, str(limit)]
        if sys.stdout is not None:
            sys.stdout.flush()  # what we printed stands above what the learner's code prints
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, env=environment, timeout=limit + 10, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        lines = [*map(json.loads, lines_of(Path(notes, "verdicts")))]
        trace = "\n".join(lines_of(Path(notes, "trace")))
    if not lines:
        raise RuntimeError(f"the checks in {exercise} did not start; the reason stands above")
    found = [Verdict(**line) for line in lines[1:]]
    return with_unreached(lines[0], found, ended_early(file, code, trace, limit))


def readable(file: Path) -> Path:
    """The absolute path of a file with text in it. Raises `FileNotFoundError` or `ValueError` for anything else."""
    try:
        exists, text = file.exists(), file.read_bytes().decode() if file.is_file() else None  # a pipe might never end
    except OSError as error:
        raise ValueError(f"cannot read {file} ({error.strerror})") from None
    except UnicodeDecodeError:
        exists, text = True, "\0"
    if not exists:
        raise FileNotFoundError(f"there is no file {file}; `minitrain exercise SLUG` writes one to begin with")
    if text is None:
        raise ValueError(f"{file} is not a file; give the Python file to grade")
    if "\0" in text:
        raise ValueError(f"{file} is not text in UTF-8; save it as UTF-8 in your editor")
    return file.absolute()


def lines_of(path: Path) -> list[str]:
    """The lines of a file, none where there is no such file."""
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def with_unreached(planned: Sequence[Sequence[str]], found: list[Verdict], reason: str) -> list[Verdict]:
    """A verdict for each planned `(name, property)`: those found, and if they end without a failure, the next one fails."""
    verdicts = list(found)
    for name, title in planned[len(found) :]:
        stopped = any(not verdict.passed for verdict in verdicts)
        verdicts.append(Verdict(name, title, None) if stopped else Verdict(name, title, False, reason))
    return verdicts


def ended_early(file: Path, code: int | None, trace: str, limit: float) -> str:
    """Why the process ended before its checks did: the time limit, a crash in compiled code, or an exit."""
    escaped = str(file).encode("ascii", "backslashreplace").decode()  # as faulthandler writes it
    line = re.search(rf'File "{re.escape(escaped)}", line (\d+)', trace)
    where = f" at {place(file, int(line[1]))}" if line else ""
    if code is None or trace.startswith("Timeout"):
        return f"not done after {limit:g} seconds{where}; does a loop there never end?"
    how = trace.splitlines()[0] if trace else f"exit code {code}" if code >= 0 else f"signal {-code}"
    return f"your code ended the whole process{where} ({how})"


def place(file: Path, line: int) -> str:
    """A line of the learner's file, with its text."""
    linecache.checkcache(str(file))
    return f"line {line} of {file.name}, `{linecache.getline(str(file), line).strip()}`"


def print_report(verdicts: Sequence[Verdict]) -> bool:
    """Prints a line per property, with what to mend below the one that failed; returns whether all hold."""
    marks = {True: "ok", False: "NO", None: " -"}
    for verdict in verdicts:
        print(f"  {marks[verdict.passed]}  {verdict.property}")
        for line in verdict.message.splitlines():
            print(f"        {line}")
    passed = sum(verdict.passed is True for verdict in verdicts)
    unreached = any(verdict.passed is None for verdict in verdicts)
    note = "; what is marked - comes next, once the one above it holds" if unreached else ""
    print(f"{passed} of {len(verdicts)} hold{note}.")
    return passed == len(verdicts)
