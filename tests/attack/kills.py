"""Kills commands at random moments and calls them again until they are done: what is left is what a calm run leaves.

A process of its own does it, whose forks need not import torch again. `ATTACK_SEED=1` makes another storm.
"""

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from harm import TRAIN, TRAIN_IMAGES, content, make_data, set_defaults
from small import VARIANTS, fork, import_everything, killed, long, same

from minitrain import cli
from minitrain.lab.compare import compare
from minitrain.runtime.checkpoint import checkpoints
from minitrain.train import train

SEED = os.environ.get("ATTACK_SEED", "0")
OFTEN = {"log_every": 10, "evaluate_every": 25, "checkpoint_every": 7}  # of `train`, in the place of its own
IN_BACKWARD = ["--split-weights", "8", "--step-in-backward", "--clip", "0"]
COMMANDS = {
    "text": [*TRAIN, "--steps", "120"],
    "split text": [*TRAIN, *IN_BACKWARD, "--optimizer", "lion", "--steps", "120"],
    "images": [*TRAIN_IMAGES, "--ghost-noise", "4", "--steps", "60"],
    "split images": [*TRAIN_IMAGES, *IN_BACKWARD, "--norm", "online", "--steps", "60"],
}


def start_or_resume(command: list[str], folder: Path) -> None:
    """As a person would who finds the folder after a crash."""
    quietly()
    resumed = (folder / "metrics.jsonl").exists()
    cli.main([command[0], "--resume", str(folder)] if resumed else [*command, "--out", str(folder)])


def quietly() -> None:
    sys.stdout = sys.stderr = open("output", "a")  # noqa: SIM115


def ends_within(child: int, seconds: float) -> bool:
    """Waits for a fork so long at most; whether it has ended. Raises `RuntimeError` where it failed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return not killed(child)
        time.sleep(0.005)
    return False


def storm(kind: str, kills: int) -> None:
    """As many histories of one command as so many kills take, each struck up to its end and held against the calm one."""
    chance, calm = random.Random(f"{SEED} {kind}"), Path("calm")
    make_data()
    command = [str(Path(word).absolute()) if Path(word).is_file() else word for word in COMMANDS[kind]]
    import_everything()
    with contextlib.redirect_stdout(None):
        cli.main(["ledger"])  # imports what commands need
    set_defaults(train, **OFTEN)
    begin = time.monotonic()
    killed(fork(partial(start_or_resume, command, calm)))
    seconds, struck, histories = time.monotonic() - begin, 0, 0
    while struck < kills:
        folder, histories, ended = Path(f"struck {histories}"), histories + 1, False
        while not ended:
            child = fork(partial(start_or_resume, command, folder))
            ended = ends_within(child, chance.uniform(0, 0.6 * seconds) if struck < kills else 600)
            if not ended:
                os.kill(child, signal.SIGKILL)
                struck += killed(child)
        check_same(folder, calm)
    print(f"{kind}: {struck} kills in {histories} histories, of {seconds:.1f} s each if left alone")


def check_same(folder: Path, calm: Path) -> None:
    """The same files byte for byte, and the same checkpoints bit for bit."""
    found, wanted = content(folder), content(calm)
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    different = [name for name in wanted if found[name] != wanted[name] and not name.endswith(".pt")]
    assert not different, different
    for a, b in zip(checkpoints(folder), checkpoints(calm), strict=True):
        assert same(torch.load(a, weights_only=True), torch.load(b, weights_only=True)), a


# --- comparisons -----------------------------------------------------------------------------------------------------------


def compare_all(cache: Path) -> None:
    """Four runs in two workers, with a checkpoint every 250 steps; again where a worker was killed."""
    quietly()
    os.environ["STORM"] = str(cache.absolute())
    arms = {name: replace(long(VARIANTS[name], 400), seed=0) for name in ("fp32", "dropout")}
    while compare(arms, seeds=[0, 1], cache=cache, workers=2, keep_weights=True).crashed():
        pass


def processes(cache: Path) -> list[int]:
    """The callers and workers that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"STORM={cache.absolute()}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # another user's, or just gone
            pass
    return found


def storm_over_compare(kills: int) -> None:
    """The caller or a worker is killed, over and over; nothing may be lost, doubled, half written or alive then."""
    chance, calm, cache, struck = random.Random(f"{SEED} compare"), Path("calm"), Path("struck"), 0
    import_everything()
    begin = time.monotonic()
    killed(fork(partial(compare_all, calm)))
    seconds = time.monotonic() - begin
    while struck < kills:
        caller = fork(partial(compare_all, cache))
        while struck < kills and not ends_within(caller, chance.uniform(0.1, 0.8) * seconds):
            victim = chance.choice([caller, caller, *processes(cache)])
            os.kill(victim, signal.SIGKILL)
            struck += 1
            if victim == caller:
                killed(caller)
                break
    wait_until(lambda: not processes(cache))
    killed(fork(partial(compare_all, cache)))
    found, wanted = ({name: x for name, x in content(y).items() if not name.endswith("seconds")} for y in (cache, calm))
    assert found == wanted, {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
    assert sorted(content(cache)) == sorted(content(calm))
    wait_until(lambda: not processes(cache))
    print(f"compare: {struck} kills, {seconds:.1f} s if left alone")


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
