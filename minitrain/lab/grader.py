"""The process of its own in which a learner's file is run and checked; `exercises.grade` starts it.

`python -m minitrain.lab.grader EXERCISE FILE NOTES SECONDS`, the first and third being folders.
"""

import ast
import contextlib
import faulthandler
import importlib.util
import json
import operator
import os
import re
import sys
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from minitrain.lab.exercises import Rejected, Verdict, has_dots, place
from minitrain.runtime.files import append_line

Check = Callable[[ModuleType], object]


def main(arguments: list[str]) -> None:
    """Writes what is planned and each verdict, as soon as it is there, as lines of JSON; a hang or crash leaves a trace."""
    folder, file, notes, limit = arguments
    checks = checks_of(Path(folder))
    append_line(Path(notes, "verdicts"), json.dumps([(name, title_of(check)) for name, check in checks.items()]))
    with open(Path(notes, "trace"), "w") as trace:
        faulthandler.enable(trace)
        faulthandler.dump_traceback_later(float(limit), exit=True, file=trace)
        for verdict in run_checks(checks, Path(file)):
            append_line(Path(notes, "verdicts"), json.dumps(asdict(verdict)))
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(0)  # threads that the learner's code started may never end


def checks_of(folder: Path) -> dict[str, Check]:
    """The functions `check_...` that `check.py` defines, in order, and before them the running of the file."""
    spec = importlib.util.spec_from_file_location(f"checks_of_{folder.name}", folder / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {"run_file": run_file} | {name: value for name, value in own.items() if name.startswith("check_")}


def title_of(check: Check) -> str:
    """The first line of the docstring."""
    return (check.__doc__ or "a property without a name").strip().splitlines()[0].rstrip(".")


def run_checks(checks: dict[str, Check], file: Path) -> Generator[Verdict]:
    """A verdict for each check up to the first that fails."""
    sys.modules["answer"] = answer = ModuleType("answer")  # there, so that the learner's dataclasses and pickles work
    answer.__file__ = str(file)
    sys.path.append(str(file.parent))  # the learner's own helpers, last so that they hide nothing
    for name, check in checks.items():
        message = objection(check, answer)
        yield Verdict(name, title_of(check), not message, message)
        if message:
            return


def run_file(answer: ModuleType) -> None:
    """The file runs."""
    file = str(answer.__file__)
    tree = ast.parse(Path(file).read_bytes(), file)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            RaiseAtDots().visit(node)
    exec(compile(ast.fix_missing_locations(tree), file, "exec", dont_inherit=True), vars(answer))


class RaiseAtDots(ast.NodeTransformer):
    """Lets a line that is still `...` say so, where Python would pass over it and the function return None."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        dots = isinstance(node.value, ast.Constant) and node.value.value is ...
        return ast.copy_location(ast.Raise(ast.Name("NotImplementedError", ast.Load())), node) if dots else node


def objection(check: Check, answer: ModuleType) -> str:
    """What a check has against the learner's module; empty if nothing."""
    try:
        check(answer)
    except Rejected as rejected:
        return unwritten(answer) if rejected.unwritten else str(rejected)
    except BaseException as error:  # the learner's code may raise anything, SystemExit too
        return explained(error, answer)
    return ""


def explained(error: BaseException, answer: ModuleType) -> str:
    """An exception as one line that says where in the learner's file it came up."""
    file = Path(str(answer.__file__))
    # Python's own words; for a SyntaxError the lines before them, which are indented, show the source.
    words = traceback.format_exception_only(error)
    what = next(line for line in words if not line.startswith("  ")).splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, NotImplementedError) and frames[-1].filename == str(file):  # not one of torch's
        return f"not written yet: `{frames[-1].name}`, line {frames[-1].lineno} of {file.name}"
    own = [frame.lineno for frame in frames if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(file) else (own or [None])[-1]
    if "'ellipsis'" in what:
        return unwritten(answer) + (f", needed in {place(file, line)}" if line else "")
    if line:
        return f"{place(file, line)}: {what}"
    if isinstance(error, AttributeError) and error.obj is answer:
        return f"{file.name} has no `{error.name}`; the stub has it, and says what it must do"
    if (call := re.match(r"TypeError: ([\w.]+)\(\)", what)) and (line := line_of(call[1], answer)):
        return f"{place(file, line)}: {what}; the stub shows the arguments it is called with"
    return f"what your code gives does not fit the stub's description: {what} (at `{frames[-1].line}` in the check)"


def unwritten(answer: ModuleType) -> str:
    """A sentence that names where `...` still stands, if that is among the values of the learner's module."""
    names = [f"`{name}`" for name, value in vars(answer).items() if name[0] != "_" and has_dots(value)]
    return f"not written yet: `...` still stands in {', '.join(names) or 'what a function returns'}"


def line_of(name: str, answer: ModuleType) -> int | None:
    """The line in which the learner's file defines a function or method."""
    try:
        code = operator.attrgetter(name)(answer).__code__
    except AttributeError:
        return None
    return code.co_firstlineno if code.co_filename == answer.__file__ else None


if __name__ == "__main__":
    main(sys.argv[1:])
