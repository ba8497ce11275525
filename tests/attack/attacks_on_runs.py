"""Attacks on a command line, and on each file of a run's folder before it is resumed."""

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
from pathlib import Path

import torch
from harm import (
    STRANGE,
    TRAIN,
    TRAIN_IMAGES,
    at_terminal,
    check_attempt,
    check_unharmed,
    content,
    harm_bytes,
    harm_value,
)
from small import same

from minitrain import cli
from minitrain.runtime.checkpoint import checkpoints

WHOLE = [
    "-1", "0", "1", "2", "3", "4", "6", "8", "14", "16", "18", "32", "48", "64", "128", "1_000", str(2**31), str(2**63)
]  # fmt: skip
REAL = ["-1", "0", "1e-308", "1e-3", "0.05", "0.5", "0.9", "1", "3", "100", "1e308", "nan", "inf"]
PATHS = [
    "", ".", "..", "run", "text.txt", "own.npz", "kept", "kept/options.json", "pipe", "/dev/null", "nowhere/at/all", "ü"
]  # fmt: skip
WORDS = [
    "cpu", "cpu:3", "cuda", "meta", "ü", "", " ", "None", "True", "0x10", "３", "-", "--", "[1, 2]", "a" * 5000, "9" * 40
]  # fmt: skip
COMMANDS = [
    *[[*TRAIN, "--steps", "6", "--out", "run"]] * 4,
    *[[*TRAIN_IMAGES, "--steps", "6", "--out", "run"]] * 4,
    ["plan", *TRAIN[1:9], "--data", "text.txt"],
    ["sample", "kept", "--tokens", "3", "--top-k", "3"],
    ["train", "--resume", "kept"],
    ["train-images", "--resume", "kept-images"],
    ["exercise", "one_neuron"],
    ["reproduce", "one_neuron/none"],
    ["lesson", "one_neutron", "--preset", "quick"],
]


@functools.cache
def options_of(command: str) -> dict[str, str]:
    """The options in a command's help with the kind of their values, but for what takes minutes."""
    os.environ["COLUMNS"] = "300"
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    kinds = r"(--[a-z][a-z-]*)(?:, --no-[a-z-]+)? +(?:\{None\}\|)?(\{[^}]*\}|INT|FLOAT|STR|PATH|)"
    return {
        option: kind for option, kind in re.findall(kinds, text.getvalue()) if option not in ("--help", "--compile")
    }


def plausible(kind: str, chance: random.Random) -> list[str]:
    """A value that an option may be given: of its kind, if rarely a good one."""
    if kind == "{FLOAT FLOAT}":
        return [chance.choice(REAL), chance.choice(REAL)]
    choices = kind.strip("{}").replace("cifar10", "").split(",") if kind else []  # the network has attacks of its own
    values = {"INT": WHOLE, "FLOAT": REAL, "STR": WORDS, "PATH": PATHS}.get(kind, choices)
    return [chance.choice(values)] if values else []


def command_line(chance: random.Random, pristine: Path) -> None:
    """Further options with values of their kind, words in wrong places, words left out."""
    arguments = list(chance.choice(COMMANDS))
    os.mkfifo("pipe")
    for _ in range(chance.choice([1, 2, 3])):
        options, anything = list(options_of(arguments[0]).items()), [*WHOLE, *REAL, *PATHS, *WORDS, *arguments]
        if options and chance.random() < 0.8:
            option, kind = chance.choice(options)
            arguments += [option, *(plausible(kind, chance) if chance.random() < 0.8 else [chance.choice(anything)])]
        else:
            at = chance.randrange(len(arguments))
            arguments[at : at + chance.choice([0, 1])] = chance.choice([[], [chance.choice(anything)]])
    check_attempt(*arguments)


def stopped_run(chance: random.Random) -> str:
    """One of the runs, without what it did after step 4."""
    name = chance.choice(["kept", "kept-images"])
    for last in ("checkpoints/00000006.pt", "model.safetensors", "picture.png"):
        Path(name, last).unlink()
    return name


def resume(name: str, pristine: Path) -> None:
    """A harmed run is refused and nothing is lost, or it comes to the very end that it has when left alone."""
    before = content(Path())
    if at_terminal("train" if name == "kept" else "train-images", "--resume", name)[0] != 0:
        check_unharmed(before, but=(f"{name}/metrics.jsonl", f"{name}/recipe.txt"))  # written anew from the checkpoint
        return
    check_unharmed(before, but=(name,))
    for file in ("metrics.jsonl", "model.safetensors"):
        assert Path(name, file).read_bytes() == (pristine / name / file).read_bytes()
    found, wanted = (torch.load(checkpoints(x)[0], weights_only=True) for x in (Path(name), pristine / name))
    assert [key for key in wanted if key not in ("recipe", "environment") and not same(found[key], wanted[key])] == []


def options(chance: random.Random, pristine: Path) -> None:
    path = Path(name := stopped_run(chance), "options.json")
    if chance.random() < 0.4:
        harm_bytes(path, chance)
    else:
        anything = (*STRANGE, *WHOLE, *REAL, *PATHS, *WORDS)
        path.write_text(json.dumps(harm_value(json.loads(path.read_text()), chance, anything)))
    if chance.random() < 0.2:
        at_terminal("sample", name, "--tokens", "2")
    resume(name, pristine)


def checkpoint(chance: random.Random, pristine: Path) -> None:
    path = checkpoints(Path(name := stopped_run(chance)))[0]
    how, tensors = chance.random(), (torch.zeros(3), torch.tensor(torch.nan), torch.ones(2, 2))
    if how < 0.4:
        harm_bytes(path, chance)
    elif how < 0.5:
        shutil.copy(pristine / ("kept-images" if name == "kept" else "kept") / "checkpoints" / path.name, path)
    else:
        torch.save(harm_value(torch.load(path, weights_only=True), chance, STRANGE + 4 * tensors), path)
    if chance.random() < 0.2:
        at_terminal("sample", name, "--tokens", "2")
    resume(name, pristine)


def other_files(chance: random.Random, pristine: Path) -> None:
    name = stopped_run(chance)
    for path in chance.sample(["metrics.jsonl", "recipe.txt"], chance.choice([1, 2])):
        harm_bytes(Path(name, path), chance)
    if chance.random() < 0.3:
        shutil.rmtree(Path(name, "checkpoints"))
    resume(name, pristine)
