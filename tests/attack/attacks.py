"""Harms one thing in a copy of a whole folder, by chance, and uses it: in a process of its own, without checks of types.

Of `PYTHONPATH=tests python tests/attack/attacks.py options 17 18` the last three words are the kind and the cases, which
a failure names; `ATTACK_SEED=1` makes others.
"""

import itertools
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import attacks_on_files
import attacks_on_runs
from harm import TRAIN, TRAIN_IMAGES, at_terminal, make_data, patched, said, set_defaults
from toys import draws

from minitrain.lab.compare import compare
from minitrain.train import train

SEED = os.environ.get("ATTACK_SEED", "0")
OFTEN = {"log_every": 2, "evaluate_every": 3, "checkpoint_every": 2}  # of `train`, in the place of its own


def make_pristine() -> None:
    """Data, a finished run on each kind of them with checkpoints at steps 2, 4 and 6, and a cache of two runs."""
    make_data()
    with patched("minitrain.runtime.checkpoint", KEPT=3):
        for command, name in ((TRAIN, "kept"), (TRAIN_IMAGES, "kept-images")):
            assert at_terminal(*command, "--steps", "6", "--out", name)[0] == 0, said
    compare({"A": draws}, seeds=[0, 1], cache="cache")


def main(kinds: list[str], first: int, last: int) -> None:
    """Carries out the cases `first` to `last - 1` of each kind; prints those that failed, and exits with 1 if one did."""
    failed, start = 0, Path.cwd()
    set_defaults(train, **OFTEN)
    with tempfile.TemporaryDirectory() as folder:
        pristine, here = Path(folder, "pristine"), Path(folder, "here")
        pristine.mkdir()
        os.chdir(pristine)
        make_pristine()
        for kind, number in itertools.product(kinds, range(first, last)):
            act = getattr(attacks_on_runs if hasattr(attacks_on_runs, kind) else attacks_on_files, kind)
            shutil.copytree(pristine, here)
            os.chdir(here)
            for path in here.glob("*/options.json"):  # which hold whole paths
                path.write_text(path.read_text().replace(str(pristine), str(here)))
            said.clear()
            try:
                act(random.Random(f"{SEED} {kind} {number}"), pristine)
            except BaseException:
                failed += 1
                print(f"--- {kind} {number}", *said, traceback.format_exc(limit=-6), sep="\n", flush=True)
            shutil.rmtree(here)
        os.chdir(start)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main([sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]))
