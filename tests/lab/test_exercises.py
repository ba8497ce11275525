"""Exercises: what a learner is told for every way to get one wrong; and each exercise of the course on its own examples."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from minitrain.lab import grader
from minitrain.lab.exercises import (
    Rejected,
    Verdict,
    exercises,
    folder_of,
    grade,
    print_report,
    require,
    require_close,
    with_unreached,
    write_stub,
)
from minitrain.lab.places import lessons_folder, results_folder

STUB = '''"""Doubling. 1 minute, difficulty 1 of 3."""


def double(x: float) -> float:
    """Twice x."""
    ...


NAME = ...
'''
CHECKS = '''
from minitrain.lab.exercises import require, require_close


def check_value(answer):
    """Twice the number.

    More words.
    """
    require_close(answer.double(3.0), 6.0, 0.01, "a hint")


def check_sum(answer):
    """Twice a sum is the sum of the doubles."""
    first, second = answer.double(1), answer.double(2)
    require(first + second == answer.double(3), first + second, answer.double(3))


def check_name(answer):
    """The name of the game."""
    require(answer.NAME == "double", answer.NAME, "double")
'''
RIGHT = STUB.replace("    ...\n", "    return 2 * x\n").replace("NAME = ...", 'NAME = "double"')
ALL = ["run_file", "check_value", "check_sum", "check_name"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A course of one exercise."""
    folder = tmp_path / "lessons" / "exercises"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "stub.py").write_text(STUB)
    (folder / "toy" / "check.py").write_text(CHECKS)
    return folder


def in_this_process(exercise: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """`grade` without a process of its own, which saves the time to import torch."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "answer", None)
    for beside in exercise.glob("*.py"):  # an example may import from the stub beside it, not from another exercise's
        sys.modules.pop(beside.stem, None)
    checks = grader.checks_of(exercise)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in the learner's process: a warning is no error
        found = list(grader.run_checks(checks, file))
    return with_unreached([(name, grader.title_of(check)) for name, check in checks.items()], found, "")


def failure(verdicts: list[Verdict]) -> Verdict:
    """The one check that failed; those before it have passed, and those after it were not reached."""
    passed = [verdict.passed for verdict in verdicts]
    at = passed.index(False)
    assert passed == [True] * at + [False] + [None] * (len(passed) - at - 1)
    return verdicts[at]


# --- the stub ----------------------------------------------------------------------------------------------------------


def test_the_stub_is_written_once_and_work_is_never_lost(folder: Path, tmp_path: Path):
    path = write_stub("toy", tmp_path / "my work", folder)
    assert path == tmp_path / "my work" / "toy.py"
    assert path.read_text() == STUB
    assert os.listdir(path.parent) == ["toy.py"]
    path.write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"toy\.py is there already; grade it with `minitrain check toy`, or move"
    ):
        write_stub("toy", path.parent, folder)
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to(tmp_path / "gone.py")
    with pytest.raises(FileExistsError):  # nor is a link to nowhere
        write_stub("toy", path.parent, folder)


def test_a_folder_that_is_none_is_one_sentence(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*toy\.py \(.*\); go to a folder that is yours"):
        write_stub("toy", tmp_path / "file", folder)


def test_a_wrong_name_gets_the_nearest_or_all(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="there is no exercise 'tov'; did you mean toy"):
        write_stub("tov", tmp_path, folder)
    for slug in ("", "elephant", "../exercises/toy", "."):
        with pytest.raises(ValueError, match=r"there is no exercise '.*'; (there are: toy|did you mean toy)"):
            folder_of(slug, folder)
    with pytest.raises(ValueError, match="there are: none"):
        folder_of("toy", tmp_path / "nowhere")


def test_exercises_come_in_the_order_of_their_lessons(folder: Path):
    for slug in ("zebra", "apple", "unfinished"):
        (folder / slug).mkdir()
    for slug in ("zebra", "apple"):
        (folder / slug / "check.py").write_text("")
    (folder.parent / "01_zebra.py").write_text("")
    (folder.parent / "02_toy.py").write_text("")
    assert exercises(folder) == ["zebra", "toy", "apple"]


def test_lessons_and_results_of_a_checkout():
    root = Path(__file__).parents[2]
    assert (lessons_folder(), results_folder()) == (root / "lessons", root / "docs" / "results")


# --- what a check says -------------------------------------------------------------------------------------------------


def test_one_number_is_a_number_whatever_holds_it():
    arrays = np.array(2.0), np.array([[2.0]]), torch.tensor(2), torch.tensor([2.0])
    for value in (2.0, 2, np.float32(2), np.int64(2), *arrays, 1.99):
        require_close(value, 2.0, rtol=0.01)
    require_close(torch.nn.Parameter(torch.tensor(2.0)), torch.tensor(2.0), rtol=0.01)


class Unprintable:
    def __repr__(self):
        raise RuntimeError

    item = property(__repr__)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (2.5, r"measured: 2\.5 \(\+25 %\)\nrequired: 2, within 1 %\nsee page 3"),
        (-2, r"measured: -2 \(-200 %\)"),
        (float("nan"), r"measured: nan\n"),
        (torch.tensor(float("inf")), r"measured: inf\n"),
        (
            None,
            r"measured: None, which is what a function without `return` gives\nrequired: 2, as one real number\nsee page",
        ),
        ("2.0", r"measured: 2\.0\nrequired: 2, as one real number"),
        (True, r"measured: True\nrequired: 2, as one real number"),
        (2 + 1j, r"measured: \(2\+1j\)\nrequired: 2, as one real number"),
        ([2.0, 1 / 3], r"measured: \[2, 0\.333333\]\n"),
        ((2.0,), r"measured: \(2\)\n"),
        ({}, r"measured: {}\n"),
        (10**400, r"measured: 10{60,}\.\.\.\n"),
        (10**9999, r"measured: a int that cannot be printed\n"),
        (torch.ones(2, 3), r"measured: Tensor of shape \(2, 3\): \[\[1, 1, 1\], \[1, 1, 1\]\]\n"),
        (np.zeros((40, 40)), r"measured: ndarray of shape \(40, 40\): [^\n]{,80}\.\.\.\n"),
        (torch.empty(2, device="meta"), r"measured: a Tensor that cannot be printed\n"),
        (torch.ones, r"measured: <built-in"),
        (Unprintable(), r"measured: a Unprintable that cannot be printed\n"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_everything_else_is_rejected_with_what_it_is(value, says: str):
    with pytest.raises(Rejected, match=f"^{says}"):
        require_close(value, 2.0, 0.01, "see page 3")


def test_the_tolerance_is_a_share_of_what_is_required():
    require_close(1.01e-6, 1e-6, 0.011)
    for measured, required, rtol in (
        (1.02e-6, 1e-6, 0.011),
        (1e-9, 0.0, 0.5),
        (1.0, float("nan"), 1.0),
        (2.0, 1.0, 0.0),
    ):
        with pytest.raises(Rejected):
            require_close(measured, required, rtol)
    require_close(0, 0, 0.0)


def test_a_small_difference_is_shown_with_enough_digits():
    with pytest.raises(Rejected, match=r"measured: 1\.0000001 \(\+1e-05 %\)\nrequired: 1, within 1e-06 %"):
        require_close(1.0000001, 1.0, 1e-8)


def test_require_takes_truth_and_rejects_what_has_none():
    require(True, None, None)
    require(np.bool_(True), None, None)
    for ok in (False, None, np.bool_(False), np.array([True, True]), torch.tensor([True, True]), torch.tensor(False)):
        with pytest.raises(Rejected, match=r"^measured: 1\nrequired: all\nmend it$"):
            require(ok, 1.0, "all", "mend it")


# --- grading -----------------------------------------------------------------------------------------------------------


def test_the_right_answer_passes_in_a_process_of_its_own(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    file = tmp_path / "my föl der" / "answer of mine.py"
    file.parent.mkdir()
    file.write_text(f"import os, helper\nprint(os.environ['OMP_NUM_THREADS'], __name__, helper.ONE)\n{RIGHT}")
    (file.parent / "helper.py").write_text("ONE = 1")
    (file.parent / "json.py").write_text("raise ImportError('this is not the json of Python')")
    verdicts = grade("toy", file, folder)
    assert [verdict.name for verdict in verdicts] == ALL
    assert [verdict.property for verdict in verdicts[:2]] == ["The file runs", "Twice the number"]
    assert capfd.readouterr() == ("1 answer 1\n", "")
    assert print_report(verdicts)
    assert capfd.readouterr().out.splitlines()[-2:] == ["  ok  The name of the game", "4 of 4 hold."]


def test_the_report_of_a_wrong_answer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "toy.py"
    file.write_text(RIGHT.replace("2 * x", "2.2 * x"))
    assert not print_report(grade("toy", file, folder))
    assert capsys.readouterr().out.splitlines() == [
        "  ok  The file runs",
        "  NO  Twice the number",
        "        measured: 6.6 (+10 %)",
        "        required: 6, within 1 %",
        "        a hint",
        "   -  Twice a sum is the sum of the doubles",
        "   -  The name of the game",
        "1 of 4 hold; what is marked - comes next, once the one above it holds.",
    ]


WRONG = {  # the learner's file, the check that must fail, and what the message says
    "stub": (STUB, "check_value", r"not written yet: `double`, line 6 of toy\.py"),
    "half of the stub": (RIGHT.replace('"double"', "..."), "check_name", r"yet: `\.\.\.` still stands in `NAME`$"),
    "dots in a dict": (
        "def double(x): return 2 * x\nNAME = {'a': ..., 'b': 1}",
        "check_name",
        "still stands in `NAME`$",
    ),
    "raises NotImplementedError": (
        "def double(x):\n    raise NotImplementedError",
        "check_value",
        r"not written yet: `double`, line 2 of toy\.py",
    ),
    "dots in a computation": (
        "def double(x):\n    y = ...\n    return y * x",
        "check_value",
        r"not written yet: .*line 3",
    ),
    "dots returned": ("def double(x):\n    return ...", "check_value", "in what a function returns$"),
    "no return": (
        "def double(x):\n    2 * x",
        "check_value",
        "measured: None, which is what a function without `return`",
    ),
    "empty file": ("", "check_value", r"toy\.py has no `double`; the stub has it, and says what it must do"),
    "another name": ("def dubble(x): ...", "check_value", r"toy\.py has no `double`"),
    "syntax": ("x = 1\ndef double(x:\n    return 2", "run_file", r"line 2 of toy\.py, `def double\(x:`: SyntaxError: "),
    "indentation": (
        "def double(x):\nreturn 2 * x",
        "run_file",
        r"line 2 of toy\.py, `return 2 \* x`: IndentationError: ",
    ),
    "name": ("import math\nprint(mth.pi)", "run_file", r"line 2 of toy\.py, `print\(mth\.pi\)`: NameError: .*'mth'"),
    "package": ("import nosuchthing", "run_file", r"line 1 of toy\.py, `import nosuchthing`: ModuleNotFoundError"),
    "exit at once": (
        "import sys\nsys.exit('bye')",
        "run_file",
        r"line 2 of toy\.py, `sys\.exit\('bye'\)`: SystemExit: bye",
    ),
    "exit later": ("def double(x):\n    exit()", "check_value", r"line 2 of toy\.py, `exit\(\)`: SystemExit"),
    "hard exit": (
        "import os\ndef double(x):\n    os._exit(3)",
        "check_value",
        r"ended the whole process \(exit code 3\)",
    ),
    "crash": (
        "import ctypes\ndef double(x):\n    return ctypes.string_at(0)",
        "check_value",
        r"ended the whole process at line 3 of toy\.py, `return ctypes\.string_at\(0\)` \(Fatal Python error: Segm",
    ),
    "exception inside": (
        "def double(x):\n    return half(x)\n\n\ndef half(x):\n    return x / 0",
        "check_value",
        r"line 6 of toy\.py, `return x / 0`: ZeroDivisionError: float division by zero$",
    ),
    "exception of several lines": ("raise ValueError('one\\ntwo')", "run_file", r"`.*`: ValueError: one$"),
    "recursion": ("def double(x):\n    return double(x)", "check_value", r"line 2 of toy\.py, .*: RecursionError"),
    "asks for input": ("x = input()", "run_file", r"line 1 of toy\.py, `x = input\(\)`: EOFError"),
    "too few arguments": (
        "y = 0\ndef double():\n    return 2",
        "check_value",
        r"line 2 of toy\.py, `def double\(\):`: TypeError: double\(\) takes 0 .*; the stub shows the arguments",
    ),
    "not a function": (
        "double = 2",
        "check_value",
        r"does not fit the stub's description: TypeError: 'int' object is not call",
    ),
    "another type": (
        "def double(x):\n    return 6.0 if x == 3 else {}",
        "check_sum",
        r"TypeError: unsupported operand .* \(at `require\(first \+ second .*` in the check\)",
    ),
    "not of ours": (
        "import codecs\ndef double(x):\n    codecs.Codec().encode('')",
        "check_value",
        "line 3 .*: NotImpl",
    ),
    "dataclass": (
        f"from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\n{RIGHT}",
        None,
        "",
    ),
    "byte order mark": ("\ufeff" + RIGHT, None, ""),
    "numpy": ("import numpy as np\ndef double(x):\n    return 2 * np.asarray(x)\nNAME = 'double'", None, ""),
    "a method": (
        "class A:\n    def f(self, x): ...\ndouble = A().f",
        "check_value",
        r"not written yet: `f`, line 2 of toy\.py",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_way_to_fail_is_one_message_about_the_learners_file(case: str, folder: Path, tmp_path: Path):
    source, name, says = WRONG[case]
    file = tmp_path / "toy.py"
    file.write_text(source)
    verdicts = grade("toy", file, folder)
    assert [verdict.name for verdict in verdicts] == ALL
    if name is None:
        assert all(verdict.passed for verdict in verdicts)
        return
    failed = failure(verdicts)
    assert failed.name == name
    assert re.search(says, failed.message), failed.message
    assert "Traceback" not in failed.message
    assert str(tmp_path) not in failed.message


LOOPS = {
    "at once": ("\nwhile True:\n    pass\n", "run_file", "line [23]"),
    "later": ("def double(x):\n    while True: x += 1\n", "check_value", "line 2"),
    "that catches everything": (
        "while True:\n    try: raise SystemExit\n    except BaseException: pass",
        "run_file",
        "line [123]",
    ),
    "in C, where Python's own timers wait": ("def double(x):\n    return sum(range(10**12))", "check_value", "line 2"),
}


@pytest.mark.parametrize("case", LOOPS)
def test_an_endless_loop_ends_and_is_found(case: str, folder: Path, tmp_path: Path):
    source, name, line = LOOPS[case]
    file = tmp_path / "töy.py"
    file.write_text(source)
    failed = failure(grade("toy", file, folder, limit=1.0))
    assert failed.name == name
    assert re.fullmatch(
        rf"not done after 1 seconds at {line} of töy\.py, `.+`; does a loop there never end\?", failed.message
    )


def test_a_thread_that_never_ends_does_not_hold_up_the_verdict(folder: Path, tmp_path: Path):
    file = tmp_path / "toy.py"
    file.write_text(f"import threading\nthreading.Thread(target=threading.Event().wait).start()\n{RIGHT}")
    assert all(verdict.passed for verdict in grade("toy", file, folder, limit=20.0))


def test_a_defect_of_the_checks_is_not_blamed_on_the_learner(folder: Path, tmp_path: Path):
    (folder / "toy" / "check.py").write_text("1 / 0")
    (tmp_path / "toy.py").write_text(RIGHT)
    with pytest.raises(RuntimeError, match=r"the checks in .* did not start"):
        grade("toy", tmp_path / "toy.py", folder)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, r"there is no file .*toy\.py; `minitrain exercise SLUG` writes one"),
        (lambda path: path.mkdir(), r"toy\.py is not a file"),
        (lambda path: os.mkfifo(path), r"toy\.py is not a file"),
        (lambda path: path.write_bytes("ä".encode("latin-1")), r"toy\.py is not text in UTF-8; save it as UTF-8"),
        (lambda path: path.write_text(RIGHT, encoding="utf-16"), r"toy\.py is not text in UTF-8; save it as UTF-8"),
        (lambda path: path.write_bytes(b"x = 1\0"), r"toy\.py is not text in UTF-8; save it as UTF-8"),
        (lambda path: path.symlink_to(path), r"cannot read .*toy\.py|there is no file"),
    ],
    ids=["missing", "folder", "pipe", "latin-1", "utf-16", "binary", "link to itself"],
)
def test_what_is_not_a_file_of_text_is_one_sentence(make, says: str, folder: Path, tmp_path: Path):
    make(tmp_path / "toy.py")
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        grade("toy", tmp_path / "toy.py", folder)
    assert "\n" not in str(error.value)


def test_none_of_this_imports_torch():
    code = "import sys; import minitrain.lab.grader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the exercises of the course ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", exercises())
def test_every_exercise_is_complete_and_tells_right_from_wrong(slug: str, monkeypatch: pytest.MonkeyPatch):
    """The right ones pass; each wrong one is rejected by the check that its docstring names; the stub is not written yet."""
    files = {file.stem: file for file in sorted(folder_of(slug).glob("*.py"))}
    assert {"stub", "check", "solution", "alternative"} < files.keys()
    assert sum(name.startswith("wrong_") for name in files) >= 3
    checks = grader.checks_of(folder_of(slug)).values()
    assert all(check.__doc__ for check in checks)
    assert len({grader.title_of(check) for check in checks}) == len(checks)
    del files["check"]
    for name, file in files.items():
        verdicts = in_this_process(folder_of(slug), file, monkeypatch)
        if name.startswith(("solution", "alternative")):
            assert [verdict for verdict in verdicts if not verdict.passed] == [], name
            continue
        failed = failure(verdicts)
        if name == "stub":
            assert failed.name != "run_file"
            assert failed.message.startswith("not written yet")
            continue
        named = re.match(r'"""Rejected by (check_\w+)\.', file.read_text())
        assert named, f"{name}: the first line of the docstring must be: Rejected by check_<name>."
        assert failed.name == named[1], (name, failed.message)
        assert re.match(r"measured: .+\nrequired: .+|line \d+ of .+Error: ", failed.message), (name, failed.message)


@pytest.mark.parametrize("slug", exercises())
def test_every_exercise_as_a_learner_meets_it(slug: str, tmp_path: Path):
    assert failure(grade(slug, write_stub(slug, tmp_path))).message.startswith("not written yet")
    assert all(verdict.passed for verdict in grade(slug, folder_of(slug) / "solution.py"))
