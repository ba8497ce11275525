"""The `minitrain` command. torch is imported only once there is work, so that help and complaints come at once."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import tyro

from minitrain.cli.options import COMMANDS, Train, TrainImages


def next_free_folder(name: str) -> Path:
    """`runs/NAME`, `runs/NAME-2`, and so on."""
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def write_options(folder: Path, options: Train | TrainImages) -> None:
    """Stores the options as a command line, for `--resume` and `minitrain sample`."""
    from minitrain.runtime.files import write_text

    write_text(folder / "options.json", json.dumps(arguments_of(options), indent=1) + "\n")


def arguments_of(options: Train | TrainImages) -> list[str]:
    """The command line that says all options in full; of `minitrain train` without the command's name."""
    arguments: list[str] = ["train-images"] if isinstance(options, TrainImages) else []
    for part in (options.model, options.training, options.machine):
        for name, value in dataclasses.asdict(part).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                values = value if isinstance(value, tuple) else (value.resolve() if isinstance(value, Path) else value,)
                arguments += [f"--{flag}", *map(str, values)]
    return arguments


def read_options(folder: Path) -> Train | TrainImages:
    """What `write_options` stored. Raises `FileNotFoundError` or `ValueError` where that is not to be had."""
    path = folder / "options.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run (it has no options.json); give one that is")
    try:
        arguments = json.loads(path.read_text())
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        raise ValueError(f"{path} is damaged; start a new run in another folder")
    if arguments[:1] == ["train-images"]:
        return parse(TrainImages, arguments[1:], prog=str(path))
    return parse(Train, arguments, prog=str(path))


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Bad input ends in one sentence and exit code 2, never in a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(getattr(sys, stream), "reconfigure"):
            getattr(sys, stream).reconfigure(errors="replace")  # a terminal that lacks a sign shows another
    warnings.showwarning = print_warning  # ty: ignore[invalid-assignment]
    options = parse(COMMANDS, argv, prog="minitrain", description="Learn what an optimizer's update really does.")
    try:
        if isinstance(options, Train | TrainImages) and options.resume:
            if options.out:
                raise ValueError("a resumed run stays in its folder; leave --out or --resume out")
            # The run's own options, with what the command line says on top: what differs will be refused by name.
            stored = dataclasses.replace(read_options(options.resume), resume=options.resume)
            if type(stored) is not type(options):
                other = "train-images" if isinstance(stored, TrainImages) else "train"
                raise ValueError(f"{options.resume} was written by minitrain {other}; resume it with that command")
            options = parse(type(options), argv[1:], prog=f"minitrain {argv[0]}", default=stored)
        refuse_huge(dataclasses.asdict(options))
        from minitrain.cli.commands import carry_out

        carry_out(options)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        sys.exit(complaint(str(error)))
    except KeyboardInterrupt:
        complaint("interrupted")
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("memory|size calculation overflowed", str(error)):
            raise  # a defect, to be seen whole
        sys.exit(complaint("there is not enough memory for this; lower micro_batch_size, batch_size, depth or context"))


def refuse_huge(options: dict[str, Any]) -> None:
    """Raises `ValueError` for a whole number that torch cannot hold, and for more blocks than anyone can wait for."""
    for name, value in options.items():
        most = 10_000 if name == "depth" else 2**63 - 1
        if isinstance(value, dict):
            refuse_huge(value)
        elif isinstance(value, int) and not -(2**63) <= value <= most:
            raise ValueError(f"{name} must be from {-(2**63):,} to {most:,}, not {value:,}")


def lesson_main(file: str) -> None:
    """What a lesson's script does when it is started: the same as `minitrain lesson SLUG`."""
    main(["lesson", Path(file).stem.partition("_")[2], *sys.argv[1:]])


def parse(options: Any, argv: list[str], **how: Any) -> Any:
    """`tyro.cli`, with its boxed complaint said in one sentence."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(options, args=argv, **how)
    except SystemExit as stop:
        if not stop.code:
            raise
        sys.exit(complaint(f"{sentence_in(box.getvalue())}; minitrain --help lists what there is"))


def sentence_in(box: str) -> str:
    """The first paragraph of tyro's box, said plainly where it is about a value's type."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]  # without the title
    lines = ["" if set(line) <= set("─-╰╯") else line for line in lines]  # a rule ends a paragraph
    paragraph = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))).rstrip(".")
    if found := re.match(r"Error parsing (--[\w-]+):.*?(?:from \[(.*)\]|: ('.*'))$", paragraph):
        option, given = found[1], found[2] or found[3]
        takes = re.search(rf"^{option}(?:, \S+)* (?:\{{None\}}\|)?(.*)$", "\n".join(lines), re.MULTILINE)
        words = {"INT": "a whole number", "N": "a whole number", "FLOAT": "a number", "{FLOAT FLOAT}": "two numbers"}
        return f"{option} takes {words.get(takes[1], takes[1]) if takes else 'another value'}, not {given}"
    return paragraph


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the source."""
    print(f"minitrain: {message}", file=sys.stderr)


def complaint(sentence: str) -> int:
    """Prints one sentence on one line; returns the exit code of bad input."""
    print(f"minitrain: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
