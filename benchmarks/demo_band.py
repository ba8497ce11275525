"""Measures the band in which `minitrain demo` ends, and draws the picture of one such run.

    python benchmarks/demo_band.py                        # the running Python's standard library
    python benchmarks/demo_band.py 3.12=FOLDER ...        # and those of other Pythons, by their library folders

Eight seeds for each library, in bf16; the band is where 99 of 100 further runs end, by Student's t. Three of the seeds
are also run in fp32. The record, `minitrain/demo.json`, is written after every run; a second call runs what is missing.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from minitrain.cli.commands import bits_per_byte, demo_options
from minitrain.cli.options import Train
from minitrain.cli.recipes import recipe_of
from minitrain.data.text import python_version, standard_library
from minitrain.lab.plots import THEMES, draw_run
from minitrain.lab.probes import Rotation
from minitrain.runtime.device import use_fast_cpu
from minitrain.runtime.files import write_text
from minitrain.train import Run, train

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "minitrain" / "demo.json"
SEEDS = range(1, 9)  # the demo itself takes seed 0 unless told otherwise
SEEDS_IN_FP32 = range(1, 4)


def demo_run(seed: int, library: str | None, precision: Literal["fp32", "bf16"]) -> Run:
    """The demo's run on a library, without its samples."""
    options: Train = demo_options(seed)
    recipe = recipe_of(options.model, options.training, precision)
    data = partial(standard_library, context=options.model.context, folder=library)
    return train(replace(recipe, data=data), probes=[Rotation()])


def main(arguments: list[str]) -> None:
    """Runs what the record lacks."""
    libraries: dict[str, str | None] = {python_version(): None}
    libraries |= dict(argument.split("=", 1) for argument in arguments)
    use_fast_cpu(threads=1)
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record |= {"command": "python benchmarks/demo_band.py [VERSION=LIBRARY ...]", "torch": str(torch.__version__)}
    wanted = [(v, "bf16", seed) for v in libraries for seed in SEEDS]
    wanted += [(python_version(), "fp32", seed) for seed in SEEDS_IN_FP32]
    for version, precision, seed in wanted:
        values = record.setdefault(precision, {}).setdefault(version, [])
        if len(values) >= seed:
            continue
        run = demo_run(seed, libraries[version], precision)  # ty: ignore[invalid-argument-type]
        values.append(round(bits_per_byte(run), 4))
        record.setdefault("digest", {})[version] = run.data.digest
        write_text(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
        print(version, precision, f"seed {seed}: {values[-1]}", flush=True)
        if (version, precision, seed) == (python_version(), "bf16", 1):
            lines = [json.dumps({k: v for k, v in m.items() if k in FIGURE_KEYS}) for m in run.metrics]
            write_text(ROOT / "docs" / "results" / "demo_run.jsonl", "\n".join(lines) + "\n")
    draw_figure()


FIGURE_KEYS = {"step", "loss", "val_loss", "rotation", "predicted_rotation"}


def draw_figure() -> None:
    """The picture of the recorded run, for light and dark pages."""
    lines = (ROOT / "docs" / "results" / "demo_run.jsonl").read_text().splitlines()
    for theme in THEMES:
        path = ROOT / "docs" / "figures" / f"demo-{theme.name}.svg"
        draw_run([json.loads(line) for line in lines], path, theme=theme)


if __name__ == "__main__":
    main(sys.argv[1:])
